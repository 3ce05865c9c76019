//! The phases of a node between open and close.

use crate::error::{ReadError, WriteError};

/// A node's phase.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Forming,
    Running,
    /// It copies a peer's state, and takes no part meanwhile.
    Restoring,
    /// The group does not admit the node, or goes on without it.
    Refused(String),
    /// The disk or the engine failed.
    Stopped(String),
    /// Closing: whatever stops now was meant to.
    Closing,
    Closed,
}

impl Phase {
    pub(crate) fn is_closing(&self) -> bool {
        matches!(self, Self::Closing | Self::Closed)
    }

    /// # Errors
    /// Why a node in this phase does no work.
    pub(crate) fn running(&self) -> Result<(), NotRunning> {
        match self {
            Self::Running => Ok(()),
            Self::Forming => Err(NotRunning::NotYet),
            Self::Restoring => Err(NotRunning::Restoring),
            Self::Refused(reason) | Self::Stopped(reason) => {
                Err(NotRunning::Stopped(reason.clone()))
            }
            Self::Closing | Self::Closed => Err(NotRunning::Closed),
        }
    }
}

/// Why a node does no work.
pub(crate) enum NotRunning {
    NotYet,
    Restoring,
    Stopped(String),
    Closed,
}

impl From<NotRunning> for ReadError {
    fn from(why: NotRunning) -> Self {
        match why {
            NotRunning::NotYet => Self::NotCurrent {
                reason: "the node belongs to no group yet".to_owned(),
            },
            NotRunning::Restoring => Self::Restoring,
            NotRunning::Stopped(reason) => Self::Stopped { reason },
            NotRunning::Closed => Self::Closed,
        }
    }
}

impl From<NotRunning> for WriteError {
    fn from(why: NotRunning) -> Self {
        match why {
            NotRunning::NotYet => Self::NotMaster { master: None },
            NotRunning::Restoring => Self::Restoring,
            NotRunning::Stopped(reason) => Self::Stopped { reason },
            NotRunning::Closed => Self::Closed,
        }
    }
}
