//! What servers of the etcd v3 API do, row by row: the same requests to a real etcd, where one is
//! found, and to ours.
//!
//! A real etcd is what `STEADFAST_ETCD` names, or the `etcd` in `PATH`. Without one its rows are
//! skipped. Each row has a server of its own, so that it knows every revision. Where versions
//! differ, [`target::Target`] says how; ours is like 3.5.30.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod ask;
mod etcd;
mod http;
mod ours;
mod target;

mod auth;
mod cluster;
mod compact;
mod election;
mod json;
mod json_streams;
mod kv;
mod lease;
mod lock;
mod plain_http;
mod quorum;
mod range;
mod txn;
mod watch;
