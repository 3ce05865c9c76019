//! The places that a dispatcher has for connections, so that no flood takes them all.
//!
//! ```text
//!            admit                      settle
//!   accept ────────► half open ───────────────────► served
//!                    any place;                      authenticated: any place
//!                    the oldest gives way            others: all but the reserved ones
//!                    when all are taken
//! ```
//!
//! A flood of connections that never finish their handshake pushes out its own oldest ones, not the
//! peer that finishes within a round trip. One address holds only so many places, and connections
//! that prove nothing cannot take the ones reserved for those that do.
//!
//! A place lasts as long as the stream that it was given to: a closed connection whose socket
//! lingers still counts.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::CancellationToken;

use crate::blocking::lock;
use crate::connection::ByteStream;
use crate::dispatcher::DispatcherOptions;

/// Why a connection was closed before a handler saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    ConnectionsMax,
    AddressMax,
    PlacesReserved,
    HandshakeEvicted,
    HandshakeTimeout,
    HandshakeFailed,
    NameLength,
    NameNotUtf8,
    ServiceUnknown,
    HandlersMax,
}

impl Refusal {
    /// The value of the label `reason` of `steadfast_connections_refused_total`.
    pub(crate) fn reason(self) -> &'static str {
        match self {
            Self::ConnectionsMax => "connections_max",
            Self::AddressMax => "connections_per_address_max",
            Self::PlacesReserved => "connections_reserved",
            Self::HandshakeEvicted => "handshake_evicted",
            Self::HandshakeTimeout => "handshake_timeout",
            Self::HandshakeFailed => "handshake_failed",
            Self::NameLength => "name_length",
            Self::NameNotUtf8 => "name_not_utf8",
            Self::ServiceUnknown => "service_unknown",
            Self::HandlersMax => "handlers_blocking_max",
        }
    }
}

/// All places of one dispatcher.
pub(crate) struct Places {
    connections_max: usize,
    connections_reserved: usize,
    per_address_max: usize,
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    /// Places given out and not given back.
    places: usize,
    /// Of these, the ones of served connections that proved nothing.
    unproven: usize,
    /// Of `places`, how many each address holds with connections that did not prove anything (yet).
    by_address: BTreeMap<String, usize>,
    /// What throws out each half-open connection, oldest first.
    half_open: BTreeMap<u64, CancellationToken>,
    /// The number of the next place.
    next: u64,
}

/// One place; it is free again when this is dropped.
pub(crate) struct Place {
    places: Arc<Places>,
    number: u64,
    /// The address that this place counts against.
    address: Option<String>,
    /// This place counts as served and unproven.
    unproven: bool,
    evicted: CancellationToken,
}

impl Places {
    pub(crate) fn new(options: &DispatcherOptions) -> Self {
        Self {
            connections_max: options.connections_max,
            connections_reserved: options.connections_reserved,
            per_address_max: options.connections_per_address_max,
            taken: Mutex::default(),
        }
    }

    /// A place for a connection from `peer` that has not said anything yet.
    pub(crate) fn admit(self: &Arc<Self>, peer: &str) -> Result<Place, Refusal> {
        let address = limited_address(peer);
        let mut taken = lock(&self.taken);
        let from_here = taken.by_address.get(&address).copied().unwrap_or(0);
        if from_here >= self.per_address_max {
            return Err(Refusal::AddressMax);
        }
        // Connections that were thrown out count until their streams are gone, hence the second
        // comparison: each admission beyond the limit costs some older connection its place.
        if taken.places >= self.connections_max && !taken.evict_oldest() {
            return Err(Refusal::ConnectionsMax);
        }
        let number = taken.next;
        let evicted = CancellationToken::new();
        taken.next += 1;
        taken.places += 1;
        taken.by_address.insert(address.clone(), from_here + 1);
        taken.half_open.insert(number, evicted.clone());
        metrics::gauge!("steadfast_connections_open").increment(1);
        Ok(Place {
            places: Arc::clone(self),
            number,
            address: Some(address),
            unproven: false,
            evicted,
        })
    }

    /// Throws out the connection that has been half open for the longest, if there is one.
    pub(crate) fn evict_oldest(&self) -> bool {
        lock(&self.taken).evict_oldest()
    }
}

impl Taken {
    fn evict_oldest(&mut self) -> bool {
        let oldest = self.half_open.pop_first();
        oldest.inspect(|(_, evicted)| evicted.cancel()).is_some()
    }

    fn release_address(&mut self, address: &str) {
        if let Some(count) = self.by_address.get_mut(address) {
            *count -= 1;
            if *count == 0 {
                self.by_address.remove(address);
            }
        }
    }
}

impl Place {
    /// What says that the connection has to make way for another one.
    pub(crate) fn evicted(&self) -> CancellationToken {
        self.evicted.clone()
    }

    /// Makes this the place of a served connection, which cannot be thrown out any more.
    pub(crate) fn settle(&mut self, authenticated: bool) -> Result<(), Refusal> {
        let mut taken = lock(&self.places.taken);
        if taken.half_open.remove(&self.number).is_none() {
            return Err(Refusal::HandshakeEvicted);
        }
        if authenticated {
            if let Some(address) = self.address.take() {
                taken.release_address(&address);
            }
            return Ok(());
        }
        let open_to_all = self
            .places
            .connections_max
            .saturating_sub(self.places.connections_reserved);
        if taken.unproven >= open_to_all {
            return Err(Refusal::PlacesReserved);
        }
        taken.unproven += 1;
        self.unproven = true;
        Ok(())
    }

    /// The stream, which from here on holds this place.
    pub(crate) fn hold(self, stream: Box<dyn ByteStream>) -> Box<dyn ByteStream> {
        Box::new(PlacedStream {
            stream,
            _place: self,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = lock(&self.places.taken);
        taken.places -= 1;
        metrics::gauge!("steadfast_connections_open").decrement(1);
        taken.unproven -= usize::from(self.unproven);
        taken.half_open.remove(&self.number);
        if let Some(address) = &self.address {
            taken.release_address(address);
        }
    }
}

/// A stream that gives its place back when it is dropped.
struct PlacedStream {
    stream: Box<dyn ByteStream>,
    _place: Place,
}

impl AsyncRead for PlacedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for PlacedStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// What one owner of addresses is limited by: an IPv4 address, an IPv6 network of 64 bits (one
/// customer has at least that), or the name as it is where the transport has no IP addresses.
fn limited_address(peer: &str) -> String {
    match peer
        .parse::<SocketAddr>()
        .map(|address| address.ip().to_canonical())
    {
        Ok(IpAddr::V4(address)) => address.to_string(),
        Ok(IpAddr::V6(address)) => {
            let [a, b, c, d, ..] = address.segments();
            format!("{a:x}:{b:x}:{c:x}:{d:x}::/64")
        }
        Err(_) => peer.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv6_network_counts_as_one_address() {
        assert_eq!(
            limited_address("[2001:db8:1:2::3]:1"),
            limited_address("[2001:db8:1:2::4]:2")
        );
        assert_ne!(
            limited_address("[2001:db8:1:2::3]:1"),
            limited_address("[2001:db8:1:3::3]:1")
        );
    }

    #[test]
    fn ports_and_mapped_addresses_do_not_make_an_address_another_one() {
        assert_eq!(
            limited_address("192.0.2.1:1"),
            limited_address("192.0.2.1:2")
        );
        assert_eq!(
            limited_address("192.0.2.1:1"),
            limited_address("[::ffff:192.0.2.1]:1")
        );
        assert_ne!(
            limited_address("192.0.2.1:1"),
            limited_address("192.0.2.2:1")
        );
    }
}
