//! What a copy needs of its two sides: that it can reach them, that they are what they should be, users
//! and TLS.

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tempfile::TempDir;

use super::{Copy, RECORD, assert_same, kill, record, until, until_at};
use crate::clients::{Client, Serving};
use crate::{free_port, run};

/// Runs a copy that must fail with a code, saying all of these words.
fn assert_refused(from: &str, to: &str, more: &[&str], code: i32, words: &[&str]) {
    let verb = [
        "etcd",
        "import",
        "--until-caught-up",
        "--from",
        from,
        "--to",
        to,
    ];
    let output = run(&[&verb, more].concat());
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{errors}");
    for word in [words, &["error: ", "data: ", "to do: "]].concat() {
        assert!(errors.contains(word), "{word:?} is not in: {errors}");
    }
}

#[test]
fn what_cannot_be_copied_from_or_to_is_named_and_left_as_it_is() {
    let (source, target) = (Serving::start(), Serving::start());
    let (there, here) = (
        Client::to(&source.endpoints[0]),
        Client::to(&target.endpoints[0]),
    );
    let (from, to) = (source.all(), target.all());
    there.put(b"k", b"v", 0);
    let port = free_port();
    let nobody = format!("127.0.0.1:{port}");
    assert_refused(
        &nobody,
        &to,
        &[],
        1,
        &["cannot be reached", "--from", "2379"],
    );
    let own = format!("127.0.0.1:{}", source.group.ports[0]);
    assert_refused(
        &own,
        &to,
        &[],
        1,
        &["does not answer as etcd does", "--client-listen"],
    );
    assert_refused(&from, &source.endpoints[1], &[], 2, &["are one cluster"]);
    assert_refused("ftp://127.0.0.1:1", &to, &[], 2, &["ftp:// is not known"]);
    assert_refused("https://127.0.0.1:1", &to, &[], 2, &["--from-cacert"]);
    assert_refused(&from, &to, &["--from-user", "root"], 2, &["name:password"]);

    here.put(b"of an application", b"v", 0);
    assert_refused(&from, &to, &[], 1, &["is not empty"]);
    here.delete(b"of an application", b"");
    assert!(here.all(0).is_empty(), "nothing was copied");

    here.put(RECORD, b"no record", 0);
    assert_refused(&from, &to, &[], 1, &["is no record of a copy"]);
}

#[test]
fn two_copies_into_one_target_do_not_mix() {
    let (source, target) = (Serving::start(), Serving::start());
    let (there, here) = (
        Client::to(&source.endpoints[0]),
        Client::to(&target.endpoints[0]),
    );
    let (from, to) = (source.all(), target.all());
    let copy = Copy::start("import", &from, &to, &[]);
    let mark = there.put(b"mark", b"", 0);
    until_at(&here, mark);
    // Two at a time: the later one takes over.
    let run = || record(&here).map(|record| record["run"].clone());
    let first = run();
    let other = Copy::start("import", &from, &to, &[]);
    until("the other takes over", || (run() != first).then_some(()));
    let mark = there.put(b"mark", b"2", 0);
    let (status, errors) = copy.process.end();
    assert!(
        !status.success() && errors.contains("changed by somebody else"),
        "{errors}"
    );
    until_at(&here, mark);
    kill(other);
    let third = Serving::start();
    Client::to(&third.endpoints[0]).put(b"k", b"of another", 0);
    assert_refused(
        &third.all(),
        &to,
        &[],
        1,
        &["part of a copy of another cluster"],
    );
    assert_refused(&to, &third.all(), &[], 1, &["itself the target of a copy"]);

    // What was asked for explicitly.
    let copy = Copy::start(
        "import",
        &third.all(),
        &to,
        &["--start-over", "--until-caught-up"],
    );
    copy.end();
    assert_same(&Client::to(&third.endpoints[0]), 0, &here);
}

#[test]
fn users_of_both_sides_are_needed_where_they_are_enabled() {
    let (source, target) = (Serving::start(), Serving::start());
    let (there, here) = (
        Client::to(&source.endpoints[0]),
        Client::to(&target.endpoints[0]),
    );
    let (from, to) = (source.all(), target.all());
    there.put(b"k", b"v", 0);
    there.enable_users("secret", "alice", "word");
    here.enable_users("other", "bob", "word");
    assert_refused(
        &from,
        &to,
        &[],
        1,
        &["the source has users enabled", "--from-user"],
    );
    let root = ["--from-user", "root:secret"];
    let with = |more: &[&'static str]| [&root[..], more].concat();
    assert_refused(
        &from,
        &to,
        &["--from-user", "root:wrong"],
        1,
        &["correct --from-user"],
    );
    let alice = ["--from-user", "alice:word", "--to-user", "root:other"];
    assert_refused(
        &from,
        &to,
        &alice,
        1,
        &["permission denied", "the role root"],
    );
    assert_refused(
        &from,
        &to,
        &root,
        1,
        &["the target has users enabled", "--to-user"],
    );
    assert_refused(
        &from,
        &to,
        &with(&["--user", "bob:word"]),
        1,
        &["permission denied"],
    );
    let more = with(&["--user", "root:other", "--until-caught-up"]);
    let report = Copy::start("import", &from, &to, &more).end();
    assert_eq!(report["keys"], 1, "{report}");
}

#[test]
fn both_sides_may_speak_tls() {
    let dir = TempDir::new().expect("a directory");
    let path = |name: &str| dir.path().join(name).display().to_string();
    issue(&dir);
    let set = |key: &str, file: &str| ["--set".to_owned(), format!("{key}={}", path(file))];
    let mut more = [
        set("client_certificate", "n.pem"),
        set("client_key", "n-key.pem"),
    ]
    .concat();
    let source = Serving::start_with(&more);
    more.extend(set("client_authority", "ca.pem"));
    let target = Serving::start_with(&more);
    let (from, to) = (source.all(), format!("https://{}", target.endpoints[0]));
    let authority = path("ca.pem");
    let from_flags = ["--from-cacert", &authority];
    let to_flags = [
        "--to-cacert",
        &authority,
        "--to-cert",
        &path("n.pem"),
        "--to-key",
        &path("n-key.pem"),
    ];
    let flags = [&from_flags[..], &to_flags[..]].concat();
    let once = [&flags[..], &["--until-caught-up"]].concat();
    let report = Copy::start("import", &from, &to, &once).end();
    assert_eq!(report["keys"], 0, "{report}");
    let plain = [&to_flags[..], &["--from-user", "a:b"]].concat();
    assert_refused(&from, &to, &plain, 1, &["the source", "--from-cacert"]);
    let without = [&from_flags[..], &["--to-cacert", &authority]].concat();
    assert_refused(&from, &to, &without, 1, &["the target"]);
}

/// An authority, and a certificate for nodes and clients, as files.
fn issue(dir: &TempDir) {
    let write = |name: &str, text: String| {
        std::fs::write(dir.path().join(name), text).expect("written");
    };
    let mut params = CertificateParams::new(Vec::new()).expect("no names");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().expect("a key");
    let authority = params.self_signed(&key).expect("a certificate");
    write("ca.pem", authority.pem());
    let issuer = Issuer::new(params, key);
    let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("a name");
    let key = KeyPair::generate().expect("a key");
    let certificate = params.signed_by(&key, &issuer).expect("a certificate");
    write("n.pem", certificate.pem());
    write("n-key.pem", key.serialize_pem());
}
