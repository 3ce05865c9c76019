//! Clients of etcd at the group that `steadfast dev` starts.

use std::time::Duration;

use super::clients::Etcdctl;
use super::{Node, free_port, node_arguments, run};

/// A group of `dev`, and a client of it; `None` if this machine has none.
fn dev() -> Option<(Node, Etcdctl)> {
    Etcdctl::find()?;
    let node = Node::run("dev", &[]);
    let line = node.wait_for(&["etcdctl --endpoints "]);
    let (_, endpoints) = line.split_once("--endpoints ").expect("they are named");
    let endpoints = endpoints.split(' ').next().expect("a word");
    for _ in 0..3 {
        node.wait_for(&["serves clients on"]);
    }
    let etcdctl = Etcdctl::at(endpoints)?;
    etcdctl.run_at_last(&["endpoint", "health"]);
    Some((node, etcdctl))
}

#[test]
fn etcdctl_works_against_a_group_of_dev() {
    let Some((_node, etcdctl)) = dev() else {
        return;
    };
    assert_eq!(etcdctl.run(&["put", "greeting", "hello"]).trim(), "OK");
    assert_eq!(etcdctl.run(&["get", "greeting"]), "greeting\nhello\n");
    assert_eq!(
        etcdctl.run(&["get", "--prefix", "", "--keys-only"]).trim(),
        "greeting"
    );
    assert_eq!(etcdctl.run(&["del", "greeting"]).trim(), "1");
    let members = etcdctl.run(&["member", "list"]);
    for word in ["n1", "n2", "n3", "started", "http://127.0.0.1:"] {
        assert!(members.contains(word), "{word:?} is not in: {members}");
    }
    let status = etcdctl.run(&["endpoint", "status", "-w", "json"]);
    assert_eq!(status.matches("\"version\":\"3.5.").count(), 3, "{status}");
    let granted = etcdctl.run(&["lease", "grant", "60"]);
    let lease = granted.split(' ').nth(1).expect("an id").to_owned();
    etcdctl.run(&["put", "--lease", &lease, "leased", "value"]);
    assert!(
        etcdctl
            .run(&["lease", "timetolive", "--keys", &lease])
            .contains("leased")
    );
    etcdctl.run(&["lease", "revoke", &lease]);
    assert_eq!(etcdctl.run(&["get", "leased"]), "");
    assert_eq!(etcdctl.run(&["lock", "l", "echo", "held"]).trim(), "held");
    etcdctl.run(&["endpoint", "hashkv"]);
    etcdctl.run(&["defrag"]);
    assert_eq!(etcdctl.run(&["alarm", "list"]).trim(), "");
    let add = ["member", "add", "n4", "--peer-urls", "http://127.0.0.1:1"];
    let (_, text) = etcdctl.try_run(&add, "");
    assert!(text.contains("steadfast token create"), "{text}");
}

#[test]
fn users_of_etcdctl_are_kept_from_what_they_may_not_do() {
    let Some((_node, etcdctl)) = dev() else {
        return;
    };
    etcdctl.run(&["user", "add", "root:secret"]);
    etcdctl.run(&["user", "add", "alice:word"]);
    etcdctl.run(&["role", "add", "reader"]);
    etcdctl.run(&[
        "role",
        "grant-permission",
        "reader",
        "read",
        "a",
        "--prefix",
    ]);
    etcdctl.run(&["user", "grant-role", "alice", "reader"]);
    etcdctl.run(&["user", "grant-role", "root", "root"]);
    assert!(
        etcdctl
            .run(&["auth", "enable"])
            .contains("Authentication Enabled")
    );
    let root = ["--user", "root:secret"];
    etcdctl.run(&[&root[..], &["put", "apple", "red"]].concat());
    let alice = ["--user", "alice:word"];
    assert_eq!(
        etcdctl.run(&[&alice[..], &["get", "apple"]].concat()),
        "apple\nred\n"
    );
    let (_, text) = etcdctl.try_run(&[&alice[..], &["put", "apple", "green"]].concat(), "");
    assert!(text.contains("permission denied"), "{text}");
    etcdctl.run(&[&root[..], &["auth", "disable"]].concat());
    etcdctl.run(&["put", "apple", "green"]);
}

#[test]
fn a_node_tells_why_it_cannot_serve_clients() {
    let dir = tempfile::TempDir::new().expect("a directory");
    let held = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = held.local_addr().expect("bound").to_string();
    let with = |more: &[&str]| {
        let mut arguments = node_arguments("g", "n1", &dir.path().join("data"), free_port());
        arguments.extend(more.iter().map(|&word| word.to_owned()));
        arguments
    };
    let busy = with(&["--client-listen", &taken]);
    super::assert_refused(
        &busy,
        2,
        &["cannot listen for clients on", "in use", "client_listen"],
    );
    drop(held);
    let plain = with(&["--client-listen", "0.0.0.0:0"]);
    super::assert_refused(
        &plain,
        2,
        &["can be reached by other machines", "client_certificate"],
    );
    let half = with(&[
        "--client-listen",
        "127.0.0.1:0",
        "--set",
        "client_key=key.pem",
    ]);
    super::assert_refused(&half, 2, &["client_certificate", "is missing"]);
    let set = |token_ttl| ["--client-listen", "127.0.0.1:0", "--set", token_ttl];
    let none = with(&set("client_token_ttl_s=0"));
    super::assert_refused(&none, 2, &["client_token_ttl_s", "1 to 31536000"]);
    let word = with(&set("client_token_ttl_s=soon"));
    super::assert_refused(&word, 2, &["client_token_ttl_s", "is not a number"]);
    let explained = run(&["config", "explain", "client_security"]);
    assert!(String::from_utf8_lossy(&explained.stdout).contains("plaintext"));
}

#[test]
fn a_node_of_start_serves_clients_on_the_address_of_its_flag() {
    let dir = tempfile::TempDir::new().expect("a directory");
    let data = dir.path().join("data");
    let arguments = |port| {
        let mut arguments = node_arguments("g", "n1", &data, port);
        arguments.extend(["--client-listen", "127.0.0.1:0"].map(str::to_owned));
        arguments
    };
    let node = Node::start(&arguments(free_port()));
    let line = node.wait_for(&["serves clients on"]);
    let (_, address) = line.split_once(" on ").expect("it is named");
    let mut connection = std::net::TcpStream::connect(address.trim()).expect("connected");
    let request = b"GET /version HTTP/1.1\r\nHost: n1\r\nConnection: close\r\n\r\n";
    std::io::Write::write_all(&mut connection, request).expect("sent");
    connection
        .set_read_timeout(Some(Duration::from_secs(20)))
        .expect("a socket");
    let mut answer = String::new();
    std::io::Read::read_to_string(&mut connection, &mut answer).expect("text");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    node.signal("-INT");
    let (status, errors) = node.end();
    assert!(status.success(), "{errors}");
}
