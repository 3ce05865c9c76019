//! WRITES: transactions that ran on one node and are numbered by the master.
//!
//! ```text
//!   this node                                         the master
//!   ---------                                         ----------
//!   run the function at a snapshot of its own
//!   what it read and wrote ─────────────────────────► validate, number
//!                          ◄──── told: (term, VLSN) ──┤ propose, wait for the durability
//!                          ◄──── token, or why not ───┘
//! ```
//!
//! The number comes ahead of the answer, so that a node whose master dies in between can look up
//! what became of the write. It travels as calls do (`calls/`), over a connection of its own.

pub(crate) mod messages;
