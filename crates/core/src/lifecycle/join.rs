//! How a node joins an existing group: with a token, and never with a vote at once.
//!
//! ```text
//!   the new node                               the master
//!   ------------                               ----------
//!   writes {name, incarnation} to disk
//!   asks to be let in: name, address, ...      is the name free? gives out a node id, for good;
//!                                                membership entry: a member without a vote
//!   makes its log, writes the identity         sends it the log; when it has caught up:
//!   works                                        membership entry: it votes, if its type does
//! ```
//!
//! Asking again with the same incarnation changes nothing, and gets the same answer.

use std::sync::Arc;
use std::time::Duration;

use steadfast_net::Transport;
use tokio::sync::watch;

use crate::admin::client::{self, Asked};
use crate::admin::messages::{AdminCall, JoinRequest, Joined};
use crate::group::MemberRecord;
use crate::group::identity::Identity;
use crate::ids::{GroupEpoch, NodeId};
use crate::lifecycle::formation::{Round, decided};
use crate::member::JoinToken;

/// How often the group is asked while it cannot answer.
const ASK_INTERVAL: Duration = Duration::from_millis(200);

/// How long the master may take to admit a node.
const ANSWER_MAX: Duration = Duration::from_secs(15);

/// A node joining a group with a token.
pub(crate) struct Joining {
    /// Written to disk already.
    pub(crate) identity: Identity,
    pub(crate) token: JoinToken,
    /// The address at which the others will reach this node.
    pub(crate) address: String,
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) dial_timeout: Duration,
}

impl Joining {
    /// Asks until the group has admitted this node; returns the completed identity, which must be
    /// written to disk before anything else is done. `waiting_for` says which nodes it waits for.
    ///
    /// # Errors
    /// The reason for which the group refuses this node.
    pub(crate) async fn run(
        &self,
        waiting_for: &watch::Sender<String>,
    ) -> Result<Identity, String> {
        decided(ASK_INTERVAL, waiting_for, || self.ask()).await
    }

    async fn ask(&self) -> Round {
        let call = AdminCall::Join(JoinRequest {
            name: self.identity.node_name.clone(),
            address: self.address.clone(),
            incarnation: self.identity.incarnation.0,
            node_type: self.token.node_type as u32,
            priority: self.token.priority,
        });
        let client = client::Client {
            transport: &*self.transport,
            group: Some((self.token.group_name.as_str(), self.token.group)),
            addresses: &self.token.addresses,
            dial_timeout: self.dial_timeout,
        };
        match client.call(call, ANSWER_MAX).await {
            Asked::Done(done) => self.completed(done.joined.unwrap_or_default()),
            Asked::Refused(refusal) if !refusal.passes => Round::Refused(refusal.to_string()),
            Asked::Refused(refusal) => self.wait(&refusal.what),
            Asked::Denied { why } | Asked::NoAnswer { why, .. } => self.wait(&why),
        }
    }

    fn wait(&self, why: &str) -> Round {
        let group = &self.token.group_name;
        Round::Wait(format!("group {group:?} to admit it: {why}"))
    }

    fn completed(&self, joined: Joined) -> Round {
        let members = joined.members.into_iter().map(MemberRecord::into_member);
        let members: Vec<_> = members.collect();
        let node_id = NodeId(joined.node_id);
        let own = members.iter().find(|(id, _)| *id == node_id);
        if own.is_none_or(|(_, own)| own.incarnation != self.identity.incarnation) {
            let reason = "the group's answer does not list this node, or lists it with another \
                          data directory";
            return Round::Refused(reason.to_owned());
        }
        Round::Formed(Box::new(Identity {
            group: Some(self.token.group),
            node_id,
            epoch: GroupEpoch::from_number(joined.epoch),
            founders: members,
            ..self.identity.clone()
        }))
    }
}
