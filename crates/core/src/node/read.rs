//! Consistency per read: what this node must have applied before a reader gets its snapshot.
//!
//! | policy | waits until this node has applied |
//! | --- | --- |
//! | `Linearizable` | the position of a barrier asked for after the read began |
//! | `AtLeast` | the VLSN of the token |
//! | `MaxLag` | the position of a barrier asked for at most that long before the read began |
//! | `Eventual` | nothing |
//!
//! No policy compares the clocks of two nodes. A barrier is dated by when this node asked for it,
//! on its own monotonic clock, and it covers everything acknowledged until then. After a pause of
//! the process, its barriers are that much older.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use steadfast_net::lock;

use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use crate::consensus::ConsensusError;
use crate::error::ReadError;
use crate::ids::LogPosition;
use crate::listener::RoleState;
use crate::node::Node;
use crate::planted::{self, Bug};
use crate::plural::plural;
use crate::policy::ConsistencyPolicy;
use crate::token::CommitToken;

/// Pause of a read that found no master before it asks again.
const BARRIER_RETRY: Duration = Duration::from_millis(20);

/// Waits until a snapshot of this node is as fresh as `policy` requires, for at most `timeout`.
///
/// # Errors
/// See [`ReadError`]. It says how far behind the node is.
pub(crate) async fn wait(
    node: &Node,
    role: watch::Receiver<RoleState>,
    policy: ConsistencyPolicy,
    timeout: Duration,
) -> Result<(), ReadError> {
    match policy {
        ConsistencyPolicy::Eventual => Ok(()),
        ConsistencyPolicy::Linearizable if planted::is(Bug::NoBarrier) => Ok(()),
        ConsistencyPolicy::AtLeast(_) if planted::is(Bug::AtLeastNotAwaited) => Ok(()),
        ConsistencyPolicy::AtLeast(token) => at_least(node, token, timeout).await,
        ConsistencyPolicy::Linearizable => {
            let current = current(node, role, None, timeout).await?;
            current.map_err(|reason| ReadError::NotCurrent { reason })
        }
        ConsistencyPolicy::MaxLag(max) => {
            let current = current(node, role, Some(max), timeout).await?;
            current.map_err(|reason| ReadError::Lagging {
                max,
                lag: lag(node),
                vlsn: node.sequencer.visible(),
                reason,
            })
        }
    }
}

/// # Errors
/// [`ReadError::ForeignToken`].
pub(crate) fn check_group(node: &Node, token: CommitToken) -> Result<(), ReadError> {
    match node.identity.group {
        Some(group) if group == token.group => Ok(()),
        _ => Err(ReadError::ForeignToken { token }),
    }
}

async fn at_least(node: &Node, token: CommitToken, timeout: Duration) -> Result<(), ReadError> {
    check_group(node, token)?;
    let mut visible = node.sequencer.watch_visible();
    let reached = async {
        tokio::select! {
            biased;
            // The sender is part of the node, so the wait cannot fail.
            _ = visible.wait_for(|visible| *visible >= token.vlsn) => Ok(()),
            () = node.consensus.detached() => Err(ended()),
        }
    };
    let Ok(reached) = tokio::time::timeout(timeout, reached).await else {
        let vlsn = node.sequencer.visible();
        return Err(ReadError::Behind { token, vlsn });
    };
    reached?;
    match node.sequencer.term_of(token.vlsn) {
        Some(term) if term != token.term => Err(ReadError::RolledBack { token }),
        _ => Ok(()),
    }
}

/// Waits until this node has applied the position of a barrier that is at most `lag_max` old, or
/// requested now. The inner error says why it has not in time.
pub(crate) async fn current(
    node: &Node,
    role: watch::Receiver<RoleState>,
    lag_max: Option<Duration>,
    timeout: Duration,
) -> Result<Result<(), String>, ReadError> {
    let deadline = Instant::now() + timeout;
    let recent = lag_max.and_then(|max| {
        let last = node.barriers.last()?;
        (last.asked.elapsed() <= max).then_some(last.position)
    });
    let position = if let Some(position) = recent {
        position
    } else {
        let why_not = Mutex::new("no master is known".to_owned());
        let asked = timeout_at(deadline, barrier(node, role, &why_not)).await;
        let Ok(asked) = asked else {
            let why_not = why_not.into_inner().unwrap_or_else(PoisonError::into_inner);
            return Ok(Err(format!("timed out after {timeout:?}: {why_not}")));
        };
        asked?
    };
    if planted::is(Bug::BarrierNotAwaited) {
        return Ok(Ok(()));
    }
    let mut applied = node.consensus.applied();
    let reached = applied.wait_for(|applied| applied.map(|id| id.position) >= position);
    if let Ok(reached) = timeout_at(deadline, reached).await {
        return reached.map(|_| Ok(())).map_err(|_| ended());
    }
    let number = |position: Option<LogPosition>| position.map_or(0, |at| at.0 + 1);
    let own = applied.borrow().map(|id| id.position);
    let behind = number(position).saturating_sub(number(own));
    let vlsn = node.sequencer.visible();
    Ok(Err(format!(
        "timed out after {timeout:?}: the node is {behind} log {} behind, at VLSN {vlsn}",
        plural(behind, "entry", "entries")
    )))
}

/// A position at or above every write acknowledged before the call; retries while there is no
/// master to ask. `why_not` holds the reason for waiting.
async fn barrier(
    node: &Node,
    mut role: watch::Receiver<RoleState>,
    why_not: &Mutex<String>,
) -> Result<Option<LogPosition>, ReadError> {
    loop {
        role.borrow_and_update();
        match node.barriers.wait().await {
            Ok(position) => return Ok(position),
            Err(ConsensusError::Stopped(reason)) => return Err(ReadError::Stopped { reason }),
            Err(other) => {
                let mut why_not = lock(why_not);
                *why_not = other.to_string();
            }
        }
        // A new master ends the wait early; a dropped role sender shows in the next answer.
        tokio::time::timeout(BARRIER_RETRY, role.changed())
            .await
            .ok();
    }
}

/// How long ago this node was known to be current; `None` if that is unknown.
fn lag(node: &Node) -> Option<Duration> {
    let last = node.barriers.last()?;
    let applied = node.consensus.applied();
    let has_applied = applied.borrow().map(|id| id.position) >= last.position;
    has_applied.then(|| last.asked.elapsed())
}

fn ended() -> ReadError {
    ReadError::Stopped {
        reason: "consensus has ended".to_owned(),
    }
}
