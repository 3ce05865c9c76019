//! The messages of ADMIN.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message;

use crate::group::{LogIdRecord, MemberRecord};
use crate::member::NodeType;
use crate::pass::Pass;

/// Asks the master to change the group.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct AdminRequest {
    /// Name of the intended group; empty for any.
    #[prost(string, tag = "1")]
    pub(crate) group_name: String,
    /// UUID of the intended group, 16 bytes; empty for any.
    #[prost(bytes = "bytes", tag = "2")]
    pub(crate) group: Bytes,
    #[prost(oneof = "AdminCall", tags = "3, 4, 5, 6, 7, 8, 9, 10")]
    pub(crate) call: Option<AdminCall>,
}

#[derive(Clone, PartialEq, Eq, prost::Oneof)]
pub(crate) enum AdminCall {
    #[prost(message, tag = "3")]
    Join(JoinRequest),
    #[prost(message, tag = "4")]
    Remove(RemoveRequest),
    #[prost(message, tag = "5")]
    Alter(AlterRequest),
    #[prost(message, tag = "6")]
    Transfer(TransferRequest),
    #[prost(message, tag = "7")]
    Shutdown(ShutdownRequest),
    #[prost(message, tag = "8")]
    Readmit(ReadmitRequest),
    #[prost(message, tag = "9")]
    Invite(InviteRequest),
    #[prost(message, tag = "10")]
    Certify(CertifyRequest),
}

impl AdminCall {
    /// What the caller wants, for people.
    pub(crate) fn asks_for(&self) -> String {
        match self {
            Self::Join(JoinRequest { name, address, .. }) => {
                format!("to let {name} in, at {address}")
            }
            Self::Remove(RemoveRequest { name, .. }) => format!("to remove {name}"),
            Self::Alter(request) => request.asks_for(),
            Self::Transfer(TransferRequest { to, .. }) if to.is_empty() => {
                "for another master".to_owned()
            }
            Self::Transfer(TransferRequest { to, .. }) => {
                format!("for the master {}", to.join(" or "))
            }
            Self::Shutdown(_) => "to stop the group".to_owned(),
            Self::Readmit(ReadmitRequest { name, .. }) => format!("to let {name} in again"),
            Self::Invite(InviteRequest { valid_for_ms }) => {
                format!("for a join token, for {} s", valid_for_ms / 1_000)
            }
            Self::Certify(_) => "for a certificate".to_owned(),
        }
    }
}

impl AlterRequest {
    fn asks_for(&self) -> String {
        let mut text = format!("to change {}", self.name);
        if let Some(node_type) = self.node_type.and_then(NodeType::from_number) {
            text = format!("{text}, to be {node_type}");
        }
        if let Some(priority) = self.priority {
            text = format!("{text}, to priority {priority}");
        }
        if let Some(address) = &self.address {
            text = format!("{text}, to address {address}");
        }
        if let Some(metadata) = &self.metadata {
            let names: Vec<_> = metadata.entries.keys().map(String::as_str).collect();
            text = format!("{text}, to publish [{}]", names.join(", "));
        }
        text
    }
}

/// A new node asks to join.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct JoinRequest {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    #[prost(string, tag = "2")]
    pub(crate) address: String,
    #[prost(fixed64, tag = "3")]
    pub(crate) incarnation: u64,
    /// As in [`MemberRecord`].
    #[prost(uint32, tag = "4")]
    pub(crate) node_type: u32,
    #[prost(uint32, tag = "5")]
    pub(crate) priority: u32,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct RemoveRequest {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    /// Even if the rest may be left without a majority that answers.
    #[prost(bool, tag = "2")]
    pub(crate) force: bool,
}

/// Changes a member's settings.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct AlterRequest {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    #[prost(uint32, optional, tag = "2")]
    pub(crate) node_type: Option<u32>,
    #[prost(uint32, optional, tag = "3")]
    pub(crate) priority: Option<u32>,
    #[prost(string, optional, tag = "4")]
    pub(crate) address: Option<String>,
    /// Whether to accept the address although the member may not answer there.
    #[prost(bool, tag = "5")]
    pub(crate) untried: bool,
    /// In place of all that its application has said of it.
    #[prost(message, optional, tag = "6")]
    pub(crate) metadata: Option<MetadataMessage>,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct MetadataMessage {
    #[prost(btree_map = "string, string", tag = "1")]
    pub(crate) entries: BTreeMap<String, String>,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct TransferRequest {
    /// Names of the candidates for master; empty for any.
    #[prost(string, repeated, tag = "1")]
    pub(crate) to: Vec<String>,
    #[prost(uint64, tag = "2")]
    pub(crate) timeout_ms: u64,
}

/// A member whose data is damaged asks to be readmitted: without a vote, and as a new incarnation.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct ReadmitRequest {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    #[prost(uint64, tag = "2")]
    pub(crate) node_id: u64,
    /// The current incarnation, and the new one.
    #[prost(fixed64, tag = "3")]
    pub(crate) before: u64,
    #[prost(fixed64, tag = "4")]
    pub(crate) incarnation: u64,
    /// Only asks whether it would be readmitted.
    #[prost(bool, tag = "5")]
    pub(crate) is_question: bool,
}

/// Asks for a pass with which a new node gets its certificate.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(crate) struct InviteRequest {
    #[prost(uint64, tag = "1")]
    pub(crate) valid_for_ms: u64,
}

/// The caller asks for a certificate: that of a new node with a pass, or its own again.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct CertifyRequest {
    /// PKCS #10, in DER.
    #[prost(bytes = "bytes", tag = "1")]
    pub(crate) request: Bytes,
}

/// Stops all nodes once all have everything.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(crate) struct ShutdownRequest {
    #[prost(uint64, tag = "1")]
    pub(crate) timeout_ms: u64,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct AdminReply {
    #[prost(oneof = "AdminAnswer", tags = "1, 2, 3")]
    pub(crate) answer: Option<AdminAnswer>,
}

#[derive(Clone, PartialEq, Eq, prost::Oneof)]
pub(crate) enum AdminAnswer {
    #[prost(message, tag = "1")]
    Done(AdminDone),
    /// Nothing was changed.
    #[prost(message, tag = "2")]
    Refused(RefusedMessage),
    /// The address of the master; empty if none is known.
    #[prost(string, tag = "3")]
    NotMaster(String),
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct AdminDone {
    /// What was done, for people.
    #[prost(string, tag = "1")]
    pub(crate) text: String,
    /// In answer to [`AdminCall::Join`].
    #[prost(message, optional, tag = "2")]
    pub(crate) joined: Option<Joined>,
    /// In answer to [`AdminCall::Invite`].
    #[prost(message, optional, tag = "3")]
    pub(crate) pass: Option<Pass>,
    /// In answer to [`AdminCall::Certify`].
    #[prost(message, optional, tag = "4")]
    pub(crate) certified: Option<CertifiedMessage>,
}

/// A certificate and the authorities to believe, as PEM texts.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct CertifiedMessage {
    #[prost(string, tag = "1")]
    pub(crate) certificate: String,
    #[prost(string, tag = "2")]
    pub(crate) authority: String,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct Joined {
    #[prost(uint64, tag = "1")]
    pub(crate) node_id: u64,
    /// All members, the new one included.
    #[prost(message, repeated, tag = "2")]
    pub(crate) members: Vec<MemberRecord>,
    /// 0 means the first.
    #[prost(uint64, tag = "3")]
    pub(crate) epoch: u64,
    /// In answer to [`AdminCall::Readmit`]: what its copy of the state has to reach.
    #[prost(message, optional, tag = "4")]
    pub(crate) entry: Option<LogIdRecord>,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct RefusedMessage {
    #[prost(string, tag = "1")]
    pub(crate) what: String,
    #[prost(string, tag = "2")]
    pub(crate) to_do: String,
    #[prost(bool, tag = "3")]
    pub(crate) passes: bool,
    #[prost(bool, tag = "4")]
    pub(crate) may_be_done: bool,
}
