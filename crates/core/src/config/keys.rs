//! Every configuration key, in one table: its name, form, range, default, meaning, and the field that holds it.

#![expect(
    clippy::unreadable_literal,
    reason = "defaults are shown as they stand in the table"
)]

use std::fmt;
use std::time::Duration;

use crate::config::{ConfigError, unknown_key};
use crate::limits::BATCHES_IN_FLIGHT_MAX;

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
const GIB: u64 = 1024 * MIB;
const TIB: u64 = 1024 * GIB;
const PIB: u64 = 1024 * TIB;

/// The description of one configuration key.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Its name.
    pub name: &'static str,
    /// Unit or form of its value.
    pub unit: &'static str,
    /// The numbers it accepts; `None` where the value is text.
    pub range: Option<Range>,
    /// Default; in words if there is no default value.
    pub default: &'static str,
    /// What it does.
    pub help: &'static str,
}

impl fmt::Display for Key {
    /// Unit and range: `ms, 5 to 10000`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(range) = self.range else {
            return f.write_str(self.unit);
        };
        let shown = |number: u64| match self.unit {
            "bytes" | "bytes/s" => bytes(number),
            _ => number.to_string(),
        };
        let zero = if range.or_zero { "0 or " } else { "" };
        let (min, max) = (shown(range.min), shown(range.max));
        write!(f, "{}, {zero}{min} to {max}", self.unit)
    }
}

/// `1 MiB`, in the largest unit that divides it.
fn bytes(number: u64) -> String {
    let units = [
        (PIB, "PiB"),
        (TIB, "TiB"),
        (GIB, "GiB"),
        (MIB, "MiB"),
        (KIB, "KiB"),
    ];
    let whole = |(unit, _): &&(u64, &str)| number > 0 && number.is_multiple_of(*unit);
    match units.iter().find(whole) {
        Some((unit, name)) => format!("{} {name}", number / unit),
        None => number.to_string(),
    }
}

/// The numbers that a key accepts, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// Whether 0, which switches something off, is accepted beside them.
    pub or_zero: bool,
    /// The smallest.
    pub min: u64,
    /// The largest.
    pub max: u64,
}

const fn within(min: u64, max: u64) -> Range {
    let or_zero = false;
    Range { or_zero, min, max }
}

const fn zero_or(min: u64, max: u64) -> Range {
    let or_zero = true;
    Range { or_zero, min, max }
}

fn ms(number: u64) -> Duration {
    Duration::from_millis(number)
}

fn ms_or_never(number: u64) -> Option<Duration> {
    (number > 0).then(|| ms(number))
}

fn number(number: u64) -> u64 {
    number
}

fn count(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

fn count_or_auto(number: u64) -> Option<usize> {
    (number > 0).then(|| count(number))
}

fn whole_pages(number: u64) -> u32 {
    u32::try_from(number.next_multiple_of(4096)).unwrap_or(u32::MAX)
}

/// The default of a number as text: its digits, unless words say it better.
macro_rules! shown {
    ($default:literal) => {
        stringify!($default)
    };
    ($default:literal $shown:literal) => {
        $shown
    };
}

macro_rules! keys {
    (
        $($text:literal, $form:literal, $required:literal, $text_help:literal;)*
        =>
        $($name:literal, $unit:literal, $range:expr, $help:literal,
            $field:ident: $type:ty = $convert:ident($default:literal) $(shown as $shown:literal)?;)*
    ) => {
        /// Every key, in the order of the documentation.
        pub const KEYS: &[Key] = &[
            $(Key { name: $text, unit: $form, range: None, default: $required, help: $text_help },)*
            $(Key { name: $name, unit: $unit, range: Some($range), default: shown!($default $($shown)?), help: $help },)*
        ];

        /// The numbers among the keys.
        #[derive(Clone, Debug)]
        pub(crate) struct Tuning {
            $(pub(crate) $field: $type,)*
        }

        impl Default for Tuning {
            fn default() -> Self {
                Self { $($field: $convert($default),)* }
            }
        }

        impl Tuning {
            /// Sets a key.
            ///
            /// # Errors
            /// When there is no such key, or the number is out of its range.
            pub(super) fn set(&mut self, key: &str, value: u64) -> Result<(), ConfigError> {
                match key {
                    $($name => self.$field = $convert(check(key, $range, value)?),)*
                    _ => return Err(unknown_key(key)),
                }
                Ok(())
            }
        }
    };
}

fn check(key: &str, range: Range, value: u64) -> Result<u64, ConfigError> {
    let Range { or_zero, min, max } = range;
    if (min..=max).contains(&value) || or_zero && value == 0 {
        return Ok(value);
    }
    let problem = format!("{value} is not within {min} to {max}");
    Err(ConfigError::new(key, problem))
}

keys! {
    "group", "name", "required",
        "Name of the group; the same on all its nodes.";
    "node", "name", "required",
        "Name of this node; one of the names in `bootstrap`.";
    "data_dir", "path", "required",
        "Directory of this node's log and engine. Created if missing (mode 0700).";
    "listen", "host:port", "required",
        "Address on which this node listens for the others.";
    "bootstrap", "list of name=host:port", "this node alone",
        "The nodes that form the group. Used only while data_dir is empty, ignored afterwards.";
    "join", "token", "none",
        "Token from `steadfast token create`, instead of `bootstrap`: lets this node join an existing group. `steadfast` reads it from a file if it is `@FILE`, from the directory in which it is started. Used only while data_dir is empty.";
    "advertise", "host:port", "the address of `listen`",
        "Where the others reach this node: the address it gives them when it joins or founds the group. Required if it listens on every address (0.0.0.0) and has no `bootstrap`.";
    "credentials", "path", "none",
        "Directory with the node's certificate, key and authorities, as `steadfast init` makes it, or a join token fills it (by default `credentials` in data_dir): all connections are then encrypted and authenticated. Required where other machines can reach the node. Read again when it changes.";
    "insecure_plaintext", "yes, no or too", "no",
        "Does without credentials where other machines can reach the node: whoever reaches its port reads and changes everything. too: a node with credentials speaks plaintext with those that have none, while a group is given credentials node by node.";
    "metadata", "name=value, by commas", "none",
        "What the application publishes of this node, for example `web=http://10.0.0.1:8080,zone=b`: all nodes have it, and `steadfast status -o json` shows it. In a file, a table: `metadata = { web = \"http://10.0.0.1:8080\" }`. At most 16 values of 256 bytes, with names of 64.";
    "durability", "majority, all, local or none", "majority",
        "Default durability for writes that specify none. A failover may roll back writes acknowledged with local or none; see docs/durability.md.";
    "repair", "auto or never", "auto",
        "What a node does when its own data is damaged. auto: it gives up its vote, copies a peer's state and gets its vote back. never: it does not open; damage found while it runs is only reported.";
    =>
    "worker_threads", "threads", within(1, 1024),
        "Threads of the environment's own async runtime.",
        worker_threads: Option<usize> = count_or_auto(0) shown as "half the cores, 1 to 4";
    "heartbeat_interval_ms", "ms", within(5, 10_000),
        "How often the master sends a heartbeat.",
        heartbeat_interval: Duration = ms(50);
    "election_timeout_min_ms", "ms", within(15, 60_000),
        "The shortest time a replica waits, after the lease of election_timeout_max_ms, before it asks for votes. At least three heartbeats.",
        election_timeout_min: Duration = ms(200);
    "election_timeout_max_ms", "ms", within(16, 120_000),
        "The longest such wait, and how long a replica assumes that a silent master is alive. A master whose connections close is replaced without this wait. Above the minimum.",
        election_timeout_max: Duration = ms(300);
    "dial_timeout_ms", "ms", within(10, 60_000),
        "Deadline for connecting to a node, hello included.",
        dial_timeout: Duration = ms(1000);
    "handshake_timeout_ms", "ms", within(100, 60_000),
        "A connection that has not authenticated and named a service within this time is closed.",
        handshake_timeout: Duration = ms(5000);
    // 512 of them are for those who authenticate.
    "connections_max", "connections", within(1024, 1_000_000),
        "Connections that this node holds at once. When all are taken, the one that has been half open for the longest is closed.",
        connections_max: usize = count(4096);
    "connections_per_address_max", "connections", within(8, 1_000_000),
        "Of these, the ones from one address that have not authenticated.",
        connections_per_address_max: usize = count(512);
    "silence_max_ms", "ms", within(100, 600_000),
        "A connection on which an answer is due and no byte moves for this long is dropped.",
        silence_max: Duration = ms(5000);
    "commit_timeout_ms", "ms", within(10, 3_600_000),
        "A write that waits this long for its acknowledgements returns InsufficientAcks.",
        commit_timeout: Duration = ms(10000);
    "forward_timeout_ms", "ms", zero_or(10, 3_600_000),
        "How long a write on a node that is not the master looks for a master that takes it, before it returns NotMaster. 0: it does not look, and returns NotMaster at once.",
        forward_timeout: Option<Duration> = ms_or_never(5000);
    "read_timeout_ms", "ms", within(10, 3_600_000),
        "How long a read waits for this node to be fresh enough. After that it returns an error that says how far behind the node is.",
        read_timeout: Duration = ms(5000);
    "batches_in_flight_max", "batches", within(1, BATCHES_IN_FLIGHT_MAX as u64),
        "Batches proposed but not yet applied; the next batch fills while they travel.",
        batches_in_flight_max: usize = count(4);
    "commit_queue_bytes_max", "bytes", within(MIB, GIB),
        "Bytes of writes waiting to commit; above it, writers wait.",
        commit_queue_bytes_max: usize = count(67108864);
    "window_bytes_max", "bytes", within(64 * KIB, 64 * GIB),
        "Memory for versions that the engine does not hold yet; above it, writers wait.",
        window_bytes_max: usize = count(268435456);
    "flush_bytes", "bytes", within(KIB, 32 * GIB),
        "A flush to the engine starts once this much has been applied. At most half of window_bytes_max.",
        flush_bytes: usize = count(33554432);
    "flush_interval_ms", "ms", within(1, 3_600_000),
        "The longest time an applied write stays out of the engine.",
        flush_interval: Duration = ms(5000);
    "snapshot_age_max_ms", "ms", within(10, 86_400_000),
        "A snapshot older than this ends with SnapshotTooOld; sooner if it keeps window_bytes_max nearly full.",
        snapshot_age_max: Duration = ms(60000);
    "log_segment_bytes", "bytes", within(64 * KIB, GIB),
        "Size of a log segment. A transaction of the largest size fits into 64 MiB.",
        log_segment_bytes: u32 = whole_pages(67108864);
    "log_cache_bytes_max", "bytes", within(0, 16 * GIB),
        "Memory for log entries that replicas may need next.",
        log_cache_bytes_max: usize = count(67108864);
    "log_keep_bytes", "bytes", within(0, TIB),
        "Always keep this much of the newest log. Older segments are purged once the engine has them on disk and nobody needs them.",
        log_keep_bytes: u64 = number(268435456);
    "log_retain_bytes_max", "bytes", within(0, 16 * TIB),
        "Keep up to this much log for replicas, subscriptions and state copies under way. A replica further behind gets a copy of the state, a subscription HistoryGone. At least log_keep_bytes.",
        log_retain_bytes_max: u64 = number(8589934592);
    "log_retain_ms_max", "ms", within(100, 604_800_000),
        "Keep log for a replica that has been silent for less than this. One that returns later may get a copy of the state instead.",
        log_retain: Duration = ms(3600000);
    "restore_bytes_per_s_max", "bytes/s", within(64 * KIB, 64 * GIB),
        "Maximum rate at which this node sends copies of its state, all copies together.",
        restore_bytes_per_s_max: u64 = number(67108864);
    "subscriptions_max", "subscriptions", within(1, 4096),
        "Maximum number of change feeds this node serves at once; one more gets TooMany.",
        subscriptions_max: usize = count(64);
    "subscription_stall_ms", "ms", within(100, 600_000),
        "A remote subscriber that has not read what it was sent within this time is disconnected.",
        subscription_stall: Duration = ms(30000);
    "digest_interval_ms", "ms", zero_or(100, 604_800_000),
        "How often a node counts its rows against its running digest. Nodes compare digests as often, or every 10 s if that is sooner. 0: never.",
        digest_interval: Option<Duration> = ms_or_never(3600000);
    "open_count_max_ms", "ms", within(0, 86_400_000),
        "How long a node counts its rows before it serves; the rest is counted in the background.",
        open_count_max: Duration = ms(1000);
    "disk_free_warn_bytes", "bytes", within(0, PIB),
        "Warn when the volume of data_dir has less than this free. 0: never.",
        disk_free_warn_bytes: u64 = number(1073741824);
    // Two log segments and a flush, plus the engine's own reserve of 128 MiB.
    "disk_free_read_only_bytes", "bytes", zero_or(MIB, PIB),
        "Take no user writes with less than this free: a master hands over to a node that has room, or refuses them. Writes resume when a quarter more is free. 0: never. At most disk_free_warn_bytes.",
        disk_free_read_only_bytes: u64 = number(268435456);
    "engine_cache_bytes", "bytes", within(MIB, TIB),
        "Cache of the storage engine. Scattered writes are slow unless it holds all keys plus about 60 bytes each.",
        engine_cache_bytes: u64 = number(134217728);
}
