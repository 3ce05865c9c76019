//! The calls of an application, passed on to the node at work.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::{Instrument, Span};

use super::{Lifecycle, NotRunning};
use crate::compare::digest;
use crate::error::{ReadError, WriteError};
use crate::ids::Vlsn;
use crate::listener::Role;
use crate::node::phase::Phase;
use crate::node::write::Failure;
use crate::node::{Node, outcome, read, write};
use crate::policy::{ConsistencyPolicy, Durability, ReadOptions};
use crate::spans;
use crate::token::{CommitToken, Committed, TokenOutcome};
use crate::txn::transaction::{Snapshot, Transaction};

impl Lifecycle {
    pub(crate) async fn write<T, E: From<WriteError>>(
        &self,
        durability: Option<Durability>,
        transaction: impl FnMut(&Transaction) -> Result<T, E>,
    ) -> Result<Committed<T>, E> {
        let promise = self.promise(durability);
        let span = spans::commit(&self.config.node);
        let written = self.write_anywhere(promise, transaction);
        let written = written.instrument(span.clone()).await;
        note(&span, written.as_ref().ok().map(|written| written.token));
        written.map_err(|failure| match failure {
            Failure::Returned(error) => error,
            Failure::Write(error) => self.why_not_written(error).into(),
        })
    }

    /// As the master alone: for what only a master writes.
    pub(super) async fn write_as_master<T>(
        &self,
        transaction: impl FnMut(&Transaction) -> Result<T, WriteError>,
    ) -> Result<Committed<T>, WriteError> {
        let node = self.writable()?;
        let _writing = self.shutdown.write()?;
        let (durability, timeout) = self.promise(Some(Durability::MAJORITY));
        let span = spans::commit(&self.config.node);
        let written = write::write(&node, durability, timeout, transaction);
        let written = written.instrument(span.clone()).await;
        note(&span, written.as_ref().ok().map(|written| written.token));
        written.map_err(|failure| self.why_not_written(failure.into()))
    }

    /// Here if this node is the master, or else there.
    async fn write_anywhere<T, E>(
        &self,
        promise: (Durability, Duration),
        mut transaction: impl FnMut(&Transaction) -> Result<T, E>,
    ) -> Result<Committed<T>, Failure<E>> {
        let (durability, timeout) = promise;
        let mut until = None;
        loop {
            let node = self.writable()?;
            let _writing = self.shutdown.write()?;
            let written = write::write(&node, durability, timeout, &mut transaction).await;
            let Err(Failure::Write(WriteError::NotMaster { .. })) = written else {
                return written;
            };
            let Some(for_at_most) = self.forwards_for(&node) else {
                return written;
            };
            let until = *until.get_or_insert_with(|| Instant::now() + for_at_most);
            let forwarded = self.forward(until, promise, &mut transaction).await?;
            if let Some(written) = forwarded {
                return Ok(written);
            }
        }
    }

    pub(crate) async fn begin_transaction(&self) -> Result<Transaction, WriteError> {
        let node = self.writable()?;
        let _writing = self.shutdown.write()?;
        let begun = match write::begin(&node).await {
            Err(WriteError::NotMaster { .. }) if self.forwards_for(&node).is_some() => {
                self.begin_elsewhere(&node).await
            }
            begun => begun,
        };
        begun.map_err(|error| self.why_not_written(error))
    }

    /// A transaction of this node as master.
    pub(super) async fn begin_as_master(&self) -> Result<Transaction, WriteError> {
        let node = self.writable()?;
        let _writing = self.shutdown.write()?;
        let begun = write::begin(&node).await;
        begun.map_err(|error| self.why_not_written(error))
    }

    pub(crate) async fn commit(
        &self,
        durability: Option<Durability>,
        transaction: Transaction,
    ) -> Result<CommitToken, WriteError> {
        let node = self.writable()?;
        let _writing = self.shutdown.write()?;
        let promise = self.promise(durability);
        let span = spans::commit(&self.config.node);
        let committed = async {
            if transaction.is_for_master() {
                return self.commit_elsewhere(&node, promise, transaction).await;
            }
            let (durability, timeout) = promise;
            write::commit(&node, durability, timeout, transaction).await
        };
        let committed = committed.instrument(span.clone()).await;
        note(&span, committed.as_ref().ok().copied());
        committed.map_err(|error| self.why_not_written(error))
    }

    /// A span of a read on this node.
    pub(crate) fn read_span(&self, policy: ConsistencyPolicy) -> Span {
        spans::read(&self.config.node, policy)
    }

    /// The given durability, or else the environment's, and its timeout.
    fn promise(&self, durability: Option<Durability>) -> (Durability, Duration) {
        let durability = durability.unwrap_or(self.config.durability);
        let timeout = self.config.tuning.commit_timeout;
        (durability, durability.timeout.unwrap_or(timeout))
    }

    /// `error`, or the underlying reason if it only says that the node does not write.
    fn why_not_written(&self, error: WriteError) -> WriteError {
        if !matches!(error, WriteError::NotMaster { .. } | WriteError::Closed) {
            return error;
        }
        match (self.running(), error) {
            (Err(NotRunning::Stopped(reason)), _) => WriteError::Stopped { reason },
            (Err(NotRunning::Closed), _) => WriteError::Closed,
            (Err(NotRunning::Restoring), _) => WriteError::Restoring,
            (_, WriteError::NotMaster { .. }) => {
                let state = self.around.role.borrow();
                let master = state.master.clone();
                let master = master.filter(|_| state.role != Role::Master);
                WriteError::NotMaster { master }
            }
            (_, error) => error,
        }
    }

    /// The node at work, if it has data.
    ///
    /// # Errors
    /// As [`Lifecycle::running`]; [`ReadError::NoData`] on an arbiter.
    pub(super) fn with_data(&self) -> Result<Arc<Node>, ReadError> {
        let node = self.running()?;
        let members = self.around.members.borrow();
        let own = members.get(&node.identity.node_id);
        if own.is_some_and(|own| !own.node_type.has_data()) {
            return Err(ReadError::NoData);
        }
        Ok(node)
    }

    /// A snapshot as fresh as `options` require.
    pub(crate) async fn snapshot(&self, options: ReadOptions) -> Result<Snapshot, ReadError> {
        let node = self.with_data()?;
        if options.policy != ConsistencyPolicy::Eventual {
            let timeout = options.timeout.unwrap_or(self.config.tuning.read_timeout);
            let wait = read::wait(&node, self.role(), options.policy, timeout);
            self.unless_closed(wait).await?;
        }
        Ok(node.snapshot())
    }

    /// The result of read-only work, or [`ReadError::Closed`] if the node closes first.
    async fn unless_closed<T>(
        &self,
        work: impl Future<Output = Result<T, ReadError>>,
    ) -> Result<T, ReadError> {
        let mut phase = self.phase.subscribe();
        tokio::select! {
            biased;
            // The sender is part of `self`.
            _ = phase.wait_for(Phase::is_closing) => Err(ReadError::Closed),
            done = work => done,
        }
    }

    /// A snapshot of what this node has, however old.
    pub(crate) fn snapshot_at_hand(&self) -> Result<Snapshot, ReadError> {
        Ok(self.with_data()?.snapshot())
    }

    /// The outcome of a token's write.
    pub(crate) async fn outcome(&self, token: CommitToken) -> Result<TokenOutcome, ReadError> {
        let node = self.with_data()?;
        let timeout = self.config.tuning.read_timeout;
        let outcome = outcome::outcome(&node, self.role(), token, timeout);
        self.unless_closed(outcome).await
    }

    pub(crate) fn digest(&self) -> Result<(Vlsn, u128), ReadError> {
        let node = self.with_data()?;
        digest::digest(&node.snapshot())
    }
}

/// Notes in a commit's span what was committed.
fn note(span: &Span, committed: Option<CommitToken>) {
    if let Some(token) = committed {
        span.record("vlsn", token.vlsn.0);
    }
}
