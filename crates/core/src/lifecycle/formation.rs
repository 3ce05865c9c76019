//! How a group forms from one list of nodes, started in any order, exactly once.
//!
//! ```text
//!   every listed node                       the listed node that is first by name
//!   ------------------                      -------------------------------------
//!   writes {name, incarnation} to disk      the same, and then:
//!   answers NODE_STATE: "no group yet,      asks all others until every one has answered that it
//!     I expect list X, I am Y"                has no group and expects the same list
//!   asks all others until one has a group   makes the UUID, gives out node ids, writes them and
//!     that knows this very incarnation        every incarnation to disk: the group exists
//!   writes the group's UUID to disk         is a member, as the others are when they learn of it
//! ```
//!
//! Only one node can found, and only while no listed node belongs to a group. A node whose
//! directory was wiped has a different incarnation from the one the group admitted, and is refused:
//! it could have acknowledged writes that it no longer has.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use steadfast_net::Transport;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use crate::error::{FORMED_WITHOUT, in_full};
use crate::group::identity::Identity;
use crate::group::{Member, MemberRecord};
use crate::ids::{GroupEpoch, GroupUuid, Incarnation, NodeId};
use crate::member::Expected;
use crate::planted::{self, Bug};
use crate::wire::hello::DialError;
use crate::wire::node_state;
use crate::wire::node_state::NodeStateMessage;

/// How often the other listed nodes are asked.
const ASK_INTERVAL: Duration = Duration::from_millis(50);

/// Digest of a list, to check that two nodes were given the same one.
pub(crate) fn digest(group_name: &str, list: &[Expected]) -> u64 {
    let mut lines: Vec<_> = list
        .iter()
        .map(|e| format!("{}={}\n", e.name, e.address))
        .collect();
    lines.sort();
    xxhash_rust::xxh3::xxh3_64(format!("{group_name}\n{}", lines.concat()).as_bytes())
}

/// The formation of a group, as seen by one node.
pub(crate) struct Formation {
    /// Written to disk already.
    pub(crate) identity: Identity,
    /// Every founding node, this one included.
    pub(crate) list: Vec<Expected>,
    /// The UUID to use if this node is the founder.
    pub(crate) group: GroupUuid,
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) dial_timeout: Duration,
}

/// The result of one round of questions.
pub(super) enum Round {
    /// The node belongs to a group.
    Formed(Box<Identity>),
    Refused(String),
    /// What it waits for, in words.
    Wait(String),
}

/// Asks repeatedly, until a round decides. `waiting_for` says which nodes it waits for.
///
/// # Errors
/// The reason for which the group refuses this node.
pub(super) async fn decided<F: Future<Output = Round>>(
    every: Duration,
    waiting_for: &watch::Sender<String>,
    round: impl Fn() -> F,
) -> Result<Identity, String> {
    let mut interval = tokio::time::interval(every);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        match round().await {
            Round::Formed(identity) => return Ok(*identity),
            Round::Refused(reason) => return Err(reason),
            Round::Wait(whom) => waiting_for.send_if_modified(|old| {
                let changed = *old != whom;
                old.clone_from(&whom);
                changed
            }),
        };
    }
}

impl Formation {
    /// Asks until the group has formed; returns the completed identity, which must be written to
    /// disk before anything else is done. `waiting_for` says which nodes it waits for.
    ///
    /// # Errors
    /// The reason for which the group refuses this node.
    pub(crate) async fn run(
        &self,
        waiting_for: &watch::Sender<String>,
    ) -> Result<Identity, String> {
        let round = || async { self.evaluate(&self.ask_all().await) };
        decided(ASK_INTERVAL, waiting_for, round).await
    }

    async fn ask_all(&self) -> Vec<(&Expected, Result<NodeStateMessage, DialError>)> {
        let others = self
            .list
            .iter()
            .filter(|node| node.name != self.identity.node_name);
        join_all(others.map(|node| async move {
            let transport = &*self.transport;
            let asked = node_state::ask(transport, &node.address, false, self.dial_timeout);
            (node, asked.await)
        }))
        .await
    }

    fn evaluate(&self, answers: &[(&Expected, Result<NodeStateMessage, DialError>)]) -> Round {
        let mut missing = Vec::new();
        let mut others = Vec::new();
        for (node, answer) in answers {
            match answer {
                Ok(state) if !state.group.is_empty() => return self.meet_group(node, state),
                Ok(state) => match self.check_unformed(node, state) {
                    Ok(member) => others.push(member),
                    Err(why) => missing.push(why),
                },
                Err(error) => {
                    let why = in_full(error);
                    missing.push(format!("{} at {} ({why})", node.name, node.address));
                }
            }
        }
        if !missing.is_empty() {
            return Round::Wait(format!(
                "the group to form, which needs {}",
                missing.join(" and ")
            ));
        }
        let founder = self.list.iter().map(|node| &node.name).min();
        if founder == Some(&self.identity.node_name) {
            Round::Formed(Box::new(self.found(others)))
        } else {
            Round::Wait(format!(
                "{} to found the group",
                founder.map_or("", String::as_str)
            ))
        }
    }

    /// Another listed node already belongs to a group.
    fn meet_group(&self, node: &Expected, state: &NodeStateMessage) -> Round {
        let Identity {
            group_name,
            node_name,
            incarnation,
            ..
        } = &self.identity;
        let Ok(group) = GroupUuid::from_bytes(&state.group) else {
            return Round::Wait(format!("{} to send a valid answer", node.address));
        };
        if state.group_name != *group_name {
            return Round::Refused(format!(
                "{} belongs to group {:?}, not to {group_name:?}; correct the address",
                node.address, state.group_name
            ));
        }
        match state
            .members
            .iter()
            .find(|member| member.name == *node_name)
        {
            Some(member)
                if member.incarnation == incarnation.0 || planted::is(Bug::AcceptWiped) =>
            {
                let founders = state.members.iter().cloned().map(MemberRecord::into_member);
                Round::Formed(Box::new(Identity {
                    group: Some(group),
                    node_id: NodeId(member.id),
                    founders: founders.collect(),
                    epoch: GroupEpoch::from_number(state.epoch),
                    ..self.identity.clone()
                }))
            }
            Some(_) => Round::Refused(format!(
                "{node_name:?} is already a member of group {group_name:?} ({group}), with a data \
                 directory other than this empty one. This node could have acknowledged writes \
                 that it no longer has, so it cannot come back under its old name: give it its old \
                 directory back, or replace it (`steadfast node replace {node_name}`). A list \
                 makes one group: another group needs a list of its own"
            )),
            None => Round::Refused(format!(
                "group {group_name:?} ({group}) {FORMED_WITHOUT} {node_name:?}"
            )),
        }
    }

    /// Another listed node without a group, as a member of the group to be formed.
    fn check_unformed(&self, node: &Expected, state: &NodeStateMessage) -> Result<Member, String> {
        let named = state
            .node
            .as_ref()
            .filter(|_| state.group_name == self.identity.group_name);
        match named {
            Some(found) if found.name != node.name => Err(format!(
                "{} at {}, where {} answers",
                node.name, node.address, found.name
            )),
            Some(_) if state.expects != digest(&self.identity.group_name, &self.list) => {
                Err(format!(
                    "{}, which was started with another list of nodes",
                    node.name
                ))
            }
            Some(found) => Ok(Member {
                name: node.name.clone(),
                address: node.address.clone(),
                incarnation: Incarnation(found.incarnation),
                ..Member::default()
            }),
            None => Err(format!("{}, which waits for another group", node.address)),
        }
    }

    fn found(&self, mut members: Vec<Member>) -> Identity {
        let own = self
            .list
            .iter()
            .find(|node| node.name == self.identity.node_name);
        members.push(Member {
            name: self.identity.node_name.clone(),
            address: own.map(|node| node.address.clone()).unwrap_or_default(),
            incarnation: self.identity.incarnation,
            ..Member::default()
        });
        members.sort_by(|a, b| a.name.cmp(&b.name));
        let founders: Vec<_> = (1..).map(NodeId).zip(members).collect();
        let own = founders
            .iter()
            .find(|(_, member)| member.name == self.identity.node_name);
        let node_id = own
            .map(|(id, _)| *id)
            .expect("this node was just put into the list");
        Identity {
            group: Some(self.group),
            node_id,
            founders,
            ..self.identity.clone()
        }
    }
}
