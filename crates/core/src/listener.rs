//! State changes: who is master, as a stream that never misses the newest state.

use std::fmt;
use std::str::FromStr;

use futures_util::{Stream, stream};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::ids::Term;
use crate::member::NodeAddress;
use crate::runtime::Ground;

/// A node's current role in its group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Role {
    /// No master is known, or the known one has been silent for several election timeouts; or this
    /// node leads, but no majority has answered it for `election_timeout_max_ms`: then it takes no
    /// writes, and may have been replaced.
    #[default]
    Unknown,
    /// This node is the master, hears a majority, and takes writes.
    Master,
    /// Another node is the master.
    Replica,
    /// This node takes no part: it is closed, or has failed.
    Detached,
    /// This node, of priority 0, leads in place of a master: it brings the others up to date and
    /// changes members, but takes no writes. Its status and health say so; to those who follow its
    /// state it knows no master.
    StandIn,
}

impl Role {
    /// Whether the node knows the master: it is the master itself, or follows it.
    pub fn is_known(self) -> bool {
        matches!(self, Self::Master | Self::Replica)
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Master => "master",
            Self::Replica => "replica",
            Self::Detached => "detached",
            Self::StandIn => "stand-in",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A text that names no role.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no role of a node")]
pub struct ParseRoleError(String);

impl FromStr for Role {
    type Err = ParseRoleError;

    fn from_str(text: &str) -> Result<Self, ParseRoleError> {
        let all = [
            Self::Unknown,
            Self::Master,
            Self::Replica,
            Self::Detached,
            Self::StandIn,
        ];
        let named = all.into_iter().find(|role| role.as_str() == text);
        named.ok_or_else(|| ParseRoleError(text.to_owned()))
    }
}

/// A node's role, with the term and the master it knows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoleState {
    /// The role.
    pub role: Role,
    /// The newest term that the node knows.
    pub term: Term,
    /// The master of that term, if known.
    pub master: Option<NodeAddress>,
}

/// The states of a node, starting with the current one. States that pass between two calls are
/// skipped; the newest is always delivered. Ends when the environment is closed.
///
/// As an iterator it blocks; [`StateChanges::next_async`] waits, and [`StateChanges::into_stream`]
/// makes a stream. No lock is held between two states, so a slow consumer stalls nobody.
pub struct StateChanges {
    states: watch::Receiver<RoleState>,
    ground: Ground,
    /// The last role delivered; `None` before the first.
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

    /// The next state; initially the current one. `None` after [`Role::Detached`].
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

    /// The same, as a stream.
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
