//! Transactions: the window of recent versions, the sequencer that numbers them, the flush, the
//! reclaiming of databases without a name, times to live, and the audit of the engine against the log.

pub(crate) mod audit;
pub(crate) mod batch;
pub(crate) mod catalog;
pub(crate) mod counter;
pub(crate) mod flush;
pub(crate) mod history;
pub(crate) mod holds;
pub(crate) mod lifetimes;
pub(crate) mod names;
pub(crate) mod read_set;
pub(crate) mod readers;
pub(crate) mod reclaim;
pub(crate) mod scan;
pub(crate) mod sequencer;
pub(crate) mod transaction;
pub(crate) mod view;
pub(crate) mod window;
