//! A description of each configuration key.

/// The description of one configuration key.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Its name.
    pub name: &'static str,
    /// Unit or form of its value.
    pub unit: &'static str,
    /// Default; in words if there is no default value.
    pub default: &'static str,
    /// What it does.
    pub help: &'static str,
}

/// Every key, in the order of the documentation.
pub const KEYS: &[Key] = &[
    Key {
        name: "group",
        unit: "name",
        default: "required",
        help: "Name of the group; the same on all its nodes.",
    },
    Key {
        name: "node",
        unit: "name",
        default: "required",
        help: "Name of this node; one of the names in `bootstrap`.",
    },
    Key {
        name: "data_dir",
        unit: "path",
        default: "required",
        help: "Directory of this node's log and engine. Created if missing (mode 0700).",
    },
    Key {
        name: "listen",
        unit: "host:port",
        default: "required",
        help: "Address this node listens on for the others.",
    },
    Key {
        name: "bootstrap",
        unit: "list of name=host:port",
        default: "this node alone",
        help: "The nodes that form the group. Used only while data_dir is empty, ignored afterwards.",
    },
    Key {
        name: "join",
        unit: "token",
        default: "none",
        help: "Token from `steadfast token create`, instead of `bootstrap`: lets this node join an existing group. Used only while data_dir is empty.",
    },
    Key {
        name: "advertise",
        unit: "host:port",
        default: "the address of `listen`",
        help: "Where the others reach this node: the address it gives them when it joins or founds the group. Required if it listens on every address (0.0.0.0) and has no `bootstrap`.",
    },
    Key {
        name: "worker_threads",
        unit: "threads",
        default: "half the cores, 1 to 4",
        help: "Threads of the environment's own async runtime.",
    },
    Key {
        name: "heartbeat_interval_ms",
        unit: "ms, 5 to 10000",
        default: "50",
        help: "How often the master sends a heartbeat.",
    },
    Key {
        name: "election_timeout_min_ms",
        unit: "ms, at least 3 heartbeats",
        default: "200",
        help: "The shortest time a replica waits, after the lease of election_timeout_max_ms, before it asks for votes.",
    },
    Key {
        name: "election_timeout_max_ms",
        unit: "ms, above the minimum",
        default: "300",
        help: "The longest such wait, and how long a replica takes a silent master to be alive. A master whose connections close is replaced without this wait.",
    },
    Key {
        name: "dial_timeout_ms",
        unit: "ms, 10 to 60000",
        default: "1000",
        help: "Deadline for connecting to a node, hello included.",
    },
    Key {
        name: "silence_max_ms",
        unit: "ms, 100 to 600000",
        default: "5000",
        help: "A connection on which an answer is due and no byte moves for this long is dropped.",
    },
    Key {
        name: "durability",
        unit: "majority, all, local or none",
        default: "majority",
        help: "Default durability for writes that specify none. A failover may roll back writes acknowledged with local or none; see docs/durability.md.",
    },
    Key {
        name: "repair",
        unit: "auto or never",
        default: "auto",
        help: "What a node does when its own data is damaged. auto: it gives up its vote, copies a peer's state and gets its vote back. never: it does not open; damage found while it runs is only reported.",
    },
    Key {
        name: "commit_timeout_ms",
        unit: "ms, 10 to 3600000",
        default: "10000",
        help: "A write that waits this long for its acknowledgements returns InsufficientAcks.",
    },
    Key {
        name: "read_timeout_ms",
        unit: "ms, 10 to 3600000",
        default: "5000",
        help: "How long a read waits for this node to be fresh enough. After that it returns an error that says how far behind the node is.",
    },
    Key {
        name: "batches_in_flight_max",
        unit: "batches, 1 to 64",
        default: "4",
        help: "Batches proposed but not yet applied; the next batch fills while they travel.",
    },
    Key {
        name: "commit_queue_bytes_max",
        unit: "bytes, 1 MiB to 1 GiB",
        default: "67108864",
        help: "Bytes of writes waiting to commit; above it, writers wait.",
    },
    Key {
        name: "window_bytes_max",
        unit: "bytes, 64 KiB to 64 GiB",
        default: "268435456",
        help: "Memory for versions that the engine does not hold yet; above it, writers wait.",
    },
    Key {
        name: "flush_bytes",
        unit: "bytes, at most half of window_bytes_max",
        default: "33554432",
        help: "A flush to the engine starts once this much has been applied.",
    },
    Key {
        name: "flush_interval_ms",
        unit: "ms, 1 to 3600000",
        default: "5000",
        help: "The longest time an applied write stays out of the engine.",
    },
    Key {
        name: "snapshot_age_max_ms",
        unit: "ms, 10 to 86400000",
        default: "60000",
        help: "A snapshot older than this ends with SnapshotTooOld; sooner if it keeps window_bytes_max nearly full.",
    },
    Key {
        name: "log_segment_bytes",
        unit: "bytes, 64 KiB to 1 GiB",
        default: "67108864",
        help: "Size of a log segment. A transaction of the largest size fits into 64 MiB.",
    },
    Key {
        name: "log_cache_bytes_max",
        unit: "bytes, up to 16 GiB",
        default: "67108864",
        help: "Memory for log entries that replicas may need next.",
    },
    Key {
        name: "log_keep_bytes",
        unit: "bytes, 0 to 1 TiB",
        default: "268435456",
        help: "Always keep this much of the newest log. Older segments are purged once the engine has them on disk and nobody needs them.",
    },
    Key {
        name: "log_retain_bytes_max",
        unit: "bytes, at least log_keep_bytes, to 16 TiB",
        default: "8589934592",
        help: "Keep up to this much log for replicas, subscriptions and state copies under way. A replica further behind gets a copy of the state, a subscription HistoryGone.",
    },
    Key {
        name: "log_retain_ms_max",
        unit: "ms, 100 to 604800000",
        default: "3600000",
        help: "Keep log for a replica that has been silent for less than this. One that returns later may get a copy of the state instead.",
    },
    Key {
        name: "restore_bytes_per_s_max",
        unit: "bytes/s, 64 KiB to 64 GiB",
        default: "67108864",
        help: "Maximum rate at which this node sends copies of its state, all copies together.",
    },
    Key {
        name: "subscriptions_max",
        unit: "subscriptions, 1 to 4096",
        default: "64",
        help: "Maximum number of change feeds this node serves at once; one more gets TooMany.",
    },
    Key {
        name: "subscription_stall_ms",
        unit: "ms, 100 to 600000",
        default: "30000",
        help: "A remote subscriber that has not taken what it was sent within this time is cut off.",
    },
    Key {
        name: "digest_interval_ms",
        unit: "ms, 0 or 100 to 604800000",
        default: "3600000",
        help: "How often a node counts its rows against its running digest. Nodes compare digests as often, or every 10 s if that is sooner. 0: never.",
    },
    Key {
        name: "open_count_max_ms",
        unit: "ms, 0 to 86400000",
        default: "1000",
        help: "How long a node counts its rows before it serves; the rest is counted in the background.",
    },
    Key {
        name: "disk_free_warn_bytes",
        unit: "bytes, 0 to 1 PiB",
        default: "1073741824",
        help: "Warn when the volume of data_dir has less than this free. 0: never.",
    },
    Key {
        name: "disk_free_read_only_bytes",
        unit: "bytes, 0 or 1 MiB to 1 PiB, at most disk_free_warn_bytes",
        default: "268435456",
        help: "Take no user writes with less than this free: a master hands over to a node that has room, or refuses them. Writes resume when a quarter more is free. 0: never.",
    },
    Key {
        name: "engine_cache_bytes",
        unit: "bytes, 1 MiB to 1 TiB",
        default: "134217728",
        help: "Cache of the storage engine. Scattered writes are slow unless it holds all keys plus about 60 bytes each.",
    },
];
