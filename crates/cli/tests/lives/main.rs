//! Lives of groups: three nodes, as real processes, are stopped and killed in many ways and
//! restarted. After each start, every row of every node is checked against what was acknowledged.
//!
//! ```text
//!  this test                                    `node`: one process for each node
//!  ---------                                    ---------------------------------
//!  ends and starts nodes (`group`), by   stdin  embeds the library, as an application does
//!  a seed (`plan`); keeps what was     ───────►
//!  acknowledged (`model`), and checks  ◄───────
//!  every row of every node against it   stdout
//! ```
//!
//! By hand, any number of sequences, starting at a given seed:
//!
//! ```sh
//! STEADFAST_LIVES_SEQUENCES=100 STEADFAST_LIVES_SEED=1 \
//!     cargo test --release -p steadfast-cli --test lives random -- --nocapture
//! ```
//!
//! `STEADFAST_LIVES_TIMES` is how often the hand-written sequences run, and
//! `STEADFAST_LIVES_KEEP=1` keeps the directories of failed groups.

#![expect(
    clippy::disallowed_methods,
    reason = "tests use real processes, files, threads and deadlines"
)]

mod group;
mod model;
mod node;
mod plan;
#[path = "../../src/ports.rs"]
mod ports;
mod protocol;
mod tampering;

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use crate::group::{End, Group, NODES};
use crate::protocol::{Stream, Write};

/// Time limit for anything that must happen. Only a failure waits this long.
const PATIENCE: Duration = Duration::from_mins(1);
const SEQUENCES: &str = "STEADFAST_LIVES_SEQUENCES";
const SEED: &str = "STEADFAST_LIVES_SEED";
const TIMES: &str = "STEADFAST_LIVES_TIMES";
/// Without this rest, the second half of the rows is only in the log when the nodes end.
const REST_MS: &str = "STEADFAST_LIVES_REST_MS";

fn number_of(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().expect("a number"))
}

fn words(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
    text.unwrap_or_else(|| "a panic without words".to_owned())
}

/// `count` rows from `first` on, one write each.
fn rows(first: u64, count: u64) -> Vec<Stream> {
    const STREAMS: u64 = 16;
    let row = |number: u64| {
        let (key, value) = (format!("key-{number:06}"), format!("value-{number}"));
        Write {
            number,
            changes: vec![("d".to_owned(), key, Some(value))],
        }
    };
    let stream = |at: u64| Stream {
        number: usize::try_from(at).expect("small"),
        writes: (first..first + count)
            .filter(|number| number % STREAMS == at)
            .map(row)
            .collect(),
    };
    (0..STREAMS).map(stream).collect()
}

/// Rows are written in two lives, the second ends by a kill, and a further life ends cleanly.
fn two_lives_a_kill_and_an_orderly_end(killed: &[usize]) {
    let rest = Duration::from_millis(number_of(REST_MS, 300));
    for _ in 0..number_of(TIMES, 1) {
        let begun = Instant::now();
        let interval = u64::try_from(rest.as_millis()).expect("small") * 5 / 6;
        let mut group = Group::new(&[("flush_interval_ms", interval)]);
        group.start(&[0, 1, 2]);
        group.write(rows(0, 3_000));
        group.end_all(End::Stop);
        group.start(&[0, 1, 2]);
        group.verify(false);
        group.write(rows(3_000, 3_000));
        group.wait_for(rest, |_| false);
        let killed: Vec<_> = killed.iter().map(|at| (*at, End::Kill)).collect();
        group.end(&killed);
        group.start(&killed.iter().map(|(at, _)| *at).collect::<Vec<_>>());
        group.verify(false);
        group.check_engines_were_right();
        group.end_all(End::Stop);
        group.start(&[0, 1, 2]);
        group.verify(false);
        println!(
            "6000 of 6000 rows on {NODES} nodes in {:?}",
            begun.elapsed()
        );
    }
}

#[test]
fn rows_of_two_lives_outlast_a_kill_of_all_and_an_orderly_end() {
    two_lives_a_kill_and_an_orderly_end(&[0, 1, 2]);
}

#[test]
fn rows_of_two_lives_outlast_a_kill_of_one_and_an_orderly_end() {
    two_lives_a_kill_and_an_orderly_end(&[1]);
}

#[test]
fn no_random_sequence_of_lives_loses_or_invents_a_row() {
    let first = number_of(SEED, 4);
    let (mut lives, mut failed) = (0, Vec::new());
    let begun = Instant::now();
    for seed in first..first + number_of(SEQUENCES, 1) {
        match catch_unwind(AssertUnwindSafe(|| plan::run(seed))) {
            Ok(count) => lives += count,
            Err(panic) => failed.push(format!(
                "seed {seed}: {}\nreplay: {SEED}={seed} {SEQUENCES}=1 cargo test -p steadfast-cli \
                 --test lives random -- --nocapture",
                words(&*panic)
            )),
        }
    }
    println!("{lives} lives of groups in {:?}", begun.elapsed());
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}
