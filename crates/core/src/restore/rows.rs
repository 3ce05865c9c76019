//! A digest of rows that does not depend on their order, and from which a row can be taken again.
//!
//! It is the sum of the rows' hashes. A copy keeps it up to date while rows come in, change and go,
//! and holds what its engine gives back against it.

use bytes::Bytes;
use xxhash_rust::xxh3::Xxh3;

use crate::ids::DatabaseId;

/// See the module.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct RowDigest {
    pub(super) rows: u64,
    sum: u128,
}

impl RowDigest {
    pub(super) fn add(&mut self, database: DatabaseId, key: &[u8], value: &[u8]) {
        self.rows += 1;
        self.sum = self.sum.wrapping_add(hash(database, key, value));
    }

    /// Takes a row that was added.
    pub(super) fn take(&mut self, database: DatabaseId, key: &[u8], value: &[u8]) {
        self.rows = self.rows.wrapping_sub(1);
        self.sum = self.sum.wrapping_sub(hash(database, key, value));
    }

    pub(super) fn add_all(&mut self, other: Self) {
        self.rows += other.rows;
        self.sum = self.sum.wrapping_add(other.sum);
    }

    pub(super) fn to_bytes(self) -> Bytes {
        Bytes::copy_from_slice(&self.sum.to_le_bytes())
    }

    /// `None` when these are not 16 bytes.
    pub(super) fn from_parts(rows: u64, sum: &[u8]) -> Option<Self> {
        let sum = u128::from_le_bytes(sum.try_into().ok()?);
        Some(Self { rows, sum })
    }
}

/// xxh3-128 over the database's id, the length of the key, the key and the value.
fn hash(database: DatabaseId, key: &[u8], value: &[u8]) -> u128 {
    let mut hash = Xxh3::new();
    hash.update(&database.0.to_le_bytes());
    hash.update(&(key.len() as u64).to_le_bytes());
    hash.update(key);
    hash.update(value);
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
        // The parts of a row do not run into each other, and the database is a part of it.
        let digest = |database, key: &[u8], value: &[u8]| {
            let mut digest = RowDigest::default();
            digest.add(database, key, value);
            digest
        };
        assert_ne!(digest(one, b"ab", b"c"), digest(one, b"a", b"bc"));
        assert_ne!(digest(one, b"a", b"b"), digest(other, b"a", b"b"));
    }
}
