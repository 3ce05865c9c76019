//! Transfer of mastership: to a node that has caught up, with writes held for milliseconds.
//!
//! ```text
//!   master                                            its successor
//!   wait until it has nearly everything
//!   hold: no batch is proposed any more
//!   wait until it has everything, on disk
//!   "take over" ────────────────────────────────────► stands for election, past the lease
//!   votes for it, and follows ◄──────────────────────
//!   if that does not happen in time: release the hold, continue as before
//! ```
//!
//! Safety does not depend on this: the election is an ordinary one. openraft's own transfer is not
//! used, because a leader that has begun one cannot continue if it fails.

use openraft::async_runtime::WatchReceiver;
use openraft::raft::TransferLeaderRequest;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use crate::consensus::{Consensus, TypeConfig, to_raft_log_id, to_raft_vote};
use crate::ids::NodeId;
use crate::listener::{Role, RoleState};
use crate::log::{LogId, Vote};
use crate::wire::messages::{ElectionAnswer, ElectionCall, TakeOver};

/// Why mastership was not transferred: the master goes on as before.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TransferError {
    #[error("this node is not the master")]
    NotMaster,
    #[error("another transfer is in progress")]
    Busy,
    #[error("no candidate caught up in time")]
    NotCaughtUp,
    #[error("the candidate did not take over in time")]
    NotTaken,
}

/// Holds back the proposals of a master.
pub(super) struct Hold {
    is_wanted: watch::Sender<bool>,
    /// Whether proposing is paused, with every proposed batch in the log.
    is_held: watch::Sender<bool>,
}

impl Default for Hold {
    fn default() -> Self {
        Self {
            is_wanted: watch::Sender::new(false),
            is_held: watch::Sender::new(false),
        }
    }
}

/// Releases the hold when dropped.
struct Holding<'a>(&'a Hold);

impl Drop for Holding<'_> {
    fn drop(&mut self) {
        self.0.is_wanted.send_replace(false);
    }
}

impl Hold {
    /// Waits while a hold is wanted; called between two proposals.
    pub(super) async fn pass(&self) {
        let mut wanted = self.is_wanted.subscribe();
        let was_wanted = *wanted.borrow();
        self.is_held.send_replace(was_wanted);
        if was_wanted {
            // `self` owns the sender, so neither this nor the wait below fails.
            wanted.wait_for(|is_wanted| !is_wanted).await.ok();
            self.is_held.send_replace(false);
        }
    }

    /// Waits until a hold is wanted.
    pub(super) async fn wanted(&self) {
        self.is_wanted
            .subscribe()
            .wait_for(|is_wanted| *is_wanted)
            .await
            .ok();
    }

    /// `None` when there is a hold already.
    fn hold(&self) -> Option<Holding<'_>> {
        let is_first = !self.is_wanted.send_replace(true);
        is_first.then_some(Holding(self))
    }

    async fn held(&self) {
        self.is_held
            .subscribe()
            .wait_for(|is_held| *is_held)
            .await
            .ok();
    }
}

impl Consensus {
    /// Makes one of `candidates` master: of those that have caught up, the one that has the most.
    /// Returns which.
    ///
    /// # Errors
    /// See [`TransferError`].
    pub(crate) async fn transfer(
        &self,
        candidates: &[NodeId],
        deadline: Instant,
    ) -> Result<NodeId, TransferError> {
        let mut metrics = self.raft.metrics();
        let target = loop {
            if !self.is_in_charge() {
                return Err(TransferError::NotMaster);
            }
            let progress = self.replica_progress();
            let ready = candidates.iter().filter(|id| self.has_caught_up(**id));
            let persisted = |id: &&NodeId| progress.get(*id).and_then(|of| of.persisted);
            if let Some(best) = ready.max_by_key(|id| persisted(id).map(|last| last.position)) {
                break *best;
            }
            match timeout_at(deadline, metrics.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(TransferError::NotMaster),
                Err(_) => return Err(TransferError::NotCaughtUp),
            }
        };
        // Writes wait from here on, but no longer than an election takes anyway.
        let deadline = deadline.min(Instant::now() + self.timers.election_timeout_max);
        let _holding = self.hold.hold().ok_or(TransferError::Busy)?;
        let handed = timeout_at(deadline, self.hand_over(target));
        handed.await.unwrap_or(Err(TransferError::NotTaken))?;
        tracing::info!(to = %target, "mastership was transferred");
        Ok(target)
    }

    /// Returns when this node is no longer the master of its term.
    async fn hand_over(&self, target: NodeId) -> Result<(), TransferError> {
        let mut metrics = self.raft.metrics();
        let vote = metrics.borrow_watched().vote;
        let term = vote.leader_id.term;
        self.hold.held().await;
        let last = self.log.state().last;
        let position = |last: Option<LogId>| last.map(|last| last.position);
        let has_all = || {
            let progress = self.replica_progress();
            let persisted = progress.get(&target).map(|of| position(of.persisted));
            persisted.is_some_and(|persisted| persisted >= position(last))
        };
        while !has_all() {
            metrics
                .changed()
                .await
                .map_err(|_| TransferError::NotMaster)?;
        }
        let client = self
            .peers
            .election_of(target)
            .ok_or(TransferError::NotCaughtUp)?;
        let call = ElectionCall::TakeOver(TakeOver {
            vote: Some(super::from_raft_vote(&vote).into()),
            last: last.map(Into::into),
        });
        let answer = client.call(call, self.timers.election_timeout_max).await;
        if !matches!(answer, Ok(ElectionAnswer::Agrees(true))) {
            return Err(TransferError::NotTaken);
        }
        // Wait until it is heard as master: from then on it can be named to others.
        let is_followed = |state: &RoleState| {
            let master = state.master.as_ref().map(|master| master.id);
            state.term > term && state.role == Role::Replica && master == Some(target)
        };
        let mut role = self.role.subscribe();
        let followed = role.wait_for(is_followed).await;
        followed.map(drop).map_err(|_| TransferError::NotMaster)
    }

    /// Stands for election at the master's request. Returns whether it does.
    pub(super) async fn take_over(&self, caller: NodeId, asked: TakeOver) -> Option<bool> {
        let vote: Vote = asked.vote?.try_into().ok()?;
        let last = asked.last.map(LogId::try_from).transpose().ok()?;
        if vote.node != caller || !vote.committed || !self.can_lead() {
            return Some(false);
        }
        let request = TransferLeaderRequest::<TypeConfig>::new(
            to_raft_vote(vote),
            self.identity.node_id,
            last.map(to_raft_log_id),
        );
        let begun = self.whole(|raft| async move { raft.handle_transfer_leader(request).await });
        let begun = begun.await;
        Some(matches!(begun, Ok(Ok(()))))
    }
}
