//! A replica in its own process is stopped for seconds while the others go on, then resumed:
//! whatever it was asked meanwhile, it answers with what was acknowledged by then, or not at all.

#![expect(
    clippy::disallowed_methods,
    reason = "tests use real processes, threads and deadlines"
)]

use std::io::{BufRead, BufReader, Lines, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use steadfast::{
    Bootstrap, CommitToken, ConsistencyPolicy, ReadError, RepConfig, ReplicatedEnvironment, Role,
};

const CHILD: &str = "STEADFAST_PAUSED_CHILD";
/// Prefix of lines that the child addresses to its parent.
const ANSWER: &str = "answer ";
const PAUSE: Duration = Duration::from_secs(5);
const PATIENCE: Duration = Duration::from_mins(1);

/// Releases the thread that waits for a flag, even if the test fails.
struct Release<'a>(&'a AtomicBool);

impl Drop for Release<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn open(name: &str, dir: &Path, list: &[String]) -> ReplicatedEnvironment {
    let address = list
        .iter()
        .find_map(|node| node.strip_prefix(&format!("{name}=")));
    let mut config = RepConfig::builder("paused", name)
        .data_dir(dir.join(name))
        .listen(address.expect("it is in the list"))
        .bootstrap(Bootstrap::expect(list).expect("a list"))
        .set("read_timeout_ms", 20_000);
    if name == "n3" {
        // Lets the others stand for election first.
        config = config
            .set("election_timeout_min_ms", 4_000)
            .set("election_timeout_max_ms", 6_000);
    }
    let opened = ReplicatedEnvironment::open(config.build().expect("a configuration"));
    opened.expect("opened")
}

fn read(node: &ReplicatedEnvironment, policy: ConsistencyPolicy) -> Result<u64, ReadError> {
    let value = node.read(policy, |snapshot| snapshot.database("d")?.get("n"))?;
    Ok(value.map_or(0, |value| {
        u64::from_be_bytes(value[..].try_into().expect("a number"))
    }))
}

/// Not a test in itself: the replica, when started by the other process.
#[test]
fn replica_that_answers_reads() {
    let Ok(arguments) = std::env::var(CHILD) else {
        return;
    };
    let (dir, list) = arguments.split_once('|').expect("a directory and a list");
    let list: Vec<_> = list.split(',').map(str::to_owned).collect();
    let node = open("n3", Path::new(dir), &list);
    node.wait_ready(PATIENCE).expect("ready");
    println!("\n{ANSWER}ready");
    for line in std::io::stdin().lock().lines() {
        let policy = match line.expect("text").parse::<CommitToken>() {
            Ok(token) => ConsistencyPolicy::AtLeast(token),
            Err(_) => ConsistencyPolicy::Linearizable,
        };
        match read(&node, policy) {
            Ok(value) => println!("{ANSWER}{value}"),
            Err(error) => println!("{ANSWER}error: {error}"),
        }
    }
    node.close().expect("closed");
}

/// The replica's process; killed on drop.
struct Replica {
    process: Child,
    input: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Replica {
    fn start(dir: &Path, list: &[String]) -> Self {
        let mut process = Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", "replica_that_answers_reads", "--nocapture"])
            .env(CHILD, format!("{}|{}", dir.display(), list.join(",")))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("it starts");
        let input = process.stdin.take().expect("piped");
        let lines = BufReader::new(process.stdout.take().expect("piped")).lines();
        Self {
            process,
            input,
            lines,
        }
    }

    fn signal(&self, name: &str) {
        let pid = self.process.id().to_string();
        let sent = Command::new("kill").args([name, &pid]).status();
        assert!(sent.expect("kill runs").success());
    }

    fn ask(&mut self, question: &str) {
        writeln!(self.input, "{question}").expect("the replica reads");
    }

    fn answer(&mut self) -> String {
        let mut lines = self.lines.by_ref().map(|line| line.expect("text"));
        let answer = lines.find_map(|line| Some(line.strip_prefix(ANSWER)?.to_owned()));
        answer.expect("the replica goes on")
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        // It may have ended already.
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

#[test]
fn a_replica_that_was_stopped_and_woken_never_answers_with_stale_data() {
    let dir = tempfile::tempdir().expect("a directory");
    let ports = [(); 3].map(|()| TcpListener::bind("127.0.0.1:0").expect("a port"));
    let list: Vec<_> = (1..)
        .zip(&ports)
        .map(|(n, port)| format!("n{n}={}", port.local_addr().expect("bound")))
        .collect();
    drop(ports);
    let mut replica = Replica::start(dir.path(), &list);
    let nodes = ["n1", "n2"].map(|name| open(name, dir.path(), &list));
    for node in &nodes {
        node.wait_ready(PATIENCE).expect("ready");
    }
    let master = nodes.iter().find(|node| node.state().role == Role::Master);
    let master = master.expect("one of the two, whose timers are shorter");
    assert_eq!(replica.answer(), "ready");

    let put = |n: u64| master.write(|txn| txn.database("d")?.put("n", n.to_be_bytes()));
    let newest = Mutex::new((1, put(1).expect("committed").token));
    let is_done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in 2.. {
                if is_done.load(Ordering::Relaxed) {
                    return;
                }
                let token = put(n).expect("two of three are there").token;
                *newest.lock().expect("no panic") = (n, token);
            }
        });
        let _ended = Release(&is_done);
        let mut floors = Vec::new();
        let mut ask = |replica: &mut Replica| {
            let (n, token) = *newest.lock().expect("no panic");
            replica.ask(&token.to_string());
            replica.ask("linearizable");
            floors.extend([n, n]);
        };
        ask(&mut replica);
        replica.signal("-STOP");
        let until = Instant::now() + PAUSE;
        while Instant::now() < until {
            std::thread::sleep(Duration::from_millis(200));
            ask(&mut replica);
        }
        replica.signal("-CONT");
        ask(&mut replica);
        let mut values = 0;
        for floor in &floors {
            let answer = replica.answer();
            if let Ok(value) = answer.parse::<u64>() {
                assert!(value >= *floor, "{value}, when {floor} was acknowledged");
                values += 1;
            } else {
                assert!(answer.starts_with("error: "), "{answer}");
            }
        }
        assert!(values > 0 && floors.len() > 20, "{values} of {floors:?}");
        assert!(floors.last() > Some(&(floors[0] + 100)), "{floors:?}");
    });
}
