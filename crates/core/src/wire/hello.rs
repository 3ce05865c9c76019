//! The hello: who is calling, whom it wants to reach, and whether it may.
//!
//! It is the first frame on every connection to our services. A refused caller changes no state
//! here, and gets a reason that it can act on and a text for people.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use steadfast_net::{FrameReceiver, FrameSender, NetError, Transport};

use crate::config::access::Holder;
use crate::group::identity::Identity;
use crate::ids::{GroupEpoch, GroupUuid, NodeId};
use crate::wire::messages::{
    Hello, HelloReply, Kind, PROTOCOL_VERSION_MAX, PROTOCOL_VERSION_MIN, Refusal, WireError,
    decode, encode,
};

/// How long a caller may keep a connection without a request: it takes the place of another one.
const REQUEST_WAIT_MAX: Duration = Duration::from_secs(10);

/// A connection on which the hello was accepted.
pub(crate) struct Session {
    pub(crate) sender: FrameSender,
    pub(crate) receiver: FrameReceiver,
    /// Address of the other end.
    pub(crate) peer: String,
    /// Whom the certificate of the other end names; `None` on a plaintext network.
    pub(crate) holder: Option<Holder>,
}

impl Session {
    /// The next request; `None` when the caller closed, or sent none for 10 s.
    ///
    /// # Errors
    /// As [`FrameReceiver::receive`].
    pub(crate) async fn next_request(&mut self) -> Result<Option<Bytes>, NetError> {
        let request = tokio::time::timeout(REQUEST_WAIT_MAX, self.receiver.receive());
        request.await.unwrap_or(Ok(None))
    }
}

/// Why communication with a peer failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DialError {
    #[error(transparent)]
    Net(#[from] NetError),
    #[error("the peer sent something invalid: {0}")]
    Wire(#[from] WireError),
    #[error("the peer refused the connection ({refusal:?}): {text}")]
    Refused { refusal: Refusal, text: String },
    #[error("the peer closed the connection")]
    Closed,
    #[error(
        "it answers no hello: if the group uses TLS, it talks only to those who have credentials"
    )]
    NoHello,
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    #[error("the certificate there names {found}, but the caller wants {expected}")]
    WrongHolder { found: String, expected: String },
}

impl DialError {
    /// Whether it is for want of the right credentials, on either side, and would fail again.
    pub(crate) fn is_about_credentials(&self) -> bool {
        match self {
            Self::Net(NetError::Tls { .. }) | Self::WrongHolder { .. } => true,
            Self::Refused { refusal, .. } => *refusal == Refusal::NotAllowed,
            _ => false,
        }
    }
}

impl DialError {
    /// Whether somebody is there who does not talk to this caller, for want of credentials as far as
    /// can be told.
    pub(crate) fn is_denied(&self) -> bool {
        let is_stranger = match self {
            Self::Refused { refusal, .. } => *refusal == Refusal::NotAMember,
            error => matches!(error, Self::NoHello),
        };
        is_stranger || self.is_about_credentials()
    }
}

/// Called with this node's epoch and a later one, when a peer shows that the group was recovered
/// without this node.
pub(crate) type Superseded = Arc<dyn Fn(GroupEpoch, GroupEpoch) + Send + Sync>;

/// How a caller identifies itself.
#[derive(Clone)]
pub(crate) enum Caller {
    Node(Arc<Identity>, Superseded),
    /// A program that is not a node; it may ask for a node's state, and subscribe.
    Client,
}

/// Whom a caller wants to reach.
pub(crate) struct Callee<'a> {
    pub(crate) address: &'a str,
    /// 0 for any node.
    pub(crate) id: NodeId,
}

impl<'a> Callee<'a> {
    pub(crate) fn any(address: &'a str) -> Self {
        let id = NodeId(0);
        Self { address, id }
    }
}

impl Caller {
    /// Connects to `service` of the callee and says hello.
    ///
    /// # Errors
    /// See [`DialError`].
    pub(crate) async fn dial(
        &self,
        transport: &dyn Transport,
        Callee { address, id }: Callee<'_>,
        service: &str,
        timeout: Duration,
    ) -> Result<Session, DialError> {
        let dialled = async {
            let connection = steadfast_net::open_service(transport, address, service).await?;
            let holder = self.check_callee(connection.identity(), id)?;
            let peer = connection.peer().to_owned();
            let (mut sender, mut receiver_half) = connection.split();
            sender
                .send(encode(Kind::Hello, &self.hello(id, service)))
                .await?;
            let reply = match receiver_half.receive().await {
                Ok(Some(reply)) => reply,
                // Bytes of TLS make no frame.
                Ok(None) | Err(NetError::ChannelClosed | NetError::Protocol { .. })
                    if holder.is_none() =>
                {
                    return Err(DialError::NoHello);
                }
                Ok(None) => return Err(DialError::Closed),
                Err(error) => return Err(error.into()),
            };
            let reply: HelloReply = decode(Kind::HelloReply, reply)?;
            if reply.version == 0 {
                self.hear_refusal(&reply);
                return Err(DialError::Refused {
                    refusal: reply.refusal(),
                    text: reply.text,
                });
            }
            Ok(Session {
                sender,
                receiver: receiver_half,
                peer,
                holder,
            })
        };
        tokio::time::timeout(timeout, dialled)
            .await
            .unwrap_or(Err(DialError::Timeout(timeout)))
    }

    /// Whether the other end is whom the caller wants: that node, or any node of its group.
    fn check_callee(&self, proven: Option<&str>, id: NodeId) -> Result<Option<Holder>, DialError> {
        let Some(proven) = proven else {
            return Ok(None);
        };
        let own_group = match self {
            Self::Node(identity, _) => Some(&identity.group_name),
            Self::Client => None,
        };
        let is_it = |holder: &Holder| {
            let is_node = holder
                .node_id()
                .is_some_and(|it| id == NodeId(0) || it == id);
            is_node && own_group.is_none_or(|own| own == holder.group())
        };
        match proven.parse::<Holder>() {
            Ok(holder) if is_it(&holder) => Ok(Some(holder)),
            _ => {
                let group = own_group.map_or(String::new(), |own| format!(" of group {own:?}"));
                let whom = match id {
                    NodeId(0) => "a node".to_owned(),
                    id => format!("node {id}"),
                };
                Err(DialError::WrongHolder {
                    found: proven.to_owned(),
                    expected: whom + &group,
                })
            }
        }
    }

    fn hear_refusal(&self, reply: &HelloReply) {
        if let Self::Node(identity, superseded) = self
            && reply.refusal() == Refusal::OldEpoch
            && reply.epoch > identity.epoch.0
        {
            superseded(identity.epoch, GroupEpoch(reply.epoch));
        }
    }

    pub(super) fn hello(&self, receiver: NodeId, service: &str) -> Hello {
        let hello = Hello {
            version_min: PROTOCOL_VERSION_MIN,
            version_max: PROTOCOL_VERSION_MAX,
            receiver: receiver.0,
            purpose: service.to_owned(),
            ..Hello::default()
        };
        match self {
            Self::Node(identity, _) => Hello {
                group: identity.group.map_or_else(Bytes::new, GroupUuid::to_bytes),
                sender: identity.node_id.0,
                sender_incarnation: identity.incarnation.0,
                earlier_incarnations: identity.earlier.iter().map(|life| life.0).collect(),
                epoch: identity.epoch.0,
                ..hello
            },
            Self::Client => hello,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Incarnation;

    fn identity(node: u64) -> Identity {
        Identity::fresh("orders", &format!("n{node}"), Incarnation(node))
    }

    #[test]
    fn a_caller_believes_no_other_node_than_the_one_it_wants() {
        let node: Caller = Caller::Node(Arc::new(identity(1)), Arc::new(|_, _| {}));
        let believes = |caller: &Caller, proven: &str, id| {
            caller.check_callee(Some(proven), NodeId(id)).is_ok()
        };
        assert!(believes(&node, "steadfast://orders/node/2", 2));
        assert!(believes(&node, "steadfast://orders/node/2", 0));
        assert!(!believes(&node, "steadfast://orders/node/3", 2));
        assert!(!believes(&node, "steadfast://other/node/2", 2));
        for caller in [&node, &Caller::Client] {
            assert!(!believes(caller, "steadfast://orders/admin/2", 0));
            assert!(!believes(caller, "https://n2.example.org", 0));
        }
        assert!(believes(&Caller::Client, "steadfast://other/node/2", 0));
        assert!(node.check_callee(None, NodeId(2)).is_ok(), "plaintext");
    }
}
