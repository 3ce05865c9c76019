//! The rows of a table in a transaction or a snapshot.

use std::borrow::Borrow;
use std::collections::BTreeSet;
use std::ops::{Bound, RangeBounds};

use bytes::Bytes;

use super::codec::{Codec, Count};
use super::description::Table;
use super::error::TableError;
use super::index::{Index, IndexRows};
use super::key::{EncodeKey, PrefixOf, TableKey};
use super::state::State;
use super::state::sealed::Stored;
use crate::engine::KeyRange;
use crate::error::WriteError;
use crate::txn::counter;
use crate::txn::scan::Scan;
use crate::txn::transaction::{Transaction, TransactionDatabase};

/// A table in a transaction or a snapshot: see [`Table::of`].
///
/// Threads that share a transaction must not write one row at the same time.
pub struct Rows<'a, K, V, C, S: State> {
    pub(super) table: &'a Table<K, V, C>,
    pub(super) state: &'a S,
    pub(super) stored: S::Database<'a>,
}

impl<'a, K, V, C, S: State> Rows<'a, K, V, C, S> {
    pub(super) fn open(table: &'a Table<K, V, C>, state: &'a S) -> Result<Self, TableError> {
        let stored = state.open(&table.database)?;
        Ok(Self {
            table,
            state,
            stored,
        })
    }
}

impl<'a, K: TableKey, V, C: Codec<V>, S: State> Rows<'a, K, V, C, S> {
    /// The value of `key`, if it has one.
    ///
    /// # Errors
    /// [`TableError::Value`], and the errors of a read.
    pub fn get<Q: EncodeKey + ?Sized>(&self, key: &Q) -> Result<Option<V>, TableError>
    where
        K: Borrow<Q>,
    {
        self.value(&key.key_bytes())
    }

    /// Whether `key` has a value. The value is not decoded.
    ///
    /// # Errors
    /// The errors of a read.
    pub fn contains<Q: EncodeKey + ?Sized>(&self, key: &Q) -> Result<bool, TableError>
    where
        K: Borrow<Q>,
    {
        Ok(self.stored.value(&key.key_bytes())?.is_some())
    }

    /// The rows whose keys are in `range`, in order. See [`RowsIter`] to reverse and limit it.
    pub fn range(&self, range: impl RangeBounds<K>) -> RowsIter<'a, K, V, C> {
        let bytes = |bound: Bound<&K>| bound.map(|key| Bytes::from(key.key_bytes()));
        self.scan(KeyRange {
            start: bytes(range.start_bound()),
            end: bytes(range.end_bound()),
        })
    }

    /// The rows whose keys begin with `prefix`, in order: `prefix("ab")` of texts, `prefix(&(7,))` of
    /// tuples.
    pub fn prefix<P: PrefixOf<K> + ?Sized>(&self, prefix: &P) -> RowsIter<'a, K, V, C> {
        let mut bytes = Vec::new();
        prefix.encode_prefix(&mut bytes);
        self.scan(KeyRange::prefix(&bytes))
    }

    /// All rows, in order.
    pub fn iter(&self) -> RowsIter<'a, K, V, C> {
        self.scan(KeyRange::all())
    }

    /// The rows by an index of the table.
    ///
    /// # Errors
    /// The errors of a read.
    ///
    /// # Panics
    /// When the index was declared on another table.
    pub fn by<I: TableKey>(
        &self,
        index: &Index<K, I>,
    ) -> Result<IndexRows<'a, K, V, C, I, S>, TableError> {
        let mut declared = self.table.indexes.iter();
        assert!(
            declared.any(|declared| declared.database == index.database()),
            "{} is no index of {}",
            index.database(),
            self.table.database
        );
        IndexRows::open(index, Rows::open(self.table, self.state)?)
    }

    fn scan(&self, range: KeyRange) -> RowsIter<'a, K, V, C> {
        RowsIter {
            table: self.table,
            scan: self.stored.scan(range),
        }
    }

    /// The value of a key in bytes.
    pub(super) fn value(&self, key: &[u8]) -> Result<Option<V>, TableError> {
        let value = self.stored.value(key)?;
        value
            .map(|value| self.table.decode(key, &value))
            .transpose()
    }
}

impl<'a, K: TableKey, V, C: Codec<V>, S: State> IntoIterator for &Rows<'a, K, V, C, S> {
    type Item = Result<(K, V), TableError>;
    type IntoIter = RowsIter<'a, K, V, C>;

    fn into_iter(self) -> RowsIter<'a, K, V, C> {
        self.iter()
    }
}

/// A change to an index: in which database, of which key, to which value.
type IndexChange<'a> = (TransactionDatabase<'a>, Vec<u8>, Option<Vec<u8>>);

impl<K: TableKey, V, C: Codec<V>> Rows<'_, K, V, C, Transaction> {
    /// Sets the row `key` to `value`, in all indexes as well.
    ///
    /// In a table with indexes this reads the old row, and in unique ones whether the new keys are
    /// free. In a table without indexes it reads nothing and never conflicts.
    ///
    /// # Errors
    /// [`TableError::NotUnique`] and [`TableError::Encode`], after which nothing of this is written and
    /// the transaction may go on. After any other error give it up: [`TableError::Value`] for the old
    /// row, and the errors of a read and of [`TransactionDatabase::put`].
    pub fn put<Q: EncodeKey + ?Sized>(&self, key: &Q, value: &V) -> Result<(), TableError>
    where
        K: Borrow<Q>,
    {
        self.set(&key.key_bytes(), Some(value))
    }

    /// Sets the row `key` to `value` if it has none. Returns whether it did.
    ///
    /// # Errors
    /// As [`Rows::put`].
    pub fn insert<Q: EncodeKey + ?Sized>(&self, key: &Q, value: &V) -> Result<bool, TableError>
    where
        K: Borrow<Q>,
    {
        let key = key.key_bytes();
        if self.stored.value(&key)?.is_some() {
            return Ok(false);
        }
        self.set(&key, Some(value))?;
        Ok(true)
    }

    /// Removes the row `key`, from all indexes as well; does nothing when it is not there. Reads like
    /// [`Rows::put`].
    ///
    /// # Errors
    /// As [`Rows::put`].
    pub fn delete<Q: EncodeKey + ?Sized>(&self, key: &Q) -> Result<(), TableError>
    where
        K: Borrow<Q>,
    {
        self.set(&key.key_bytes(), None)
    }

    fn set(&self, key: &[u8], value: Option<&V>) -> Result<(), TableError> {
        let bytes = value.map(|value| self.table.encode(value)).transpose()?;
        let changes = self.index_changes(key, value)?;
        match bytes {
            Some(bytes) => self.stored.put(key, bytes)?,
            None => self.stored.delete(key)?,
        }
        for (database, key, value) in changes {
            match value {
                Some(value) => database.put(key, value)?,
                None => database.delete(key)?,
            }
        }
        Ok(())
    }

    /// What changes in the indexes when the row is set to `value`. Writes nothing.
    fn index_changes(
        &self,
        key: &[u8],
        value: Option<&V>,
    ) -> Result<Vec<IndexChange<'_>>, TableError> {
        let mut changes = Vec::new();
        if self.table.indexes.is_empty() {
            return Ok(changes);
        }
        let old = self.value(key)?;
        let row = self.table.decode_key(key)?;
        for index in &self.table.indexes {
            let keys = |value: Option<&V>| {
                let keys = value.map(|value| (index.keys)(&row, value));
                keys.unwrap_or_default()
            };
            let (before, after): (BTreeSet<_>, BTreeSet<_>) = (keys(old.as_ref()), keys(value));
            for gone in before.difference(&after) {
                let database = self.state.database(&index.database)?;
                changes.push((database, index.entry(gone, key).0, None));
            }
            for new in after.difference(&before) {
                let database = self.state.database(&index.database)?;
                index.check_free(&database, new, key)?;
                let (entry, value) = index.entry(new, key);
                changes.push((database, entry, Some(value)));
            }
        }
        Ok(changes)
    }
}

impl<K: TableKey> Rows<'_, K, i64, Count, Transaction> {
    /// Adds `delta` to the counter `key`, which is 0 when it has no value. Additions to one counter do
    /// not conflict with each other: see [`TransactionDatabase::add`]. In a table with indexes it is a
    /// `get` and a `put`, which do.
    ///
    /// # Errors
    /// `WriteError::Counter` as [`TransactionDatabase::add`], and the errors of [`Rows::put`].
    pub fn add<Q: EncodeKey + ?Sized>(&self, key: &Q, delta: i64) -> Result<(), TableError>
    where
        K: Borrow<Q>,
    {
        let key = key.key_bytes();
        if self.table.indexes.is_empty() {
            return Ok(self.stored.add(key, delta)?);
        }
        let (value, key) = (self.stored.get(&key)?, Bytes::from(key));
        let sum = counter::sum(&key, value.as_ref(), delta.into()).map_err(WriteError::Counter)?;
        let sum = self.table.decode(&key, &sum)?;
        self.set(&key, Some(&sum))
    }
}

/// The rows of a range: an iterator that fetches them in chunks, as [`Scan`].
///
/// After a row that cannot be decoded, which is an error, it goes on.
pub struct RowsIter<'a, K, V, C> {
    table: &'a Table<K, V, C>,
    scan: Scan<'a>,
}

impl<K, V, C> RowsIter<'_, K, V, C> {
    /// Yields the range from its last row to its first. Call it before taking the first row.
    #[must_use]
    pub fn reverse(mut self) -> Self {
        self.scan = self.scan.reverse();
        self
    }

    /// Yields at most `count` rows. Call it before taking the first row.
    #[must_use]
    pub fn limit(mut self, count: usize) -> Self {
        self.scan = self.scan.limit(count);
        self
    }
}

impl<K: TableKey, V, C: Codec<V>> Iterator for RowsIter<'_, K, V, C> {
    type Item = Result<(K, V), TableError>;

    fn next(&mut self) -> Option<Self::Item> {
        let row = self.scan.next()?;
        let row = row.map_err(TableError::from);
        Some(row.and_then(|(key, value)| self.table.decode_row(&key, &value)))
    }
}

impl<K: TableKey, V, C: Codec<V>> Table<K, V, C> {
    /// The row that has these bytes, from the change feed for instance.
    ///
    /// # Errors
    /// [`TableError::Key`] and [`TableError::Value`].
    pub fn decode_row(&self, key: &[u8], value: &[u8]) -> Result<(K, V), TableError> {
        Ok((self.decode_key(key)?, self.decode(key, value)?))
    }

    pub(super) fn decode_key(&self, key: &[u8]) -> Result<K, TableError> {
        K::from_key_bytes(key).map_err(|source| TableError::Key {
            database: self.database.to_string(),
            key: Bytes::copy_from_slice(key),
            source,
        })
    }

    pub(super) fn decode(&self, key: &[u8], value: &[u8]) -> Result<V, TableError> {
        let decoded = self.codec.decode(value);
        decoded.map_err(|source| TableError::Value {
            database: self.database.to_string(),
            key: Bytes::copy_from_slice(key),
            source,
        })
    }

    fn encode(&self, value: &V) -> Result<Vec<u8>, TableError> {
        let encoded = self.codec.encode(value);
        encoded.map_err(|source| TableError::Encode {
            database: self.database.to_string(),
            source,
        })
    }
}
