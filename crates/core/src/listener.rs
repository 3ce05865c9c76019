//! State changes: who is master, as a stream of which the newest state is never missed.

use std::fmt;

use futures_util::{Stream, stream};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::ids::Term;
use crate::member::NodeAddress;
use crate::runtime::Ground;

/// What a node is in its group at the moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// No master is known, or the one that was known has been silent for several election timeouts.
    #[default]
    Unknown,
    /// This node is the master and takes writes.
    Master,
    /// Another node is the master.
    Replica,
    /// This node takes no part: it is closed, or has failed.
    Detached,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unknown => "unknown",
            Self::Master => "master",
            Self::Replica => "replica",
            Self::Detached => "detached",
        })
    }
}

/// A node's role, with the term and the master that it knows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoleState {
    /// The role.
    pub role: Role,
    /// The newest term that the node knows.
    pub term: Term,
    /// The master of that term, where one is known.
    pub master: Option<NodeAddress>,
}

/// The states of a node, from the present one on. States that come and go while nobody looks are
/// skipped; the newest is always seen. Ends when the environment is closed.
///
/// As an iterator it blocks; [`StateChanges::next_async`] waits, and [`StateChanges::into_stream`]
/// makes a stream. Nothing is held locked between two states, so whoever takes his time with one
/// stalls nobody.
pub struct StateChanges {
    states: watch::Receiver<RoleState>,
    ground: Ground,
    /// What was given out last; `None` before the first.
    last: Option<Role>,
}

impl StateChanges {
    pub(crate) fn new(states: watch::Receiver<RoleState>, ground: Ground) -> Self {
        Self {
            states,
            ground,
            last: None,
        }
    }

    /// The next state; the present one at first. `None` after [`Role::Detached`].
    pub async fn next_async(&mut self) -> Option<RoleState> {
        match self.last {
            None => {}
            Some(Role::Detached) => return None,
            Some(_) => self.states.changed().await.ok()?,
        }
        let state = self.states.borrow_and_update().clone();
        self.last = Some(state.role);
        Some(state)
    }

    /// The same as a stream.
    pub fn into_stream(self) -> impl Stream<Item = RoleState> + Send + use<> {
        stream::unfold(self, |mut changes| async move {
            let state = changes.next_async().await?;
            Some((state, changes))
        })
    }
}

impl Iterator for StateChanges {
    type Item = RoleState;

    fn next(&mut self) -> Option<RoleState> {
        let ground = self.ground.clone();
        ground.wait_for(self.next_async())
    }
}

impl fmt::Debug for StateChanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StateChanges")
            .field("states", &self.states)
            .field("last", &self.last)
            .finish_non_exhaustive()
    }
}
