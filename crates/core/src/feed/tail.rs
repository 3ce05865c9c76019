//! What is committed after a given transaction: the entries of the log, one by one, as far as they
//! are applied. Batches numbered in vain are skipped, as when applying.

use std::collections::VecDeque;
use std::iter;
use std::sync::Arc;

use crate::error::FeedError;
use crate::feed::names::Names;
use crate::feed::{Change, CommittedTransaction, FeedEvent, Filter};
use crate::ids::{LogPosition, Vlsn};
use crate::limits::PROGRESS_TRANSACTIONS;
use crate::log::{Entry, EntryKind, LogError};
use crate::node::Node;
use crate::planted::{self, Bug};
use crate::token::CommitToken;
use crate::txn::batch::{Batch, Operation};
use crate::txn::catalog::CATALOG;
use crate::txn::history::Numbered;

/// Payload bytes per read of the log, unless one entry is larger.
const READ_BYTES_MAX: usize = 1024 * 1024;

/// See the module.
pub(super) struct Tail {
    /// The last transaction delivered or left out.
    token: CommitToken,
    /// The last VLSN of the batches before `next`, not counting skipped ones.
    read: Vlsn,
    /// The entry to read next.
    next: LogPosition,
    names: Names,
    /// Transactions that have been read, oldest first.
    ready: VecDeque<CommittedTransaction>,
    /// Transactions left out since the last event.
    left_out: u64,
}

impl Tail {
    /// Everything from entry `next` on, before which there is no transaction.
    pub(super) fn from_first(token: CommitToken, next: LogPosition, names: Names) -> Self {
        Self {
            token,
            read: Vlsn(0),
            next,
            names,
            ready: VecDeque::new(),
            left_out: 0,
        }
    }

    /// What follows `token`, which is a transaction of `found`.
    pub(super) fn after(token: CommitToken, found: &Numbered, names: Names) -> Self {
        Self {
            read: Vlsn(found.batch.first().0 - 1),
            ..Self::from_first(token, found.id.position, names)
        }
    }

    /// The last transaction delivered or left out.
    pub(super) fn token(&self) -> CommitToken {
        self.token
    }

    /// The entry that must be applied before there can be more.
    pub(super) fn next_position(&self) -> LogPosition {
        self.next
    }

    /// The next event; `None` until another entry is applied.
    ///
    /// # Errors
    /// See [`FeedError`].
    pub(super) async fn next(
        &mut self,
        node: &Node,
        filter: &Filter,
    ) -> Result<Option<FeedEvent>, FeedError> {
        loop {
            while let Some(transaction) = self.ready.pop_front() {
                self.token = transaction.token;
                if filter.is_all() || !transaction.changes.is_empty() {
                    self.left_out = 0;
                    return Ok(Some(FeedEvent::Transaction(transaction)));
                }
                self.left_out += 1;
                if self.left_out >= PROGRESS_TRANSACTIONS {
                    self.left_out = 0;
                    let token = self.token;
                    return Ok(Some(FeedEvent::Progress { token }));
                }
            }
            let applied = *node.consensus.applied().borrow();
            let Some(applied) = applied.filter(|id| id.position >= self.next) else {
                return Ok(None);
            };
            let range = self.next..LogPosition(applied.position.0 + 1);
            let entries = match node.log.read(range, READ_BYTES_MAX).await {
                Err(LogError::Purged { .. }) => {
                    let oldest = node.history().oldest().await?;
                    return Err(FeedError::HistoryGone { oldest });
                }
                entries => entries.map_err(FeedError::Log)?,
            };
            for entry in entries {
                self.take(entry, filter)?;
            }
        }
    }

    fn take(&mut self, entry: Entry, filter: &Filter) -> Result<(), FeedError> {
        let (position, term) = (entry.position, entry.term);
        assert_eq!(position, self.next, "the log has no gaps");
        if entry.kind == EntryKind::Transactions {
            let batch = Batch::parse(entry.payload).map_err(|error| FeedError::Stopped {
                reason: error.to_string(),
            })?;
            // Any other batch was numbered in vain.
            if batch.first() == self.read.next() {
                let after = self.token.vlsn;
                let token = CommitToken { term, ..self.token };
                if planted::is(Bug::FeedSkipsTerm) && term != self.token.term && after > Vlsn(0) {
                    self.read = batch.last();
                    self.token = CommitToken {
                        vlsn: batch.last(),
                        ..token
                    };
                    self.next = LogPosition(position.0 + 1);
                    return Ok(());
                }
                self.take_batch(&batch, token, filter);
            }
        }
        self.next = LogPosition(position.0 + 1);
        Ok(())
    }

    /// Takes the transactions of a batch after `token`. Names are tracked through the whole batch:
    /// they start from a later time, so every change to them is repeated in its order.
    fn take_batch(&mut self, batch: &Batch, token: CommitToken, filter: &Filter) {
        let mut operations = Vec::new();
        batch.for_each(|vlsn, operation| operations.push((vlsn, operation)));
        let mut operations = operations.into_iter().peekable();
        for vlsn in (batch.first().0..=batch.last().0).map(Vlsn) {
            let own = iter::from_fn(|| operations.next_if(|(of, _)| *of == vlsn));
            let own = own.map(|(_, operation)| operation);
            let changes = changes(&mut self.names, filter, own);
            if vlsn > token.vlsn {
                self.ready.push_back(CommittedTransaction {
                    token: CommitToken { vlsn, ..token },
                    committed_at_ms: batch.committed_at_ms(),
                    changes,
                });
            }
        }
        self.read = batch.last();
    }
}

/// The changes of a transaction.
fn changes(
    names: &mut Names,
    filter: &Filter,
    operations: impl Iterator<Item = Operation>,
) -> Vec<Change> {
    let mut changes = Vec::new();
    // The catalog has the lowest id, so its operations come first.
    for operation in operations {
        if operation.database == CATALOG {
            let change = names.follow(&operation);
            changes.extend(change.filter(|change| filter.has_database(change.database())));
            continue;
        }
        let Some(database) = names.of(operation.database) else {
            continue;
        };
        if !filter.has_key(database, &operation.key) {
            continue;
        }
        let (database, key) = (Arc::clone(database), operation.key);
        changes.push(match operation.value {
            Some(value) => Change::Put {
                database,
                key,
                value,
            },
            None if operation.expires => Change::Expired { database, key },
            None => Change::Delete { database, key },
        });
    }
    changes
}
