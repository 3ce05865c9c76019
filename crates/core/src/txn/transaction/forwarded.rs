//! A transaction that ran on one node and is numbered by another: what it read and wrote, taken from
//! the one and given to the other.
//!
//! Its snapshot is a state that the group has committed, so it is the same on both. Where the other
//! node knows all that has changed since, it validates the transaction as one of its own.

use bytes::Bytes;

use super::Transaction;
use super::journal::{Journal, Lifetime, Row, check_size};
use crate::error::WriteError;
use crate::ids::{DatabaseId, Vlsn};
use crate::limits::{KEY_BYTES_MAX, VALUE_BYTES_MAX};
use crate::txn::catalog::Named;
use crate::txn::lifetimes::LIFETIMES;
use crate::txn::read_set::ReadSet;

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Forwarded {
    /// Its snapshot.
    pub(crate) at: Vlsn,
    pub(crate) reads: ReadSet,
    /// Each key once.
    pub(crate) writes: Vec<ForwardedWrite>,
    /// The database of the rows about times to live, if it has looked that up.
    pub(crate) lifetimes: Option<DatabaseId>,
}

/// A write of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ForwardedWrite {
    pub(crate) database: DatabaseId,
    pub(crate) key: Bytes,
    pub(crate) value: Option<Bytes>,
    /// How much it adds to a counter: then `value` is the sum at the snapshot.
    pub(crate) addition: Option<i128>,
    /// What it does to the key's time to live, in a database in which keys may have one.
    pub(crate) lifetime: Option<ForwardedLifetime>,
}

/// What a write does to the time to live of its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ForwardedLifetime {
    /// The new one; `None` ends it.
    pub(crate) ttl_ms: Option<u64>,
    /// The deadline that the key had in the snapshot.
    pub(crate) replaced_ms: Option<u64>,
}

impl Transaction {
    /// What it read and wrote.
    pub(crate) fn into_forwarded(self) -> Forwarded {
        let at = self.view.at();
        let journal = self.journal.into_inner();
        let mut journal = journal.unwrap_or_else(std::sync::PoisonError::into_inner);
        let lifetimes = journal.named(&Bytes::from_static(LIFETIMES));
        let writes = std::mem::take(&mut journal.writes).into_iter();
        let writes = writes.map(|(place, value)| ForwardedWrite {
            addition: journal.additions.get(&place).copied(),
            lifetime: journal.lifetimes.get(&place).map(|own| ForwardedLifetime {
                ttl_ms: own.ttl_ms,
                replaced_ms: own.replaced_ms,
            }),
            database: place.0,
            key: place.1,
            value,
        });
        let writes = writes.collect();
        Forwarded {
            at,
            reads: journal.reads,
            writes,
            lifetimes: lifetimes.map(|named| named.id),
        }
    }

    /// The same transaction on this node, of which this is an empty one at the same snapshot.
    ///
    /// # Errors
    /// [`WriteError::TooLarge`], [`WriteError::TooManyKeys`]: the limits of the nodes may differ.
    pub(crate) fn received(self, forwarded: Forwarded) -> Result<Self, WriteError> {
        assert_eq!(self.view.at(), forwarded.at, "of the same snapshot");
        let mut journal = Journal::default();
        for write in forwarded.writes {
            check_size("a key", write.key.len(), KEY_BYTES_MAX)?;
            let value_bytes = write.value.as_ref().map_or(0, Bytes::len);
            check_size("a value", value_bytes, VALUE_BYTES_MAX)?;
            let place = (write.database, write.key);
            if let Some(addition) = write.addition {
                journal.additions.insert(place.clone(), addition);
            }
            let row = Row {
                place,
                value: write.value,
                lifetime: write.lifetime.map(|own| Lifetime {
                    ttl_ms: own.ttl_ms,
                    replaced_ms: own.replaced_ms,
                }),
            };
            journal.write_row(row, self.bytes_max)?;
        }
        journal.reads = forwarded.reads;
        if let Some(id) = forwarded.lifetimes {
            let name = Bytes::from_static(LIFETIMES);
            journal.databases.insert(name, Some(Named::new(id)));
        }
        Ok(Self {
            journal: journal.into(),
            ..self
        })
    }
}
