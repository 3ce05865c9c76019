//! Blocking handlers, and a registry of them without a network.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use crate::blocking::channel::Channel;
use crate::error::{NetError, Result};
use crate::lock::lock;

/// Serves the channels that ask for one service. May block.
pub trait ServiceHandler: Send + Sync {
    /// Serves one channel to its end, on a thread of its own. It should return when the channel
    /// closes. An error is logged and counted; a panic is contained.
    ///
    /// # Errors
    ///
    /// Whatever ended the service of this channel, other than its peer.
    fn handle(&self, channel: Box<dyn Channel>) -> Result<()>;

    /// The same, with the identity that the client has proved, where the transport asks for proof.
    /// A handler that does not care leaves this to [`handle`](Self::handle).
    ///
    /// # Errors
    ///
    /// As [`handle`](Self::handle).
    fn handle_from(&self, channel: Box<dyn Channel>, _identity: Option<&str>) -> Result<()> {
        self.handle(channel)
    }

    /// The name that clients ask for.
    fn service_name(&self) -> &str;
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
