//! The first promise, held against the disks themselves: what is acknowledged is durable on a
//! majority of the nodes at that moment, were the power of all of them cut.
//!
//! A crash shows a broken promise only when it comes at the right time. This shows it at any time.

use std::path::Path;

use crate::logfile;
use crate::nemesis::disk_faults;
use crate::world::{DATA_DIR, Host, World};

/// Of so many transactions one is checked at first. A check reads whole logs, so it becomes rarer as
/// they grow: twice while the number of transactions doubles.
const EVERY_MIN: usize = 32;

/// Checks transaction `id`, which has just been acknowledged.
pub fn check(world: &World, id: usize, (term, vlsn): (u64, u64)) {
    let every = (id / 2).next_power_of_two().max(EVERY_MIN);
    if !id.is_multiple_of(every) {
        return;
    }
    // A disk that lies, or whose machine is lost, is not the library's doing.
    let is_excused =
        |host: &Host| host.state().lost || disk_faults(&world.plan, host.at()).lying_sync;
    let is_there = |host: &&Host| is_excused(host) || is_durable(host, (term, vlsn));
    // A node that the operator has dealt with may have had no vote.
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

/// Whether the log that a power cut would leave has this transaction.
fn is_durable(host: &Host, (term, vlsn): (u64, u64)) -> bool {
    let dir = Path::new(DATA_DIR).join("log");
    let files = host.disk().durable_files().into_iter();
    let files: Vec<_> = files
        .filter(|(path, _)| path.parent() == Some(&dir))
        .filter_map(|(path, bytes)| Some((path.file_name()?.to_str()?.to_owned(), bytes)))
        .collect();
    let entries = logfile::entries(&files);
    let transactions = entries.and_then(|entries| logfile::transactions(&entries, u64::MAX));
    transactions.is_ok_and(|transactions| {
        let logged = transactions.get(&vlsn);
        logged.is_some_and(|logged| logged.term == term)
    })
}
