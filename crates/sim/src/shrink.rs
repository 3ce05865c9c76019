//! Reduces a failing seed's plan to the least that still fails.

use std::io;
use std::process::ExitCode;
use std::time::Duration;

use steadfast_sim::plan::{Cuts, Plan};
use steadfast_sim::worker::Worker;

use crate::budget::start_worker;

/// Drops faults one by one, then time, then nodes, as long as some violation remains.
pub(crate) fn shrink(seed: u64, cuts: &Cuts) -> io::Result<ExitCode> {
    let mut worker = start_worker()?;
    let mut best = cuts.clone();
    let Some(mut violations) = failure(&mut worker, seed, &best)? else {
        println!("seed {seed} does not fail");
        return Ok(ExitCode::SUCCESS);
    };
    let mut attempt = |cuts: Cuts| -> io::Result<bool> {
        let failed = failure(&mut worker, seed, &cuts)?;
        let has_failed = failed.is_some();
        if let Some(failed) = failed {
            (best, violations) = (cuts, failed);
            println!("still fails: {}", command(seed, &best));
        }
        Ok(has_failed)
    };
    let plan = Plan::new(seed, cuts);
    let mut without = cuts.without.clone();
    for fault in plan.faults {
        let mut fewer = without.clone();
        fewer.insert(fault);
        let cuts = Cuts {
            without: fewer.clone(),
            ..cuts.clone()
        };
        if attempt(cuts)? {
            without = fewer;
        }
    }
    let mut current = Cuts {
        without,
        ..cuts.clone()
    };
    let mut length = plan.safety;
    while length > Duration::from_millis(500) {
        length = length * 3 / 4;
        let shorter = Cuts {
            safety: Some(length),
            ..current.clone()
        };
        if !attempt(shorter.clone())? {
            break;
        }
        current = shorter;
    }
    for nodes in (1..plan.nodes).rev() {
        let fewer = Cuts {
            nodes: Some(nodes),
            ..current.clone()
        };
        if attempt(fewer.clone())? {
            current = fewer;
        }
    }
    println!("the least that fails:\n  {}", command(seed, &best));
    for violation in violations.iter().take(5) {
        println!("    {violation}");
    }
    Ok(ExitCode::FAILURE)
}

fn failure(worker: &mut Worker, seed: u64, cuts: &Cuts) -> io::Result<Option<Vec<String>>> {
    Ok(match worker.run(seed, cuts)? {
        Ok(report) if report.violations.is_empty() => None,
        Ok(report) => Some(report.violations),
        Err(problem) => Some(vec![problem]),
    })
}

fn command(seed: u64, cuts: &Cuts) -> String {
    let cuts = cuts.arguments().join(" ");
    format!("steadfast-sim --seed {seed} {cuts}")
}
