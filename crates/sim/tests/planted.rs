//! Every planted bug is found, and without one nothing is reported.
//!
//! The checkers know nothing of the bugs: what exposes one would expose a mistake of ours.

use std::path::Path;
use std::sync::Mutex;

use steadfast::planted::Bug;
use steadfast_sim::plan::Cuts;
use steadfast_sim::worker::Worker;

/// Upper bound on the seed budget of any bug.
const SEEDS_MAX: u64 = 1000;
/// Upper bound on the median number of seeds that the bugs need.
const MEDIAN_MAX: u64 = 100;
/// Seeds that have to pass in this build with no bug enabled.
const SOUND_SEEDS: u64 = 10;

/// How a bug was found.
struct Find {
    bug: Bug,
    /// The first failing seed, and its violation; `None` if the budget is used up.
    found: Option<(u64, String)>,
}

/// Starts a simulator worker with this bug.
fn worker(bug: Option<Bug>) -> Worker {
    let program = Path::new(env!("CARGO_BIN_EXE_steadfast-sim"));
    let worker = Worker::start(program, bug.map(Bug::name));
    worker.expect("the program starts")
}

/// The first violation of a seed.
fn violation(worker: &mut Worker, seed: u64) -> Option<String> {
    let report = worker.run(seed, &Cuts::default());
    match report.expect("the worker goes on") {
        Ok(report) => report.violations.into_iter().next(),
        Err(problem) => Some(problem),
    }
}

fn find(bug: Bug) -> Find {
    let mut worker = worker(Some(bug));
    let fails = |seed| Some((seed, violation(&mut worker, seed)?));
    let found = (1..=bug.seeds_max()).find_map(fails);
    Find { bug, found }
}

/// Runs `work` for each of `items`, on as many threads as there are cores.
fn on_all_cores<T: Copy + Send, R: Send>(
    items: impl Iterator<Item = T> + Send,
    work: impl Fn(T) -> R + Sync,
) -> Vec<R> {
    let (items, results) = (Mutex::new(items), Mutex::new(Vec::new()));
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                loop {
                    let next = items.lock().expect("no worker panics").next();
                    let Some(item) = next else { return };
                    let result = work(item);
                    results.lock().expect("no worker panics").push(result);
                }
            });
        }
    });
    results.into_inner().expect("no worker panics")
}

#[test]
fn every_planted_bug_is_found_within_its_seeds() {
    let mut finds = on_all_cores(Bug::ALL.iter().copied(), find);
    finds.sort_by_key(|find| find.found.as_ref().map_or(u64::MAX, |(seed, _)| *seed));
    println!("{:<24} {:>5}  violation", "bug", "seed");
    for Find { bug, found } in &finds {
        let (seed, violation) = found.as_ref().map_or_else(
            || ("-".to_owned(), "not found"),
            |(seed, violation)| (seed.to_string(), violation),
        );
        let line: String = violation.chars().take(110).collect();
        println!("{:<24} {seed:>5}  {line}", bug.name());
    }
    for Find { bug, found } in &finds {
        assert!(bug.seeds_max() <= SEEDS_MAX, "{bug:?}: too large a budget");
        assert!(found.is_some(), "{bug:?} is not found within its seeds");
    }
    let median = finds[finds.len() / 2].found.as_ref().map(|(seed, _)| *seed);
    assert!(
        median.is_some_and(|seeds| seeds <= MEDIAN_MAX),
        "{median:?}"
    );
}

#[test]
fn without_a_bug_the_same_build_is_sound() {
    let run = |seed| Some((seed, violation(&mut worker(None), seed)?));
    let failed = on_all_cores(1..=SOUND_SEEDS, run);
    let failed: Vec<_> = failed.into_iter().flatten().collect();
    assert!(failed.is_empty(), "{failed:?}");
}
