//! What the other members say of themselves, and which of them may give this node a copy of their
//! state.

use std::collections::BTreeMap;

use futures_util::future::join_all;

use crate::group::{Member, MemberRecord};
use crate::ids::{GroupEpoch, GroupUuid, LogPosition, NodeId};
use crate::lifecycle::{Lifecycle, repair};
use crate::log::LogId;
use crate::wire::node_state;
use crate::wire::node_state::NodeStateMessage;

/// A node that may have the required state.
pub(super) struct Candidate {
    pub(super) id: NodeId,
    pub(super) address: String,
    is_checked: bool,
    copies: u32,
    is_master: bool,
    applied: LogPosition,
}

impl Lifecycle {
    /// The other members' own status; `None` for those that do not answer.
    pub(super) async fn others(&self) -> Vec<(Member, Option<NodeStateMessage>)> {
        let members = self.around.members.borrow().clone();
        self.states_of(&members).await
    }

    /// The same for all that any of them knows as a member: this node's record of the members may be
    /// outdated.
    pub(super) async fn all_others(&self) -> Vec<(Member, Option<NodeStateMessage>)> {
        let members = self.around.members.borrow().clone();
        let mut states = self.states_of(&members).await;
        let group = self.identity.borrow().group.map(GroupUuid::to_bytes);
        let answers = states.iter().filter_map(|(_, state)| state.as_ref());
        let answers = answers.filter(|state| Some(&state.group) == group.as_ref());
        let named = answers.flat_map(|state| state.members.iter().cloned());
        let named = named.map(MemberRecord::into_member);
        let unknown = named.filter(|(id, _)| !members.contains_key(id));
        states.extend(self.states_of(&unknown.collect()).await);
        states
    }

    async fn states_of(
        &self,
        members: &BTreeMap<NodeId, Member>,
    ) -> Vec<(Member, Option<NodeStateMessage>)> {
        let own = self.identity.borrow().clone();
        let others = members
            .iter()
            .filter(|(_, member)| member.name != own.node_name);
        join_all(others.map(|(id, member)| self.state_of(*id, member))).await
    }

    /// A member's own status, with the address at which it answered.
    async fn state_of(&self, id: NodeId, member: &Member) -> (Member, Option<NodeStateMessage>) {
        let transport = &*self.machine.transport;
        let timeout = self.config.tuning.dial_timeout;
        for address in self.around.addresses.candidates(id, &member.address) {
            let asked = node_state::ask(transport, &address, false, timeout);
            if let Ok(state) = asked.await {
                let member = Member {
                    address,
                    ..member.clone()
                };
                return (member, Some(state));
            }
        }
        (member.clone(), None)
    }

    /// The possible sources, which know of no damage: first those that have counted their rows,
    /// then the least loaded, by the number of copies they send, and among equals the master last.
    pub(super) fn candidates(
        &self,
        others: Vec<(Member, Option<NodeStateMessage>)>,
        needed: LogId,
    ) -> Vec<Candidate> {
        let own = self.identity.borrow().clone();
        let differs = self.around.notices.damage.borrow().differs().is_some();
        let group = own.group.map(GroupUuid::to_bytes);
        let suits = |(_, state): &(Member, NodeStateMessage)| {
            let is_ours = Some(&state.group) == group.as_ref()
                && GroupEpoch::from_number(state.epoch) == own.epoch;
            let has_data = state.node.clone().is_some_and(|record: MemberRecord| {
                let (_, member) = record.into_member();
                member.node_type.has_data()
            });
            let applied = state.applied.map_or(0, |applied| applied.position);
            // Any other may have lost the same, and not know it yet.
            let is_of_use = repair::is_well(state) && (state.checked.is_some() || !differs);
            is_ours
                && has_data
                && is_of_use
                && state.restore.is_none()
                && applied >= needed.position.0
        };
        let states = others
            .into_iter()
            .filter_map(|(member, state)| Some((member, state?)));
        let mut candidates: Vec<_> = states
            .filter(suits)
            .map(|(member, state)| Candidate {
                id: NodeId(state.node.as_ref().map_or(0, |node| node.id)),
                address: member.address,
                is_checked: state.checked.is_some(),
                copies: state.copies,
                is_master: state.role == "master",
                applied: LogPosition(state.applied.map_or(0, |applied| applied.position)),
            })
            .collect();
        candidates.sort_by_key(|of| {
            let newest_first = std::cmp::Reverse(of.applied);
            (!of.is_checked, of.copies, of.is_master, newest_first)
        });
        candidates
    }
}
