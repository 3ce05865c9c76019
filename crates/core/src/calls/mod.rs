//! CALLS: what the applications of two nodes ask each other, over a connection of the group.
//!
//! ```text
//!   call ─► Line: the connection to one peer ─── requests ──►  serve: a task for each request
//!             │ one task sends, and hands out   ◄── answers ──    │ in any order
//!             └ dialled by the first call                         └─► Handlers, by name
//! ```
//!
//! All calls of one node by another share one connection. A request of which no byte was sent has
//! certainly not been handled; of any other without an answer nobody knows. Nothing runs before
//! the first call, and a connection without calls is closed after a while.

mod handlers;
pub(crate) mod line;
pub(crate) mod messages;
pub(crate) mod service;

pub(crate) use handlers::Handlers;
pub use handlers::{IncomingCall, ServedCalls};
