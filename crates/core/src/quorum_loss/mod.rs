//! Recovery of a group that has lost its quorum for good: one survivor goes on alone, in a new
//! epoch.
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
//! A crash before the first step is durable leaves everything as it was; after it, the next open of
//! the directory completes the rest. The epoch fences off the nodes that were not part of it:
//! whatever they acknowledged without the survivor no longer belongs to the group
//! (`lifecycle/fence.rs`).
//!
//! A majority of the old members can still form a quorum among themselves, as long as none of them
//! reaches a node of the new epoch. So recovery is refused while a majority is present that can
//! elect one of its own: one that includes an arbiter cannot if only the arbiter knows the newest
//! entries. A node that has heard of a later epoch never works again.
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
use crate::plural::plural;

pub(crate) use rewrite::finish;
use survey::Survey;

/// What is left of a group, and how to continue from there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RecoveryPlan {
    /// Name of the group.
    pub group_name: String,
    /// The group.
    pub group: GroupUuid,
    /// The current epoch; a recovery begins a later one.
    pub epoch: GroupEpoch,
    /// All voting members.
    pub voters: Vec<NodeId>,
    /// The survivors: first the one to continue from, which has the most among those with data,
    /// then the others, the one with the most first.
    pub survivors: Vec<Survivor>,
    /// The members of which nothing was found.
    pub missing: Vec<Missing>,
    /// Whether the missing voters are a majority by themselves: then they may have acknowledged
    /// writes that no survivor has. Otherwise the first survivor has every such write.
    pub may_lose: bool,
    /// What is certainly lost, if it was acknowledged: an arbiter knows of it, but no survivor has
    /// it.
    pub known_lost: Option<KnownLost>,
    /// The next step.
    pub next: NextStep,
}

/// A node, or the directory of one, that has survived.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Survivor {
    /// The node.
    pub node: NodeAddress,
    /// Where it was found.
    pub place: Place,
    /// Its epoch.
    pub epoch: GroupEpoch,
    /// Its last entry. The higher its term, or its position within a term, the more the node has.
    pub last: Option<LogId>,
    /// The last transaction that it keeps; for a running node, the last visible one.
    pub vlsn: Vlsn,
    /// Whether it may take part as it is.
    pub standing: Standing,
}

/// Log entries that a node without data knows of, and the first survivor lacks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KnownLost {
    /// The node that knows of them.
    pub node: NodeAddress,
    /// The last of them.
    pub last: LogId,
    /// The maximum number of them; each may hold several transactions, or none.
    pub entries_max: u64,
}

/// Where a survivor is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// In a directory that no process has open.
    Directory(PathBuf),
    /// A node that runs and listens at this address.
    Address(String),
}

/// Whether a survivor may take part as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// It is a copied directory, or of an earlier epoch: it has data, but no vote.
    Fenced,
    /// It may take part.
    Member,
}

/// A member of which nothing was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Missing {
    /// The node.
    pub node: NodeAddress,
    /// Why it does not count.
    pub why: String,
}

/// The next step of a recovery.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum NextStep {
    /// [`apply`] to the directory of the first survivor, with this confirmation.
    Apply {
        /// The directory.
        directory: PathBuf,
        /// The required confirmation.
        confirm: String,
    },
    /// The first survivor is running: stop it, and plan again with its directory.
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

/// Why nothing was recovered. Nothing was changed, unless it is [`RecoverError::Begun`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecoverError {
    /// The directory holds no node that belongs to a group.
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
    /// An error interrupted the recovery of the directory. Either nothing was done, or the next
    /// open of the directory completes it.
    #[error(
        "the recovery began, but did not finish ({source}); the directory is unchanged, or its \
         next open completes the recovery; fix the cause, then plan again"
    )]
    Begun {
        /// Why.
        r#source: OpenError,
    },
    /// The directories belong to more than one group.
    #[error(
        "{one} and {other} belong to different groups; nothing was changed; name directories of \
         one group"
    )]
    SeveralGroups {
        /// A directory.
        one: PathBuf,
        /// Another one.
        other: PathBuf,
    },
    /// A majority is present.
    #[error("{there} of {voters} {} left ({}), which is a majority: a recovery is neither needed \
             nor allowed; nothing was changed; start them",
            plural(*.voters, "voter is", "voters are"), names.join(", "))]
    NotNeeded {
        /// Voters that may take part.
        there: usize,
        /// All voters.
        voters: usize,
        /// Their names.
        names: Vec<String>,
    },
    /// A node is up, and does not talk to this caller.
    #[error(
        "the node at {address} is up, but does not talk to this caller: {why}; nothing was changed; \
         give the credentials of the group (--credentials), or stop what listens there"
    )]
    Unasked {
        /// Its address.
        address: String,
        /// What it said.
        why: String,
    },
    /// A node hears a master.
    #[error(
        "{name} hears a master, so the group works; nothing was changed; check the network to that \
         master, and start the nodes that are down"
    )]
    Works {
        /// The node.
        name: String,
    },
    /// The group goes on elsewhere.
    #[error(
        "the node at {address} is in epoch {epoch} of the group, so the group was already \
         recovered; nothing was changed; add the other nodes again (steadfast token create)"
    )]
    Superseded {
        /// The address of a node.
        address: String,
        /// Its epoch.
        epoch: GroupEpoch,
    },
    /// The survivor has no vote, or no data.
    #[error(
        "{name} has no vote or no data, so the group cannot go on from it; nothing was changed; name the directory of a node that has both"
    )]
    NoVote {
        /// The node.
        name: String,
    },
    /// Another survivor has more.
    #[error(
        "{name} has more than this directory; nothing was changed; stop {name}, and recover from \
         it"
    )]
    Behind {
        /// The node.
        name: String,
    },
    /// The confirmation is not the required one.
    #[error(
        "the confirmation does not match this group, node and state; nothing was changed; make a \
         plan, read it, and give the text that it prints"
    )]
    Unconfirmed,
}

/// Plans the recovery of the group to which these directories of stopped nodes belong. Asks
/// `nodes`, and all members without a directory here, for their state.
///
/// Nothing is changed, and the directories may be on a volume mounted read-only. While it is read,
/// the storage engine is copied into the system's temporary directory.
///
/// # Errors
/// See [`RecoverError`]; [`RecoverError::NotNeeded`] when a majority is present.
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

/// Makes the stopped node of this directory the only member of its group, in a new epoch. Running
/// members are asked first, as in [`plan`].
///
/// When it returns, everything is durable, and the node is master as soon as it starts.
///
/// # Errors
/// See [`RecoverError`]; [`RecoverError::Unconfirmed`] when `confirm` is not the text of the plan.
pub async fn apply(
    machine: &Machine,
    directory: &Path,
    confirm: &str,
) -> Result<Recovered, RecoverError> {
    let directories = [directory.to_owned()];
    // Opening a log and an engine changes them: only what is confirmed is opened.
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
