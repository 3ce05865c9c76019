//! The store on groups in memory, whose clocks are paused.

#![expect(missing_docs, unreachable_pub, clippy::unwrap_used, reason = "a test")]

mod failover;
mod group;
mod kv;
mod leases;
mod limits;
mod model;
mod txn;
mod watches;
