//! A digest of rows that does not depend on their order, and from which rows can be removed again.
//!
//! It is the sum of the rows' hashes. The writer of an engine updates it as rows are added, changed
//! and deleted, and compares what the engine gives back with it.

use std::fmt;

use bytes::Bytes;
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

use crate::ids::DatabaseId;

/// See the module.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct RowDigest {
    pub(crate) rows: u64,
    sum: u128,
}

impl RowDigest {
    pub(crate) fn add(&mut self, database: DatabaseId, key: &[u8], value: &[u8]) {
        self.rows = self.rows.wrapping_add(1);
        self.sum = self.sum.wrapping_add(hash(database, key, value));
    }

    /// Removes a row that was added.
    pub(crate) fn take(&mut self, database: DatabaseId, key: &[u8], value: &[u8]) {
        self.rows = self.rows.wrapping_sub(1);
        self.sum = self.sum.wrapping_sub(hash(database, key, value));
    }

    pub(crate) fn add_all(&mut self, other: Self) {
        self.rows = self.rows.wrapping_add(other.rows);
        self.sum = self.sum.wrapping_add(other.sum);
    }

    /// Accounts for a change of a row that had the value `old`.
    pub(crate) fn change(
        &mut self,
        database: DatabaseId,
        key: &[u8],
        old: Option<&Bytes>,
        new: Option<&Bytes>,
    ) {
        if let Some(old) = old {
            self.take(database, key, old);
        }
        if let Some(new) = new {
            self.add(database, key, new);
        }
    }

    pub(crate) fn sum(self) -> u128 {
        self.sum
    }

    pub(crate) fn to_bytes(self) -> Bytes {
        Bytes::copy_from_slice(&self.sum.to_le_bytes())
    }

    /// `None` unless `sum` has 16 bytes.
    pub(crate) fn from_parts(rows: u64, sum: &[u8]) -> Option<Self> {
        let sum = u128::from_le_bytes(sum.try_into().ok()?);
        Some(Self { rows, sum })
    }
}

/// Rows up to this size are assembled before hashing: half the cost of hashing the parts.
const ROW_BYTES_SHORT: usize = 1024;

impl fmt::Display for RowDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.sum)
    }
}

/// xxh3-128 over the database's id, the length of the key, the key and the value.
fn hash(database: DatabaseId, key: &[u8], value: &[u8]) -> u128 {
    let (database, length) = (database.0.to_le_bytes(), (key.len() as u64).to_le_bytes());
    let parts = [&database[..], &length, key, value];
    let bytes: usize = parts.iter().map(|part| part.len()).sum();
    if bytes <= ROW_BYTES_SHORT {
        let mut row = [0; ROW_BYTES_SHORT];
        let mut at = 0;
        for part in parts {
            row[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        }
        return xxh3_128(&row[..bytes]);
    }
    let mut hash = Xxh3::new();
    for part in parts {
        hash.update(part);
    }
    hash.digest128()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_of_what_is_there_and_not_of_how_it_came() {
        let (one, other) = (DatabaseId(1), DatabaseId(2));
        let (mut a, mut b) = (RowDigest::default(), RowDigest::default());
        a.add(one, b"k", b"v");
        a.add(other, b"k", b"v");
        b.add(other, b"k", b"v");
        b.add(one, b"x", b"y");
        b.add(one, b"k", b"v");
        assert_ne!(a, b);
        b.take(one, b"x", b"y");
        assert_eq!(a, b);
        assert_eq!(RowDigest::from_parts(a.rows, &a.to_bytes()), Some(a));
        // The parts of a row do not run into each other, and the database is one of them.
        let digest = |database, key: &[u8], value: &[u8]| {
            let mut digest = RowDigest::default();
            digest.add(database, key, value);
            digest
        };
        assert_ne!(digest(one, b"ab", b"c"), digest(one, b"a", b"bc"));
        assert_ne!(digest(one, b"a", b"b"), digest(other, b"a", b"b"));
    }

    #[test]
    fn short_and_long_rows_are_hashed_alike() {
        for length in [0, 1, ROW_BYTES_SHORT - 13, ROW_BYTES_SHORT - 12, 5_000] {
            let value = vec![7; length];
            let mut parts = Xxh3::new();
            parts.update(&9_u32.to_le_bytes());
            parts.update(&1_u64.to_le_bytes());
            parts.update(b"k");
            parts.update(&value);
            assert_eq!(hash(DatabaseId(9), b"k", &value), parts.digest128());
        }
    }
}
