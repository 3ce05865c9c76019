//! What a user's function sees: databases of a read-only snapshot, or of a write transaction.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::ops::RangeBounds;

use bytes::Bytes;

use crate::engine::{Direction, KeyRange};
use crate::error::{ReadError, WriteError};
use crate::ids::{DatabaseId, Vlsn};
use crate::limits::{DATABASE_NAME_BYTES_MAX, KEY_BYTES_MAX, VALUE_BYTES_MAX};
use crate::txn::batch::{OPERATION_HEADER_BYTES, Operation};
use crate::txn::sequencer::{Finished, ReadSet, SessionId};
use crate::txn::view::{Chunk, View, ViewError};

/// The catalog: name of a database to its id, `u32` little-endian. It is a database itself, so
/// that the creation of databases is replicated, ordered and conflict-checked as any write is.
pub(crate) const CATALOG: DatabaseId = DatabaseId(0);

/// Key in the catalog of the next free database id. No name can be this.
const NEXT_ID_KEY: &[u8] = b"\0next";

impl From<ViewError> for ReadError {
    fn from(error: ViewError) -> Self {
        match error {
            ViewError::TooOld => Self::SnapshotTooOld,
            ViewError::Engine(error) => Self::Engine(error),
        }
    }
}

/// A consistent, read-only view of every database at one VLSN.
pub struct Snapshot {
    view: View,
}

impl Snapshot {
    pub(crate) fn new(view: View) -> Self {
        Self { view }
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
        let name = check_name(name)?;
        let id = self
            .view
            .get(CATALOG, &name)?
            .as_deref()
            .map(parse_id)
            .transpose()?;
        Ok(SnapshotDatabase { snapshot: self, id })
    }

    /// The names of all databases, sorted.
    ///
    /// # Errors
    /// The errors of a read.
    pub fn databases(&self) -> Result<Vec<String>, ReadError> {
        let names = Scan::new(Source::Snapshot(&self.view), Some(CATALOG), KeyRange::all())
            .filter(|row| row.as_ref().map_or(true, |(key, _)| key != NEXT_ID_KEY));
        names
            .map(|row| Ok(String::from_utf8_lossy(&row?.0).into_owned()))
            .collect()
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

    fn scan(&self, range: KeyRange) -> Scan<'a> {
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
    /// What the writes take in a batch.
    written_bytes: usize,
    /// Databases that this transaction creates.
    created: BTreeMap<Bytes, DatabaseId>,
}

/// A serializable read-write transaction. It sees its own writes; others see them when it commits.
pub struct Transaction {
    view: View,
    session: SessionId,
    bytes_max: usize,
    journal: RefCell<Journal>,
}

impl Transaction {
    /// A transaction in this session that may write `bytes_max` bytes.
    pub(crate) fn new(view: View, session: SessionId, bytes_max: usize) -> Self {
        Self {
            view,
            session,
            bytes_max,
            journal: RefCell::default(),
        }
    }

    /// The database of this name. It is created, within this transaction, by its first `put`.
    ///
    /// # Errors
    /// [`ReadError::DatabaseName`] for an impossible name, and the errors of a read.
    pub fn database(&self, name: &str) -> Result<TransactionDatabase<'_>, WriteError> {
        let name = check_name(name)?;
        let id = self
            .get(CATALOG, &name)?
            .as_deref()
            .map(parse_id)
            .transpose()?;
        Ok(TransactionDatabase {
            transaction: self,
            name,
            existing: id,
        })
    }

    pub(crate) fn finish(self) -> Finished {
        let journal = self.journal.into_inner();
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
        }
    }

    /// What has been written so far takes this many bytes in a batch.
    pub(crate) fn written_bytes(&self) -> usize {
        self.journal.borrow().written_bytes
    }

    fn get(&self, database: DatabaseId, key: &Bytes) -> Result<Option<Bytes>, ReadError> {
        let mut journal = self.journal.borrow_mut();
        if let Some(own) = journal.writes.get(&(database, key.clone())) {
            return Ok(own.clone());
        }
        journal.reads.keys.push((database, key.clone()));
        Ok(self.view.get(database, key)?)
    }

    fn write(
        &self,
        database: DatabaseId,
        key: Bytes,
        value: Option<Bytes>,
    ) -> Result<(), WriteError> {
        let mut journal = self.journal.borrow_mut();
        let key_bytes = OPERATION_HEADER_BYTES + key.len();
        let bytes = |value: &Option<Bytes>| key_bytes + value.as_ref().map_or(0, Bytes::len);
        let place = (database, key);
        let replaced = journal.writes.get(&place).map_or(0, bytes);
        let written = journal.written_bytes - replaced + bytes(&value);
        check_size("a transaction", written, self.bytes_max)?;
        journal.written_bytes = written;
        journal.writes.insert(place, value);
        Ok(())
    }

    /// A part of a scan with this transaction's own writes laid over it.
    fn chunk(
        &self,
        database: DatabaseId,
        range: &KeyRange,
        direction: Direction,
    ) -> Result<Chunk, ReadError> {
        let mut chunk = self.view.chunk(database, range, direction)?;
        let mut journal = self.journal.borrow_mut();
        journal.reads.ranges.push((database, chunk.covered.clone()));
        let own = journal
            .writes
            .range((database, Bytes::new())..)
            .take_while(|((of, _), _)| *of == database)
            .filter(|((_, key), _)| chunk.covered.contains(key));
        let mut own = own
            .map(|((_, key), value)| (key.clone(), value.clone()))
            .peekable();
        if own.peek().is_some() {
            let mut rows: BTreeMap<Bytes, Option<Bytes>> = chunk
                .rows
                .into_iter()
                .map(|(key, value)| (key, Some(value)))
                .collect();
            rows.extend(own);
            chunk.rows = rows
                .into_iter()
                .filter_map(|(key, value)| Some((key, value?)))
                .collect();
            if direction == Direction::Reverse {
                chunk.rows.reverse();
            }
        }
        Ok(chunk)
    }

    /// Gives a database that does not exist yet its id, in the catalog.
    fn create(&self, name: &Bytes) -> Result<DatabaseId, WriteError> {
        let next_key = Bytes::from_static(NEXT_ID_KEY);
        let next = self
            .get(CATALOG, &next_key)?
            .as_deref()
            .map(parse_id)
            .transpose()?;
        let id = next.unwrap_or(DatabaseId(CATALOG.0 + 1));
        let encode = |id: u32| Bytes::copy_from_slice(&id.to_le_bytes());
        self.write(CATALOG, name.clone(), Some(encode(id.0)))?;
        self.write(CATALOG, next_key, Some(encode(id.0 + 1)))?;
        self.journal.borrow_mut().created.insert(name.clone(), id);
        Ok(id)
    }
}

/// One database of a [`Transaction`].
pub struct TransactionDatabase<'a> {
    transaction: &'a Transaction,
    name: Bytes,
    /// Its id, if it existed when the handle was made.
    existing: Option<DatabaseId>,
}

impl<'a> TransactionDatabase<'a> {
    /// Its id, if it exists by now.
    fn id(&self) -> Option<DatabaseId> {
        let created = || {
            let journal = self.transaction.journal.borrow();
            journal.created.get(&self.name).copied()
        };
        self.existing.or_else(created)
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
    /// [`WriteError::TooLarge`] when the key, the value or the transaction is over its limit (see
    /// [`crate::limits`]).
    pub fn put(&self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Result<(), WriteError> {
        let (key, value) = (key.as_ref(), value.as_ref());
        check_size("a key", key.len(), KEY_BYTES_MAX)?;
        check_size("a value", value.len(), VALUE_BYTES_MAX)?;
        let id = match self.id() {
            Some(id) => id,
            None => self.transaction.create(&self.name)?,
        };
        let (key, value) = (Bytes::copy_from_slice(key), Bytes::copy_from_slice(value));
        self.transaction.write(id, key, Some(value))
    }

    /// Removes `key`; nothing happens when it is not there.
    ///
    /// # Errors
    /// [`WriteError::TooLarge`] as for [`TransactionDatabase::put`].
    pub fn delete(&self, key: impl AsRef<[u8]>) -> Result<(), WriteError> {
        let key = key.as_ref();
        check_size("a key", key.len(), KEY_BYTES_MAX)?;
        let Some(id) = self.id() else {
            return Ok(());
        };
        self.transaction
            .write(id, Bytes::copy_from_slice(key), None)
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

#[derive(Clone, Copy)]
enum Source<'a> {
    Snapshot(&'a View),
    Transaction(&'a Transaction),
}

/// An iterator over keys and values that fetches them in chunks of bounded size.
///
/// [`Scan::reverse`] and [`Scan::limit`] are said before the first item is taken. Writes that a
/// transaction makes while it scans may or may not be seen by that scan.
pub struct Scan<'a> {
    source: Source<'a>,
    database: Option<DatabaseId>,
    rest: Option<KeyRange>,
    direction: Direction,
    left: usize,
    fetched: VecDeque<(Bytes, Bytes)>,
}

impl<'a> Scan<'a> {
    fn new(source: Source<'a>, database: Option<DatabaseId>, range: KeyRange) -> Self {
        let rest = database.map(|_| range).filter(|range| !range.is_empty());
        let fetched = VecDeque::new();
        Self {
            source,
            database,
            rest,
            direction: Direction::Forward,
            left: usize::MAX,
            fetched,
        }
    }

    /// Yields the range from its last key to its first.
    #[must_use]
    pub fn reverse(mut self) -> Self {
        self.direction = Direction::Reverse;
        self
    }

    /// Yields `count` keys at most.
    #[must_use]
    pub fn limit(mut self, count: usize) -> Self {
        self.left = count;
        self
    }

    fn fetch(&mut self, database: DatabaseId, range: &KeyRange) -> Result<(), ReadError> {
        let chunk = match self.source {
            Source::Snapshot(view) => view.chunk(database, range, self.direction)?,
            Source::Transaction(transaction) => {
                transaction.chunk(database, range, self.direction)?
            }
        };
        self.fetched.extend(chunk.rows);
        self.rest = chunk.rest;
        Ok(())
    }
}

impl Iterator for Scan<'_> {
    type Item = Result<(Bytes, Bytes), ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        loop {
            if let Some(row) = self.fetched.pop_front() {
                return Some(Ok(row));
            }
            let range = self.rest.take()?;
            if let Err(error) = self.fetch(self.database?, &range) {
                return Some(Err(error));
            }
        }
    }
}

fn check_size(what: &'static str, actual: usize, max: usize) -> Result<(), WriteError> {
    if actual <= max {
        Ok(())
    } else {
        Err(WriteError::TooLarge { what, actual, max })
    }
}

fn check_name(name: &str) -> Result<Bytes, ReadError> {
    let refuse = |reason| {
        Err(ReadError::DatabaseName {
            name: name.to_owned(),
            reason,
        })
    };
    match name {
        "" => refuse("it is empty"),
        _ if name.len() > DATABASE_NAME_BYTES_MAX => refuse("it is longer than 255 bytes"),
        _ if name.chars().any(char::is_control) => refuse("it has a control character"),
        _ => Ok(Bytes::copy_from_slice(name.as_bytes())),
    }
}

fn parse_id(bytes: &[u8]) -> Result<DatabaseId, ReadError> {
    let id = bytes.try_into().map(u32::from_le_bytes).map(DatabaseId);
    id.map_err(|_| {
        let reason = "its entry in the catalog is damaged";
        ReadError::DatabaseName {
            name: String::new(),
            reason,
        }
    })
}
