//! Transactions: the window of recent versions, the sequencer that numbers them, and the flush.

pub(crate) mod batch;
pub(crate) mod flush;
pub(crate) mod history;
pub(crate) mod readers;
pub(crate) mod sequencer;
pub(crate) mod transaction;
pub(crate) mod view;
pub(crate) mod window;
