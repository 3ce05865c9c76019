//! Measures a copy of the state while the group takes 1,000 writes a second: its speed, its cost to
//! the writes, and its memory use on either side. Every node is a separate process.
//!
//! `cargo run --release --example restore_under_load -p steadfast -- 200` for 200 MiB of data.

use std::error::Error;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use steadfast::{Bootstrap, NodeStatus, RepConfig, ReplicatedEnvironment, Role, WriteError};
use tokio::time::Instant;

/// As in the `steadfast` program.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const NODES: usize = 3;
const VALUE_BYTES: usize = 1024;
const WRITES_PER_S: u64 = 1000;
const WRITERS: u64 = 8;
/// A copy that takes longer has failed.
const PATIENCE: Duration = Duration::from_mins(20);
const TELL_EVERY: Duration = Duration::from_secs(10);

fn main() -> Result<()> {
    match std::env::args().skip(1).collect::<Vec<_>>().as_slice() {
        [] => parent(200),
        [mib] => parent(mib.parse()?),
        [node, dir, nodes @ ..] => node_process(node, dir, nodes),
    }
}

/// One node in its own process.
struct Node {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Node {
    fn start(at: usize, dir: &Path, nodes: &[String]) -> Result<Self> {
        let name = format!("n{}", at + 1);
        let mut child = Command::new(std::env::current_exe()?)
            .args([&name, &dir.join(&name).display().to_string()])
            .args(nodes)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let input = child.stdin.take().ok_or("no input")?;
        let output = BufReader::new(child.stdout.take().ok_or("no output")?);
        let mut node = Self {
            child,
            input,
            output,
        };
        node.answer()?;
        Ok(node)
    }

    fn answer(&mut self) -> Result<String> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        Ok(line.trim().to_owned())
    }

    fn ask(&mut self, command: &str) -> Result<String> {
        writeln!(self.input, "{command}")?;
        self.answer()
    }

    /// Resident memory in MiB.
    fn memory(&self) -> Result<u64> {
        let status = read_text(&format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.split_whitespace().next());
        Ok(kib.ok_or("no VmRSS")?.parse::<u64>()? / 1024)
    }
}

#[expect(clippy::disallowed_methods, reason = "the system is asked for memory")]
fn read_text(path: &str) -> std::io::Result<String> {
    std::fs::read_to_string(path)
}

fn parent(mib: u64) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let ports = (0..NODES)
        .map(|_| free_port())
        .collect::<std::io::Result<Vec<_>>>()?;
    let address = |at: usize| format!("127.0.0.1:{}", ports[at]);
    let nodes: Vec<String> = (0..NODES)
        .map(|at| format!("n{}={}", at + 1, address(at)))
        .collect();
    let start = |at| Node::start(at, dir.path(), &nodes);
    let mut running = (0..NODES).map(start).collect::<Result<Vec<_>>>()?;
    let mut master = None;
    for (at, node) in running.iter_mut().enumerate() {
        if node.ask("ready")? == "master" {
            master = Some(at);
        }
    }
    let master = master.ok_or("no master")?;
    let behind = (master + 1) % NODES;
    running[behind].ask("quit")?;
    running[behind].child.wait()?;
    println!("{}", running[master].ask(&format!("fill {mib}"))?);
    println!("without a copy: {}", running[master].ask("load 10")?);
    let before: Vec<u64> = running
        .iter()
        .enumerate()
        .map(|(at, node)| if at == behind { Ok(0) } else { node.memory() })
        .collect::<Result<_>>()?;
    writeln!(running[master].input, "load")?;
    running[behind] = start(behind)?;
    let mut most = memory_of(&running)?;
    let fresh = most[behind];
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let copying = address(behind);
    let watched = watch_copy(&copying, &running, &mut most);
    let (took, bytes) = runtime.block_on(watched)?;
    writeln!(running[master].input, "stop")?;
    println!("with a copy:    {}", running[master].answer()?);
    let seconds = took.as_secs_f64();
    println!("copied {} MiB and started in {seconds:.1} s", bytes >> 20);
    for (at, most) in most.iter().enumerate() {
        let (role, from) = match at {
            at if at == behind => ("copies", fresh),
            at if at == master => ("master", before[at]),
            _ => ("source", before[at]),
        };
        println!(
            "n{} ({role}): memory from {from} to at most {most} MiB",
            at + 1
        );
    }
    for node in &mut running {
        node.ask("quit")?;
        node.child.wait()?;
    }
    Ok(())
}

fn memory_of(running: &[Node]) -> Result<Vec<u64>> {
    running.iter().map(Node::memory).collect()
}

/// How long the node at `address` takes for its copy, and its size in bytes. Records the peak
/// memory of each node meanwhile.
async fn watch_copy(address: &str, running: &[Node], most: &mut [u64]) -> Result<(Duration, u64)> {
    let (mut began, mut bytes) = (None, 0);
    let deadline = Instant::now() + PATIENCE;
    let mut told = Instant::now();
    while Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(50)).await;
        for (most, now) in most.iter_mut().zip(memory_of(running)?) {
            *most = now.max(*most);
        }
        let status = NodeStatus::ask(address, false, Duration::from_secs(5)).await?;
        match (&status.restore, began) {
            (Some(restore), _) => {
                began.get_or_insert_with(Instant::now);
                bytes = restore.bytes;
                if told.elapsed() >= TELL_EVERY {
                    told = Instant::now();
                    println!("copied {} MiB, memory {most:?} MiB", bytes >> 20);
                }
            }
            (None, Some(began)) if status.role == Role::Replica => {
                return Ok((began.elapsed(), bytes));
            }
            _ => {}
        }
    }
    Err("the copy is not done in time".into())
}

fn node_process(node: &str, dir: &str, nodes: &[String]) -> Result<()> {
    const MIB: u64 = 1024 * 1024;
    let own = nodes
        .iter()
        .find_map(|item| item.strip_prefix(&format!("{node}=")));
    let config = RepConfig::builder("example", node)
        .data_dir(dir)
        .listen(own.ok_or("this node is not in the list")?)
        .bootstrap(Bootstrap::expect(nodes)?)
        .set("engine_cache_bytes", 256 * MIB)
        .set("window_bytes_max", 32 * MIB)
        .set("flush_bytes", 8 * MIB)
        .set("flush_interval_ms", 500)
        .set("log_cache_bytes_max", 8 * MIB)
        .set("log_segment_bytes", 8 * MIB)
        .set("log_keep_bytes", 16 * MIB)
        .set("log_retain_bytes_max", 64 * MIB)
        .set("log_retain_ms_max", 1000)
        .build()?;
    let env = ReplicatedEnvironment::open(config)?;
    println!("open");
    let mut lines = std::io::stdin().lines();
    let mut keys = 0;
    while let Some(line) = lines.next() {
        let line = line?;
        let words: Vec<_> = line.split_whitespace().collect();
        match words.as_slice() {
            ["ready"] => {
                env.wait_ready(Duration::from_mins(1))?;
                let is_master = env.state().role == Role::Master;
                println!("{}", if is_master { "master" } else { "replica" });
            }
            ["fill", mib] => {
                keys = mib.parse::<u64>()? * 1024 * 1024 / VALUE_BYTES as u64;
                fill(&env, keys)?;
                println!("{mib} MiB are there");
            }
            ["load", seconds] => {
                let seconds = Duration::from_secs(seconds.parse()?);
                println!(
                    "{}",
                    load(&env, keys, || std::thread::park_timeout(seconds))
                );
            }
            ["load"] => {
                let until_told = || drop(lines.next());
                println!("{}", load(&env, keys, until_told));
            }
            _ => break,
        }
    }
    env.close()?;
    println!("closed");
    Ok(())
}

fn key(n: u64) -> [u8; 8] {
    n.to_be_bytes()
}

fn fill(env: &ReplicatedEnvironment, keys: u64) -> Result<()> {
    const AT_ONCE: u64 = 500;
    for first in (0..keys).step_by(usize::try_from(AT_ONCE)?) {
        let _written = env.write(|txn| -> std::result::Result<_, WriteError> {
            let data = txn.database("data")?;
            for n in first..keys.min(first + AT_ONCE) {
                data.put(key(n), [n.to_le_bytes()[0]; VALUE_BYTES])?;
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// Writes at a steady rate until `wait` returns; reports how long the writes took.
fn load(env: &ReplicatedEnvironment, keys: u64, wait: impl FnOnce()) -> String {
    let (ended, next) = (AtomicBool::new(false), AtomicU64::new(0));
    let latencies = Mutex::new(Vec::new());
    let began = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..WRITERS {
            scope.spawn(|| {
                while !ended.load(Ordering::Relaxed) {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    let due = began + Duration::from_micros(n * 1_000_000 / WRITES_PER_S);
                    std::thread::park_timeout(due.saturating_duration_since(Instant::now()));
                    let asked = Instant::now();
                    // Scattered over all keys.
                    let key = key(n.wrapping_mul(0x9e37_79b9_7f4a_7c15) % keys.max(1));
                    let put = env.write(|txn| txn.database("data")?.put(key, [7; VALUE_BYTES]));
                    if put.is_ok()
                        && let Ok(mut latencies) = latencies.lock()
                    {
                        latencies.push(asked.elapsed());
                    }
                }
            });
        }
        wait();
        ended.store(true, Ordering::Relaxed);
    });
    let mut latencies = latencies.into_inner().unwrap_or_default();
    latencies.sort_unstable();
    let at = |share: usize| latencies[(latencies.len() * share / 100).min(latencies.len() - 1)];
    if latencies.is_empty() {
        return "no write was acknowledged".to_owned();
    }
    format!(
        "{} writes in {:.1} s, commit latency p50 {:?}, p99 {:?}, longest {:?}",
        latencies.len(),
        began.elapsed().as_secs_f64(),
        at(50),
        at(99),
        at(100)
    )
}

#[expect(
    clippy::disallowed_methods,
    reason = "the system is asked for a port that is free"
)]
fn free_port() -> std::io::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
