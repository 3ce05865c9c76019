//! The members of the group, the identity of a data directory, and the notes beside it.

pub(crate) mod addresses;
pub(crate) mod awaited;
pub(crate) mod identity;
pub(crate) mod known;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;

use crate::ids::{Incarnation, LogPosition, NodeId, Term};
use crate::log::LogId;
use crate::member::{NodeAddress, NodeType, PRIORITY_DEFAULT};

/// One member, as stored in the replicated membership.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) name: String,
    pub(crate) address: String,
    pub(crate) node_type: NodeType,
    /// For electable nodes: a higher one is preferred as master, 0 never is master.
    pub(crate) priority: u32,
    /// The admitted life of its data directory. Any other life has no vote.
    pub(crate) incarnation: Incarnation,
    /// What its application says of it.
    pub(crate) metadata: BTreeMap<String, String>,
}

impl Default for Member {
    fn default() -> Self {
        Self {
            name: String::new(),
            address: String::new(),
            node_type: NodeType::default(),
            priority: PRIORITY_DEFAULT,
            incarnation: Incarnation(0),
            metadata: BTreeMap::new(),
        }
    }
}

/// The members in force. Shared unchanged, replaced as a whole.
pub(crate) type Members = Arc<BTreeMap<NodeId, Member>>;

impl Member {
    /// Whether it may be master, and take writes.
    pub(crate) fn can_lead(&self) -> bool {
        self.node_type == NodeType::Electable && self.priority > 0
    }

    pub(crate) fn node_address(&self, id: NodeId) -> NodeAddress {
        NodeAddress {
            id,
            name: self.name.clone(),
            address: self.address.clone(),
            metadata: self.metadata.clone(),
        }
    }
}

/// A member in the log, in the engine's metadata, in the identity file and on the wire.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct MemberRecord {
    #[prost(uint64, tag = "1")]
    pub(crate) id: u64,
    #[prost(string, tag = "2")]
    pub(crate) name: String,
    #[prost(string, tag = "3")]
    pub(crate) address: String,
    #[prost(fixed64, tag = "4")]
    pub(crate) incarnation: u64,
    /// 0 electable, 1 secondary, 2 arbiter.
    #[prost(uint32, tag = "5")]
    pub(crate) node_type: u32,
    /// Absent: [`PRIORITY_DEFAULT`].
    #[prost(uint32, optional, tag = "6")]
    pub(crate) priority: Option<u32>,
    #[prost(btree_map = "string, string", tag = "7")]
    pub(crate) metadata: BTreeMap<String, String>,
}

impl MemberRecord {
    pub(crate) fn new(id: NodeId, member: &Member) -> Self {
        Self {
            id: id.0,
            name: member.name.clone(),
            address: member.address.clone(),
            incarnation: member.incarnation.0,
            node_type: member.node_type as u32,
            priority: (member.priority != PRIORITY_DEFAULT).then_some(member.priority),
            metadata: member.metadata.clone(),
        }
    }

    /// A type unknown to this version is treated as a secondary: nothing is asked of it.
    pub(crate) fn into_member(self) -> (NodeId, Member) {
        let known = NodeType::from_number(self.node_type);
        (
            NodeId(self.id),
            Member {
                name: self.name,
                address: self.address,
                node_type: known.unwrap_or(NodeType::Secondary),
                priority: self.priority.unwrap_or(PRIORITY_DEFAULT),
                incarnation: Incarnation(self.incarnation),
                metadata: self.metadata,
            },
        )
    }
}

/// A set of voters; there are two at once while a membership changes.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct VoterSet {
    #[prost(uint64, repeated, tag = "1")]
    pub(crate) ids: Vec<u64>,
}

/// The members of the group, in the log and in the engine's metadata.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct MembershipRecord {
    #[prost(message, repeated, tag = "1")]
    pub(crate) members: Vec<MemberRecord>,
    #[prost(message, repeated, tag = "2")]
    pub(crate) voters: Vec<VoterSet>,
    /// Log position and term of the entry that created it; absent inside that entry.
    #[prost(uint64, optional, tag = "3")]
    pub(crate) position: Option<u64>,
    #[prost(uint64, optional, tag = "4")]
    pub(crate) term: Option<u64>,
}

impl MembershipRecord {
    pub(crate) fn encode_bytes(&self) -> Bytes {
        self.encode_to_vec().into()
    }
}

/// The id of an entry, in the identity file and on the wire.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(crate) struct LogIdRecord {
    #[prost(uint64, tag = "1")]
    pub(crate) term: u64,
    #[prost(uint64, tag = "2")]
    pub(crate) position: u64,
}

impl From<LogId> for LogIdRecord {
    fn from(id: LogId) -> Self {
        Self {
            term: id.term.0,
            position: id.position.0,
        }
    }
}

impl TryFrom<LogIdRecord> for LogId {
    type Error = Impossible;

    fn try_from(message: LogIdRecord) -> Result<Self, Impossible> {
        check_headroom(message.term, "term")?;
        check_headroom(message.position, "log position")?;
        Ok(Self {
            term: Term(message.term),
            position: LogPosition(message.position),
        })
    }
}

/// A number that no node gives out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid {0}")]
pub(crate) struct Impossible(pub(crate) &'static str);

/// Numbers near the end of their range would overflow in additions.
pub(crate) fn check_headroom(number: u64, what: &'static str) -> Result<(), Impossible> {
    if number < u64::MAX / 2 {
        Ok(())
    } else {
        Err(Impossible(what))
    }
}
