//! The configuration of a Noxu environment. `docs/engines.md` gives the reasons in full.

use std::path::Path;
use std::sync::Arc;

use noxu::{EnvironmentConfig, ExceptionEvent, ExceptionListener};

/// Noxu refuses to write when the volume has less free space than this: room for a batch of 64 MiB
/// and the checkpoint after it. Its default of 5 GiB would stop a node on a small volume.
pub const FREE_DISK_BYTES_MIN: u64 = 128 * 1024 * 1024;
/// Default size of Noxu's log files. Its recovery rereads the last one for each node change that it
/// finds there: an open that took 16 s with 64 MiB takes half a second with this.
const FILE_BYTES: u64 = 10 * 1024 * 1024;
/// Log written between two checkpoints: what is in memory once it has been reread after a crash.
const CHECKPOINT_BYTES_INTERVAL: u64 = 128 * 1024 * 1024;
/// How often to check whether that much has been written. A checkpoint reads the whole log.
const CHECKPOINT_WAKEUP_MS: u64 = 10_000;

/// How a [`NoxuEngine`](super::NoxuEngine) uses memory and disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoxuSizes {
    /// Memory for Noxu's cache.
    pub cache_bytes: u64,
    /// Size of its log files, at least 1 MB. Space is freed by whole files.
    pub file_bytes: u64,
    /// Log written before a checkpoint is made: what an open rereads after a crash. A checkpoint
    /// reads the whole log.
    pub checkpoint_bytes: u64,
    /// How often to check whether that much has been written.
    pub checkpoint_wakeup_ms: u64,
}

impl NoxuSizes {
    /// Sizes that suit most nodes, with a cache of this size.
    pub const fn with_cache(cache_bytes: u64) -> Self {
        Self {
            cache_bytes,
            file_bytes: FILE_BYTES,
            checkpoint_bytes: CHECKPOINT_BYTES_INTERVAL,
            checkpoint_wakeup_ms: CHECKPOINT_WAKEUP_MS,
        }
    }
}

/// The configuration of the environment in `directory`.
pub(super) fn of(directory: &Path, sizes: NoxuSizes) -> EnvironmentConfig {
    let mut config = EnvironmentConfig::new(directory.to_owned())
        .with_allow_create(true)
        .with_transactional(true)
        .with_free_disk(FREE_DISK_BYTES_MIN)
        .with_log_file_max_bytes(sizes.file_bytes)
        .with_checkpointer_bytes_interval(sizes.checkpoint_bytes)
        .with_checkpointer_wakeup_interval_ms(sizes.checkpoint_wakeup_ms)
        // Its nightly walk over every tree holds the lock that a transaction needs to begin.
        .with_run_verifier(false)
        // `Upkeep` does their work: checkpoints omit roots of trees, and none of it may run beside
        // other work.
        .with_run_checkpointer(false)
        .with_run_cleaner(false)
        // Beside a batch they lose its changes, and they move records under a cursor: their work
        // takes turns with both.
        .with_run_evictor(false)
        .with_run_in_compressor(false)
        // Nor does a call evict on its own, beside all others, when the cache is this far over its
        // size.
        .with_evictor_critical_percentage(u32::MAX);
    config.set_cache_size(sizes.cache_bytes);
    // The collector writes files of its own into the directory.
    config.set_stats_collect(false);
    config.set_exception_listener(Arc::new(BackgroundFailures));
    config
}

/// Tells the operator what Noxu's own threads could not do. What a caller must know reaches it
/// through the next call that fails.
struct BackgroundFailures;

impl ExceptionListener for BackgroundFailures {
    fn exception_event(&self, event: &ExceptionEvent) {
        tracing::warn!(source = %event.source, error = %event.message, "engine background work");
    }
}
