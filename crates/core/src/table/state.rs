//! What a table can be opened in: transactions and snapshots.

use bytes::Bytes;

use super::error::TableError;
use crate::engine::KeyRange;
use crate::open_transaction::OpenTransaction;
use crate::txn::scan::Scan;
use crate::txn::transaction::{Snapshot, SnapshotDatabase, Transaction, TransactionDatabase};

/// What a table is opened in: a [`Transaction`] or a [`Snapshot`]. Not for other types.
pub trait State: sealed::Open {}

impl State for Transaction {}
impl State for Snapshot {}

/// What leads to a [`State`]: itself, or an [`OpenTransaction`] to its transaction.
pub trait Source {
    /// The transaction or snapshot.
    type State: State;

    /// The transaction or snapshot.
    fn state(&self) -> &Self::State;
}

impl<S: State> Source for S {
    type State = S;

    fn state(&self) -> &S {
        self
    }
}

impl Source for OpenTransaction {
    type State = Transaction;

    fn state(&self) -> &Transaction {
        self
    }
}

pub(super) mod sealed {
    use bytes::Bytes;

    use crate::engine::KeyRange;
    use crate::table::error::TableError;
    use crate::txn::scan::Scan;

    /// Databases of one kind.
    pub trait Open {
        /// One of them.
        type Database<'a>: Stored<'a>
        where
            Self: 'a;

        /// The database of this name.
        fn open<'a>(&'a self, name: &str) -> Result<Self::Database<'a>, TableError>;
    }

    /// A database, to read.
    pub trait Stored<'a> {
        /// The value of a key.
        fn value(&self, key: &[u8]) -> Result<Option<Bytes>, TableError>;

        /// The keys of a range, with their values.
        fn scan(&self, range: KeyRange) -> Scan<'a>;
    }
}

impl sealed::Open for Transaction {
    type Database<'a> = TransactionDatabase<'a>;

    fn open<'a>(&'a self, name: &str) -> Result<TransactionDatabase<'a>, TableError> {
        Ok(self.database(name)?)
    }
}

impl<'a> sealed::Stored<'a> for TransactionDatabase<'a> {
    fn value(&self, key: &[u8]) -> Result<Option<Bytes>, TableError> {
        Ok(self.get(key)?)
    }

    fn scan(&self, range: KeyRange) -> Scan<'a> {
        self.range((range.start, range.end))
    }
}

impl sealed::Open for Snapshot {
    type Database<'a> = SnapshotDatabase<'a>;

    fn open<'a>(&'a self, name: &str) -> Result<SnapshotDatabase<'a>, TableError> {
        Ok(self.database(name)?)
    }
}

impl<'a> sealed::Stored<'a> for SnapshotDatabase<'a> {
    fn value(&self, key: &[u8]) -> Result<Option<Bytes>, TableError> {
        Ok(self.get(key)?)
    }

    fn scan(&self, range: KeyRange) -> Scan<'a> {
        self.range((range.start, range.end))
    }
}
