//! Transactions that are begun and committed by calls, without a closure.

use std::ops::Deref;

use crate::env::ReplicatedEnvironment;
use crate::error::WriteError;
use crate::policy::Durability;
use crate::token::CommitToken;
use crate::txn::transaction::Transaction;

/// A transaction that is open until it is committed or aborted; dropping it aborts it.
///
/// It reads and writes like a [`Transaction`], to which it derefs: code that takes a `&Transaction`
/// works both in the closure given to `write` and here. It may be held across awaits and used from
/// any thread.
///
/// After a conflict only its owner can run it again; under contention prefer
/// [`ReplicatedEnvironment::write`], which gets through in the end. It keeps its node open and its
/// snapshot alive: what others write meanwhile stays in memory, up to `window_bytes_max`, beyond
/// which writers wait. So keep it short; it ends with [`WriteError::TooOld`] once it has been open
/// for longer than `snapshot_age_max_ms`.
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

    /// Commits the transaction with the durability that the environment is configured with.
    ///
    /// # Errors
    /// [`WriteError::Conflict`] when another transaction has changed something that this one read;
    /// [`WriteError::NotCommitted`] or [`WriteError::NotMaster`] when the node has lost mastership
    /// since it began; [`WriteError::TooOld`]. Nothing was written, except possibly with
    /// `OutcomeUnknown` and `InsufficientAcks`.
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
        let commit = lifecycle.commit(None, self.transaction);
        self.environment.ground().run(commit).await
    }

    /// Commits the transaction with the given durability.
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
        let commit = lifecycle.commit(Some(durability), self.transaction);
        self.environment.ground().run(commit).await
    }

    /// Aborts the transaction. None of it is done.
    pub fn abort(self) {}
}

impl Deref for OpenTransaction {
    type Target = Transaction;

    fn deref(&self) -> &Transaction {
        &self.transaction
    }
}
