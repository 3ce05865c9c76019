//! What a comparison of all nodes has found of this one: the master tells, the node hears.

use crate::consensus::Consensus;
use crate::ids::NodeId;
use crate::service::comparison::Diverged;
use crate::service::messages::ElectionCall;

impl Consensus {
    /// Takes the word of a master of this term, or a later one, about this node's data.
    pub(super) fn hear_of_damage(&self, told: Diverged) -> bool {
        let is_current = told.term >= self.role.borrow().term.0;
        if is_current {
            self.note_compared(Some(told.what).filter(|what| !what.is_empty()));
        }
        is_current
    }

    /// Notes what a comparison has found of this node.
    pub(crate) fn note_compared(&self, compared: Option<String>) {
        self.told.damage.send_if_modified(|damage| {
            let is_news = damage.compared != compared;
            damage.compared = compared;
            is_news
        });
    }

    /// Tells a node what a comparison has found of it: nothing, when `what` is empty.
    pub(crate) async fn tell_of_damage(&self, id: NodeId, what: String) {
        let term = self.role.borrow().term.0;
        let call = ElectionCall::Diverged(Diverged { term, what });
        let Some(client) = self.peers.election_of(id) else {
            return;
        };
        if let Err(error) = client.call(call, self.timers.silence_max).await {
            tracing::debug!(%id, %error, "a node could not be told what is wrong with it");
        }
    }
}
