//! The blocking API of the dispatcher: services on a TCP port, run by the crate's own runtime.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use crate::blocking::channel::TcpChannel;
use crate::blocking::runtime::{block_on, runtime};
use crate::blocking::service::ServiceHandler;
use crate::dispatcher::{Dispatcher, DispatcherOptions};
use crate::error::{NetError, Result};
use crate::lock::lock;
use crate::tcp::TcpTransport;
use crate::transport::open_service;

/// Accepts TCP connections and passes each to the handler that it names. Dropping it stops
/// accepting and closes the open channels, without waiting for their handlers.
pub struct TcpServiceDispatcher {
    dispatcher: Dispatcher,
    address: SocketAddr,
    /// The address it listens at, while it does.
    bound: Mutex<Option<SocketAddr>>,
}

impl TcpServiceDispatcher {
    /// A dispatcher for `address`, not yet started. Port 0 picks a free port at each start.
    ///
    /// # Errors
    ///
    /// None; a bad address is reported by [`start`](Self::start).
    pub fn new(address: SocketAddr) -> Result<Self> {
        Self::with_options(address, DispatcherOptions::default())
    }

    /// As [`new`](Self::new), with other limits and deadlines.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub fn with_options(address: SocketAddr, options: DispatcherOptions) -> Result<Self> {
        Ok(Self {
            dispatcher: Dispatcher::new(options),
            address,
            bound: Mutex::new(None),
        })
    }

    /// Adds a handler under `name`, replacing any previous one. A name that no client can ask for
    /// makes [`start`](Self::start) fail.
    pub fn register(&self, name: impl Into<String>, handler: Arc<dyn ServiceHandler>) {
        self.dispatcher.insert(name.into(), handler);
    }

    /// The address it listens at while running, otherwise the one it was created for.
    pub fn addr(&self) -> SocketAddr {
        lock(&self.bound).unwrap_or(self.address)
    }

    /// Whether it accepts connections.
    pub fn is_running(&self) -> bool {
        self.dispatcher.is_running()
    }

    /// Starts accepting connections, and returns the bound address.
    ///
    /// # Errors
    ///
    /// [`NetError::Io`] when the address cannot be bound, [`NetError::Configuration`] when it is
    /// already running or a registered name is empty or over
    /// [`MAX_SERVICE_NAME_LEN`](crate::MAX_SERVICE_NAME_LEN) bytes.
    pub fn start(&self) -> Result<SocketAddr> {
        let transport = Arc::new(TcpTransport);
        let address = self.address.to_string();
        let bound = block_on(&runtime()?, self.dispatcher.start(transport, &address))?;
        let bound = bound.parse().map_err(|_| NetError::Protocol {
            expected: "an IP address and a port".into(),
            found: bound.clone(),
        })?;
        *lock(&self.bound) = Some(bound);
        Ok(bound)
    }

    /// Stops accepting, closes the open channels, and waits up to
    /// [`stop_timeout`](DispatcherOptions::stop_timeout) for their handlers. On return the port is
    /// free, and [`start`](Self::start) works again. Called from a handler, it waits for the whole
    /// timeout.
    pub fn stop(&self) {
        if let Ok(runtime) = runtime() {
            block_on(&runtime, self.dispatcher.stop());
        }
        *lock(&self.bound) = None;
    }
}

/// Connects to a dispatcher and asks for a service by name. A server that has no such service
/// closes the channel.
///
/// # Errors
///
/// [`NetError::Configuration`] for a name that is empty or over
/// [`MAX_SERVICE_NAME_LEN`](crate::MAX_SERVICE_NAME_LEN) bytes, [`NetError::Io`],
/// [`NetError::DeadlineExceeded`].
pub fn connect_to_service(address: SocketAddr, service_name: &str) -> Result<TcpChannel> {
    let address = address.to_string();
    let connection = block_on(
        &runtime()?,
        open_service(&TcpTransport, &address, service_name),
    )?;
    Ok(TcpChannel::over(connection))
}
