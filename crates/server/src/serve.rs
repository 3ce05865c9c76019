//! A server from start to end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use steadfast::ReplicatedEnvironment;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::auth::Auth;
use crate::config::{BeyondLoopback, CLIENT_URLS, ServeError, ServerConfig};
use crate::etcd::{self, Node};
use crate::http::tls::Tls;
use crate::http::{Front, listen};
use crate::store::{OpenStoreError, Store};

/// How long a node may take until it can tell its group.
const GROUP_WITHIN: Duration = Duration::from_secs(2);

/// A running server. Dropped without [`Server::close`], it ends without waiting for its clients.
pub struct Server {
    address: SocketAddr,
    node: Arc<Node>,
    stop: watch::Sender<bool>,
    /// `None` when closed.
    serving: Option<JoinHandle<()>>,
    publishing: JoinHandle<()>,
}

/// Serves the etcd v3 API on this environment, whose node belongs to a group already, until
/// [`Server::close`]. The addresses for clients become part of the node's metadata, so that every
/// node can tell them.
///
/// # Errors
/// See [`ServeError`]; nothing is left running.
pub async fn serve(env: ReplicatedEnvironment, config: ServerConfig) -> Result<Server, ServeError> {
    let failed = |source| ServeError::Listen {
        address: config.client_listen.clone(),
        source,
    };
    let listener = TcpListener::bind(&config.client_listen)
        .await
        .map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    check_protection(address, &config)?;
    let tls = config.tls.as_ref().map(Tls::read).transpose()?;
    let store = open_store(&env, &config).await?;
    let timeout = config.store.request_timeout;
    let auth = match Auth::open(store.clone(), config.token_ttl, timeout).await {
        Ok(auth) => auth,
        Err(error) => {
            store.close().await;
            return Err(ServeError::Auth(error));
        }
    };
    let (stop, stopping) = watch::channel(false);
    let node = Arc::new(Node {
        env: env.clone(),
        store,
        auth,
        limits: config.limits.clone(),
        data_dir: config.data_dir.clone(),
        stopping: stopping.clone(),
    });
    let urls = client_urls(&env, &config, address);
    let publishing = tokio::spawn(publish(env, urls));
    let front = Front::new(etcd::routes(&node), Arc::clone(&node));
    let serving = listen::serve(listener, front, tls, config.limits, stopping);
    Ok(Server {
        address,
        node,
        stop,
        serving: Some(tokio::spawn(serving)),
        publishing,
    })
}

impl Server {
    /// Where it listens, with the port that the system chose.
    pub fn local_address(&self) -> SocketAddr {
        self.address
    }

    /// Takes no more connections, lets requests end for at most 5 s, and ends. The environment stays
    /// open.
    pub async fn close(mut self) {
        self.stop.send_replace(true);
        self.publishing.abort();
        if let Some(serving) = self.serving.take()
            && let Err(error) = serving.await
        {
            tracing::warn!(%error, "the server for clients has not ended as it should");
        }
        self.node.auth.close();
        self.node.store.clone().close().await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        self.publishing.abort();
        if let Some(serving) = self.serving.take() {
            serving.abort();
            self.node.auth.close();
        }
    }
}

/// Opens the store. A node that is ready may take a moment until it can tell its group.
async fn open_store(
    env: &ReplicatedEnvironment,
    config: &ServerConfig,
) -> Result<Store, ServeError> {
    if let Err(error) = env.wait_group_async(GROUP_WITHIN).await {
        tracing::debug!(%error, "no group to serve clients of");
        return Err(OpenStoreError::NoGroup.into());
    }
    Ok(Store::open(env.clone(), config.store.clone()).await?)
}

/// Other machines must not reach a server that proves or asks less than its configuration says.
fn check_protection(address: SocketAddr, config: &ServerConfig) -> Result<(), ServeError> {
    if address.ip().is_loopback() {
        return Ok(());
    }
    match (&config.tls, config.beyond_loopback) {
        (_, BeyondLoopback::Plaintext) | (Some(_), BeyondLoopback::Tls) => Ok(()),
        (None, _) => Err(ServeError::Plaintext { address }),
        (Some(tls), BeyondLoopback::Certificates) if tls.client_authority.is_none() => {
            Err(ServeError::NoClientAuthority { address })
        }
        (Some(_), BeyondLoopback::Certificates) => Ok(()),
    }
}

/// What clients are told to connect to.
fn client_urls(
    env: &ReplicatedEnvironment,
    config: &ServerConfig,
    address: SocketAddr,
) -> Vec<String> {
    if !config.advertise_client_urls.is_empty() {
        return config.advertise_client_urls.clone();
    }
    let scheme = if config.tls.is_some() {
        "https"
    } else {
        "http"
    };
    if !address.ip().is_unspecified() {
        return vec![format!("{scheme}://{address}")];
    }
    let own = env.status().node.address;
    let host = own.rsplit_once(':').map_or(&*own, |(host, _)| host);
    vec![format!("{scheme}://{host}:{}", address.port())]
}

/// Publishes the addresses for clients beside what the node publishes already. The environment goes
/// on trying until the group has them.
async fn publish(env: ReplicatedEnvironment, urls: Vec<String>) {
    let mut metadata = env.status().node.metadata;
    let urls = urls.join(",");
    if metadata.get(CLIENT_URLS) == Some(&urls) {
        return;
    }
    metadata.insert(CLIENT_URLS.to_owned(), urls);
    if let Err(error) = env.set_metadata_async(metadata).await {
        tracing::warn!(%error, "the addresses for clients are not published yet");
    }
}
