//! The accept loop: limits, service open, deadlines, handlers, and shutdown.
//!
//! ```text
//!   accept ─► place ─► authenticate ─► service name ─► handler
//!               │        └── handshake deadline ──┘        ├─ async: a task of this runtime
//!               └─ none left: closed, counted              └─ blocking: one of N threads
//! ```
//!
//! It runs on the runtime that calls `start`, over any [`Transport`], and owns everything it
//! starts: one task accepts connections and owns one task for each. `stop` drops the listener,
//! turns the connections off, and waits for those tasks.
//!
//! A refused connection gets no reply; the log says why, in few lines. No failure of `accept` ends
//! the loop. A failing handler affects only its own connection.
//!
//! | metric | counts |
//! | --- | --- |
//! | `steadfast_connections_open` | connections that hold a place |
//! | `steadfast_connections_refused_total{reason}` | connections closed before a handler saw them |
//! | `steadfast_accept_errors_total` | failures of `accept` |
//! | `steadfast_handler_panics_total{service}` | handlers that panicked |
//! | `steadfast_handler_failures_total{service}` | handlers that returned an error |
//! | `steadfast_handlers_abandoned_total` | handlers that did not return within a stop's deadline |
//! | `steadfast_frames_rejected_total` | connections closed over a frame that breaks the protocol |

use std::any::Any;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::blocking::channel::BlockingConnection;
use crate::blocking::runtime::runtime;
use crate::blocking::service::ServiceHandler;
use crate::connection::{ByteStream, Connection};
use crate::descriptors::KEPT_MAX;
use crate::error::{NetError, Result};
use crate::lock::lock;
use crate::places::{Place, Places, Refusal};
use crate::process;
use crate::refusals::Refusals;
use crate::service::{AsyncServiceHandler, check_service_name, read_service_name};
use crate::tls;
use crate::transport::{Authenticated, Listener, Transport};

/// Pause after a failed accept. Nothing signals that the system has descriptors again, so the loop
/// retries at this interval, long enough not to spin.
const ACCEPT_RETRY_INTERVAL: Duration = Duration::from_millis(20);

/// Limits and deadlines of a [`Dispatcher`].
#[derive(Clone, Debug)]
pub struct DispatcherOptions {
    /// From accepting a connection to the end of its service name, TLS included (5 s).
    pub handshake_timeout: Duration,
    /// Maximum number of open connections (4096).
    pub connections_max: usize,
    /// Of these, the ones that only peers can hold: clients that authenticate, or call a service
    /// that [is for peers](AsyncServiceHandler::is_for_peers) (512).
    pub connections_reserved: usize,
    /// Maximum number of connections from one address that are not peers' (512). An eighth of them
    /// is left to connections that have not yet named a service.
    pub connections_per_address_max: usize,
    /// Descriptors that the process keeps for its files and its peers, approximately (256, or half
    /// of the process's limit where that is less): half-open connections give way for them,
    /// strangers are not served from them, and the last quarter is for files alone.
    pub descriptors_kept: usize,
    /// Maximum number of running blocking handlers, each on a thread (256). A further connection
    /// waits for up to the handshake timeout, then is refused.
    pub handlers_blocking_max: usize,
    /// How long `stop` waits for handlers after closing their connections (10 s).
    pub stop_timeout: Duration,
}

impl Default for DispatcherOptions {
    fn default() -> Self {
        Self {
            handshake_timeout: Duration::from_secs(5),
            connections_max: 4096,
            connections_reserved: 512,
            connections_per_address_max: 512,
            descriptors_kept: KEPT_MAX,
            handlers_blocking_max: 256,
            stop_timeout: Duration::from_secs(10),
        }
    }
}

/// Accepts connections and passes each to the handler that it names. Dropping it stops accepting
/// and closes the open connections, without waiting for their handlers.
pub struct Dispatcher {
    shared: Arc<Shared>,
    /// Held while starting or stopping, so that the two never overlap.
    run: tokio::sync::Mutex<Option<Run>>,
}

/// State shared by the dispatcher and its tasks.
struct Shared {
    options: DispatcherOptions,
    services: Mutex<BTreeMap<String, Service>>,
    places: Arc<Places>,
    blocking_handlers: Arc<Semaphore>,
    refusals: Refusals,
    running: AtomicBool,
}

impl Shared {
    /// Refuses settings and names that could never work.
    fn check(&self) -> Result<()> {
        let DispatcherOptions {
            connections_max,
            connections_reserved,
            ..
        } = self.options;
        if connections_reserved > connections_max {
            let reason = format!(
                "{connections_reserved} reserved connections exceed the limit of {connections_max} \
                 connections"
            );
            return Err(NetError::Configuration { reason });
        }
        lock(&self.services)
            .keys()
            .try_for_each(|name| check_service_name(name))
    }

    /// Counts a connection that was closed before a handler saw it.
    fn refuse(&self, peer: &str, refusal: Refusal) {
        let reason = refusal.reason();
        metrics::counter!("steadfast_connections_refused_total", "reason" => reason).increment(1);
        if refusal == Refusal::HandshakeFailed {
            // Whoever looks whether the port is open ends like this too. What is worth telling was
            // told where it failed.
            tracing::debug!(peer, reason, "a connection was refused");
        } else {
            self.refusals
                .note(reason, peer, &"before it reached a service");
        }
    }
}

#[derive(Clone)]
enum Service {
    Async(Arc<dyn AsyncServiceHandler>),
    Blocking(Arc<dyn ServiceHandler>),
}

impl Service {
    fn is_for_peers(&self) -> bool {
        match self {
            Self::Async(handler) => handler.is_for_peers(),
            Self::Blocking(_) => false,
        }
    }
}

/// One run, from start to stop.
struct Run {
    stopping: CancellationToken,
    accepting: JoinHandle<()>,
}

impl Dispatcher {
    /// A dispatcher without services, not yet started.
    pub fn new(options: DispatcherOptions) -> Self {
        let shared = Shared {
            places: Arc::new(Places::new(&options)),
            blocking_handlers: Arc::new(Semaphore::new(
                options.handlers_blocking_max.min(Semaphore::MAX_PERMITS),
            )),
            services: Mutex::default(),
            refusals: Refusals::default(),
            running: AtomicBool::new(false),
            options,
        };
        Self {
            shared: Arc::new(shared),
            run: tokio::sync::Mutex::default(),
        }
    }

    /// Adds a handler under its own name, replacing any previous one. A name that no client can ask
    /// for makes [`start`](Self::start) fail. Also works while running.
    pub fn register_async(&self, handler: Arc<dyn AsyncServiceHandler>) {
        let name = handler.service_name().to_owned();
        lock(&self.shared.services).insert(name, Service::Async(handler));
    }

    /// Adds a blocking handler under `name`, replacing any previous one. Also works while running.
    ///
    /// # Errors
    ///
    /// [`NetError::Configuration`] for a name that is empty or over
    /// [`MAX_SERVICE_NAME_LEN`](crate::MAX_SERVICE_NAME_LEN) bytes.
    pub fn register(
        &self,
        name: impl Into<String>,
        handler: Arc<dyn ServiceHandler>,
    ) -> Result<()> {
        let name = name.into();
        check_service_name(&name)?;
        self.insert(name, handler);
        Ok(())
    }

    /// Starts accepting connections at `address`, on the current runtime, and returns the bound
    /// address. Only blocking handlers run elsewhere.
    ///
    /// # Errors
    ///
    /// [`NetError::Configuration`] when it is already running, when a registered name does not fit
    /// into a service open, or when more places are reserved than exist; [`NetError::Io`] when the
    /// address cannot be bound.
    pub async fn start(&self, transport: Arc<dyn Transport>, address: &str) -> Result<String> {
        let mut run = self.run.lock().await;
        if run.is_some() {
            return Err(NetError::Configuration {
                reason: "the dispatcher is running".into(),
            });
        }
        self.shared.check()?;
        let listener = transport.bind(address).await?;
        let bound = listener.local_address();
        let stopping = CancellationToken::new();
        let accepting = Accepting {
            shared: Arc::clone(&self.shared),
            transport,
            stopping: stopping.clone(),
            connections: JoinSet::new(),
        };
        self.shared.running.store(true, Ordering::SeqCst);
        *run = Some(Run {
            stopping,
            accepting: process::spawn(accepting.run(listener)),
        });
        Ok(bound)
    }

    /// Stops accepting, closes the open connections, and waits up to
    /// [`stop_timeout`](DispatcherOptions::stop_timeout) for their handlers; async handlers still
    /// running by then are dropped. On return the address is free, and [`start`](Self::start) works
    /// again. Stopping a dispatcher that is not running does nothing.
    pub async fn stop(&self) {
        let mut run = self.run.lock().await;
        if let Some(running) = run.as_mut() {
            self.shared.running.store(false, Ordering::SeqCst);
            running.stopping.cancel();
            if let Err(error) = (&mut running.accepting).await {
                // The runtime that it was started on was shut down first.
                tracing::debug!(%error, "the accept loop ended before it was stopped");
            }
        }
        *run = None;
    }

    /// Where its services note whom they refuse, to be told in the log with those that it refuses
    /// itself.
    pub fn refusals(&self) -> Refusals {
        self.shared.refusals.clone()
    }

    /// Whether it has been started and not stopped since.
    pub fn is_running(&self) -> bool {
        self.shared.running.load(Ordering::SeqCst)
    }

    /// Adds a blocking handler under a name that [`start`](Self::start) checks.
    pub(crate) fn insert(&self, name: String, handler: Arc<dyn ServiceHandler>) {
        lock(&self.shared.services).insert(name, Service::Blocking(handler));
    }
}

impl Drop for Dispatcher {
    fn drop(&mut self) {
        if let Some(run) = self.run.get_mut() {
            run.stopping.cancel();
        }
    }
}

/// The accept loop and the tasks of its connections.
struct Accepting {
    shared: Arc<Shared>,
    transport: Arc<dyn Transport>,
    stopping: CancellationToken,
    connections: JoinSet<()>,
}

impl Accepting {
    async fn run(mut self, mut listener: Box<dyn Listener>) {
        loop {
            tokio::select! {
                biased;
                () = self.stopping.cancelled() => break,
                Some(ended) = self.connections.join_next() => report(ended),
                accepted = listener.accept() => match accepted {
                    Ok((stream, peer)) => self.admit(stream, peer),
                    Err(error) => self.rest_after(error).await,
                },
                never = self.shared.refusals.tell() => match never {},
            }
        }
        drop(listener);
        self.shared.refusals.tell_rest();
        let joining = async {
            while let Some(ended) = self.connections.join_next().await {
                report(ended);
            }
        };
        if timeout(self.shared.options.stop_timeout, joining)
            .await
            .is_err()
        {
            let left = self.connections.len();
            tracing::error!(left, "handlers did not return in time, and are abandoned");
            metrics::counter!("steadfast_handlers_abandoned_total").increment(left as u64);
            self.connections.shutdown().await;
        }
    }

    /// Starts the task of one connection, if there is a place for it.
    fn admit(&mut self, stream: Box<dyn ByteStream>, peer: String) {
        let descriptors = self.transport.descriptors();
        let place = match self.shared.places.admit(&peer, descriptors) {
            Ok(place) => place,
            Err(refusal) => return self.shared.refuse(&peer, refusal),
        };
        let incoming = Incoming {
            shared: Arc::clone(&self.shared),
            transport: Arc::clone(&self.transport),
            stopping: self.stopping.clone(),
            peer,
        };
        self.connections
            .spawn(process::in_current(incoming.serve(stream, place)));
    }

    async fn rest_after(&self, error: NetError) {
        metrics::counter!("steadfast_accept_errors_total").increment(1);
        tracing::warn!(
            %error, source = ?std::error::Error::source(&error),
            "could not accept a connection; accepting continues"
        );
        // Most likely out of descriptors: half-open connections have the least claim to theirs.
        self.shared.places.evict_oldest();
        self.stopping
            .run_until_cancelled(sleep(ACCEPT_RETRY_INTERVAL))
            .await;
    }
}

/// One accepted connection.
struct Incoming {
    shared: Arc<Shared>,
    transport: Arc<dyn Transport>,
    stopping: CancellationToken,
    peer: String,
}

impl Incoming {
    async fn serve(self, stream: Box<dyn ByteStream>, place: Place) {
        let opening = self.stopping.run_until_cancelled(self.open(stream, place));
        let served = match opening.await {
            Some(Ok((Service::Async(handler), name, connection))) => {
                serve_async(&*handler, &name, connection).await;
                Ok(())
            }
            Some(Ok((Service::Blocking(handler), name, connection))) => {
                self.serve_blocking(handler, &name, connection).await
            }
            Some(Err(refusal)) => Err(refusal),
            None => Ok(()),
        };
        if let Err(refusal) = served {
            self.shared.refuse(&self.peer, refusal);
        }
    }

    /// Completes the handshake: returns the requested service, and the connection to serve it on.
    async fn open(
        &self,
        stream: Box<dyn ByteStream>,
        mut place: Place,
    ) -> std::result::Result<(Service, String, Connection), Refusal> {
        let evicted = place.evicted();
        let hearing = timeout(self.shared.options.handshake_timeout, self.hear(stream));
        let (client, name) = match evicted.run_until_cancelled(hearing).await {
            Some(Ok(heard)) => heard?,
            Some(Err(_)) => return Err(Refusal::HandshakeTimeout),
            None => return Err(Refusal::HandshakeEvicted),
        };
        let service = lock(&self.shared.services).get(&name).cloned();
        let service = service.ok_or(Refusal::ServiceUnknown)?;
        let is_peer = client.identity.is_some() || service.is_for_peers();
        place.settle(is_peer, self.transport.descriptors())?;
        let connection = Connection::new(place.hold(client.stream), self.peer.clone())
            .identified(client.identity)
            .closed_by(self.stopping.child_token());
        Ok((service, name, connection))
    }

    async fn hear(
        &self,
        stream: Box<dyn ByteStream>,
    ) -> std::result::Result<(Authenticated, String), Refusal> {
        let authenticated = self.transport.authenticate(stream, &self.peer).await;
        let mut client = authenticated.map_err(|error| {
            match tls::reason_and_cause(&error) {
                Some((reason, cause)) => self.shared.refusals.note(reason, &self.peer, &cause),
                None => {
                    tracing::debug!(peer = self.peer, %error, "a client did not authenticate");
                }
            }
            Refusal::HandshakeFailed
        })?;
        let name = read_service_name(&mut client.stream).await?;
        Ok((client, name))
    }

    async fn serve_blocking(
        &self,
        handler: Arc<dyn ServiceHandler>,
        name: &str,
        connection: Connection,
    ) -> std::result::Result<(), Refusal> {
        let permit = Arc::clone(&self.shared.blocking_handlers).acquire_owned();
        let permit = timeout(self.shared.options.handshake_timeout, permit).await;
        let Ok(Ok(permit)) = permit else {
            return Err(Refusal::HandlersMax);
        };
        let identity = connection.identity().map(str::to_owned);
        let opened = runtime().and_then(|r| Ok((r, BlockingConnection::over(connection)?)));
        let (runtime, channel) = opened.map_err(|error| {
            tracing::error!(%error, "no runtime for a blocking handler");
            Refusal::HandlersMax
        })?;
        let shared = channel.shared();
        let mut handling = runtime.spawn_blocking(move || {
            let handled = catch_unwind(AssertUnwindSafe(|| {
                handler.handle_from(Box::new(channel), identity.as_deref())
            }));
            drop(permit);
            handled
        });
        let handled = tokio::select! {
            biased;
            handled = &mut handling => handled,
            () = self.stopping.cancelled() => {
                if let Some(shared) = shared {
                    shared.close();
                }
                handling.await
            }
        };
        match handled {
            Ok(handled) => report_handled(name, handled),
            Err(error) => tracing::error!(name, %error, "a blocking handler was not run"),
        }
        Ok(())
    }
}

async fn serve_async(handler: &dyn AsyncServiceHandler, name: &str, connection: Connection) {
    let serving = async { handler.serve(connection).await };
    report_handled(name, AssertUnwindSafe(serving).catch_unwind().await);
}

/// Logs and counts how a handler ended.
fn report_handled(service: &str, handled: std::result::Result<Result<()>, Box<dyn Any + Send>>) {
    let service_label = service.to_owned();
    match handled {
        // Most connections end with a channel closed by the peer or by a stop.
        Ok(Ok(()) | Err(NetError::ChannelClosed)) => {}
        Ok(Err(error)) => {
            metrics::counter!("steadfast_handler_failures_total", "service" => service_label)
                .increment(1);
            tracing::warn!(service, %error, "a handler failed");
        }
        Err(panic) => {
            metrics::counter!("steadfast_handler_panics_total", "service" => service_label)
                .increment(1);
            let said = panic.downcast_ref::<&str>().copied().map(str::to_owned);
            let said = said.or_else(|| panic.downcast_ref::<String>().cloned());
            tracing::error!(service, panic = said, "a handler panicked");
        }
    }
}

/// Logs a connection task that failed. Handlers' panics are caught earlier.
fn report(ended: std::result::Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "the task of a connection failed");
    }
}
