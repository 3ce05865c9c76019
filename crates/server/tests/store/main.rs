//! The store on groups in memory, whose clocks are paused.

#![expect(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::too_many_lines,
    reason = "a test tells its story in one go"
)]

mod failover;
mod group;
mod kv;
mod large;
mod leases;
mod limits;
mod model;
mod txn;
mod watches;
