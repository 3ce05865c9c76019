//! Three processes that embed the library and form one group on this machine. This program starts
//! each of them from its own executable.
//!
//! `cargo run -p steadfast-examples --bin three_processes`

use std::error::Error;
use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use steadfast::{Bootstrap, ConsistencyPolicy, ReadError, RepConfig, ReplicatedEnvironment};

const NODES: usize = 3;
const DONE: &str = "done";

fn main() -> Result<(), Box<dyn Error>> {
    match std::env::args().skip(1).collect::<Vec<_>>().as_slice() {
        [] => parent(),
        [node, dir, nodes @ ..] => node_process(node, dir, nodes),
        _ => Err("usage: three_processes".into()),
    }
}

/// Starts the nodes, prints their output, and waits until all have ended.
fn parent() -> Result<(), Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    let nodes = (1..=NODES).map(|n| Ok(format!("n{n}=127.0.0.1:{}", free_port()?)));
    let nodes: Vec<String> = nodes.collect::<Result<_, std::io::Error>>()?;
    let start = |n: usize| -> Result<Child, Box<dyn Error>> {
        let name = format!("n{n}");
        let child = Command::new(std::env::current_exe()?)
            .args([&name, &dir.path().join(&name).display().to_string()])
            .args(&nodes)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        Ok(child)
    };
    let mut children = (1..=NODES).map(start).collect::<Result<Vec<_>, _>>()?;
    // Each node prints what it does until its part is done, then stays up for the others.
    for child in &mut children {
        let output = child.stdout.take().ok_or("no output")?;
        for line in BufReader::new(output).lines() {
            let line = line?;
            if line == DONE {
                break;
            }
            println!("{line}");
        }
    }
    // End of input tells a node that all are done.
    for child in &mut children {
        child.stdin.take();
        if !child.wait()?.success() {
            return Err("a node failed".into());
        }
    }
    Ok(())
}

/// One node: opens its environment, adds itself to a shared list, and waits until the list is
/// complete.
fn node_process(node: &str, dir: &str, nodes: &[String]) -> Result<(), Box<dyn Error>> {
    let own = nodes
        .iter()
        .find_map(|item| item.strip_prefix(&format!("{node}=")));
    let config = RepConfig::builder("example", node)
        .data_dir(dir)
        .listen(own.ok_or("this node is not in the list")?)
        .bootstrap(Bootstrap::expect(nodes)?)
        .build()?;
    let env = ReplicatedEnvironment::open(config)?;
    env.wait_ready(Duration::from_secs(30))?;

    // On whichever node: a replica has the master commit what it writes.
    let token = env.database("seen").put(node, b"yes")?;
    println!("{node} committed itself as {token}");
    let seen = |env: &ReplicatedEnvironment| {
        env.read(ConsistencyPolicy::Linearizable, |s| {
            Ok::<_, ReadError>(s.database("seen")?.iter().count())
        })
    };
    while seen(&env)? < nodes.len() {
        std::thread::yield_now();
    }
    println!("{node} reads {} entries", seen(&env)?);
    println!("{DONE}");
    std::io::stdin().read_to_end(&mut Vec::new())?;
    env.close()?;
    Ok(())
}

fn free_port() -> std::io::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
