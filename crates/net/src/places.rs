//! A dispatcher's places for connections, handed out so that no flood takes them all.
//!
//! ```text
//!            admit                      settle
//!   accept ────────► half open ───────────────────► served
//!                    any place;                      peers: any place
//!                    the oldest gives way            others: all but the reserved ones
//!                    when all are taken
//! ```
//!
//! A flood of connections that never finish their handshake evicts its own oldest ones, not the
//! peer that finishes within a round trip. The places of one address are limited, and strangers
//! cannot take those reserved for peers: clients that authenticate, or call a service for peers.
//!
//! Descriptors are limited as well, and the process needs them for files too. When fewer are left
//! than it keeps for itself, half-open connections give way; below three quarters of that,
//! strangers are not served; below a quarter, nobody is admitted.
//!
//! A place is held as long as its stream lives: a closed connection whose socket lingers still
//! counts.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::CancellationToken;

use crate::connection::ByteStream;
use crate::descriptors::Descriptors;
use crate::dispatcher::DispatcherOptions;
use crate::lock::lock;

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
    DescriptorsKept,
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
            Self::DescriptorsKept => "descriptors_kept",
        }
    }
}

/// All places of one dispatcher.
pub(crate) struct Places {
    connections_max: usize,
    connections_reserved: usize,
    per_address_max: usize,
    descriptors_kept: usize,
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    /// Places currently taken.
    places: usize,
    /// Of these, the ones of served connections that are not peers'.
    unproven: usize,
    /// Of `places`, the ones that each address holds for connections not (yet) known to be peers'.
    by_address: BTreeMap<String, OfAddress>,
    /// The half-open connections, oldest first.
    half_open: BTreeMap<u64, HalfOpen>,
    /// The number of the next place.
    next: u64,
}

#[derive(Clone, Copy, Default)]
struct OfAddress {
    places: usize,
    /// Of these, the ones of served connections.
    unproven: usize,
}

struct HalfOpen {
    address: String,
    /// Evicts it when cancelled.
    evicted: CancellationToken,
}

/// One place, freed on drop.
pub(crate) struct Place {
    places: Arc<Places>,
    number: u64,
    /// The address that this place counts against.
    address: Option<String>,
    /// Whether this place counts as served and unproven.
    unproven: bool,
    evicted: CancellationToken,
}

impl Places {
    pub(crate) fn new(options: &DispatcherOptions) -> Self {
        Self {
            connections_max: options.connections_max,
            connections_reserved: options.connections_reserved,
            per_address_max: options.connections_per_address_max,
            descriptors_kept: options.descriptors_kept,
            taken: Mutex::default(),
        }
    }

    /// A place for a new connection from `peer`, before its handshake.
    pub(crate) fn admit(
        self: &Arc<Self>,
        peer: &str,
        descriptors: Option<Descriptors>,
    ) -> Result<Place, Refusal> {
        let address = limited_address(peer);
        let (left, kept) = self.left_and_kept(descriptors);
        let mut taken = lock(&self.taken);
        // Evicted connections count until their streams are gone, so each admission beyond a limit
        // costs some older connection its place.
        if left < kept && taken.half_open.len() > kept / 8 {
            taken.evict_oldest();
        }
        if left < kept / 4 {
            return Err(Refusal::DescriptorsKept);
        }
        let from_here = taken.by_address.get(&address).copied().unwrap_or_default();
        if from_here.places >= self.per_address_max && !taken.evict_oldest_of(&address) {
            return Err(Refusal::AddressMax);
        }
        if taken.places >= self.connections_max && !taken.evict_oldest() {
            return Err(Refusal::ConnectionsMax);
        }
        let number = taken.next;
        let evicted = CancellationToken::new();
        taken.next += 1;
        taken.places += 1;
        taken.by_address.entry(address.clone()).or_default().places += 1;
        let half_open = HalfOpen {
            address: address.clone(),
            evicted: evicted.clone(),
        };
        taken.half_open.insert(number, half_open);
        metrics::gauge!("steadfast_connections_open").increment(1);
        Ok(Place {
            places: Arc::clone(self),
            number,
            address: Some(address),
            unproven: false,
            evicted,
        })
    }

    /// How many descriptors are left, and how many of those the process keeps for itself.
    fn left_and_kept(&self, descriptors: Option<Descriptors>) -> (usize, usize) {
        descriptors.map_or((usize::MAX, 0), |of| {
            (of.left(), of.kept(self.descriptors_kept))
        })
    }

    /// Evicts the connection that has been half open the longest, if there is one.
    pub(crate) fn evict_oldest(&self) -> bool {
        lock(&self.taken).evict_oldest()
    }
}

impl Taken {
    fn evict_oldest(&mut self) -> bool {
        let oldest = self.half_open.pop_first();
        oldest.inspect(|(_, it)| it.evicted.cancel()).is_some()
    }

    fn evict_oldest_of(&mut self, address: &str) -> bool {
        let mut half_open = self.half_open.iter();
        let oldest = half_open.find(|(_, it)| it.address == address);
        let Some(number) = oldest.map(|(number, _)| *number) else {
            return false;
        };
        let removed = self.half_open.remove(&number);
        removed.inspect(|it| it.evicted.cancel()).is_some()
    }

    fn release_address(&mut self, address: &str, unproven: bool) {
        if let Some(of) = self.by_address.get_mut(address) {
            of.places -= 1;
            of.unproven -= usize::from(unproven);
            if of.places == 0 {
                self.by_address.remove(address);
            }
        }
    }
}

impl Place {
    /// Cancelled when the connection has to make way for another one.
    pub(crate) fn evicted(&self) -> CancellationToken {
        self.evicted.clone()
    }

    /// Makes this the place of a served connection, which can no longer be evicted.
    pub(crate) fn settle(
        &mut self,
        is_peer: bool,
        descriptors: Option<Descriptors>,
    ) -> Result<(), Refusal> {
        let (left, kept) = self.places.left_and_kept(descriptors);
        let mut taken = lock(&self.places.taken);
        if taken.half_open.remove(&self.number).is_none() {
            return Err(Refusal::HandshakeEvicted);
        }
        if is_peer {
            if let Some(address) = self.address.take() {
                taken.release_address(&address, false);
            }
            return Ok(());
        }
        if left < kept - kept / 4 {
            return Err(Refusal::DescriptorsKept);
        }
        let open_to_all = self
            .places
            .connections_max
            .saturating_sub(self.places.connections_reserved);
        if taken.unproven >= open_to_all {
            return Err(Refusal::PlacesReserved);
        }
        let address = self.address.as_ref();
        if let Some(of) = address.and_then(|address| taken.by_address.get_mut(address)) {
            // A peer may come from the same address: some of its places stay free for half-open
            // connections.
            let per_address_max = self.places.per_address_max;
            if of.unproven >= per_address_max - per_address_max / 8 {
                return Err(Refusal::AddressMax);
            }
            of.unproven += 1;
        }
        taken.unproven += 1;
        self.unproven = true;
        Ok(())
    }

    /// Wraps the stream, which holds this place from here on.
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
            taken.release_address(address, self.unproven);
        }
    }
}

/// A stream that frees its place on drop.
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

/// The address that limits apply to: an IPv4 address, an IPv6 /64 network (one customer has at
/// least that), or the name itself where the transport has no IP addresses.
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
