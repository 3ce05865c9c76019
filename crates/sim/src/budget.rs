//! Runs many seeds, each in its own process, and prints one line about all of them.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use steadfast_net::lock;

use serde_json::{Value, json};
use steadfast_sim::plan::Cuts;
use steadfast_sim::run::Report;
use steadfast_sim::worker::Worker;

use crate::Arguments;
use crate::found::FOUND;

/// Seeds per round with `--long`.
const ROUND: u64 = 1000;

/// Totals over a budget.
#[derive(Default)]
struct Total {
    seeds: u64,
    failed: BTreeMap<u64, Vec<String>>,
    not_counted: u64,
    simulated_ms: u64,
    cpu_us: u64,
    transactions: usize,
    faults: BTreeMap<String, u64>,
    twice: u64,
}

impl Total {
    fn add(&mut self, seed: u64, outcome: Outcome) {
        self.seeds += 1;
        let Outcome { report, is_twice } = outcome;
        self.twice += u64::from(is_twice);
        let report = match report {
            Ok(report) => report,
            Err(problem) => {
                self.failed.insert(seed, vec![problem]);
                return;
            }
        };
        self.not_counted += u64::from(!report.counts());
        self.simulated_ms += report.simulated_ms;
        self.cpu_us += report.cpu_us;
        self.transactions += report.transactions;
        for (fault, count) in report.faults {
            *self.faults.entry(fault).or_default() += count;
        }
        if !report.violations.is_empty() {
            self.failed.insert(seed, report.violations);
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "hours and seconds for people")]
    fn line(&self) -> Value {
        let rounded = |value: f64, digits: f64| (value * digits).round() / digits;
        json!({
            "seeds": self.seeds,
            "failed": self.failed.keys().collect::<Vec<_>>(),
            "not_counted": self.not_counted,
            "simulated_hours": rounded(self.simulated_ms as f64 / 3_600_000.0, 1000.0),
            "cpu_s": rounded(self.cpu_us as f64 / 1e6, 10.0),
            "simulated_s_per_cpu_s": rounded(self.simulated_ms as f64 * 1000.0 / (self.cpu_us as f64).max(1.0), 10.0),
            "transactions": self.transactions,
            "faults": self.faults,
            "determinism": format!("checked {} seeds twice", self.twice),
        })
    }
}

/// Result of one seed.
struct Outcome {
    report: Result<Report, String>,
    is_twice: bool,
}

/// Runs the budget requested on the command line.
pub(crate) fn budget(arguments: &Arguments) -> io::Result<ExitCode> {
    let mut first = arguments.first_seed;
    let mut has_failed = false;
    loop {
        let seeds = if arguments.long {
            ROUND
        } else {
            arguments.seeds
        };
        let total = round(arguments, first, seeds)?;
        let mut line = total.line();
        line["first_seed"] = json!(first);
        for (seed, violations) in &total.failed {
            eprintln!("seed {seed} failed; replay it with: steadfast-sim --seed {seed}");
            for violation in violations.iter().take(5) {
                eprintln!("    {violation}");
            }
        }
        println!("{line}");
        if let Some(path) = &arguments.ledger {
            append(path, &line)?;
        }
        has_failed |= !total.failed.is_empty();
        if !arguments.long {
            return Ok(ExitCode::from(u8::from(has_failed)));
        }
        first += seeds;
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the ledger is a file of the machine's own disk"
)]
fn append(path: &Path, line: &Value) -> io::Result<()> {
    let mut ledger = OpenOptions::new().create(true).append(true).open(path)?;
    writeln!(ledger, "{line}")
}

fn round(arguments: &Arguments, first: u64, seeds: u64) -> io::Result<Total> {
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    let jobs = arguments.jobs.map_or(cores, usize::from);
    let cuts = arguments.cuts();
    let next = AtomicU64::new(0);
    let total = Mutex::new(Total::default());
    let is_watched = io::stderr().is_terminal();
    std::thread::scope(|scope| {
        let work = || -> io::Result<()> {
            let mut worker = start_worker()?;
            loop {
                let nth = next.fetch_add(1, Ordering::Relaxed);
                let is_found = || {
                    let total = lock(&total);
                    planted().is_some() && !total.failed.is_empty()
                };
                if nth >= seeds || is_found() {
                    return Ok(());
                }
                let seed = first + nth;
                let is_twice = nth.is_multiple_of(arguments.twice_every);
                let outcome = run_seed(&mut worker, seed, &cuts, is_twice)?;
                let mut total = lock(&total);
                total.add(seed, outcome);
                if is_watched {
                    eprint!(
                        "\r{} of {seeds} seeds, {} failed ",
                        total.seeds,
                        total.failed.len()
                    );
                }
            }
        };
        let workers: Vec<_> = (0..jobs).map(|_| scope.spawn(work)).collect();
        for worker in workers {
            worker
                .join()
                .map_err(|_| io::Error::other("a worker panicked"))??;
        }
        if is_watched {
            eprintln!();
        }
        Ok::<_, io::Error>(())
    })?;
    Ok(total.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// Runs every seed that once found something, twice, and reports what those that fail again once
/// found.
pub(crate) fn found(arguments: &Arguments) -> io::Result<ExitCode> {
    let mut total = Total::default();
    let mut worker = start_worker()?;
    for (seed, what) in FOUND {
        let outcome = run_seed(&mut worker, *seed, &arguments.cuts(), true)?;
        total.add(*seed, outcome);
        if let Some(violations) = total.failed.get(seed) {
            eprintln!("seed {seed}, which had found that {what}, fails:");
            for violation in violations {
                eprintln!("    {violation}");
            }
        }
    }
    println!("{}", total.line());
    Ok(ExitCode::from(u8::from(!total.failed.is_empty())))
}

fn run_seed(worker: &mut Worker, seed: u64, cuts: &Cuts, is_twice: bool) -> io::Result<Outcome> {
    let report = worker.run(seed, cuts)?;
    let report = match report {
        Ok(report) if is_twice => match worker.run(seed, cuts)? {
            Ok(second) if second.hash == report.hash => Ok(report),
            Ok(_) => Err("two runs of the seed have different traces".into()),
            Err(problem) => Err(problem),
        },
        report => report,
    };
    Ok(Outcome { report, is_twice })
}

/// Starts a worker like this process.
pub(crate) fn start_worker() -> io::Result<Worker> {
    Worker::start(&std::env::current_exe()?, planted())
}

/// Name of the bug planted in this process.
fn planted() -> Option<&'static str> {
    #[cfg(feature = "planted")]
    return steadfast::planted::planted().map(steadfast::planted::Bug::name);
    #[cfg(not(feature = "planted"))]
    None
}
