//! Leases: which there are is in the data, how long they have is the master's to know.
//!
//! ```text
//!   granted or noted              kept alive, in memory      kept alive again
//!      │──────── TTL ────────────────►│ deadline                │
//!      │──────── TTL + slack ─────────────────►│ noted          │ past `noted`: noted anew, by a write
//! ```
//!
//! Each lease has a row with a time to live of the environment, which never ends early and goes on
//! over a failover: its TTL and some slack. As long as the deadline of a lease is not after that,
//! keeping it alive writes nothing. A new master reads what is left of the rows: no lease ends early,
//! and none lives longer than its TTL and [`allowance`], besides the time without a master. The
//! master ends a lease at its deadline, with a write like any other; a row that has ended is nothing
//! but a lease of which nothing is left.
//!
//! A lease with very many keys ends in steps, each a revision of its own, whether its time has passed
//! or a client revokes it: the first ones delete some keys each and mark the lease, the last one
//! deletes the lease with the rest. From the first step on there is no such lease for clients, but its
//! id is free only after the last. A new master goes on where the old one was.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use steadfast::SnapshotDatabase;
use steadfast::limits::TTL_MAX;
use tokio::time::Instant;

use super::keys::{Failure, LeaseRow, Tables, decode, number};

/// Largest TTL, in seconds: what clients of etcd count on.
pub(super) const TTL_SECONDS_MAX: i64 = 9_000_000_000;

/// Smallest TTL, in seconds; a smaller one is raised to it.
pub(super) const TTL_SECONDS_MIN: i64 = 2;

/// What the environment may add to a time to live over a failover, in a second of its own, and what a
/// commit takes.
const FAILOVER_MAX: Duration = Duration::from_secs(2);

/// By how much a lease may outlive its TTL after a failover.
pub(super) fn allowance(ttl: Duration) -> Duration {
    (ttl / 10).max(Duration::from_secs(5))
}

/// The TTL of a lease.
pub(super) fn duration(ttl: i64) -> Duration {
    Duration::from_secs(ttl.try_into().unwrap_or_default())
}

/// How long the row of a lease lives that has just been noted.
pub(super) fn noted_for(ttl: i64) -> Duration {
    let ttl = duration(ttl);
    (ttl + allowance(ttl).saturating_sub(FAILOVER_MAX)).min(TTL_MAX)
}

/// A lease in the memory of the master.
#[derive(Clone, Copy, Debug)]
struct Lease {
    ttl: i64,
    deadline: Instant,
    /// Until when the data says that it lives; at most.
    noted: Instant,
    /// A write that ends it is under way, or waits.
    is_ending: bool,
    /// Such a write has deleted some of its keys: nothing keeps it alive.
    has_begun_to_end: bool,
}

/// What a committed write did to a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// Granted or noted anew, with this TTL.
    Noted(i64, i64),
    /// Some of its keys are deleted, with this TTL. What is left of it has to be ended.
    Begun(i64, i64),
    Ended(i64),
}

/// What is left of a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Left {
    pub(super) ttl: i64,
    pub(super) left: Duration,
}

/// What the memory says to a lease being kept alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kept {
    /// It is, with this TTL.
    Alive(i64),
    /// It has to be written down.
    Write,
}

/// The leases in the memory of the master's store. See the module.
#[derive(Debug, Default)]
pub(super) struct Lessor {
    leases: HashMap<i64, Lease>,
    by_deadline: BTreeSet<(Instant, i64)>,
    /// How many writes are on their way that keep a lease alive: none of these ends meanwhile.
    keeping: HashMap<i64, usize>,
    /// While the rows are being read, what ended meanwhile.
    ended: Vec<i64>,
    phase: Phase,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    /// Another store is the owner.
    #[default]
    Idle,
    /// The rows are being read, for the time that is counted here.
    Loading(u64),
    Active(u64),
}

/// A lease as the data has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Loaded {
    id: i64,
    ttl: i64,
    /// What is left of its row.
    left: Duration,
    is_ending: bool,
}

impl Lessor {
    /// Begins anew: this store has become the owner. Returns the number to give to
    /// [`Lessor::loaded`].
    pub(super) fn begin(&mut self) -> u64 {
        let number = match self.phase {
            Phase::Idle => 0,
            Phase::Loading(number) | Phase::Active(number) => number + 1,
        };
        *self = Self {
            phase: Phase::Loading(number),
            keeping: std::mem::take(&mut self.keeping),
            ..Self::default()
        };
        number
    }

    /// Takes what was read of the rows, unless it has begun anew since.
    pub(super) fn loaded(&mut self, number: u64, leases: Vec<Loaded>, now: Instant) {
        if self.phase != Phase::Loading(number) {
            return;
        }
        self.phase = Phase::Active(number);
        let ended: BTreeSet<i64> = self.ended.drain(..).collect();
        for row in leases {
            // What was noted meanwhile is newer.
            if self.leases.contains_key(&row.id) || ended.contains(&row.id) {
                continue;
            }
            let lease = Lease {
                ttl: row.ttl,
                // No lease has ever more than its TTL before it.
                deadline: now + row.left.min(duration(row.ttl)),
                noted: now + row.left,
                is_ending: false,
                has_begun_to_end: row.is_ending,
            };
            self.insert(row.id, lease);
        }
    }

    /// Whether the memory has all leases.
    pub(super) fn is_active(&self) -> bool {
        matches!(self.phase, Phase::Active(_))
    }

    /// Takes the effect of a write that began at `began`, and is committed.
    pub(super) fn note(&mut self, effect: Effect, began: Instant) {
        match effect {
            Effect::Noted(id, ttl) => {
                let lease = Lease {
                    ttl,
                    deadline: began + duration(ttl),
                    noted: began + noted_for(ttl),
                    is_ending: false,
                    has_begun_to_end: false,
                };
                self.insert(id, lease);
            }
            Effect::Begun(id, ttl) => {
                self.remove(id);
                let lease = Lease {
                    ttl,
                    deadline: began,
                    noted: began,
                    is_ending: true,
                    has_begun_to_end: true,
                };
                // Not by its deadline: who has begun goes on.
                self.leases.insert(id, lease);
            }
            Effect::Ended(id) => {
                self.remove(id);
                if let Phase::Loading(_) = self.phase {
                    self.ended.push(id);
                }
            }
        }
    }

    /// Keeps a lease alive in memory, if that is enough.
    pub(super) fn keep_alive(&mut self, id: i64, now: Instant) -> Kept {
        let lease = self.leases.get(&id).copied();
        let is_free = |lease: &Lease| !lease.is_ending && !lease.has_begun_to_end;
        let lease = lease.filter(|lease| is_free(lease) && self.is_active());
        let Some(lease) = lease else {
            return Kept::Write;
        };
        let deadline = now + duration(lease.ttl);
        if deadline > lease.noted {
            return Kept::Write;
        }
        self.insert(id, Lease { deadline, ..lease });
        Kept::Alive(lease.ttl)
    }

    /// A write begins that keeps a lease alive, until [`Lessor::kept`].
    pub(super) fn keep(&mut self, id: i64) {
        *self.keeping.entry(id).or_default() += 1;
    }

    /// The write has ended. If it did not keep the lease alive, the lease is due as before.
    pub(super) fn kept(&mut self, id: i64, now: Instant) {
        if let Some(count) = self.keeping.get_mut(&id) {
            *count -= 1;
            if *count == 0 {
                self.keeping.remove(&id);
                self.end_failed(id, now);
            }
        }
    }

    /// What is left of a lease; `None`: there is none, or it has begun to end.
    pub(super) fn left(&self, id: i64, now: Instant) -> Option<Left> {
        let lease = self.leases.get(&id);
        let lease = lease.filter(|lease| !lease.has_begun_to_end)?;
        Some(Left {
            ttl: lease.ttl,
            left: lease.deadline.saturating_duration_since(now),
        })
    }

    /// When the next lease ends.
    pub(super) fn next_end(&self) -> Option<Instant> {
        let (deadline, _) = self.by_deadline.first()?;
        self.is_active().then_some(*deadline)
    }

    /// Leases whose time has passed, at most `max`. They are told once, until
    /// [`Lessor::end_failed`].
    pub(super) fn take_due(&mut self, now: Instant, max: usize) -> Vec<i64> {
        if !self.is_active() {
            return Vec::new();
        }
        let due = self.by_deadline.iter();
        let due = due.take_while(|(deadline, _)| *deadline <= now).take(max);
        let due: Vec<_> = due.copied().collect();
        for entry in &due {
            self.by_deadline.remove(entry);
            if let Some(lease) = self.leases.get_mut(&entry.1) {
                lease.is_ending = true;
            }
        }
        due.into_iter().map(|(_, id)| id).collect()
    }

    /// Whether a lease that was due is still to be ended.
    pub(super) fn is_ending(&self, id: i64) -> bool {
        let lease = self.leases.get(&id).filter(|lease| lease.is_ending);
        // Nothing keeps a lease alive of which keys have been deleted.
        lease.is_some_and(|lease| lease.has_begun_to_end || !self.keeping.contains_key(&id))
    }

    /// A lease that was due could not be ended: it is due again at `again`.
    pub(super) fn end_failed(&mut self, id: i64, again: Instant) {
        if let Some(lease) = self.leases.get_mut(&id).filter(|lease| lease.is_ending) {
            lease.is_ending = false;
            lease.deadline = again;
            self.by_deadline.insert((again, id));
        }
    }

    fn insert(&mut self, id: i64, lease: Lease) {
        self.remove(id);
        self.by_deadline.insert((lease.deadline, id));
        self.leases.insert(id, lease);
    }

    fn remove(&mut self, id: i64) {
        if let Some(old) = self.leases.remove(&id) {
            self.by_deadline.remove(&(old.deadline, id));
        }
    }
}

/// All leases as a snapshot has them.
///
/// # Errors
/// Those of a read.
pub(super) fn load(tables: &Tables<SnapshotDatabase<'_>>) -> Result<Vec<Loaded>, Failure> {
    let mut leases = Vec::new();
    for row in &tables.leases {
        let (id, row) = row?;
        let LeaseRow { ttl, is_ending } = decode(row)?;
        let left = match tables.lease_times.expires_in(&id)? {
            _ if is_ending => Duration::ZERO,
            Some(left) => left,
            // Restored from a backup, which has no times: it begins anew.
            None if tables.lease_times.get(&id)?.is_some() => noted_for(ttl),
            None => Duration::ZERO,
        };
        leases.push(Loaded {
            id: number(&id)?,
            ttl,
            left,
            is_ending,
        });
    }
    Ok(leases)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_does_not_end_while_a_write_is_on_its_way_that_keeps_it_alive() {
        let began = Instant::now();
        let due = began + duration(2);
        let mut lessor = Lessor::default();
        let number = lessor.begin();
        lessor.loaded(number, Vec::new(), began);
        lessor.note(Effect::Noted(7, 2), began);
        lessor.keep(7);
        assert_eq!(lessor.take_due(due, 1), [7]);
        assert!(!lessor.is_ending(7), "the write comes first");
        // It failed: nothing was noted.
        lessor.kept(7, due);
        assert_eq!(lessor.take_due(due, 1), [7]);
        assert!(lessor.is_ending(7));
        lessor.keep(7);
        lessor.note(Effect::Noted(7, 2), due);
        lessor.kept(7, due);
        assert!(lessor.take_due(due, 1).is_empty());
        assert!(!lessor.is_ending(7));
    }
}
