//! The types that parameterize openraft, and their encoding.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use openraft::alias::LogIdOf;
use openraft::entry::RaftEntry;
use openraft::vote::RaftTerm;
use openraft::{EntryPayload, Membership, StoredMembership};
use prost::Message;

use crate::group::{Member, MemberRecord, MembershipRecord, VoterSet};
use crate::ids::{LogPosition, NodeId, Term};
use crate::log::{self, EntryKind, LogId};
use crate::plural::plural;
use crate::txn::batch::{Batch, BatchError};

impl RaftTerm for Term {
    fn next(&self) -> Self {
        Self(
            self.0
                .checked_add(1)
                .expect("terms do not run out: a peer's is checked on arrival"),
        )
    }

    fn as_u64(&self) -> Option<u64> {
        Some(self.0)
    }
}

openraft::declare_raft_types!(
    /// One master per term (`leader_id_std`); seeded randomness for the simulator.
    pub(crate) TypeConfig:
        D = Batch,
        R = (),
        NodeId = NodeId,
        Node = Member,
        Term = Term,
        LeaderId = openraft::impls::leader_id_std::LeaderId<Term, NodeId>,
        AsyncRuntime = openraft_rt::deterministic_rng::DeterministicRng<crate::consensus::runtime::ProcessRuntime>,
);

pub(crate) type RaftLogId = LogIdOf<TypeConfig>;
pub(crate) type RaftVote = openraft::alias::VoteOf<TypeConfig>;
pub(crate) type RaftEntryOf = openraft::alias::EntryOf<TypeConfig>;
pub(crate) type RaftMembership = Membership<NodeId, Member>;
pub(crate) type RaftStoredMembership = openraft::alias::StoredMembershipOf<TypeConfig>;

/// Why bytes from disk or from a peer are not an entry.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EntryError {
    #[error(transparent)]
    Batch(#[from] BatchError),
    #[error("membership cannot be decoded: {0}")]
    Membership(#[from] prost::DecodeError),
    #[error("membership is not valid: {0}")]
    InvalidMembership(String),
    #[error("a blank entry has {} {}", .0, plural(*.0, "byte", "bytes"))]
    Blank(usize),
}

pub(crate) fn to_raft_log_id(id: LogId) -> RaftLogId {
    RaftLogId::new(committed_leader(id.term), id.position.0)
}

pub(crate) fn from_raft_log_id(id: &RaftLogId) -> LogId {
    LogId {
        term: id.leader_id.term,
        position: LogPosition(id.index),
    }
}

/// What openraft calls a committed leader: with one master per term, the term.
pub(crate) fn committed_leader(term: Term) -> openraft::alias::CommittedLeaderIdOf<TypeConfig> {
    openraft::alias::CommittedLeaderIdOf::<TypeConfig>::new(term)
}

pub(crate) fn to_raft_vote(vote: log::Vote) -> RaftVote {
    let leader = openraft::impls::leader_id_std::LeaderId {
        term: vote.term,
        voted_for: vote.node,
    };
    RaftVote {
        leader_id: leader,
        committed: vote.committed,
    }
}

pub(crate) fn from_raft_vote(vote: &RaftVote) -> log::Vote {
    let leader = &vote.leader_id;
    log::Vote {
        term: leader.term,
        node: leader.voted_for,
        committed: vote.committed,
    }
}

/// # Errors
/// When the payload does not match its kind. Nothing has been changed then.
pub(crate) fn to_raft_entry(entry: log::Entry) -> Result<RaftEntryOf, EntryError> {
    let payload = match entry.kind {
        EntryKind::Blank if entry.payload.is_empty() => EntryPayload::Blank,
        EntryKind::Blank => return Err(EntryError::Blank(entry.payload.len())),
        EntryKind::Transactions => EntryPayload::Normal(Batch::parse(entry.payload)?),
        EntryKind::Membership => {
            EntryPayload::Membership(decode_membership(&entry.payload)?.membership().clone())
        }
    };
    let id = to_raft_log_id(LogId {
        term: entry.term,
        position: entry.position,
    });
    Ok(RaftEntryOf::new(id, payload))
}

pub(crate) fn from_raft_entry(entry: &RaftEntryOf) -> log::Entry {
    let (kind, payload) = match &entry.payload {
        EntryPayload::Blank => (EntryKind::Blank, Bytes::new()),
        EntryPayload::Normal(batch) => (EntryKind::Transactions, batch.bytes().clone()),
        EntryPayload::Membership(membership) => {
            (EntryKind::Membership, encode_membership(None, membership))
        }
    };
    let LogId { term, position } = from_raft_log_id(&entry.log_id);
    log::Entry {
        term,
        position,
        kind,
        payload,
    }
}

pub(crate) fn encode_membership(id: Option<LogId>, membership: &RaftMembership) -> Bytes {
    let ids = |set: &BTreeSet<NodeId>| VoterSet {
        ids: set.iter().map(|id| id.0).collect(),
    };
    MembershipRecord {
        members: membership
            .nodes()
            .map(|(id, member)| MemberRecord::new(*id, member))
            .collect(),
        voters: membership.get_joint_config().iter().map(ids).collect(),
        position: id.map(|id| id.position.0),
        term: id.map(|id| id.term.0),
    }
    .encode_bytes()
}

/// # Errors
/// When the bytes are not a membership, or a voter in it is not a member.
pub(crate) fn decode_membership(bytes: &Bytes) -> Result<RaftStoredMembership, EntryError> {
    let record = MembershipRecord::decode(bytes.clone())?;
    let id = record.position.zip(record.term).map(|(position, term)| {
        to_raft_log_id(LogId {
            term: Term(term),
            position: LogPosition(position),
        })
    });
    let members: BTreeMap<_, _> = record
        .members
        .into_iter()
        .map(MemberRecord::into_member)
        .collect();
    let set = |set: VoterSet| set.ids.into_iter().map(NodeId).collect::<BTreeSet<_>>();
    let voters = record.voters.into_iter().map(set).collect();
    let membership = Membership::new(voters, members)
        .map_err(|error| EntryError::InvalidMembership(error.to_string()))?;
    Ok(StoredMembership::new(id, membership))
}
