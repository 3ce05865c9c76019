//! Measures how long a node with many rows takes to open after a kill:
//!
//! ```sh
//! cargo run --release -p steadfast --example open_after_kill -- 2000000
//! ```
//!
//! A separate process writes the rows, overwrites some of them, rests, and is killed. Then the node is
//! opened, killed and opened again, three times. For each open, the log line says how long (`took`)
//! it took to check the engine against the log.
#![expect(
    clippy::disallowed_methods,
    reason = "a measurement: real time and real processes"
)]

use std::error::Error;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use steadfast::{Bootstrap, ConsistencyPolicy, RepConfig, ReplicatedEnvironment, WriteBatch};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const VALUE_BYTES: usize = 256;
const BATCH: u64 = 1_000;
const PATIENCE: Duration = Duration::from_mins(10);
/// How long the node goes on without writes before it is killed.
const REST: Duration = Duration::from_secs(20);

fn open(dir: &Path) -> Result<ReplicatedEnvironment, Box<dyn Error>> {
    let config = RepConfig::builder("measured", "n1")
        .data_dir(dir)
        .listen("127.0.0.1:0")
        .bootstrap(Bootstrap::single())
        .set("engine_cache_bytes", 512 << 20)
        .build()?;
    let node = ReplicatedEnvironment::open(config)?;
    node.wait_ready(PATIENCE)?;
    Ok(node)
}

/// Writes all rows, rewrites every eighth, reports that, and waits to be killed.
fn fill(dir: &Path, rows: u64) -> Result<(), Box<dyn Error>> {
    let node = open(dir)?;
    let is_filled = node
        .database("d")
        .get(ConsistencyPolicy::Linearizable, 0_u64.to_be_bytes())?
        .is_some();
    let rounds: &[u64] = if is_filled { &[8] } else { &[1, 8] };
    for step in rounds {
        let keys: Vec<u64> = (0..rows).step_by(usize::try_from(*step)?).collect();
        for part in keys.chunks(usize::try_from(BATCH)?) {
            let mut batch = WriteBatch::default();
            for key in part {
                let scattered = key * 1_000_003 % rows;
                let value = vec![step.to_le_bytes()[0]; VALUE_BYTES];
                batch.put("d", scattered.to_be_bytes(), value);
            }
            let _token = node.write_batch(&batch)?;
        }
    }
    std::thread::sleep(REST);
    println!("filled");
    std::thread::sleep(PATIENCE);
    Ok(())
}

fn start(dir: &Path, rows: u64) -> Result<Child, Box<dyn Error>> {
    let mut child = Command::new(std::env::current_exe()?)
        .args([&rows.to_string(), "fill"])
        .arg(dir)
        .stdout(Stdio::piped())
        .spawn()?;
    let mut line = String::new();
    let stdout = child.stdout.take().ok_or("no output")?;
    std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut line)?;
    Ok(child)
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let rows: u64 = arguments
        .first()
        .map_or("2000000", String::as_str)
        .parse()?;
    if let [_, _, dir] = &arguments[..] {
        return fill(Path::new(dir), rows);
    }
    tracing_subscriber::fmt()
        .with_env_filter("steadfast::txn::audit=info")
        .init();
    let dir = tempfile::tempdir()?;
    for round in 1..=3 {
        let mut child = start(dir.path(), rows)?;
        child.kill()?;
        child.wait()?;
        let began = Instant::now();
        let node = open(dir.path())?;
        let ready = began.elapsed();
        println!("round {round}: open and ready {ready:.2?} after a kill, {rows} rows");
        node.close()?;
    }
    Ok(())
}
