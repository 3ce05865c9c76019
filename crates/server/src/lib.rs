//! The etcd v3 API on a replicated environment of Steadfast.

pub mod error;
pub mod proto;
pub mod store;
