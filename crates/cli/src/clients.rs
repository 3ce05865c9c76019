//! Clients of etcd at a node: the keys that configure it, and the server while the node runs.

use std::path::PathBuf;
use std::time::Duration;

use steadfast::ReplicatedEnvironment;
use steadfast::config::{ConfigError, Key, Range};
use steadfast_server::{BeyondLoopback, ServeError, Server, ServerConfig, ServerTls, serve};

use crate::failure::Failure;

/// How often a node that belongs to no group yet looks whether it does.
const GROUP_INTERVAL: Duration = Duration::from_millis(100);

const LISTEN: &str = "client_listen";
const URLS: &str = "client_urls";
const CERTIFICATE: &str = "client_certificate";
const KEY: &str = "client_key";
const AUTHORITY: &str = "client_authority";
const SECURITY: &str = "client_security";
const TOKEN_TTL: &str = "client_token_ttl_s";

/// How long a token may be good: a second to a year.
const TOKEN_TTL_RANGE: Range = Range {
    or_zero: false,
    min: 1,
    max: 365 * 24 * 60 * 60,
};

/// The keys, beside those of the node itself.
pub(crate) const CLIENT_KEYS: &[Key] = &[
    key(
        LISTEN,
        "host:port",
        "none",
        "Address on which this node serves clients of etcd, gRPC and JSON on one port. Without it, it serves none.",
    ),
    key(
        URLS,
        "list of URLs, by commas",
        "the address of `client_listen`",
        "What clients are told to connect to, for example `https://n1.example.com:2379`.",
    ),
    key(
        CERTIFICATE,
        "path",
        "none",
        "Certificate that clients see, in PEM, with those that lead to its authority. With `client_key`; without both, clients speak plaintext. Read again when it changes.",
    ),
    key(KEY, "path", "none", "Key of `client_certificate`, in PEM."),
    key(
        AUTHORITY,
        "path",
        "none",
        "Authorities of clients' certificates, in PEM. With it every client must have a certificate, and the common name in it is the name of a user.",
    ),
    key(
        SECURITY,
        "certificates, tls or plaintext",
        "certificates",
        "What is asked of clients where other machines can reach `client_listen`: a certificate, TLS alone, or nothing. With the last two whoever reaches the port may do everything, until users are enabled.",
    ),
    Key {
        name: TOKEN_TTL,
        unit: "s",
        range: Some(TOKEN_TTL_RANGE),
        default: "300",
        help: "How long the token that a user gets for a password is good after it was last used at a node. Clients ask for another then.",
    },
];

const fn key(
    name: &'static str,
    unit: &'static str,
    default: &'static str,
    help: &'static str,
) -> Key {
    Key {
        name,
        unit,
        range: None,
        default,
        help,
    }
}

/// The configuration of the server, from the values of the keys; `None`, if it serves no clients.
///
/// # Errors
/// When a key is missing, or has a value that it cannot have.
pub(crate) fn configured(
    mut text: impl FnMut(&'static str) -> Option<String>,
    data_dir: Option<PathBuf>,
) -> Result<Option<ServerConfig>, ConfigError> {
    let listen = text(LISTEN);
    let urls = text(URLS);
    let (certificate, key, client_authority) = (text(CERTIFICATE), text(KEY), text(AUTHORITY));
    let (security, token_ttl) = (text(SECURITY), text(TOKEN_TTL));
    let Some(listen) = listen else {
        return Ok(None);
    };
    let missing = |key: &str, with: &str| {
        let problem = format!("is missing: {with} is of no use without it");
        Err(ConfigError::new(key, problem))
    };
    let tls = match (certificate, key) {
        (Some(certificate), Some(key)) => Some(ServerTls {
            certificate: certificate.into(),
            key: key.into(),
            client_authority: client_authority.map(PathBuf::from),
        }),
        (Some(_), None) => return missing(KEY, CERTIFICATE),
        (None, Some(_)) => return missing(CERTIFICATE, KEY),
        (None, None) if client_authority.is_some() => return missing(CERTIFICATE, AUTHORITY),
        (None, None) => None,
    };
    let mut config = ServerConfig::new(listen);
    if let Some(urls) = urls {
        let urls = urls.split(',').map(|url| url.trim().to_owned());
        config.advertise_client_urls = urls.filter(|url| !url.is_empty()).collect();
    }
    if let Some(security) = security {
        let parsed = security.parse::<BeyondLoopback>();
        let parsed = parsed.map_err(|error| ConfigError::new(SECURITY, error.to_string()))?;
        config.beyond_loopback = parsed;
    }
    if let Some(seconds) = token_ttl {
        config.token_ttl = token_ttl_of(&seconds)?;
    }
    config.tls = tls;
    config.data_dir = data_dir;
    Ok(Some(config))
}

fn token_ttl_of(seconds: &str) -> Result<Duration, ConfigError> {
    let Range { min, max, .. } = TOKEN_TTL_RANGE;
    let parsed = seconds.parse().ok();
    let parsed = parsed.filter(|seconds| (min..=max).contains(seconds));
    parsed.map(Duration::from_secs).ok_or_else(|| {
        let problem = format!("is {seconds}, and must be {min} to {max}");
        ConfigError::new(TOKEN_TTL, problem)
    })
}

/// Serves clients as soon as the node belongs to a group.
///
/// # Errors
/// When the address cannot be had, or the files of TLS cannot be used.
pub(crate) async fn serve_when_in_group(
    env: &ReplicatedEnvironment,
    config: &ServerConfig,
) -> Result<Server, Failure> {
    let mut interval = tokio::time::interval(GROUP_INTERVAL);
    loop {
        match serve(env.clone(), config.clone()).await {
            Err(ServeError::Store(_) | ServeError::Auth(_)) => {}
            served => return served.map_err(Failure::from),
        }
        interval.tick().await;
    }
}

impl From<ServeError> for Failure {
    fn from(error: ServeError) -> Self {
        let remedy = match &error {
            ServeError::Listen { .. } => {
                "give client_listen an address of this machine with a port that is free"
            }
            ServeError::Plaintext { .. } => {
                "set client_certificate, client_key and client_authority, or client_security = \"plaintext\""
            }
            ServeError::NoClientAuthority { .. } => {
                "set client_authority, or client_security = \"tls\""
            }
            ServeError::Tls { .. } => "correct the file, or the key that names it",
            _ => "look at the node's log",
        };
        Self::usage(error.to_string(), remedy)
    }
}
