//! Single operations on one database, and batches of writes, for uses that need no closure.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::env::ReplicatedEnvironment;
use crate::error::{ReadError, WriteError};
use crate::policy::ConsistencyPolicy;
use crate::token::{CommitToken, Committed};
use crate::txn::transaction::Transaction;

/// One database of an environment, for operations that are each one transaction. Clones are the
/// same database.
///
/// It is only a name, and free to make: the first `put` creates the database, and if the database
/// is dropped and created again, the handle refers to the new one.
///
/// ```
/// # use steadfast::{CompareAndSet, ConsistencyPolicy, ReplicatedEnvironment};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let group = ReplicatedEnvironment::in_memory_group(1)?;
/// # let env = &group[0];
/// let leases = env.database("leases");
/// match leases.put_if_absent("job-7", "worker-1")? {
///     CompareAndSet::Done(token) => println!("taken as of {token}"),
///     CompareAndSet::Refused { current, .. } => println!("{current:?} has it"),
/// }
/// let renewed = leases.compare_and_set("job-7", Some(b"worker-1"), "worker-1, again")?;
/// assert!(matches!(renewed, CompareAndSet::Done(_)));
/// assert!(leases.get(ConsistencyPolicy::Linearizable, "job-7")?.is_some());
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Database {
    environment: ReplicatedEnvironment,
    name: Arc<str>,
}

impl Database {
    pub(crate) fn new(environment: ReplicatedEnvironment, name: &str) -> Self {
        Self {
            environment,
            name: Arc::from(name),
        }
    }

    /// The name of the database.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The value of `key`, if any, in a state as fresh as `policy` requires.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn get(
        &self,
        policy: ConsistencyPolicy,
        key: impl AsRef<[u8]>,
    ) -> Result<Option<Bytes>, ReadError> {
        self.environment.block_on(self.get_async(policy, key))
    }

    /// As [`Database::get`].
    ///
    /// # Errors
    /// See [`ReadError`].
    pub async fn get_async(
        &self,
        policy: ConsistencyPolicy,
        key: impl AsRef<[u8]>,
    ) -> Result<Option<Bytes>, ReadError> {
        let read = self
            .environment
            .read_async(policy, |snapshot| snapshot.database(&self.name)?.get(key));
        read.await
    }

    /// Sets `key` to `value`.
    ///
    /// # Errors
    /// See [`WriteError`]; never `Conflict`.
    pub fn put(
        &self,
        key: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
    ) -> Result<CommitToken, WriteError> {
        self.environment.block_on(self.put_async(key, value))
    }

    /// As [`Database::put`].
    ///
    /// # Errors
    /// See [`WriteError`]; never `Conflict`.
    pub async fn put_async(
        &self,
        key: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
    ) -> Result<CommitToken, WriteError> {
        let put = |txn: &Transaction| txn.database(&self.name)?.put(&key, &value);
        Ok(self.environment.write_async(put).await?.token)
    }

    /// Sets `key` to `value`, and lets the key end when `ttl` has passed since the commit, unless it
    /// is put or deleted before: then the master deletes it. See
    /// [`TransactionDatabase::put_with_ttl`](crate::TransactionDatabase::put_with_ttl).
    ///
    /// # Errors
    /// [`WriteError::TimeToLive`] for a `ttl` under 1 ms or over [`TTL_MAX`](crate::limits::TTL_MAX),
    /// and see [`WriteError`]; never `Conflict`.
    pub fn put_with_ttl(
        &self,
        key: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
        ttl: Duration,
    ) -> Result<CommitToken, WriteError> {
        self.environment
            .block_on(self.put_with_ttl_async(key, value, ttl))
    }

    /// As [`Database::put_with_ttl`].
    ///
    /// # Errors
    /// As [`Database::put_with_ttl`].
    pub async fn put_with_ttl_async(
        &self,
        key: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
        ttl: Duration,
    ) -> Result<CommitToken, WriteError> {
        let put = |txn: &Transaction| txn.database(&self.name)?.put_with_ttl(&key, &value, ttl);
        Ok(self.environment.write_async(put).await?.token)
    }

    /// Removes `key`; does nothing if the key is absent.
    ///
    /// # Errors
    /// See [`WriteError`]; never `Conflict`.
    pub fn delete(&self, key: impl AsRef<[u8]>) -> Result<CommitToken, WriteError> {
        self.environment.block_on(self.delete_async(key))
    }

    /// As [`Database::delete`].
    ///
    /// # Errors
    /// See [`WriteError`]; never `Conflict`.
    pub async fn delete_async(&self, key: impl AsRef<[u8]>) -> Result<CommitToken, WriteError> {
        let delete = |txn: &Transaction| txn.database(&self.name)?.delete(&key);
        Ok(self.environment.write_async(delete).await?.token)
    }

    /// Adds `delta` to the counter at `key`. However many add to one counter, none of them waits for
    /// another or has to be run again: see [`TransactionDatabase::add`].
    ///
    /// # Errors
    /// See [`WriteError`]; never `Conflict`. [`WriteError::Counter`] when the value is no counter, or
    /// the sum is beyond an `i64`.
    ///
    /// [`TransactionDatabase::add`]: crate::TransactionDatabase::add
    pub fn add(&self, key: impl AsRef<[u8]>, delta: i64) -> Result<CommitToken, WriteError> {
        self.environment.block_on(self.add_async(key, delta))
    }

    /// As [`Database::add`].
    ///
    /// # Errors
    /// As [`Database::add`].
    pub async fn add_async(
        &self,
        key: impl AsRef<[u8]>,
        delta: i64,
    ) -> Result<CommitToken, WriteError> {
        let add = |txn: &Transaction| txn.database(&self.name)?.add(&key, delta);
        Ok(self.environment.write_async(add).await?.token)
    }

    /// Sets `key` to `value` if it has no value.
    ///
    /// # Errors
    /// See [`WriteError`]; never `Conflict`.
    pub fn put_if_absent(
        &self,
        key: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
    ) -> Result<CompareAndSet, WriteError> {
        self.compare_and_set(key, None, value)
    }

    /// As [`Database::put_if_absent`].
    ///
    /// # Errors
    /// See [`WriteError`]; never `Conflict`.
    pub async fn put_if_absent_async(
        &self,
        key: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
    ) -> Result<CompareAndSet, WriteError> {
        self.compare_and_set_async(key, None, value).await
    }

    /// Sets `key` to `value` if its current value is `expected`; `None` means no value.
    ///
    /// # Errors
    /// See [`WriteError`]; never `Conflict`. A mismatch is not an error.
    pub fn compare_and_set(
        &self,
        key: impl AsRef<[u8]>,
        expected: Option<&[u8]>,
        value: impl AsRef<[u8]>,
    ) -> Result<CompareAndSet, WriteError> {
        let set = self.compare_and_set_async(key, expected, value);
        self.environment.block_on(set)
    }

    /// As [`Database::compare_and_set`].
    ///
    /// # Errors
    /// See [`WriteError`]; never `Conflict`. A mismatch is not an error.
    pub async fn compare_and_set_async(
        &self,
        key: impl AsRef<[u8]>,
        expected: Option<&[u8]>,
        value: impl AsRef<[u8]>,
    ) -> Result<CompareAndSet, WriteError> {
        let set = |txn: &Transaction| -> Result<_, WriteError> {
            let database = txn.database(&self.name)?;
            let current = database.get(&key)?;
            if current.as_deref() == expected {
                database.put(&key, &value)?;
                return Ok(None);
            }
            // Committed without a write: only then is the value that it saw proven to have existed.
            Ok(Some(current))
        };
        let Committed { value, token } = self.environment.write_async(set).await?;
        Ok(match value {
            None => CompareAndSet::Done(token),
            Some(current) => CompareAndSet::Refused { current, token },
        })
    }
}

/// The result of a conditional write.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "it says whether the value was set"]
pub enum CompareAndSet {
    /// The value was set.
    Done(CommitToken),
    /// Nothing was written: the key's value was not the expected one.
    Refused {
        /// Its value, if it had one.
        current: Option<Bytes>,
        /// The commit as of which it had that value.
        token: CommitToken,
    },
}

/// Puts and deletes that are applied atomically. The last one on a key wins.
#[derive(Clone, Debug, Default)]
pub struct WriteBatch {
    operations: Vec<(Arc<str>, Bytes, Write)>,
}

/// One write of a [`WriteBatch`], see [`WriteBatch::iter`].
type BatchedWrite<'a> = (&'a str, &'a Bytes, Option<(&'a Bytes, Option<Duration>)>);

/// What a [`WriteBatch`] does to a key.
#[derive(Clone, Debug)]
enum Write {
    Put(Bytes),
    PutWithTtl(Bytes, Duration),
    Delete,
}

impl WriteBatch {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a put.
    pub fn put(
        &mut self,
        database: &str,
        key: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
    ) -> &mut Self {
        let value = Bytes::copy_from_slice(value.as_ref());
        self.add(database, key.as_ref(), Write::Put(value))
    }

    /// Adds a put of a key that ends when `ttl` has passed since the commit. A `ttl` that is none
    /// makes the batch fail, with [`WriteError::TimeToLive`].
    pub fn put_with_ttl(
        &mut self,
        database: &str,
        key: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
        ttl: Duration,
    ) -> &mut Self {
        let value = Bytes::copy_from_slice(value.as_ref());
        self.add(database, key.as_ref(), Write::PutWithTtl(value, ttl))
    }

    /// Adds a delete.
    pub fn delete(&mut self, database: &str, key: impl AsRef<[u8]>) -> &mut Self {
        self.add(database, key.as_ref(), Write::Delete)
    }

    /// How many puts and deletes it has.
    pub fn len(&self) -> usize {
        self.operations.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.operations.is_empty()
    }

    /// Its writes in their order: database, key, and the value with its time to live; `None` for a
    /// delete.
    pub(crate) fn iter(&self) -> impl Iterator<Item = BatchedWrite<'_>> {
        self.operations.iter().map(|(database, key, write)| {
            let value = match write {
                Write::Put(value) => Some((value, None)),
                Write::PutWithTtl(value, ttl) => Some((value, Some(*ttl))),
                Write::Delete => None,
            };
            (&**database, key, value)
        })
    }

    /// Applies the batch in the transaction.
    pub(crate) fn run(&self, txn: &Transaction) -> Result<(), WriteError> {
        for (database, key, write) in &self.operations {
            let (database, key) = (txn.database(database)?, key.clone());
            match write {
                Write::Put(value) => database.set(key, Some(value.clone()))?,
                Write::PutWithTtl(value, ttl) => database.set_with_ttl(key, value.clone(), *ttl)?,
                Write::Delete => database.set(key, None)?,
            }
        }
        Ok(())
    }

    fn add(&mut self, database: &str, key: &[u8], write: Write) -> &mut Self {
        let last = self.operations.last().map(|(last, ..)| last);
        let database = match last {
            Some(last) if **last == *database => Arc::clone(last),
            _ => Arc::from(database),
        };
        self.operations
            .push((database, Bytes::copy_from_slice(key), write));
        self
    }
}
