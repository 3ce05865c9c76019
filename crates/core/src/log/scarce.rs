//! Files in a process with few descriptors: finished segments hold none, and a call that finds none
//! left waits for one.
//!
//! A log may have thousands of segments. Only the last one is written to; the others are opened for
//! each read.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use steadfast_net::Descriptors;
use tokio::time::{Instant, sleep};

use super::disk::{Disk, DiskFile, DiskFuture, OpenMode};

/// How long one call waits for a descriptor. After that a write fails the log, and the node stops; a
/// read returns the error.
pub(super) const WAIT_MAX: Duration = Duration::from_mins(1);

/// Pause between two attempts. Nothing signals that the system has descriptors again.
const RETRY_INTERVAL: Duration = Duration::from_millis(20);

/// How often a waiting call logs a warning.
const SAY_INTERVAL: Duration = Duration::from_secs(5);

/// How much of [`WAIT_MAX`] one call has left.
#[derive(Default)]
pub(super) struct Patience {
    /// When it began to wait.
    since: Option<Instant>,
    /// Total wait at which it logs the next warning.
    say_after: Duration,
}

impl Patience {
    /// Whether to retry after this error: it reports a lack of descriptors, and the pause made here
    /// may have ended that.
    pub(super) async fn allows(&mut self, error: &io::Error) -> bool {
        if !Descriptors::are_wanting(error) {
            return false;
        }
        let waited = self.since.get_or_insert_with(Instant::now).elapsed();
        if waited >= self.say_after {
            self.say_after = waited + SAY_INTERVAL;
            tracing::warn!(%error, ?waited, "the log waits for a free descriptor to open a file");
        }
        if waited >= WAIT_MAX {
            return false;
        }
        sleep(RETRY_INTERVAL).await;
        true
    }
}

/// A file that is opened for each call and holds no descriptor in between.
pub(super) struct Unopened {
    disk: Arc<dyn Disk>,
    path: PathBuf,
}

impl Unopened {
    pub(super) fn new(disk: Arc<dyn Disk>, path: PathBuf) -> Self {
        Self { disk, path }
    }

    fn open(&self, mode: OpenMode) -> io::Result<Box<dyn DiskFile>> {
        self.disk.open(&self.path, mode)
    }
}

impl DiskFile for Unopened {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.open(OpenMode::Read)?.read_at(buffer, offset)
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.open(OpenMode::ReadWrite)?.write_all_at(bytes, offset)
    }

    fn sync_data(&self) -> DiskFuture<'_, ()> {
        Box::pin(async move { self.open(OpenMode::ReadWrite)?.sync_data().await })
    }

    fn len(&self) -> io::Result<u64> {
        self.open(OpenMode::Read)?.len()
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        self.open(OpenMode::ReadWrite)?.allocate(bytes)
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.open(OpenMode::ReadWrite)?.set_len(bytes)
    }
}
