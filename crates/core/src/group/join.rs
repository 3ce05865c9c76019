//! How a node comes into a group that exists: with a token, and never with a vote at once.
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
//! Asking again with the same incarnation changes nothing and is answered the same.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use steadfast_net::Transport;
use tokio::sync::watch;

use crate::group::formation::{Round, decided};
use crate::group::identity::Identity;
use crate::group::{MemberRecord, NodeType, PRIORITY_DEFAULT};
use crate::ids::{GroupEpoch, GroupUuid, NodeId};
use crate::observe::status::NodeStatus;
use crate::service::admin::messages::{AdminCall, JoinRequest, Joined};
use crate::service::admin::{self, Asked};

/// How often the group is asked while it cannot answer.
const ASK_INTERVAL: Duration = Duration::from_millis(200);

/// How long the master may take to let a node in.
const ANSWER_MAX: Duration = Duration::from_secs(15);

/// The form of token that this version writes and reads.
const FORM: &str = "steadfast-join/1";

/// What a new node needs to come into a group, as text: which group, where its members are, and as
/// what the node comes. It holds no secret: whoever reaches the members' addresses can join.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinToken {
    /// Name of the group.
    pub group_name: String,
    /// The group.
    pub group: GroupUuid,
    /// What the node is to be.
    pub node_type: NodeType,
    /// Its priority, if it is electable.
    pub priority: u32,
    /// Where members can be asked, `host:port` each.
    pub addresses: Vec<String>,
}

impl JoinToken {
    /// A token for a node of this type, from what a member says of its group. `None` when it belongs
    /// to none yet.
    pub fn new(status: &NodeStatus, node_type: NodeType) -> Option<Self> {
        let addresses = status.members.iter().map(|m| m.node.address.clone());
        Some(Self {
            group_name: status.group_name.clone(),
            group: status.group?,
            node_type,
            priority: PRIORITY_DEFAULT,
            addresses: addresses.collect(),
        })
    }

    /// The same for a node of this priority.
    #[must_use]
    pub fn with_priority(self, priority: u32) -> Self {
        Self { priority, ..self }
    }

    fn body(&self) -> String {
        let Self {
            group_name,
            group,
            node_type,
            priority,
            addresses,
        } = self;
        let addresses = addresses.join(",");
        format!("{FORM}/{group_name}/{group}/{node_type}/{priority}/{addresses}")
    }
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let body = self.body();
        write!(f, "{body}/{:08x}", crc32c::crc32c(body.as_bytes()))
    }
}

/// The text is no join token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a join token, or one that was cut or changed; `steadfast token create` prints one")]
pub struct ParseJoinTokenError;

impl FromStr for JoinToken {
    type Err = ParseJoinTokenError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let fields = text.strip_prefix(FORM)?.strip_prefix('/')?;
            let mut fields = fields.split('/');
            let token = Self {
                group_name: fields.next()?.to_owned(),
                group: fields.next()?.parse().ok()?,
                node_type: fields.next()?.parse().ok()?,
                priority: fields.next()?.parse().ok()?,
                addresses: fields.next()?.split(',').map(str::to_owned).collect(),
            };
            (token.to_string() == text).then_some(token)
        };
        parse().ok_or(ParseJoinTokenError)
    }
}

/// What comes into a group with a token.
pub(crate) struct Joining {
    /// Written to disk already.
    pub(crate) identity: Identity,
    pub(crate) token: JoinToken,
    /// Where the others will reach this node.
    pub(crate) address: String,
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) dial_timeout: Duration,
}

impl Joining {
    /// Asks until the group has let this node in; returns the completed identity, to be written to
    /// disk before anything else is done. `waiting_for` says whom it waits for.
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
        let client = admin::Client {
            transport: &*self.transport,
            group: Some((self.token.group_name.as_str(), self.token.group)),
            addresses: &self.token.addresses,
            dial_timeout: self.dial_timeout,
        };
        match client.call(call, ANSWER_MAX).await {
            Asked::Done(done) => self.completed(done.joined.unwrap_or_default()),
            Asked::Refused(refusal) if !refusal.passes => Round::Refused(refusal.to_string()),
            Asked::Refused(refusal) => self.wait(&refusal.what),
            Asked::NoAnswer { why, .. } => self.wait(&why),
        }
    }

    fn wait(&self, why: &str) -> Round {
        let group = &self.token.group_name;
        Round::Wait(format!("group {group:?} to let it in: {why}"))
    }

    fn completed(&self, joined: Joined) -> Round {
        let members = joined.members.into_iter().map(MemberRecord::into_member);
        let members: Vec<_> = members.collect();
        let node_id = NodeId(joined.node_id);
        let own = members.iter().find(|(id, _)| *id == node_id);
        if own.is_none_or(|(_, own)| own.incarnation != self.identity.incarnation) {
            let reason = "the group's answer does not list this node as it is";
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_being_printed_and_no_other_text_is_one() {
        let token = JoinToken {
            group_name: "orders".to_owned(),
            group: GroupUuid(uuid::Uuid::from_u128(7)),
            node_type: NodeType::Secondary,
            priority: 3,
            addresses: vec!["10.0.0.1:7400".to_owned(), "[::1]:7400".to_owned()],
        };
        let text = token.to_string();
        assert_eq!(text.parse(), Ok(token));
        for at in 0..text.len() {
            let mut changed = text.clone().into_bytes();
            changed[at] ^= 1;
            let changed = String::from_utf8(changed).expect("still ASCII");
            assert_eq!(changed.parse::<JoinToken>(), Err(ParseJoinTokenError));
            assert_eq!(text[..at].parse::<JoinToken>(), Err(ParseJoinTokenError));
        }
    }
}
