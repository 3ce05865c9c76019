//! Whether a node can be used, for the endpoints that load balancers and orchestrators ask.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ids::Term;
use crate::listener::Role;
use crate::member::NodeAddress;

/// Where a node stands between its opening and its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum NodePhase {
    /// It waits for its group to form, or to admit it.
    Forming,
    /// It takes part in its group.
    Running,
    /// It copies the state of a peer, and takes no part meanwhile.
    Restoring,
    /// The group does not admit it, or goes on without it.
    Refused,
    /// Its disk or its engine has failed.
    Stopped,
    /// It was removed from its group.
    Removed,
    /// It is closing, or closed.
    Closed,
}

impl NodePhase {
    /// The phase of this name, if it is one.
    pub(crate) fn named(name: &str) -> Option<Self> {
        let all = [
            Self::Forming,
            Self::Running,
            Self::Restoring,
            Self::Refused,
            Self::Stopped,
            Self::Removed,
            Self::Closed,
        ];
        all.into_iter().find(|phase| phase.as_str() == name)
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Forming => "forming",
            Self::Running => "running",
            Self::Restoring => "restoring",
            Self::Refused => "refused",
            Self::Stopped => "stopped",
            Self::Removed => "removed",
            Self::Closed => "closed",
        }
    }
}

impl fmt::Display for NodePhase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a node can do at this moment: see [`crate::ReplicatedEnvironment::health`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Health {
    /// Where the node stands.
    pub phase: NodePhase,
    /// Its role: [`Role::Master`] only while a majority answers it.
    pub role: Role,
    /// The newest term that it knows.
    pub term: Term,
    /// The master that it follows; itself, if it is master.
    pub master: Option<NodeAddress>,
    /// Whether a majority has answered this node within `election_timeout_max_ms`. `None` on a node
    /// that does not lead: it cannot tell.
    pub hears_majority: Option<bool>,
    /// How long ago the node last heard a master, in milliseconds; on a node that leads, how long
    /// ago a majority last answered it. What it reads with `Eventual` may lack everything that was
    /// acknowledged since. `None` if it has heard none since it was opened; 0 on a master that
    /// needs nobody else.
    pub heard_ms_ago: Option<u64>,
    /// Whether the node takes a write of the default durability now.
    pub can_write: bool,
    /// Why the node takes no user writes, whether or not it is master: its volume is nearly full.
    pub read_only: Option<String>,
    /// What the node waits for, in words and with the names of nodes, or why it has stopped; `None`
    /// when it is ready.
    pub waiting_for: Option<String>,
}

impl Health {
    /// Whether the process should go on: false once only opening the node again can help. A node
    /// that waits for others is live, because a restart would not bring them back.
    pub fn is_live(&self) -> bool {
        match self.phase {
            NodePhase::Forming | NodePhase::Running | NodePhase::Restoring => true,
            NodePhase::Refused | NodePhase::Stopped | NodePhase::Removed | NodePhase::Closed => {
                false
            }
        }
    }

    /// Whether the node can be used: it has replayed its log, and knows a master or is one. Then
    /// [`crate::ReplicatedEnvironment::wait_ready`] returns at once.
    pub fn is_ready(&self) -> bool {
        self.phase == NodePhase::Running && self.role.is_known()
    }
}
