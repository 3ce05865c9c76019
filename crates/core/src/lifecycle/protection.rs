//! How the connections of a node are protected: by TLS, or not at all, which is for loopback.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use steadfast_net::{MigratingTransport, TlsCredentials, TlsTransport};

use crate::config::{ConfigError, RepConfig, is_loopback};
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
    let Some(credentials) = config.security.credentials() else {
        return Ok(None);
    };
    let plain = Arc::clone(&machine.transport);
    let tls = TlsTransport::new(Arc::clone(&plain), credentials);
    let tls = Arc::new(tls.map_err(|error| ConfigError::new("credentials", error.to_string()))?);
    let secured = Arc::clone(&tls);
    machine.transport = if config.security.is_insecure() {
        Arc::new(MigratingTransport::new(secured, plain))
    } else {
        secured
    };
    Ok(Some(tls))
}

/// Whether connections at this address are not protected, and other machines can reach it. Anything
/// but a socket address is in memory.
pub(super) fn is_unprotected(config: &RepConfig, address: &str) -> bool {
    let is_open = config.security.is_insecure();
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
    config
        .security
        .credentials()
        .and_then(|credentials| credentials::ends_ms(credentials))
}

impl Lifecycle {
    /// Notes that the node has new credentials.
    pub(crate) fn note_credentials(&self, credentials: &TlsCredentials) {
        *lock(&self.certificate_ends_ms) = credentials::ends_ms(credentials);
    }
}
