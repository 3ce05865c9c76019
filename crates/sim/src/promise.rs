//! Checks the first guarantee on the disks: when a transaction is acknowledged, it is durable on a
//! majority of nodes, even if all of them lose power at that moment.
//!
//! A crash exposes a broken guarantee only at the right time. This exposes it at any time.

use crate::check;
use crate::faults::disk_faults;
use crate::logfile::{self, Log};
use crate::world::{Host, World};

/// At first, one in this many transactions is checked. A check reads whole logs, so checks become
/// rarer as the logs grow: two per doubling of the number of transactions.
const EVERY_MIN: usize = 32;

/// Checks transaction `id`, which has just been acknowledged.
pub fn check(world: &World, id: usize, term: u64, vlsn: u64) {
    let every = (id / 2).next_power_of_two().max(EVERY_MIN);
    if !id.is_multiple_of(every) {
        return;
    }
    // A lying disk, or a lost machine, is not the library's fault.
    let is_excused =
        |host: &Host| host.state().lost || disk_faults(&world.plan, host.at()).lying_sync;
    let logs = world
        .hosts
        .iter()
        .map(|host| host.durable_log().unwrap_or_default());
    let logs: Vec<Log> = logs.collect();
    let position = position_of(&logs, term, vlsn);
    let is_there = |host: &&Host| {
        let has = |position| is_durable(&logs[host.at()], position, term);
        is_excused(host) || position.is_some_and(has)
    };
    // A node that the operator has changed may have had no vote.
    let voters = world.hosts.iter().filter(|host| !host.state().outside);
    let (nodes, voters) = (world.hosts.len(), voters.count());
    let majority = voters / 2 + 1;
    let there = world.hosts.iter().filter(is_there).take(majority).count();
    if there < majority {
        world.story.violation(format!(
            "transaction {id} is acknowledged as {term}/{vlsn}, and durable on {there} of {nodes} nodes"
        ));
    }
}

/// Position of the entry that holds this transaction. (Term, VLSN) names one transaction, so
/// nothing before the entry is needed: every node may have purged it.
fn position_of(logs: &[Log], term: u64, vlsn: u64) -> Option<u64> {
    let all = check::union(logs.iter());
    let mut newest_first = all.iter().rev().filter(|(_, entry)| entry.term == term);
    let found = newest_first.find(|(_, entry)| logfile::holds(entry, vlsn));
    found.map(|(position, _)| *position)
}

/// Whether the node has the entry in its log, or the result of it in its engine.
fn is_durable(log: &Log, position: u64, term: u64) -> bool {
    let entry = log.entries.get(&position);
    entry.is_some_and(|entry| entry.term == term)
        || (entry.is_none() && log.purged.is_some_and(|purged| purged >= position))
}
