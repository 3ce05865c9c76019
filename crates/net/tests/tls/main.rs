//! TLS on real sockets: who is let in as whom, and who is not.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![expect(
    clippy::disallowed_methods,
    reason = "tests are at the edge: bare sockets, the real clock"
)]

mod authority;
#[path = "../dispatcher/counters.rs"]
mod counters;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, SanType};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use steadfast_net::{
    AsyncServiceHandler, BoxFuture, Channel, Connection, Dispatcher, DispatcherOptions, NetError,
    Result, ServiceHandler, TcpTransport, TlsCredentials, TlsTransport, Transport, open_service,
};
use tokio::runtime::Builder;

use crate::authority::{Authority, credentials, naming};
use crate::counters::Counters;

const HOUR: i64 = 3600;

const NAME: &str = "server.test";

/// A service that says whom it believes to serve.
struct WhoAmI;

impl AsyncServiceHandler for WhoAmI {
    fn service_name(&self) -> &'static str {
        "WHO"
    }

    fn serve(&self, connection: Connection) -> BoxFuture<'static, Result<()>> {
        Box::pin(async move {
            let identity = Bytes::from(connection.identity().unwrap_or("nobody").to_owned());
            let (mut sender, mut receiver) = connection.split();
            while receiver.receive().await?.is_some() {
                sender.send(identity.clone()).await?;
            }
            Ok(())
        })
    }
}

/// The same, as a blocking handler.
struct WhoAmIBlocking;

impl ServiceHandler for WhoAmIBlocking {
    fn handle(&self, _channel: Box<dyn Channel>) -> Result<()> {
        unreachable!("the transport asks for proof")
    }

    fn handle_from(&self, channel: Box<dyn Channel>, identity: Option<&str>) -> Result<()> {
        while channel.receive(Duration::from_secs(30))?.is_some() {
            channel.send(identity.unwrap_or("nobody").as_bytes())?;
        }
        Ok(())
    }

    fn service_name(&self) -> &'static str {
        "WHO-BLOCKING"
    }
}

/// A server on loopback with TLS, of one authority.
struct Server {
    authority: Authority,
    transport: Arc<TlsTransport>,
    dispatcher: Dispatcher,
    address: String,
    counters: Counters,
}

impl Server {
    async fn start(counters: Counters) -> Self {
        let authority = Authority::new();
        let mut params = naming("test://node/1");
        // For clients that are not ours, and look at names.
        let name = SanType::DnsName(NAME.try_into().unwrap());
        params.subject_alt_names.push(name);
        let (certificate, key) = authority.issue(&params);
        let own = credentials(&certificate, &key, &authority.pem);
        let transport = Arc::new(over_tcp(&own));
        let dispatcher = Dispatcher::new(DispatcherOptions::default());
        dispatcher.register_async(Arc::new(WhoAmI));
        let blocking = Arc::new(WhoAmIBlocking);
        dispatcher.register("WHO-BLOCKING", blocking).unwrap();
        let started = dispatcher.start(Arc::clone(&transport) as Arc<dyn Transport>, "127.0.0.1:0");
        let address = started.await.unwrap();
        Self {
            authority,
            transport,
            dispatcher,
            address,
            counters,
        }
    }

    /// What the service says to a client with these credentials, and whom the client sees.
    async fn ask(&self, credentials: &TlsCredentials) -> Result<(String, String)> {
        let connection = open_service(&over_tcp(credentials), &self.address, "WHO").await?;
        let server = connection.identity().unwrap().to_owned();
        ask(connection).await.map(|said| (said, server))
    }

    /// Waits until clients were refused this often for this reason: they hear of it first.
    async fn has_refused(&self, reason: &str, times: u64) {
        let name = format!("steadfast_tls_refused_total{{{reason}}}");
        let counted = async {
            while self.counters.value(&name) < times {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let counted = tokio::time::timeout(Duration::from_secs(5), counted).await;
        assert!(counted.is_ok(), "{reason}: {:?}", self.counters);
        assert_eq!(self.counters.value(&name), times, "{reason}");
    }

    /// Has a client fail, the first for this reason.
    async fn refuses(&self, credentials: &TlsCredentials, reason: &str) {
        let refused = self.ask(credentials).await;
        assert!(
            matches!(refused, Err(NetError::Tls { .. } | NetError::ChannelClosed)),
            "{reason}: {refused:?}"
        );
        self.has_refused(reason, 1).await;
    }
}

/// A certificate that is valid from and until so many seconds from now.
fn valid(identity: &str, from: i64, until: i64) -> CertificateParams {
    let now = std::time::SystemTime::now();
    let at = |seconds: i64| {
        let away = Duration::from_secs(seconds.unsigned_abs());
        let at = if seconds < 0 { now - away } else { now + away };
        at.into()
    };
    let mut params = naming(identity);
    (params.not_before, params.not_after) = (at(from), at(until));
    params
}

fn over_tcp(credentials: &TlsCredentials) -> TlsTransport {
    TlsTransport::new(Arc::new(TcpTransport), credentials).unwrap()
}

async fn ask(connection: Connection) -> Result<String> {
    let (mut sender, mut receiver) = connection.split();
    sender.send(Bytes::new()).await?;
    let said = receiver.receive().await?.ok_or(NetError::ChannelClosed)?;
    Ok(String::from_utf8(said.to_vec()).unwrap())
}

fn on_loopback(test: impl AsyncFnOnce(&Server)) {
    let counters = Counters::default();
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    metrics::with_local_recorder(&counters.clone(), || {
        runtime.block_on(async {
            let server = Server::start(counters).await;
            let tested = tokio::time::timeout(Duration::from_secs(30), test(&server));
            tested.await.unwrap();
            server.dispatcher.stop().await;
        });
    });
}

#[test]
fn each_end_sees_the_identity_that_the_other_has_proved() {
    on_loopback(async |server| {
        let client = server.authority.credentials("test://node/2");
        let seen = server.ask(&client).await.unwrap();
        assert_eq!(seen, ("test://node/2".into(), "test://node/1".into()));
        let connection = open_service(&over_tcp(&client), &server.address, "WHO-BLOCKING").await;
        let seen = ask(connection.unwrap()).await.unwrap();
        assert_eq!(seen, "test://node/2");
    });
}

#[test]
fn who_proves_nothing_is_refused_and_counted_by_reason() {
    on_loopback(async |server| {
        let authority = &server.authority;
        let of = |params: &CertificateParams| {
            let (certificate, key) = authority.issue(params);
            credentials(&certificate, &key, &authority.pem)
        };
        let expired = of(&valid("test://node/2", -2 * HOUR, -HOUR));
        let early = of(&valid("test://node/2", HOUR, 2 * HOUR));
        let mut for_servers = naming("test://node/2");
        for_servers.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let (foreign, key) = Authority::new().issue(&naming("test://node/2"));
        let foreign = credentials(&foreign, &key, &authority.pem);
        server.refuses(&expired, "expired").await;
        server.refuses(&early, "not_yet_valid").await;
        server.refuses(&of(&for_servers), "wrong_usage").await;
        server.refuses(&foreign, "unknown_authority").await;
        let known = authority.credentials("test://node/2");
        assert!(server.ask(&known).await.is_ok(), "it goes on for others");
    });
}

#[test]
fn what_is_not_tls_1_3_with_a_certificate_is_refused_and_counted_by_reason() {
    on_loopback(async |server| {
        let address = server.address.clone();
        let plain = address.clone();
        let answer = tokio::task::spawn_blocking(move || {
            let mut stream = TcpStream::connect(plain).unwrap();
            stream.write_all(b"\x03\0\0\0WHO\0\0\0\0").unwrap();
            read_all(&mut stream)
        });
        let answer = answer.await.unwrap();
        assert!(answer.len() < 16, "an alert at most: {answer:?}");
        server.has_refused("not_tls", 1).await;

        for (version, reason) in [
            (&rustls::version::TLS12, "incompatible"),
            (&rustls::version::TLS13, "no_certificate"),
        ] {
            let (address, pem) = (address.clone(), server.authority.pem.clone());
            let talked = tokio::task::spawn_blocking(move || talk(&address, &pem, version));
            assert!(talked.await.unwrap().is_err(), "{reason}");
            server.has_refused(reason, 1).await;
        }
    });
}

/// Asks the service as a client of this TLS version that has no certificate.
fn talk(
    address: &str,
    authority: &str,
    version: &'static rustls::SupportedProtocolVersion,
) -> std::io::Result<Vec<u8>> {
    let mut roots = RootCertStore::empty();
    let authority = CertificateDer::from_pem_slice(authority.as_bytes()).unwrap();
    roots.add(authority).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from(NAME).unwrap();
    let session = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let mut stream = rustls::StreamOwned::new(session, TcpStream::connect(address)?);
    stream.write_all(b"\x03\0\0\0WHO\0\0\0\0")?;
    let mut answer = vec![0; 4];
    stream.read_exact(&mut answer)?;
    Ok(answer)
}

fn read_all(stream: &mut TcpStream) -> Vec<u8> {
    let mut answer = Vec::new();
    // What came before a reset counts too.
    stream.read_to_end(&mut answer).ok();
    answer
}

#[test]
fn a_client_believes_no_server_of_another_authority() {
    on_loopback(async |server| {
        let (certificate, key) = server.authority.issue(&naming("test://node/2"));
        let client = credentials(&certificate, &key, &Authority::new().pem);
        let refused = server.ask(&client).await;
        assert!(matches!(refused, Err(NetError::Tls { .. })), "{refused:?}");
    });
}

#[test]
fn a_certificate_names_one_identity() {
    let authority = Authority::new();
    let mut nobody = naming("test://node/2");
    nobody.subject_alt_names.clear();
    let mut two = naming("test://node/2");
    two.subject_alt_names
        .extend(naming("test://node/3").subject_alt_names);
    let none = "names no identity";
    for (params, says) in [(nobody, none), (naming(""), none), (two, "more than one")] {
        let (certificate, key) = authority.issue(&params);
        let refused = TlsCredentials::from_pem(
            certificate.as_bytes(),
            key.as_bytes(),
            authority.pem.as_bytes(),
        );
        let text = refused.unwrap_err().to_string();
        assert!(text.contains(says), "{text}");
    }
}

#[test]
fn credentials_that_do_not_belong_together_are_refused_before_they_are_used() {
    let authority = Authority::new();
    let (certificate, _) = authority.issue(&naming("test://node/2"));
    let (_, key) = authority.issue(&naming("test://node/2"));
    let mixed = credentials(&certificate, &key, &authority.pem);
    let refused = TlsTransport::new(Arc::new(TcpTransport), &mixed);
    assert!(matches!(
        refused.map(drop),
        Err(NetError::Configuration { .. })
    ));
    let read = |certificate: &[u8], key: &[u8], authority: &[u8]| {
        TlsCredentials::from_pem(certificate, key, authority).map(drop)
    };
    let (certificate, key, authority) = (
        certificate.as_bytes(),
        key.as_bytes(),
        authority.pem.as_bytes(),
    );
    assert!(read(certificate, key, authority).is_ok());
    let two = [authority.trim_ascii_end(), authority].concat();
    let unseen = read(certificate, key, &two).unwrap_err().to_string();
    assert!(unseen.contains("2 certificates begin"), "{unseen}");
    let apart = [authority, authority].concat();
    assert!(read(certificate, key, &apart).is_ok());
    for (certificate, key, authority) in [
        (&b""[..], key, authority),
        (certificate, &b"garbage"[..], authority),
        (
            certificate,
            key,
            &b"-----BEGIN CERTIFICATE-----\ngarbage"[..],
        ),
    ] {
        assert!(matches!(
            read(certificate, key, authority),
            Err(NetError::Configuration { .. })
        ));
    }
}

#[test]
fn new_credentials_are_used_from_the_next_handshake_on_and_open_connections_go_on() {
    on_loopback(async |server| {
        let client = server.authority.credentials("test://node/2");
        let open = open_service(&over_tcp(&client), &server.address, "WHO")
            .await
            .unwrap();
        let next = Authority::new();
        let both = format!("{}{}", server.authority.pem, next.pem);
        let (certificate, key) = next.issue(&naming("test://node/1"));
        server
            .transport
            .replace(&credentials(&certificate, &key, &both))
            .unwrap();
        assert_eq!(ask(open).await.unwrap(), "test://node/2");

        let refused = server.ask(&client).await;
        assert!(
            matches!(refused, Err(NetError::Tls { .. })),
            "it knows the first authority only: {refused:?}"
        );
        for issued_by in [&server.authority, &next] {
            let (certificate, key) = issued_by.issue(&naming("test://node/2"));
            let client = credentials(&certificate, &key, &both);
            assert!(server.ask(&client).await.is_ok());
        }
    });
}
