//! Nodes of priority 0 are never master, but stand in for one when the group would be stuck.
//!
//! ```text
//!   nobody leads for a while, or a candidate lacks what this node has
//!        │
//!        ▼
//!   an ordinary election ────► it leads, numbers nothing, takes no writes
//!        │                          │ a node that may be master has caught up
//!        │                          ├──────────────────────────────────────► mastership goes to it
//!        │                          │ the operator gives a node a priority
//!        │                          └──► that node is master
//!        ▼ another one leads: it steps back
//! ```
//!
//! This way the newest entries reach the others even if only such a node has them on disk, and
//! members can be changed. Safety does not depend on priorities, so it is not at stake.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};

use crate::consensus::{Consensus, failover};
use crate::group::Member;
use crate::listener::{Role, RoleState};
use crate::log::LogId;
use crate::member::NodeType;

/// Rounds of `election_timeout_max` without a known master before a node of priority 0 stands for
/// election. A node that may be master, and can win, has won by then, even one without room on its
/// disk (`lifecycle/room.rs`).
const PATIENCE_ROUNDS: u32 = 24;

/// Head start for a node that may be master and has everything.
const PRECEDENCE: Duration = Duration::from_millis(30);

/// Whether a node of priority 0 stands in.
#[derive(Default)]
pub(super) struct StandIn {
    /// Whether it stands for election.
    is_due: watch::Sender<bool>,
    /// Whether it leads.
    leads: watch::Sender<bool>,
    /// Notified when a candidate has less than this node.
    lacking: Notify,
}

impl StandIn {
    /// Watches whether this node leads without being master.
    pub(super) fn leading(&self) -> watch::Receiver<bool> {
        self.leads.subscribe()
    }
}

/// Marks the node as leading, until dropped.
struct Leading<'a>(&'a StandIn);

impl Drop for Leading<'_> {
    fn drop(&mut self) {
        self.0.leads.send_replace(false);
    }
}

/// Makes the node stand for election when needed, until consensus stops.
pub(super) async fn run(consensus: Arc<Consensus>) {
    loop {
        tokio::select! {
            biased;
            () = patience(&consensus) => {
                consensus.set_stand_in(true);
                let mut role = consensus.role.subscribe();
                // `consensus` owns the sender.
                role.wait_for(is_known).await.ok();
                consensus.set_stand_in(false);
            }
            () = consensus.stand_in.lacking.notified() => {
                tokio::time::sleep(PRECEDENCE).await;
                consensus.stand_in_for_candidate().await;
            }
        }
    }
}

fn is_known(state: &RoleState) -> bool {
    state.role.is_known()
}

/// Returns when no master was known for [`PATIENCE_ROUNDS`].
async fn patience(consensus: &Consensus) {
    let mut role = consensus.role.subscribe();
    loop {
        role.wait_for(|state| state.role == Role::Unknown)
            .await
            .ok();
        let rounds = consensus.timers.election_timeout_max * PATIENCE_ROUNDS;
        let known = tokio::time::timeout(rounds, role.wait_for(is_known)).await;
        if known.is_err() {
            return;
        }
    }
}

/// Stands in for a master until this node may be one. Otherwise runs until dropped.
pub(super) async fn until_it_may_be_master(consensus: &Consensus) {
    let mut members = consensus.members.subscribe();
    if !consensus.is_of_priority_0() {
        return;
    }
    tracing::warn!(
        "this node stands in for a master, and takes no writes: no node that may be master can win an election"
    );
    consensus.stand_in.leads.send_replace(true);
    let _leading = Leading(&consensus.stand_in);
    // Nothing is proposed, so a hold takes effect at once.
    let hold = async {
        loop {
            consensus.hold.pass().await;
            consensus.hold.wanted().await;
        }
    };
    let raised = async { while consensus.is_of_priority_0() && members.changed().await.is_ok() {} };
    tokio::select! {
        biased;
        () = raised => {}
        () = hold => {}
    }
}

impl Consensus {
    /// Whether this node leads without being master: it takes no writes, but every change of the
    /// members.
    pub(crate) fn stands_in(&self) -> bool {
        *self.stand_in.leads.borrow()
    }

    /// Whether this node leads, as master or in place of one.
    pub(crate) fn is_in_charge(&self) -> bool {
        self.is_master() || self.stands_in()
    }

    /// Whether this node may stand for election: it may be master, or stands in for one.
    pub(super) fn can_lead(&self) -> bool {
        let members = self.members.borrow();
        let own = members.get(&self.identity.node_id);
        let is_due = *self.stand_in.is_due.borrow();
        let can = |own: &Member| own.can_lead() || is_due && own.node_type == NodeType::Electable;
        *self.may_stand.borrow() && own.is_some_and(can)
    }

    /// Whether this node is of type electable but may not be master because of its priority.
    fn is_of_priority_0(&self) -> bool {
        let members = self.members.borrow();
        let own = members.get(&self.identity.node_id);
        own.is_some_and(|own| own.node_type == NodeType::Electable && !own.can_lead())
    }

    /// Notes a candidate's last entry. A candidate that has less than this node cannot win.
    pub(super) fn hear_candidate(&self, last: Option<LogId>) {
        let order = |id: Option<LogId>| id.map(|id| (id.term, id.position));
        let lacks = order(last) < order(self.log.state().last);
        if lacks && self.is_of_priority_0() && !self.knows_leader() {
            self.stand_in.lacking.notify_one();
        }
    }

    /// Whether this node leads, or hears the leader.
    fn knows_leader(&self) -> bool {
        let follows = self.role.borrow().role == Role::Replica;
        self.leads() || follows && !failover::is_master_gone(self)
    }

    /// Asks for votes in place of a candidate that cannot win. The others grant none while they
    /// hear a master.
    async fn stand_in_for_candidate(&self) {
        if !self.is_of_priority_0() || self.knows_leader() {
            return;
        }
        failover::take_over(self).await;
        if !self.knows_leader() {
            let asked = self.whole(|raft| async move { raft.trigger().elect(true).await });
            if let Err(error) = asked.await {
                tracing::debug!(%error, "no election: consensus has stopped");
            }
        }
    }

    fn set_stand_in(&self, is_due: bool) {
        self.stand_in.is_due.send_replace(is_due);
        self.raft.runtime_config().elect(self.can_lead());
    }
}
