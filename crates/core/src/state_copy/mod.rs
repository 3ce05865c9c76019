//! A copy of the whole state from a peer, for a node that needs entries no longer in any log.
//!
//! ```text
//!   source (any node with the data)                   the node in need, its own state aside
//!   its engine durably holds entry 91   ──begin──►    the copy is at entry 91, and holds no row
//!   rows a … f as of VLSN 700           ──chunk──►    rows a … f
//!   entries 92 … 99                     ──entries─►   what they change of a … f; the copy is at 99
//!   rows g … z as of VLSN 760           ──chunk──►    everything, and parts of it too new
//!   entries 100 … 140 (VLSN 770)        ──entries─►   everything, as of VLSN 770 exactly
//!   so many rows, this digest           ──manifest►   read back, compared, put in place
//! ```
//!
//! No snapshot is held: the chunks are read in order, each as of its own moment, and the log adds
//! what was committed in the meantime. `docs/decisions/restore.md` shows why this yields the state
//! as of one transaction. It relies on puts and deletes being idempotent.
//!
//! The copy is built in an engine of its own beside the node's. Every batch of that engine includes
//! how far the copy has got (`staged.rs`), so an interrupted copy resumes where it left off, from
//! any source whose log still reaches back to its position. A single write of the identity puts it
//! in place of the old state (`swap.rs`).
//!
//! | file | what |
//! | --- | --- |
//! | `source.rs` | the answers |
//! | `fetch.rs` | the questions |
//! | `staged.rs` | the copy under way |
//! | `swap.rs` | from the old state to the new one |

pub(crate) mod fetch;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
pub(crate) mod service;
pub(crate) mod source;
mod staged;
pub(crate) mod swap;
