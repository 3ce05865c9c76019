//! Additions to counters, which do not conflict with each other.
//!
//! An addition is a write whose value is the sum as of the snapshot, with a note of how much it adds.
//! The key is not noted as read. The sequencer makes the sum anew, under the lock under which it gives
//! the transaction its number, if the key has changed since the snapshot. Everybody else sees a put.
//!
//! What the transaction itself has seen must not change after it. A get, a put or a delete of the key
//! *settles* the addition, which makes it a plain put of a key that was read: from then on the
//! transaction conflicts with whoever changes the key. A scan needs nothing of this: its range has
//! been read, and where nothing in it has changed, the sum is the one that the scan saw.

use bytes::Bytes;

use super::journal::{Journal, Place, Row, check_size};
use super::{Transaction, TransactionDatabase};
use crate::error::{ReadError, WriteError};
use crate::limits::KEY_BYTES_MAX;
use crate::txn::counter;

impl Journal {
    /// Makes an addition to this key, if there is one, a put of what has been read.
    pub(super) fn settle(&mut self, place: &Place) -> Result<(), ReadError> {
        if self.additions.remove(place).is_some() {
            self.read(place.clone())?;
        }
        Ok(())
    }

    /// The additions, by the index of their key among the writes.
    pub(super) fn numbered_additions(&self) -> Vec<(usize, i128)> {
        if self.additions.is_empty() {
            return Vec::new();
        }
        let writes = self.writes.keys().enumerate();
        let additions = writes.filter_map(|(index, place)| {
            let delta = self.additions.get(place)?;
            Some((index, *delta))
        });
        additions.collect()
    }
}

impl TransactionDatabase<'_> {
    /// Adds `delta` to the counter at `key`, without reading it: additions to one counter do not
    /// conflict with each other, whoever makes them.
    ///
    /// A counter is a value of 8 bytes, an `i64` in little-endian order; a key without a value counts
    /// as 0, and has one afterwards. Everybody else sees a put of the sum. A `get` in the same
    /// transaction sees its own additions and is a read as any other: after it, and after a scan, a put
    /// or a delete of the key, the transaction conflicts with whoever changes the counter. The first
    /// write to a database creates it, which may conflict once. A time to live of the key goes on.
    ///
    /// # Errors
    /// [`WriteError::Counter`] when the value is no counter, or the sum is beyond an `i64`, in the
    /// transaction's snapshot. Both are checked again when the transaction commits, which then fails
    /// with the same error. Otherwise as [`TransactionDatabase::put`].
    pub fn add(&self, key: impl AsRef<[u8]>, delta: i64) -> Result<(), WriteError> {
        let key = Bytes::copy_from_slice(key.as_ref());
        self.transaction.add(&self.name, key, delta)
    }
}

impl Transaction {
    /// Adds to a key of a database that [`Transaction::find`] has looked up.
    fn add(&self, name: &Bytes, key: Bytes, delta: i64) -> Result<(), WriteError> {
        check_size("a key", key.len(), KEY_BYTES_MAX)?;
        let known = self.lock().named(name).map(|named| named.id);
        let next = match known {
            Some(_) => None,
            None => Some(self.next_id()?),
        };
        let found = known.map_or(Ok(None), |id| self.view.get(id, &key));
        let found = found.map_err(ReadError::from)?;
        let mut journal = self.lock();
        let Some(named) = journal.named_for_write(name, next, self.bytes_max)? else {
            return Ok(());
        };
        let id = named.id;
        // Another thread of this transaction may have given the name to another, empty database.
        let found = found.filter(|_| known == Some(id));
        journal.add((id, key), found, delta.into(), self.bytes_max)
    }
}

impl Journal {
    /// Adds to a key whose value, before this transaction, is `found`.
    fn add(
        &mut self,
        place: Place,
        found: Option<Bytes>,
        delta: i128,
        bytes_max: usize,
    ) -> Result<(), WriteError> {
        let own = self.writes.get(&place);
        let (base, earlier) = match own {
            Some(own) => (own.clone(), self.additions.get(&place).copied()),
            None => (found, Some(0)),
        };
        let sum = match counter::sum(&place.1, base.as_ref(), delta) {
            Ok(sum) => sum,
            Err(error) => {
                // Whoever is told has learned something about the value.
                if earlier.is_some() {
                    self.additions.remove(&place);
                    self.read(place)?;
                }
                return Err(WriteError::Counter(error));
            }
        };
        let row = Row {
            place: place.clone(),
            value: Some(sum),
            // What this transaction has given it stays.
            lifetime: self.lifetimes.get(&place).copied(),
        };
        self.write_row(row, bytes_max)?;
        if let Some(earlier) = earlier {
            self.additions.insert(place, earlier + delta);
        }
        Ok(())
    }
}
