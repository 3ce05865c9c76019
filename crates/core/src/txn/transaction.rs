//! What a user's function sees: the databases of a read-only snapshot, or of a write transaction.

mod additions;
mod databases;
mod node_ids;

use std::collections::BTreeMap;
use std::ops::{Bound, RangeBounds};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use steadfast_net::lock;

use bytes::Bytes;

use crate::engine::{Direction, EngineError, KeyRange};
use crate::error::{ReadError, WriteError};
use crate::ids::{DatabaseId, Vlsn};
use crate::limits::{KEY_BYTES_MAX, TRANSACTION_KEYS_MAX, TRANSACTION_READS_MAX, VALUE_BYTES_MAX};
use crate::txn::batch::{OPERATION_HEADER_BYTES, Operation};
use crate::txn::catalog::{self, CATALOG, check_name};
use crate::txn::names::Names;
use crate::txn::scan::{Scan, Source};
use crate::txn::sequencer::{Finished, ReadSet, SessionId};
use crate::txn::view::{Chunk, View, ViewError, lay_over};
use additions::Additions;

/// A transaction's catalog changes may take 1/n of its byte limit, on top of it: so a batch, the
/// transaction that overfills it and its names fit into a segment of the log.
const CATALOG_SHARE: usize = 4;

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
        // Only valid names are remembered.
        let mut id = self.names.find(name.as_bytes(), at);
        if id.is_none() {
            let name = check_name(name)?;
            if let Some(entry) = self.view.get(CATALOG, &name)? {
                let found = database_id(&name, &entry)?;
                self.names.remember(name, found, at);
                id = Some(found);
            }
        }
        Ok(SnapshotDatabase { snapshot: self, id })
    }

    /// The names of all databases, sorted.
    ///
    /// # Errors
    /// The errors of a read.
    pub fn list_databases(&self) -> Result<Vec<String>, ReadError> {
        let entries = Scan::new(Source::Snapshot(&self.view), Some(CATALOG), KeyRange::all());
        catalog::names(entries)
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

/// What a transaction has read and written so far.
#[derive(Debug, Default)]
struct Journal {
    reads: ReadSet,
    writes: BTreeMap<(DatabaseId, Bytes), Option<Bytes>>,
    /// Those of the writes that only add to what is there: see `additions.rs`.
    additions: Additions,
    /// What it writes to databases, and to the catalog.
    written: Tally,
    cataloged: Tally,
    /// Number of times it creates, truncates or drops a database.
    databases_changed: usize,
    /// Catalog entries among its reads.
    catalog_reads: usize,
    /// The databases that the transaction has looked up by name, in their current state: `None` is
    /// one that does not exist.
    databases: BTreeMap<Bytes, Option<DatabaseId>>,
}

/// The size of a part of a transaction's writes.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    keys: usize,
    /// Encoded, in a batch.
    bytes: usize,
}

impl Journal {
    fn id(&self, name: &Bytes) -> Option<DatabaseId> {
        self.databases.get(name).copied().flatten()
    }

    fn tally(&mut self, database: DatabaseId) -> &mut Tally {
        if database == CATALOG {
            &mut self.cataloged
        } else {
            &mut self.written
        }
    }

    /// Changes nothing when a limit is exceeded. `bytes_max` is the limit on user keys and values.
    fn write(
        &mut self,
        database: DatabaseId,
        key: Bytes,
        value: Option<Bytes>,
        bytes_max: usize,
    ) -> Result<(), WriteError> {
        let place = (database, key);
        let replaced = self.writes.get(&place);
        let replaced = replaced.map(|value| write_bytes(&place.1, value.as_ref()));
        let mut tally = *self.tally(database);
        tally.keys += usize::from(replaced.is_none());
        tally.bytes -= replaced.unwrap_or_default();
        tally.bytes += write_bytes(&place.1, value.as_ref());
        if database == CATALOG {
            let what = "the change of the catalog";
            check_size(what, tally.bytes, bytes_max / CATALOG_SHARE)?;
        } else if tally.keys > TRANSACTION_KEYS_MAX {
            return Err(WriteError::TooManyKeys {
                max: TRANSACTION_KEYS_MAX,
            });
        } else {
            check_size("a transaction", tally.bytes, bytes_max)?;
        }
        *self.tally(database) = tally;
        self.writes.insert(place, value);
        Ok(())
    }

    /// Notes that a key is read.
    fn read(&mut self, place: (DatabaseId, Bytes)) -> Result<(), ReadError> {
        let is_of_catalog = place.0 == CATALOG;
        if self.reads.keys.insert(place) && is_of_catalog {
            self.catalog_reads += 1;
        }
        self.check_reads()
    }

    /// Catalog reads are bounded separately: there is one entry for each name that is used.
    fn check_reads(&self) -> Result<(), ReadError> {
        let max = TRANSACTION_READS_MAX;
        let of_databases = self.reads.len() - self.catalog_reads;
        if of_databases.max(self.catalog_reads) > max {
            return Err(ReadError::TooManyReads { max });
        }
        Ok(())
    }
}

/// A serializable read-write transaction. It sees its own writes; others see them when it commits.
///
/// Threads may share one; their operations happen in some order.
pub struct Transaction {
    view: View,
    session: SessionId,
    bytes_max: usize,
    journal: Mutex<Journal>,
}

impl Transaction {
    /// A transaction in this session that may write `bytes_max` bytes.
    pub(crate) fn new(view: View, session: SessionId, bytes_max: usize) -> Self {
        Self {
            view,
            session,
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
        Ok(catalog::names(entries)?)
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
        let Some(id) = journal.id(&name) else {
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
        if self.lock().id(&name).is_none() {
            return Ok(false);
        }
        let next = self.next_id()?;
        let mut journal = self.lock();
        let Some(id) = journal.id(&name) else {
            return Ok(false);
        };
        journal.create(&name, next, self.bytes_max)?;
        journal.forget(id);
        Ok(true)
    }

    pub(crate) fn finish(self) -> Finished {
        let journal = self.journal.into_inner();
        let journal = journal.unwrap_or_else(PoisonError::into_inner);
        let additions = journal.numbered_additions();
        let operations = journal
            .writes
            .into_iter()
            .map(|((database, key), value)| Operation {
                database,
                key,
                value,
            });
        Finished {
            session: self.session,
            reader: self.view.into_reader(),
            reads: journal.reads,
            operations: operations.collect(),
            additions,
        }
    }

    /// Encoded size of the writes so far, in bytes.
    pub(crate) fn written_bytes(&self) -> usize {
        let journal = self.lock();
        journal.written.bytes + journal.cataloged.bytes
    }

    /// Puts or deletes a key in a database that [`Transaction::find`] has looked up.
    fn set(&self, name: &Bytes, key: Bytes, value: Option<Bytes>) -> Result<(), WriteError> {
        check_size("a key", key.len(), KEY_BYTES_MAX)?;
        let value_bytes = value.as_ref().map_or(0, Bytes::len);
        check_size("a value", value_bytes, VALUE_BYTES_MAX)?;
        let known = self.lock().id(name);
        let next = match known {
            Some(_) => None,
            None if value.is_none() => return Ok(()),
            None => Some(self.next_id()?),
        };
        let mut journal = self.lock();
        let Some(id) = journal.id_for_write(name, next, self.bytes_max)? else {
            return Ok(());
        };
        journal.settle(&(id, key.clone()))?;
        journal.write(id, key, value, self.bytes_max)
    }

    /// Looks up the database of this name, once per transaction.
    fn find(&self, name: &Bytes) -> Result<(), ReadError> {
        if self.lock().databases.contains_key(name) {
            return Ok(());
        }
        let entry = self.get(CATALOG, name)?;
        let id = entry.map(|entry| database_id(name, &entry)).transpose()?;
        self.lock().databases.entry(name.clone()).or_insert(id);
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
        self.transaction.lock().id(&self.name)
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

    /// Sets `key` to `value`.
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
        self.transaction.set(&self.name, key, value)
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

/// # Errors
/// [`ReadError::Engine`] when the entry of the catalog is damaged.
fn database_id(key: &Bytes, entry: &Bytes) -> Result<DatabaseId, ReadError> {
    catalog::id_in_entry(key, entry).map_err(ReadError::Engine)
}

/// Encoded size of a write in a batch.
fn write_bytes(key: &Bytes, value: Option<&Bytes>) -> usize {
    OPERATION_HEADER_BYTES + key.len() + value.map_or(0, Bytes::len)
}

fn check_size(what: &'static str, actual: usize, max: usize) -> Result<(), WriteError> {
    if actual <= max {
        Ok(())
    } else {
        Err(WriteError::TooLarge { what, actual, max })
    }
}
