//! A server on an in-memory network, its clients, and transports that misbehave.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use steadfast_net::{
    AsyncServiceHandler, Authenticated, BoxFuture, ByteStream, Connected, Connection, Descriptors,
    Dispatcher, DispatcherOptions, FrameReceiver, FrameSender, Listener, MemoryNetwork, NetError,
    Result, Transport, open_service,
};
use tokio::time::Instant;

use crate::counters::Counters;

pub(crate) const ADDRESS: &str = "server:7400";

/// A dispatcher, the network it is on, and what it counts.
pub(crate) struct Server {
    pub(crate) dispatcher: Dispatcher,
    pub(crate) network: MemoryNetwork,
    pub(crate) counters: Counters,
}

impl Server {
    pub(crate) fn new(options: DispatcherOptions, counters: Counters) -> Self {
        Self {
            dispatcher: Dispatcher::new(options),
            network: MemoryNetwork::new(),
            counters,
        }
    }

    /// A running server with an echo service.
    pub(crate) async fn started(options: DispatcherOptions, counters: Counters) -> Self {
        let server = Self::new(options, counters);
        server.dispatcher.register_async(echo_service());
        server.start().await;
        server
    }

    pub(crate) async fn start(&self) {
        let bound = self
            .dispatcher
            .start(self.network.host("server"), ADDRESS)
            .await;
        assert_eq!(bound.unwrap(), ADDRESS);
    }

    pub(crate) fn register<F, S>(&self, name: &str, serve: F)
    where
        F: Fn(Connection) -> S + Send + Sync + 'static,
        S: Future<Output = Result<()>> + Send + 'static,
    {
        self.dispatcher
            .register_async(Arc::new(Service(name.into(), serve)));
    }

    pub(crate) async fn dial(&self, from: &str) -> Box<dyn ByteStream> {
        let connected = self.network.host(from).connect(ADDRESS).await;
        connected.unwrap().stream
    }

    pub(crate) async fn open(&self, from: &str, service: &str) -> Client {
        let connection = open_service(&*self.network.host(from), ADDRESS, service)
            .await
            .unwrap();
        let (sender, receiver) = connection.split();
        Client { sender, receiver }
    }

    /// A client of the echo service, once there is room for it.
    pub(crate) async fn open_until_served(&self, from: &str) -> Client {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let mut client = self.open(from, "ECHO").await;
            if client.echoes().await {
                return client;
            }
            assert!(Instant::now() < deadline, "no place came free");
            tokio::task::yield_now().await;
        }
    }

    pub(crate) fn refused(&self, reason: &str) -> u64 {
        self.counters
            .value(&format!("steadfast_connections_refused_total{{{reason}}}"))
    }
}

pub(crate) struct Client {
    pub(crate) sender: FrameSender,
    pub(crate) receiver: FrameReceiver,
}

impl Client {
    /// Whether the other end is an echo service, and not closed.
    pub(crate) async fn echoes(&mut self) -> bool {
        if self.sender.send(Bytes::from_static(b"ping")).await.is_err() {
            return false;
        }
        match self.receiver.receive().await {
            Ok(Some(frame)) => frame == b"ping"[..],
            Ok(None) | Err(_) => false,
        }
    }
}

/// A service made of a function.
struct Service<F>(String, F);

impl<F, S> AsyncServiceHandler for Service<F>
where
    F: Fn(Connection) -> S + Send + Sync + 'static,
    S: Future<Output = Result<()>> + Send + 'static,
{
    fn service_name(&self) -> &str {
        &self.0
    }

    fn serve(&self, connection: Connection) -> BoxFuture<'static, Result<()>> {
        Box::pin((self.1)(connection))
    }
}

pub(crate) async fn echo(connection: Connection) -> Result<()> {
    let (mut sender, mut receiver) = connection.split();
    while let Some(frame) = receiver.receive().await? {
        sender.send(frame).await?;
    }
    Ok(())
}

pub(crate) fn echo_service() -> Arc<dyn AsyncServiceHandler> {
    Arc::new(Service("ECHO".into(), echo))
}

/// An echo service for peers.
pub(crate) struct ForPeers;

impl AsyncServiceHandler for ForPeers {
    fn service_name(&self) -> &'static str {
        "PEERS"
    }

    fn is_for_peers(&self) -> bool {
        true
    }

    fn serve(&self, connection: Connection) -> BoxFuture<'static, Result<()>> {
        Box::pin(echo(connection))
    }
}

/// A transport for a process with a hundred descriptors.
pub(crate) struct Scarce {
    transport: Arc<dyn Transport>,
    left: AtomicUsize,
}

impl Scarce {
    pub(crate) fn new(transport: Arc<dyn Transport>) -> Arc<Self> {
        let left = AtomicUsize::new(100);
        Arc::new(Self { transport, left })
    }

    pub(crate) fn leave(&self, descriptors: usize) {
        self.left.store(descriptors, Ordering::SeqCst);
    }
}

impl Transport for Scarce {
    fn connect<'a>(&'a self, address: &'a str) -> BoxFuture<'a, Result<Connected>> {
        self.transport.connect(address)
    }

    fn bind<'a>(&'a self, address: &'a str) -> BoxFuture<'a, Result<Box<dyn Listener>>> {
        self.transport.bind(address)
    }

    fn descriptors(&self) -> Option<Descriptors> {
        Some(Descriptors {
            max: 100,
            used: 100 - self.left.load(Ordering::SeqCst),
        })
    }
}

/// A transport whose clients prove their names when these say that they are members.
pub(crate) struct MembersOnly(pub(crate) Arc<dyn Transport>);

impl Transport for MembersOnly {
    fn connect<'a>(&'a self, address: &'a str) -> BoxFuture<'a, Result<Connected>> {
        self.0.connect(address)
    }

    fn bind<'a>(&'a self, address: &'a str) -> BoxFuture<'a, Result<Box<dyn Listener>>> {
        self.0.bind(address)
    }

    fn authenticate<'a>(
        &'a self,
        stream: Box<dyn ByteStream>,
        peer: &'a str,
    ) -> BoxFuture<'a, Result<Authenticated>> {
        Box::pin(async move {
            if peer == "impostor" {
                return Err(NetError::Tls {
                    doing: "check".into(),
                    source: "forged".into(),
                });
            }
            let identity = peer.starts_with("member").then(|| peer.to_owned());
            Ok(Authenticated { stream, identity })
        })
    }
}

pub(crate) const ACCEPT_ERRORS: u64 = 100;

/// A transport whose listeners fail this many times before they accept anything.
pub(crate) struct Failing(pub(crate) Arc<dyn Transport>);

impl Transport for Failing {
    fn connect<'a>(&'a self, address: &'a str) -> BoxFuture<'a, Result<Connected>> {
        self.0.connect(address)
    }

    fn bind<'a>(&'a self, address: &'a str) -> BoxFuture<'a, Result<Box<dyn Listener>>> {
        Box::pin(async move {
            let listener = self.0.bind(address).await?;
            Ok(Box::new(FailingListener {
                listener,
                left: ACCEPT_ERRORS,
            }) as Box<dyn Listener>)
        })
    }
}

struct FailingListener {
    listener: Box<dyn Listener>,
    left: u64,
}

impl Listener for FailingListener {
    fn local_address(&self) -> String {
        self.listener.local_address()
    }

    fn accept(&mut self) -> BoxFuture<'_, Result<(Box<dyn ByteStream>, String)>> {
        if self.left == 0 {
            return self.listener.accept();
        }
        self.left -= 1;
        let source = std::io::Error::other("out of descriptors");
        Box::pin(async {
            Err(NetError::Io {
                doing: "accept".into(),
                source,
            })
        })
    }
}
