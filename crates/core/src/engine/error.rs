//! Why a call of an engine fails.

use std::path::PathBuf;

/// What engine calls return.
pub type Result<T> = std::result::Result<T, EngineError>;

/// Why an engine call failed.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// What is on disk cannot be what was written. Restore this node from a peer.
    #[error("the engine's data is corrupt ({what}): restore this node from a peer")]
    Corrupt {
        /// What was found.
        what: String,
    },
    /// The volume is too full. Nothing was changed: try again when there is space.
    #[error("too little space for the engine ({source}); nothing was changed")]
    DiskFull {
        /// The engine's own error.
        r#source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A file could not be read or written. Close the engine and open it again; replay the log from
    /// the position that it then holds.
    #[error("the engine could not {doing}: {source}")]
    Io {
        /// What it was doing, to be read after "could not".
        doing: &'static str,
        /// The engine's own error.
        r#source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// An earlier call failed in a way that leaves the state on disk unknown. Close and open again.
    #[error("the engine has failed before: close it and open it again")]
    Failed,
    /// Another engine has the directory open. End that process first.
    #[error("the engine in {} is in use", .directory.display())]
    InUse {
        /// The directory.
        directory: PathBuf,
    },
    /// [`StorageEngine::close`](super::StorageEngine::close) has been called, or the engine's store has crashed.
    #[error("the engine is closed")]
    Closed,
}

impl EngineError {
    /// Whether data is damaged, rather than unreachable.
    pub(crate) fn is_damage(&self) -> bool {
        matches!(self, Self::Corrupt { .. })
    }
}
