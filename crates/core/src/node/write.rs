//! One write from closure to token: run, submit, wait; again on conflict, alone after several.

pub(crate) mod elsewhere;
mod nested;
mod slow;
mod turns;
mod unwritten;

use std::sync::Arc;
use std::time::Duration;

use crate::engine::FREE_DISK_BYTES_MIN;
use crate::error::WriteError;
use crate::ids::Vlsn;
use crate::node::Node;
use crate::node::ack::{Numbered, acknowledge, check_replicas};
use crate::planted::{self, Bug};
use crate::policy::Durability;
use crate::token::{CommitToken, Committed};
use crate::txn::sequencer::SubmitError;
use crate::txn::transaction::Transaction;
use crate::txn::view::View;

pub(crate) use slow::SlowWrites;
pub(crate) use turns::Turns;
use turns::{Alone, HOLD_OFF_MAX, Turn};

/// Conflicts after which a transaction runs with all others held off, so that it gets through.
const CONFLICTS_MAX: u32 = 8;

/// How often that is tried. Once is enough for a closure that ends within [`HOLD_OFF_MAX`].
const ALONE_MAX: u32 = 3;

/// What a transaction takes of the queue in addition to the bytes it writes.
const TRANSACTION_OVERHEAD_BYTES: usize = 256;

/// Why a function's transaction did not commit.
pub(crate) enum Failure<E> {
    /// The function returned this.
    Returned(E),
    Write(WriteError),
}

impl<E> From<WriteError> for Failure<E> {
    fn from(error: WriteError) -> Self {
        Self::Write(error)
    }
}

impl From<Failure<Self>> for WriteError {
    fn from(failure: Failure<Self>) -> Self {
        match failure {
            Failure::Returned(error) | Failure::Write(error) => error,
        }
    }
}

/// Runs and commits a transaction, retrying after conflicts. Waits at most `timeout` for the
/// durability.
///
/// # Errors
/// What the function returned, or see [`WriteError`]. `NotMaster` comes without the master's
/// address.
pub(crate) async fn write<T, E>(
    node: &Node,
    durability: Durability,
    timeout: Duration,
    mut transaction: impl FnMut(&Transaction) -> Result<T, E>,
) -> Result<Committed<T>, Failure<E>> {
    nested::check(node)?;
    let mut conflicts = 0;
    check_replicas(node, durability.ack).await?;
    loop {
        wait_for_room(node).await?;
        let alone = if conflicts >= CONFLICTS_MAX {
            let alone = node.turns.alone();
            Some(node.slow_writes.watch("its turn alone", alone).await)
        } else {
            None
        };
        let running = start(node)?;
        let value = nested::within(node, || transaction(&running)).map_err(Failure::Returned)?;
        let alone = alone.as_ref().and_then(Alone::turn);
        match submit(node, (durability, timeout), running, alone, |_| {}).await {
            Ok(token) => return Ok(Committed { value, token }),
            Err(WriteError::Conflict) => conflicts += 1,
            Err(error) => return Err(error.into()),
        }
        if conflicts == CONFLICTS_MAX + ALONE_MAX {
            let held_off = HOLD_OFF_MAX;
            return Err(WriteError::Overtaken {
                conflicts,
                held_off,
            }
            .into());
        }
        node.turns.step_back(conflicts).await;
    }
}

/// Begins a transaction that its owner commits with [`commit`].
///
/// # Errors
/// `NotMaster` without the master's address, `Closed`.
pub(crate) async fn begin(node: &Node) -> Result<Transaction, WriteError> {
    nested::check(node)?;
    wait_for_room(node).await?;
    start(node)
}

/// Commits a transaction. It does not wait for room in the window, since its own snapshot may be
/// what keeps the window full.
///
/// # Errors
/// See [`WriteError`]. `NotMaster` comes without the master's address.
pub(crate) async fn commit(
    node: &Node,
    durability: Durability,
    timeout: Duration,
    transaction: Transaction,
) -> Result<CommitToken, WriteError> {
    nested::check(node)?;
    check_replicas(node, durability.ack).await?;
    let promise = (durability, timeout);
    submit(node, promise, transaction, None, |_| {}).await
}

/// Waits while the window is full, as long as this node is master and its engine accepts flushes.
async fn wait_for_room(node: &Node) -> Result<(), WriteError> {
    while !node.flush.has_room() {
        if node.sequencer.newest().is_none() {
            return Err(WriteError::NotMaster { master: None });
        }
        if node.flush.is_full() {
            let space = node.machine.disk.space(&node.data_dir);
            return Err(WriteError::DiskFull {
                free_bytes: space.map_or(0, |space| space.free_bytes),
                limit_bytes: FREE_DISK_BYTES_MIN,
            });
        }
        let more = node
            .slow_writes
            .watch("room in the window", node.flush.more_room());
        more.await.map_err(|_| WriteError::Closed)?;
    }
    Ok(())
}

/// A transaction on the newest numbered state.
fn start(node: &Node) -> Result<Transaction, WriteError> {
    let mut session = None;
    let reader = node.readers.begin(|| match node.sequencer.newest() {
        Some((newest, vlsn)) => {
            session = Some(newest);
            vlsn
        }
        None => Vlsn(u64::MAX),
    });
    let session = session.ok_or(WriteError::NotMaster { master: None })?;
    let view = View::new(Arc::clone(&node.window), Arc::clone(&node.engine), reader);
    let time = Arc::clone(&node.group_time);
    Ok(Transaction::new(
        view,
        Some(session),
        time,
        node.transaction_bytes_max,
    ))
}

/// Gets a number, which `tell` is told, and waits for the durability, for at most that long.
async fn submit(
    node: &Node,
    (durability, timeout): (Durability, Duration),
    transaction: Transaction,
    alone: Option<Turn>,
    tell: impl FnOnce(CommitToken),
) -> Result<CommitToken, WriteError> {
    let bytes = transaction.written_bytes() + TRANSACTION_OVERHEAD_BYTES;
    let mut finished = transaction.finish();
    // The gate before the budget: nobody holding budget may wait for the gate, or a transaction
    // that runs alone and those it holds off would deadlock.
    let turn = match alone {
        Some(alone) => alone,
        None => {
            node.slow_writes
                .watch("its turn", node.turns.together())
                .await
        }
    };
    if finished.operations.is_empty() {
        let confirmed = unwritten::confirm(node, durability, timeout, &mut finished);
        let confirmed = node.slow_writes.watch("its confirmation", confirmed).await;
        if let Some(token) = confirmed? {
            return Ok(token);
        }
    }
    let (session, deadline_ms) = (finished.session, finished.deadline_ms);
    // Held until the outcome is known: this bounds the bytes in flight. A transaction larger than
    // the whole budget takes all of it.
    let permits = u32::try_from(bytes.min(node.budget_bytes)).unwrap_or(u32::MAX);
    let budget = node.budget.acquire_many(permits);
    let budget = node
        .slow_writes
        .watch("room among those in flight", budget)
        .await;
    let budget = budget.map_err(|_| WriteError::Closed)?;
    let _budget = if planted::is(Bug::LeakBudget) {
        budget.forget();
        None
    } else {
        Some(budget)
    };
    let submitted = node.sequencer.submit(finished);
    drop(turn);
    match submitted {
        Ok((vlsn, outcome)) => {
            if let Some(deadline_ms) = deadline_ms {
                node.group_time.give(deadline_ms);
            }
            tell(CommitToken {
                group: node.group(),
                term: session.term,
                vlsn,
            });
            let numbered = Numbered {
                session,
                vlsn,
                outcome,
            };
            let acknowledged = acknowledge(node, durability, timeout, numbered);
            node.slow_writes.watch("its durability", acknowledged).await
        }
        Err(error) => Err(not_numbered(node, error)),
    }
}

fn not_numbered(node: &Node, error: SubmitError) -> WriteError {
    match error {
        // Its reads belong to an ended session, and a new session has begun here.
        SubmitError::NotMaster if node.sequencer.newest().is_some() => WriteError::NotCommitted {
            reason: "the master changed since the transaction began",
        },
        SubmitError::NotMaster => WriteError::NotMaster { master: None },
        SubmitError::Counter(error) => WriteError::Counter(error),
        SubmitError::TooOld { age_max } => WriteError::TooOld { age_max },
        SubmitError::Conflict => {
            metrics::counter!("steadfast_conflicts_total").increment(1);
            WriteError::Conflict
        }
    }
}
