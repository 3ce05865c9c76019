//! What a user's function sees: the databases of a read-only snapshot, or of a write transaction.

mod additions;
pub(crate) mod forwarded;
mod journal;
mod lifetimes;
mod node_ids;

use std::ops::{Bound, RangeBounds};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use steadfast_net::lock;

use bytes::Bytes;

use crate::engine::{Direction, EngineError, KeyRange};
use crate::error::{ReadError, WriteError};
use crate::ids::{DatabaseId, Vlsn};
use crate::limits::{KEY_BYTES_MAX, VALUE_BYTES_MAX};
use crate::txn::catalog::{self, CATALOG, Named, check_name};
use crate::txn::lifetimes::GroupTime;
use crate::txn::names::{Lookup, Names};
use crate::txn::scan::{Scan, Source};
use crate::txn::sequencer::{Finished, SessionId};
use crate::txn::view::{Chunk, View, ViewError, lay_over};
use journal::{Journal, Row, check_size, database_id};
pub(crate) use lifetimes::{Ended, NextDeadline};

impl From<ViewError> for ReadError {
    fn from(error: ViewError) -> Self {
        match error {
            ViewError::TooOld { age_max } => Self::SnapshotTooOld { age_max },
            ViewError::Engine(EngineError::Closed) => Self::Closed,
            ViewError::Engine(error) => Self::Engine(error),
        }
    }
}

/// A consistent, read-only view of every database at one VLSN.
pub struct Snapshot {
    view: View,
    names: Arc<Names>,
}

impl Snapshot {
    pub(crate) fn new(view: View, names: Arc<Names>) -> Self {
        Self { view, names }
    }

    /// The VLSN of the last transaction that the snapshot contains.
    pub fn vlsn(&self) -> Vlsn {
        self.view.at()
    }

    /// The database of this name; one that was never written to is empty.
    ///
    /// # Errors
    /// [`ReadError::DatabaseName`] for an impossible name, and the errors of a read.
    pub fn database(&self, name: &str) -> Result<SnapshotDatabase<'_>, ReadError> {
        let at = self.view.at();
        // Only valid names are remembered, and those of the group's own rows, which no user may ask
        // for.
        let id = match self.names.find(name.as_bytes(), at) {
            Lookup::Hit(id) if catalog::is_users_name(name.as_bytes()) => id,
            _ => self.look_up(check_name(name)?)?,
        };
        Ok(SnapshotDatabase { snapshot: self, id })
    }

    /// As [`Snapshot::database`], also for the group's own rows.
    ///
    /// # Errors
    /// The errors of a read.
    pub(crate) fn any_database(&self, name: &str) -> Result<SnapshotDatabase<'_>, ReadError> {
        let id = self.look_up(Bytes::copy_from_slice(name.as_bytes()))?;
        Ok(SnapshotDatabase { snapshot: self, id })
    }

    fn look_up(&self, name: Bytes) -> Result<Option<DatabaseId>, ReadError> {
        let at = self.view.at();
        if let Lookup::Hit(id) = self.names.find(&name, at) {
            return Ok(id);
        }
        let entry = self.view.get(CATALOG, &name)?;
        let id = entry.map(|entry| database_id(&name, &entry)).transpose()?;
        self.names.remember(name, id, at);
        Ok(id)
    }

    /// The names of all databases, sorted.
    ///
    /// # Errors
    /// The errors of a read.
    pub fn list_databases(&self) -> Result<Vec<String>, ReadError> {
        catalog::names(self.catalog(KeyRange::all()), catalog::is_users_name)
    }

    /// The names of all databases, with those of the group's own rows.
    pub(crate) fn list_all_databases(&self) -> Result<Vec<String>, ReadError> {
        catalog::names(self.catalog(KeyRange::all()), catalog::is_name)
    }

    /// The raw entries of the catalog.
    pub(crate) fn catalog(&self, range: KeyRange) -> Scan<'_> {
        Scan::new(Source::Snapshot(&self.view), Some(CATALOG), range)
    }
}

/// One database of a [`Snapshot`].
pub struct SnapshotDatabase<'a> {
    snapshot: &'a Snapshot,
    id: Option<DatabaseId>,
}

impl<'a> SnapshotDatabase<'a> {
    /// The value of `key`, if it has one.
    ///
    /// # Errors
    /// The errors of a read.
    pub fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<Bytes>, ReadError> {
        let Some(id) = self.id else { return Ok(None) };
        Ok(self
            .snapshot
            .view
            .get(id, &Bytes::copy_from_slice(key.as_ref()))?)
    }

    /// The keys of `range` with their values, in order. See [`Scan`] to reverse and limit it.
    pub fn range<K: AsRef<[u8]>>(&self, range: impl RangeBounds<K>) -> Scan<'a> {
        self.scan(KeyRange::of(range))
    }

    /// The keys that begin with `prefix`, with their values, in order.
    pub fn prefix(&self, prefix: impl AsRef<[u8]>) -> Scan<'a> {
        self.scan(KeyRange::prefix(prefix.as_ref()))
    }

    /// All keys with their values, in order.
    pub fn iter(&self) -> Scan<'a> {
        self.scan(KeyRange::all())
    }

    pub(crate) fn scan(&self, range: KeyRange) -> Scan<'a> {
        Scan::new(Source::Snapshot(&self.snapshot.view), self.id, range)
    }
}

impl<'a> IntoIterator for &SnapshotDatabase<'a> {
    type Item = Result<(Bytes, Bytes), ReadError>;
    type IntoIter = Scan<'a>;

    fn into_iter(self) -> Scan<'a> {
        self.iter()
    }
}

/// A serializable read-write transaction. It sees its own writes; others see them when it commits.
///
/// Threads may share one; their operations happen in some order.
pub struct Transaction {
    view: View,
    /// `None` where it runs on a node that is not the master, which numbers it.
    session: Option<SessionId>,
    time: Arc<GroupTime>,
    bytes_max: usize,
    journal: Mutex<Journal>,
}

impl Transaction {
    /// A transaction in this session, or for the master, that may write `bytes_max` bytes.
    pub(crate) fn new(
        view: View,
        session: Option<SessionId>,
        time: Arc<GroupTime>,
        bytes_max: usize,
    ) -> Self {
        Self {
            view,
            session,
            time,
            bytes_max,
            journal: Mutex::default(),
        }
    }

    /// The database of this name. It is created, within this transaction, by its first `put`.
    ///
    /// # Errors
    /// [`ReadError::DatabaseName`] for an impossible name, and the errors of a read.
    pub fn database(&self, name: &str) -> Result<TransactionDatabase<'_>, WriteError> {
        let name = check_name(name)?;
        self.find(&name)?;
        Ok(TransactionDatabase {
            transaction: self,
            name,
        })
    }

    /// The names of all databases, sorted, with what this transaction created and without what it
    /// dropped.
    ///
    /// # Errors
    /// The errors of a read.
    pub fn list_databases(&self) -> Result<Vec<String>, WriteError> {
        let entries = Scan::new(Source::Transaction(self), Some(CATALOG), KeyRange::all());
        Ok(catalog::names(entries, catalog::is_users_name)?)
    }

    /// Removes a database and all its data, whatever its size, atomically with the rest of the
    /// transaction. Returns whether it existed. A later `put` creates it anew.
    ///
    /// # Errors
    /// [`ReadError::DatabaseName`] for an impossible name, [`WriteError::TooManyDatabases`] and
    /// [`WriteError::TooLarge`] for the transaction, and the errors of a read.
    pub fn drop_database(&self, name: &str) -> Result<bool, WriteError> {
        let name = check_name(name)?;
        self.find(&name)?;
        let mut journal = self.lock();
        let Some(Named { id, .. }) = journal.named(&name) else {
            return Ok(false);
        };
        journal.change_database()?;
        journal.write(CATALOG, name.clone(), None, self.bytes_max)?;
        journal.databases.insert(name, None);
        journal.forget(id);
        Ok(true)
    }

    /// Empties a database, whatever its size, atomically with the rest of the transaction. Returns
    /// whether it existed.
    ///
    /// # Errors
    /// As [`Transaction::drop_database`].
    pub fn truncate_database(&self, name: &str) -> Result<bool, WriteError> {
        let name = check_name(name)?;
        self.find(&name)?;
        if self.lock().named(&name).is_none() {
            return Ok(false);
        }
        let next = self.next_id()?;
        let mut journal = self.lock();
        let Some(Named { id, .. }) = journal.named(&name) else {
            return Ok(false);
        };
        journal.create(&name, next, self.bytes_max)?;
        journal.forget(id);
        Ok(true)
    }

    /// Whether it is for the master, and this node was not when it began.
    pub(crate) fn is_for_master(&self) -> bool {
        self.session.is_none()
    }

    /// # Panics
    /// For a transaction without a session: the master finishes it.
    pub(crate) fn finish(self) -> Finished {
        let session = self
            .session
            .expect("a master finishes its own transactions");
        let journal = self.journal.into_inner();
        let mut journal = journal.unwrap_or_else(PoisonError::into_inner);
        // Without group time the session has ended, and it gets no number.
        let now_ms = self.time.now(session);
        let deadline_ms = now_ms.and_then(|now_ms| journal.settle_lifetimes(now_ms));
        let additions = journal.numbered_additions();
        let (reads, operations) = journal.into_parts();
        Finished {
            session,
            reader: self.view.into_reader(),
            reads,
            operations,
            additions,
            deadline_ms,
        }
    }

    /// Encoded size of the writes so far, in bytes.
    pub(crate) fn written_bytes(&self) -> usize {
        let journal = self.lock();
        journal.written.bytes + journal.cataloged.bytes
    }

    /// Puts or deletes a key in a database that [`Transaction::find`] has looked up. With `ttl_ms`,
    /// the key ends that long after the transaction has asked for its number.
    fn set(
        &self,
        name: &Bytes,
        key: Bytes,
        value: Option<Bytes>,
        ttl_ms: Option<u64>,
    ) -> Result<(), WriteError> {
        check_size("a key", key.len(), KEY_BYTES_MAX)?;
        let value_bytes = value.as_ref().map_or(0, Bytes::len);
        check_size("a value", value_bytes, VALUE_BYTES_MAX)?;
        let known = self.lock().named(name);
        let next = match known {
            Some(_) => None,
            None if value.is_none() => return Ok(()),
            None => Some(self.next_id()?),
        };
        let lifetime = self.lifetime(known, &key, ttl_ms)?;
        let mut journal = self.lock();
        let Some(named) = journal.named_for_write(name, next, self.bytes_max)? else {
            return Ok(());
        };
        journal.settle(&(named.id, key.clone()))?;
        if ttl_ms.is_some() {
            journal.let_expire(name, named, self.bytes_max)?;
        }
        let row = Row {
            place: (named.id, key),
            value,
            lifetime,
        };
        journal.write_row(row, self.bytes_max)
    }

    /// Looks up the database of this name, once per transaction.
    fn find(&self, name: &Bytes) -> Result<(), ReadError> {
        if self.lock().databases.contains_key(name) {
            return Ok(());
        }
        let entry = self.get(CATALOG, name)?;
        let named = entry.map(|entry| catalog::entry(name, &entry)).transpose();
        let named = named.map_err(ReadError::Engine)?;
        self.lock().databases.entry(name.clone()).or_insert(named);
        Ok(())
    }

    /// The next free id.
    fn next_id(&self) -> Result<DatabaseId, ReadError> {
        let key = Bytes::from_static(catalog::NEXT_ID_KEY);
        let entry = self.get(CATALOG, &key)?;
        let id = entry.map(|entry| database_id(&key, &entry)).transpose()?;
        Ok(id.unwrap_or(catalog::FIRST_ID))
    }

    fn get(&self, database: DatabaseId, key: &Bytes) -> Result<Option<Bytes>, ReadError> {
        {
            let mut journal = self.lock();
            let place = (database, key.clone());
            journal.settle(&place)?;
            if let Some(own) = journal.writes.get(&place) {
                return Ok(own.clone());
            }
            journal.read(place)?;
        }
        Ok(self.view.get(database, key)?)
    }

    /// A part of a scan with this transaction's own writes laid over it.
    pub(crate) fn chunk(
        &self,
        database: DatabaseId,
        range: &KeyRange,
        direction: Direction,
    ) -> Result<Chunk, ReadError> {
        let mut chunk = self.view.chunk(database, range, direction)?;
        let mut journal = self.lock();
        journal.reads.add_range(database, chunk.covered.clone());
        journal.check_reads()?;
        let from = match &chunk.covered.start {
            Bound::Included(key) | Bound::Excluded(key) => key.clone(),
            Bound::Unbounded => Bytes::new(),
        };
        let is_before_end = |place: &(DatabaseId, Bytes)| {
            place.0 == database && !chunk.covered.ends_before(&place.1)
        };
        let own = journal
            .writes
            .range((database, from)..)
            .take_while(|(place, _)| is_before_end(place))
            .filter(|((_, key), _)| chunk.covered.contains(key));
        let mut own: Vec<_> = own
            .map(|((_, key), value)| (key.clone(), value.clone()))
            .collect();
        if direction == Direction::Reverse {
            own.reverse();
        }
        chunk.rows = lay_over(chunk.rows, own, direction);
        Ok(chunk)
    }

    fn lock(&self) -> MutexGuard<'_, Journal> {
        // Only a failed allocation can panic under this lock.
        lock(&self.journal)
    }
}

/// One database of a [`Transaction`].
pub struct TransactionDatabase<'a> {
    transaction: &'a Transaction,
    name: Bytes,
}

impl<'a> TransactionDatabase<'a> {
    /// Its id, if it exists at this point.
    fn id(&self) -> Option<DatabaseId> {
        self.transaction
            .lock()
            .named(&self.name)
            .map(|named| named.id)
    }

    /// The value of `key`, if it has one.
    ///
    /// # Errors
    /// The errors of a read.
    pub fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<Bytes>, WriteError> {
        let Some(id) = self.id() else {
            return Ok(None);
        };
        Ok(self
            .transaction
            .get(id, &Bytes::copy_from_slice(key.as_ref()))?)
    }

    /// Sets `key` to `value`. A time to live of the key ends.
    ///
    /// # Errors
    /// [`WriteError::TooLarge`] when the key, the value or the transaction is over its limit,
    /// [`WriteError::TooManyKeys`] and [`WriteError::TooManyDatabases`] when the transaction writes or
    /// creates too many (see [`crate::limits`]).
    pub fn put(&self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Result<(), WriteError> {
        self.set(
            Bytes::copy_from_slice(key.as_ref()),
            Some(Bytes::copy_from_slice(value.as_ref())),
        )
    }

    /// Removes `key`; does nothing when it is not there.
    ///
    /// # Errors
    /// As [`TransactionDatabase::put`].
    pub fn delete(&self, key: impl AsRef<[u8]>) -> Result<(), WriteError> {
        self.set(Bytes::copy_from_slice(key.as_ref()), None)
    }

    /// Sets `key` to a value, or deletes it, without a copy.
    pub(crate) fn set(&self, key: Bytes, value: Option<Bytes>) -> Result<(), WriteError> {
        self.transaction.set(&self.name, key, value, None)
    }

    /// The keys of `range` with their values, in order. See [`Scan`] to reverse and limit it.
    pub fn range<K: AsRef<[u8]>>(&self, range: impl RangeBounds<K>) -> Scan<'a> {
        self.scan(KeyRange::of(range))
    }

    /// The keys that begin with `prefix`, with their values, in order.
    pub fn prefix(&self, prefix: impl AsRef<[u8]>) -> Scan<'a> {
        self.scan(KeyRange::prefix(prefix.as_ref()))
    }

    /// All keys with their values, in order.
    pub fn iter(&self) -> Scan<'a> {
        self.scan(KeyRange::all())
    }

    fn scan(&self, range: KeyRange) -> Scan<'a> {
        Scan::new(Source::Transaction(self.transaction), self.id(), range)
    }
}

impl<'a> IntoIterator for &TransactionDatabase<'a> {
    type Item = Result<(Bytes, Bytes), ReadError>;
    type IntoIter = Scan<'a>;

    fn into_iter(self) -> Scan<'a> {
        self.iter()
    }
}
