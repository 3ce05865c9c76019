//! What a node answers to its peers, over FEEDER and ELECTION.

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use openraft::raft::{AppendEntriesRequest, VoteRequest};
use tokio::sync::watch;

use super::feeder::AppendError;
use super::types::{TypeConfig, from_raft_log_id, from_raft_vote, to_raft_log_id, to_raft_vote};
use super::{Consensus, Heard, election, failover, feeder, removal};
use crate::group::Member;
use crate::ids::{LogPosition, NodeId};
use crate::log::{LogId, Vote};
use crate::member::NodeType;
use crate::planted::{self, Bug};
use crate::wire::hello::{DialError, Session};
use crate::wire::messages::{
    BarrierReply, BarrierRequest, ElectionAnswer, ElectionCall, VoteReplyMessage,
    VoteRequestMessage,
};

impl Consensus {
    /// Serves one FEEDER connection.
    ///
    /// # Errors
    /// See [`AppendError`].
    pub(crate) async fn serve_feeder(
        &self,
        caller: NodeId,
        session: Session,
    ) -> Result<(), AppendError> {
        let _guard = self.inbound.connected(caller);
        let heard = self.heard.clone();
        let append = |requests: BoxStream<'static, AppendEntriesRequest<TypeConfig>>| {
            let hear = move |append: &AppendEntriesRequest<TypeConfig>| hear(&heard, append);
            self.whole_items(self.raft.stream_append(requests.inspect(hear).boxed()))
        };
        self.seeded(feeder::serve(caller, session, append)).await
    }

    /// Serves one ELECTION connection.
    ///
    /// # Errors
    /// See [`DialError`].
    pub(crate) async fn serve_election(
        &self,
        caller: NodeId,
        session: Session,
    ) -> Result<(), DialError> {
        let _guard = self.inbound.connected(caller);
        self.seeded(election::serve(session, |call| self.answer(caller, call)))
            .await
    }

    async fn answer(&self, caller: NodeId, call: ElectionCall) -> Option<ElectionAnswer> {
        // A master that was admitted since must make itself known before anything else.
        let makes_known = matches!(call, ElectionCall::Heartbeat(_) | ElectionCall::Reach(_));
        if !makes_known && !self.members.borrow().contains_key(&caller) {
            tracing::warn!(%caller, "a node that is not a member asked for what only members may");
            return None;
        }
        match call {
            ElectionCall::Vote(message) => {
                let request = self.vote_request(caller, message)?;
                let voted = self.whole(|raft| async move { raft.vote(request).await });
                let reply = voted.await.ok()?;
                Some(ElectionAnswer::Vote(vote_reply(&reply)))
            }
            ElectionCall::PreVote(message) => {
                let request = self.vote_request(caller, message)?;
                let voted = self.whole(|raft| async move { raft.pre_vote(request).await });
                let reply = voted.await.ok()?;
                Some(ElectionAnswer::Vote(vote_reply(&reply)))
            }
            ElectionCall::Heartbeat(append) => {
                let needed = append.needed.map(LogPosition);
                let request = feeder::check_append(caller, append)
                    .inspect_err(
                        |error| tracing::warn!(%caller, %error, "a heartbeat is not valid"),
                    )
                    .ok()?;
                hear(&self.heard, &request);
                if let Some(needed) = needed {
                    self.retention.hear(needed);
                }
                let prev = request.prev_log_id;
                let appended = self.whole(|raft| async move { raft.append_entries(request).await });
                let reply = appended.await.ok()?;
                let result = reply.into_stream_result(prev, prev);
                Some(ElectionAnswer::Append(feeder::append_reply(&result)))
            }
            ElectionCall::MasterGone(gone) => {
                Some(ElectionAnswer::Agrees(failover::agrees(self, &gone)))
            }
            ElectionCall::TakeOver(asked) => {
                let begins = self.take_over(caller, asked).await?;
                Some(ElectionAnswer::Agrees(begins))
            }
            ElectionCall::Diverged(told) => {
                Some(ElectionAnswer::Agrees(self.hear_of_damage(caller, told)))
            }
            ElectionCall::Stop(told) => Some(ElectionAnswer::Agrees(self.hear_stop(caller, told))),
            ElectionCall::Removed(told) => {
                Some(ElectionAnswer::Agrees(removal::hear(self, caller, told)))
            }
            ElectionCall::Reach(asked) => {
                let reached = self.reach(caller, asked).await?;
                Some(ElectionAnswer::Reached(reached))
            }
            ElectionCall::Barrier(BarrierRequest {}) => {
                let position = self.own_barrier().await.ok().flatten();
                let position = position.map(|position| position.0);
                Some(ElectionAnswer::Barrier(BarrierReply { position }))
            }
        }
    }

    /// Checks and converts a candidate's request: it must ask in its own name.
    fn vote_request(
        &self,
        caller: NodeId,
        message: VoteRequestMessage,
    ) -> Option<VoteRequest<TypeConfig>> {
        let vote: Vote = message.vote?.try_into().ok()?;
        if vote.node != caller {
            tracing::warn!(
                %caller, claimed = %vote.node,
                "a node asked for a vote in the name of another"
            );
            return None;
        }
        // A node of priority 0 stands in, if it wins.
        let is_electable = |member: &Member| member.node_type == NodeType::Electable;
        if !self.members.borrow().get(&caller).is_some_and(is_electable) {
            tracing::warn!(%caller, "a node that is not electable asked for a vote");
            return None;
        }
        let last = message.last.map(LogId::try_from).transpose().ok()?;
        self.hear_candidate(last);
        let mut request = VoteRequest::new(to_raft_vote(vote), last.map(to_raft_log_id));
        request.leadership_transfer = message.lease_is_over;
        if planted::is(Bug::VoteForAnyLog) {
            let own = self.log.state().last.map(to_raft_log_id);
            request.last_log_id = request.last_log_id.max(own);
        }
        Some(request)
    }
}

/// Notes that a master was heard. Called before consensus sees the append, so that nobody follows a
/// master that has not been heard yet.
fn hear(heard: &watch::Sender<Option<Heard>>, append: &AppendEntriesRequest<TypeConfig>) {
    let term = from_raft_vote(&append.vote).term;
    heard.send_if_modified(|newest| {
        let is_newest = newest.is_none_or(|newest| term >= newest.term);
        if is_newest {
            let at = tokio::time::Instant::now();
            *newest = Some(Heard { term, at });
        }
        is_newest
    });
}

fn vote_reply(reply: &openraft::raft::VoteResponse<TypeConfig>) -> VoteReplyMessage {
    VoteReplyMessage {
        vote: Some(from_raft_vote(&reply.vote).into()),
        granted: reply.vote_granted,
        last: reply
            .last_log_id
            .as_ref()
            .map(|id| from_raft_log_id(id).into()),
    }
}
