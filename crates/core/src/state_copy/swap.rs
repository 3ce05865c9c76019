//! Puts a finished copy in place of the old state.
//!
//! ```text
//!   identity   copy 3, its log begins after 140@8     ◄─ from here on the copy is the state
//!   log        what it has up to 140@8 goes; votes stay
//!   identity   copy 3
//!   engine-2   is removed
//! ```
//!
//! A crash before the first step is durable leaves the old state; after it, the next open of the
//! directory completes the rest. The log is the same before and after, so a vote once given stays
//! given; a copy that ends in a later term is a vote in that term. Entries above the copy's position stay if they follow it: they may have been
//! acknowledged. If the log has another entry at that position, they were never committed.

use tokio::sync::oneshot;

use crate::config::RepConfig;
use crate::error::OpenError;
use crate::group::identity::{DataDir, Identity};
use crate::ids::{LogPosition, NodeId};
use crate::log::{Entry, Log, LogConfig, LogError, LogId, Vote};
use crate::machine::Machine;
use crate::node;

/// Makes the durable copy beside the state of `identity`, ending with `last`, the node's state.
///
/// # Errors
/// See [`OpenError`]. Whatever remains is done when the directory is opened.
pub(crate) async fn swap(
    config: &RepConfig,
    machine: &Machine,
    dir: &DataDir,
    identity: &Identity,
    last: LogId,
) -> Result<Identity, OpenError> {
    let swapped = Identity {
        copy: identity.copy + 1,
        log_begins_after: Some(last),
        // A damaged log is not continued.
        log: identity.log + u64::from(identity.damaged.is_some()),
        damaged: None,
        ..identity.clone()
    };
    dir.write_identity(&*machine.disk, &swapped).await?;
    finish(&node::log_config(config), machine, dir, swapped).await
}

/// Completes a swap; returns the resulting identity.
///
/// # Errors
/// See [`OpenError`]. Safe to repeat.
pub(crate) async fn finish(
    log_config: &LogConfig,
    machine: &Machine,
    dir: &DataDir,
    identity: Identity,
) -> Result<Identity, OpenError> {
    let Some(before) = identity.copy.checked_sub(1) else {
        return Ok(identity);
    };
    let mut finished = identity;
    if let Some(last) = finished.log_begins_after {
        if !dir.has_log(&*machine.disk, finished.log)? && finished.log > 0 {
            node::create_log(log_config, machine, dir, &finished).await?;
        }
        let log = node::open_idle_log(log_config, machine, dir, &finished).await?;
        let begun = begin_after(&log, last, finished.node_id).await;
        let closed = log.close().await;
        begun.and(closed).map_err(OpenError::Log)?;
        finished.log_begins_after = None;
        dir.write_identity(&*machine.disk, &finished).await?;
    }
    if let Some(damaged) = finished.log.checked_sub(1) {
        dir.remove_log(&*machine.disk, damaged)?;
    }
    let (engines, old) = (
        std::sync::Arc::clone(&machine.engines),
        dir.engine_dir(before),
    );
    if engines.exists(&old)? {
        let removed: oneshot::Receiver<_> =
            machine.run_in_background("steadfast-remove", async move { engines.remove(&old) })?;
        let died = |_| OpenError::Start("the thread that removes a state died".to_owned());
        removed.await.map_err(died)??;
    }
    dir.remove_digest(&*machine.disk, before)?;
    Ok(finished)
}

/// Makes the log continue after `last`, which is committed.
async fn begin_after(log: &Log, last: LogId, own: NodeId) -> Result<(), LogError> {
    let state = log.state();
    if state.vote.is_none_or(|vote| vote.term < last.term) {
        // Who has an entry of a term knows of that term, and follows no master of an earlier one. It
        // voted for nobody in it, and does so no more; its master is heard all the same.
        let vote = Vote {
            term: last.term,
            node: own,
            committed: false,
        };
        log.save_vote(vote).await?;
    }
    if state
        .purged
        .is_some_and(|purged| purged.position >= last.position)
    {
        return Ok(());
    }
    let range = last.position..LogPosition(last.position.0 + 1);
    let found = log.read(range, 1).await?;
    if found.first().map(Entry::id) != Some(last) {
        // First, so that nothing remains that does not follow the purged part.
        log.truncate_after(state.purged).await?;
    }
    log.purge(last).await
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use super::*;
    use crate::engine::MemoryStore;
    use crate::ids::{GroupUuid, Incarnation, Term};
    use crate::log::{EntryKind, MemoryDisk};
    use crate::machine::Threads;
    use steadfast_net::MemoryNetwork;

    const VOTE: Vote = Vote {
        term: Term(9),
        node: NodeId(2),
        committed: false,
    };

    fn id(term: u64, position: u64) -> LogId {
        LogId {
            term: Term(term),
            position: LogPosition(position),
        }
    }

    fn identity() -> Identity {
        Identity {
            group: Some(GroupUuid(uuid::Uuid::from_u128(9))),
            node_id: NodeId(1),
            ..Identity::fresh("orders", "n1", Incarnation(7))
        }
    }

    fn config() -> RepConfig {
        let config = RepConfig::builder("orders", "n1")
            .data_dir("/data")
            .listen("n1:7400")
            .set("log_segment_bytes", 64 * 1024);
        config.build().expect("a configuration")
    }

    fn machine(disk: &MemoryDisk) -> Machine {
        let network = MemoryNetwork::new();
        Machine {
            disk: Arc::new(disk.clone()),
            engines: Arc::new(MemoryStore::new()),
            threads: Threads::Tasks,
            ..Machine::in_memory(&network, "n1").expect("entropy")
        }
    }

    /// A directory whose log has entries 0 to 4 of term 3, and a vote of a later term.
    async fn written(disk: &MemoryDisk) {
        let (machine, config) = (machine(disk), config());
        let dir = DataDir::open(disk, Path::new("/data")).unwrap();
        node::create_log(&node::log_config(&config), &machine, &dir, &identity())
            .await
            .unwrap();
        dir.write_identity(disk, &identity()).await.unwrap();
        let log_config = node::log_config(&config);
        let log = node::open_idle_log(&log_config, &machine, &dir, &identity())
            .await
            .unwrap();
        log.save_vote(VOTE).await.unwrap();
        let entries = (0..5).map(|position| Entry {
            term: Term(3),
            position: LogPosition(position),
            kind: EntryKind::Blank,
            payload: bytes::Bytes::new(),
        });
        log.append(entries.collect(), Box::new(|_| {}))
            .await
            .unwrap();
        log.close().await.unwrap();
    }

    /// The log after a swap to a copy that ends with `last`, after power cuts at every number of
    /// steps.
    async fn swapped(last: LogId) -> (Option<LogId>, Option<LogId>) {
        let vote = if last.term > VOTE.term {
            Vote {
                term: last.term,
                node: NodeId(1),
                committed: false,
            }
        } else {
            VOTE
        };
        for steps in 0.. {
            let disk = MemoryDisk::new();
            written(&disk).await;
            let machine = machine(&disk);
            let dir = DataDir::open(&disk, Path::new("/data")).unwrap();
            disk.fail_after(steps);
            let done = swap(&config(), &machine, &dir, &identity(), last).await;
            disk.crash();
            drop(dir);
            let dir = DataDir::open(&disk, Path::new("/data")).unwrap();
            let found = dir.find_identity(&disk).await.unwrap().unwrap();
            let log_config = node::log_config(&config());
            let found = finish(&log_config, &machine, &dir, found).await.unwrap();
            let log = node::open_idle_log(&log_config, &machine, &dir, &found)
                .await
                .unwrap();
            let state = log.state();
            log.close().await.unwrap();
            if found.copy == 0 {
                assert!(done.is_err());
                assert_eq!(state.vote, Some(VOTE));
                assert_eq!((state.purged, state.last), (None, Some(id(3, 4))));
                continue;
            }
            assert_eq!(state.vote, Some(vote), "a vote that was given stays given");
            if done.is_ok() {
                return (state.purged, state.last);
            }
            assert_eq!(state.purged, Some(last));
        }
        unreachable!("it is done after some steps")
    }

    #[tokio::test]
    async fn a_crash_leaves_the_old_log_or_one_that_begins_after_the_copy() {
        assert_eq!(swapped(id(5, 90)).await, (Some(id(5, 90)), Some(id(5, 90))));
    }

    #[tokio::test]
    async fn whoever_has_a_copy_of_a_later_term_follows_no_earlier_master() {
        assert_eq!(
            swapped(id(12, 90)).await,
            (Some(id(12, 90)), Some(id(12, 90)))
        );
    }

    #[tokio::test]
    async fn entries_that_follow_on_the_copy_stay_and_others_go() {
        assert_eq!(swapped(id(3, 2)).await, (Some(id(3, 2)), Some(id(3, 4))));
        assert_eq!(swapped(id(4, 2)).await, (Some(id(4, 2)), Some(id(4, 2))));
    }
}
