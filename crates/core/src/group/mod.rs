//! Who belongs to the group: members, the identity of a data directory, and how a group forms.

pub(crate) mod addresses;
pub(crate) mod admin;
pub(crate) mod formation;
pub(crate) mod identity;
pub(crate) mod join;
pub(crate) mod known;

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use serde::{Deserialize, Serialize};

use crate::ids::{Incarnation, NodeId};

/// Where a node of the group is found.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NodeAddress {
    /// Its id, never used again after it.
    pub id: NodeId,
    /// Its name, unique within the group at any time.
    pub name: String,
    /// Where the others reach it: `host:port`.
    pub address: String,
}

/// What a node does for its group.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum NodeType {
    /// Has the data, votes, counts for acknowledgements, and can be master.
    #[default]
    Electable,
    /// Has the data; neither votes nor counts. Can be promoted.
    Secondary,
    /// Votes and counts, and has no data: the positions and terms of the log alone. Never master.
    Arbiter,
}

impl NodeType {
    const ALL: [Self; 3] = [Self::Electable, Self::Secondary, Self::Arbiter];

    /// The type as it is written and sent; `None` for one that this version does not know.
    pub(crate) fn from_number(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|known| *known as u32 == number)
    }

    /// Whether such a node votes once it has caught up.
    pub fn votes(self) -> bool {
        self != Self::Secondary
    }

    /// Whether such a node holds the data.
    pub fn has_data(self) -> bool {
        self != Self::Arbiter
    }
}

impl fmt::Display for NodeType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Electable => "electable",
            Self::Secondary => "secondary",
            Self::Arbiter => "arbiter",
        })
    }
}

/// The text names no type of node.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not electable, secondary or arbiter")]
pub struct ParseNodeTypeError(String);

impl FromStr for NodeType {
    type Err = ParseNodeTypeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut all = Self::ALL.into_iter();
        all.find(|known| known.to_string() == text)
            .ok_or_else(|| ParseNodeTypeError(text.to_owned()))
    }
}

/// Priority of a node for which none was given.
pub const PRIORITY_DEFAULT: u32 = 1;

/// One member, as the replicated membership has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) name: String,
    pub(crate) address: String,
    pub(crate) node_type: NodeType,
    /// Of electable nodes: a higher one is preferred as master, 0 never is.
    pub(crate) priority: u32,
    /// The life of its data directory that was let in. Another one has no vote.
    pub(crate) incarnation: Incarnation,
}

impl Default for Member {
    fn default() -> Self {
        Self {
            name: String::new(),
            address: String::new(),
            node_type: NodeType::default(),
            priority: PRIORITY_DEFAULT,
            incarnation: Incarnation(0),
        }
    }
}

/// The members in force. Shared as it is, replaced whole.
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
        }
    }

    /// A type that this version does not know is taken for a secondary: nothing is asked of it.
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
            },
        )
    }
}

/// A set of voters; two of them at once while a membership changes.
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
    /// Log position and term of the entry that made it; absent inside that entry.
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
