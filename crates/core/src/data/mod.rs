//! DATA: single reads and writes, for other processes.

pub(crate) mod messages;
pub(crate) mod service;
