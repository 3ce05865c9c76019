//! `steadfast demo`: three processes under load, whose master is killed again and again; at the
//! end, every node is searched for every acknowledged write.
//!
//! ```text
//!  demo (this process)                       demo-node, three times
//!  -------------------                       ----------------------
//!  starts, SIGKILLs and restarts    stdin    opens the environment as an application does
//!  keeps the ledger of what was  ──────────► works while it is master: appends and pays
//!  acknowledged, and checks it   ◄────────── one line for each acknowledgement
//!  against what each node holds     stdout   tells everything it holds when asked
//! ```
//!
//! The nodes are never asked whether they are right: their contents are compared with the ledger,
//! which is kept outside them.

mod follower;
mod group;
mod ledger;
pub(crate) mod node;
mod progress;
mod protocol;
mod workload;

use std::process::ExitCode;
use std::time::Duration;

use serde::Serialize;
use steadfast::{AdminCommand, plural};
use tempfile::TempDir;
use tokio::time::Instant;

use self::follower::Follower;
use self::group::{Group, STEP_TIMEOUT, name};
use self::protocol::Command;
use crate::failure::{FAILED, Failure};
use crate::output;
use crate::stop::Stop;

pub(crate) use self::workload::scramble;

/// How long a killed node stays down after the failover.
const DOWN_TIME: Duration = Duration::from_millis(300);
/// Exit code after Ctrl-C, as in shells.
const INTERRUPTED: u8 = 130;

/// Kill masters under load, and check that no acknowledged write is lost
#[derive(clap::Args)]
#[command(after_help = "\
Three processes embed the library on this machine and write as fast as they can, while the demo kills
the current master with SIGKILL again and again, and once all three at the same time. At the end, every
acknowledged record must be on every node exactly once, the nodes must hold the same data, and a
subscriber that follows the change feed from outside must have received every transaction once, in order.

Examples:
  steadfast demo
  steadfast demo --seconds 60 --kills 12 --clients 32
  steadfast demo --transfers 100          how long writes wait while mastership is transferred
  steadfast demo --json | jq .failover_ms")]
pub(crate) struct Arguments {
    /// Length of the load, in seconds
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u16).range(1..))]
    seconds: u16,
    /// Number of times to kill the master
    #[arg(long, default_value_t = 5)]
    kills: u16,
    /// Number of times to transfer mastership, before the kills
    #[arg(long, default_value_t = 0)]
    transfers: u16,
    /// Number of threads that write
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1024))]
    clients: u32,
    /// Print the result as one JSON line on stdout
    #[arg(long)]
    json: bool,
    /// Keep the data directories and logs of the nodes
    #[arg(long)]
    keep: bool,
}

/// The result of the demo.
#[derive(Debug, Default, Serialize)]
struct Summary {
    acked: usize,
    payments: u64,
    uncertain: usize,
    lost: usize,
    /// Transactions that the subscriber received.
    fed: usize,
    /// From the last acknowledgement before each transfer of mastership to the first after it.
    transfer_ms: Vec<f64>,
    kills: usize,
    failover_ms: Vec<u64>,
    all_killed_ms: Option<u64>,
    violations: Vec<String>,
}

/// Runs the demo.
///
/// # Errors
/// When it could not be carried out.
pub(crate) async fn run(arguments: Arguments) -> Result<ExitCode, Failure> {
    output::detach_log()?;
    let mut stop = Stop::new(false)?;
    let dir = tempfile::Builder::new().prefix("steadfast-demo-").tempdir();
    let dir = dir.map_err(|error| Failure::no_temporary_dir(&error))?;
    let mut group = Group::new(dir.path().to_owned(), arguments.clients)?;
    let mut summary = Summary::default();
    let played = tokio::select! {
        played = play(&mut group, &arguments, &mut summary) => Some(played),
        () = stop.wait() => None,
    };
    group.end(matches!(played, Some(Ok(())))).await;
    let Some(played) = played else {
        group.progress.line("interrupted");
        return Ok(ExitCode::from(INTERRUPTED));
    };
    summary.acked = group.ledger.appended();
    summary.payments = group.ledger.payments();
    summary.uncertain = group.ledger.uncertain();
    summary.violations = group.ledger.violations().to_vec();
    let is_right = played.is_ok() && summary.lost == 0 && summary.violations.is_empty();
    if arguments.keep || !is_right {
        keep(dir);
    }
    if arguments.json {
        println!(
            "{}",
            serde_json::to_string(&summary).expect("a summary is plain data")
        );
    } else {
        print(&summary);
    }
    played?;
    Ok(if is_right {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(FAILED)
    })
}

/// The whole run, up to checking what every node holds.
async fn play(
    group: &mut Group,
    arguments: &Arguments,
    summary: &mut Summary,
) -> Result<(), Failure> {
    let (transfers, kills) = (u32::from(arguments.transfers), u32::from(arguments.kills));
    let seconds = arguments.seconds.into();
    for node in Group::all() {
        group.start(node)?;
    }
    group.wait_whole().await?;
    let follower = Follower::start(group.network(), group.addresses()).await?;
    group
        .progress
        .line("three nodes have formed a group; the load begins");
    group.command(Command::Load).await;
    group.wait_acknowledged(0).await?;
    let start = Instant::now();
    let gap = Duration::from_secs(seconds) / (transfers + kills + 2);
    let mut transferred_after = Vec::new();
    for step in 1..=transfers + kills {
        group.follow_to(start + gap * step).await;
        if step <= transfers {
            transferred_after.push(transfer(group).await?);
            continue;
        }
        let took = kill_master(group, step - transfers).await?;
        summary.failover_ms.push(took);
        summary.kills += 1;
    }
    group.follow_to(start + gap * (transfers + kills + 1)).await;
    summary.all_killed_ms = Some(kill_all(group).await?);
    group.follow_to(start + Duration::from_secs(seconds)).await;
    group.wait_still().await?;
    // Now that every acknowledgement has been heard.
    let gaps = transferred_after.into_iter();
    let gaps = gaps.filter_map(|term| group.ledger.gap_after(term));
    summary.transfer_ms = gaps.map(|gap| gap.as_secs_f64() * 1e3).collect();
    group
        .progress
        .line("the load has ended; looking for every acknowledged record on every node");
    summary.lost = group.verify().await?;
    summary.fed = follower.check(&mut group.ledger, STEP_TIMEOUT).await;
    Ok(())
}

/// Transfers mastership to the most caught-up replica; returns the term that this ends, once the
/// successor has acknowledged something.
async fn transfer(group: &mut Group) -> Result<u64, Failure> {
    let term = group.ledger.term();
    let addresses = group.addresses().to_vec();
    let transfer = AdminCommand::Transfer {
        to: Vec::new(),
        within: STEP_TIMEOUT,
    };
    let network = group.network();
    let sent = transfer.send(&*network, &addresses, STEP_TIMEOUT);
    let done = group.follow_while(sent).await;
    done.map_err(|error| {
        let what = format!("mastership was not transferred: {error}");
        Failure::new(what, "see the violations", "read the nodes' logs")
    })?;
    group.wait_acknowledged(term).await?;
    Ok(term)
}

/// Kills the master and restarts it; returns the milliseconds from the kill to its successor's
/// first acknowledgement.
async fn kill_master(group: &mut Group, kill: u32) -> Result<u64, Failure> {
    group
        .wait_for("a master", |group| group.master().is_some())
        .await?;
    let (old, term) = (group.master().expect("waited for"), group.ledger.term());
    let killed = Instant::now();
    group.kill(old);
    let (at, new) = group.wait_acknowledged(term).await?;
    let took = millis(at.saturating_duration_since(killed));
    group.progress.line(&format!(
        "kill {kill}: SIGKILL to master {}; {} acknowledges in term {} after {took} ms",
        name(old),
        name(new),
        group.ledger.term()
    ));
    group.follow_for(DOWN_TIME).await;
    group.wait_ended(old).await?;
    restart(group, [old]).await?;
    Ok(took)
}

/// Kills all nodes at once and restarts them; returns the milliseconds from the kill to the first
/// acknowledgement.
async fn kill_all(group: &mut Group) -> Result<u64, Failure> {
    let term = group.ledger.term();
    let killed = Instant::now();
    Group::all().for_each(|node| group.kill(node));
    for node in Group::all() {
        group.wait_ended(node).await?;
    }
    // Writes under way may have been acknowledged in the newest term while the kill went out.
    let term = term.max(group.ledger.term());
    restart_load(group, Group::all()).await?;
    let (at, new) = group.wait_acknowledged(term).await?;
    let took = millis(at.saturating_duration_since(killed));
    group.progress.line(&format!(
        "SIGKILL to all three at once; restarted, {} acknowledges in term {} after {took} ms",
        name(new),
        group.ledger.term()
    ));
    group.wait_whole().await?;
    Ok(took)
}

async fn restart(group: &mut Group, nodes: impl IntoIterator<Item = usize>) -> Result<(), Failure> {
    restart_load(group, nodes).await?;
    group.wait_whole().await
}

async fn restart_load(
    group: &mut Group,
    nodes: impl IntoIterator<Item = usize>,
) -> Result<(), Failure> {
    for node in nodes {
        group.start(node)?;
    }
    group.command(Command::Load).await;
    Ok(())
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn keep(dir: TempDir) {
    eprintln!("data and logs of the nodes: {}", dir.keep().display());
}

fn print(summary: &Summary) {
    println!(
        "acknowledged  {} {}, {} {}",
        summary.acked,
        plural(summary.acked, "record", "records"),
        summary.payments,
        plural(summary.payments, "payment", "payments")
    );
    println!(
        "unknown       {} {}, reported as such",
        summary.uncertain,
        plural(summary.uncertain, "record", "records")
    );
    println!("lost          {}", summary.lost);
    println!(
        "fed           {} {} to a subscriber",
        summary.fed,
        plural(summary.fed, "transaction", "transactions")
    );
    let mut sorted = summary.transfer_ms.clone();
    sorted.sort_unstable_by(f64::total_cmp);
    if let (Some(p50), Some(p99), Some(max)) = (of(&sorted, 50), of(&sorted, 99), sorted.last()) {
        println!(
            "transferred   {} {}; no writes for p50 {p50:.1} ms, p99 {p99:.1} ms, max {max:.1} ms",
            sorted.len(),
            plural(sorted.len(), "time", "times")
        );
    }
    let mut sorted = summary.failover_ms.clone();
    sorted.sort_unstable();
    if let (Some(median), Some(max)) = (of(&sorted, 50), sorted.last()) {
        println!(
            "failover      {} {}: p50 {median} ms, max {max} ms",
            summary.kills,
            plural(summary.kills, "kill", "kills")
        );
    }
    if let Some(took) = summary.all_killed_ms {
        println!("all killed    writes again after {took} ms");
    }
    for violation in &summary.violations {
        println!("VIOLATION     {violation}");
    }
    if summary.violations.is_empty() {
        println!("Every acknowledged record is on every node exactly once, and the nodes agree.");
        println!("The subscriber received every transaction once, in order.");
    }
}

/// The given percentile of these, in order.
fn of<T: Copy>(sorted: &[T], of_hundred: usize) -> Option<T> {
    let rank = (sorted.len() * of_hundred).div_ceil(100);
    sorted.get(rank.saturating_sub(1)).copied()
}
