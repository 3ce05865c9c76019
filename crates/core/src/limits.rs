//! Every bound that a user can meet, with its unit and its reason.

use std::time::Duration;

/// Longest key, in bytes. Keys are stored in inner nodes of the window and of the engine.
pub const KEY_BYTES_MAX: usize = 64 * 1024;

/// Longest value, in bytes. A value is sent in one frame with the rest of its batch.
pub const VALUE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Most bytes that one transaction may write: keys and values together, plus 16 bytes per key. The
/// names of the databases it creates or drops come on top, up to a quarter of this. Its batch must
/// fit into one frame ([`steadfast_net::MAX_FRAME_PAYLOAD`], 64 MiB) with room for the envelope.
/// With log segments below 64 MiB, half a segment is the limit.
pub const TRANSACTION_BYTES_MAX: usize = 32 * 1024 * 1024;

/// Most keys that one transaction may write; creating databases is counted separately. Keys get
/// their versions under the lock that numbers all transactions, and reach the engine as one batch.
pub const TRANSACTION_KEYS_MAX: usize = 100_000;

/// Most databases that one transaction may create, truncate or drop. Each takes up to three entries
/// in the catalog, which everyone reads.
pub const TRANSACTION_DATABASES_MAX: usize = 30_000;

/// Most distinct keys and ranges that one transaction may read. They are checked against other
/// writes under the lock that numbers all transactions. A scan counts as one range, however long.
/// The names of the databases it uses are counted separately, with the same limit.
pub const TRANSACTION_READS_MAX: usize = 100_000;

/// Longest time to live of a key: ten years of 365 days.
pub const TTL_MAX: Duration = Duration::from_hours(10 * 365 * 24);

/// Longest name of a database, in bytes.
pub const DATABASE_NAME_BYTES_MAX: usize = 255;

/// Databases whose names begin with this belong to the etcd v3 API (the crate `steadfast-server`): its
/// rows depend on each other. Programs outside of the nodes read them as all others and cannot write
/// them ([`crate::GroupClient::write_async`]); an application must not.
pub const RESERVED_DATABASES_PREFIX: &str = "etcd/";

/// Longest name of a group or of a node, in bytes.
pub const NAME_BYTES_MAX: usize = 64;

/// Most values that a node publishes as its metadata. They are part of every list of members.
pub const METADATA_ENTRIES_MAX: usize = 16;

/// Longest name of such a value, in bytes.
pub const METADATA_KEY_BYTES_MAX: usize = 64;

/// Longest such value, in bytes: enough for a URL.
pub const METADATA_VALUE_BYTES_MAX: usize = 256;

/// Most nodes in a group: more electable nodes make commits slower and no safer.
pub const NODES_MAX: usize = 63;

/// How long a close takes at the most, whatever is under way, as long as the disk does what it is
/// given. Services and the last flush have a second each to end, and the engine has one to begin to
/// free space: what they leave is done when the node is opened again. The rest is what the engine
/// has to write of its cache.
pub const CLOSE_MAX: Duration = Duration::from_secs(5);

/// Most bytes of a transaction that runs on a node that is not the master: what it read and what it
/// writes. They go to the master in one frame.
pub(crate) const FORWARDED_BYTES_MAX: usize = 48 * 1024 * 1024;

/// A batch that has reached this many bytes takes no further transaction. Small enough to keep one
/// fdatasync and one frame short, large enough to make per-batch costs vanish.
pub(crate) const BATCH_BYTES_MAX: usize = 1024 * 1024;

/// Most databases and key prefixes in one subscription. Each is compared with every change.
pub const SUBSCRIPTION_FILTERS_MAX: usize = 64;

/// Number of filtered-out transactions after which a subscriber is told how far it has come. A
/// resumed subscription passes over fewer than this again.
pub(crate) const PROGRESS_TRANSACTIONS: u64 = 1024;

/// Bytes of recent transactions that a shared feed keeps by default: with transactions of 1 KiB, the
/// last second or more of a busy group, so that only listeners that stand still are too slow.
pub const SHARED_FEED_BYTES: usize = 16 * 1024 * 1024;

/// The largest `batches_in_flight_max`. A search of the log looks at that many extra batches.
pub(crate) const BATCHES_IN_FLIGHT_MAX: usize = 64;

/// A batch with this many transactions takes no further one.
pub(crate) const BATCH_TRANSACTIONS_MAX: u32 = 4096;

/// Most bytes of a call's request, and of its answer ([`crate::ReplicatedEnvironment::call_async`]).
/// Larger ones would hold up all that follow on the same connection.
pub const CALL_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Most calls of one node that have no answer yet, for each node that calls it.
pub const CALLS_IN_FLIGHT_MAX: usize = 1024;

/// Most bytes of their requests.
pub const CALLS_IN_FLIGHT_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Most handlers of calls that one node registers.
pub const CALL_HANDLERS_MAX: usize = 64;
