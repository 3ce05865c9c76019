//! Recovery of a group that has lost its quorum for good: one survivor goes on alone, in a new epoch.
//!
//! ```text
//!  plan    reads the directories of stopped nodes and asks running ones: who has most, who is
//!          missing, what may be lost, and the command that goes on from there
//!
//!  apply   identity   epoch 2, the entry 91@8 is to follow        ◄─ from here on it is done
//!          log        a vote of term 8, the entry 91@8: the members are this node alone
//!          identity   epoch 2
//! ```
//!
//! A crash before the first step is durable leaves everything as it was; after it, whoever opens the
//! directory next does the rest. The epoch fences the nodes that were not there: whatever they have
//! acknowledged without the survivor is no part of the group any more (`lifecycle/fence.rs`).
//!
//! A majority of the old members can still form a quorum among themselves, as long as none of them
//! reaches a node of the new epoch. So nothing is recovered while a majority is there that can elect one
//! of its own: one that an arbiter is part of cannot where only the arbiter knows of the newest entries. A node
//! that has heard of a later epoch does not come to work again.
//!
//! | file | what |
//! | --- | --- |
//! | `survey.rs` | what directories hold and running nodes say |
//! | `judge.rs` | who has most, whether there is a quorum, what may be lost |
//! | `rewrite.rs` | the change of one directory |
//! | `rehearsal.rs` | the machine of a plan: what it changes is gone when it ends |

mod judge;
mod rehearsal;
mod rewrite;
mod survey;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::error::OpenError;
use crate::ids::{GroupEpoch, GroupUuid, NodeId, Vlsn};
use crate::log::LogId;
use crate::machine::Machine;
use crate::member::NodeAddress;

pub(crate) use rewrite::finish;
use survey::Survey;

/// What is left of a group, and how it goes on from there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RecoveryPlan {
    /// Name of the group.
    pub group_name: String,
    /// The group.
    pub group: GroupUuid,
    /// The epoch that it is in; a recovery begins a later one.
    pub epoch: GroupEpoch,
    /// Everybody with a vote.
    pub voters: Vec<NodeId>,
    /// What is left: the one that it goes on from first, which is the one with most of those that have
    /// data, then the others, the one with most first.
    pub survivors: Vec<Survivor>,
    /// The members of which nothing is left that was shown here.
    pub missing: Vec<Missing>,
    /// Whether the missing voters are a majority by themselves: then they may have acknowledged
    /// writes that no survivor has. Otherwise every such write is with the first survivor.
    pub may_lose: bool,
    /// What is lost for certain as far as it was acknowledged: an arbiter knows of it, and no survivor has
    /// it.
    pub known_lost: Option<KnownLost>,
    /// How it goes on.
    pub next: NextStep,
}

/// A node, or a directory of one, of which something is left.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Survivor {
    /// The node.
    pub node: NodeAddress,
    /// Where it was seen.
    pub place: Place,
    /// The epoch in which it is.
    pub epoch: GroupEpoch,
    /// Its last entry. The greater its term, and in one term its position, the more the node has.
    pub last: Option<LogId>,
    /// The last transaction that it keeps. Of a running node, the last one that it shows.
    pub vlsn: Vlsn,
    /// Whether it may take part as it is.
    pub standing: Standing,
}

/// Entries of the log that a node without data knows of, and the first survivor lacks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KnownLost {
    /// Who knows of them.
    pub node: NodeAddress,
    /// The last of them.
    pub last: LogId,
    /// How many there are at most; each may hold several transactions, or none.
    pub entries_max: u64,
}

/// Where a survivor is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// In a directory that no process has open.
    Directory(PathBuf),
    /// It runs, and listens here.
    Address(String),
}

/// Whether a survivor may take part as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// It is a copy of a directory, or of an earlier epoch: it has data, and no vote.
    Fenced,
    /// It may.
    Member,
}

/// A member of which nothing is left that was shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Missing {
    /// The node.
    pub node: NodeAddress,
    /// Why it does not count.
    pub why: String,
}

/// How a recovery goes on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum NextStep {
    /// [`apply`] to the directory of the first survivor, with this text.
    Apply {
        /// The directory.
        directory: PathBuf,
        /// What has to be said.
        confirm: String,
    },
    /// The first survivor runs: stop it, and plan again with its directory.
    Stop {
        /// Its name.
        node: String,
    },
}

/// A group that was recovered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Recovered {
    /// Name of the group.
    pub group_name: String,
    /// Its only member.
    pub node: NodeAddress,
    /// The epoch that begins.
    pub epoch: GroupEpoch,
    /// The last transaction that it keeps.
    pub vlsn: Vlsn,
}

/// Why nothing was recovered. Nothing was changed, but where [`RecoverError::Begun`] says so.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecoverError {
    /// There is no directory of a node here.
    #[error(
        "{dir} is not the data directory of a node that belongs to a group; nothing was changed; name the directory of a survivor"
    )]
    NoNode {
        /// The directory.
        dir: PathBuf,
    },
    /// The directory cannot be used.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The directory was being recovered when an error came. What it says is done when the
    /// directory is opened the next time, or nothing was done.
    #[error(
        "the recovery was begun and not finished ({source}); the directory is as it was, or is recovered when it is opened; see to the cause, then plan again"
    )]
    Begun {
        /// Why.
        source: OpenError,
    },
    /// The directories are of more than one group.
    #[error(
        "{one} and {other} are of different groups; nothing was changed; name directories of one group"
    )]
    SeveralGroups {
        /// A directory.
        one: PathBuf,
        /// Another one.
        other: PathBuf,
    },
    /// A majority is there.
    #[error("{there} of {voters} voters are there ({}), which is a majority: no recovery is needed, and none is allowed; nothing was changed; start them", names.join(", "))]
    NotNeeded {
        /// Voters that may take part.
        there: usize,
        /// All voters.
        voters: usize,
        /// Who is there.
        names: Vec<String>,
    },
    /// A node hears a master.
    #[error(
        "{name} hears a master, so the group works; nothing was changed; see to the way to that master, and start what is down"
    )]
    Works {
        /// The node.
        name: String,
    },
    /// The group goes on elsewhere.
    #[error(
        "the node at {address} is in epoch {epoch} of the group: it was recovered already; nothing was changed; let the other nodes in anew (steadfast token create)"
    )]
    Superseded {
        /// Where.
        address: String,
        /// Its epoch.
        epoch: GroupEpoch,
    },
    /// What is left has no vote, or no data.
    #[error(
        "{name} has no vote or no data, so the group cannot go on from it; nothing was changed; name the directory of a node that has both"
    )]
    NoVote {
        /// The node.
        name: String,
    },
    /// Another survivor has more.
    #[error("{name} has more than the directory; nothing was changed; stop it and recover from it")]
    Behind {
        /// The node.
        name: String,
    },
    /// What was said is not what has to be said.
    #[error(
        "the confirmation is not the text for this group, node and state; nothing was changed; make \
         a plan, read it, and give the text that it prints"
    )]
    Unconfirmed,
}

/// What is left of the group of these directories of stopped nodes, and how it goes on from there.
/// `nodes` and all members that are not among the directories are asked for their state.
///
/// Nothing is changed, and the directories may be on a volume that is mounted for reading alone. The
/// storage engine is copied into the system's directory for temporary files while it is read.
///
/// # Errors
/// See [`RecoverError`]; [`RecoverError::NotNeeded`] when a majority is there.
///
/// # Panics
/// Without a directory.
pub async fn plan(
    machine: &Machine,
    directories: &[PathBuf],
    nodes: &[String],
) -> Result<RecoveryPlan, RecoverError> {
    assert!(!directories.is_empty(), "a plan needs a directory");
    let machine = rehearsal::of(machine);
    let survey = Survey::take(&machine, directories, nodes).await?;
    judge::judge(&survey)
}

/// Makes the node of this directory, which does not run, the only member of its group, in a new
/// epoch. Members that run are asked first, as [`plan`] asks them.
///
/// When it returns everything is durable: the node is master as soon as it is started.
///
/// # Errors
/// See [`RecoverError`]; [`RecoverError::Unconfirmed`] when `confirm` is not the text of the plan.
pub async fn apply(
    machine: &Machine,
    directory: &Path,
    confirm: &str,
) -> Result<Recovered, RecoverError> {
    let directories = [directory.to_owned()];
    // To open a log and an engine changes them: only what is confirmed is opened.
    check_confirmed(plan(machine, &directories, &[]).await?, confirm)?;
    let mut survey = Survey::take(machine, &directories, &[]).await?;
    check_confirmed(judge::judge(&survey)?, confirm)?;
    let directory = survey.directories.remove(0);
    rewrite::begin(machine, directory).await
}

fn check_confirmed(plan: RecoveryPlan, confirm: &str) -> Result<(), RecoverError> {
    match plan.next {
        NextStep::Apply {
            confirm: expected, ..
        } if expected == confirm => Ok(()),
        NextStep::Apply { .. } => Err(RecoverError::Unconfirmed),
        NextStep::Stop { node } => Err(RecoverError::Behind { name: node }),
    }
}
