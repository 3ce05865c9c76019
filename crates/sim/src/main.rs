//! The simulator's command line: a budget of seeds, or one seed and its story.

mod budget;
mod found;
mod shrink;

use std::io::BufRead;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use fork::Fork;
use steadfast_sim::plan::{Cuts, Fault, Plan};
use steadfast_sim::run::{self, Report};
use steadfast_sim::story::Story;
use steadfast_sim::worker;

/// Run whole Steadfast nodes in virtual time, on disks and a network that fail
#[derive(Parser)]
#[command(
    name = "steadfast-sim",
    version,
    after_help = "\
Each seed decides its own group, limits, load and subset of faults. Faults happen for 20 virtual
seconds; then they end, and the group must commit again and agree. What clients saw is checked against
the committed log. A quarter of the groups then lose their quorum for good, and continue from a survivor;
others lose a row on all nodes but one, or have one node behind a slow link from then on.
Each seed runs in a process of its own, and the same seed always gives the same run.

Examples:
  steadfast-sim --seeds 1000                        run a budget of seeds; ends with one JSON line
  steadfast-sim --seed 4711                         replay one seed and print its story
  steadfast-sim --seed 4711 --without kill,pause    replay it with fewer faults
  steadfast-sim --seed 4711 --shrink                shrink it to the least that still fails
  steadfast-sim --seeds 100 --lifetimes             keys with a time to live: none ends early, none late
  steadfast-sim --seeds 100 --anywhere              clients write at every node
  steadfast-sim --long --ledger seeds.jsonl         run until stopped, one line per 1,000 seeds

Exit code: 0 when no seed failed, 1 when one did, 2 for bad arguments."
)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
struct Arguments {
    /// Number of seeds to run
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..))]
    seeds: u64,
    /// First seed to run
    #[arg(long, default_value_t = 1)]
    first_seed: u64,
    /// Run the seeds that found a bug in the past
    #[arg(long, conflicts_with_all = ["seeds", "seed"])]
    found: bool,
    /// Run until stopped, in rounds of 1,000 seeds
    #[arg(long, conflicts_with_all = ["seeds", "seed", "found"])]
    long: bool,
    /// File to which to append the line of each round
    #[arg(long, value_name = "FILE")]
    ledger: Option<std::path::PathBuf>,
    /// Seeds to run in parallel; defaults to the number of cores
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=256))]
    jobs: Option<u16>,
    /// Run one in this many seeds twice and compare both traces
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    twice_every: u64,
    /// Run this one seed and print its story
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// With --seed: drop faults, nodes and time as long as the seed still fails
    #[arg(long, requires = "seed")]
    shrink: bool,
    /// Maximum number of nodes per seed
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=7))]
    nodes: Option<u16>,
    /// Length of the safety phase, in virtual milliseconds, at most 20000
    #[arg(long, value_name = "MS")]
    safety_ms: Option<u64>,
    /// Give each seed every fault, instead of its own subset
    #[arg(long)]
    every_fault: bool,
    /// Names of faults to leave out
    #[arg(long, value_delimiter = ',', value_name = "FAULT,...")]
    without: Vec<Fault>,
    /// Run keys with a time to live through the faults of each seed, instead of its own load
    #[arg(long, conflicts_with = "found")]
    lifetimes: bool,
    /// Let the clients of each seed write at every node, and not at the master alone
    #[arg(long, conflicts_with_all = ["found", "lifetimes"])]
    anywhere: bool,
    /// With --seed: print every trace event instead of the story
    #[arg(long, requires = "seed")]
    trace: bool,
    /// Run the seeds given on standard input; budgets start this
    #[arg(long, hide = true)]
    worker: bool,
    /// Break the library with this bug, and end a budget at the first seed that fails
    #[cfg(feature = "planted")]
    #[arg(long, value_name = "BUG")]
    planted: Option<steadfast::planted::Bug>,
}

impl Arguments {
    fn cuts(&self) -> Cuts {
        // Those have checks of their own.
        let others = Fault::AFTER.iter().chain(Fault::OF_ENGINES).copied();
        let others = others.filter(|_| self.lifetimes);
        let without = self.without.iter().copied().chain(others);
        Cuts {
            nodes: self.nodes.map(usize::from),
            safety: self.safety_ms.map(Duration::from_millis),
            every_fault: self.every_fault,
            without: without.collect(),
            lifetimes: self.lifetimes,
            anywhere: self.anywhere,
        }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    #[cfg(feature = "planted")]
    if let Some(bug) = arguments.planted {
        steadfast::planted::plant(bug);
    }
    let done = match arguments.seed {
        None if arguments.worker => serve(),
        Some(seed) if arguments.shrink => shrink::shrink(seed, &arguments.cuts()),
        Some(seed) => one(seed, &arguments),
        None if arguments.found => budget::found(&arguments),
        None => budget::budget(&arguments),
    };
    done.unwrap_or_else(|error| {
        eprintln!("steadfast-sim: {error}");
        ExitCode::from(2)
    })
}

/// Runs the seeds given on standard input, one command line each, until there are no more.
fn serve() -> std::io::Result<ExitCode> {
    worker::warm_up()?;
    let mut requests = std::io::stdin().lock();
    let mut request = String::new();
    loop {
        request.clear();
        if requests.read_line(&mut request)? == 0 {
            return Ok(ExitCode::SUCCESS);
        }
        let arguments = std::iter::once("steadfast-sim").chain(request.split_whitespace());
        let arguments = Arguments::try_parse_from(arguments).map_err(std::io::Error::other)?;
        let seed = arguments.seed.unwrap_or_default();
        match fork::fork()? {
            Fork::Child => {
                worker::limit_cpu_time()?;
                return report(seed, &arguments);
            }
            Fork::Parent(process) => {
                let status = fork::waitpid(process)?;
                println!("{}{status}", worker::ENDED);
            }
        }
    }
}

/// Runs one seed in this process and prints its story.
fn one(seed: u64, arguments: &Arguments) -> std::io::Result<ExitCode> {
    worker::warm_up()?;
    if std::env::var_os("RUST_LOG").is_some() {
        tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
            .with_writer(std::io::stderr)
            .without_time()
            .init();
    }
    let (report, story) = run_here(seed, arguments, !arguments.trace)?;
    print!("{}{}", story.told(), story.dump());
    print_end(&report);
    Ok(if report.violations.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Runs one seed in this process and prints only its report, as JSON.
fn report(seed: u64, arguments: &Arguments) -> std::io::Result<ExitCode> {
    let (report, _) = run_here(seed, arguments, false)?;
    println!("{}", serde_json::to_string(&report)?);
    Ok(ExitCode::SUCCESS)
}

fn run_here(seed: u64, arguments: &Arguments, is_told: bool) -> std::io::Result<(Report, Story)> {
    let plan = Plan::new(seed, &arguments.cuts());
    let story = || Story::new(is_told, arguments.trace);
    let (mut report, story) = if arguments.lifetimes {
        run::lifetimes(plan, story)?
    } else {
        run::run(plan, story)?
    };
    report.cpu_us = cpu_us();
    Ok((report, story))
}

fn print_end(report: &Report) {
    for violation in &report.violations {
        println!("VIOLATION: {violation}");
    }
    println!("{}", serde_json::json!(report));
}

/// CPU time of this thread's process so far, in microseconds; 0 where the system reports none.
#[expect(
    clippy::disallowed_methods,
    reason = "the true time, for the report alone"
)]
fn cpu_us() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/schedstat").unwrap_or_default();
    let nanoseconds = stat.split(' ').next().and_then(|ns| ns.parse::<u64>().ok());
    nanoseconds.unwrap_or(0) / 1000
}
