//! Free ports on the loopback interface.

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::{Ipv4Addr, TcpListener};

/// Ports are taken from below the range out of which the system gives ports to outgoing
/// connections: one of those could otherwise take the port of a node between its two lives.
const FIRST: u16 = 10_000;
const COUNT: u16 = 22_000;

/// Addresses on which nothing listens at the moment.
///
/// # Errors
/// When there are not `count` of them.
pub(crate) fn free_addresses(count: usize) -> io::Result<Vec<String>> {
    let start = RandomState::new().hash_one(std::process::id()) % u64::from(COUNT);
    let start = u16::try_from(start).expect("below a u16");
    let ports = (0..COUNT).map(|step| FIRST + (start + step) % COUNT);
    let free: Vec<_> = ports
        .filter(|port| is_free(*port))
        .take(count)
        .map(|port| format!("127.0.0.1:{port}"))
        .collect();
    if free.len() < count {
        return Err(io::Error::other("all loopback ports are in use"));
    }
    Ok(free)
}

#[expect(
    clippy::disallowed_methods,
    reason = "only the system knows which ports are free"
)]
fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}
