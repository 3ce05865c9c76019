//! The blocking API of a connection: messages in both directions, from any thread.
//!
//! Every channel is a [`BlockingConnection`]: the two halves of a [`Connection`], each behind its
//! own lock, and one switch that turns both off. `send` takes the lock of one half and `receive`
//! that of the other, so neither waits for the other; `close` takes neither lock and throws the
//! switch.
//!
//! Closing gives the peer time to read: a task on the crate's runtime writes out what is queued,
//! ends the stream, and briefly reads and discards what the peer still sends. Otherwise a TCP
//! socket closed with unread bytes would reset the connection and lose what the peer has not yet
//! read.

use std::fmt;
use std::net::{Ipv6Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::Mutex;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::blocking::runtime::{block_on, poll_once, runtime};
use crate::connection::{Connection, FrameReceiver, FrameSender, check_sendable};
use crate::error::{NetError, Result};
use crate::tcp;

/// Bytes buffered in each direction of a [`LocalChannelPair`]: about what a TCP connection holds.
const LOCAL_QUEUE_BYTES: usize = 256 * 1024;

/// How long a closed channel reads and discards what its peer still sends.
const LINGER_TIMEOUT: Duration = Duration::from_secs(1);

/// A full-duplex message channel between two ends.
///
/// All methods may be called concurrently from any thread, even inside an async context: they block
/// that thread. A failed channel stays closed. Dropping a channel closes it.
pub trait Channel: Send + Sync {
    /// Sends one message. Never waits for a `receive` in another thread.
    ///
    /// # Errors
    ///
    /// [`NetError::Protocol`] when `data` is longer than
    /// [`MAX_FRAME_PAYLOAD`](crate::MAX_FRAME_PAYLOAD): nothing is sent, and the channel stays
    /// open. All other errors close it: [`NetError::ChannelClosed`], [`NetError::DeadlineExceeded`]
    /// when the peer accepts no bytes for 10 s, [`NetError::Io`].
    fn send(&self, data: &[u8]) -> Result<()>;

    /// The next message, or `None` when none is complete within `timeout`. A partial message is
    /// kept for the next call. A timeout of zero polls.
    ///
    /// # Errors
    ///
    /// All close the channel: [`NetError::ChannelClosed`] once everything the peer sent has been
    /// received, [`NetError::Protocol`] for a message over the limit or cut short,
    /// [`NetError::DeadlineExceeded`] when no byte of a started message arrives for 10 s,
    /// [`NetError::Io`].
    fn receive(&self, timeout: Duration) -> Result<Option<Vec<u8>>>;

    /// Closes the channel: calls waiting on this end return [`NetError::ChannelClosed`], and the
    /// peer gets that error after receiving what was sent. Closing twice is not an error.
    ///
    /// # Errors
    ///
    /// No channel of this crate fails to close.
    fn close(&self) -> Result<()>;

    /// False once the channel was closed, has failed, or was seen to be closed by the peer.
    fn is_open(&self) -> bool;
}

/// One end of an in-process channel.
pub struct LocalChannel(BlockingConnection);

/// The two ends of an in-process channel. Each direction buffers up to 256 KiB; beyond that, `send`
/// blocks, as long as the other end takes some bytes within 10 s.
pub struct LocalChannelPair {
    /// The end that `channel_b` talks to.
    pub channel_a: LocalChannel,
    /// The end that `channel_a` talks to.
    pub channel_b: LocalChannel,
}

impl LocalChannelPair {
    /// The two ends of a new channel.
    pub fn new() -> Self {
        let (stream_a, stream_b) = tokio::io::duplex(LOCAL_QUEUE_BYTES);
        let end = |stream| {
            LocalChannel(BlockingConnection::open(Ok(Connection::new(
                Box::new(stream),
                "local".into(),
            ))))
        };
        Self {
            channel_a: end(stream_a),
            channel_b: end(stream_b),
        }
    }
}

impl Default for LocalChannelPair {
    fn default() -> Self {
        Self::new()
    }
}

/// A channel over one TCP connection.
pub struct TcpChannel(BlockingConnection);

impl TcpChannel {
    /// A channel over a connected socket. If the operating system refuses to hand over the socket,
    /// the channel is closed from the start.
    pub fn new(stream: TcpStream) -> Self {
        Self(BlockingConnection::open(adopt(stream)))
    }

    /// Connects to one address, within 10 s.
    ///
    /// # Errors
    ///
    /// [`NetError::Io`], [`NetError::DeadlineExceeded`].
    pub fn connect(address: SocketAddr) -> Result<Self> {
        let stream = block_on(&runtime()?, tcp::connect(&address.to_string()))?;
        Ok(Self::over(Connection::new(
            Box::new(stream),
            address.to_string(),
        )))
    }

    /// Resolves `host` and connects to whichever of its addresses answers first, within 10 s.
    ///
    /// # Errors
    ///
    /// [`NetError::Io`], [`NetError::DeadlineExceeded`].
    pub fn connect_host(host: &str, port: u16) -> Result<Self> {
        let address = match host.parse::<Ipv6Addr>() {
            Ok(literal) => format!("[{literal}]:{port}"),
            Err(_) => format!("{host}:{port}"),
        };
        let stream = block_on(&runtime()?, tcp::connect(&address))?;
        Ok(Self::over(Connection::new(Box::new(stream), address)))
    }

    /// A channel over an existing connection.
    pub(crate) fn over(connection: Connection) -> Self {
        Self(BlockingConnection::open(Ok(connection)))
    }
}

/// Accepts TCP connections as channels, without service names or limits. For those, see
/// [`TcpServiceDispatcher`](crate::TcpServiceDispatcher).
pub struct TcpChannelListener {
    runtime: Handle,
    listener: tokio::net::TcpListener,
}

impl TcpChannelListener {
    /// Listens at `address`; port 0 picks a free one.
    ///
    /// # Errors
    ///
    /// [`NetError::Io`].
    pub fn bind(address: SocketAddr) -> Result<Self> {
        let runtime = runtime()?;
        let listener = {
            let _context = runtime.enter();
            tcp::listen(address)?
        };
        Ok(Self { runtime, listener })
    }

    /// The address it listens at.
    ///
    /// # Errors
    ///
    /// [`NetError::Io`].
    pub fn local_addr(&self) -> Result<SocketAddr> {
        self.listener
            .local_addr()
            .map_err(|error| NetError::io("read a bound address", error))
    }

    /// Blocks the calling thread until the next connection.
    ///
    /// # Errors
    ///
    /// [`NetError::Io`]. The listener stays usable.
    pub fn accept(&self) -> Result<TcpChannel> {
        let (stream, peer) = block_on(&self.runtime, tcp::accept(&self.listener))?;
        Ok(TcpChannel::over(Connection::new(
            Box::new(stream),
            peer.to_string(),
        )))
    }
}

/// A connection whose halves are driven by the calling threads. `None` if it could not be opened;
/// it is then closed from the start.
pub(crate) struct BlockingConnection(Option<Arc<Shared>>);

/// State shared by the owner of a blocking connection, its closing task and its dispatcher.
pub(crate) struct Shared {
    /// Watches the timers of waiting calls and runs the closing task.
    runtime: Handle,
    sender: Mutex<Option<FrameSender>>,
    receiver: Mutex<Option<FrameReceiver>>,
    closed: CancellationToken,
    /// Whether the closing task has been started.
    closing: AtomicBool,
}

impl BlockingConnection {
    /// The blocking API of `connection`. On failure, logs the reason and returns one that is closed
    /// from the start.
    fn open(connection: Result<Connection>) -> Self {
        match connection.and_then(Self::over) {
            Ok(opened) => opened,
            Err(error) => {
                tracing::error!(%error, "a channel could not be opened");
                Self(None)
            }
        }
    }

    /// The blocking API of `connection`.
    pub(crate) fn over(connection: Connection) -> Result<Self> {
        let runtime = runtime()?;
        let closed = connection.switch();
        let (sender, receiver) = connection.split();
        Ok(Self(Some(Arc::new(Shared {
            runtime,
            sender: Mutex::new(Some(sender)),
            receiver: Mutex::new(Some(receiver)),
            closed,
            closing: AtomicBool::new(false),
        }))))
    }

    /// A handle that closes this connection from outside.
    pub(crate) fn shared(&self) -> Option<Arc<Shared>> {
        self.0.clone()
    }

    fn opened(&self) -> Result<&Arc<Shared>> {
        self.0.as_ref().ok_or(NetError::ChannelClosed)
    }
}

impl Channel for BlockingConnection {
    fn send(&self, data: &[u8]) -> Result<()> {
        let shared = self.opened()?;
        check_sendable(data.len())?;
        block_on(&shared.runtime, shared.send(data)).inspect_err(|_| shared.close())
    }

    fn receive(&self, wait: Duration) -> Result<Option<Vec<u8>>> {
        let shared = self.opened()?;
        let received = if wait.is_zero() {
            poll_once(&shared.runtime, shared.receive())
        } else {
            block_on(&shared.runtime, async {
                timeout(wait, shared.receive()).await.ok()
            })
        };
        received.transpose().inspect_err(|_| shared.close())
    }

    fn close(&self) -> Result<()> {
        if let Some(shared) = &self.0 {
            shared.close();
        }
        Ok(())
    }

    fn is_open(&self) -> bool {
        self.0
            .as_ref()
            .is_some_and(|shared| !shared.closed.is_cancelled())
    }
}

impl Drop for BlockingConnection {
    fn drop(&mut self) {
        if let Some(shared) = &self.0 {
            shared.close();
        }
    }
}

impl Shared {
    /// Turns the connection off and leaves the rest of the close to a task.
    pub(crate) fn close(self: &Arc<Self>) {
        self.closed.cancel();
        if !self.closing.swap(true, Ordering::SeqCst) {
            self.runtime.spawn(Arc::clone(self).linger());
        }
    }

    async fn send(&self, data: &[u8]) -> Result<()> {
        let mut sender = self.sender.lock().await;
        sender
            .as_mut()
            .ok_or(NetError::ChannelClosed)?
            .send_copy(data)
            .await
    }

    async fn receive(&self) -> Result<Vec<u8>> {
        // The closing task may hold this half, and a poll does not wait for it.
        if self.closed.is_cancelled() {
            return Err(NetError::ChannelClosed);
        }
        let mut receiver = self.receiver.lock().await;
        let received = receiver
            .as_mut()
            .ok_or(NetError::ChannelClosed)?
            .receive()
            .await?;
        received.map(Vec::from).ok_or(NetError::ChannelClosed)
    }

    /// Delivers what was sent, then releases the stream. The switch is off, so any holder of a half
    /// gives it back at once.
    async fn linger(self: Arc<Self>) {
        let sender = self.sender.lock().await.take();
        let receiver = self.receiver.lock().await.take();
        let (Some(mut sender), Some(mut receiver)) = (sender, receiver) else {
            return;
        };
        if let Err(error) = sender.finish().await {
            tracing::debug!(%error, "a channel was closed before everything was sent");
            return;
        }
        if timeout(LINGER_TIMEOUT, receiver.discard()).await.is_err() {
            tracing::debug!("a peer kept its end open after the channel was closed");
        }
    }
}

impl Connection {
    /// A blocking channel over this connection. Its stream stays with the runtime that created it,
    /// which must keep running on threads other than those that call the channel.
    ///
    /// # Errors
    ///
    /// [`NetError::Io`] when the runtime beneath the blocking API cannot be started.
    pub fn into_channel(self) -> Result<Box<dyn Channel>> {
        Ok(Box::new(BlockingConnection::over(self)?))
    }
}

macro_rules! channel_over_its_connection {
    ($channel:ty) => {
        impl Channel for $channel {
            fn send(&self, data: &[u8]) -> Result<()> {
                self.0.send(data)
            }

            fn receive(&self, timeout: Duration) -> Result<Option<Vec<u8>>> {
                self.0.receive(timeout)
            }

            fn close(&self) -> Result<()> {
                self.0.close()
            }

            fn is_open(&self) -> bool {
                self.0.is_open()
            }
        }

        impl fmt::Debug for $channel {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($channel))
                    .field("is_open", &self.is_open())
                    .finish()
            }
        }
    };
}

channel_over_its_connection!(LocalChannel);
channel_over_its_connection!(TcpChannel);

/// A connection over an already connected socket.
fn adopt(stream: TcpStream) -> Result<Connection> {
    let runtime = runtime()?;
    let _context = runtime.enter();
    let stream = tcp::adopt(stream)?;
    let peer = stream
        .peer_addr()
        .map_err(|error| NetError::io("read a peer's address", error))?;
    Ok(Connection::new(Box::new(stream), peer.to_string()))
}
