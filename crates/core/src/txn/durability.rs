//! Durability per write: what must have happened before the caller is told.
//!
//! The log itself knows nothing of this. There is one writer, and one fdatasync for each group,
//! whatever was asked for; a policy only decides how long a caller waits:
//!
//! ```text
//!  numbered ──► proposed ──► in the log ──► handed to the system ──► synced here
//!                                │ NoSync          │ WriteNoSync         │ Sync
//!                                └──► synced by a majority: committed, SimpleMajority
//!                                          └──► synced by every electable node: All
//! ```

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use tokio::sync::{oneshot, watch};

use crate::config::ConfigError;
use crate::consensus::Electable;
use crate::error::WriteError;
use crate::ids::Vlsn;
use crate::log::LogId;
use crate::node::Node;
use crate::planted::{self, Bug};
use crate::token::CommitToken;
use crate::txn::sequencer::{Outcome, SessionId};

/// What the master's own disk must have done before a write is acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SyncPolicy {
    /// The master has synced it.
    Sync,
    /// The master has handed it to its system: it survives an end of the process, and no power cut.
    WriteNoSync,
    /// The master has it in memory, on the way to its disk.
    NoSync,
}

/// Which other nodes must have a write on disk before it is acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReplicaAckPolicy {
    /// A majority of the electable nodes has synced it: it is committed.
    SimpleMajority,
    /// Every electable node, the master included, has synced it. It waits while one is down.
    All,
    /// None. Until it is committed, the write can be rolled back at a failover.
    None,
}

/// How durable a write must be before its caller is told.
///
/// Whatever is chosen, a write is visible to readers only when a majority has synced it, and its
/// [`CommitToken`] later tells what became of it: [`crate::ReplicatedEnvironment::outcome`].
///
/// | | the caller is told when | a failover can lose it |
/// | --- | --- | --- |
/// | [`Durability::MAJORITY`] | a majority has synced it | no |
/// | [`Durability::ALL`] | every electable node has synced it | no |
/// | [`Durability::LOCAL`] | the master has synced it | yes |
/// | [`Durability::NONE`] | the master has it in memory | yes |
///
/// `docs/durability.md` says what each survives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Durability {
    /// What the master's disk must have done.
    pub local_sync: SyncPolicy,
    /// Which nodes must have synced.
    pub ack: ReplicaAckPolicy,
    /// How long to wait for that; `None` for `commit_timeout_ms` of the configuration.
    pub timeout: Option<Duration>,
}

impl Durability {
    /// A majority has synced the write; the master need not be one of them. The default.
    pub const MAJORITY: Self = Self::new(SyncPolicy::NoSync, ReplicaAckPolicy::SimpleMajority);
    /// Every electable node has synced the write.
    pub const ALL: Self = Self::new(SyncPolicy::Sync, ReplicaAckPolicy::All);
    /// The master has synced the write. A failover may roll it back.
    pub const LOCAL: Self = Self::new(SyncPolicy::Sync, ReplicaAckPolicy::None);
    /// The write has its number and is on its way to the log. A failover may roll it back.
    pub const NONE: Self = Self::new(SyncPolicy::NoSync, ReplicaAckPolicy::None);

    /// Any combination.
    pub const fn new(local_sync: SyncPolicy, ack: ReplicaAckPolicy) -> Self {
        Self {
            local_sync,
            ack,
            timeout: None,
        }
    }

    /// The same, given up after `timeout`.
    #[must_use]
    pub const fn within(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }
}

impl Default for Durability {
    fn default() -> Self {
        Self::MAJORITY
    }
}

/// The presets by name.
const PRESETS: [(&str, Durability); 4] = [
    ("majority", Durability::MAJORITY),
    ("all", Durability::ALL),
    ("local", Durability::LOCAL),
    ("none", Durability::NONE),
];

impl FromStr for Durability {
    type Err = ConfigError;

    /// A preset by its name in lower case.
    fn from_str(name: &str) -> Result<Self, ConfigError> {
        let preset = PRESETS.iter().find(|(known, _)| *known == name);
        let unknown = || {
            let problem = format!("{name:?} is none of majority, all, local and none");
            ConfigError::new("durability", problem)
        };
        preset.map(|(_, preset)| *preset).ok_or_else(unknown)
    }
}

impl fmt::Display for Durability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_like =
            |preset: &Self| (preset.local_sync, preset.ack) == (self.local_sync, self.ack);
        match PRESETS.iter().find(|(_, preset)| is_like(preset)) {
            Some((name, _)) => f.write_str(name),
            None => write!(f, "{:?} with acks of {:?}", self.local_sync, self.ack),
        }
    }
}

/// A transaction that has its number.
pub(crate) struct Numbered {
    pub(crate) session: SessionId,
    pub(crate) vlsn: Vlsn,
    pub(crate) outcome: oneshot::Receiver<Outcome>,
}

/// Refuses a write that could not get its acknowledgements now. Passes on a node that is not master.
/// A new master first gives the others one lease to be heard.
///
/// # Errors
/// [`WriteError::InsufficientReplicas`].
pub(crate) async fn check_replicas(node: &Node, ack: ReplicaAckPolicy) -> Result<(), WriteError> {
    let consensus = &node.consensus;
    let needed = |heard: Electable| match ack {
        ReplicaAckPolicy::None => 0,
        ReplicaAckPolicy::SimpleMajority => heard.majority(),
        ReplicaAckPolicy::All => heard.all,
    };
    let is_met = match ack {
        ReplicaAckPolicy::None => true,
        ReplicaAckPolicy::SimpleMajority => consensus.majority_is_heard(),
        ReplicaAckPolicy::All => false,
    };
    if is_met {
        return Ok(());
    }
    let Some(began) = node.sequencer.session_began() else {
        return Ok(());
    };
    let are_heard = |heard: Electable| heard.counted >= needed(heard);
    let heard = consensus.wait_heard(began, are_heard).await;
    if are_heard(heard) {
        return Ok(());
    }
    Err(WriteError::InsufficientReplicas {
        needed: needed(heard),
        available: heard.counted,
    })
}

/// Waits until `durability` is met, `timeout` at the most.
///
/// # Errors
/// What is known of the write otherwise.
pub(crate) async fn acknowledge(
    node: &Node,
    (durability, timeout): (Durability, Duration),
    mut numbered: Numbered,
) -> Result<CommitToken, WriteError> {
    let token = CommitToken {
        group: node
            .identity
            .group
            .expect("a node at work belongs to a group"),
        term: numbered.session.term,
        vlsn: numbered.vlsn,
    };
    let mut committed = None;
    let met = met(node, durability, &mut numbered, &mut committed);
    let not_committed = || {
        Err(WriteError::NotCommitted {
            reason: "the master changed",
        })
    };
    let lost = match tokio::time::timeout(timeout, met).await {
        Ok(Ok(())) => return Ok(token),
        Ok(Err(Lost::NotCommitted)) => return not_committed(),
        Err(_) if planted::is(Bug::NotCommittedInTime) => return not_committed(),
        Ok(Err(Lost::Master)) if committed.is_none() => WriteError::OutcomeUnknown { token },
        Ok(Err(Lost::Master)) | Err(_) => insufficient(node, durability, token, committed),
    };
    if committed.is_none() {
        metrics::counter!("steadfast_outcome_unknown_total").increment(1);
    }
    Err(lost)
}

/// Why a durability was not met.
enum Lost {
    NotCommitted,
    /// This node has lost its mastership, or takes no part any more.
    Master,
}

/// Waits for what `durability` asks for. `committed` becomes the entry as soon as it is committed.
async fn met(
    node: &Node,
    durability: Durability,
    numbered: &mut Numbered,
    committed: &mut Option<LogId>,
) -> Result<(), Lost> {
    let at = match durability.ack {
        ReplicaAckPolicy::None => {
            let place = node.sequencer.place_of(numbered.session, numbered.vlsn);
            tokio::select! {
                biased;
                outcome = &mut numbered.outcome => *committed.insert(entry(outcome.ok())?),
                Ok(at) = place => at,
            }
        }
        ReplicaAckPolicy::SimpleMajority | ReplicaAckPolicy::All => {
            *committed.insert(entry((&mut numbered.outcome).await.ok())?)
        }
    };
    let reached = match durability.local_sync {
        SyncPolicy::NoSync => None,
        SyncPolicy::WriteNoSync => Some(node.log.written()),
        SyncPolicy::Sync => Some(node.log.persisted()),
    };
    if let Some(reached) = reached {
        own_disk(node, reached, at, (numbered, committed)).await?;
    }
    if durability.ack == ReplicaAckPolicy::All && !planted::is(Bug::AllIsMajority) {
        let all = node.consensus.persisted_by_all(at).await;
        all.map_err(|_| Lost::Master)?;
    }
    Ok(())
}

/// The entry that an outcome names. A sequencer that is gone has lost its mastership.
fn entry(outcome: Option<Outcome>) -> Result<LogId, Lost> {
    match outcome {
        Some(Outcome::Committed(at)) => Ok(at),
        Some(Outcome::NotCommitted) => Err(Lost::NotCommitted),
        Some(Outcome::Unknown) | None => Err(Lost::Master),
    }
}

/// Waits until `reached` has come to entry `at`. While that is not committed, it may be replaced by
/// an entry of a later term at the same position.
async fn own_disk(
    node: &Node,
    mut reached: watch::Receiver<Option<LogId>>,
    at: LogId,
    (numbered, committed): (&mut Numbered, &mut Option<LogId>),
) -> Result<(), Lost> {
    loop {
        let is_there = |last: LogId| {
            last.position >= at.position && (committed.is_some() || last.term == at.term)
        };
        if reached.borrow_and_update().is_some_and(is_there) {
            return Ok(());
        }
        tokio::select! {
            biased;
            changed = reached.changed() => changed.map_err(|_| Lost::Master)?,
            outcome = &mut numbered.outcome, if committed.is_none() => {
                *committed = Some(entry(outcome.ok())?);
            }
            () = node.consensus.detached(), if committed.is_some() => return Err(Lost::Master),
        }
    }
}

/// The error of a write that was not acknowledged by enough nodes, or not by this node's own disk.
fn insufficient(
    node: &Node,
    durability: Durability,
    token: CommitToken,
    committed: Option<LogId>,
) -> WriteError {
    let session = SessionId { term: token.term };
    let place = || node.sequencer.place_of(session, token.vlsn).try_recv().ok();
    let at = committed.or_else(place);
    let electable = node.consensus.heard();
    let persisted = at.map(|at| node.consensus.persisted_by(at.position));
    let own_disk = match durability.local_sync {
        SyncPolicy::NoSync => None,
        SyncPolicy::WriteNoSync => Some(node.log.written()),
        SyncPolicy::Sync => Some(node.log.persisted()),
    };
    let has = |last: LogId| at.is_some_and(|at| last.position >= at.position);
    WriteError::InsufficientAcks {
        token,
        needed: match durability.ack {
            ReplicaAckPolicy::All => electable.all,
            ReplicaAckPolicy::SimpleMajority => electable.majority(),
            ReplicaAckPolicy::None => 1,
        },
        acked: persisted.map_or(0, |persisted| persisted.counted),
        lacks_own_disk: own_disk.is_some_and(|last| !last.borrow().is_some_and(has)),
        is_committed: committed.is_some(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_preset_is_known_by_its_name() {
        for (name, preset) in PRESETS {
            assert_eq!(name.parse(), Ok(preset));
            assert_eq!(preset.within(Duration::from_secs(1)).to_string(), name);
        }
        let error = "MAJORITY".parse::<Durability>().expect_err("another name");
        assert!(error.to_string().contains("none of majority, all"));
    }
}
