//! Which part of the log is still needed, by subscriptions and by nodes that copy the state.
//!
//! A hold keeps the purge (`consensus/purge.rs`) from the entries after a position, within the
//! log's limits in bytes. The purge passes over a hold that exceeds them: its owner finds the
//! entries gone, and reports that.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use steadfast_net::lock;

use crate::ids::LogPosition;

#[derive(Debug, Default)]
struct State {
    next: u64,
    held: BTreeMap<u64, LogPosition>,
}

/// The holds on the log of one node.
#[derive(Debug, Default)]
pub(crate) struct Holds {
    state: Mutex<State>,
}

impl Holds {
    /// Keeps the entries after `after`, until the value is dropped.
    pub(crate) fn hold(self: &Arc<Self>, after: LogPosition) -> Hold {
        let mut state = self.lock();
        let id = state.next;
        state.next += 1;
        state.held.insert(id, after);
        Hold {
            holds: Arc::clone(self),
            id,
        }
    }

    /// The lowest position after which entries are needed.
    pub(crate) fn lowest(&self) -> Option<LogPosition> {
        self.lock().held.values().copied().min()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

/// One hold; dropping it releases it.
#[derive(Debug)]
pub(crate) struct Hold {
    holds: Arc<Holds>,
    id: u64,
}

impl Hold {
    /// From now on, holds only the entries after `after`.
    pub(crate) fn advance(&self, after: LogPosition) {
        self.holds.lock().held.insert(self.id, after);
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.holds.lock().held.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_hold_counts_as_long_as_it_lasts() {
        let holds = Arc::new(Holds::default());
        assert_eq!(holds.lowest(), None);
        let slow = holds.hold(LogPosition(3));
        let fast = holds.hold(LogPosition(9));
        assert_eq!(holds.lowest(), Some(LogPosition(3)));
        slow.advance(LogPosition(12));
        assert_eq!(holds.lowest(), Some(LogPosition(9)));
        drop(fast);
        assert_eq!(holds.lowest(), Some(LogPosition(12)));
        drop(slow);
        assert_eq!(holds.lowest(), None);
    }
}
