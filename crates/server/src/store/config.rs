//! What a store can be configured with.

use std::time::Duration;

/// Most operations in one of the lists of a transaction, and on the way to a nested one.
pub const TXN_OPERATIONS_MAX: usize = 128;

/// Largest request, in bytes as it is marshalled: what clients of etcd count on.
pub const REQUEST_BYTES_MAX: usize = 3 * 512 * 1024;

/// How a store behaves. Every node of a group should have the same.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// How long revisions are kept at least before the store compacts them by itself; `None`: until
    /// a client asks for it.
    pub history_keep: Option<Duration>,
    /// How many of the newest revisions the store never compacts by itself.
    pub history_revisions_min: u64,
    /// How long a watch that asked for progress is idle before it is told of it.
    pub progress_interval: Duration,
    /// Most watches on one stream.
    pub watches_max: usize,
    /// How long a request waits for a master, or for the proof that it is current.
    pub request_timeout: Duration,
    /// Most writes that wait for their turn; further ones are refused with `TooManyRequests`.
    pub waiting_writes_max: usize,
    /// Most bytes of the writes that wait or are under way.
    pub waiting_bytes_max: usize,
    /// Most batches of writes on their way to the disks at a time.
    pub batches_in_flight_max: usize,
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            history_keep: Some(Duration::from_hours(1)),
            history_revisions_min: 10_000,
            progress_interval: Duration::from_mins(10),
            watches_max: 10_000,
            request_timeout: Duration::from_secs(7),
            waiting_writes_max: 16_384,
            waiting_bytes_max: 64 * 1024 * 1024,
            batches_in_flight_max: 2,
        }
    }
}
