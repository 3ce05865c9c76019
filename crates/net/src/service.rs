//! Services by name: what handles one, the registry in memory, and the service open as the server
//! reads it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncRead, AsyncReadExt};

use crate::blocking::lock;
use crate::channel::Channel;
use crate::connection::Connection;
use crate::error::{NetError, Result};
use crate::places::Refusal;
use crate::transport::BoxFuture;

/// Most bytes in a service name.
pub const MAX_SERVICE_NAME_LEN: usize = 256;

/// Serves the channels that ask for one service, and may block while it does.
pub trait ServiceHandler: Send + Sync {
    /// Serves one channel to its end, on a thread of its own. It should return when the channel
    /// closes. An error is logged and counted; a panic is contained.
    ///
    /// # Errors
    ///
    /// Whatever ended the service of this channel, if not its peer.
    fn handle(&self, channel: Box<dyn Channel>) -> Result<()>;

    /// The name that clients ask for.
    fn service_name(&self) -> &str;
}

/// Serves the connections that ask for one service, without blocking.
pub trait AsyncServiceHandler: Send + Sync + 'static {
    /// The name that clients ask for.
    fn service_name(&self) -> &str;

    /// Whether those who call this service come before strangers: the dispatcher lets them have places
    /// and descriptors that it keeps from others. It does so for anyone who asks for the service, so the
    /// handler has to turn away at once whom it does not know.
    fn is_for_peers(&self) -> bool {
        false
    }

    /// Serves one connection to its end. It should return when the connection closes: at a stop of
    /// the dispatcher its halves report [`NetError::ChannelClosed`], and after the stop's deadline
    /// the future is dropped. An error is logged and counted; a panic is contained.
    fn serve(&self, connection: Connection) -> BoxFuture<'static, Result<()>>;
}

/// Handlers by name, with no network: whoever has a channel and a name calls
/// [`dispatch`](Self::dispatch).
#[derive(Default)]
pub struct ServiceDispatcher {
    services: Mutex<BTreeMap<String, Arc<dyn ServiceHandler>>>,
    running: AtomicBool,
}

impl ServiceDispatcher {
    /// A dispatcher without services, not running.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a handler under its own name, in place of one that had it.
    pub fn register(&self, handler: Arc<dyn ServiceHandler>) {
        lock(&self.services).insert(handler.service_name().into(), handler);
    }

    /// Takes the handler of this name out.
    pub fn unregister(&self, service_name: &str) -> Option<Arc<dyn ServiceHandler>> {
        lock(&self.services).remove(service_name)
    }

    /// The handler of this name.
    pub fn get_handler(&self, name: &str) -> Option<Arc<dyn ServiceHandler>> {
        lock(&self.services).get(name).cloned()
    }

    /// All names, sorted.
    pub fn list_services(&self) -> Vec<String> {
        lock(&self.services).keys().cloned().collect()
    }

    /// Marks the dispatcher as running.
    pub fn start(&self) {
        self.running.store(true, Ordering::SeqCst);
    }

    /// Marks the dispatcher as stopped.
    pub fn stop(&self) {
        self.running.store(false, Ordering::SeqCst);
    }

    /// Whether it was started and not stopped since. [`dispatch`](Self::dispatch) works either way.
    pub fn is_running(&self) -> bool {
        self.running.load(Ordering::SeqCst)
    }

    /// Gives `channel` to the handler of this name, on the calling thread, and returns what the
    /// handler returned.
    ///
    /// # Errors
    ///
    /// [`NetError::ServiceNotFound`], and the handler's own.
    pub fn dispatch(&self, service_name: &str, channel: Box<dyn Channel>) -> Result<()> {
        match self.get_handler(service_name) {
            Some(handler) => handler.handle(channel),
            None => Err(NetError::ServiceNotFound {
                name: service_name.into(),
            }),
        }
    }
}

/// Refuses a name that does not fit into a service open.
pub(crate) fn check_service_name(name: &str) -> Result<()> {
    if (1..=MAX_SERVICE_NAME_LEN).contains(&name.len()) {
        return Ok(());
    }
    Err(NetError::Configuration {
        reason: format!(
            "a service name has 1 to {MAX_SERVICE_NAME_LEN} bytes, this one has {}",
            name.len()
        ),
    })
}

/// The name in a service open, `name_len: u32 LE | name`. Reads not a byte more, and keeps no more
/// than [`MAX_SERVICE_NAME_LEN`] bytes whatever the peer claims.
pub(crate) async fn read_service_name<R>(stream: &mut R) -> std::result::Result<String, Refusal>
where
    R: AsyncRead + Unpin,
{
    let name_len = stream
        .read_u32_le()
        .await
        .map_err(|_| Refusal::HandshakeFailed)?;
    let name_len = usize::try_from(name_len).map_err(|_| Refusal::NameLength)?;
    if !(1..=MAX_SERVICE_NAME_LEN).contains(&name_len) {
        return Err(Refusal::NameLength);
    }
    let mut name = vec![0; name_len];
    stream
        .read_exact(&mut name)
        .await
        .map_err(|_| Refusal::HandshakeFailed)?;
    String::from_utf8(name).map_err(|_| Refusal::NameNotUtf8)
}
