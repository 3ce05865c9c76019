//! Services by name: their handlers, the in-memory registry, and the service open as the server
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

/// Maximum length of a service name, in bytes.
pub const MAX_SERVICE_NAME_LEN: usize = 256;

/// Serves the channels that ask for one service. May block.
pub trait ServiceHandler: Send + Sync {
    /// Serves one channel to its end, on a thread of its own. It should return when the channel
    /// closes. An error is logged and counted; a panic is contained.
    ///
    /// # Errors
    ///
    /// Whatever ended the service of this channel, other than its peer.
    fn handle(&self, channel: Box<dyn Channel>) -> Result<()>;

    /// The name that clients ask for.
    fn service_name(&self) -> &str;
}

/// Serves the connections that ask for one service, without blocking.
pub trait AsyncServiceHandler: Send + Sync + 'static {
    /// The name that clients ask for.
    fn service_name(&self) -> &str;

    /// Whether callers of this service take precedence over strangers: the dispatcher gives them
    /// places and descriptors that it keeps from others. It does so for anyone who asks for the
    /// service, so the handler must turn unknown callers away at once.
    fn is_for_peers(&self) -> bool {
        false
    }

    /// Serves one connection to its end. It should return when the connection closes: when the
    /// dispatcher stops, its halves report [`NetError::ChannelClosed`], and after the stop's
    /// deadline the future is dropped. An error is logged and counted; a panic is contained.
    fn serve(&self, connection: Connection) -> BoxFuture<'static, Result<()>>;
}

/// Handlers by name, without a network: [`dispatch`](Self::dispatch) takes a channel and a name.
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

    /// Adds a handler under its own name, replacing any previous one.
    pub fn register(&self, handler: Arc<dyn ServiceHandler>) {
        lock(&self.services).insert(handler.service_name().into(), handler);
    }

    /// Removes the handler of this name and returns it.
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

    /// Whether it has been started and not stopped since. [`dispatch`](Self::dispatch) works either
    /// way.
    pub fn is_running(&self) -> bool {
        self.running.load(Ordering::SeqCst)
    }

    /// Passes `channel` to the handler of this name, on the calling thread, and returns the
    /// handler's result.
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

/// The name in a service open, `name_len: u32 LE | name`. Reads not a byte beyond it, and buffers
/// at most [`MAX_SERVICE_NAME_LEN`] bytes whatever the peer claims.
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
