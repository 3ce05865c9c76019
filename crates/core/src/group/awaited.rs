//! Nodes that have a certificate for a new id, and may ask to be let in with it.
//!
//! An id is given out for good with the certificate that names it, before the node asks to be let
//! in. Until it was removed again, its id is known from here not to be that of a removed node.

use bytes::Bytes;
use prost::Message;

use crate::engine::EngineError;
use crate::ids::NodeId;

/// The most that are remembered at a time.
pub(crate) const AWAITED_MAX: usize = 256;

/// In the catalog, for all members.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct AwaitedNodes {
    #[prost(message, repeated, tag = "1")]
    nodes: Vec<AwaitedNode>,
}

/// One of them.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct AwaitedNode {
    #[prost(uint64, tag = "1")]
    pub(crate) id: u64,
    /// The name of the pass that it used; empty if its certificate was issued by hand.
    #[prost(string, tag = "2")]
    pub(crate) pass: String,
    /// The fingerprint of its key: a pass is good for one.
    #[prost(string, tag = "3")]
    pub(crate) key: String,
    /// Until when it is remembered, in milliseconds since 1970. Its pass has expired by then.
    #[prost(uint64, tag = "4")]
    pub(crate) until_ms: u64,
    /// Whether it came, and was removed.
    #[prost(bool, tag = "5")]
    pub(crate) is_removed: bool,
}

impl AwaitedNodes {
    /// # Errors
    /// [`EngineError::Corrupt`]: a pass might be used twice.
    pub(crate) fn read(value: Option<&Bytes>) -> Result<Self, EngineError> {
        let Some(value) = value else {
            return Ok(Self::default());
        };
        Self::decode(&value[..]).map_err(|_| EngineError::Corrupt {
            what: "the catalog's entry of the nodes that are awaited".to_owned(),
        })
    }

    /// Whether the node of this id may ask to be let in.
    pub(crate) fn awaits(&self, id: NodeId) -> bool {
        let mut nodes = self.nodes.iter();
        nodes.any(|node| node.id == id.0 && !node.is_removed)
    }

    /// Who has used a pass.
    pub(crate) fn user_of(&self, pass: &str) -> Option<&AwaitedNode> {
        self.nodes.iter().find(|node| node.pass == pass)
    }

    /// Forgets those whose time is over, and adds one. Returns whether there was room.
    pub(crate) fn add(&mut self, node: AwaitedNode, now_ms: u64) -> bool {
        self.nodes.retain(|node| node.until_ms > now_ms);
        let has_room = self.nodes.len() < AWAITED_MAX;
        if has_room {
            self.nodes.push(node);
        }
        has_room
    }

    /// The node of this id is none that may come any more. Returns whether it was one.
    pub(crate) fn note_removed(&mut self, id: NodeId) -> bool {
        let mut nodes = self.nodes.iter_mut();
        let found = nodes.find(|node| node.id == id.0 && !node.is_removed);
        found.map(|node| node.is_removed = true).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: u64, until_ms: u64) -> AwaitedNode {
        AwaitedNode {
            id,
            pass: format!("pass {id}"),
            until_ms,
            ..AwaitedNode::default()
        }
    }

    #[test]
    fn a_node_is_awaited_until_it_was_removed_and_its_pass_stays_known() {
        let mut nodes = AwaitedNodes::default();
        assert!(nodes.add(node(4, 100), 0));
        assert!(nodes.awaits(NodeId(4)) && !nodes.awaits(NodeId(5)));
        assert!(nodes.note_removed(NodeId(4)) && !nodes.note_removed(NodeId(4)));
        assert!(!nodes.awaits(NodeId(4)));
        assert_eq!(nodes.user_of("pass 4").map(|node| node.id), Some(4));
        let bytes = Bytes::from(nodes.encode_to_vec());
        assert_eq!(AwaitedNodes::read(Some(&bytes)).ok(), Some(nodes));
        assert!(AwaitedNodes::read(Some(&Bytes::from_static(b"\xff"))).is_err());
    }

    #[test]
    fn those_whose_time_is_over_make_room() {
        let mut nodes = AwaitedNodes::default();
        for id in 0..AWAITED_MAX as u64 {
            assert!(nodes.add(node(id, 100 + id), 0));
        }
        assert!(!nodes.add(node(1_000, 1_000), 99));
        assert!(nodes.add(node(1_000, 1_000), 100), "one has gone");
        assert!(!nodes.awaits(NodeId(0)) && nodes.awaits(NodeId(1)));
    }
}
