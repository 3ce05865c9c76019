//! TLS, and what it says of who asks.

use std::path::Path;
use std::sync::Arc;

use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use steadfast::InMemoryGroup;
use steadfast_server::proto::authpb::{Permission, UserAddOptions, permission};
use steadfast_server::proto::etcdserverpb::auth_client::AuthClient;
use steadfast_server::proto::etcdserverpb::kv_client::KvClient;
use steadfast_server::proto::etcdserverpb::{
    AuthEnableRequest, AuthRoleAddRequest, AuthRoleGrantPermissionRequest, AuthUserAddRequest,
    AuthUserGrantRoleRequest, PutRequest,
};
use steadfast_server::{BeyondLoopback, ServeError, ServerConfig, ServerTls, serve};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::Code;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::support::Servers;

/// An authority and what it has signed, as files.
struct Files {
    dir: TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Files {
    fn new() -> Self {
        let dir = TempDir::new().expect("a directory");
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let authority = params.self_signed(&key).expect("a certificate");
        std::fs::write(dir.path().join("ca.pem"), authority.pem()).expect("written");
        let issuer = Issuer::new(params, key);
        let files = Self { dir, issuer };
        files.issue("server");
        files
    }

    /// A certificate with this common name, for loopback.
    fn issue(&self, name: &str) {
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let mut params = CertificateParams::new(names).expect("names");
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        let write = |what: &str, text: String| {
            std::fs::write(self.path(&format!("{name}{what}")), text).expect("written");
        };
        write(".pem", certificate.pem());
        write("-key.pem", key.serialize_pem());
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    fn server(&self, asks: bool) -> ServerTls {
        ServerTls {
            certificate: self.path("server.pem"),
            key: self.path("server-key.pem"),
            client_authority: asks.then(|| self.path("ca.pem")),
        }
    }

    /// How a client connects that is called this, or has no certificate.
    fn client(&self, name: Option<&str>) -> TlsConnector {
        let chain = |path: &Path| -> Vec<CertificateDer<'static>> {
            let read = CertificateDer::pem_file_iter(path).expect("a file");
            read.map(|read| read.expect("a certificate")).collect()
        };
        let mut roots = RootCertStore::empty();
        for authority in chain(&self.path("ca.pem")) {
            roots.add(authority).expect("an authority");
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots);
        let mut config = match name {
            None => builder.with_no_client_auth(),
            Some(name) => {
                let key = self.path(&format!("{name}-key.pem"));
                let key = PrivateKeyDer::from_pem_file(key).expect("a key");
                let chain = chain(&self.path(&format!("{name}.pem")));
                builder.with_client_auth_cert(chain, key).expect("a pair")
            }
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        TlsConnector::from(Arc::new(config))
    }
}

async fn channel(
    servers: &Servers,
    connector: TlsConnector,
) -> Result<Channel, tonic::transport::Error> {
    let address = servers.address(0);
    let connect = tower::service_fn(move |_: Uri| {
        let connector = connector.clone();
        async move {
            let stream = TcpStream::connect(address).await?;
            let name = ServerName::try_from("localhost").expect("a name");
            let stream = connector.connect(name, stream).await?;
            assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
            Ok::<_, std::io::Error>(TokioIo::new(stream))
        }
    });
    Endpoint::from_static("http://localhost")
        .connect_with_connector(connect)
        .await
}

fn put(key: &str) -> PutRequest {
    PutRequest {
        key: key.to_owned().into(),
        ..PutRequest::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_no_certificate_of_the_authority_is_not_served() {
    let (files, others) = (Files::new(), Files::new());
    files.issue("alice");
    others.issue("alice");
    let servers = Servers::configured(1, |config| config.tls = Some(files.server(true))).await;
    let known = channel(&servers, files.client(Some("alice")))
        .await
        .expect("connected");
    KvClient::new(known).put(put("a")).await.expect("put");

    // A refused certificate shows with the first request: the client's handshake ends before.
    let refused = match channel(&servers, files.client(None)).await {
        Ok(channel) => KvClient::new(channel).put(put("a")).await.is_err(),
        Err(_) => true,
    };
    assert!(refused, "without a certificate");
    let stranger = channel(&servers, others.client(Some("alice"))).await;
    assert!(stranger.is_err(), "of another authority");
    let plain = Endpoint::from_shared(format!("http://{}", servers.address(0)));
    let plain = plain.expect("an address").connect().await;
    let refused = match plain {
        Ok(channel) => KvClient::new(channel).put(put("a")).await.is_err(),
        Err(_) => true,
    };
    assert!(refused, "in plaintext");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_common_name_of_a_certificate_is_the_name_of_a_user() {
    let files = Files::new();
    for name in ["root", "alice", "bob"] {
        files.issue(name);
    }
    let servers = Servers::configured(1, |config| config.tls = Some(files.server(true))).await;
    let root = channel(&servers, files.client(Some("root")))
        .await
        .expect("connected");
    let mut auth = AuthClient::new(root);
    for name in ["root", "alice"] {
        let options = Some(UserAddOptions { no_password: true });
        let user = AuthUserAddRequest {
            name: name.to_owned(),
            options,
            ..AuthUserAddRequest::default()
        };
        auth.user_add(user).await.expect("added");
    }
    auth.role_add(AuthRoleAddRequest {
        name: "role".to_owned(),
    })
    .await
    .expect("added");
    let perm = Permission {
        perm_type: permission::Type::Write.into(),
        key: "alices".into(),
        ..Permission::default()
    };
    let grant = AuthRoleGrantPermissionRequest {
        name: "role".to_owned(),
        perm: Some(perm),
    };
    auth.role_grant_permission(grant).await.expect("granted");
    for (user, role) in [("alice", "role"), ("root", "root")] {
        let grant = AuthUserGrantRoleRequest {
            user: user.to_owned(),
            role: role.to_owned(),
        };
        auth.user_grant_role(grant).await.expect("granted");
    }
    auth.auth_enable(AuthEnableRequest {})
        .await
        .expect("enabled");

    let alice = channel(&servers, files.client(Some("alice")))
        .await
        .expect("connected");
    let mut alice = KvClient::new(alice);
    alice.put(put("alices")).await.expect("permitted");
    let refused = alice.put(put("roots")).await.expect_err("not permitted");
    assert_eq!(refused.code(), Code::PermissionDenied);
    let bob = channel(&servers, files.client(Some("bob")))
        .await
        .expect("connected");
    let refused = KvClient::new(bob)
        .put(put("alices"))
        .await
        .expect_err("no such user");
    assert_eq!(refused.code(), Code::PermissionDenied);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_that_are_wrong_and_tls_without_an_authority_beyond_loopback_are_refused() {
    let files = Files::new();
    let group = InMemoryGroup::new_async(1).await.expect("a group");
    let env = group.node("n1").expect("it runs").clone();
    let mut config = ServerConfig::new("127.0.0.1:0");
    config.tls = Some(ServerTls {
        key: files.path("none.pem"),
        ..files.server(false)
    });
    let refused = serve(env.clone(), config.clone())
        .await
        .err()
        .expect("no key");
    assert!(matches!(&refused, ServeError::Tls { path, .. } if path.ends_with("none.pem")));
    config.client_listen = "0.0.0.0:0".to_owned();
    config.tls = Some(files.server(false));
    let refused = serve(env.clone(), config.clone())
        .await
        .err()
        .expect("no authority");
    assert!(
        matches!(refused, ServeError::NoClientAuthority { .. }),
        "{refused}"
    );
    config.beyond_loopback = BeyondLoopback::Tls;
    serve(env, config).await.expect("allowed").close().await;
}
