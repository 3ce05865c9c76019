//! What a comparison of all nodes has found of this one: the master tells, the node hears.

use crate::consensus::Consensus;
use crate::ids::{Incarnation, NodeId};
use crate::observe::comparison::Damage;
use crate::service::comparison::Diverged;
use crate::service::messages::ElectionCall;

impl Consensus {
    /// Takes the word of the master that this node follows about this node's data, and of nobody else. One
    /// that it does not follow yet says it again after the next comparison.
    pub(super) fn hear_of_damage(&self, caller: NodeId, told: Diverged) -> bool {
        let is_current = self.is_followed(caller, told.term);
        if is_current {
            let what = Some(told.what).filter(|what| !what.is_empty());
            self.note_damage(Incarnation(told.incarnation), what);
        }
        is_current
    }

    /// Notes what a comparison has found of this node.
    pub(crate) fn note_compared(&self, compared: Option<String>) {
        self.note_damage(self.identity.incarnation, compared);
    }

    fn note_damage(&self, of: Incarnation, compared: Option<String>) {
        let note = |damage: &mut Damage| damage.note_compared(of, compared);
        self.told.damage.send_if_modified(note);
    }

    /// Tells a node what a comparison has found of a life of its directory: nothing, when `what` is
    /// empty.
    pub(crate) async fn tell_of_damage(&self, (id, of): (NodeId, Incarnation), what: String) {
        let call = ElectionCall::Diverged(Diverged {
            term: self.role.borrow().term.0,
            what,
            incarnation: of.0,
        });
        let Some(client) = self.peers.election_of(id) else {
            return;
        };
        if let Err(error) = client.call(call, self.timers.silence_max).await {
            tracing::debug!(%id, %error, "a node could not be told what is wrong with it");
        }
    }
}
