//! The library's guarantees to its users, checked on groups in one process, through the public API
//! only.

#![expect(
    clippy::disallowed_methods,
    reason = "tests use real threads, files and deadlines"
)]

mod addresses;
mod anywhere;
mod audit;
mod blocking;
mod calls;
mod closing;
mod comparison;
mod counters;
mod databases;
mod digest;
mod endings;
mod engine;
mod enrolment;
mod errors;
mod events;
mod failures;
mod feed;
mod feed_remote;
mod feed_shared;
mod hostile;
mod in_memory;
mod input;
mod isolation;
mod lifetimes;
mod looking;
mod membership;
mod metadata;
mod model;
mod nested;
mod pressure;
mod repair;
mod repair_engine;
mod repair_running;
mod restart;
mod restore;
mod rests;
mod serializable;
mod single;
mod slow_way;
mod space;
mod spans;
mod support;
mod tables;
mod tls;
mod transactions;
mod ways_out;
