//! Why a group in another process did not read or write what it was asked to.

/// Why a [`GroupClient`](crate::GroupClient) has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// No node has answered in time.
    #[error("no node has answered: {reason}; nothing was written")]
    Unreachable {
        /// What the last one that was tried said.
        reason: String,
    },
    /// The nodes refuse the caller, or the caller does not believe them.
    #[error("{reason}; nothing was written")]
    Denied {
        /// Why, with the node.
        reason: String,
    },
    /// A node refuses what it was asked for.
    #[error("{reason}")]
    Refused {
        /// Why, with the node.
        reason: String,
        /// Whether the same call may succeed later, with no risk of being done twice.
        is_retryable: bool,
    },
    /// A write was sent, and it is not known whether it is committed.
    #[error(
        "{reason}; the write may be committed all the same: read the keys before you repeat it"
    )]
    OutcomeUnknown {
        /// What is known, with the node.
        reason: String,
    },
}
