//! What clients see on the port of a server: real sockets, and nothing of the inside.

mod auth;
mod deadlines;
mod json;
mod limits;
mod lock;
mod port;
mod support;
mod tls;
