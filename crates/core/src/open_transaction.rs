//! Transactions that are begun and committed by calls, without a function to run.

use std::ops::Deref;

use crate::env::ReplicatedEnvironment;
use crate::error::WriteError;
use crate::policy::Durability;
use crate::token::CommitToken;
use crate::txn::transaction::Transaction;

/// A transaction that is open until it is committed or aborted; dropping it aborts it.
///
/// It reads and writes as a [`Transaction`], which it derefs to: what takes a `&Transaction` works
/// in the function given to `write` as well as here. It may be kept across awaits and used from any
/// thread.
///
/// Nobody runs it again after a conflict but its owner, and what is written under contention is
/// better written with [`ReplicatedEnvironment::write`], which gets through in the end. It keeps its
/// node open, and its snapshot alive: what others write in the meantime stays in memory, up to
/// `window_bytes_max`, over which writers wait. So keep it short; it ends with
/// [`WriteError::TooOld`] when it is open for longer than `snapshot_age_max_ms`.
#[must_use = "a transaction that is dropped is aborted"]
pub struct OpenTransaction {
    environment: ReplicatedEnvironment,
    transaction: Transaction,
}

impl OpenTransaction {
    pub(crate) fn new(environment: ReplicatedEnvironment, transaction: Transaction) -> Self {
        Self {
            environment,
            transaction,
        }
    }

    /// Commits what the transaction did, as durably as the environment's configuration says.
    ///
    /// # Errors
    /// [`WriteError::Conflict`] when something that it read was changed by another one since it
    /// began; [`WriteError::NotCommitted`] or [`WriteError::NotMaster`] when the node has lost its
    /// mastership since; [`WriteError::TooOld`]. In every case but `OutcomeUnknown` and
    /// `InsufficientAcks` nothing was written.
    pub fn commit(self) -> Result<CommitToken, WriteError> {
        let environment = self.environment.clone();
        environment.block_on(self.commit_async())
    }

    /// As [`OpenTransaction::commit`].
    ///
    /// # Errors
    /// As [`OpenTransaction::commit`].
    pub async fn commit_async(self) -> Result<CommitToken, WriteError> {
        let lifecycle = self.environment.lifecycle();
        lifecycle.commit(None, self.transaction).await
    }

    /// Commits what the transaction did, as durably as `durability` says.
    ///
    /// # Errors
    /// As [`OpenTransaction::commit`].
    pub fn commit_with(self, durability: Durability) -> Result<CommitToken, WriteError> {
        let environment = self.environment.clone();
        environment.block_on(self.commit_with_async(durability))
    }

    /// As [`OpenTransaction::commit_with`].
    ///
    /// # Errors
    /// As [`OpenTransaction::commit`].
    pub async fn commit_with_async(
        self,
        durability: Durability,
    ) -> Result<CommitToken, WriteError> {
        let lifecycle = self.environment.lifecycle();
        lifecycle.commit(Some(durability), self.transaction).await
    }

    /// Ends the transaction. Nothing of it was done.
    pub fn abort(self) {}
}

impl Deref for OpenTransaction {
    type Target = Transaction;

    fn deref(&self) -> &Transaction {
        &self.transaction
    }
}
