//! Indexes: databases that lead from a key to the rows that have it.
//!
//! | index | key | value |
//! | --- | --- | --- |
//! | any | the key in the index, then the key of the row | nothing |
//! | unique | the key in the index | the key of the row |

use std::borrow::Borrow;
use std::collections::BTreeSet;
use std::marker::PhantomData;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;

use bytes::Bytes;

use super::codec::Codec;
use super::error::TableError;
use super::key::{EncodeKey, KeyError, PrefixOf, TableKey};
use super::rows::Rows;
use super::state::State;
use super::state::sealed::Stored;
use crate::engine::KeyRange;
use crate::txn::scan::Scan;

/// The keys of a row in an index, as bytes.
type KeysOf<K, V> = dyn Fn(&K, &V) -> BTreeSet<Vec<u8>> + Send + Sync;

/// The key of the row, as bytes, to which a row of an index leads, which may be a unique one.
type RowOf = fn(is_unique: bool, key: &[u8], value: &[u8]) -> Result<Bytes, KeyError>;

/// An index as its table knows it: the type of its keys is hidden.
pub(super) struct Declared<K, V> {
    pub(super) database: String,
    pub(super) is_unique: bool,
    pub(super) keys: Box<KeysOf<K, V>>,
    pub(super) row_of: RowOf,
}

impl<K, V> Declared<K, V> {
    /// The row of the index that leads from `key` to `row`.
    pub(super) fn entry(&self, key: &[u8], row: &[u8]) -> (Vec<u8>, Vec<u8>) {
        if self.is_unique {
            (key.to_vec(), row.to_vec())
        } else {
            ([key, row].concat(), Vec::new())
        }
    }

    /// # Errors
    /// [`TableError::NotUnique`] when another row has the key in a unique index, and those of a read.
    pub(super) fn check_free<'a>(
        &self,
        database: &impl Stored<'a>,
        key: &[u8],
        row: &[u8],
    ) -> Result<(), TableError> {
        if !self.is_unique {
            return Ok(());
        }
        match database.value(key)? {
            Some(holder) if holder != row => Err(TableError::NotUnique {
                index: self.database.clone(),
                key: Bytes::copy_from_slice(key),
                row: holder,
            }),
            _ => Ok(()),
        }
    }
}

/// An index of a table whose rows have keys of type `K`, with keys of type `I`: made by
/// [`Table::index`](super::Table::index), used with [`Rows::by`]. Clones are the same index.
#[derive(Debug)]
pub struct Index<K, I> {
    database: Arc<str>,
    is_unique: bool,
    types: PhantomData<fn() -> (K, I)>,
}

impl<K, I> Clone for Index<K, I> {
    fn clone(&self) -> Self {
        Self {
            database: Arc::clone(&self.database),
            ..*self
        }
    }
}

impl<K, I> Index<K, I> {
    pub(super) fn new(database: &str, is_unique: bool) -> Self {
        Self {
            database: database.into(),
            is_unique,
            types: PhantomData,
        }
    }

    /// The name of its database.
    pub fn database(&self) -> &str {
        &self.database
    }
}

impl<K: TableKey, I: TableKey> Index<K, I> {
    pub(super) fn row_of(is_unique: bool, key: &[u8], value: &[u8]) -> Result<Bytes, KeyError> {
        let mut rest = key;
        I::decode_key(&mut rest)?;
        let row = match (is_unique, rest.len(), value.len()) {
            (true, 0, _) => value,
            (false, _, 0) => rest,
            (true, bytes, _) | (false, _, bytes) => return Err(KeyError::Trailing { bytes }),
        };
        K::from_key_bytes(row)?;
        Ok(Bytes::copy_from_slice(row))
    }
}

/// The rows of a table by one of its indexes: see [`Rows::by`].
pub struct IndexRows<'a, K, V, C, I, S: State> {
    index: Index<K, I>,
    stored: S::Database<'a>,
    rows: Arc<Rows<'a, K, V, C, S>>,
}

impl<'a, K: TableKey, V, C: Codec<V>, I: TableKey, S: State> IndexRows<'a, K, V, C, I, S> {
    pub(super) fn open(
        index: &Index<K, I>,
        rows: Rows<'a, K, V, C, S>,
    ) -> Result<Self, TableError> {
        Ok(Self {
            stored: rows.state.open(&index.database)?,
            index: index.clone(),
            rows: Arc::new(rows),
        })
    }

    /// The row with this key in the index; in an index that is not unique, the first one.
    ///
    /// # Errors
    /// [`TableError::Dangling`], [`TableError::Key`], [`TableError::Value`], and the errors of a read.
    pub fn get<Q: EncodeKey + ?Sized>(&self, key: &Q) -> Result<Option<(K, V)>, TableError>
    where
        I: Borrow<Q>,
    {
        let mut rows = self.equal(key).limit(1);
        let row = rows.next().transpose()?;
        Ok(row.map(|(_, key, value)| (key, value)))
    }

    /// The rows with this key in the index, in the order of their own keys.
    pub fn equal<Q: EncodeKey + ?Sized>(&self, key: &Q) -> IndexIter<'a, K, V, C, I, S>
    where
        I: Borrow<Q>,
    {
        self.scan(KeyRange::prefix(&key.key_bytes()))
    }

    /// The rows whose keys in the index are in `range`, in the order of these and then of their own.
    pub fn range(&self, range: impl RangeBounds<I>) -> IndexIter<'a, K, V, C, I, S> {
        // No encoding begins another, so what begins with a key has this key, whatever follows.
        let of = |key: &I| KeyRange::prefix(&key.key_bytes());
        let start = match range.start_bound() {
            Bound::Included(key) => of(key).start,
            Bound::Excluded(key) => match of(key).end {
                Bound::Excluded(end) => Bound::Included(end),
                // No key is greater: the range is empty.
                _ => return self.scan(KeyRange::of(b"".as_slice()..b"".as_slice())),
            },
            Bound::Unbounded => Bound::Unbounded,
        };
        let end = match range.end_bound() {
            Bound::Included(key) => of(key).end,
            Bound::Excluded(key) => Bound::Excluded(key.key_bytes().into()),
            Bound::Unbounded => Bound::Unbounded,
        };
        self.scan(KeyRange { start, end })
    }

    /// The rows whose keys in the index begin with `prefix`, in the order of these.
    pub fn prefix<P: PrefixOf<I> + ?Sized>(&self, prefix: &P) -> IndexIter<'a, K, V, C, I, S> {
        let mut bytes = Vec::new();
        prefix.encode_prefix(&mut bytes);
        self.scan(KeyRange::prefix(&bytes))
    }

    /// All rows that are in the index, in its order.
    pub fn iter(&self) -> IndexIter<'a, K, V, C, I, S> {
        self.scan(KeyRange::all())
    }

    fn scan(&self, range: KeyRange) -> IndexIter<'a, K, V, C, I, S> {
        IndexIter {
            index: self.index.clone(),
            scan: self.stored.scan(range),
            rows: Arc::clone(&self.rows),
        }
    }
}

impl<'a, K: TableKey, V, C: Codec<V>, I: TableKey, S: State> IntoIterator
    for &IndexRows<'a, K, V, C, I, S>
{
    type Item = Result<(I, K, V), TableError>;
    type IntoIter = IndexIter<'a, K, V, C, I, S>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// Rows in the order of an index, each with its key in the index: an iterator that fetches the index
/// in chunks, as [`Scan`], and each row by itself.
pub struct IndexIter<'a, K, V, C, I, S: State> {
    index: Index<K, I>,
    scan: Scan<'a>,
    rows: Arc<Rows<'a, K, V, C, S>>,
}

impl<K: TableKey, V, C: Codec<V>, I: TableKey, S: State> IndexIter<'_, K, V, C, I, S> {
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

    fn row(&self, key: &Bytes, value: &Bytes) -> Result<(I, K, V), TableError> {
        let of_index = |source| TableError::Key {
            database: self.index.database.to_string(),
            key: key.clone(),
            source,
        };
        let row = Index::<K, I>::row_of(self.index.is_unique, key, value).map_err(of_index)?;
        let key = I::decode_key(&mut &key[..]).map_err(of_index)?;
        let value = self.rows.value(&row)?;
        let value = value.ok_or_else(|| TableError::Dangling {
            index: self.index.database.to_string(),
            row: row.clone(),
        })?;
        Ok((key, self.rows.table.decode_key(&row)?, value))
    }
}

impl<K: TableKey, V, C: Codec<V>, I: TableKey, S: State> Iterator for IndexIter<'_, K, V, C, I, S> {
    type Item = Result<(I, K, V), TableError>;

    fn next(&mut self) -> Option<Self::Item> {
        let entry = self.scan.next()?;
        let entry = entry.map_err(TableError::from);
        Some(entry.and_then(|(key, value)| self.row(&key, &value)))
    }
}
