//! Group events: changes of members and of the master, nodes that fail and come back.
//!
//! ```text
//!   master ──view of the group, whenever it changes──► GroupEvents: what has changed since the last view
//! ```
//!
//! A node sends its whole view; the watcher compares it with the previous one. So the watcher can
//! continue at any other node. Changes that came and went while it was away are left out, but the
//! newest state is never missed. Only a master knows which nodes are up, so the watcher moves to
//! the master, and stays with another node while there is none.

pub(crate) mod change;
pub(crate) mod service;
mod watcher;

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ids::Term;
use crate::member::NodeAddress;
use crate::node::status::MemberStatus;
use crate::plural::plural;

pub use change::GroupChange;
pub use watcher::GroupEvents;

/// A member, and whether its master hears it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberView {
    /// The member itself.
    #[serde(flatten)]
    pub member: MemberStatus,
    /// Whether the master has heard it within four times `election_timeout_max_ms`; `None` until a
    /// master has said.
    pub is_up: Option<bool>,
    /// Why its data is known to be wrong.
    #[serde(default)]
    pub damage: Option<String>,
}

/// A group at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupView {
    /// Name of the group.
    pub group_name: String,
    /// The newest term.
    pub term: Term,
    /// The master of that term, while there is one.
    pub master: Option<NodeAddress>,
    /// All members, in the order of their ids.
    pub members: Vec<MemberView>,
}

impl GroupView {
    fn member(&self, of: &MemberView) -> Option<&MemberView> {
        let id = of.member.node.id;
        self.members
            .iter()
            .find(|member| member.member.node.id == id)
    }

    /// The members that are down.
    pub fn down(&self) -> Vec<NodeAddress> {
        let down = self.members.iter().filter(|of| of.is_up == Some(false));
        down.map(|of| of.member.node.clone()).collect()
    }

    /// The members whose data is known to be wrong.
    pub fn damaged(&self) -> Vec<NodeAddress> {
        let damaged = self.members.iter().filter(|of| of.damage.is_some());
        damaged.map(|of| of.member.node.clone()).collect()
    }

    /// How many more nodes may fail with writes still possible; `None` while they are not.
    pub fn survives(&self) -> Option<usize> {
        let voters = self.members.iter().filter(|of| of.member.votes);
        let majority = voters.clone().count() / 2 + 1;
        let up = voters.filter(|of| of.is_up != Some(false)).count();
        let survives = up.checked_sub(majority);
        survives.filter(|_| self.master.is_some())
    }

    fn health(&self) -> GroupHealth {
        let (down, damaged) = (self.down(), self.damaged());
        match self.survives() {
            None => GroupHealth::NoMaster,
            Some(_) if down.is_empty() && damaged.is_empty() => GroupHealth::Healthy,
            Some(survives) => GroupHealth::Degraded {
                down,
                damaged,
                survives,
            },
        }
    }
}

/// The health of a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GroupHealth {
    /// There is a master, it hears all members, and no data is known to be wrong.
    Healthy,
    /// Writes are possible, but members are down or have wrong data.
    Degraded {
        /// The members that are down.
        down: Vec<NodeAddress>,
        /// The members whose data is wrong.
        #[serde(default)]
        damaged: Vec<NodeAddress>,
        /// How many more nodes may fail with writes still possible.
        survives: usize,
    },
    /// No writes are possible.
    NoMaster,
}

/// Something that has happened to a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum GroupEvent {
    /// The group as first seen. Always the first event, and never a later one.
    Present(GroupView),
    /// A node has joined the group.
    MemberAdded(MemberStatus),
    /// A node has left the group for good.
    MemberRemoved(MemberStatus),
    /// A member's type, priority, address, metadata or vote has changed.
    MemberChanged(MemberStatus),
    /// Another node is master, or none is.
    MasterChanged {
        /// The newest term.
        term: Term,
        /// Its master.
        master: Option<NodeAddress>,
    },
    /// The master hears this member again.
    NodeUp(NodeAddress),
    /// The master no longer hears this member.
    NodeDown(NodeAddress),
    /// This member's data was found to be wrong.
    NodeDamaged {
        /// The member.
        node: NodeAddress,
        /// What is wrong.
        what: String,
    },
    /// The data of this member is right again.
    NodeRepaired(NodeAddress),
    /// The group's health, when it has changed.
    Health(GroupHealth),
    /// Somebody has asked the master for a change. What the master does not learn of, because it is
    /// refused before, is in the log of the node that refused it.
    ChangeAsked(GroupChange),
    /// No node can be reached. Watching continues.
    OutOfSight {
        /// The last failure.
        why: String,
    },
}

impl fmt::Display for GroupEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = |nodes: &[NodeAddress]| {
            let names: Vec<_> = nodes.iter().map(|node| node.name.as_str()).collect();
            names.join(", ")
        };
        match self {
            Self::Present(view) => {
                let member = |of: &MemberView| {
                    let down = if of.is_up == Some(false) {
                        ", down"
                    } else {
                        ""
                    };
                    format!("{} ({}{down})", of.member.node.name, of.member.node_type)
                };
                let members: Vec<_> = view.members.iter().map(member).collect();
                let master = view.master.as_ref().map_or("none", |master| &master.name);
                let (name, term, members) = (&view.group_name, view.term, members.join(", "));
                write!(
                    f,
                    "group {name}: master {master} in term {term}, members {members}"
                )
            }
            Self::MemberAdded(of) => write!(f, "{} was added, {}", of.node.name, of.node_type),
            Self::MemberRemoved(of) => write!(f, "{} was removed", of.node.name),
            Self::MemberChanged(of) => write!(
                f,
                "{} is {} with priority {} at {}, and {}{}",
                of.node.name,
                of.node_type,
                of.priority,
                of.node.address,
                if of.votes { "votes" } else { "does not vote" },
                published(&of.node)
            ),
            Self::MasterChanged {
                term,
                master: Some(master),
            } => write!(f, "{} is master in term {term}", master.name),
            Self::MasterChanged { term, master: None } => {
                write!(f, "no node is master (term {term})")
            }
            Self::NodeUp(node) => write!(f, "{} is up", node.name),
            Self::NodeDown(node) => write!(f, "{} is down", node.name),
            Self::Health(GroupHealth::Healthy) => f.write_str("HEALTHY"),
            Self::Health(GroupHealth::NoMaster) => f.write_str("NO MASTER: no writes are possible"),
            Self::NodeDamaged { node, what } => {
                write!(f, "the data of {} is bad: {what}", node.name)
            }
            Self::NodeRepaired(node) => write!(f, "the data of {} is right again", node.name),
            Self::Health(GroupHealth::Degraded {
                down,
                damaged,
                survives,
            }) => {
                f.write_str("DEGRADED: ")?;
                if !down.is_empty() {
                    write!(f, "{} down; ", names(down))?;
                }
                if !damaged.is_empty() {
                    write!(f, "bad data on {}; ", names(damaged))?;
                }
                let failures = plural(*survives, "failure", "failures");
                write!(f, "survives {survives} more {failures}")
            }
            Self::ChangeAsked(change) => change.fmt(f),
            Self::OutOfSight { why } => write!(f, "no node can be reached: {why}"),
        }
    }
}

/// What the application says of a node, for people.
fn published(node: &NodeAddress) -> String {
    let values = node.metadata.iter();
    let values: Vec<_> = values
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    if values.is_empty() {
        return String::new();
    }
    format!("; {}", values.join(", "))
}

/// The events between two views, in the order in which people would tell them.
fn between(before: &GroupView, after: &GroupView) -> Vec<GroupEvent> {
    let mut events = Vec::new();
    let gone = before
        .members
        .iter()
        .filter(|of| after.member(of).is_none());
    events.extend(gone.map(|of| GroupEvent::MemberRemoved(of.member.clone())));
    for of in &after.members {
        let was = before.member(of);
        let member = || of.member.clone();
        match was {
            None => events.push(GroupEvent::MemberAdded(member())),
            Some(was) if was.member != of.member => {
                events.push(GroupEvent::MemberChanged(member()));
            }
            Some(_) => {}
        }
        match (was.and_then(|was| was.is_up), of.is_up) {
            (Some(false), Some(true)) => events.push(GroupEvent::NodeUp(member().node)),
            (Some(true) | None, Some(false)) => events.push(GroupEvent::NodeDown(member().node)),
            _ => {}
        }
        match (was.and_then(|was| was.damage.as_ref()), &of.damage) {
            (None, Some(what)) => events.push(GroupEvent::NodeDamaged {
                node: member().node,
                what: what.clone(),
            }),
            (Some(_), None) => events.push(GroupEvent::NodeRepaired(member().node)),
            _ => {}
        }
    }
    let id = |view: &GroupView| view.master.as_ref().map(|master| master.id);
    let is_new_term = after.master.is_some() && after.term != before.term;
    if id(before) != id(after) || is_new_term {
        events.push(GroupEvent::MasterChanged {
            term: after.term,
            master: after.master.clone(),
        });
    }
    let health = after.health();
    if before.health() != health {
        events.push(GroupEvent::Health(health));
    }
    events
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::ids::NodeId;
    use crate::member::NodeType;

    fn member(id: u64) -> MemberView {
        MemberView {
            member: MemberStatus {
                node: NodeAddress {
                    id: NodeId(id),
                    name: format!("n{id}"),
                    address: format!("h{id}:1"),
                    metadata: BTreeMap::new(),
                },
                node_type: NodeType::Electable,
                priority: 1,
                votes: true,
            },
            is_up: Some(true),
            damage: None,
        }
    }

    fn view() -> GroupView {
        GroupView {
            group_name: "g".to_owned(),
            term: Term(1),
            master: Some(member(1).member.node),
            members: vec![member(1), member(2), member(3)],
        }
    }

    fn told(before: &GroupView, after: &GroupView) -> Vec<String> {
        let events = between(before, after);
        events.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_lies_between_two_views_is_told_once_and_nothing_between_equal_ones() {
        assert!(told(&view(), &view()).is_empty());
        let mut down = view();
        down.members[2].is_up = Some(false);
        let degraded = "DEGRADED: n3 down; survives 0 more failures";
        assert_eq!(told(&view(), &down), ["n3 is down", degraded]);
        assert_eq!(told(&down, &view()), ["n3 is up", "HEALTHY"]);

        let mut damaged = view();
        damaged.members[1].damage = Some("a row is gone".to_owned());
        let told_of_damage = [
            "the data of n2 is bad: a row is gone",
            "DEGRADED: bad data on n2; survives 1 more failure",
        ];
        assert_eq!(told(&view(), &damaged), told_of_damage);
        let repaired = ["the data of n2 is right again", "HEALTHY"];
        assert_eq!(told(&damaged, &view()), repaired);

        let mut grown = view();
        grown.members.push(member(4));
        grown.members[0].member.priority = 7;
        let metadata = &mut grown.members[0].member.node.metadata;
        metadata.insert("zone".to_owned(), "b".to_owned());
        let changed = "n1 is electable with priority 7 at h1:1, and votes; zone=b";
        assert_eq!(told(&view(), &grown), [changed, "n4 was added, electable"]);
        assert_eq!(told(&grown, &view())[0], "n4 was removed");

        let mut masterless = view();
        masterless.master = None;
        let lost = [
            "no node is master (term 1)",
            "NO MASTER: no writes are possible",
        ];
        assert_eq!(told(&view(), &masterless), lost);
        let mut other = view();
        (other.term, other.master) = (Term(2), Some(member(2).member.node));
        other.members[0].is_up = Some(false);
        let expected = [
            "n1 is down",
            "n2 is master in term 2",
            "DEGRADED: n1 down; survives 0 more failures",
        ];
        assert_eq!(told(&masterless, &other), expected);
        assert_eq!(told(&view(), &other), expected);
    }
}
