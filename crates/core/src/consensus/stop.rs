//! "Stop": the master tells a replica that the group is being shut down.

use std::time::Duration;

use crate::consensus::Consensus;
use crate::ids::NodeId;
use crate::wire::messages::{ElectionAnswer, ElectionCall, Stop};

/// How long a replica may take to confirm that it stops.
const TELL_MAX: Duration = Duration::from_secs(5);

impl Consensus {
    /// Tells a node to stop. Returns whether it does.
    pub(crate) async fn tell_to_stop(&self, id: NodeId) -> bool {
        let term = self.role.borrow().term.0;
        let Some(client) = self.peers.election_of(id) else {
            return false;
        };
        let answer = client
            .call(ElectionCall::Stop(Stop { term }), TELL_MAX)
            .await;
        matches!(answer, Ok(ElectionAnswer::Agrees(true)))
    }

    /// Accepts a stop from the master that this node follows, and from nobody else.
    pub(super) fn hear_stop(&self, caller: NodeId, told: Stop) -> bool {
        let is_master = self.is_followed(caller, told.term);
        if is_master {
            self.notices.stop.send_replace(true);
        }
        is_master
    }

    /// Whether this node follows the caller as its master, and knows of no later term than `term`.
    /// Nobody else may end a node, or make it give up its data.
    pub(super) fn is_followed(&self, caller: NodeId, term: u64) -> bool {
        let state = self.role.borrow();
        let master = state.master.as_ref().map(|master| master.id);
        master == Some(caller) && term >= state.term.0
    }
}
