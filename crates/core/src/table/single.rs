//! Single operations on a table, each a transaction of its own.

use std::borrow::Borrow;

use super::codec::{Codec, Count};
use super::description::Table;
use super::error::TableError;
use super::key::{EncodeKey, TableKey};
use crate::env::ReplicatedEnvironment;
use crate::policy::ReadOptions;
use crate::token::{CommitToken, Committed};
use crate::txn::transaction::{Snapshot, Transaction};

/// A table in an environment, for operations that are each one transaction: see [`Table::on`]. A write
/// is run again after a conflict, as with [`ReplicatedEnvironment::write`].
pub struct TableOn<'a, K, V, C> {
    table: &'a Table<K, V, C>,
    environment: &'a ReplicatedEnvironment,
}

impl<K, V, C> Table<K, V, C> {
    /// The table in an environment, for single operations.
    pub fn on<'a>(&'a self, environment: &'a ReplicatedEnvironment) -> TableOn<'a, K, V, C> {
        TableOn {
            table: self,
            environment,
        }
    }
}

impl<K: TableKey, V, C: Codec<V>> TableOn<'_, K, V, C> {
    /// The value of `key`, if it has one, in a state as fresh as `policy` requires.
    ///
    /// # Errors
    /// As [`Rows::get`](crate::table::Rows::get); see [`ReadError`](crate::ReadError).
    pub fn get<Q: EncodeKey + ?Sized>(
        &self,
        policy: impl Into<ReadOptions>,
        key: &Q,
    ) -> Result<Option<V>, TableError>
    where
        K: Borrow<Q>,
    {
        self.environment.block_on(self.get_async(policy, key))
    }

    /// As [`TableOn::get`].
    ///
    /// # Errors
    /// As [`TableOn::get`].
    pub async fn get_async<Q: EncodeKey + ?Sized>(
        &self,
        policy: impl Into<ReadOptions>,
        key: &Q,
    ) -> Result<Option<V>, TableError>
    where
        K: Borrow<Q>,
    {
        let get = |snapshot: &Snapshot| self.table.of(snapshot)?.get(key);
        self.environment.read_async(policy, get).await
    }

    /// Sets the row `key` to `value`, in all indexes as well.
    ///
    /// # Errors
    /// As [`Rows::put`](crate::table::Rows::put); see [`WriteError`](crate::WriteError).
    pub fn put<Q: EncodeKey + ?Sized>(&self, key: &Q, value: &V) -> Result<CommitToken, TableError>
    where
        K: Borrow<Q>,
    {
        self.environment.block_on(self.put_async(key, value))
    }

    /// As [`TableOn::put`].
    ///
    /// # Errors
    /// As [`TableOn::put`].
    pub async fn put_async<Q: EncodeKey + ?Sized>(
        &self,
        key: &Q,
        value: &V,
    ) -> Result<CommitToken, TableError>
    where
        K: Borrow<Q>,
    {
        let put = |txn: &Transaction| self.table.of(txn)?.put(key, value);
        Ok(self.environment.write_async(put).await?.token)
    }

    /// Sets the row `key` to `value` if it has none. Returns whether it did, and the commit as of which
    /// that is so.
    ///
    /// # Errors
    /// As [`TableOn::put`].
    pub fn insert<Q: EncodeKey + ?Sized>(
        &self,
        key: &Q,
        value: &V,
    ) -> Result<Committed<bool>, TableError>
    where
        K: Borrow<Q>,
    {
        self.environment.block_on(self.insert_async(key, value))
    }

    /// As [`TableOn::insert`].
    ///
    /// # Errors
    /// As [`TableOn::put`].
    pub async fn insert_async<Q: EncodeKey + ?Sized>(
        &self,
        key: &Q,
        value: &V,
    ) -> Result<Committed<bool>, TableError>
    where
        K: Borrow<Q>,
    {
        let insert = |txn: &Transaction| self.table.of(txn)?.insert(key, value);
        self.environment.write_async(insert).await
    }

    /// Removes the row `key`, from all indexes as well; does nothing when it is not there.
    ///
    /// # Errors
    /// As [`TableOn::put`].
    pub fn delete<Q: EncodeKey + ?Sized>(&self, key: &Q) -> Result<CommitToken, TableError>
    where
        K: Borrow<Q>,
    {
        self.environment.block_on(self.delete_async(key))
    }

    /// As [`TableOn::delete`].
    ///
    /// # Errors
    /// As [`TableOn::put`].
    pub async fn delete_async<Q: EncodeKey + ?Sized>(
        &self,
        key: &Q,
    ) -> Result<CommitToken, TableError>
    where
        K: Borrow<Q>,
    {
        let delete = |txn: &Transaction| self.table.of(txn)?.delete(key);
        Ok(self.environment.write_async(delete).await?.token)
    }
}

impl<K: TableKey> TableOn<'_, K, i64, Count> {
    /// Adds `delta` to the counter `key`. In a table without indexes it conflicts with nothing.
    ///
    /// # Errors
    /// As [`Rows::add`](crate::table::Rows::add); see [`WriteError`](crate::WriteError).
    pub fn add<Q: EncodeKey + ?Sized>(&self, key: &Q, delta: i64) -> Result<CommitToken, TableError>
    where
        K: Borrow<Q>,
    {
        self.environment.block_on(self.add_async(key, delta))
    }

    /// As [`TableOn::add`].
    ///
    /// # Errors
    /// As [`TableOn::add`].
    pub async fn add_async<Q: EncodeKey + ?Sized>(
        &self,
        key: &Q,
        delta: i64,
    ) -> Result<CommitToken, TableError>
    where
        K: Borrow<Q>,
    {
        let add = |txn: &Transaction| self.table.of(txn)?.add(key, delta);
        Ok(self.environment.write_async(add).await?.token)
    }
}
