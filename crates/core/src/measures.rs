//! Every metric, for its documentation and its recorder. `tests/measures.rs` holds it to
//! the code, and `docs/metrics.md` to it.
//!
//! A gauge that a node sets has its name as a label, because the nodes of one process would
//! overwrite each other's. Counters and distributions are those of the process: they add up.

use metrics::Unit;

/// What a metric counts as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MetricKind {
    /// A number that only grows while the process runs.
    Counter,
    /// A value at this moment.
    Gauge,
    /// A distribution.
    Histogram,
}

/// A metric of a node.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Metric {
    /// Its name.
    pub name: &'static str,
    /// What it counts as.
    pub kind: MetricKind,
    /// Its unit.
    pub unit: Unit,
    /// The names of its labels.
    pub labels: &'static [&'static str],
    /// What it says.
    pub meaning: &'static str,
}

macro_rules! metrics_table {
    ($($kind:ident $name:literal $unit:ident [$($label:literal),*] $meaning:literal;)*) => {
        /// Every metric of a node, in the order of their names.
        pub const METRICS: &[Metric] = &[$(Metric {
            name: $name,
            kind: MetricKind::$kind,
            unit: Unit::$unit,
            labels: &[$($label),*],
            meaning: $meaning,
        }),*];
    };
}

metrics_table! {
    Counter "steadfast_accept_errors_total" Count []
        "Connections that the system could not accept, most often for want of descriptors.";
    Gauge "steadfast_certificate_expiry_timestamp_seconds" Seconds ["node"]
        "When the node's certificate ends, since 1970.";
    Counter "steadfast_conflicts_total" Count []
        "Transactions that conflicted with another one. Those with a function ran again.";
    Gauge "steadfast_connections_open" Count []
        "Connections that the node serves, or that introduce themselves.";
    Counter "steadfast_connections_refused_total" Count ["reason"]
        "Connections that were closed before they reached a service.";
    Gauge "steadfast_damaged" Count ["node"]
        "1 while the node's data is known to be wrong, else 0.";
    Gauge "steadfast_disk_free_ratio" Count ["node"]
        "The free part of the fullest volume that the node writes to, from 0 to 1.";
    Counter "steadfast_divergence_total" Count []
        "Ranges of keys in which nodes differed, found by comparisons of this master.";
    Counter "steadfast_engine_came_back_earlier_total" Count []
        "Openings at which the engine lacked what it had synced. The log put it right.";
    Counter "steadfast_engine_rows_put_right_total" Count []
        "Rows that the engine had lost or changed, and that the log put right.";
    Counter "steadfast_engine_wrong_total" Count []
        "Counts of all rows that found the engine wrong.";
    Counter "steadfast_expired_keys_total" Count []
        "Keys that this node, as master, has deleted because their time to live had passed.";
    Gauge "steadfast_expiry_lag_seconds" Seconds ["node"]
        "On the master: how late the last keys were deleted whose time to live had passed.";
    Counter "steadfast_frames_rejected_total" Count []
        "Frames that violated the protocol. Each cost its connection.";
    Histogram "steadfast_fsync_seconds" Seconds []
        "How long a sync of the log took.";
    Counter "steadfast_handler_failures_total" Count ["service"]
        "Connections that a service ended with an error.";
    Counter "steadfast_handler_panics_total" Count ["service"]
        "Connections whose service panicked.";
    Counter "steadfast_handlers_abandoned_total" Count []
        "Connections that were still served when a close had waited long enough.";
    Counter "steadfast_hello_refused_total" Count ["reason"]
        "Callers that were refused by their hello: strangers, other groups, wiped nodes.";
    Counter "steadfast_outcome_unknown_total" Count []
        "Writes that ended without it being known whether they are committed.";
    Gauge "steadfast_read_only" Count ["node", "reason"]
        "1 while the node takes no user writes for want of room on its disk, else 0.";
    Counter "steadfast_slow_writes_total" Count ["waits_for"]
        "Writes that waited for longer than a second, by what they waited for.";
    Counter "steadfast_subscriptions_cut_off_total" Count []
        "Subscribers that took nothing for `subscription_stall_ms`.";
    Counter "steadfast_tls_refused_total" Count ["reason"]
        "Handshakes that failed.";
}

/// Gives the recorder of this process the unit and the meaning of every metric. Call it once after
/// the recorder was installed; a node works without it.
pub fn describe_metrics() {
    for metric in METRICS {
        let Metric {
            name,
            unit,
            meaning,
            ..
        } = *metric;
        match metric.kind {
            MetricKind::Counter => metrics::describe_counter!(name, unit, meaning),
            MetricKind::Gauge => metrics::describe_gauge!(name, unit, meaning),
            MetricKind::Histogram => metrics::describe_histogram!(name, unit, meaning),
        }
    }
}
