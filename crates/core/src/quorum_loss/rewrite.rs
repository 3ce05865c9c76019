//! The change to one directory: identity, log, identity.

use std::io;

use tokio::sync::oneshot;

use crate::error::OpenError;
use crate::group::identity::{DataDir, Identity};
use crate::group::{Member, MemberRecord, MembershipRecord, VoterSet};
use crate::ids::{GroupEpoch, LogPosition, NodeId, Term};
use crate::log::{Entry, EntryKind, Log, LogConfig, LogError, LogId, Vote};
use crate::machine::Machine;
use crate::node;
use crate::quorum_loss::survey::Directory;
use crate::quorum_loss::{RecoverError, Recovered};

/// Gap between the last term that the survivor knows and the first term of the new epoch. Missing
/// nodes may have had masters in later terms than that, and a term and a VLSN name one transaction
/// across all epochs. No group gets through this many terms without one of its nodes.
const TERMS_SKIPPED: u64 = 1_000_000;

/// Makes the directory's node the only member of its group, in a new epoch.
///
/// # Errors
/// [`RecoverError::NoVote`], and [`RecoverError::Begun`] from the first write on.
pub(super) async fn begin(
    machine: &Machine,
    directory: Directory,
) -> Result<Recovered, RecoverError> {
    let Directory {
        dir,
        identity,
        held,
        ..
    } = directory;
    let members = held.membership.members.into_iter();
    let own: Option<(NodeId, Member)> = members
        .map(MemberRecord::into_member)
        .find(|(id, member)| *id == identity.node_id && member.node_type.has_data());
    let (id, member) = own.ok_or_else(|| RecoverError::NoVote {
        name: identity.node_name.clone(),
    })?;
    let newest = identity.superseded_by.max(Some(identity.epoch));
    let epoch = GroupEpoch(newest.map_or(0, |epoch| epoch.0) + 1);
    let node = member.node_address(id);
    // It is the only node that can be master.
    let member = Member {
        priority: member.priority.max(1),
        ..member
    };
    let group_name = identity.group_name.clone();
    let begun = Identity {
        founders: vec![(id, member)],
        epoch,
        superseded_by: None,
        recovery: Some(LogId {
            term: Term(held.term.0 + TERMS_SKIPPED),
            position: LogPosition(held.last.map_or(0, |last| last.position.0 + 1)),
        }),
        ..identity
    };
    let done = async {
        dir.write_identity(&*machine.disk, &begun).await?;
        finish(machine, &dir, begun).await
    };
    done.await
        .map_err(|source| RecoverError::Begun { source })?;
    Ok(Recovered {
        group_name,
        node,
        epoch,
        vlsn: held.vlsn,
    })
}

/// Completes a recovery that the identity says was begun; returns the resulting identity.
///
/// # Errors
/// See [`OpenError`]. Safe to repeat.
pub(crate) async fn finish(
    machine: &Machine,
    dir: &DataDir,
    identity: Identity,
) -> Result<Identity, OpenError> {
    let Some(entry) = identity.recovery else {
        return Ok(identity);
    };
    let log = node::open_idle_log(&LogConfig::default(), machine, dir, &identity).await?;
    let appended = append(&log, entry, &identity).await;
    let closed = log.close().await;
    appended.and(closed).map_err(OpenError::Log)?;
    let finished = Identity {
        recovery: None,
        ..identity
    };
    dir.write_identity(&*machine.disk, &finished).await?;
    Ok(finished)
}

/// Appends the entry that makes the epoch's founders the members, unless the log already ends with
/// it.
async fn append(log: &Log, id: LogId, identity: &Identity) -> Result<(), LogError> {
    let state = log.state();
    if state.last == Some(id) {
        return Ok(());
    }
    // A log has no entry of a term for which it knows no vote.
    if state.vote.is_none_or(|vote| vote.term < id.term) {
        let vote = Vote {
            term: id.term,
            node: identity.node_id,
            committed: false,
        };
        log.save_vote(vote).await?;
    }
    let members = identity.founders.iter();
    let membership = MembershipRecord {
        members: members
            .map(|(id, member)| MemberRecord::new(*id, member))
            .collect(),
        voters: vec![VoterSet {
            ids: identity.founders.iter().map(|(id, _)| id.0).collect(),
        }],
        position: None,
        term: None,
    };
    let entry = Entry {
        term: id.term,
        position: id.position,
        kind: EntryKind::Membership,
        payload: membership.encode_bytes(),
    };
    let (done, synced) = oneshot::channel::<io::Result<()>>();
    // If the log was closed below, nobody is waiting any more.
    let done = Box::new(move |result| drop(done.send(result)));
    log.append(vec![entry], done).await?;
    // Whatever the result, closing the log reports it.
    synced.await.map_or(Ok(()), |_| Ok(()))
}
