//! What an operator may ask of a group, and why it may be refused.

pub(crate) mod client;
mod enrolment;
pub(crate) mod messages;

use std::time::Duration;

use steadfast_net::Transport;

use crate::admin::messages::{
    AdminCall, AdminDone, AlterRequest, RemoveRequest, ShutdownRequest, TransferRequest,
};
use crate::member::NodeType;
use client::{AdminRefusal, Asked};

/// A change to the group. Pass it to [`crate::ReplicatedEnvironment::administer`], or to any member
/// with [`AdminCommand::send`]; the master carries changes out one at a time, through the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdminCommand {
    /// Removes a member from the group for good. The member stops when it learns of this. Refused
    /// when too few of the rest would answer for a majority, unless forced.
    Remove {
        /// Its name.
        node: String,
        /// Even if the rest may be left without a majority that answers.
        force: bool,
    },
    /// Makes a secondary electable, or an electable node a secondary. An arbiter stays one, because
    /// it has no data to continue with.
    SetType {
        /// Its name.
        node: String,
        /// [`NodeType::Electable`] or [`NodeType::Secondary`].
        node_type: NodeType,
    },
    /// Prefers an electable node as master over those of lower priority; with 0 it only ever stands
    /// in.
    SetPriority {
        /// Its name.
        node: String,
        /// 0 to [`PRIORITY_MAX`].
        priority: u32,
    },
    /// Sets the address at which the others reach a member from now on. Unless forced, the master
    /// first checks that the member answers there.
    SetAddress {
        /// Its name.
        node: String,
        /// `host:port`.
        address: String,
        /// Even if the member may not answer there, or not yet.
        force: bool,
    },
    /// Makes the most caught-up of these nodes master. Writes wait for milliseconds; on failure the
    /// current master carries on.
    Transfer {
        /// Names; empty for any node that can be master.
        to: Vec<String>,
        /// How long a candidate may take to catch up.
        within: Duration,
    },
    /// Stops the whole group: the master stops taking writes, waits until every node that answers
    /// has all of them on disk, and then all close, the master last. If that takes too long, the
    /// group carries on.
    Shutdown {
        /// How long the nodes may take to catch up.
        within: Duration,
    },
}

/// The highest priority.
pub const PRIORITY_MAX: u32 = 1000;

/// How long a change may take beyond its own wait.
pub(crate) const ANSWER_MAX: Duration = Duration::from_secs(15);

/// How long all nodes of a group may take to close.
const CLOSE_MAX: Duration = Duration::from_secs(40);

/// Why a change was not made, or may not have been.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AdminError {
    /// Nothing was changed.
    #[error("{what}")]
    Refused {
        /// The reason.
        what: String,
        /// What to do.
        to_do: String,
    },
    /// The change was begun, and may have been made, or may still be.
    #[error("{what}")]
    Uncertain {
        /// What interrupted it.
        what: String,
        /// What to do.
        to_do: String,
    },
    /// No master answered in time.
    #[error("no master answered: {why}")]
    NoAnswer {
        /// What was heard last.
        why: String,
        /// Whether the change may have been made: look at the status of the group. If false, every
        /// node that was asked for it has answered.
        may_be_done: bool,
    },
    /// The nodes do not believe the caller's credentials, these do not allow it, or the caller does
    /// not believe those of the nodes.
    #[error("not allowed: {why}")]
    NotAllowed {
        /// What the last node said.
        why: String,
    },
}

impl AdminCommand {
    /// Has the group of the node at one of `addresses` carry this out. Returns a description of
    /// what was done.
    ///
    /// # Errors
    /// See [`AdminError`].
    pub async fn send(
        &self,
        transport: &dyn Transport,
        addresses: &[String],
        dial_timeout: Duration,
    ) -> Result<String, AdminError> {
        let client = client::Client {
            transport,
            group: None,
            addresses,
            dial_timeout,
        };
        self.send_by(&client).await
    }

    /// How long [`AdminCommand::send`] waits for an answer.
    pub fn time_limit(&self) -> Duration {
        let own_wait = match self {
            Self::Transfer { within, .. } => *within,
            Self::Shutdown { within } => within.saturating_add(CLOSE_MAX),
            _ => Duration::ZERO,
        };
        own_wait.saturating_add(ANSWER_MAX)
    }

    pub(crate) async fn send_by(&self, client: &client::Client<'_>) -> Result<String, AdminError> {
        let done = answered(client.call(self.call(), self.time_limit()).await)?;
        Ok(done.text)
    }

    fn call(&self) -> AdminCall {
        let ms = |within: Duration| u64::try_from(within.as_millis()).unwrap_or(u64::MAX);
        let alter = |node: &String| AlterRequest {
            name: node.clone(),
            ..AlterRequest::default()
        };
        match self {
            Self::Remove { node, force } => AdminCall::Remove(RemoveRequest {
                name: node.clone(),
                force: *force,
            }),
            Self::SetType { node, node_type } => AdminCall::Alter(AlterRequest {
                node_type: Some(*node_type as u32),
                ..alter(node)
            }),
            Self::SetPriority { node, priority } => AdminCall::Alter(AlterRequest {
                priority: Some(*priority),
                ..alter(node)
            }),
            Self::SetAddress {
                node,
                address,
                force,
            } => AdminCall::Alter(AlterRequest {
                address: Some(address.clone()),
                untried: *force,
                ..alter(node)
            }),
            Self::Transfer { to, within } => AdminCall::Transfer(TransferRequest {
                to: to.clone(),
                timeout_ms: ms(*within),
            }),
            Self::Shutdown { within } => AdminCall::Shutdown(ShutdownRequest {
                timeout_ms: ms(*within),
            }),
        }
    }
}

pub(crate) fn answered(asked: Asked<AdminDone>) -> Result<AdminDone, AdminError> {
    match asked {
        Asked::Done(done) => Ok(done),
        Asked::Refused(refusal) => {
            let AdminRefusal { what, to_do, .. } = refusal;
            Err(if refusal.may_be_done {
                AdminError::Uncertain { what, to_do }
            } else {
                AdminError::Refused { what, to_do }
            })
        }
        Asked::Denied { why } => Err(AdminError::NotAllowed { why }),
        Asked::NoAnswer { why, may_be_done } => Err(AdminError::NoAnswer { why, may_be_done }),
    }
}
