//! What the directories of stopped nodes hold, and what running nodes report.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::future::join_all;
use prost::Message;
use steadfast_net::NetError;

use crate::consensus::held_vlsn;
use crate::error::{OpenError, in_full};
use crate::group::identity::{DataDir, Identity};
use crate::group::{MemberRecord, MembershipRecord};
use crate::ids::{GroupEpoch, GroupUuid, LogPosition, Term, Vlsn};
use crate::log::{Entry, EntryKind, Log, LogConfig, LogId};
use crate::machine::Machine;
use crate::node;
use crate::quorum_loss::{RecoverError, rewrite};
use crate::state_copy::swap;
use crate::txn::batch::Batch;
use crate::wire::hello::DialError;
use crate::wire::node_state;
use crate::wire::node_state::NodeStateMessage;

/// How long a node may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// Bytes of the log per read.
const READ_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Everything that was found.
pub(super) struct Survey {
    /// At least one, all of one group.
    pub(super) directories: Vec<Directory>,
    pub(super) answers: Vec<Answer>,
}

/// The directory of a stopped node, locked.
pub(super) struct Directory {
    pub(super) path: PathBuf,
    pub(super) dir: DataDir,
    pub(super) identity: Identity,
    pub(super) group: GroupUuid,
    /// False for a copied directory.
    pub(super) is_original: bool,
    pub(super) held: Held,
}

/// What a directory holds, counting everything in its log.
#[derive(Clone, Debug, Default)]
pub(super) struct Held {
    pub(super) last: Option<LogId>,
    /// The highest term known to the log.
    pub(super) term: Term,
    pub(super) vlsn: Vlsn,
    pub(super) membership: MembershipRecord,
}

/// The answer from one address.
pub(super) struct Answer {
    pub(super) address: String,
    pub(super) said: Result<NodeStateMessage, String>,
}

impl Survey {
    /// # Errors
    /// See [`RecoverError`].
    pub(super) async fn take(
        machine: &Machine,
        directories: &[PathBuf],
        nodes: &[String],
    ) -> Result<Self, RecoverError> {
        let mut opened: Vec<Directory> = Vec::new();
        for path in directories {
            let directory = open(machine, path).await?;
            if let Some(first) = opened.first()
                && first.group != directory.group
            {
                return Err(RecoverError::SeveralGroups {
                    one: first.path.clone(),
                    other: path.clone(),
                });
            }
            opened.push(directory);
        }
        let mut addresses: BTreeSet<String> = nodes.iter().cloned().collect();
        for directory in &opened {
            addresses.extend(elsewhere(&opened, &directory.held.membership));
        }
        let asked = addresses.into_iter().map(|address| async move {
            let transport = &*machine.transport;
            let said = node_state::ask(transport, &address, false, ANSWER_TIMEOUT).await;
            let said = match said {
                // It may hear a master.
                Err(error) if is_up(&error) => {
                    let why = in_full(&error);
                    return Err(RecoverError::Unasked { address, why });
                }
                said => said.map_err(|error| error.to_string()),
            };
            Ok(Answer { address, said })
        });
        let answers = join_all(asked).await;
        let answers: Result<Vec<_>, _> = answers.into_iter().collect();
        Ok(Self {
            directories: opened,
            answers: answers?,
        })
    }
}

/// Whether somebody is there who does not talk to this caller.
fn is_up(error: &DialError) -> bool {
    match error {
        DialError::NoHello
        | DialError::Wire(_)
        | DialError::WrongHolder { .. }
        | DialError::Refused { .. } => true,
        DialError::Net(error) => matches!(error, NetError::Tls { .. } | NetError::Protocol { .. }),
        DialError::Closed | DialError::Timeout(_) => false,
    }
}

/// Where to find the members without an original directory here.
fn elsewhere(opened: &[Directory], membership: &MembershipRecord) -> Vec<String> {
    let is_here = |member: &&MemberRecord| {
        let mut originals = opened.iter().filter(|directory| directory.is_original);
        originals.any(|directory| directory.identity.node_id.0 == member.id)
    };
    let members = membership.members.iter();
    let away = members.filter(|member| !is_here(member));
    away.map(|member| member.address.clone()).collect()
}

async fn open(machine: &Machine, path: &Path) -> Result<Directory, RecoverError> {
    let no_node = || RecoverError::NoNode {
        dir: path.to_owned(),
    };
    if !DataDir::is_one(&*machine.disk, path)? {
        return Err(no_node());
    }
    let dir = DataDir::open(&*machine.disk, path)?;
    let (identity, is_original) = dir.examine_identity(&*machine.disk)?.ok_or_else(no_node)?;
    let group = identity.group.ok_or_else(no_node)?;
    let identity = if is_original {
        let identity = swap::finish(&LogConfig::default(), machine, &dir, identity).await?;
        rewrite::finish(machine, &dir, identity).await?
    } else {
        // Finishing would turn it into the original.
        identity
    };
    let log = node::open_idle_log(&LogConfig::default(), machine, &dir, &identity).await?;
    let held = match held(machine, &dir, &identity, &log).await {
        Ok(held) => {
            log.close().await.map_err(OpenError::Log)?;
            held
        }
        Err(error) => return Err(node::abandon(&log, None, error).await.into()),
    };
    Ok(Directory {
        path: path.to_owned(),
        dir,
        identity,
        group,
        is_original,
        held,
    })
}

/// What the engine holds, and what follows in the log.
async fn held(
    machine: &Machine,
    dir: &DataDir,
    identity: &Identity,
    log: &Log,
) -> Result<Held, OpenError> {
    let engine = node::open_engine(machine, dir, identity).await?;
    let applied = engine.applied();
    engine.close()?;
    let applied = applied?;
    let state = log.state();
    node::check_log_reaches(state, applied.as_ref(), dir.path())?;
    let corrupt = |what: String| OpenError::Corrupt {
        path: dir.log_dir(identity.log),
        offset: 0,
        what,
    };
    let mut held = Held {
        last: state.last,
        term: state
            .vote
            .map(|vote| vote.term)
            .max(state.last.map(|last| last.term))
            .unwrap_or_default(),
        vlsn: held_vlsn(applied.as_ref()),
        ..Held::default()
    };
    if let Some(applied) = &applied {
        held.membership = MembershipRecord::decode(applied.membership.clone())
            .map_err(|error| corrupt(format!("the engine's membership: {error}")))?;
    }
    let purged = state.purged.map(|purged| purged.position);
    let before = purged.max(applied.map(|applied| applied.position));
    let mut next = before.map_or(0, |before| before.0 + 1);
    while state.last.is_some_and(|last| last.position.0 >= next) {
        let range = LogPosition(next)..LogPosition(u64::MAX);
        let entries = log.read(range, READ_BYTES_MAX).await;
        for entry in entries.map_err(OpenError::Log)? {
            next = entry.position.0 + 1;
            let id = entry.id();
            held.take(entry)
                .map_err(|error| corrupt(format!("entry {id}: {error}")))?;
        }
    }
    Ok(held)
}

impl Held {
    /// Applies an entry as a node does: a batch that does not follow was numbered in vain.
    fn take(&mut self, entry: Entry) -> Result<(), String> {
        match entry.kind {
            EntryKind::Blank => {}
            EntryKind::Transactions => {
                let batch = Batch::parse(entry.payload).map_err(|error| error.to_string())?;
                if batch.first() == self.vlsn.next() {
                    self.vlsn = batch.last();
                }
            }
            EntryKind::Membership => {
                let decoded = MembershipRecord::decode(entry.payload);
                self.membership = decoded.map_err(|error| error.to_string())?;
            }
        }
        Ok(())
    }
}

impl Answer {
    /// The epoch of the node, if it is of this group.
    pub(super) fn epoch_in(&self, group: GroupUuid) -> Option<GroupEpoch> {
        let state = self.said.as_ref().ok()?;
        let is_ours = state.group == group.to_bytes();
        is_ours.then(|| GroupEpoch::from_number(state.epoch))
    }
}
