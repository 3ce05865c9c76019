//! The handshakes of strangers: certificates that should not be believed, and bare TLS clients.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    SanType, date_time_ymd,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::version::{TLS12, TLS13};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, Error, SignatureScheme, StreamOwned,
};

use super::PATIENCE;
use super::wire::{Hello, Peer, Refusal};

/// The version of TLS with which a client asks.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Handshake {
    Tls12,
    Tls13,
}

/// Signs certificates that say what the test wants.
pub(super) struct Forger(Issuer<'static, KeyPair>);

/// What a client shows: certificate and key, or nothing.
pub(in super::super) struct Papers(Option<(String, String)>);

impl Forger {
    /// With the key of the group's own authority.
    pub(super) fn of_group(authority: &str) -> Self {
        let read = |name: &str| {
            let path = Path::new(authority).join(name);
            fs::read_to_string(path).expect("a file of the authority")
        };
        let key = KeyPair::from_pem(&read("authority-key.pem")).expect("a key");
        let issuer = Issuer::from_ca_cert_pem(&read("authority.pem"), key);
        Self(issuer.expect("an authority"))
    }

    /// With the key of an authority that nobody knows.
    pub(super) fn stranger() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params
            .distinguished_name
            .push(DnType::CommonName, "stranger");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        Self(Issuer::new(params, KeyPair::generate().expect("a key")))
    }

    pub(super) fn valid(&self, identity: &str) -> Papers {
        self.sign(&naming(identity))
    }

    pub(super) fn expired(&self, identity: &str) -> Papers {
        let mut params = naming(identity);
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2021, 1, 1);
        self.sign(&params)
    }

    pub(super) fn not_yet_valid(&self, identity: &str) -> Papers {
        let mut params = naming(identity);
        params.not_before = date_time_ymd(2090, 1, 1);
        self.sign(&params)
    }

    pub(super) fn for_servers_only(&self, identity: &str) -> Papers {
        let mut params = naming(identity);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.sign(&params)
    }

    pub(super) fn of_nobody(&self) -> Papers {
        let mut params = naming("steadfast://g/node/3");
        params.subject_alt_names.clear();
        self.sign(&params)
    }

    fn sign(&self, params: &CertificateParams) -> Papers {
        let key = KeyPair::generate().expect("a key");
        let signed = params.signed_by(&key, &self.0).expect("signed");
        Papers(Some((signed.pem(), key.serialize_pem())))
    }
}

/// A certificate for either end, valid now.
fn naming(identity: &str) -> CertificateParams {
    let mut params = CertificateParams::new(Vec::new()).expect("no names");
    let identity = identity.try_into().expect("ASCII");
    params.subject_alt_names = vec![SanType::URI(identity)];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    params
}

impl Papers {
    pub(super) fn none() -> Self {
        Self(None)
    }

    /// Those in a directory of credentials.
    pub(in super::super) fn read(dir: &str) -> Self {
        let read = |name: &str| fs::read_to_string(Path::new(dir).join(name)).expect("a file");
        Self(Some((read("certificate.pem"), read("key.pem"))))
    }

    /// Sends bytes inside a handshake that may fail, and returns what comes back inside.
    pub(super) fn ask(&self, address: &str, version: Handshake, bytes: &[u8]) -> Vec<u8> {
        let mut stream = self.connect(address, version);
        // The server may have refused already.
        stream.write_all(bytes).ok();
        stream.flush().ok();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).ok();
        answer
    }

    /// What a node answers to this hello.
    pub(super) fn hello(&self, address: &str, hello: &Hello, service: &str) -> Refusal {
        Peer::open(self.connect(address, Handshake::Tls13), hello, service).1
    }

    /// A connection on which this hello was accepted.
    pub(super) fn peer(&self, address: &str, hello: &Hello, service: &str) -> Peer {
        let stream = self.connect(address, Handshake::Tls13);
        let (peer, refusal) = Peer::open(stream, hello, service);
        assert_eq!(refusal, Refusal::None, "{hello:?}");
        peer
    }

    /// Says hello to a node that may be too busy for it, and then sends garbage.
    pub(in super::super) fn try_garbage(&self, address: &str, hello: &Hello, garbage: &[u8]) {
        let Ok(stream) = TcpStream::connect(address) else {
            return;
        };
        let stream = self.over(stream, Handshake::Tls13);
        let (mut peer, _) = Peer::open(stream, hello, "ELECTION");
        peer.write(garbage);
        peer.receive();
    }

    fn connect(&self, address: &str, version: Handshake) -> Secure {
        let stream = TcpStream::connect(address).expect("it listens");
        self.over(stream, version)
    }

    fn over(&self, stream: TcpStream, version: Handshake) -> Secure {
        stream.set_read_timeout(Some(PATIENCE)).expect("set");
        StreamOwned::new(self.session(version), stream)
    }

    fn session(&self, version: Handshake) -> ClientConnection {
        let versions: &[_] = match version {
            Handshake::Tls12 => &[&TLS12],
            Handshake::Tls13 => &[&TLS13],
        };
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(versions)
            .expect("versions of the provider")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Gullible));
        let config = match &self.0 {
            None => config.with_no_client_auth(),
            Some((certificate, key)) => {
                let certificate = CertificateDer::from_pem_slice(certificate.as_bytes());
                let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("a key");
                let chain = vec![certificate.expect("a certificate")];
                config.with_client_auth_cert(chain, key).expect("a pair")
            }
        };
        let name = ServerName::try_from("stranger").expect("a name");
        ClientConnection::new(Arc::new(config), name).expect("a session")
    }
}

/// A connection with TLS.
pub(super) type Secure = StreamOwned<ClientConnection, TcpStream>;

/// The first bytes that a client of TLS 1.3 sends.
pub(in super::super) fn client_hello() -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut session = Papers::none().session(Handshake::Tls13);
    session.write_tls(&mut bytes).expect("into memory");
    bytes
}

/// Believes every server: it is the server's judgement that is tested.
#[derive(Debug)]
struct Gullible;

impl ServerCertVerifier for Gullible {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let algorithms = ring::default_provider().signature_verification_algorithms;
        algorithms.supported_schemes()
    }
}
