//! The newest events of a shared feed, within a number of bytes.

use std::collections::VecDeque;
use std::mem::size_of;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use crate::error::FeedError;
use crate::feed::event::{Change, CommittedTransaction, FeedEvent};
use crate::ids::Vlsn;
use crate::token::CommitToken;

/// Events in the order of their tokens, without gaps.
pub(super) struct Ring {
    /// Everything after this token is here: it was the last to leave, or where the feed began.
    floor: CommitToken,
    events: VecDeque<Kept>,
    bytes: usize,
    bytes_max: usize,
    end: Option<FeedError>,
}

/// An event with its token. It is not cloned while the ring is locked.
#[derive(Clone)]
pub(super) struct Kept {
    pub(super) token: CommitToken,
    pub(super) event: Arc<FeedEvent>,
    pub(super) bytes: usize,
}

/// What follows a position.
pub(super) enum Next {
    Event(Kept),
    /// The position has fallen out of the ring.
    Gone,
    Ended(FeedError),
    NotYet,
}

impl Ring {
    pub(super) fn new(start: CommitToken, bytes_max: usize) -> Self {
        Self {
            floor: start,
            events: VecDeque::new(),
            bytes: 0,
            bytes_max,
            end: None,
        }
    }

    /// Adds what comes next, and drops what is too old. The newest event always stays.
    pub(super) fn push(&mut self, event: &FeedEvent) {
        let Some(kept) = Kept::owned(event) else {
            return;
        };
        assert!(kept.token > self.last(), "a feed never goes back");
        self.bytes += kept.bytes;
        self.events.push_back(kept);
        while self.bytes > self.bytes_max && self.events.len() > 1 {
            let Some(old) = self.events.pop_front() else {
                break;
            };
            self.bytes -= old.bytes;
            self.floor = old.token;
        }
    }

    /// Nothing follows any more.
    pub(super) fn end(&mut self, error: FeedError) {
        self.end = Some(error);
    }

    pub(super) fn ended(&self) -> Option<FeedError> {
        self.end.as_ref().map(FeedError::again)
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The last token that was added.
    pub(super) fn last(&self) -> CommitToken {
        self.events.back().map_or(self.floor, |last| last.token)
    }

    /// Whether everything after this transaction is here, or is yet to come.
    pub(super) fn reaches(&self, at: Vlsn) -> bool {
        at >= self.floor.vlsn
    }

    /// Whether there is something to do for a listener at this transaction.
    pub(super) fn has_news(&self, at: Vlsn) -> bool {
        !self.reaches(at) || self.last().vlsn > at || self.end.is_some()
    }

    /// What follows this transaction.
    pub(super) fn after(&self, at: Vlsn) -> Next {
        if !self.reaches(at) {
            return Next::Gone;
        }
        let next = self.events.partition_point(|kept| kept.token.vlsn <= at);
        match (self.events.get(next), self.ended()) {
            (Some(kept), _) => Next::Event(kept.clone()),
            (None, Some(error)) => Next::Ended(error),
            (None, None) => Next::NotYet,
        }
    }

    /// Whether this very token is known here to be of this history.
    pub(super) fn proves(&self, token: CommitToken) -> bool {
        let at = self
            .events
            .partition_point(|kept| kept.token.vlsn < token.vlsn);
        let found = self.events.get(at).map(|kept| kept.token);
        self.floor == token || found == Some(token)
    }
}

impl Kept {
    /// The event in memory of its own: a change as it was read keeps the whole batch in memory that
    /// it came in. `None` for a part of a state, which has no token.
    pub(super) fn owned(event: &FeedEvent) -> Option<Self> {
        let (token, event, bytes) = match event {
            FeedEvent::Transaction(transaction) => {
                let (changes, bytes) = owned_changes(&transaction.changes);
                let copy = CommittedTransaction {
                    changes,
                    ..*transaction
                };
                (transaction.token, FeedEvent::Transaction(copy), bytes)
            }
            FeedEvent::Progress { token } => (*token, event.clone(), 0),
            FeedEvent::State { .. } | FeedEvent::StateComplete { .. } => return None,
        };
        Some(Self {
            token,
            event: Arc::new(event),
            bytes: bytes + size_of::<Self>() + size_of::<FeedEvent>(),
        })
    }

    /// Another event in its place.
    pub(super) fn with(self, event: FeedEvent) -> Self {
        let event = Arc::new(event);
        Self { event, ..self }
    }
}

fn owned_changes(changes: &[Change]) -> (Vec<Change>, usize) {
    let all = || changes.iter().flat_map(parts);
    let length = all().map(Bytes::len).sum();
    let mut memory = BytesMut::with_capacity(length);
    all().for_each(|part| memory.extend_from_slice(part));
    let mut memory = memory.freeze();
    let mut own = |part: &Bytes| memory.split_to(part.len());
    let copy = changes.iter().map(|change| match change {
        Change::Put {
            database,
            key,
            value,
        } => Change::Put {
            database: Arc::clone(database),
            key: own(key),
            value: own(value),
        },
        Change::Delete { database, key } => Change::Delete {
            database: Arc::clone(database),
            key: own(key),
        },
        Change::Expired { database, key } => Change::Expired {
            database: Arc::clone(database),
            key: own(key),
        },
        Change::Created { .. } | Change::Dropped { .. } => change.clone(),
    });
    let copy: Vec<_> = copy.collect();
    let bytes = length + copy.len() * size_of::<Change>();
    (copy, bytes)
}

/// The bytes of a change, in their order.
fn parts(change: &Change) -> impl Iterator<Item = &Bytes> {
    let (key, value) = match change {
        Change::Put { key, value, .. } => (Some(key), Some(value)),
        Change::Delete { key, .. } | Change::Expired { key, .. } => (Some(key), None),
        Change::Created { .. } | Change::Dropped { .. } => (None, None),
    };
    key.into_iter().chain(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{GroupUuid, Term};

    fn token(vlsn: u64) -> CommitToken {
        CommitToken {
            group: GroupUuid(uuid::Uuid::from_u128(1)),
            term: Term(1),
            vlsn: Vlsn(vlsn),
        }
    }

    fn put(vlsn: u64, value: Bytes) -> FeedEvent {
        FeedEvent::Transaction(CommittedTransaction {
            token: token(vlsn),
            committed_at_ms: 0,
            changes: vec![Change::Put {
                database: "d".into(),
                key: Bytes::from_static(b"k"),
                value,
            }],
        })
    }

    #[test]
    fn the_newest_transactions_within_the_bytes_stay_and_one_that_is_larger_alone() {
        let mut ring = Ring::new(token(7), 3_000);
        for vlsn in 8..20 {
            ring.push(&put(vlsn, vec![0; 1_000].into()));
            assert!(ring.bytes() <= 3_000);
        }
        assert!(!ring.reaches(Vlsn(16)) && ring.reaches(Vlsn(17)));
        assert!(matches!(ring.after(Vlsn(16)), Next::Gone));
        assert!(matches!(ring.after(Vlsn(17)), Next::Event(kept) if kept.token == token(18)));
        ring.push(&put(20, vec![0; 9_000].into()));
        assert!(matches!(ring.after(Vlsn(18)), Next::Gone));
        assert!(matches!(ring.after(Vlsn(19)), Next::Event(kept) if kept.token == token(20)));
        assert!(matches!(ring.after(Vlsn(20)), Next::NotYet));
        ring.end(FeedError::Closed);
        assert!(matches!(ring.after(Vlsn(19)), Next::Event(_)));
        assert!(matches!(
            ring.after(Vlsn(20)),
            Next::Ended(FeedError::Closed)
        ));
    }

    #[test]
    fn a_small_change_does_not_keep_the_batch_that_it_came_in() {
        let batch = Bytes::from(vec![7; 1 << 20]);
        let mut ring = Ring::new(token(0), 1 << 20);
        ring.push(&put(1, batch.slice(..10)));
        assert!(batch.is_unique());
        let Next::Event(kept) = ring.after(Vlsn(0)) else {
            panic!("it is kept");
        };
        assert_eq!(*kept.event, put(1, batch.slice(..10)));
    }
}
