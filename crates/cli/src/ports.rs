//! Free ports on the loopback interface.

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// Ports are taken from below the system's range for outgoing connections: such a connection could
/// otherwise take a node's port between two of its lives.
const FIRST: u16 = 10_000;
const COUNT: u16 = 22_000;

/// The next port to try. A process starts at a random port and never returns a port twice: a port
/// found free is not in use until its node has started.
static NEXT: LazyLock<AtomicU64> =
    LazyLock::new(|| AtomicU64::new(RandomState::new().hash_one(0) >> 1));

/// Addresses on which nothing is currently listening.
///
/// # Errors
/// When fewer than `count` are free.
pub(crate) fn free_addresses(count: usize) -> io::Result<Vec<String>> {
    let free: Vec<_> = (0..COUNT)
        .map(|_| NEXT.fetch_add(1, Ordering::Relaxed) % u64::from(COUNT))
        .map(|n| FIRST + u16::try_from(n).expect("below a u16"))
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
