//! What the changes to the group have in common: how one is made, and what is answered.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use crate::admin::client::AdminRefusal;
use crate::admin::messages::{AdminDone, Joined};
use crate::config::access::Holder;
use crate::consensus::{ChangeError, ConsensusError};
use crate::credentials::Authority;
use crate::group::{Member, MemberRecord, Members};
use crate::ids::NodeId;
use crate::node::Node;

/// How long one change may wait for the majority that commits it.
pub(super) const CHANGE_MAX: Duration = Duration::from_secs(10);

/// Pause before retrying while another change is under way.
const BUSY_RETRY: Duration = Duration::from_millis(20);

/// Longest wait that a caller may request.
pub(super) const WITHIN_MAX: Duration = Duration::from_hours(1);

/// Why a call was not carried out here.
pub(super) enum Undone {
    Refused(AdminRefusal),
    NotMaster,
}

/// Who asks for a change, and what it may be answered with.
pub(super) struct Asking<'a> {
    /// Whom the caller's certificate names; `None` in plaintext.
    pub(super) holder: Option<&'a Holder>,
    pub(super) authority: Option<Arc<Authority>>,
    pub(super) now_ms: u64,
}

impl Asking<'_> {
    pub(super) fn node_id(&self) -> Option<NodeId> {
        self.holder.and_then(Holder::node_id)
    }

    pub(super) fn authority(&self, node: &Node) -> Result<&Authority, Undone> {
        if let Some(authority) = &self.authority {
            return Ok(authority);
        }
        let master = &node.identity.node_name;
        refused(
            format!("{master} is master, and does not have the key of the group's authority"),
            "make a node master that has authority-key.pem among its credentials (steadfast master transfer \
             NODE), or issue them where the key is (steadfast certs issue, and token create \
             --without-credentials)",
        )
    }
}

pub(super) type Done = Result<AdminDone, Undone>;

pub(super) fn refused<T>(what: impl Into<String>, to_do: impl Into<String>) -> Result<T, Undone> {
    Err(Undone::Refused(AdminRefusal::new(what, to_do)))
}

/// A temporary refusal: the same call may be carried out later.
pub(super) fn refused_for_now<T>(
    what: impl Into<String>,
    to_do: impl Into<String>,
) -> Result<T, Undone> {
    Err(Undone::Refused(AdminRefusal::for_now(what, to_do)))
}

pub(super) fn done(text: String) -> AdminDone {
    AdminDone {
        text,
        ..AdminDone::default()
    }
}

impl From<ChangeError> for Undone {
    fn from(error: ChangeError) -> Self {
        match error {
            ChangeError::Consensus(ConsensusError::NotMaster(_)) => Self::NotMaster,
            ChangeError::Unknown => Self::Refused(AdminRefusal::uncertain(
                "the master changed while the change was in progress",
                "look at `steadfast status`, then try again if the change was not made",
            )),
            error => Self::Refused(AdminRefusal::for_now(
                format!("the change was not made: {error}"),
                "look at `steadfast status`, then try again",
            )),
        }
    }
}

/// Makes a change, after any other that is under way.
pub(super) async fn change<F>(mut attempt: impl FnMut() -> F) -> Result<(), Undone>
where
    F: Future<Output = Result<(), ChangeError>>,
{
    let changed = async {
        loop {
            match attempt().await {
                Err(ChangeError::InProgress) => tokio::time::sleep(BUSY_RETRY).await,
                changed => return changed,
            }
        }
    };
    match tokio::time::timeout(CHANGE_MAX, changed).await {
        Ok(changed) => Ok(changed?),
        Err(_) => Err(Undone::Refused(AdminRefusal::uncertain(
            "no majority accepted the change in time; it takes effect when one does",
            "look at `steadfast status`: bring nodes back, then look again",
        ))),
    }
}

pub(super) fn let_in(node: &Node, members: &Members, id: NodeId, member: &Member) -> AdminDone {
    let records = members.iter();
    AdminDone {
        text: format!("{} is node {id}, {}", member.name, member.node_type),
        joined: Some(Joined {
            node_id: id.0,
            members: records
                .map(|(id, member)| MemberRecord::new(*id, member))
                .collect(),
            epoch: node.identity.epoch.0,
            entry: None,
        }),
        ..AdminDone::default()
    }
}

pub(super) fn find<'a>(members: &'a Members, name: &str) -> Option<(NodeId, &'a Member)> {
    let mut all = members.iter();
    all.find(|(_, member)| member.name == name)
        .map(|(id, member)| (*id, member))
}

pub(super) fn known<'a>(members: &'a Members, name: &str) -> Result<(NodeId, &'a Member), Undone> {
    let Some(found) = find(members, name) else {
        let names: Vec<_> = members
            .values()
            .map(|member| member.name.as_str())
            .collect();
        return refused(
            format!("no member is called {name:?}"),
            format!("name one of {}", names.join(", ")),
        );
    };
    Ok(found)
}

pub(super) fn candidates(members: &Members, voters: &BTreeSet<NodeId>) -> Vec<NodeId> {
    let can_lead = members.iter().filter(|(_, member)| member.can_lead());
    can_lead
        .map(|(id, _)| *id)
        .filter(|id| voters.contains(id))
        .collect()
}
