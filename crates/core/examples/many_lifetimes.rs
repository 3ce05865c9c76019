//! Measures what it costs the writes of an application when very many keys with a time to live end
//! within the same minute, and whether each ends in time. Three nodes on this machine's disk, in
//! one process.
//!
//! `cargo run --release --example many_lifetimes -p steadfast -- 1000000 240` for a million keys,
//! which are put within 240 s and end in the minute after that.

use std::error::Error;
use std::net::TcpListener;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use hdrhistogram::Histogram;
use steadfast::{
    Bootstrap, Change, FeedEvent, RepConfig, ReplicatedEnvironment, Role, StartAt, WriteError,
};
use tokio::time::Instant;

/// As in the `steadfast` program.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// The application: this many writers, with this many writes a second in all.
const WRITERS: u32 = 8;
const WRITES_PER_S: u32 = 1000;
const VALUE_BYTES: usize = 256;
/// Keys per transaction of those that put the keys with a time to live.
const CHUNK: usize = 1000;
/// In which all keys end.
const MINUTE: Duration = Duration::from_mins(1);
/// How long the writes are measured before that.
const BEFORE: Duration = Duration::from_secs(30);
/// Until then what was put has been flushed.
const SETTLE: Duration = Duration::from_secs(20);
/// Longer times count as this, in microseconds.
const US_MAX: u64 = 3_600_000_000;
/// A key that is later has failed.
const PATIENCE: Duration = Duration::from_mins(20);

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let keys = arguments
        .next()
        .map_or(Ok(1_000_000), |keys| keys.parse())?;
    let load_s = arguments
        .next()
        .map_or(Ok(240), |seconds| seconds.parse())?;
    let dir = tempfile::tempdir()?;
    let nodes = start(dir.path())?;
    let is_master = |node: &&ReplicatedEnvironment| node.state().role == Role::Master;
    let master = nodes.iter().find(is_master).ok_or("no master")?;
    let ends = Ends {
        from: Instant::now() + Duration::from_secs(load_s),
        puts: Mutex::new(vec![None; keys]),
        done: AtomicBool::new(false),
        ended: AtomicUsize::new(0),
    };
    let latencies = Latencies::default();
    std::thread::scope(|scope| {
        let measured = scope.spawn(|| measure(&ends, &latencies));
        let writers: Vec<_> = (0..WRITERS)
            .map(|_| scope.spawn(|| write(master, &ends, &latencies)))
            .collect();
        let followed = scope.spawn(|| follow(master, &ends));
        let loaded = load(master, &ends);
        let followed = loaded.and_then(|()| followed.join().expect("no panic"));
        ends.done.store(true, Ordering::Relaxed);
        for writer in writers {
            writer.join().expect("no panic");
        }
        measured.join().expect("no panic");
        let late = followed?;
        latencies.tell("after it");
        println!(
            "{} keys ended, none early; late by p50 {:.2} s, p99 {:.2} s, max {:.2} s",
            late.len(),
            seconds(late.value_at_quantile(0.5)),
            seconds(late.value_at_quantile(0.99)),
            seconds(late.max())
        );
        Ok(())
    })
}

/// Which keys end when.
struct Ends {
    /// When the first one ends.
    from: Instant,
    /// When each was put, and for how long.
    puts: Mutex<Vec<Option<(Instant, Duration)>>>,
    ended: AtomicUsize,
    done: AtomicBool,
}

/// How long writes took, in microseconds, since this was last reset.
struct Latencies(Mutex<Histogram<u64>>);

impl Default for Latencies {
    fn default() -> Self {
        Self(Mutex::new(
            Histogram::new_with_max(US_MAX, 3).expect("three digits are few enough"),
        ))
    }
}

impl Latencies {
    fn record(&self, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let mut histogram = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        histogram.saturating_record(us);
    }

    /// Tells what was measured, and begins anew.
    fn tell(&self, what: &str) {
        let mut histogram = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        println!(
            "{what}: {} writes, p50 {:.1} ms, p99 {:.1} ms, p99.9 {:.1} ms, max {:.1} ms",
            histogram.len(),
            milliseconds(histogram.value_at_quantile(0.5)),
            milliseconds(histogram.value_at_quantile(0.99)),
            milliseconds(histogram.value_at_quantile(0.999)),
            milliseconds(histogram.max())
        );
        histogram.reset();
    }
}

#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn milliseconds(us: u64) -> f64 {
    us as f64 / 1e3
}

fn seconds(us: u64) -> f64 {
    milliseconds(us) / 1e3
}

fn start(dir: &Path) -> Result<Vec<ReplicatedEnvironment>> {
    let ports: std::io::Result<Vec<u16>> = (0..3).map(|_| free_port()).collect();
    let ports = ports?;
    let list: Vec<_> = (1..).zip(&ports).collect();
    let list: Vec<_> = list
        .iter()
        .map(|(n, port)| format!("n{n}=127.0.0.1:{port}"))
        .collect();
    let open = |at: usize| -> Result<ReplicatedEnvironment> {
        let name = format!("n{}", at + 1);
        let config = RepConfig::builder("example", &name)
            .data_dir(dir.join(&name))
            .listen(format!("127.0.0.1:{}", ports[at]))
            .bootstrap(Bootstrap::expect(&list)?)
            .build()?;
        Ok(ReplicatedEnvironment::open(config)?)
    };
    let nodes = (0..3).map(open).collect::<Result<Vec<_>>>()?;
    for node in &nodes {
        node.wait_ready(Duration::from_mins(1))?;
    }
    Ok(nodes)
}

#[expect(clippy::disallowed_methods, reason = "the system is asked for a port")]
fn free_port() -> std::io::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// Puts all keys at an even pace, spread over the minute in which they end.
fn load(master: &ReplicatedEnvironment, ends: &Ends) -> Result<()> {
    let began = Instant::now();
    let keys = ends.lock().len();
    let time = (ends.from - began).saturating_sub(SETTLE + BEFORE);
    for first in (0..keys).step_by(CHUNK) {
        until(began + time.mul_f64(part(first, keys)));
        let now = Instant::now();
        let chunk: Vec<(usize, Duration)> = (first..keys.min(first + CHUNK))
            .map(|key| {
                // In an order that has nothing to do with that of the keys.
                let place = key.wrapping_mul(0x9e37_79b1) % keys;
                let at = MINUTE.mul_f64(part(place, keys));
                (key, (ends.from + at).saturating_duration_since(now))
            })
            .collect();
        for (key, ttl) in &chunk {
            ends.lock()[*key] = Some((now, *ttl));
        }
        let _token = master.write(|txn| {
            let leases = txn.database("leases")?;
            for (key, ttl) in &chunk {
                leases.put_with_ttl(key.to_be_bytes(), "held", *ttl)?;
            }
            Ok::<_, WriteError>(())
        })?;
    }
    println!(
        "{keys} keys put in {:.0} s; the first one ends in {:.0} s",
        began.elapsed().as_secs_f64(),
        ends.from
            .saturating_duration_since(Instant::now())
            .as_secs_f64()
    );
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "a million is exact")]
fn part(place: usize, keys: usize) -> f64 {
    place as f64 / keys as f64
}

impl Ends {
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Option<(Instant, Duration)>>> {
        self.puts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sees all keys end; returns how late, in microseconds.
fn follow(master: &ReplicatedEnvironment, ends: &Ends) -> Result<Histogram<u64>> {
    let feed = master.subscribe(StartAt::Now)?;
    let keys = ends.lock().len();
    let mut late = Histogram::new_with_max(US_MAX, 3)?;
    for event in feed {
        let FeedEvent::Transaction(transaction) = event? else {
            continue;
        };
        let now = Instant::now();
        for change in &transaction.changes {
            let Change::Expired { key, .. } = change else {
                continue;
            };
            let number = usize::from_be_bytes(key[..].try_into()?);
            let (put, ttl) = ends.lock()[number].take().ok_or("a key ended twice")?;
            let lived = now - put;
            let late_by = lived.checked_sub(ttl).ok_or("a key ended early")?;
            late.saturating_record(u64::try_from(late_by.as_micros())?);
            ends.ended.fetch_add(1, Ordering::Relaxed);
        }
        if late.len() == keys as u64 {
            return Ok(late);
        }
        if now > ends.from + PATIENCE {
            return Err("keys do not end".into());
        }
    }
    Err("the feed has ended".into())
}

/// Writes at a fixed pace, and notes how long each write takes from when it was due.
fn write(master: &ReplicatedEnvironment, ends: &Ends, latencies: &Latencies) {
    let application = master.database("application");
    let pace = Duration::from_secs(1) * WRITERS / WRITES_PER_S;
    let (began, value) = (Instant::now(), [7; VALUE_BYTES]);
    for n in 0_u32.. {
        if ends.done.load(Ordering::Relaxed) {
            break;
        }
        let due = began + pace * n;
        until(due);
        // Where nodes starve, some are refused; those are told of, and take no part in the figures.
        match application.put((n % 10_000).to_be_bytes(), value) {
            Ok(_token) => latencies.record(due.elapsed()),
            Err(error) => eprintln!("a write failed: {error}"),
        }
    }
}

/// Tells how long writes took before the minute, and in it.
fn measure(ends: &Ends, latencies: &Latencies) {
    until(ends.from - BEFORE);
    latencies.tell("while the keys are put");
    until(ends.from);
    latencies.tell("before they end");
    until(ends.from + MINUTE);
    latencies.tell("in the minute in which they end");
    println!(
        "{} keys have ended by the end of the minute",
        ends.ended.load(Ordering::Relaxed)
    );
}

fn until(at: Instant) {
    while Instant::now() < at {
        std::thread::park_timeout(at - Instant::now());
    }
}
