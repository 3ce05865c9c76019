//! Why an environment is not open, or not ready.

use std::path::PathBuf;
use std::time::Duration;

use super::{REMOVED, after_stop, first_cause};
use crate::config::ConfigError;
use crate::engine::EngineError;
use crate::log::LogError;

/// Why an environment could not be opened. Nothing on disk was changed, except that a missing
/// directory and identity may have been created.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The directory belongs to something else.
    #[error(
        "data directory {dir} belongs to {what} {found:?}, not to {expected:?}; \
         point data_dir at the directory of {expected:?}, or at an empty one"
    )]
    ForeignDirectory {
        /// The data directory.
        dir: PathBuf,
        /// "group" or "node".
        what: &'static str,
        /// Whose directory it is.
        found: String,
        /// Whose it should be.
        expected: String,
    },
    /// Another process, or another environment of this one, has the directory open.
    #[error("data directory {dir} is in use by another process; stop that process first")]
    InUse {
        /// The data directory.
        dir: PathBuf,
    },
    /// The directory is not the one this node worked in, but a copy of it, or one restored from a
    /// backup.
    #[error(
        "data directory {dir} is a copy of this node's directory, or was restored from a backup of \
         its files: it may lack votes and writes that the node has acknowledged, and the original \
         may still be running, so it takes no part; nothing was changed. Put the original back, or \
         replace the node (steadfast node replace), or, if nothing else is left of the group, \
         recover from this directory (steadfast recover)"
    )]
    Copied {
        /// The data directory.
        dir: PathBuf,
    },
    /// A group was being restored to the directory, and the restore is incomplete.
    #[error(
        "a restore to {dir} was interrupted; nothing was changed. Repeat it (steadfast backup \
         restore), or empty the directory"
    )]
    UnfinishedRestore {
        /// The data directory.
        dir: PathBuf,
    },
    /// The group was recovered without this node after its quorum was lost.
    #[error("{reason}")]
    Superseded {
        /// The epoch of the recovery, and what to do.
        reason: String,
    },
    /// A file was written by a newer version of the program.
    #[error(
        "{path} has format version {found}, but this program reads versions up to {known}; run the \
         version that wrote it, or a newer one"
    )]
    NewerFormat {
        /// The file.
        path: PathBuf,
        /// Its format version.
        found: u32,
        /// The newest version that this program knows.
        known: u32,
    },
    /// A file holds bytes other than those written.
    #[error(
        "{path} is corrupt at byte {offset}: {what}; this node does not vote or serve until it is \
         repaired. The other nodes should have the data: delete nothing until you have checked \
         that they do"
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// The offset of the damage.
        offset: u64,
        /// What is wrong.
        what: String,
    },
    /// A file or directory cannot be read or written.
    #[error("cannot {doing} {path}: {source}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        r#source: std::io::Error,
    },
    /// The log on disk cannot be opened.
    #[error(transparent)]
    Log(LogError),
    /// The storage engine cannot be opened.
    #[error("the storage engine cannot be opened: {0}")]
    Engine(EngineError),
    /// The storage engine does not hold what the log gave it, and the log does not reach back far
    /// enough to put it right.
    #[error(
        "{what}; this node does not vote or serve with this data, and nothing was removed. If \
         another node has the right data, this node copies it (repair = \"auto\"); otherwise you \
         need a backup or an older data directory"
    )]
    EngineDiffers {
        /// Which databases, and up to where everything was present.
        what: String,
    },
    /// The address cannot be listened on.
    #[error(
        "cannot listen on {address}: {}; is another program using the port?",
        first_cause(.source)
    )]
    Listen {
        /// The address as configured.
        address: String,
        /// What the network said.
        r#source: steadfast_net::NetError,
    },
    /// The runtime or consensus could not be started.
    #[error("cannot start: {0}")]
    Start(String),
    /// The machine's clock shows an impossible time.
    #[error(
        "the clock of this machine shows the year {year}, which cannot be right: set the clock, or \
         its time service, then start again"
    )]
    Clock {
        /// The year it shows.
        year: u64,
    },
    /// Returned by a close: the node has stopped, but not everything could be written. Nothing
    /// acknowledged is lost: it is in the log.
    #[error("the node has stopped, but could not write everything: {0}")]
    Close(String),
}

impl From<EngineError> for OpenError {
    fn from(error: EngineError) -> Self {
        Self::Engine(error)
    }
}

/// Why an environment is not ready.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadyError {
    /// The deadline passed.
    #[error("not ready after {after:?}: {waiting_for}")]
    Timeout {
        /// How long the call waited.
        after: Duration,
        /// What is missing, and which nodes it waits for.
        waiting_for: String,
    },
    /// The group does not accept this node.
    #[error("the group refuses this node: {reason}")]
    Refused {
        /// Why, and what to do.
        reason: String,
    },
    /// The node has stopped.
    #[error("the node has stopped: {reason}; {}", after_stop(.reason))]
    Stopped {
        /// Why.
        reason: String,
    },
    /// The environment was closed.
    #[error("the environment is closed")]
    Closed,
}

impl ReadyError {
    /// Whether the node stopped because it was removed from the group.
    pub fn was_removed(&self) -> bool {
        matches!(self, Self::Stopped { reason } if reason == REMOVED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{FeedError, ReadError, WriteError};

    #[test]
    fn a_removed_node_is_sent_to_a_token_and_another_that_stopped_to_its_disk() {
        let texts = |reason: &str| {
            let reason = reason.to_owned();
            [
                ReadyError::Stopped {
                    reason: reason.clone(),
                }
                .to_string(),
                ReadError::Stopped {
                    reason: reason.clone(),
                }
                .to_string(),
                WriteError::Stopped {
                    reason: reason.clone(),
                }
                .to_string(),
                FeedError::Stopped { reason }.to_string(),
            ]
        };
        for text in texts(REMOVED) {
            assert!(
                text.contains("token") && !text.contains("open it again"),
                "{text}"
            );
        }
        for text in texts("the log failed") {
            assert!(text.contains("open it again"), "{text}");
        }
    }
}
