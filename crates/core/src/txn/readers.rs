//! The open readers and their VLSNs, so that the flush never overtakes a reader.
//!
//! Two invariants depend on this. The engine must not hold a version newer than an open reader's
//! VLSN: the flush asks [`Readers::flush_limit`]. And a flushed version must stay in the window
//! until every reader has ended that could have read the engine before: the flush remembers
//! [`Readers::now`] after it has applied, and evicts once [`Readers::all_began_after`] holds.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use steadfast_net::lock;

use tokio::time::Instant;

use crate::ids::Vlsn;

/// Sequence number of a reader, in the order in which readers began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ReaderId(u64);

#[derive(Debug, Default)]
struct State {
    next: ReaderId,
    /// In the order in which they began. A reader must be registered and removed in a fraction of a
    /// microsecond, so nothing is allocated for it and no clock is read.
    active: VecDeque<(ReaderId, Vlsn)>,
    /// Samples: the id of the next reader to begin at some moments in time.
    moments: VecDeque<(ReaderId, Instant)>,
    /// The highest limit that the flush was given: the engine may hold everything up to there.
    flushed: Vlsn,
}

/// The readers that are open on this node.
#[derive(Debug, Default)]
pub(crate) struct Readers {
    state: Mutex<State>,
    /// Readers before this one were ended.
    ended_before: AtomicU64,
    /// The age limit for which the last of them were ended, in milliseconds.
    age_max_ms: AtomicU64,
}

impl Readers {
    /// Begins a reader at the VLSN that `at` returns. `at` runs under the lock that the flush
    /// takes, so either the flush sees the reader or the reader sees the flush; it must be quick.
    pub(crate) fn begin(self: &Arc<Self>, at: impl FnOnce() -> Vlsn) -> ReaderGuard {
        let mut state = self.lock();
        let at = at();
        self.register(&mut state, at)
    }

    /// Begins a reader at `at`, which is at or below the visible VLSN. `None` when the engine may
    /// hold something newer.
    pub(crate) fn begin_at(self: &Arc<Self>, at: Vlsn) -> Option<ReaderGuard> {
        let mut state = self.lock();
        (state.flushed <= at).then(|| self.register(&mut state, at))
    }

    fn register(self: &Arc<Self>, state: &mut State, at: Vlsn) -> ReaderGuard {
        let id = state.next;
        state.next = ReaderId(id.0 + 1);
        state.active.push_back((id, at));
        ReaderGuard {
            readers: Arc::clone(self),
            id,
            at,
        }
    }

    /// The VLSN through which the engine may be brought: `visible`, or that of the oldest reader if
    /// lower. A transaction that reads pending versions stands above `visible`, and the next
    /// snapshot may begin at `visible`.
    pub(crate) fn flush_limit(&self, visible: impl FnOnce() -> Vlsn) -> Vlsn {
        let mut state = self.lock();
        let oldest = state.active.iter().map(|(_, at)| *at).min();
        let visible = visible();
        let limit = oldest.map_or(visible, |oldest| oldest.min(visible));
        state.flushed = state.flushed.max(limit);
        limit
    }

    /// A mark in the sequence of readers.
    pub(crate) fn now(&self) -> ReaderId {
        self.lock().next
    }

    /// Whether every open reader began at or after `mark`.
    pub(crate) fn all_began_after(&self, mark: ReaderId) -> bool {
        let state = self.lock();
        state.active.front().is_none_or(|(first, _)| *first >= mark)
    }

    /// Whether a reader prevents the eviction of versions flushed before `mark`, or the flush of
    /// what was committed after the reader began, up to `next`.
    pub(crate) fn hold(&self, mark: Option<ReaderId>, next: Option<Vlsn>) -> bool {
        let state = self.lock();
        let oldest = state.active.front();
        mark.is_some_and(|mark| oldest.is_some_and(|(first, _)| *first < mark))
            || next.is_some_and(|next| state.active.iter().any(|(_, at)| *at < next))
    }

    /// Ends readers that are older than `age_max`: their next read reports it. Called periodically;
    /// a reader may exceed the age by the time between two calls.
    pub(crate) fn end_older_than(&self, age_max: Duration) {
        let now = Instant::now();
        let mut state = self.lock();
        let next = state.next;
        if state.moments.back().is_none_or(|(last, _)| *last < next) {
            state.moments.push_back((next, now));
        }
        let mut ends = None;
        while let Some((first, at)) = state.moments.front().copied()
            && now.duration_since(at) > age_max
        {
            ends = Some(first);
            state.moments.pop_front();
        }
        let Some(ends) = ends else { return };
        let still = state.active.partition_point(|(id, _)| *id < ends);
        if still > 0 {
            state.active.drain(..still);
            let age_max_ms = u64::try_from(age_max.as_millis()).unwrap_or(u64::MAX);
            self.age_max_ms.store(age_max_ms, Ordering::Relaxed);
            self.ended_before.fetch_max(ends.0, Ordering::Release);
        }
    }

    /// Ends all readers, and any that begin later: the engine's data cannot be relied upon.
    pub(crate) fn end_all(&self) {
        self.lock().active.clear();
        self.ended_before.store(u64::MAX, Ordering::Release);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

/// One open reader; dropping it ends it.
#[derive(Debug)]
pub(crate) struct ReaderGuard {
    readers: Arc<Readers>,
    id: ReaderId,
    at: Vlsn,
}

impl ReaderGuard {
    pub(crate) fn at(&self) -> Vlsn {
        self.at
    }

    /// The age limit for which the reader was ended, if it was. What it read after that cannot be
    /// trusted, so callers check this after each read of the engine, not before.
    pub(crate) fn ended_at_age(&self) -> Option<Duration> {
        let ended_before = self.readers.ended_before.load(Ordering::Acquire);
        let age_max = self.readers.age_max_ms.load(Ordering::Relaxed);
        (self.id.0 < ended_before).then(|| Duration::from_millis(age_max))
    }
}

impl Drop for ReaderGuard {
    fn drop(&mut self) {
        let mut state = self.readers.lock();
        // It may have been ended already.
        if let Ok(place) = state.active.binary_search_by_key(&self.id, |(id, _)| *id) {
            state.active.remove(place);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_reader_holds_back_the_flush() {
        let readers = Arc::new(Readers::default());
        let old = readers.begin(|| Vlsn(5));
        let _new = readers.begin(|| Vlsn(9));
        assert_eq!(readers.flush_limit(|| Vlsn(12)), Vlsn(5));
        drop(old);
        assert_eq!(readers.flush_limit(|| Vlsn(12)), Vlsn(9));
    }

    #[test]
    fn a_reader_at_a_given_number_begins_unless_the_flush_may_have_passed_it() {
        let readers = Arc::new(Readers::default());
        let old = readers.begin(|| Vlsn(5));
        readers.flush_limit(|| Vlsn(12));
        assert!(readers.begin_at(Vlsn(4)).is_none());
        let at = readers.begin_at(Vlsn(7)).expect("the flush stands at 5");
        drop(old);
        assert_eq!(readers.flush_limit(|| Vlsn(12)), Vlsn(7));
        drop(at);
        readers.flush_limit(|| Vlsn(12));
        assert!(readers.begin_at(Vlsn(11)).is_none());
    }

    #[test]
    fn a_reader_of_what_is_pending_does_not_let_the_flush_ahead() {
        let readers = Arc::new(Readers::default());
        let _writer = readers.begin(|| Vlsn(15));
        assert_eq!(readers.flush_limit(|| Vlsn(12)), Vlsn(12));
    }

    #[test]
    fn only_readers_from_before_the_mark_hold_back_eviction() {
        let readers = Arc::new(Readers::default());
        let before = readers.begin(|| Vlsn(5));
        let mark = readers.now();
        let _after = readers.begin(|| Vlsn(9));
        assert!(!readers.all_began_after(mark));
        drop(before);
        assert!(readers.all_began_after(mark));
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_over_its_age_is_told_and_holds_nothing_back() {
        let readers = Arc::new(Readers::default());
        let old = readers.begin(|| Vlsn(5));
        readers.end_older_than(Duration::from_mins(1));
        tokio::time::advance(Duration::from_secs(61)).await;
        assert_eq!(old.ended_at_age(), None);
        let new = readers.begin(|| Vlsn(9));
        readers.end_older_than(Duration::from_mins(1));
        assert_eq!(old.ended_at_age(), Some(Duration::from_mins(1)));
        assert_eq!(new.ended_at_age(), None);
        assert_eq!(readers.flush_limit(|| Vlsn(12)), Vlsn(9));
    }
}
