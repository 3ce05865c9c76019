//! What a node can do at this moment, and what it waits for.

use crate::consensus::Consensus;
use crate::error::REMOVED;
use crate::group::Member;
use crate::ids::NodeId;
use crate::lifecycle::Lifecycle;
use crate::lifecycle::room::Standing;
use crate::listener::{Role, RoleState};
use crate::node::health::{Health, NodePhase};
use crate::node::phase::Phase;
use crate::plural::plural;
use crate::policy::ReplicaAckPolicy;
use crate::recent::millis;

impl Lifecycle {
    /// See [`crate::ReplicatedEnvironment::health`].
    pub(crate) fn health(&self) -> Health {
        let phase = NodePhase::from(&*self.phase.borrow());
        let RoleState { role, term, master } = self.role_now();
        let node = self.node();
        let consensus = node.as_ref().map(|node| &node.consensus);
        let leads = consensus.is_some_and(|consensus| consensus.is_in_charge());
        let heard = match consensus {
            Some(consensus) if role == Role::Master => {
                Some(consensus.majority_heard_ago().unwrap_or_default())
            }
            Some(consensus) => consensus.heard_master(),
            None => None,
        };
        let room = *self.room.borrow();
        let can_persist = room.standing != Standing::ReadOnly
            && node.as_ref().is_some_and(|node| node.hangs_for().is_none());
        let has_acks = consensus.is_some_and(|consensus| self.would_be_acknowledged(consensus));
        Health {
            phase,
            role,
            term,
            master,
            hears_majority: consensus
                .filter(|_| leads)
                .map(|consensus| consensus.majority_is_heard()),
            heard_ms_ago: heard.map(millis),
            can_write: phase == NodePhase::Running
                && role == Role::Master
                && can_persist
                && has_acks
                && !self.shutdown.is_under_way(),
            read_only: room.why_read_only(&self.config),
            waiting_for: Some(self.waiting_for()).filter(|what| !what.is_empty()),
        }
    }

    /// Whether a master that hears a majority hears all that the default durability asks for.
    fn would_be_acknowledged(&self, consensus: &Consensus) -> bool {
        match self.config.durability.ack {
            ReplicaAckPolicy::None | ReplicaAckPolicy::SimpleMajority => true,
            ReplicaAckPolicy::All => consensus.unheard().is_empty(),
        }
    }

    /// The role as callers see it: a node that copies a state is detached, and one that leads in
    /// place of a master says so.
    pub(super) fn role_now(&self) -> RoleState {
        let mut now = self.around.role.borrow().clone();
        if self.restore.borrow().is_some() {
            now.role = Role::Detached;
        }
        if self.node().is_some_and(|node| node.consensus.stands_in()) {
            now.role = Role::StandIn;
        }
        now
    }

    /// What the node waits for, in words; empty when it is ready.
    pub(super) fn waiting_for(&self) -> String {
        match &*self.phase.borrow() {
            Phase::Forming => return self.waiting_for.borrow().clone(),
            Phase::Restoring => return self.restore_in_words(),
            Phase::Refused(reason) | Phase::Stopped(reason) => return reason.clone(),
            Phase::Closing | Phase::Closed => return "nothing; it is closed".to_owned(),
            Phase::Running => {}
        }
        if self.around.role.borrow().role.is_known() {
            return String::new();
        }
        let node = self.node();
        let consensus = node.as_ref().map(|node| &node.consensus);
        if consensus.is_some_and(|consensus| consensus.stands_in()) {
            return "a node that may be master: this one has priority 0, takes no writes, and only \
                    stands in for a master; `steadfast node priority NODE 1` lets a node be master"
                .to_owned();
        }
        match consensus {
            Some(leader) if leader.is_master() => self.unheard_in_words(leader),
            _ => self.majority_in_words(),
        }
    }

    /// The nodes that a leader without a majority does not hear.
    fn unheard_in_words(&self, leader: &Consensus) -> String {
        let heard = leader.heard();
        let members = leader.members();
        let unheard = leader.unheard().into_iter();
        let names = unheard.filter_map(|id| Some(self.name_and_place(id, members.get(&id)?)));
        let names: Vec<_> = names.collect();
        format!(
            "a majority: it leads, but hears {} of {} voting {}, itself included, and not {}",
            heard.counted,
            heard.all,
            plural(heard.all, "node", "nodes"),
            names.join(", ")
        )
    }

    /// The nodes of which a majority must work before there is a master.
    fn majority_in_words(&self) -> String {
        let members = self.around.members.borrow();
        let own = self.identity.borrow().node_id;
        let votes = self.node().map(|node| node.consensus.voters());
        let votes = votes.filter(|votes| !votes.is_empty());
        let is_voter = |id: &NodeId, member: &Member| match &votes {
            Some(votes) => votes.contains(id),
            None => member.node_type.votes(),
        };
        let voters = members.iter().filter(|(id, member)| is_voter(id, member));
        let names: Vec<_> = voters
            .map(|(id, member)| {
                if *id == own {
                    "this one".to_owned()
                } else {
                    self.name_and_place(*id, member)
                }
            })
            .collect();
        format!(
            "a master, which needs {} of {} voting {}: {}",
            names.len() / 2 + 1,
            names.len(),
            plural(names.len(), "node", "nodes"),
            names.join(", ")
        )
    }

    fn name_and_place(&self, id: NodeId, member: &Member) -> String {
        let at = self.around.addresses.best(id, &member.address);
        format!("{} at {at}", member.name)
    }
}

impl From<&Phase> for NodePhase {
    fn from(phase: &Phase) -> Self {
        match phase {
            Phase::Forming => Self::Forming,
            Phase::Running => Self::Running,
            Phase::Restoring => Self::Restoring,
            Phase::Refused(_) => Self::Refused,
            Phase::Stopped(reason) if reason == REMOVED => Self::Removed,
            Phase::Stopped(_) => Self::Stopped,
            Phase::Closing | Phase::Closed => Self::Closed,
        }
    }
}
