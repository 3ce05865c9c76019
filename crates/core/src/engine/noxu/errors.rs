//! What Noxu's errors mean to the user of an engine.

use std::path::Path;

use noxu::{EnvironmentFailureReason, NoxuError};

use crate::engine::error::EngineError;

type Source = Box<dyn std::error::Error + Send + Sync>;

pub(super) fn io_error(doing: &'static str, source: impl Into<Source>) -> EngineError {
    EngineError::Io {
        doing,
        source: source.into(),
    }
}

pub(super) fn read_error(doing: &'static str, error: NoxuError) -> EngineError {
    let is_corrupt = error.is_corrupted()
        || matches!(
            error.reason(),
            Some(
                EnvironmentFailureReason::LogIntegrity | EnvironmentFailureReason::LogFileNotFound
            )
        );
    if is_corrupt {
        EngineError::Corrupt {
            what: error.to_string(),
        }
    } else {
        io_error(doing, error)
    }
}

pub(super) fn write_error(doing: &'static str, error: NoxuError) -> EngineError {
    match error {
        NoxuError::DiskLimitExceeded { .. } => EngineError::DiskFull {
            source: error.into(),
        },
        error => read_error(doing, error),
    }
}

pub(super) fn open_error(directory: &Path, error: NoxuError) -> EngineError {
    // Noxu reports every failure to open as one kind of error: only the text tells this one apart.
    if error.to_string().contains("locked by another process") {
        EngineError::InUse {
            directory: directory.to_owned(),
        }
    } else {
        read_error("open its environment", error)
    }
}

/// An engine that cannot be opened for lack of space is not damaged.
pub(super) fn or_full(error: EngineError) -> EngineError {
    match error {
        // Only the text tells them apart, as above.
        EngineError::Io { source, .. }
            if source.to_string().contains("No space left on device") =>
        {
            EngineError::DiskFull { source }
        }
        error => error,
    }
}
