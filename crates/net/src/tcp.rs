//! TCP: names are resolved at each dial, addresses raced as in RFC 8305, and sockets set up so that
//! frames leave at once and dead peers are noticed.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpSocket, TcpStream, lookup_host};
use tokio::time::{sleep, timeout};

use crate::connection::ByteStream;
use crate::descriptors::{self, Descriptors};
use crate::error::{NetError, Result};
use crate::transport::{BoxFuture, Connected, Listener, Transport};

/// Time limit for resolving a name and connecting to one of its addresses, together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Head start of one address before the next is tried (RFC 8305, section 5).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// Connections that the kernel may complete while the accept loop is busy.
const BACKLOG: u32 = 4096;

/// Silence after which the kernel probes whether the peer is still there.
const KEEPALIVE_TIME: Duration = Duration::from_secs(10);

/// Time between probes.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);

/// Unanswered probes after which the connection is reset.
const KEEPALIVE_RETRIES: u32 = 3;

/// TCP as the operating system provides it. Addresses are `host:port`, where the host is a name or
/// a literal (`[::1]:7400`).
#[derive(Clone, Copy, Debug, Default)]
pub struct TcpTransport;

impl Transport for TcpTransport {
    fn connect<'a>(&'a self, address: &'a str) -> BoxFuture<'a, Result<Connected>> {
        Box::pin(async move {
            let stream = connect(address).await?;
            // A connection that was already reset has none, and is of no use anyway.
            let at = stream.peer_addr();
            let address = at.map_or_else(|_| address.to_owned(), |at| at.to_string());
            let stream = Box::new(stream);
            let identity = None;
            Ok(Connected {
                stream,
                address,
                identity,
            })
        })
    }

    fn bind<'a>(&'a self, address: &'a str) -> BoxFuture<'a, Result<Box<dyn Listener>>> {
        Box::pin(async move {
            let resolved = resolve(address).await?;
            let Some(address) = resolved.first() else {
                return Err(NetError::io(format!("listen at {address}"), no_address()));
            };
            Ok(Box::new(listen(*address)?) as Box<dyn Listener>)
        })
    }

    fn descriptors(&self) -> Option<Descriptors> {
        Descriptors::of_this_process()
    }
}

impl Listener for TcpListener {
    fn local_address(&self) -> String {
        self.local_addr()
            .map_or_else(|_| String::from("unknown"), |address| address.to_string())
    }

    fn accept(&mut self) -> BoxFuture<'_, Result<(Box<dyn ByteStream>, String)>> {
        Box::pin(async move {
            let (stream, peer) = accept(self).await?;
            Ok((Box::new(stream) as Box<dyn ByteStream>, peer.to_string()))
        })
    }
}

/// A connection to whichever address of `host:port` answers first.
pub(crate) async fn connect(address: &str) -> Result<TcpStream> {
    let dialling = async {
        let addresses = interleave(resolve(address).await?);
        let failed = |error| NetError::io(format!("connect to {address}"), error);
        let stream = first_to_connect(addresses, dial).await.map_err(failed)?;
        prepare(&stream).map_err(failed)?;
        Ok(stream)
    };
    match timeout(CONNECT_TIMEOUT, dialling).await {
        Ok(connected) => connected,
        Err(_) => Err(NetError::DeadlineExceeded {
            doing: format!("connecting to {address}"),
        }),
    }
}

/// A listening socket at `address`, registered with the current runtime.
pub(crate) fn listen(address: SocketAddr) -> Result<TcpListener> {
    let listening = || {
        let socket = if address.is_ipv6() {
            TcpSocket::new_v6()
        } else {
            TcpSocket::new_v4()
        }?;
        // Connections of an earlier listener may still be closing; they must not block the port.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    listening().map_err(|error| NetError::io(format!("listen at {address}"), error))
}

/// The next connection, ready for use. Connections that were reset before they got here are
/// skipped: a client that resets its connections must not slow the others down.
pub(crate) async fn accept(listener: &TcpListener) -> Result<(TcpStream, SocketAddr)> {
    loop {
        let accepted = listener.accept().await;
        let prepared = accepted.and_then(|(stream, peer)| {
            prepare(&stream).map_err(|error| io::Error::new(ErrorKind::ConnectionReset, error))?;
            Ok((stream, peer))
        });
        match prepared {
            Ok(connection) => {
                descriptors::note_accepted();
                return Ok(connection);
            }
            Err(error) => match error.kind() {
                ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted => {
                    tracing::debug!(%error, "a connection was gone before it was accepted");
                }
                _ => return Err(NetError::io("accept a connection", error)),
            },
        }
    }
}

/// An already connected socket, registered with the current runtime and ready for use.
pub(crate) fn adopt(stream: std::net::TcpStream) -> Result<TcpStream> {
    let adopting = || {
        stream.set_nonblocking(true)?;
        let stream = TcpStream::from_std(stream)?;
        prepare(&stream)?;
        Ok(stream)
    };
    adopting().map_err(|error| NetError::io("take over a socket", error))
}

fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_TIME)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_RETRIES);
    SockRef::from(stream).set_tcp_keepalive(&keepalive)
}

#[expect(
    clippy::disallowed_methods,
    reason = "this is the real transport that others pass in"
)]
async fn dial(address: SocketAddr) -> io::Result<TcpStream> {
    TcpStream::connect(address).await
}

async fn resolve(address: &str) -> Result<Vec<SocketAddr>> {
    match lookup_host(address).await {
        Ok(addresses) => Ok(addresses.collect()),
        Err(error) => Err(NetError::io(format!("resolve {address}"), error)),
    }
}

/// The same addresses with the two families alternating. The resolver's order (RFC 6724) decides
/// which family comes first, and the order within each.
fn interleave(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let starts_with_v6 = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let (mut these, mut others): (VecDeque<_>, VecDeque<_>) = addresses
        .into_iter()
        .partition(|address| address.is_ipv6() == starts_with_v6);
    let mut ordered = Vec::with_capacity(these.len() + others.len());
    while let Some(address) = these.pop_front() {
        ordered.push(address);
        std::mem::swap(&mut these, &mut others);
        if these.is_empty() {
            std::mem::swap(&mut these, &mut others);
        }
    }
    ordered
}

/// The first connection that any of `addresses` gives. Each gets a head start over the next, which
/// ends early if it fails.
async fn first_to_connect<S, D, F>(addresses: Vec<SocketAddr>, dial: D) -> io::Result<S>
where
    D: Fn(SocketAddr) -> F,
    F: Future<Output = io::Result<S>>,
{
    let mut waiting = addresses.into_iter();
    let mut dials = FuturesUnordered::new();
    let mut failure = no_address();
    loop {
        match waiting.next() {
            Some(address) => dials.push(dial(address)),
            None if dials.is_empty() => return Err(failure),
            None => {}
        }
        tokio::select! {
            biased;
            Some(connected) = dials.next() => match connected {
                Ok(stream) => return Ok(stream),
                Err(error) => failure = error,
            },
            () = sleep(ATTEMPT_DELAY), if waiting.len() > 0 => {}
        }
    }
}

fn no_address() -> io::Error {
    io::Error::new(ErrorKind::NotFound, "the name resolves to no address")
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::time::Instant;

    use super::*;

    const V6_A: &str = "[2001:db8::a]:1";
    const V6_B: &str = "[2001:db8::b]:1";
    const V4_A: &str = "192.0.2.1:1";
    const V4_B: &str = "192.0.2.2:1";

    fn parse(addresses: &[&str]) -> Vec<SocketAddr> {
        addresses
            .iter()
            .map(|address| address.parse().unwrap())
            .collect()
    }

    #[test]
    fn the_two_address_families_alternate_from_the_preferred_one() {
        let ordered = interleave(parse(&[V6_A, V6_B, V4_A, V4_B]));
        assert_eq!(ordered, parse(&[V6_A, V4_A, V6_B, V4_B]));
        assert_eq!(
            interleave(parse(&[V4_A, V6_A, V6_B])),
            parse(&[V4_A, V6_A, V6_B])
        );
        assert_eq!(interleave(parse(&[V4_A, V4_B])), parse(&[V4_A, V4_B]));
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_that_does_not_answer_costs_a_head_start_and_no_more() {
        let began = Instant::now();
        let winner = first_to_connect(parse(&[V6_A, V4_A]), |address| async move {
            if address.is_ipv6() {
                pending().await
            } else {
                Ok(address)
            }
        })
        .await;
        assert_eq!(winner.unwrap(), parse(&[V4_A])[0]);
        assert_eq!(began.elapsed(), ATTEMPT_DELAY);
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_that_refuses_costs_nothing() {
        let began = Instant::now();
        let winner = first_to_connect(parse(&[V6_A, V4_A]), |address| async move {
            if address.is_ipv6() {
                Err(ErrorKind::ConnectionRefused.into())
            } else {
                Ok(address)
            }
        })
        .await;
        assert_eq!(winner.unwrap(), parse(&[V4_A])[0]);
        assert_eq!(began.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_address_may_still_win() {
        let winner = first_to_connect(parse(&[V6_A, V4_A]), |address| async move {
            if address.is_ipv4() {
                return pending().await;
            }
            sleep(ATTEMPT_DELAY * 3).await;
            Ok(address)
        })
        .await;
        assert_eq!(winner.unwrap(), parse(&[V6_A])[0]);
    }

    #[tokio::test(start_paused = true)]
    async fn when_all_addresses_fail_the_last_reason_is_told() {
        let failed = first_to_connect(parse(&[V6_A, V4_A]), |_| async {
            Err::<(), _>(ErrorKind::ConnectionRefused.into())
        })
        .await;
        assert_eq!(failed.unwrap_err().kind(), ErrorKind::ConnectionRefused);
    }
}
