//! The membership: changed through the log, one change at a time, and brought step by step to the
//! state in which every member has the vote that its type requires.
//!
//! ```text
//!   operator: set a type, a priority, an address ──► membership entry, votes unchanged
//!                                                          │
//!   master: a member that should vote and has caught up ───┤──► it votes
//!           a voter that should not ───────────────────────┤──► it does not
//!           a half-made change (joint) ────────────────────┤──► it is completed
//!           a caught-up node of higher priority ───────────┘──► mastership goes to it
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use steadfast_net::lock;

use openraft::async_runtime::WatchReceiver;
use openraft::errors::{ChangeMembershipError, ClientWriteError, RaftError};
use openraft::{ChangeMembers, Membership, Precondition};
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::consensus::transfer::TransferError;
use crate::consensus::{Consensus, ConsensusError, members_of, removal, stopped};
use crate::group::{Member, Members};
use crate::ids::{LogPosition, NodeId};
use crate::log::LogId;

/// A node has caught up when it has everything older than this, whatever the amount: it gets the
/// rest while it becomes a voter or master. A longer backlog is too much for its connection or its
/// disk.
const CAUGHT_UP_WITHIN: Duration = Duration::from_millis(500);

/// How long the master waits after a step that failed.
const STEP_RETRY: Duration = Duration::from_millis(200);

/// The same after a transfer to a node of higher priority.
const HAND_OVER_RETRY: Duration = Duration::from_secs(5);

/// How long a transfer to a node of higher priority may take.
const HAND_OVER_MAX: Duration = Duration::from_secs(1);

/// How long a member may take to leave after it was told that it would be readmitted.
const LEAVING_MAX: Duration = Duration::from_mins(1);

/// Serializes changes of the membership.
#[derive(Default)]
pub(crate) struct Turns {
    /// Held by a caller that reads the members in order to change them.
    pub(crate) call: Mutex<()>,
    /// Held during a change, which takes two entries: anything between them would complete the
    /// change in its own way.
    proposal: Mutex<()>,
}

/// Why the membership was not changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ChangeError {
    #[error(transparent)]
    Consensus(#[from] ConsensusError),
    #[error("another change to the group is in progress")]
    InProgress,
    #[error("{0}")]
    Refused(String),
    /// The master changed meanwhile: the new master's log may have the change.
    #[error("the master changed, and it is unknown whether the change was made")]
    Unknown,
    #[error(transparent)]
    Transfer(#[from] TransferError),
}

/// A step that brings the membership closer to what the members' types and priorities require.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Completes a half-made change.
    Complete,
    /// The member gets a vote.
    Vote(NodeId),
    /// The member loses its vote.
    Unvote(NodeId),
    /// The member becomes master.
    HandOver(NodeId),
}

/// The kind of membership that a change starts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Base {
    /// One set of voters.
    Uniform,
    /// A half-made change: two sets.
    Joint,
}

impl Base {
    fn of(membership: &Membership<NodeId, Member>) -> Self {
        match membership.get_joint_config().as_slice() {
            [_] => Self::Uniform,
            _ => Self::Joint,
        }
    }
}

/// The steps to take from here, the most urgent first; the first possible one is taken.
fn steps(sets: &[BTreeSet<NodeId>], members: &Members, own: NodeId) -> Vec<Step> {
    let [voters] = sets else {
        return vec![Step::Complete];
    };
    let of = |vote: bool, step: fn(NodeId) -> Step| {
        let wrong = members.iter().filter(move |(id, member)| {
            voters.contains(id) != vote && member.node_type.votes() == vote
        });
        wrong.map(move |(id, _)| step(*id))
    };
    // A master hands over before it loses its vote.
    let unvote = of(false, Step::Unvote).filter(|step| *step != Step::Unvote(own));
    let rank = |member: &Member| {
        if member.can_lead() {
            member.priority
        } else {
            0
        }
    };
    let own_rank = members.get(&own).map_or(0, rank);
    let better = members
        .iter()
        .filter(|(id, member)| voters.contains(id) && rank(member) > own_rank);
    // All of them, as the best may be down: the best that has caught up is taken.
    let mut better: Vec<_> = better.map(|(id, member)| (rank(member), *id)).collect();
    better.sort_unstable_by_key(|order| std::cmp::Reverse(*order));
    let hand_over = better.into_iter().map(|(_, id)| Step::HandOver(id));
    unvote
        .chain(of(true, Step::Vote))
        .chain(hand_over)
        .collect()
}

/// Takes the steps while this node is master, until consensus stops.
pub(super) async fn run(consensus: Arc<Consensus>) {
    let mut members = consensus.raft.server_metrics();
    let mut role = consensus.role.subscribe();
    let mut stand_in = consensus.stand_in.leading();
    loop {
        // Marked as seen before use, so that later changes are not missed.
        members.borrow_and_update();
        role.borrow_and_update();
        stand_in.borrow_and_update();
        let steps = if consensus.is_in_charge() {
            steps(
                &consensus.voter_sets(),
                &consensus.members(),
                consensus.identity.node_id,
            )
        } else {
            Vec::new()
        };
        if let Some(step) = steps.iter().find(|step| consensus.can_take(**step)) {
            if let Err(error) = consensus.take(*step).await {
                tracing::debug!(?step, %error, "the membership does not change for now");
                let is_transfer = matches!(step, Step::HandOver(_));
                tokio::time::sleep(if is_transfer {
                    HAND_OVER_RETRY
                } else {
                    STEP_RETRY
                })
                .await;
            }
            continue;
        }
        let more = tokio::select! {
            biased;
            changed = role.changed() => changed.is_ok(),
            changed = stand_in.changed() => changed.is_ok(),
            changed = members.changed() => changed.is_ok(),
            // Whether a node has caught up changes with every acknowledgement, and with silence.
            () = tokio::time::sleep(consensus.timers.heartbeat_interval), if !steps.is_empty() => true,
        };
        if !more {
            return;
        }
    }
}

impl Consensus {
    /// The members, as consensus currently has them.
    pub(crate) fn members(&self) -> Members {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        let membership = metrics.membership_config.membership();
        members_of(membership.nodes().map(|(id, member)| (*id, member.clone())))
    }

    /// The voter sets in force: one, or two while a change is under way. A decision needs a
    /// majority of each.
    pub(crate) fn voter_sets(&self) -> Vec<BTreeSet<NodeId>> {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        metrics
            .membership_config
            .membership()
            .get_joint_config()
            .clone()
    }

    /// Every node that currently votes.
    pub(crate) fn voters(&self) -> BTreeSet<NodeId> {
        self.voter_sets().into_iter().flatten().collect()
    }

    /// Whether this master has heard the member within its lease, and the member has nearly
    /// everything that this node has and is not about to leave. Always true of this node.
    pub(crate) fn has_caught_up(&self, id: NodeId) -> bool {
        if id == self.identity.node_id {
            return true;
        }
        // Acknowledgements from before a node's data was damaged are void.
        let void = self.void.borrow().get(&id).copied();
        let progress = self.replica_progress();
        progress.get(&id).is_some_and(|progress| {
            let persisted = progress.persisted.map(|last| last.position);
            let lease = self.timers.election_timeout_max;
            let is_void = void.is_some_and(|void| persisted < Some(void));
            !is_void
                && !self.is_leaving(id)
                && progress.heard.is_some_and(|ago| ago <= lease)
                && self.log.lag(persisted).is_within(CAUGHT_UP_WITHIN)
        })
    }

    /// Adds a member without a vote. Does nothing if it is a member already.
    ///
    /// # Errors
    /// See [`ChangeError`]. The change may still be made after an error.
    pub(crate) async fn add_member(&self, id: NodeId, member: Member) -> Result<(), ChangeError> {
        self.change(ChangeMembers::AddNodes(BTreeMap::from([(id, member)])))
            .await
    }

    /// Replaces the settings of a member.
    ///
    /// # Errors
    /// As [`Consensus::add_member`].
    pub(crate) async fn set_member(&self, id: NodeId, member: Member) -> Result<(), ChangeError> {
        self.change(ChangeMembers::SetNodes(BTreeMap::from([(id, member)])))
            .await
    }

    /// Removes a member, which must not be this node, from the group, with its vote if it has one.
    ///
    /// # Errors
    /// As [`Consensus::add_member`].
    pub(crate) async fn remove_member(&self, id: NodeId) -> Result<(), ChangeError> {
        let ids = BTreeSet::from([id]);
        let told = self.peers.election_of(id);
        if self.voters().contains(&id) {
            self.change(ChangeMembers::RemoveVoters(ids)).await?;
        } else {
            self.change(ChangeMembers::RemoveNodes(ids)).await?;
        }
        if let Some(client) = told {
            removal::tell(self, &client).await;
        }
        Ok(())
    }

    /// Takes the vote from a member that has lost its data, then readmits it as `member`, its new
    /// incarnation. It gets its vote back once it has an entry that no earlier incarnation had.
    ///
    /// # Errors
    /// As [`Consensus::add_member`].
    pub(crate) async fn readmit(&self, id: NodeId, member: Member) -> Result<(), ChangeError> {
        // Before any change: a member without a vote gets one as soon as it may.
        self.note_void(id, LogPosition(u64::MAX));
        if self.voters().contains(&id) {
            self.take(Step::Unvote(id)).await?;
        }
        self.set_member(id, member).await?;
        lock(&self.leaving).remove(&id);
        let reached = self
            .last()
            .map_or(LogPosition(u64::MAX), |last| last.position);
        self.note_void(id, reached);
        Ok(())
    }

    /// Notes that a member was told that the group can do without it: it leaves at once, and must
    /// not be counted on when the next one asks.
    pub(crate) fn note_leaving(&self, id: NodeId) {
        let mut leaving = lock(&self.leaving);
        leaving.insert(id, Instant::now());
    }

    fn is_leaving(&self, id: NodeId) -> bool {
        let leaving = lock(&self.leaving);
        leaving
            .get(&id)
            .is_some_and(|since| since.elapsed() < LEAVING_MAX)
    }

    fn note_void(&self, id: NodeId, before: LogPosition) {
        self.void.send_modify(|void| {
            void.insert(id, before);
        });
    }

    /// The last entry of the log.
    pub(crate) fn last(&self) -> Option<LogId> {
        self.log.state().last
    }

    pub(super) async fn change(
        &self,
        changes: ChangeMembers<NodeId, Member>,
    ) -> Result<(), ChangeError> {
        // A demoted voter stays a member, a removed one does not.
        let retain = !matches!(changes, ChangeMembers::RemoveVoters(_));
        self.propose_members(changes, retain, Base::Uniform).await
    }

    /// Any change after a half-made one completes it as if it were a part of itself: a removal
    /// would remove a node that was only to lose its vote. So only a completion may follow.
    async fn propose_members(
        &self,
        changes: ChangeMembers<NodeId, Member>,
        retain: bool,
        base: Base,
    ) -> Result<(), ChangeError> {
        let turn = self.turns.proposal.try_lock();
        let _turn = turn.map_err(|_| ChangeError::InProgress)?;
        let (found, last) = {
            let metrics = self.raft.server_metrics();
            let metrics = metrics.borrow_watched();
            let last = *metrics.membership_config.log_id();
            (Base::of(metrics.membership_config.membership()), last)
        };
        if found != base {
            return Err(ChangeError::InProgress);
        }
        let is_last = Precondition::LastMembershipLogId {
            last_membership_log_id: last,
        };
        let changed = self.whole(|raft| async move {
            raft.change_membership_if(changes, retain, [is_last]).await
        });
        match changed.await {
            Ok(_) => Ok(()),
            Err(RaftError::APIError(
                ClientWriteError::ChangeMembershipError(ChangeMembershipError::InProgress(_))
                | ClientWriteError::PreconditionFailed(_),
            )) => Err(ChangeError::InProgress),
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward))) => {
                Err(ConsensusError::NotMaster(forward.leader_id).into())
            }
            Err(RaftError::APIError(ClientWriteError::LogEntryDiscarded(_))) => {
                Err(ChangeError::Unknown)
            }
            Err(RaftError::APIError(error)) => Err(ChangeError::Refused(error.to_string())),
            Err(RaftError::Fatal(fatal)) => Err(stopped(&fatal).into()),
        }
    }

    fn can_take(&self, step: Step) -> bool {
        match step {
            // Unless it is already under way.
            Step::Complete => self.turns.proposal.try_lock().is_ok(),
            Step::Unvote(_) => true,
            Step::Vote(id) | Step::HandOver(id) => self.has_caught_up(id),
        }
    }

    async fn take(&self, step: Step) -> Result<(), ChangeError> {
        tracing::info!(?step, "taking a step in the membership");
        match step {
            Step::Complete => {
                let nothing = ChangeMembers::AddVoterIds(BTreeSet::new());
                self.propose_members(nothing, true, Base::Joint).await
            }
            Step::Vote(id) => {
                let voter = ChangeMembers::AddVoterIds(BTreeSet::from([id]));
                self.propose_members(voter, true, Base::Uniform).await
            }
            Step::Unvote(id) => {
                let voter = ChangeMembers::RemoveVoters(BTreeSet::from([id]));
                self.propose_members(voter, true, Base::Uniform).await
            }
            Step::HandOver(id) => {
                let deadline = Instant::now() + HAND_OVER_MAX;
                self.transfer(&[id], deadline).await?;
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::member::NodeType;

    fn members(list: &[(u64, NodeType, u32)]) -> Members {
        let member = |(id, node_type, priority): &(u64, NodeType, u32)| {
            let member = Member {
                name: format!("n{id}"),
                node_type: *node_type,
                priority: *priority,
                ..Member::default()
            };
            (NodeId(*id), member)
        };
        Arc::new(list.iter().map(member).collect())
    }

    fn voters(ids: &[u64]) -> BTreeSet<NodeId> {
        ids.iter().copied().map(NodeId).collect()
    }

    const OWN: NodeId = NodeId(1);

    #[test]
    fn a_group_in_which_each_has_its_vote_and_the_best_is_master_stays() {
        use NodeType::{Arbiter, Electable, Secondary};
        let group = members(&[
            (1, Electable, 2),
            (2, Electable, 2),
            (3, Arbiter, 9),
            (4, Secondary, 9),
        ]);
        assert_eq!(steps(&[voters(&[1, 2, 3])], &group, OWN), []);
    }

    #[test]
    fn a_half_made_change_is_completed_before_anything_else() {
        let group = members(&[(1, NodeType::Electable, 1), (2, NodeType::Electable, 1)]);
        let sets = [voters(&[1]), voters(&[1, 2])];
        assert_eq!(steps(&sets, &group, OWN), [Step::Complete]);
    }

    #[test]
    fn votes_follow_the_types_and_mastership_the_priorities() {
        use NodeType::{Arbiter, Electable, Secondary};
        let group = members(&[
            (1, Electable, 1),
            (2, Secondary, 1),
            (3, Arbiter, 1),
            (4, Electable, 3),
            (5, Electable, 7),
        ]);
        let found = steps(&[voters(&[1, 2, 4])], &group, OWN);
        let expected = [
            Step::Unvote(NodeId(2)),
            Step::Vote(NodeId(3)),
            Step::Vote(NodeId(5)),
            Step::HandOver(NodeId(4)),
        ];
        assert_eq!(found, expected);
        let found = steps(&[voters(&[1, 3, 4, 5])], &group, OWN);
        assert_eq!(
            found,
            [5, 4].map(|id| Step::HandOver(NodeId(id))),
            "5 may be down"
        );
    }

    #[test]
    fn a_master_that_is_to_be_none_hands_over_before_it_loses_its_vote() {
        use NodeType::{Electable, Secondary};
        let group = members(&[(1, Secondary, 5), (2, Electable, 1), (3, Electable, 0)]);
        let found = steps(&[voters(&[1, 2, 3])], &group, OWN);
        assert_eq!(found, [Step::HandOver(NodeId(2))]);
    }
}
