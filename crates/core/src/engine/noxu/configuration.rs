//! How a Noxu environment is set up. `docs/engines.md` has the reasons in full.

use std::path::Path;
use std::sync::Arc;

use noxu::{EnvironmentConfig, ExceptionEvent, ExceptionListener};

/// Noxu refuses to write when the volume has less free space than this: room for a batch of 64 MiB
/// and the checkpoint after it. Its default of 5 GiB would stop a node on a small volume.
pub const FREE_DISK_BYTES_MIN: u64 = 128 * 1024 * 1024;
/// Size of the files of Noxu's log, if none is given. Its recovery reads the last one again for each change of a node
/// that it finds there: with 64 MiB an open took 16 s that takes half a second with this.
const FILE_BYTES: u64 = 10 * 1024 * 1024;
/// Log written between two checkpoints: what is in memory when it has been read again after a crash.
const CHECKPOINT_BYTES_INTERVAL: u64 = 128 * 1024 * 1024;
/// How often Noxu looks whether that much has been written. A checkpoint reads the whole log.
const CHECKPOINT_WAKEUP_MS: u64 = 10_000;

/// How a [`NoxuEngine`](super::NoxuEngine) uses memory and disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoxuSizes {
    /// Memory for Noxu's cache.
    pub cache_bytes: u64,
    /// Size of the files of its log, at least 1 MB. Space is given back by the file.
    pub file_bytes: u64,
    /// Log after which a checkpoint is made: what an open reads again after a crash. A checkpoint reads
    /// the whole log.
    pub checkpoint_bytes: u64,
    /// How often it looks whether that much has been written.
    pub checkpoint_wakeup_ms: u64,
}

impl NoxuSizes {
    /// The sizes that suit most, around a cache of this size.
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
        // `Upkeep` does their work: checkpoints leave roots of trees out, and none of it goes beside others.
        .with_run_checkpointer(false)
        .with_run_cleaner(false)
        // Beside a batch they lose its changes and move records under a cursor: their work is done
        // in turn with both.
        .with_run_evictor(false)
        .with_run_in_compressor(false)
        // Nor does a call evict by itself, beside all others, when the cache is this much too full.
        .with_evictor_critical_percentage(u32::MAX);
    config.set_cache_size(sizes.cache_bytes);
    // The collector writes files of its own into the directory.
    config.set_stats_collect(false);
    config.set_exception_listener(Arc::new(BackgroundFailures));
    config
}

/// Tells the operator what Noxu's own threads could not do. What a caller must know about reaches it
/// through the next call that fails.
struct BackgroundFailures;

impl ExceptionListener for BackgroundFailures {
    fn exception_event(&self, event: &ExceptionEvent) {
        tracing::warn!(source = %event.source, error = %event.message, "engine background work");
    }
}
