//! Who belongs to the group: members, the identity of a data directory, and how a group forms.

pub(crate) mod formation;
pub(crate) mod identity;

use std::collections::BTreeMap;
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

/// One member, as the replicated membership has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) name: String,
    pub(crate) address: String,
    /// The life of its data directory that was let in. Another one has no vote.
    pub(crate) incarnation: Incarnation,
}

/// The members in force. Shared as it is, replaced whole.
pub(crate) type Members = Arc<BTreeMap<NodeId, Member>>;

impl Member {
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
}

impl MemberRecord {
    pub(crate) fn new(id: NodeId, member: &Member) -> Self {
        Self {
            id: id.0,
            name: member.name.clone(),
            address: member.address.clone(),
            incarnation: member.incarnation.0,
        }
    }

    pub(crate) fn into_member(self) -> (NodeId, Member) {
        let incarnation = Incarnation(self.incarnation);
        (
            NodeId(self.id),
            Member {
                name: self.name,
                address: self.address,
                incarnation,
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
