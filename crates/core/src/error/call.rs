//! Why a call of another node has no answer.

use std::time::Duration;

/// Why a call has no answer. Each says whether the handler may have got the request:
/// [`CallError::may_have_run`].
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// The request did not get to the node.
    #[error("{node} was not called: {reason}; it is safe to retry")]
    NotSent {
        /// The node.
        node: String,
        /// Why.
        reason: String,
    },
    /// No master could be called in time.
    #[error("no master could be called within {after:?}: {reason}; it is safe to retry")]
    NoMaster {
        /// How long the call waited.
        after: Duration,
        /// What it waited for last.
        reason: String,
    },
    /// No member of the group has this name.
    #[error("no node of the group is called {node:?}; nothing was called")]
    NoSuchNode {
        /// The name.
        node: String,
    },
    /// The node has no handler of this name: its application has not registered it, or not yet.
    #[error(
        "{node} has no handler called {name:?}; nothing was called; retry, or register it there"
    )]
    NoSuchService {
        /// The node.
        node: String,
        /// The name of the handler.
        name: String,
    },
    /// The request is too large.
    #[error("a request of {actual} bytes exceeds the limit of {max}; nothing was called")]
    TooLarge {
        /// Its size in bytes.
        actual: usize,
        /// The largest size in bytes.
        max: usize,
    },
    /// Too many calls of that node have no answer yet.
    #[error(
        "{node} has yet to answer {calls} calls, of {bytes} bytes; nothing was called; retry later"
    )]
    Full {
        /// The node.
        node: String,
        /// Calls without an answer.
        calls: usize,
        /// Bytes of their requests.
        bytes: usize,
    },
    /// The request may have got to the handler, and its answer did not come back.
    #[error("{node} has not answered ({reason}), and may have done what it was asked for")]
    Unanswered {
        /// The node.
        node: String,
        /// Why.
        reason: String,
    },
    /// The environment was closed before the request was sent.
    #[error("the environment is closed; nothing was called")]
    Closed,
}

impl CallError {
    /// Whether the handler may have got the request, and may have done what it was asked for.
    pub fn may_have_run(&self) -> bool {
        matches!(self, Self::Unanswered { .. })
    }

    /// Whether the same call may succeed later with no risk of being done twice.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::NotSent { .. }
            | Self::NoMaster { .. }
            | Self::NoSuchService { .. }
            | Self::Full { .. } => true,
            Self::NoSuchNode { .. }
            | Self::TooLarge { .. }
            | Self::Unanswered { .. }
            | Self::Closed => false,
        }
    }
}

/// Why a handler of calls was not registered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ServeCallsError {
    /// This node has a handler of this name.
    #[error("this node has a handler called {name:?}; drop what its registration returned first")]
    NameTaken {
        /// The name.
        name: String,
    },
    /// The name is empty or too long.
    #[error("the name of a handler is 1 to {max} bytes, and this one {actual}")]
    Name {
        /// Its length in bytes.
        actual: usize,
        /// The greatest length in bytes.
        max: usize,
    },
    /// This node has as many handlers as it may.
    #[error("this node has {max} handlers, and may have no more")]
    TooMany {
        /// The most handlers.
        max: usize,
    },
    /// The environment is closed.
    #[error("the environment is closed")]
    Closed,
}
