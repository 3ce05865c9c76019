//! What clients did and were told, and when.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// A write as its client saw it. Values are never used twice, and leases neither.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Write {
    /// Without a lease: 0.
    Put {
        key: u64,
        value: u64,
        lease: i64,
    },
    /// Sets the key if its last change was at `seen` (0: it was not there).
    Swap {
        key: u64,
        seen: i64,
        value: u64,
    },
    Delete {
        key: u64,
    },
    Revoke {
        lease: i64,
    },
}

/// What came of a write.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Came {
    /// It is the revision, unless a lease without keys was revoked: that makes none.
    Done(i64),
    /// The guard did not hold, or there was nothing to delete, as of the revision.
    Nothing(i64),
    /// There is no such lease.
    NoLease,
    /// It may have happened, or may still happen.
    Unknown,
}

/// What is at a key.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Is {
    pub(crate) value: u64,
    pub(crate) changed: i64,
    pub(crate) lease: i64,
}

/// The keys that are there.
pub(crate) type Keys = BTreeMap<u64, Is>;

/// What was said about a lease.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Said {
    Granted(Duration),
    /// Nobody was told whether it is.
    MayBeGranted(Duration),
    KeptAlive,
    MayBeKeptAlive,
    Gone,
    /// What is left of it, rounded down, and its keys as of a revision.
    Left {
        seconds: u64,
        keys: Vec<u64>,
        revision: i64,
    },
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Event {
    Write(Write, Came),
    /// All keys as of the revision.
    Read(Keys, i64),
    Lease(i64, Said),
}

impl Event {
    pub(crate) fn revision(&self) -> Option<i64> {
        match self {
            Self::Write(_, Came::Done(revision) | Came::Nothing(revision))
            | Self::Read(_, revision)
            | Self::Lease(_, Said::Left { revision, .. }) => Some(*revision),
            Self::Write(..) | Self::Lease(..) => None,
        }
    }

    /// The lease that it is about.
    pub(crate) fn lease(&self) -> Option<i64> {
        match self {
            Self::Lease(lease, _)
            | Self::Write(Write::Put { lease, .. } | Write::Revoke { lease }, _) => Some(*lease),
            Self::Write(..) | Self::Read(..) => None,
        }
    }
}

/// What a client did, and between which two times.
#[derive(Clone, PartialEq)]
pub(crate) struct Record {
    pub(crate) client: u64,
    pub(crate) began: Duration,
    pub(crate) ended: Duration,
    pub(crate) event: Event,
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (began, ended) = (self.began.as_secs_f64(), self.ended.as_secs_f64());
        let Self { client, event, .. } = self;
        write!(f, "{began:.4} to {ended:.4} client {client}: {event:?}")
    }
}

pub(crate) struct History {
    start: Instant,
    values: AtomicU64,
    done: AtomicUsize,
    records: Mutex<Vec<Record>>,
    /// The newest revision that anybody was told.
    pub(crate) known: AtomicI64,
    /// The newest leases.
    pub(crate) leases: Mutex<Vec<i64>>,
    terms: Mutex<Terms>,
}

/// When masters changed, by what clients were told.
#[derive(Default)]
struct Terms {
    newest: u64,
    seen_at: Duration,
    /// When a term was last seen that is over.
    ended: Vec<Duration>,
}

impl Default for History {
    fn default() -> Self {
        Self {
            start: Instant::now(),
            values: AtomicU64::new(1),
            done: AtomicUsize::default(),
            records: Mutex::default(),
            known: AtomicI64::default(),
            leases: Mutex::default(),
            terms: Mutex::default(),
        }
    }
}

impl History {
    /// A value, or lease, that was never used.
    pub(crate) fn value(&self) -> u64 {
        self.values.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn now(&self) -> Duration {
        self.start.elapsed()
    }

    pub(crate) fn note(&self, client: u64, began: Duration, event: Event) {
        let record = Record {
            client,
            began,
            ended: self.now(),
            event,
        };
        if let Some(revision) = record.event.revision() {
            self.known.fetch_max(revision, Ordering::Relaxed);
        }
        self.records.lock().unwrap().push(record);
        self.done.fetch_add(1, Ordering::Relaxed);
    }

    /// An answer named a term.
    pub(crate) fn note_term(&self, term: u64) {
        let now = self.now();
        let mut terms = self.terms.lock().unwrap();
        if term > terms.newest {
            let ended = terms.seen_at;
            terms.ended.push(ended);
            terms.newest = term;
        }
        if term == terms.newest {
            terms.seen_at = now;
        }
    }

    /// When terms ended, since the last time.
    pub(crate) fn take_ended(&self) -> Vec<Duration> {
        std::mem::take(&mut self.terms.lock().unwrap().ended)
    }

    /// How many operations there were.
    pub(crate) fn done(&self) -> usize {
        self.done.load(Ordering::Relaxed)
    }

    /// The records since the last time.
    pub(crate) fn take(&self) -> Vec<Record> {
        std::mem::take(&mut self.records.lock().unwrap())
    }
}
