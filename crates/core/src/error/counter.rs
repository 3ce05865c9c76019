//! Why something cannot be added to a counter.

use bytes::Bytes;

/// Why something cannot be added to a counter.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CounterError {
    /// The value of the key is not that of a counter, which has 8 bytes.
    #[error("the value of the key {} has {bytes} bytes, and a counter has 8", key.escape_ascii())]
    NotACounter {
        /// The key.
        key: Bytes,
        /// Length of its value, in bytes.
        bytes: usize,
    },
    /// The sum does not fit into an `i64`.
    #[error("the counter {} is at {value}, and {delta} more is beyond an i64", key.escape_ascii())]
    Overflow {
        /// The key.
        key: Bytes,
        /// Its value.
        value: i64,
        /// What was to be added.
        delta: i128,
    },
}
