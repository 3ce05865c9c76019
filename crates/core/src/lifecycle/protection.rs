//! How the connections of a node are protected: by TLS, or not at all, which is for loopback.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use steadfast_net::{TlsCredentials, TlsTransport, Transport};

use crate::config::{ConfigError, RepConfig, Security, is_loopback};
use crate::credentials;
use crate::error::OpenError;
use crate::lifecycle::{Lifecycle, lock};
use crate::machine::Machine;

/// How often a node says that its connections are not protected.
const PLAINTEXT_REMINDER: Duration = Duration::from_hours(1);

/// Puts TLS between the machine's network and the node, if the node has credentials.
pub(crate) fn secured(
    config: &RepConfig,
    machine: &mut Machine,
) -> Result<Option<Arc<TlsTransport>>, OpenError> {
    let Security::Tls(credentials) = &config.security else {
        return Ok(None);
    };
    let tls = TlsTransport::new(Arc::clone(&machine.transport), credentials);
    let tls = Arc::new(tls.map_err(|error| ConfigError::new("credentials", error.to_string()))?);
    machine.transport = Arc::clone(&tls) as Arc<dyn Transport>;
    Ok(Some(tls))
}

/// Whether connections at this address are not protected, and other machines can reach it. Anything
/// but a socket address is in memory.
pub(super) fn is_unprotected(config: &RepConfig, address: &str) -> bool {
    let is_open = matches!(config.security, Security::InsecurePlaintext);
    is_open && address.parse::<SocketAddr>().is_ok() && !is_loopback(address)
}

/// Says so at once, and again from time to time, until the node closes.
pub(super) async fn warn_of_plaintext(address: String) {
    loop {
        tracing::warn!(
            address,
            "insecure_plaintext: whoever reaches this address reads and changes everything"
        );
        tokio::time::sleep(PLAINTEXT_REMINDER).await;
    }
}

/// When the certificate of the node ends, if it has one.
pub(super) fn certificate_ends_ms(config: &RepConfig) -> Option<u64> {
    match &config.security {
        Security::Tls(credentials) => credentials::ends_ms(credentials),
        Security::Loopback | Security::InsecurePlaintext => None,
    }
}

impl Lifecycle {
    /// Notes that the node has new credentials.
    pub(crate) fn note_credentials(&self, credentials: &TlsCredentials) {
        *lock(&self.certificate_ends_ms) = credentials::ends_ms(credentials);
    }
}
