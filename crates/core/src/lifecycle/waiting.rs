//! Waiting: until the node can be used, until it belongs to a group, until there is a master.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use crate::error::ReadyError;
use crate::ids::GroupUuid;
use crate::lifecycle::Lifecycle;
use crate::listener::RoleState;
use crate::node::phase::Phase;

/// Pause of a call that found no master before it tries again, unless one is heard of before.
const MASTER_RETRY: Duration = Duration::from_millis(20);

/// The search of a call for a master that takes it.
pub(super) struct MasterSearch {
    role: watch::Receiver<RoleState>,
    phase: watch::Receiver<Phase>,
    until: Instant,
}

/// Why a search is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SearchOver {
    /// This node closes.
    Closed,
    /// The time is up.
    Late,
}

impl MasterSearch {
    /// What this node knows of the master. Only news from here on ends the next
    /// [`MasterSearch::pause`].
    pub(super) fn state(&mut self) -> RoleState {
        self.role.borrow_and_update().clone()
    }

    /// After the master did not take the call, or none is known: returns when it may be tried again.
    ///
    /// # Errors
    /// See [`SearchOver`].
    pub(super) async fn pause(&mut self) -> Result<(), SearchOver> {
        if self.phase.borrow_and_update().is_closing() {
            return Err(SearchOver::Closed);
        }
        if Instant::now() >= self.until {
            return Err(SearchOver::Late);
        }
        let again = self.until.min(Instant::now() + MASTER_RETRY);
        let news = async {
            tokio::select! {
                biased;
                _ = self.role.changed() => {}
                _ = self.phase.changed() => {}
            }
        };
        // Without news it tries again all the same.
        timeout_at(again, news).await.ok();
        Ok(())
    }
}

impl Lifecycle {
    /// A search that gives up at `until`.
    pub(super) fn search_master(&self, until: Instant) -> MasterSearch {
        MasterSearch {
            role: self.role(),
            phase: self.phase.subscribe(),
            until,
        }
    }

    /// See [`crate::ReplicatedEnvironment::wait_ready`].
    ///
    /// # Errors
    /// See [`ReadyError`].
    pub(crate) async fn wait_ready(&self, timeout: Duration) -> Result<(), ReadyError> {
        let deadline = Instant::now() + timeout;
        let (mut phase, mut role) = (self.phase.subscribe(), self.role());
        loop {
            unless_ended(&phase.borrow_and_update())?;
            if role.borrow_and_update().role.is_known() {
                return Ok(());
            }
            let changed = async {
                tokio::select! {
                    biased;
                    changed = phase.changed() => changed.is_ok(),
                    changed = role.changed() => changed.is_ok(),
                }
            };
            if timeout_at(deadline, changed).await.is_err() {
                return Err(self.not_in_time(timeout));
            }
        }
    }

    /// See [`crate::ReplicatedEnvironment::wait_group_async`].
    ///
    /// # Errors
    /// See [`ReadyError`].
    pub(crate) async fn wait_group(&self, timeout: Duration) -> Result<GroupUuid, ReadyError> {
        let deadline = Instant::now() + timeout;
        let (mut phase, mut identity) = (self.phase.subscribe(), self.identity.subscribe());
        loop {
            if let Some(group) = identity.borrow_and_update().group {
                return Ok(group);
            }
            unless_ended(&phase.borrow_and_update())?;
            let changed = async {
                tokio::select! {
                    biased;
                    _ = phase.changed() => {}
                    _ = identity.changed() => {}
                }
            };
            if timeout_at(deadline, changed).await.is_err() {
                return Err(self.not_in_time(timeout));
            }
        }
    }

    fn not_in_time(&self, after: Duration) -> ReadyError {
        let waiting_for = format!("waiting for {}", self.waiting_for());
        ReadyError::Timeout { after, waiting_for }
    }
}

/// # Errors
/// Why a node in this phase will not be ready.
fn unless_ended(phase: &Phase) -> Result<(), ReadyError> {
    match phase {
        Phase::Running | Phase::Forming | Phase::Restoring => Ok(()),
        Phase::Refused(reason) => Err(ReadyError::Refused {
            reason: reason.clone(),
        }),
        Phase::Stopped(reason) => Err(ReadyError::Stopped {
            reason: reason.clone(),
        }),
        Phase::Closing | Phase::Closed => Err(ReadyError::Closed),
    }
}
