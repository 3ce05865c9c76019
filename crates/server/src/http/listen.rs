//! Takes connections until told to stop.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::auth::Peer;
use crate::config::Limits;
use crate::http::Front;
use crate::http::scheme::SchemeTaken;
use crate::http::tls::{Tls, common_name};
use crate::stop::stopped;

/// How long a connection may take to prove who it is.
const HANDSHAKE_MAX: Duration = Duration::from_secs(5);
/// How long a head of HTTP/1.1 may take, the pause since the last request of the connection included.
const HEAD_MAX: Duration = Duration::from_mins(5);
/// How often a connection of HTTP/2 is asked whether it is still there, and how long its answer may
/// take: what is gone without a word holds its watches until then.
const PING_EVERY: Duration = Duration::from_mins(1);
const PING_MAX: Duration = Duration::from_secs(20);
/// How long to wait after a failure to accept, say for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long connections may take to end what they do, when the server closes.
const CLOSE_MAX: Duration = Duration::from_secs(5);
/// Bytes that a client may send on a stream, and on all of a connection, before they are taken.
const STREAM_WINDOW: u32 = 1024 * 1024;
const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;
/// Bytes of answers of a stream that wait for a client to take them.
const SEND_BUFFER: usize = 256 * 1024;

/// Places for connections.
struct Places {
    limits: Limits,
    taken: Mutex<HashMap<IpAddr, usize>>,
}

/// The place of one connection, given back when dropped.
struct Place {
    places: Arc<Places>,
    address: IpAddr,
}

impl Places {
    fn take(self: &Arc<Self>, address: IpAddr) -> Option<Place> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let all: usize = taken.values().sum();
        let here = taken.get(&address).copied().unwrap_or_default();
        if all >= self.limits.connections_max || here >= self.limits.connections_per_address_max {
            return None;
        }
        taken.insert(address, here + 1);
        let places = Arc::clone(self);
        Some(Place { places, address })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self
            .places
            .taken
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(here) = taken.get_mut(&self.address) {
            *here -= 1;
            if *here == 0 {
                taken.remove(&self.address);
            }
        }
    }
}

/// Serves connections until `stop` says so, and then until they have ended, for a while.
pub(crate) async fn serve(
    listener: TcpListener,
    front: Front,
    tls: Option<Tls>,
    limits: Limits,
    mut stop: watch::Receiver<bool>,
) {
    let taken = Mutex::new(HashMap::new());
    let places = Arc::new(Places {
        limits: limits.clone(),
        taken,
    });
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stopped(&mut stop) => break,
            Some(_) = connections.join_next() => continue,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection of a client could not be accepted");
                tokio::select! {
                    () = tokio::time::sleep(ACCEPT_PAUSE) => continue,
                    () = stopped(&mut stop) => break,
                }
            }
        };
        let Some(place) = places.take(address.ip()) else {
            tracing::debug!(%address, "no place for another connection of a client");
            continue;
        };
        let connection = Connection {
            front: front.clone(),
            limits: limits.clone(),
            stop: stop.clone(),
        };
        let acceptor = tls.as_ref().map(Tls::acceptor);
        connections.spawn(async move {
            let _place = place;
            connection.run(stream, address, acceptor).await;
        });
    }
    drop(listener);
    let all_ended = async { while connections.join_next().await.is_some() {} };
    if timeout(CLOSE_MAX, all_ended).await.is_err() {
        connections.shutdown().await;
    }
}

struct Connection {
    front: Front,
    limits: Limits,
    stop: watch::Receiver<bool>,
}

impl Connection {
    async fn run(
        self,
        stream: TcpStream,
        address: SocketAddr,
        acceptor: Option<tokio_rustls::TlsAcceptor>,
    ) {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%address, %error, "a connection of a client is gone");
            return;
        }
        let Some(acceptor) = acceptor else {
            return self.speak(stream, address, Peer { name: None }).await;
        };
        match timeout(HANDSHAKE_MAX, acceptor.accept(stream)).await {
            Ok(Ok(stream)) => {
                let chain = stream.get_ref().1.peer_certificates();
                let name = chain.and_then(<[_]>::first).and_then(common_name);
                let name = name.map(Arc::from);
                self.speak(stream, address, Peer { name }).await;
            }
            Ok(Err(error)) => tracing::debug!(%address, %error, "a client was refused by TLS"),
            Err(_) => tracing::debug!(%address, "the handshake of a client took too long"),
        }
    }

    async fn speak(
        mut self,
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        address: SocketAddr,
        peer: Peer,
    ) {
        let mut http = Builder::new(TokioExecutor::new());
        http.http1()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_MAX);
        http.http2()
            .timer(TokioTimer::new())
            .keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_MAX)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_send_buf_size(SEND_BUFFER)
            .max_concurrent_streams(self.limits.streams_per_connection_max);
        let front = self.front;
        let service = service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(peer.clone());
            let front = front.clone();
            async move { Ok::<_, std::convert::Infallible>(front.answer(request).await) }
        });
        let connection = http.serve_connection(TokioIo::new(SchemeTaken::new(stream)), service);
        tokio::pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = stopped(&mut self.stop) => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%address, %error, "a connection of a client has ended");
        }
    }
}
