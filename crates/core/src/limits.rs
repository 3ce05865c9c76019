//! Every bound that a user can meet, with its unit and its reason.

/// Longest key, in bytes. A key lies in the window's and the engine's inner nodes.
pub const KEY_BYTES_MAX: usize = 64 * 1024;

/// Longest value, in bytes. A value travels in one frame with the rest of its batch.
pub const VALUE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Most bytes that one transaction may write: keys and values together, and 16 bytes for each key. What
/// the names of databases take that it creates or drops comes on top, up to a quarter of this.
/// Its batch must fit into one frame ([`steadfast_net::MAX_FRAME_PAYLOAD`], 64 MiB) with room for
/// the envelope. With log segments below 64 MiB, half a segment is the limit.
pub const TRANSACTION_BYTES_MAX: usize = 32 * 1024 * 1024;

/// Most keys that one transaction may write; what creating their databases takes is counted apart. They
/// get their versions under the lock that numbers all transactions, and reach the engine as one batch.
pub const TRANSACTION_KEYS_MAX: usize = 100_000;

/// Most databases that one transaction may create, truncate or drop. Each is up to three entries of the
/// catalog, which everybody reads.
pub const TRANSACTION_DATABASES_MAX: usize = 30_000;

/// Most different keys and ranges that one transaction may read. They are compared with what others
/// wrote under the lock that numbers all transactions. A scan counts as one range, however long. The names
/// of databases that it uses are counted apart, with the same limit.
pub const TRANSACTION_READS_MAX: usize = 100_000;

/// Longest name of a database, in bytes.
pub const DATABASE_NAME_BYTES_MAX: usize = 255;

/// Longest name of a group or of a node, in bytes.
pub const NAME_BYTES_MAX: usize = 64;

/// Most nodes in a group: more electable nodes make commits slower and no safer.
pub const NODES_MAX: usize = 63;

/// A batch that has reached this many bytes takes no further transaction. Small enough that one
/// fdatasync and one frame stay short, large enough that per-batch costs vanish.
pub(crate) const BATCH_BYTES_MAX: usize = 1024 * 1024;

/// Most databases and key prefixes that a subscription may name. Each is compared with every change.
pub const SUBSCRIPTION_FILTERS_MAX: usize = 64;

/// The largest `batches_in_flight_max`. A search of the log looks at so many batches more.
pub(crate) const BATCHES_IN_FLIGHT_MAX: usize = 64;

/// A batch that has this many transactions takes no further one.
pub(crate) const BATCH_TRANSACTIONS_MAX: u32 = 4096;
