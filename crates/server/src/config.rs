//! What a server is configured with, and why it may not start.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use crate::store::{OpenStoreError, REQUEST_BYTES_MAX, StoreConfig};

/// The name of what a node publishes of itself for clients: the addresses that they use, by commas.
pub const CLIENT_URLS: &str = "etcd-client-urls";

/// Bytes that a message may have beyond the largest request, before it is not even read.
const MESSAGE_OVERHEAD: usize = 512 * 1024;

/// How a node serves clients.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Where clients connect: `host:port`. Port 0 lets the system choose.
    pub client_listen: String,
    /// What clients are told to connect to, for example `http://10.0.0.1:2379`. Empty: the address
    /// that the server listens on, or if that is every address, the host of the node's own.
    pub advertise_client_urls: Vec<String>,
    /// TLS for clients; `None`: plaintext.
    pub tls: Option<ServerTls>,
    /// What is asked of clients of other machines.
    pub beyond_loopback: BeyondLoopback,
    /// The directory of the node's data, whose size `Status` reports; `None`: it reports how much of
    /// the volume is in use.
    pub data_dir: Option<PathBuf>,
    /// How long a token of a user is good after it was last used at a node.
    pub token_ttl: Duration,
    /// Bounds on what clients can take.
    pub limits: Limits,
    /// How the data is kept.
    pub store: StoreConfig,
}

impl ServerConfig {
    /// Plaintext on this address, and the defaults.
    pub fn new(client_listen: impl Into<String>) -> Self {
        Self {
            client_listen: client_listen.into(),
            advertise_client_urls: Vec::new(),
            tls: None,
            beyond_loopback: BeyondLoopback::default(),
            data_dir: None,
            token_ttl: Duration::from_mins(5),
            limits: Limits::default(),
            store: StoreConfig::default(),
        }
    }
}

/// The files of TLS, in PEM. They are read again when they change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerTls {
    /// The server's certificate, and those that lead to its authority.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// The authorities of clients. With it every client must have a certificate of theirs, and the
    /// common name in it is the name of a user.
    pub client_authority: Option<PathBuf>,
}

/// What a server that other machines can reach asks of its clients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BeyondLoopback {
    /// A certificate.
    #[default]
    Certificates,
    /// TLS alone: whoever reaches the port may do everything, until users are enabled.
    Tls,
    /// Nothing: whoever reaches the port may do everything, until users are enabled, and whoever is
    /// on the way reads all of it.
    Plaintext,
}

/// The text is no [`BeyondLoopback`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is neither certificates, tls nor plaintext")]
pub struct ParseBeyondLoopbackError(String);

impl FromStr for BeyondLoopback {
    type Err = ParseBeyondLoopbackError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "certificates" => Ok(Self::Certificates),
            "tls" => Ok(Self::Tls),
            "plaintext" => Ok(Self::Plaintext),
            _ => Err(ParseBeyondLoopbackError(text.to_owned())),
        }
    }
}

/// Bounds on what clients can take. What goes beyond them is refused.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections of all clients. A further one is closed.
    pub connections_max: usize,
    /// Connections of clients with one address. A kube-apiserver has about 80.
    pub connections_per_address_max: usize,
    /// Calls at a time on one connection of HTTP/2. A client holds a further one back.
    pub streams_per_connection_max: u32,
    /// Bytes of a request.
    pub request_bytes_max: usize,
    /// Bytes of all requests that have begun to come and are not whole yet. A further one is refused.
    pub receiving_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 4096,
            connections_per_address_max: 2048,
            streams_per_connection_max: 16_384,
            request_bytes_max: REQUEST_BYTES_MAX,
            receiving_bytes_max: 256 * 1024 * 1024,
        }
    }
}

impl Limits {
    /// Bytes of a message that is read at all.
    pub(crate) fn message_bytes_max(&self) -> usize {
        self.request_bytes_max.saturating_add(MESSAGE_OVERHEAD)
    }
}

/// Why a server did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The address is none, or cannot be had.
    #[error("cannot listen for clients on {address}: {source}")]
    Listen {
        /// As configured.
        address: String,
        /// What the system says, for example that the port is in use.
        source: std::io::Error,
    },
    /// Other machines could reach the server in plaintext.
    #[error(
        "{address} can be reached by other machines: give a certificate and a key, or allow plaintext"
    )]
    Plaintext {
        /// Where it would have listened.
        address: SocketAddr,
    },
    /// Other machines could reach the server without a certificate.
    #[error(
        "{address} can be reached by other machines: give the authority of clients' certificates, or \
         allow TLS without them"
    )]
    NoClientAuthority {
        /// Where it would have listened.
        address: SocketAddr,
    },
    /// A file of TLS cannot be used.
    #[error("cannot use {} for TLS: {what}", path.display())]
    Tls {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The data cannot be served.
    #[error(transparent)]
    Store(#[from] OpenStoreError),
    /// Users and roles cannot be read.
    #[error("users and roles cannot be read: {0}")]
    Auth(crate::error::Error),
}
