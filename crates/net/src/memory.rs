//! An in-memory network, for whole groups in one process and for deterministic tests.
//!
//! It has no threads, no clock and no hash-dependent order: its behaviour follows from the calls
//! made, so it works on a paused current-thread runtime. Hosts have names, and addresses look like
//! `n1:7400`. It delivers everything in order and at once; for delays or loss, wrap its transports.
//! [`MemoryNetwork::isolate`] is its only fault.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, Weak};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::sync::mpsc;

use crate::connection::ByteStream;
use crate::error::{NetError, Result};
use crate::lock::lock;
use crate::transport::{BoxFuture, Connected, Listener, Transport};

/// Bytes in flight in each direction of a connection: about what a TCP connection holds.
const PIPE_BYTES: usize = 256 * 1024;

/// Connections that may wait to be accepted; a further one is refused.
const BACKLOG: usize = 4096;

/// First of the ports assigned to a bind to port 0.
const FREE_PORT_FIRST: u16 = 49_152;

/// Hosts that reach each other within this process. Clones are the same network.
#[derive(Clone, Default)]
pub struct MemoryNetwork {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// The queue of each listener's arrivals, by address.
    listeners: BTreeMap<String, mpsc::Sender<Arrival>>,
    isolated: BTreeSet<String>,
    links: Vec<Link>,
}

/// A stream not yet accepted, and the name of the host that dialled.
type Arrival = (MemoryStream, String);

/// One end of a connection; `None` once cut.
type End = Mutex<Option<DuplexStream>>;

/// A connection and the hosts at its ends.
struct Link {
    hosts: [String; 2],
    ends: [Weak<End>; 2],
}

impl MemoryNetwork {
    /// A network on which every host reaches every other.
    pub fn new() -> Self {
        Self::default()
    }

    /// The transport of one host. It listens at addresses of its own name; hosts it dials see that
    /// name as their peer's address.
    pub fn host(&self, name: &str) -> Arc<dyn Transport> {
        Arc::new(MemoryHost {
            network: self.clone(),
            name: name.into(),
        })
    }

    /// Cuts every open connection of this host, with a reset at both ends, and refuses new ones
    /// until [`heal`](Self::heal). Bytes in flight are lost.
    pub fn isolate(&self, host: &str) {
        let cut: Vec<Link> = {
            let mut state = lock(&self.state);
            state.isolated.insert(host.into());
            state
                .links
                .extract_if(.., |link| link.hosts.iter().any(|end| end == host))
                .collect()
        };
        for end in cut
            .iter()
            .flat_map(|link| &link.ends)
            .filter_map(Weak::upgrade)
        {
            // The pipe is dropped outside its lock, because that wakes waiters at the other end.
            let pipe = lock(&end).take();
            drop(pipe);
        }
    }

    /// Lets this host reach others and be reached again. Connections that were cut stay cut.
    pub fn heal(&self, host: &str) {
        lock(&self.state).isolated.remove(host);
    }

    fn connect(&self, from: &str, address: &str) -> io::Result<MemoryStream> {
        let (to, _) = parse(address)?;
        let mut state = lock(&self.state);
        if state.isolated.contains(from) || state.isolated.contains(to) {
            return Err(io::ErrorKind::HostUnreachable.into());
        }
        let Some(listener) = state.listeners.get(address) else {
            return Err(io::ErrorKind::ConnectionRefused.into());
        };
        let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
        let (ours, theirs) = (MemoryStream::new(ours), MemoryStream::new(theirs));
        let link = Link {
            hosts: [from.into(), to.into()],
            ends: [Arc::downgrade(&ours.end), Arc::downgrade(&theirs.end)],
        };
        if listener.try_send((theirs, from.into())).is_err() {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        state
            .links
            .retain(|link| link.ends.iter().any(|end| end.strong_count() > 0));
        state.links.push(link);
        Ok(ours)
    }

    fn bind(&self, host: &str, address: &str) -> io::Result<MemoryListener> {
        let (to, port) = parse(address)?;
        if to != host {
            return Err(io::ErrorKind::AddrNotAvailable.into());
        }
        let mut state = lock(&self.state);
        let taken = |address: &String| state.listeners.contains_key(address);
        let address = if port == 0 {
            let mut free = (FREE_PORT_FIRST..=u16::MAX).map(|port| format!("{host}:{port}"));
            free.find(|address| !taken(address))
        } else {
            Some(address.to_owned()).filter(|address| !taken(address))
        };
        let address = address.ok_or(io::ErrorKind::AddrInUse)?;
        let (sender, arrivals) = mpsc::channel(BACKLOG);
        state.listeners.insert(address.clone(), sender);
        Ok(MemoryListener {
            network: self.clone(),
            address,
            arrivals,
        })
    }
}

/// The transport of one host.
struct MemoryHost {
    network: MemoryNetwork,
    name: String,
}

impl Transport for MemoryHost {
    fn connect<'a>(&'a self, address: &'a str) -> BoxFuture<'a, Result<Connected>> {
        Box::pin(async move {
            match self.network.connect(&self.name, address) {
                Ok(stream) => Ok(Connected {
                    stream: Box::new(stream),
                    address: address.to_owned(),
                    identity: None,
                }),
                Err(error) => Err(NetError::io(format!("connect to {address}"), error)),
            }
        })
    }

    fn bind<'a>(&'a self, address: &'a str) -> BoxFuture<'a, Result<Box<dyn Listener>>> {
        Box::pin(async move {
            match self.network.bind(&self.name, address) {
                Ok(listener) => Ok(Box::new(listener) as Box<dyn Listener>),
                Err(error) => Err(NetError::io(format!("listen at {address}"), error)),
            }
        })
    }
}

struct MemoryListener {
    network: MemoryNetwork,
    address: String,
    arrivals: mpsc::Receiver<Arrival>,
}

impl Listener for MemoryListener {
    fn local_address(&self) -> String {
        self.address.clone()
    }

    fn accept(&mut self) -> BoxFuture<'_, Result<(Box<dyn ByteStream>, String)>> {
        Box::pin(async move {
            match self.arrivals.recv().await {
                Some((stream, peer)) => Ok((Box::new(stream) as Box<dyn ByteStream>, peer)),
                None => unreachable!("the network keeps the sender for as long as this listener"),
            }
        })
    }
}

impl Drop for MemoryListener {
    fn drop(&mut self) {
        lock(&self.network.state).listeners.remove(&self.address);
    }
}

/// One end of a connection. Once cut, every call reports a reset.
struct MemoryStream {
    end: Arc<End>,
}

impl MemoryStream {
    fn new(pipe: DuplexStream) -> Self {
        Self {
            end: Arc::new(Mutex::new(Some(pipe))),
        }
    }

    fn poll_pipe<T>(
        &self,
        poll: impl FnOnce(Pin<&mut DuplexStream>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        match lock(&self.end).as_mut() {
            Some(pipe) => poll(Pin::new(pipe)),
            None => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
        }
    }
}

impl AsyncRead for MemoryStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.poll_pipe(|pipe| pipe.poll_read(cx, buffer))
    }
}

impl AsyncWrite for MemoryStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_pipe(|pipe| pipe.poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_pipe(|pipe| pipe.poll_write_vectored(cx, slices))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_pipe(|pipe| pipe.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_pipe(|pipe| pipe.poll_shutdown(cx))
    }
}

/// The host and the port of an address.
fn parse(address: &str) -> io::Result<(&str, u16)> {
    let parsed = address
        .rsplit_once(':')
        .and_then(|(host, port)| Some((host, port.parse().ok()?)));
    parsed.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "not of the form host:port"))
}
