//! Random sequences of engine lives. In each life batches are applied, synced and reclaimed; then
//! the engine is closed, dropped or killed, or its disk loses power, and the next life opens what
//! is left. After each open, every row of every database is checked against what the seed says, by
//! scans in both directions and by gets of all keys.
//!
//! A seed determines a whole sequence, except the moment of a kill:
//!
//! ```sh
//! STEADFAST_LIVES_SEED=4711 cargo test -p steadfast --test engine_lives         # one sequence
//! STEADFAST_LIVES_SEED=1 STEADFAST_LIVES_COUNT=1000 cargo test --release …      # many
//! ```

#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panicking, in its helpers too"
)]
#![expect(
    clippy::disallowed_methods,
    reason = "engines are killed at any moment, and have their files on a real disk"
)]

#[path = "../engine_disk/mod.rs"]
mod engine_disk;
mod life;
mod plan;
mod process;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use steadfast::engine::{EngineFactory, MemoryStore};
use tempfile::TempDir;

use crate::life::{Event, Known, Living};
use crate::plan::{End, Plan};
use crate::process::Home;

const SEED: &str = "STEADFAST_LIVES_SEED";
const COUNT: &str = "STEADFAST_LIVES_COUNT";
/// Sequences to run if none are requested.
const SEQUENCES: u64 = 200;
const THREADS: u64 = 2;

#[test]
fn memory_keeps_every_row_over_its_lives() {
    let lives = for_each_seed(|plan| {
        let store = MemoryStore::new();
        let mut known = Known::default();
        for at in 0..plan.lives.len() {
            live_in_memory(plan, at, &store, &mut known);
        }
    });
    println!("memory: {lives} lives");
}

#[test]
fn noxu_keeps_every_row_over_its_lives() {
    let lives = for_each_seed(|plan| {
        let dir = TempDir::new().unwrap();
        let mut home = Home::new(dir.path(), plan.has_disk);
        let mut known = Known::default();
        let mut at = 0;
        while at < plan.lives.len() {
            at = process::live(plan, at, &mut home, &mut known);
        }
    });
    println!("noxu: {lives} lives");
}

/// Not a test in itself: `process::live` starts it in another process.
#[test]
fn child_lives() {
    process::live_here();
}

/// Runs a sequence for each requested seed. Returns the number of lives.
fn for_each_seed(sequence: impl Fn(&Plan) + Sync) -> u64 {
    let asked = |name: &str| {
        let value = std::env::var(name).ok();
        value.map(|value| value.parse::<u64>().unwrap())
    };
    let count = asked(COUNT).unwrap_or(if asked(SEED).is_some() { 1 } else { SEQUENCES });
    let next = AtomicU64::new(asked(SEED).unwrap_or(1));
    let end = next.load(Ordering::Relaxed) + count;
    let lives = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..THREADS.min(count) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end {
                        break;
                    }
                    let plan = Plan::new(seed);
                    let ran = catch_unwind(AssertUnwindSafe(|| sequence(&plan)));
                    if ran.is_err() {
                        next.store(end, Ordering::Relaxed);
                    }
                    assert!(ran.is_ok(), "replay with {SEED}={seed}");
                    lives.fetch_add(plan.lives.len() as u64, Ordering::Relaxed);
                    if (seed + 1).is_multiple_of(SEQUENCES) {
                        println!("up to seed {seed}: {} lives", lives.load(Ordering::Relaxed));
                    }
                }
            });
        }
    });
    lives.into_inner()
}

fn live_in_memory(plan: &Plan, at: usize, store: &MemoryStore, known: &mut Known) {
    let life = &plan.lives[at];
    let engine = store.open(Path::new("")).unwrap();
    let mut tell = |_| {};
    let mut living = Living::begin(&*engine, plan, known, &mut tell);
    let steps = match life.end {
        End::Kill { reports, .. } | End::PowerCut { reports, .. } => reports,
        End::Close | End::Drop | End::KillAtClose { .. } => usize::MAX,
    };
    living.live(life, steps);
    let number = living.number();
    match life.end {
        End::Close => {
            engine.close().unwrap();
            known.learn(Event::Synced(number));
        }
        End::Drop => {
            drop(engine);
            known.learn(Event::Synced(number));
        }
        // Some of the unsynced part survives.
        End::Kill { delay_us, .. }
        | End::PowerCut { delay_us, .. }
        | End::KillAtClose { delay_us } => {
            let steps = store.unsynced_steps() as u64;
            store.crash(usize::try_from(delay_us % (steps + 1)).unwrap());
        }
    }
}
