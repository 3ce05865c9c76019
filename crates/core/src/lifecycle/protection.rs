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
    let credentials = config.security.credentials();
    credentials.and_then(|credentials| ends_ms(credentials, &config.node))
}

/// When the certificate ends, in milliseconds since 1970. Also sets the gauge, in seconds.
fn ends_ms(credentials: &TlsCredentials, node: &str) -> Option<u64> {
    let ends_ms = credentials::ends_ms(credentials)?;
    // Until the year 2106 it is exact, and what ends after that ends late enough.
    let seconds = u32::try_from(ends_ms / 1_000).map_or(f64::INFINITY, f64::from);
    let gauge = metrics::gauge!(
        "steadfast_certificate_expiry_timestamp_seconds", "node" => node.to_owned()
    );
    gauge.set(seconds);
    Some(ends_ms)
}

impl Lifecycle {
    /// Notes that the node has new credentials.
    pub(crate) fn note_credentials(&self, credentials: &TlsCredentials) {
        *lock(&self.certificate_ends_ms) = ends_ms(credentials, &self.config.node);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use metrics::{
        Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit,
    };

    use super::*;
    use crate::config::access::Holder;
    use crate::credentials::{Authority, VALID_FOR};
    use crate::ids::NodeId;

    /// Keeps the one gauge.
    #[derive(Default)]
    struct Kept(Arc<AtomicU64>);

    impl Recorder for Kept {
        fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
        fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
        fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

        fn register_counter(&self, _: &Key, _: &Metadata<'_>) -> Counter {
            Counter::noop()
        }

        fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
            assert_eq!(key.name(), "steadfast_certificate_expiry_timestamp_seconds");
            let labels: Vec<_> = key.labels().map(|of| (of.key(), of.value())).collect();
            assert_eq!(
                labels,
                [("node", "n1")],
                "nodes of one process set it apart"
            );
            Gauge::from_arc(Arc::clone(&self.0))
        }

        fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
            Histogram::noop()
        }
    }

    #[test]
    fn the_end_of_a_certificate_is_a_metric() {
        const NOW_MS: u64 = 1_800_000_000_000;
        let authority = Authority::create("orders", NOW_MS).expect("made");
        let node = Holder::node("orders", NodeId(1)).expect("valid");
        let issued = authority.issue(&node, VALID_FOR, NOW_MS).expect("issued");
        let texts = [&issued.certificate, &issued.key, &issued.authority];
        let [certificate, key, authority] = texts.map(String::as_bytes);
        let credentials = TlsCredentials::from_pem(certificate, key, authority).expect("good");
        let kept = Kept::default();
        let ends_ms = metrics::with_local_recorder(&kept, || ends_ms(&credentials, "n1"));
        let in_a_year = NOW_MS / 1_000 + VALID_FOR.as_secs();
        assert_eq!(ends_ms, Some(in_a_year * 1_000));
        let gauge = f64::from_bits(kept.0.load(Ordering::Relaxed));
        assert_eq!(gauge.to_string(), in_a_year.to_string());
    }
}
