//! A copy under way: an engine beside the node's own, and how far it has got.
//!
//! The engine stores that progress where it otherwise keeps the membership, so it changes together
//! with the rows: after a crash, the copy is exactly as far as it says. A copy is *complete* when
//! every row has been copied and the log has been followed to the newest transaction that any chunk
//! has seen.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;

use crate::engine::{
    Applied, Change, Direction, EngineBatch, EngineError, KeyRange, RowDigest, ScanLimit,
    StorageEngine,
};
use crate::group::MembershipRecord;
use crate::ids::{DatabaseId, LogPosition, Vlsn};
use crate::log::{Entry, EntryKind, LogId};
use crate::planted::{self, Bug};
use crate::state_copy::service::{ChunkMessage, PlaceMessage};
use crate::txn::audit::digest::RunningDigest;
use crate::txn::batch::{Batch, BatchError, Operation};
use crate::txn::catalog::{self, CATALOG, DIGESTS};

/// Distinguishes the progress record of a copy from a membership.
const FORMAT: u32 = 1;
/// How much is read back at once.
const VERIFY: ScanLimit = ScanLimit {
    keys: 1000,
    bytes: 1024 * 1024,
};

/// How far a copy is, stored in place of the membership. See `docs/format.md`.
#[derive(Clone, PartialEq, Eq, Message)]
struct StagedRecord {
    #[prost(uint32, tag = "20")]
    format: u32,
    #[prost(bytes = "bytes", tag = "21")]
    membership: Bytes,
    /// Where the rows continue; absent once all have been copied.
    #[prost(message, optional, tag = "22")]
    rest: Option<PlaceMessage>,
    /// The newest transaction that a chunk has seen.
    #[prost(uint64, tag = "23")]
    newest: u64,
    #[prost(uint64, tag = "24")]
    rows: u64,
    #[prost(bytes = "bytes", tag = "25")]
    digest: Bytes,
    /// Size of the keys and values received in chunks.
    #[prost(uint64, tag = "26")]
    bytes: u64,
}

/// Why a copy cannot go on as it is.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StagedError {
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    Batch(#[from] BatchError),
    #[error("the source sent something invalid: {0}")]
    Nonsense(&'static str),
    #[error("the engine returns {found:?}, but was given {expected:?}")]
    Lost {
        found: (u64, Bytes),
        expected: (u64, Bytes),
    },
    #[error(
        "the source contradicts its log: it gave {found:?} up to VLSN {vlsn}, but its log says \
         {expected:?}"
    )]
    Contradicted {
        vlsn: Vlsn,
        found: (u64, Bytes),
        expected: (u64, Bytes),
    },
}

/// A place in the order of all rows.
type Place = (DatabaseId, Option<Bytes>);

/// See the module.
pub(super) struct Staged {
    engine: Arc<dyn StorageEngine>,
    id: LogId,
    vlsn: Vlsn,
    membership: Bytes,
    /// Everything before this has been copied.
    rest: Option<Place>,
    newest: Vlsn,
    digest: RowDigest,
    bytes: u64,
}

impl Staged {
    /// An empty copy, at an entry of the log. An arbiter's is already complete.
    pub(super) fn begin(
        engine: Arc<dyn StorageEngine>,
        id: LogId,
        vlsn: Vlsn,
        membership: Bytes,
        has_data: bool,
    ) -> Result<Self, StagedError> {
        let staged = Self {
            engine,
            id,
            vlsn,
            membership,
            rest: has_data.then_some((CATALOG, None)),
            newest: vlsn,
            digest: RowDigest::default(),
            bytes: 0,
        };
        staged.apply(Vec::new())?;
        Ok(staged)
    }

    /// The copy that the engine holds, if any.
    ///
    /// # Errors
    /// When the engine cannot be read.
    pub(super) fn resume(engine: &Arc<dyn StorageEngine>) -> Result<Option<Self>, StagedError> {
        let Some(applied) = engine.applied()? else {
            return Ok(None);
        };
        let Ok(record) = StagedRecord::decode(applied.membership) else {
            return Ok(None);
        };
        let digest = RowDigest::from_parts(record.rows, &record.digest);
        let Some(digest) = digest.filter(|_| record.format == FORMAT) else {
            return Ok(None);
        };
        Ok(Some(Self {
            engine: Arc::clone(engine),
            id: LogId {
                term: applied.term,
                position: applied.position,
            },
            vlsn: applied.vlsn,
            membership: record.membership,
            rest: record.rest.map(place),
            newest: Vlsn(record.newest),
            digest,
            bytes: record.bytes,
        }))
    }

    /// The last entry that the copy holds.
    pub(super) fn id(&self) -> LogId {
        self.id
    }

    /// The last transaction that the copy holds.
    pub(super) fn vlsn(&self) -> Vlsn {
        self.vlsn
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The transaction that a source must have applied.
    pub(super) fn newest(&self) -> Vlsn {
        self.newest.max(self.vlsn)
    }

    /// Where the rows continue; `None` once all have been copied.
    pub(super) fn rest(&self) -> Option<PlaceMessage> {
        self.rest.clone().map(|(database, after)| PlaceMessage {
            database: database.0,
            after,
        })
    }

    /// Whether the copy is the state as of its position.
    pub(super) fn is_complete(&self) -> bool {
        self.rest.is_none() && self.vlsn >= self.newest
    }

    /// Takes the requested rows; returns their digest.
    ///
    /// # Errors
    /// When they are not the requested ones: nothing was taken.
    pub(super) fn take_chunk(&mut self, chunk: ChunkMessage) -> Result<RowDigest, StagedError> {
        let nonsense = |what| Err(StagedError::Nonsense(what));
        let Some((database, after)) = self.rest.clone() else {
            return nonsense("rows that nobody asked for");
        };
        // Otherwise it could lack changes that the copy has skipped in expectation of a chunk.
        if Vlsn(chunk.vlsn) < self.vlsn {
            return nonsense("rows that are older than the copy");
        }
        let (mut digest, mut bytes) = (RowDigest::default(), 0);
        let mut last = after;
        let mut changes = Vec::with_capacity(chunk.rows.len());
        for row in chunk.rows {
            if last.as_ref().is_some_and(|last| row.key <= *last) {
                return nonsense("rows out of order");
            }
            digest.add(database, &row.key, &row.value);
            bytes += (row.key.len() + row.value.len()) as u64;
            last = Some(row.key.clone());
            changes.push((database, row.key, Change::Put(row.value)));
        }
        if digest.to_bytes() != chunk.digest {
            return nonsense("rows that do not match their digest");
        }
        let rest = chunk.rest.map(place);
        let goes_on =
            |rest: &Place| *rest > (database, last.clone()) || *rest == (database, last.clone());
        if !rest.as_ref().is_none_or(goes_on) || rest == self.rest {
            return nonsense("rows that make no progress");
        }
        self.rest = rest;
        self.newest = self.newest.max(Vlsn(chunk.vlsn));
        self.bytes += bytes;
        self.digest.add_all(digest);
        self.apply(changes)?;
        Ok(digest)
    }

    /// Follows the log, at most up to a transaction. Changes to rows that have not been copied yet
    /// come with those rows.
    ///
    /// # Errors
    /// When the entries do not follow, or no entry ends there: nothing was taken.
    pub(super) fn take_entries(
        &mut self,
        entries: Vec<Entry>,
        upto: Option<Vlsn>,
    ) -> Result<(), StagedError> {
        if entries.is_empty() {
            return Ok(());
        }
        let (mut id, mut vlsn, mut membership) = (self.id, self.vlsn, self.membership.clone());
        let mut changes: BTreeMap<(DatabaseId, Bytes), Option<Bytes>> = BTreeMap::new();
        for entry in entries {
            if upto == Some(vlsn) {
                break;
            }
            if entry.position.0 != id.position.0 + 1 || entry.term < id.term {
                return Err(StagedError::Nonsense("entries that do not follow the copy"));
            }
            id = entry.id();
            match entry.kind {
                EntryKind::Blank => {}
                EntryKind::Membership => membership = in_force(entry)?,
                EntryKind::Transactions => {
                    let batch = Batch::parse(entry.payload)?;
                    // Any other batch was numbered in vain.
                    if batch.first() == vlsn.next() {
                        vlsn = batch.last();
                        if upto.is_some_and(|upto| vlsn > upto) {
                            return Err(StagedError::Nonsense("a state in the middle of an entry"));
                        }
                        batch.for_each(|_, operation| self.collect(&mut changes, operation));
                    }
                }
            }
        }
        if planted::is(Bug::RestoreSkipsEntries) {
            changes.clear();
        }
        let changes = self.account(changes)?;
        (self.id, self.vlsn, self.membership) = (id, vlsn, membership);
        self.apply(changes)
    }

    /// Records the latest value of a row, if the row has been copied.
    fn collect(
        &self,
        changes: &mut BTreeMap<(DatabaseId, Bytes), Option<Bytes>>,
        operation: Operation,
    ) {
        let Operation {
            database,
            key,
            value,
            ..
        } = operation;
        let is_copied = self
            .rest
            .as_ref()
            .is_none_or(|(at, after)| (database, Some(&key)) <= (*at, after.as_ref()));
        if is_copied {
            changes.insert((database, key), value);
        }
    }

    /// Updates the digest for these changes.
    fn account(
        &mut self,
        changes: BTreeMap<(DatabaseId, Bytes), Option<Bytes>>,
    ) -> Result<Vec<(DatabaseId, Bytes, Change)>, StagedError> {
        let mut digest = self.digest;
        let mut accounted = Vec::with_capacity(changes.len());
        for ((database, key), value) in changes {
            if let Some(old) = self.engine.get(database, &key)? {
                digest.take(database, &key, &old);
            }
            if let Some(new) = &value {
                digest.add(database, &key, new);
            }
            let change = value.map_or(Change::Delete, Change::Put);
            accounted.push((database, key, change));
        }
        self.digest = digest;
        Ok(accounted)
    }

    /// Makes everything taken so far durable.
    ///
    /// # Errors
    /// When the engine fails.
    pub(super) fn sync(&self) -> Result<(), StagedError> {
        Ok(self.engine.sync()?)
    }

    /// Reads everything back and checks it against what was taken; returns each database's digest.
    ///
    /// # Errors
    /// [`StagedError::Lost`].
    pub(super) fn verify(&self) -> Result<BTreeMap<DatabaseId, RowDigest>, StagedError> {
        let mut databases = BTreeMap::new();
        for database in self.engine.databases()? {
            if database == DIGESTS {
                continue;
            }
            let mut found = RowDigest::default();
            let mut range = KeyRange::all();
            loop {
                let rows = self
                    .engine
                    .scan(database, range, Direction::Forward, VERIFY)?;
                for (key, value) in &rows {
                    found.add(database, key, value);
                }
                let Some((last, _)) = rows.last().filter(|_| VERIFY.is_reached(&rows)) else {
                    break;
                };
                range = KeyRange {
                    start: Bound::Excluded(last.clone()),
                    end: Bound::Unbounded,
                };
            }
            databases.insert(database, found);
        }
        let mut found = RowDigest::default();
        for of in databases.values() {
            found.add_all(*of);
        }
        if found == self.digest {
            return Ok(databases);
        }
        Err(StagedError::Lost {
            found: parts(found),
            expected: parts(self.digest),
        })
    }

    /// Turns a complete copy that holds `databases` into a node's engine, durably.
    ///
    /// # Errors
    /// When the engine fails, or the data is not what the log has made, by the source's account.
    ///
    /// # Panics
    /// When the copy is not complete.
    pub(super) fn finish(
        self,
        databases: &BTreeMap<DatabaseId, RowDigest>,
        expected: Option<RowDigest>,
    ) -> Result<LogId, StagedError> {
        assert!(self.is_complete(), "only a whole copy is a state");
        let applied = Applied {
            membership: self.membership.clone(),
            ..self.applied()
        };
        let digest = RunningDigest::of(catalog::named(&*self.engine)?, databases);
        // This planted bug must be found by other means.
        let expected = expected.filter(|_| !planted::is(Bug::RestoreSkipsEntries));
        if let Some(expected) = expected.filter(|expected| *expected != digest.total()) {
            return Err(StagedError::Contradicted {
                vlsn: self.vlsn,
                found: parts(digest.total()),
                expected: parts(expected),
            });
        }
        let changes = digest.rows(&applied);
        self.engine.apply(&EngineBatch { applied, changes })?;
        self.engine.sync()?;
        Ok(self.id)
    }

    fn apply(&self, changes: Vec<(DatabaseId, Bytes, Change)>) -> Result<(), StagedError> {
        let applied = self.applied();
        Ok(self.engine.apply(&EngineBatch { applied, changes })?)
    }

    fn applied(&self) -> Applied {
        let record = StagedRecord {
            format: FORMAT,
            membership: self.membership.clone(),
            rest: self.rest(),
            newest: self.newest.0,
            rows: self.digest.rows,
            digest: self.digest.to_bytes(),
            bytes: self.bytes,
        };
        Applied {
            term: self.id.term,
            position: self.id.position,
            vlsn: self.vlsn,
            membership: record.encode_to_vec().into(),
        }
    }

    /// The entry that is needed next.
    pub(super) fn next(&self) -> LogPosition {
        LogPosition(self.id.position.0 + 1)
    }
}

/// The form shown to people.
fn parts(digest: RowDigest) -> (u64, Bytes) {
    (digest.rows, digest.to_bytes())
}

fn place(message: PlaceMessage) -> Place {
    (DatabaseId(message.database), message.after)
}

/// The membership of an entry, as an engine stores it.
fn in_force(entry: Entry) -> Result<Bytes, StagedError> {
    let LogId { term, position } = entry.id();
    let record = MembershipRecord::decode(entry.payload);
    let record = record.map_err(|_| StagedError::Nonsense("an invalid membership"))?;
    let record = MembershipRecord {
        position: Some(position.0),
        term: Some(term.0),
        ..record
    };
    Ok(record.encode_bytes())
}
