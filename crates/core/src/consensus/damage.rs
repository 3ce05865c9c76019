//! What a comparison of all nodes has found about this one: the master tells, the node hears.

use crate::consensus::Consensus;
use crate::ids::{Incarnation, NodeId};
use crate::wire::comparison::Diverged;
use crate::wire::messages::ElectionCall;

/// Why a node's own data is known to be wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Damage {
    /// The life of the directory that this is about. Findings about an earlier life are void: its
    /// data has been replaced.
    incarnation: Incarnation,
    /// The result of a comparison with the others.
    compared: Option<String>,
    /// Whether the node has counted its rows since it was found to differ.
    is_counted: bool,
    /// The result of a check of its own files.
    checked: Option<Flaw>,
    /// How its engine differs from what the log gave it.
    differs: Option<Differs>,
}

/// An engine that does not hold what the log gave it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Differs {
    pub(crate) what: String,
    /// Whether the node's log cannot put it right.
    pub(crate) needs_state: bool,
}

/// The result of a check of a node's own files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Flaw {
    pub(crate) what: String,
    /// Whether bytes differ from what was written. A disk that fails to read proves nothing.
    pub(crate) is_damage: bool,
}

impl Damage {
    /// Nothing is known yet of this life.
    pub(crate) fn none(incarnation: Incarnation) -> Self {
        Self {
            incarnation,
            ..Self::default()
        }
    }

    /// Notes the result of a comparison. Returns whether it is new.
    pub(crate) fn note_compared(&mut self, of: Incarnation, compared: Option<String>) -> bool {
        let is_news = of == self.incarnation && self.compared != compared;
        if is_news {
            self.is_counted &= compared.is_some();
            self.compared = compared;
        }
        is_news
    }

    /// Notes the result of a check. Returns whether it is new.
    pub(crate) fn note_checked(&mut self, of: Incarnation, checked: Option<Flaw>) -> bool {
        let is_news = of == self.incarnation && self.checked != checked;
        if is_news {
            self.checked = checked;
        }
        is_news
    }

    /// Notes how the engine differs. Returns whether it is new.
    pub(crate) fn note_differs(&mut self, differs: Option<Differs>) -> bool {
        let is_news = self.differs != differs;
        self.differs = differs;
        is_news
    }

    pub(crate) fn differs(&self) -> Option<&Differs> {
        self.differs.as_ref()
    }

    pub(crate) fn why(&self) -> Option<&String> {
        let differs = self.differs.as_ref().map(|differs| &differs.what);
        let checked = self.checked.as_ref().map(|checked| &checked.what);
        differs.or(checked).or(self.compared.as_ref())
    }

    /// Why the rows have to be counted: the others report that they are wrong.
    pub(crate) fn why_count(&self) -> Option<&String> {
        self.compared.as_ref().filter(|_| !self.is_counted)
    }

    /// Notes that the rows were counted. Returns whether that is new.
    pub(crate) fn note_counted(&mut self) -> bool {
        !std::mem::replace(&mut self.is_counted, true)
    }

    /// Why the data has to be replaced: it is proven to differ from what was written.
    pub(crate) fn why_replace(&self) -> Option<&String> {
        let checked = self.checked.as_ref().filter(|checked| checked.is_damage);
        let checked = checked.map(|checked| &checked.what);
        checked.or(self.compared.as_ref().filter(|_| self.is_counted))
    }
}

impl Consensus {
    /// Accepts a finding about this node's data, but only from the master that it follows. A master
    /// that it does not follow yet repeats the finding after the next comparison.
    pub(super) fn hear_of_damage(&self, caller: NodeId, told: Diverged) -> bool {
        let is_current = self.is_followed(caller, told.term);
        if is_current {
            let what = Some(told.what).filter(|what| !what.is_empty());
            self.note_damage(Incarnation(told.incarnation), what);
        }
        is_current
    }

    /// Notes the result of a comparison for this node.
    pub(crate) fn note_compared(&self, compared: Option<String>) {
        self.note_damage(self.identity.incarnation, compared);
    }

    fn note_damage(&self, of: Incarnation, compared: Option<String>) {
        let note = |damage: &mut Damage| damage.note_compared(of, compared);
        self.notices.damage.send_if_modified(note);
    }

    /// Tells a node what a comparison has found about a life of its directory. An empty `what`
    /// means that it found nothing.
    pub(crate) async fn tell_of_damage(&self, id: NodeId, of: Incarnation, what: String) {
        let call = ElectionCall::Diverged(Diverged {
            term: self.role.borrow().term.0,
            what,
            incarnation: of.0,
        });
        let Some(client) = self.peers.election_of(id) else {
            return;
        };
        if let Err(error) = client.call(call, self.timers.silence_max).await {
            tracing::debug!(%id, %error, "could not tell a node that its data is bad");
        }
    }
}
