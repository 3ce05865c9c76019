//! TLS 1.3 over any other transport, with a certificate at both ends.
//!
//! An end is known by one URI in the subject alternative names of its certificate, its *identity*.
//! Names and addresses of hosts prove nothing here and are not looked at. Every handshake is a full
//! one: there are no tickets and there is no early data, so a certificate is checked each time, and
//! nothing can be replayed.
//!
//! | metric | counts |
//! | --- | --- |
//! | `steadfast_tls_refused_total{reason}` | clients that failed the handshake |

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, PeerIncompatible, RootCertStore,
    ServerConfig, SignatureScheme,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use webpki::EndEntityCert;

use crate::connection::ByteStream;
use crate::descriptors::Descriptors;
use crate::error::{NetError, Result};
use crate::lock::lock;
use crate::transport::{Authenticated, BoxFuture, Connected, Listener, Transport};

/// Time limit for a handshake, seen by the client. The server's is that of its dispatcher.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a client that was refused may take to read why.
const LINGER: Duration = Duration::from_secs(1);

/// The most that is read meanwhile of what it had sent.
const UNREAD_BYTES_MAX: usize = 64 * 1024;

/// The label of a certificate that names nobody.
const NO_IDENTITY: &str = "no_identity";

/// How a certificate begins in a PEM text.
const PEM_BEGIN: &[u8] = b"-----BEGIN CERTIFICATE-----";

/// What one end proves its identity with, and whom it believes.
pub struct TlsCredentials {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    authorities: Vec<CertificateDer<'static>>,
    identity: String,
}

impl TlsCredentials {
    /// Reads PEM texts: the certificate of this end followed by those between it and an authority,
    /// its private key, and the certificates of the authorities that may vouch for the other end.
    ///
    /// # Errors
    ///
    /// [`NetError::Configuration`] when one of them is missing or malformed, or when the
    /// certificate names not exactly one identity.
    pub fn from_pem(certificates: &[u8], key: &[u8], authorities: &[u8]) -> Result<Self> {
        let chain = read_certificates("certificate", certificates)?;
        let authorities = read_certificates("certificate of an authority", authorities)?;
        let key = PrivateKeyDer::from_pem_slice(key)
            .map_err(|error| invalid(format!("the private key cannot be read: {error}")))?;
        let identity = identity_of(&chain[0]).map_err(invalid)?;
        Ok(Self {
            chain,
            key,
            authorities,
            identity,
        })
    }

    /// The same from DER: one certificate, its private key (PKCS #8), and the authorities.
    ///
    /// # Errors
    ///
    /// As [`from_pem`](Self::from_pem).
    pub fn from_der(
        certificate: &[u8],
        key: &[u8],
        authorities: &[impl AsRef<[u8]>],
    ) -> Result<Self> {
        let owned = |der: &[u8]| CertificateDer::from(der.to_vec());
        let chain = vec![owned(certificate)];
        let identity = identity_of(&chain[0]).map_err(invalid)?;
        Ok(Self {
            chain,
            key: PrivatePkcs8KeyDer::from(key.to_vec()).into(),
            authorities: authorities.iter().map(|der| owned(der.as_ref())).collect(),
            identity,
        })
    }

    /// The certificate of this end, in DER.
    pub fn certificate(&self) -> &[u8] {
        &self.chain[0]
    }

    /// The identity that the certificate of this end names.
    pub fn identity(&self) -> &str {
        &self.identity
    }
}

/// Shows no key.
impl fmt::Debug for TlsCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsCredentials")
            .field("identity", &self.identity)
            .finish_non_exhaustive()
    }
}

/// Another transport, with TLS on each of its streams.
pub struct TlsTransport {
    inner: Arc<dyn Transport>,
    identity: String,
    ends: Mutex<Ends>,
}

/// How the next handshakes are made.
#[derive(Clone)]
struct Ends {
    client: TlsConnector,
    server: TlsAcceptor,
}

impl TlsTransport {
    /// TLS over `inner`.
    ///
    /// # Errors
    ///
    /// [`NetError::Configuration`] when the key does not belong to the certificate.
    pub fn new(inner: Arc<dyn Transport>, credentials: &TlsCredentials) -> Result<Self> {
        Ok(Self {
            inner,
            identity: credentials.identity.clone(),
            ends: Mutex::new(Ends::new(credentials)?),
        })
    }

    /// Uses these credentials from the next handshake on. Open connections go on.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new), and when they name another identity. The earlier credentials then stay
    /// in use.
    pub fn replace(&self, credentials: &TlsCredentials) -> Result<()> {
        let (own, new) = (&self.identity, &credentials.identity);
        if own != new {
            return Err(invalid(format!(
                "the certificate names {new}, and not {own}"
            )));
        }
        let ends = Ends::new(credentials)?;
        *lock(&self.ends) = ends;
        Ok(())
    }

    fn ends(&self) -> Ends {
        lock(&self.ends).clone()
    }

    /// Connects; `None` if the other end closes instead of a handshake, as one does that uses no TLS.
    pub(crate) async fn try_connect(&self, address: &str) -> Result<Option<Connected>> {
        let Connected {
            stream, address, ..
        } = self.inner.connect(address).await?;
        let doing = authenticating(&address);
        // The name is not sent, and not checked.
        let name = ServerName::try_from("steadfast").expect("a host name");
        let handshake = self.ends().client.connect(name, stream);
        let stream = match timeout(HANDSHAKE_TIMEOUT, handshake).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) if is_end(&error) => return Ok(None),
            Ok(Err(error)) => return Err(NetError::io(doing, error)),
            Err(_) => return Err(NetError::DeadlineExceeded { doing }),
        };
        let (_, session) = stream.get_ref();
        let identity = proven(session.peer_certificates());
        let identity = identity.map_err(|why| failed(&doing, why))?;
        Ok(Some(Connected {
            stream: Box::new(stream),
            address,
            identity: Some(identity),
        }))
    }
}

fn authenticating(address: &str) -> String {
    format!("authenticate with {address}")
}

impl Transport for TlsTransport {
    fn connect<'a>(&'a self, address: &'a str) -> BoxFuture<'a, Result<Connected>> {
        Box::pin(async move {
            let connected = self.try_connect(address).await?;
            connected.ok_or_else(|| {
                let why = "it ended the handshake; it may not use TLS".to_owned();
                failed(&authenticating(address), why)
            })
        })
    }

    fn bind<'a>(&'a self, address: &'a str) -> BoxFuture<'a, Result<Box<dyn Listener>>> {
        self.inner.bind(address)
    }

    fn authenticate<'a>(
        &'a self,
        stream: Box<dyn ByteStream>,
        peer: &'a str,
    ) -> BoxFuture<'a, Result<Authenticated>> {
        Box::pin(async move {
            let doing = format!("authenticate {peer}");
            let accepted = self.ends().server.accept(stream).into_fallible().await;
            let stream = match accepted {
                Ok(stream) => stream,
                Err((error, stream)) => {
                    refuse(reason(&error));
                    let_it_read(stream).await;
                    return Err(NetError::io(doing, error));
                }
            };
            let (_, session) = stream.get_ref();
            let identity = proven(session.peer_certificates());
            let identity = identity.map_err(|why| {
                refuse(NO_IDENTITY);
                failed(&doing, why)
            })?;
            Ok(Authenticated {
                stream: Box::new(stream),
                identity: Some(identity),
            })
        })
    }

    fn descriptors(&self) -> Option<Descriptors> {
        self.inner.descriptors()
    }
}

impl Ends {
    fn new(credentials: &TlsCredentials) -> Result<Self> {
        let provider = Arc::new(ring::default_provider());
        let mut roots = RootCertStore::empty();
        for authority in &credentials.authorities {
            let added = roots.add(authority.clone());
            added.map_err(|error| unusable(&error))?;
        }
        let roots = Arc::new(roots);
        let (chain, key) = (&credentials.chain, &credentials.key);
        Ok(Self {
            client: client(&provider, &roots, chain.clone(), key.clone_key())
                .map_err(|error| unusable(&error))?,
            server: server(&provider, &roots, chain.clone(), key.clone_key())?,
        })
    }
}

fn client(
    provider: &Arc<CryptoProvider>,
    roots: &Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> std::result::Result<TlsConnector, rustls::Error> {
    let verifier = SignedByAuthority {
        roots: Arc::clone(roots),
        algorithms: provider.signature_verification_algorithms,
    };
    let mut config = ClientConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_auth_cert(chain, key)?;
    config.enable_sni = false;
    config.resumption = Resumption::disabled();
    Ok(TlsConnector::from(Arc::new(config)))
}

fn server(
    provider: &Arc<CryptoProvider>,
    roots: &Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<TlsAcceptor> {
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), Arc::clone(provider))
            .build()
            .map_err(|error| unusable(&error))?;
    let versions = ServerConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(&[&rustls::version::TLS13]);
    let mut config = versions
        .map_err(|error| unusable(&error))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .map_err(|error| unusable(&error))?;
    config.send_tls13_tickets = 0;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Believes a server whose certificate an authority has signed, for servers and for now. Whom it
/// names is for the caller to judge.
#[derive(Debug)]
struct SignedByAuthority {
    roots: Arc<RootCertStore>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for SignedByAuthority {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        verify_server_cert_signed_by_trust_anchor(
            &ParsedCertificate::try_from(end_entity)?,
            &self.roots,
            intermediates,
            now,
            self.algorithms.all,
        )?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        Err(PeerIncompatible::ServerDoesNotSupportTls12Or13.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// The certificates in a PEM text, at least one.
fn read_certificates(what: &str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>> {
    let read: std::result::Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let begun = pem.windows(PEM_BEGIN.len()).filter(|at| *at == PEM_BEGIN);
    let begun = begun.count();
    match read {
        Ok(certificates) if certificates.is_empty() => {
            Err(invalid(format!("there is no {what} in it")))
        }
        // A file that was appended to one without a newline at its end would go unseen.
        Ok(certificates) if certificates.len() != begun => Err(invalid(format!(
            "{begun} certificates begin in it, and {} are whole: each BEGIN and END needs a line of \
             its own",
            certificates.len()
        ))),
        Ok(certificates) => Ok(certificates),
        Err(error) => Err(invalid(format!("the {what} cannot be read: {error}"))),
    }
}

/// The identity that a verified chain proves.
fn proven(chain: Option<&[CertificateDer<'_>]>) -> std::result::Result<String, String> {
    let leaf = chain.and_then(<[_]>::first);
    identity_of(leaf.ok_or("it sent no certificate")?)
}

/// The one URI among the subject alternative names of a certificate.
pub(crate) fn identity_of(certificate: &CertificateDer<'_>) -> std::result::Result<String, String> {
    let certificate = EndEntityCert::try_from(certificate)
        .map_err(|error| format!("the certificate cannot be read: {error}"))?;
    let mut names = certificate.valid_uri_names();
    match (names.next(), names.next()) {
        (Some(name), None) if !name.is_empty() => Ok(name.to_owned()),
        (_, None) => Err("the certificate names no identity, which is a URI".to_owned()),
        (_, Some(_)) => Err("the certificate names more than one identity".to_owned()),
    }
}

/// Why a handshake failed, as a label. What is counted is what the other end did: an alert that it
/// sent says what it thinks of this end.
fn reason(error: &io::Error) -> &'static str {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref());
    let Some(tls) = tls else {
        return "connection_lost";
    };
    match tls {
        rustls::Error::NoCertificatesPresented => "no_certificate",
        rustls::Error::InvalidCertificate(why) => match why {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => "expired",
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "not_yet_valid"
            }
            CertificateError::UnknownIssuer => "unknown_authority",
            CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
                "wrong_usage"
            }
            _ => "invalid_certificate",
        },
        rustls::Error::InvalidMessage(_) => "not_tls",
        rustls::Error::PeerIncompatible(_) => "incompatible",
        rustls::Error::AlertReceived(_) => "refused_by_client",
        _ => "protocol",
    }
}

/// Lets a client that was refused read why: if what it has sent were left unread, the connection would
/// be reset, and whoever was still writing would not get to the alert.
async fn let_it_read(mut stream: Box<dyn ByteStream>) {
    let linger = async {
        stream.shutdown().await?;
        let mut bytes = [0; 1024];
        let mut left = UNREAD_BYTES_MAX;
        while left > 0 {
            match stream.read(&mut bytes).await? {
                0 => break,
                read => left = left.saturating_sub(read),
            }
        }
        io::Result::Ok(())
    };
    // However it ends, the connection is closed.
    timeout(LINGER, linger).await.ok();
}

/// Why a client did not authenticate, as a label, and what caused it; `None` if it was not for TLS,
/// as when the client has gone.
pub(crate) fn reason_and_cause(error: &NetError) -> Option<(&'static str, String)> {
    let NetError::Tls { source, .. } = error else {
        return None;
    };
    let of_handshake = source.downcast_ref().map(reason);
    Some((of_handshake.unwrap_or(NO_IDENTITY), source.to_string()))
}

/// Whether the other end has gone.
fn is_end(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
    )
}

fn refuse(reason: &'static str) {
    metrics::counter!("steadfast_tls_refused_total", "reason" => reason).increment(1);
}

fn invalid(reason: String) -> NetError {
    NetError::Configuration { reason }
}

fn unusable(error: &dyn fmt::Display) -> NetError {
    invalid(format!("the certificates and key cannot be used: {error}"))
}

fn failed(doing: &str, why: String) -> NetError {
    NetError::Tls {
        doing: doing.to_owned(),
        source: why.into(),
    }
}
