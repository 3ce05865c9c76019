//! How often what goes wrong, by the faults of a plan.

use crate::disk::DiskFaults;
use crate::net::NetFaults;
use crate::plan::{Fault, Plan};

/// Faults of every link.
pub fn net_faults(plan: &Plan) -> NetFaults {
    let rate = |fault, ppm| if plan.has(fault) { ppm } else { 0 };
    NetFaults {
        delay_max_ms: rate(Fault::NetDelay, 8),
        loss: rate(Fault::NetLoss, 1000),
        duplicate: rate(Fault::NetDuplicate, 1000),
        reorder: rate(Fault::NetReorder, 3000),
        reset: rate(Fault::NetReset, 300),
        corrupt: rate(Fault::NetCorrupt, 300),
        bytes_per_ms: plan.has(Fault::SlowLink).then_some(2000),
    }
}

/// Faults of a node's disk.
pub fn disk_faults(plan: &Plan, at: usize) -> DiskFaults {
    let rate = |fault, ppm| if plan.has(fault) { ppm } else { 0 };
    DiskFaults {
        slow_sync: rate(Fault::SlowSync, 5000),
        fail_sync: rate(Fault::FailSync, 500),
        lying_sync: plan.has(Fault::LyingSync) && plan.expendable.contains(&at),
        fail_write: rate(Fault::FailWrite, 300),
        torn_bytes: plan.has(Fault::TornByte),
        keep_versions: plan.has(Fault::Stale),
        ..DiskFaults::default()
    }
}
