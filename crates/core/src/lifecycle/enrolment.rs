//! Certificates from the group: a pass for a new node, its certificate, and that of a member again.
//!
//! ```text
//!   the new node                                  the master
//!   ------------                                  ----------
//!   makes a key, and writes it to disk
//!   connects with the pass of its token
//!   asks for a certificate: public key  -------->  was the pass used by another key?
//!                                                  takes a new node id; notes it, the pass and
//!                                                    the key, with a majority
//!   writes certificate and authorities  <--------  signs
//!   asks to be let in: see `join.rs`
//! ```
//!
//! Asking again with the same key gets the same id. The master signs if it has the authority's key;
//! which nodes have it is up to the operator.

use std::sync::Arc;
use std::time::Duration;

use crate::admin::messages::{
    AdminCall, AdminDone, CertifiedMessage, CertifyRequest, InviteRequest,
};
use crate::admin::{ANSWER_MAX, AdminError, answered};
use crate::config::access::{Access, Holder};
use crate::credentials::{
    Authority, CertificateRequest, Certified, VALID_FOR, key_fingerprint, pass_prefix,
};
use crate::group::awaited::AwaitedNode;
use crate::ids::NodeId;
use crate::lifecycle::changes::{Asking, Done, Undone, done, refused};
use crate::lifecycle::node_ids::{AWAITED_FOR_MS, next_node_id, with_node_ids};
use crate::lifecycle::{Lifecycle, lock};
use crate::node::Node;
use crate::txn::transaction::Transaction;

/// The longest that a pass may be valid. It is remembered for longer that it was used.
pub(super) const INVITED_MAX: Duration = Duration::from_hours(7 * 24);

/// Makes a pass.
pub(super) fn invite(node: &Node, request: InviteRequest, asking: &Asking<'_>) -> Done {
    let authority = asking.authority(node)?;
    let valid_for = Duration::from_millis(request.valid_for_ms);
    if valid_for.is_zero() || valid_for > INVITED_MAX {
        return refused(
            "a join token is valid for at most 7 days",
            "ask for fewer, and for more than none",
        );
    }
    match authority.invite(node.identity.epoch, valid_for, asking.now_ms) {
        Ok(pass) => Ok(AdminDone {
            pass: Some(pass),
            ..done("a new node may join".to_owned())
        }),
        Err(error) => refused(error.to_string(), "look at the credentials of the master"),
    }
}

/// Signs the certificate of a new node that has a pass, or that of a member again.
pub(super) async fn certify(node: &Node, request: &CertifyRequest, asking: &Asking<'_>) -> Done {
    let authority = asking.authority(node)?;
    let key = match key_fingerprint(&request.request) {
        Ok(key) => key,
        Err(error) => return refused(error.to_string(), "make another one"),
    };
    let id = match asking.holder {
        Some(holder) if holder.access() == Access::Joiner => {
            id_for_pass(node, holder.name(), &key, asking.now_ms).await?
        }
        Some(holder) => member_id(holder)?,
        None => {
            return refused(
                "the caller has no credentials, so it proves nothing",
                "use a join token (steadfast token create)",
            );
        }
    };
    let signed = Holder::node(&node.identity.group_name, id)
        .map_err(|error| error.to_string())
        .and_then(|holder| {
            let signed = authority.certify(&holder, &request.request, VALID_FOR, asking.now_ms);
            signed.map_err(|error| error.to_string())
        });
    match signed {
        Ok(Certified {
            certificate,
            authority,
        }) => {
            tracing::info!(%id, key, "issued a certificate");
            let certified = Some(CertifiedMessage {
                certificate,
                authority,
            });
            let text = format!("a certificate for node {id}");
            Ok(AdminDone {
                certified,
                ..done(text)
            })
        }
        Err(why) => refused(why, "look at the credentials of the master"),
    }
}

fn member_id(holder: &Holder) -> Result<NodeId, Undone> {
    match holder.node_id() {
        Some(id) => Ok(id),
        None => refused(
            format!("{holder} gets no certificate from the group"),
            "renew it where the authority's key is: steadfast certs renew",
        ),
    }
}

/// The id of the node with this key that uses a pass: a new one, or that which it was given before.
async fn id_for_pass(node: &Node, pass: &str, key: &str, now_ms: u64) -> Result<NodeId, Undone> {
    if !pass.starts_with(&pass_prefix(node.identity.epoch)) {
        return refused(
            "this join token is older than the recovery of the group, which may not know who has used it",
            "create another one: steadfast token create",
        );
    }
    let until_ms = now_ms.saturating_add(AWAITED_FOR_MS);
    let members = node.consensus.members();
    let mut given = Err(Taken::Used);
    let take = |transaction: &Transaction| {
        let mut awaited = transaction.awaited_nodes()?;
        if let Some(user) = awaited.user_of(pass) {
            let is_same = user.key == key && !user.is_removed;
            given = if is_same {
                Ok(NodeId(user.id))
            } else {
                Err(Taken::Used)
            };
            return Ok(());
        }
        let id = next_node_id(transaction, node, &members)?;
        let (pass, key) = (pass.to_owned(), key.to_owned());
        let new = AwaitedNode {
            id: id.0,
            pass,
            key,
            until_ms,
            is_removed: false,
        };
        given = if awaited.add(new, now_ms) {
            Ok(id)
        } else {
            Err(Taken::NoRoom)
        };
        if given.is_ok() {
            transaction.note_node_id(id)?;
            transaction.set_awaited_nodes(&awaited)?;
        }
        Ok(())
    };
    with_node_ids(node, take).await?;
    match given {
        Ok(id) => Ok(id),
        Err(Taken::Used) => refused(
            "this join token was used by another node, and works once",
            "create another one: steadfast token create",
        ),
        Err(Taken::NoRoom) => refused(
            "too many nodes have used a join token in the last days",
            "issue the certificate by hand (steadfast certs issue), or wait",
        ),
    }
}

/// Why a pass gives no id.
enum Taken {
    Used,
    NoRoom,
}

impl Lifecycle {
    pub(crate) fn group_name(&self) -> String {
        self.identity.borrow().group_name.clone()
    }

    /// See [`crate::ReplicatedEnvironment::certify_with`].
    pub(crate) fn certify_with(&self, authority: Option<Authority>) {
        *lock(&self.authority) = authority.map(Arc::new);
    }

    /// See [`crate::ReplicatedEnvironment::renew_certificate_async`].
    pub(crate) async fn renew_certificate(
        &self,
        request: &CertificateRequest,
    ) -> Result<Certified, AdminError> {
        let wrong = |what: String| AdminError::Refused {
            what,
            to_do: "look at the credentials of this node".to_owned(),
        };
        let request = request.to_der().map_err(|error| wrong(error.to_string()))?;
        let identity = self.identity.borrow().clone();
        let authority = lock(&self.authority).clone();
        if let Some(authority) = authority {
            let holder = Holder::node(&identity.group_name, identity.node_id);
            let holder = holder.map_err(|error| wrong(error.to_string()))?;
            let now_ms = self.machine.clock.now_ms();
            let signed = authority.certify(&holder, &request, VALID_FOR, now_ms);
            return signed.map_err(|error| wrong(error.to_string()));
        }
        let addresses = self.addresses_of_all();
        let client = self.admin_client(&identity, &addresses);
        let call = AdminCall::Certify(CertifyRequest {
            request: request.into(),
        });
        let done = answered(client.call(call, ANSWER_MAX).await)?;
        let certified = done.certified.map(Certified::from);
        certified.ok_or_else(|| wrong("the master sent no certificate".to_owned()))
    }
}
