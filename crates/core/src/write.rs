//! One write from function to token: run, submit, wait; again on a conflict, and alone after some.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::{RwLock, RwLockWriteGuard};

use crate::error::WriteError;
use crate::ids::Vlsn;
use crate::node::Node;
use crate::planted::{self, Bug};
use crate::token::CommitToken;
use crate::txn::durability::{Durability, Numbered, acknowledge, check_replicas};
use crate::txn::sequencer::SubmitError;
use crate::txn::transaction::Transaction;
use crate::txn::view::View;

/// Conflicts after which a transaction runs with all others held off, so that it gets through.
const CONFLICTS_MAX: u32 = 8;

/// Longest time, in milliseconds, that a transaction steps back after a conflict: several commits.
/// It doubles from 1 ms with each conflict.
const STEP_BACK_MS_MAX: u64 = 16;

/// What a transaction takes of the queue beside the bytes that it writes.
const TRANSACTION_OVERHEAD_BYTES: usize = 256;

/// Who may ask for a number: everybody together, or one alone.
#[derive(Debug)]
pub(crate) struct Turns {
    /// Held for writing by a transaction that has met too many conflicts, so that it meets none.
    gate: RwLock<()>,
    chance: Mutex<StdRng>,
}

impl Turns {
    /// `seed` is where the times to step back come from.
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            gate: RwLock::default(),
            chance: Mutex::new(StdRng::seed_from_u64(seed)),
        }
    }

    /// Waits for a moment after a conflict, so that those who met do not meet again.
    async fn step_back(&self, conflicts: u32) {
        let most = 1_u64.checked_shl(conflicts - 1).unwrap_or(u64::MAX);
        let most = most.min(STEP_BACK_MS_MAX);
        let ms = self.draw(most);
        if ms > 0 {
            tokio::time::sleep(Duration::from_millis(ms)).await;
        }
    }

    fn draw(&self, most: u64) -> u64 {
        let chance = self.chance.lock();
        let mut chance = chance.unwrap_or_else(PoisonError::into_inner);
        chance.random_range(0..=most)
    }
}

/// Runs and commits a transaction, again after a conflict. Waits for the durability for as long as
/// the `Duration` says.
///
/// # Errors
/// See [`WriteError`]. `NotMaster` comes without the master's address.
pub(crate) async fn write(
    node: &Node,
    promise: (Durability, Duration),
    mut transaction: impl FnMut(&Transaction) -> Result<(), WriteError>,
) -> Result<CommitToken, WriteError> {
    let mut conflicts = 0;
    check_replicas(node, promise.0.ack).await?;
    loop {
        wait_for_room(node).await?;
        let alone = if conflicts > CONFLICTS_MAX {
            Some(node.turns.gate.write().await)
        } else {
            None
        };
        let running = start(node)?;
        transaction(&running)?;
        match submit(node, promise, running, alone).await {
            Err(WriteError::Conflict) => {
                conflicts += 1;
                node.turns.step_back(conflicts).await;
            }
            ended => return ended,
        }
    }
}

/// Begins a transaction that its owner commits with [`commit`].
///
/// # Errors
/// `NotMaster` without the master's address, `Closed`.
pub(crate) async fn begin(node: &Node) -> Result<Transaction, WriteError> {
    wait_for_room(node).await?;
    start(node)
}

/// Commits a transaction. It does not wait for room in the window: its own snapshot may be what
/// holds the window full.
///
/// # Errors
/// See [`WriteError`]. `NotMaster` comes without the master's address.
pub(crate) async fn commit(
    node: &Node,
    promise: (Durability, Duration),
    transaction: Transaction,
) -> Result<CommitToken, WriteError> {
    check_replicas(node, promise.0.ack).await?;
    submit(node, promise, transaction, None).await
}

/// Waits while the window is full, as long as this node is master.
async fn wait_for_room(node: &Node) -> Result<(), WriteError> {
    while !node.flush.has_room() {
        if node.sequencer.newest().is_none() {
            return Err(WriteError::NotMaster { master: None });
        }
        node.flush
            .more_room()
            .await
            .map_err(|_| WriteError::Closed)?;
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
    Ok(Transaction::new(view, session, node.transaction_bytes_max))
}

/// Asks for a number and waits for the commit.
async fn submit(
    node: &Node,
    promise: (Durability, Duration),
    transaction: Transaction,
    alone: Option<RwLockWriteGuard<'_, ()>>,
) -> Result<CommitToken, WriteError> {
    let bytes = transaction.written_bytes() + TRANSACTION_OVERHEAD_BYTES;
    let finished = transaction.finish();
    // The gate before the budget: nobody who holds a part of the budget waits for the gate, or one
    // that runs alone and those that it holds off would wait for each other.
    let together = if alone.is_none() {
        Some(node.turns.gate.read().await)
    } else {
        None
    };
    let session = finished.session;
    // Held until the outcome is known: this is what bounds the bytes in flight. What is larger
    // than the whole budget takes all of it.
    let permits = u32::try_from(bytes.min(node.budget_bytes)).unwrap_or(u32::MAX);
    let budget = node.budget.acquire_many(permits).await;
    let budget = budget.map_err(|_| WriteError::Closed)?;
    let _budget = if planted::is(Bug::LeakBudget) {
        budget.forget();
        None
    } else {
        Some(budget)
    };
    let submitted = node.sequencer.submit(finished);
    drop((alone, together));
    match submitted {
        Ok((vlsn, outcome)) => {
            let numbered = Numbered {
                session,
                vlsn,
                outcome,
            };
            acknowledge(node, promise, numbered).await
        }
        // Its reads were of a session that is over, and a new one has begun here.
        Err(SubmitError::NotMaster) if node.sequencer.newest().is_some() => {
            Err(WriteError::NotCommitted {
                reason: "the master changed since the transaction began",
            })
        }
        Err(SubmitError::NotMaster) => Err(WriteError::NotMaster { master: None }),
        Err(SubmitError::TooOld { age_max }) => Err(WriteError::TooOld { age_max }),
        Err(SubmitError::Conflict) => {
            metrics::counter!("steadfast_conflicts_total").increment(1);
            Err(WriteError::Conflict)
        }
    }
}
