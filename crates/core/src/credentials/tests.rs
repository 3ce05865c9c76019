//! What is promised of credentials: by files in a real directory, and by handshakes.

#![expect(clippy::disallowed_methods, reason = "tests look at files")]

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use rcgen::{CertificateParams, KeyPair, SanType};
use steadfast_net::{
    AsyncServiceHandler, BoxFuture, Connection, Dispatcher, DispatcherOptions, MemoryNetwork,
    NetError, Transport, open_service,
};
use tempfile::TempDir;

use super::*;
use crate::config::access::{Access, Holder};
use crate::ids::NodeId;

const NOW_MS: u64 = 1_800_000_000_000;
const MINUTE_MS: u64 = 60_000;
const YEAR_MS: u64 = 365 * 24 * 60 * MINUTE_MS;

fn node(id: u64) -> Holder {
    Holder::node("orders", NodeId(id)).expect("valid")
}

fn authority() -> Authority {
    Authority::create("orders", NOW_MS).expect("made")
}

/// A directory for tests, in which `n1` has the credentials of node 1.
fn with_node() -> (TempDir, PathBuf) {
    let root = TempDir::new().expect("a directory");
    let dir = root.path().join("n1");
    let issued = authority().issue(&node(1), VALID_FOR, NOW_MS);
    issued.expect("issued").write(&dir).expect("written");
    (root, dir)
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).expect("set");
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("there").permissions().mode() & 0o7777
}

#[test]
fn what_is_issued_is_read_back_for_the_time_for_which_it_was_issued() {
    let (_root, dir) = with_node();
    let credentials = read(&dir, NOW_MS).expect("usable");
    assert_eq!(credentials.identity().parse(), Ok(node(1)));
    let described = describe(&dir).expect("readable");
    assert_eq!(described.subject, Subject::Holder(node(1)));
    assert_eq!(described.not_before_ms, NOW_MS - 10 * MINUTE_MS);
    assert_eq!(described.not_after_ms, NOW_MS + YEAR_MS);
    for usable in [described.not_before_ms, described.not_after_ms] {
        assert!(read(&dir, usable).is_ok());
    }
    match read(&dir, described.not_before_ms - 1) {
        Err(CredentialsError::NotYetValid { not_before_ms, .. }) => {
            assert_eq!(not_before_ms, described.not_before_ms);
        }
        other => panic!("{other:?}"),
    }
    match read(&dir, described.not_after_ms + 1) {
        Err(error @ CredentialsError::Expired { not_after_ms, .. }) => {
            assert_eq!(not_after_ms, described.not_after_ms);
            assert!(error.to_string().contains("2028-01-15"), "{error}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn only_their_owner_can_read_what_is_written_and_a_key_that_others_may_use_is_refused() {
    let (root, dir) = with_node();
    let of_authority = root.path().join("authority");
    authority().write(&of_authority).expect("written");
    assert_eq!([mode(&dir), mode(&of_authority)], [0o700; 2]);
    let key = of_authority.join(AUTHORITY_KEY_FILE);
    for name in [CERTIFICATE_FILE, KEY_FILE, AUTHORITY_FILE] {
        assert_eq!(mode(&dir.join(name)), 0o600, "{name}");
    }
    assert_eq!(mode(&key), 0o600);
    for open in [0o640, 0o604, 0o660, 0o644] {
        set_mode(&dir.join(KEY_FILE), open);
        match read(&dir, NOW_MS) {
            Err(error @ CredentialsError::OpenKey { mode, .. }) => {
                assert_eq!(mode, open);
                let remedy = format!("chmod 600 {}", dir.join(KEY_FILE).display());
                assert!(error.to_string().contains(&remedy), "{error}");
            }
            other => panic!("{open:o}: {other:?}"),
        }
        set_mode(&key, open);
        let refused = Authority::read(&of_authority);
        assert!(matches!(refused, Err(CredentialsError::OpenKey { .. })));
    }
    set_mode(&dir.join(KEY_FILE), 0o400);
    assert!(read(&dir, NOW_MS).is_ok());
}

#[test]
fn an_authority_is_read_back_and_signs_for_its_own_group_and_no_longer_than_it_lives() {
    let root = TempDir::new().expect("a directory");
    let dir = root.path().join("authority");
    let made = authority();
    made.write(&dir).expect("written");
    let authority = Authority::read(&dir).expect("usable");
    assert_eq!(authority.group(), "orders");
    assert_eq!(authority.fingerprint(), made.fingerprint());
    let issued = authority.issue(&node(2), VALID_FOR, NOW_MS);
    assert_eq!(issued.expect("issued").authority, made_pem(&dir));
    let described = describe(&dir).expect("readable");
    let group = "orders".to_owned();
    assert_eq!(described.subject, Subject::Authority { group });
    assert_eq!(described.fingerprint, authority.fingerprint());

    let other = Holder::new("other", Access::Node, "1").expect("valid");
    match authority.issue(&other, VALID_FOR, NOW_MS) {
        Err(CredentialsError::OtherGroup { group, holder }) => {
            assert_eq!((group.as_str(), holder), ("orders", other));
        }
        refused => panic!("{refused:?}"),
    }
    let whole = Duration::from_millis(described.not_after_ms - NOW_MS);
    assert!(authority.issue(&node(1), whole, NOW_MS).is_ok());
    for (too_long, now_ms) in [
        (whole + Duration::from_secs(1), NOW_MS),
        (whole, NOW_MS + 1_000),
        (Duration::MAX, u64::MAX),
    ] {
        let refused = authority.issue(&node(1), too_long, now_ms);
        assert!(
            matches!(refused, Err(CredentialsError::OutlivesAuthority { not_after_ms }) if not_after_ms == described.not_after_ms)
        );
    }
    let never = Authority::create("orders", u64::MAX);
    assert!(matches!(never, Err(CredentialsError::Signing { .. })));
    let nameless = Authority::create("a b", NOW_MS);
    assert!(matches!(nameless, Err(CredentialsError::Signing { .. })));
}

fn made_pem(dir: &Path) -> String {
    fs::read_to_string(dir.join(AUTHORITY_FILE)).expect("there")
}

#[test]
fn nothing_is_overwritten_and_nothing_is_left_half_made() {
    let (root, dir) = with_node();
    let before = fs::read(dir.join(KEY_FILE)).expect("there");
    let again = authority().issue(&node(1), VALID_FOR, NOW_MS);
    let refused = again.expect("issued").write(&dir);
    assert!(matches!(refused, Err(CredentialsError::NotEmpty { path }) if path == dir));
    assert_eq!(fs::read(dir.join(KEY_FILE)).expect("there"), before);
    let refused = authority().write(&dir);
    assert!(matches!(refused, Err(CredentialsError::NotEmpty { .. })));

    let cut_off = root.path().join("cut-off");
    let failed = make_directory(&cut_off, |dir| {
        authority().write(&dir.join("authority"))?;
        Err(CredentialsError::signing(&"on purpose"))
    });
    assert!(failed.is_err());
    assert_eq!(names(root.path()), ["n1"]);
    // An empty directory is taken over.
    fs::create_dir(&cut_off).expect("made");
    authority().write(&cut_off).expect("written");
    assert_eq!(names(root.path()), ["cut-off", "n1"]);
    assert_eq!(mode(&cut_off), 0o700);
    for nameless in ["..", "/"] {
        assert!(authority().write(Path::new(nameless)).is_err());
    }
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).expect("a directory");
    let mut names: Vec<_> = entries
        .map(|entry| {
            entry
                .expect("read")
                .file_name()
                .into_string()
                .expect("text")
        })
        .collect();
    names.sort();
    names
}

#[test]
fn a_file_that_is_missing_or_malformed_is_named() {
    let (_root, dir) = with_node();
    for name in [CERTIFICATE_FILE, KEY_FILE, AUTHORITY_FILE] {
        let path = dir.join(name);
        let whole = fs::read(&path).expect("there");
        fs::remove_file(&path).expect("removed");
        match read(&dir, NOW_MS) {
            Err(CredentialsError::Missing { path: missing }) => assert_eq!(missing, path),
            other => panic!("{name}: {other:?}"),
        }
        let long = vec![b'x'; 1024 * 1024 + 1];
        for bad in [&b""[..], b"nonsense", &whole[..whole.len() / 2], &long] {
            fs::write(&path, bad).expect("written");
            set_mode(&path, 0o600);
            match read(&dir, NOW_MS) {
                Err(CredentialsError::Malformed { path: named, .. }) => assert_eq!(named, path),
                other => panic!("{name}: {other:?}"),
            }
        }
        fs::write(&path, whole).expect("written");
    }
    assert!(read(&dir, NOW_MS).is_ok());

    // Appended without a newline between the two.
    let path = dir.join(AUTHORITY_FILE);
    let whole = fs::read(&path).expect("read");
    let unseen = [whole.trim_ascii_end(), &whole].concat();
    fs::write(&path, unseen).expect("written");
    match read(&dir, NOW_MS) {
        Err(CredentialsError::Malformed { path: named, .. }) => assert_eq!(named, path),
        other => panic!("{other:?}"),
    }
}

#[test]
fn files_that_do_not_belong_together_are_refused() {
    let (root, dir) = with_node();
    let other = authority().issue(&node(1), VALID_FOR, NOW_MS);
    let other = other.expect("issued");
    fs::write(dir.join(KEY_FILE), &other.key).expect("written");
    let refused = read(&dir, NOW_MS);
    assert!(matches!(refused, Err(CredentialsError::Unusable { .. })));

    let of_authority = root.path().join("authority");
    authority().write(&of_authority).expect("written");
    fs::write(of_authority.join(AUTHORITY_FILE), &other.authority).expect("written");
    let refused = Authority::read(&of_authority);
    assert!(matches!(refused, Err(CredentialsError::Malformed { .. })));
}

#[test]
fn a_certificate_of_somebody_else_names_no_holder_and_is_refused() {
    let (_root, dir) = with_node();
    let path = dir.join(CERTIFICATE_FILE);
    let names = |uris: &[&str]| {
        let key = KeyPair::generate().expect("a key");
        let uri = |uri: &&str| SanType::URI((*uri).try_into().expect("text"));
        let mut params = CertificateParams::default();
        params.subject_alt_names = uris.iter().map(uri).collect();
        params.self_signed(&key).expect("signed").pem()
    };
    fs::write(&path, names(&["spiffe://orders/node/1"])).expect("written");
    for refused in [read(&dir, NOW_MS).err(), describe(&dir).err()] {
        match refused {
            Some(CredentialsError::NoHolder { path: named, .. }) => assert_eq!(named, path),
            other => panic!("{other:?}"),
        }
    }
    let own = node(1).to_string();
    for uris in [&[][..], &[&own, "steadfast://orders/admin/a"]] {
        fs::write(&path, names(uris)).expect("written");
        let refused = read(&dir, NOW_MS);
        assert!(matches!(refused, Err(CredentialsError::Malformed { .. })));
    }
}

#[test]
fn the_authority_that_has_signed_is_told_from_others_that_are_believed() {
    let (root, dir) = with_node();
    let next = root.path().join("next");
    authority().write(&next).expect("written");
    let both = made_pem(&next) + &made_pem(&dir);
    fs::write(dir.join(AUTHORITY_FILE), both).expect("written");
    let described = describe(&dir).expect("readable");
    let [new, old] = &described.authorities[..] else {
        panic!("{described:?}");
    };
    assert_eq!([new.has_signed, old.has_signed], [false, true]);
    assert_ne!(new.name, old.name);
    assert_ne!(new.fingerprint, old.fingerprint);
    assert!(described.key_is_here);
    let alone = describe(&dir.join(CERTIFICATE_FILE)).expect("readable");
    assert!(!alone.key_is_here && alone.authorities.is_empty());
    assert_eq!(alone.fingerprint, described.fingerprint);
}

#[test]
fn no_key_is_shown() {
    let authority = authority();
    let issued = authority.issue(&node(1), VALID_FOR, NOW_MS);
    let issued = issued.expect("issued");
    let shown = format!("{authority:?} {issued:?}");
    assert!(!shown.contains("PRIVATE") && !shown.contains(&issued.key));
}

/// A service that says whom it serves.
struct WhoAmI;

impl AsyncServiceHandler for WhoAmI {
    fn service_name(&self) -> &'static str {
        "WHO"
    }

    fn serve(&self, connection: Connection) -> BoxFuture<'static, Result<(), NetError>> {
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

/// Two hosts with credentials that these authorities have issued: whom the server sees, and whom the
/// client.
async fn meet(server: &Issued, client: &Issued) -> Result<[String; 2], NetError> {
    let network = MemoryNetwork::new();
    let end = |host: &str, issued: &Issued| {
        let [certificate, key, authority] =
            [&issued.certificate, &issued.key, &issued.authority].map(String::as_bytes);
        let credentials = TlsCredentials::from_pem(certificate, key, authority).expect("usable");
        Arc::new(TlsTransport::new(network.host(host), &credentials).expect("usable"))
    };
    let (server, client) = (end("server", server), end("client", client));
    let dispatcher = Dispatcher::new(DispatcherOptions::default());
    dispatcher.register_async(Arc::new(WhoAmI));
    let started = dispatcher.start(server as Arc<dyn Transport>, "server:1");
    let address = started.await.expect("it listens");
    let connection = open_service(&*client, &address, "WHO").await?;
    let seen = connection.identity().expect("authenticated").to_owned();
    let (mut sender, mut receiver) = connection.split();
    sender.send(Bytes::from_static(b"?")).await?;
    let said = receiver.receive().await?.expect("an answer");
    let said = String::from_utf8(said.to_vec()).expect("text");
    Ok([said, seen])
}

#[tokio::test]
async fn what_one_authority_has_issued_makes_handshakes_and_what_another_has_does_not() {
    let now_ms = real_now_ms();
    let create = || Authority::create("orders", now_ms).expect("made");
    let (own, other) = (create(), create());
    let issue = |authority: &Authority, holder: &Holder| {
        let issued = authority.issue(holder, VALID_FOR, now_ms);
        issued.expect("issued")
    };
    let server = issue(&own, &node(1));
    for access in Access::ALL {
        let holder = Holder::new("orders", access, "2").expect("valid");
        let met = meet(&server, &issue(&own, &holder))
            .await
            .expect("they meet");
        assert_eq!(met, [holder.to_string(), node(1).to_string()]);
        assert!(meet(&server, &issue(&other, &holder)).await.is_err());
        let serves = meet(&issue(&own, &holder), &server).await.is_ok();
        assert_eq!(serves, access == Access::Node, "{access} as a server");
    }
}

fn real_now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    u64::try_from(since.expect("after 1970").as_millis()).expect("a number")
}
