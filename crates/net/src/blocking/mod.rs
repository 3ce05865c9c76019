//! The blocking API: channels and dispatchers for programs that have threads and no async runtime.
//!
//! It is a contract with those programs: its names, and the bytes that it sends, stay. The library itself
//! is async throughout and uses none of it, and the rest of this crate reads without it.
//!
//! A [`Channel`](channel::Channel) is a connection whose futures are polled on the calling thread, while
//! a small runtime that this module starts on first use watches the sockets and the clock.

pub(crate) mod channel;
pub(crate) mod runtime;
pub(crate) mod service;
pub(crate) mod tcp_dispatcher;
