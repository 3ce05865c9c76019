//! What the library promises to its users, held against groups in one process, through the public
//! API alone.

#![expect(
    clippy::disallowed_methods,
    reason = "tests use real threads, files and deadlines"
)]

mod blocking;
mod comparison;
mod databases;
mod digest;
mod engine;
mod events;
mod failures;
mod feed;
mod input;
mod isolation;
mod membership;
mod model;
mod pressure;
mod repair;
mod repair_engine;
mod repair_running;
mod restart;
mod restore;
mod serializable;
mod space;
mod support;
mod transactions;
