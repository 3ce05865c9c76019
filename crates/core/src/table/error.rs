//! Why an operation on a typed table failed.

use std::error::Error;

use bytes::Bytes;

use super::key::KeyError;
use crate::error::{Outcome, ReadError, WriteError};

/// Why an operation on a typed table failed.
///
/// Functions given to `write` and `read` may return it, or an error type of yours that is made from it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TableError {
    /// The read failed.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The write failed.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// Another row has the same key in a unique index. The operation has written nothing.
    #[error(
        "the unique index {index} leads from {} to the row {} already",
        key.escape_ascii(),
        row.escape_ascii()
    )]
    NotUnique {
        /// The database of the index.
        index: String,
        /// The key in the index, as bytes.
        key: Bytes,
        /// The key of the row that has it, as bytes.
        row: Bytes,
    },
    /// The codec cannot write the value. The operation has written nothing.
    #[error("a value for {database} cannot be written as bytes: {source}")]
    Encode {
        /// The database of the table.
        database: String,
        /// The error of the codec.
        source: Box<dyn Error + Send + Sync>,
    },
    /// What is stored is no key of the table or index.
    #[error("{database} has the key {}, which is none of its type: {source}", key.escape_ascii())]
    Key {
        /// The database of the table or index.
        database: String,
        /// The key, or what stands in its place.
        key: Bytes,
        /// What is wrong with it.
        source: KeyError,
    },
    /// What is stored is no value of the table.
    #[error("the value of {} in {database} is none of its type: {source}", key.escape_ascii())]
    Value {
        /// The database of the table.
        database: String,
        /// The key of the row, as bytes.
        key: Bytes,
        /// The error of the codec.
        source: Box<dyn Error + Send + Sync>,
    },
    /// An index leads to a row that does not exist. Somebody writes to the table without its indexes,
    /// or has given its bytes a time to live: see `Table::verify` and `Table::rebuild`.
    #[error("the index {index} leads to the row {}, which does not exist", row.escape_ascii())]
    Dangling {
        /// The database of the index.
        index: String,
        /// The key of the row, as bytes.
        row: Bytes,
    },
}

impl TableError {
    /// What is known about a write that failed with this.
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Write(error) => error.outcome(),
            _ => Outcome::NotCommitted,
        }
    }

    /// Whether the same operation may succeed later, here or on another node, with no risk of being
    /// done twice.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Read(error) => error.is_retryable(),
            Self::Write(error) => error.is_retryable(),
            _ => false,
        }
    }
}
