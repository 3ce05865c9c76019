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
        help: "Directory of this node's log and engine. Made if missing (mode 0700).",
    },
    Key {
        name: "listen",
        unit: "host:port",
        default: "required",
        help: "Address on which this node listens for the others.",
    },
    Key {
        name: "bootstrap",
        unit: "list of name=host:port",
        default: "this node alone",
        help: "The nodes of the group to be. Used only while data_dir is empty, ignored afterwards.",
    },
    Key {
        name: "join",
        unit: "token",
        default: "none",
        help: "Token of `steadfast token create`, instead of `bootstrap`: lets this node into a group that exists. Used only while data_dir is empty.",
    },
    Key {
        name: "advertise",
        unit: "host:port",
        default: "the address of `listen`",
        help: "Where the others reach this node, as it tells them when it joins or is the first. Required where it listens on every address (0.0.0.0) and has no `bootstrap`.",
    },
    Key {
        name: "worker_threads",
        unit: "threads",
        default: "half the cores, 1 to 4",
        help: "Threads of the environment's own runtime.",
    },
    Key {
        name: "heartbeat_interval_ms",
        unit: "ms, 5 to 10000",
        default: "50",
        help: "How often the master says that it is there.",
    },
    Key {
        name: "election_timeout_min_ms",
        unit: "ms, at least 3 heartbeats",
        default: "200",
        help: "A replica waits at least this long, after the lease of election_timeout_max_ms, before it asks for votes.",
    },
    Key {
        name: "election_timeout_max_ms",
        unit: "ms, above the minimum",
        default: "300",
        help: "Longest such wait, and the time for which a replica holds a silent master for alive. A master whose connections close is replaced without waiting.",
    },
    Key {
        name: "dial_timeout_ms",
        unit: "ms, 10 to 60000",
        default: "1000",
        help: "Deadline of connecting to a node, hello included.",
    },
    Key {
        name: "silence_max_ms",
        unit: "ms, 100 to 600000",
        default: "5000",
        help: "A connection on which an answer is due, and nothing moves, for this long is given up.",
    },
    Key {
        name: "durability",
        unit: "majority, all, local or none",
        default: "majority",
        help: "When a write is acknowledged that says nothing else. A failover may roll back what was acknowledged with local or none; see docs/durability.md.",
    },
    Key {
        name: "repair",
        unit: "auto or never",
        default: "auto",
        help: "What a node does whose own data is damaged: give up its vote, copy the state of a peer and get its vote back; or not open, and go on when it is found while the node works.",
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
        help: "A read for which this node is not fresh enough by then returns an error that says how far behind it is.",
    },
    Key {
        name: "batches_in_flight_max",
        unit: "batches, 1 to 64",
        default: "4",
        help: "Batches proposed and not yet applied; while they are under way the next one fills.",
    },
    Key {
        name: "commit_queue_bytes_max",
        unit: "bytes, 1 MiB to 1 GiB",
        default: "67108864",
        help: "Bytes of writes that wait for their commit; over it, writers wait.",
    },
    Key {
        name: "window_bytes_max",
        unit: "bytes, 64 KiB to 64 GiB",
        default: "268435456",
        help: "Memory for versions that the engine does not hold yet; over it, writers wait.",
    },
    Key {
        name: "flush_bytes",
        unit: "bytes, at most half of window_bytes_max",
        default: "33554432",
        help: "A flush to the engine begins when this much has been applied.",
    },
    Key {
        name: "flush_interval_ms",
        unit: "ms, 1 to 3600000",
        default: "5000",
        help: "Nothing applied stays out of the engine longer than this.",
    },
    Key {
        name: "snapshot_age_max_ms",
        unit: "ms, 10 to 86400000",
        default: "60000",
        help: "A snapshot older than this ends with SnapshotTooOld; earlier when it keeps window_bytes_max nearly full.",
    },
    Key {
        name: "log_segment_bytes",
        unit: "bytes, 64 KiB to 1 GiB",
        default: "67108864",
        help: "Size of a segment of the log. A transaction of the largest size fits into 64 MiB.",
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
        help: "The newest part of the log, which is kept in any case. What lies before it goes, in whole segments, when the engine has it on disk and nobody needs it.",
    },
    Key {
        name: "log_retain_bytes_max",
        unit: "bytes, at least log_keep_bytes, to 16 TiB",
        default: "8589934592",
        help: "Older log is kept for replicas, subscriptions and copies under way up to this much. Who falls behind by more gets a copy of the state, or HistoryGone.",
    },
    Key {
        name: "log_retain_ms_max",
        unit: "ms, 100 to 604800000",
        default: "3600000",
        help: "Log is kept for a replica that has been silent for less than this. One that comes back later may get a copy of the state instead.",
    },
    Key {
        name: "restore_bytes_per_s_max",
        unit: "bytes/s, 64 KiB to 64 GiB",
        default: "67108864",
        help: "How fast this node sends its state to one that needs a copy, at most, all copies together.",
    },
    Key {
        name: "subscriptions_max",
        unit: "subscriptions, 1 to 4096",
        default: "64",
        help: "Change feeds that the node serves at a time; a further one gets TooMany.",
    },
    Key {
        name: "subscription_stall_ms",
        unit: "ms, 100 to 600000",
        default: "30000",
        help: "A remote subscriber that has not taken what it was sent by then is cut off.",
    },
    Key {
        name: "digest_interval_ms",
        unit: "ms, 0 or 100 to 604800000",
        default: "3600000",
        help: "How often a node counts its rows against its log; nodes compare as often, or each 10 s. 0: never.",
    },
    Key {
        name: "open_count_max_ms",
        unit: "ms, 0 to 86400000",
        default: "1000",
        help: "A node counts its rows for so long before it answers; what is left, beside its work.",
    },
    Key {
        name: "disk_free_warn_bytes",
        unit: "bytes, 0 to 1 PiB",
        default: "1073741824",
        help: "With less than this free on the volume of data_dir the node warns. 0: never.",
    },
    Key {
        name: "disk_free_read_only_bytes",
        unit: "bytes, 0 or 1 MiB to 1 PiB, at most disk_free_warn_bytes",
        default: "268435456",
        help: "With less than this free the node takes no writes of users: a master hands over to a node that has room, or refuses them. They are taken again when a quarter more is free. 0: never.",
    },
    Key {
        name: "engine_cache_bytes",
        unit: "bytes, 1 MiB to 1 TiB",
        default: "134217728",
        help: "Cache of the storage engine. Scattered writes are slow when it does not hold all keys and about 60 bytes for each.",
    },
];
