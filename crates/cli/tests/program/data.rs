//! Keys read, written, watched and moved by the program's verbs, at any node of a running group.

use std::fs;
use std::io::Write;
use std::process::{Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use super::{Group, Node, run, run_to, steadfast};

/// Runs a verb that asks the node at `ask`.
fn at(ask: &str, code: i32, words: &[&str]) -> (String, String) {
    run_to(code, &[words, &["--ask", ask]].concat())
}

fn with_input(words: &[&str], input: &[u8]) -> Output {
    let mut child = steadfast()
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program runs");
    let mut stdin = child.stdin.take().expect("a pipe");
    // One that refuses its arguments reads nothing.
    stdin.write_all(input).ok();
    drop(stdin);
    child.wait_with_output().expect("it ends")
}

fn lines(text: &str) -> Vec<&str> {
    text.lines().collect()
}

#[test]
fn keys_are_written_and_read_at_every_node_in_every_format() {
    let group = Group::start();
    group.status_until(0);
    let asks: Vec<_> = group
        .ports
        .iter()
        .map(|port| format!("127.0.0.1:{port}"))
        .collect();
    for (n, ask) in asks.iter().enumerate() {
        let (key, value) = (format!("k{n}"), format!("v{n}"));
        let (said, _) = at(ask, 0, &["put", "d", &key, &value]);
        assert!(said.starts_with("committed as "), "{said}");
        for other in &asks {
            let (found, _) = at(other, 0, &["get", "d", &key]);
            assert_eq!(found, format!("{value}\n"), "{key} at {other}");
        }
    }
    let ask = &asks[0];
    let hex = [
        "put",
        "d",
        "ff00",
        "0a5c",
        "--key-format",
        "hex",
        "--value-format",
        "hex",
    ];
    at(ask, 0, &hex);
    let (json, _) = at(
        ask,
        0,
        &["get", "d", "/wA=", "--key-format", "base64", "-o", "json"],
    );
    let json: Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(
        (&json["key_base64"], &json["value"]),
        (&"/wA=".into(), &"\n\\".into())
    );
    let raw = with_input(&["put", "d", "raw", "--ask", ask], &[0, 0xff, b'\n']);
    assert!(raw.status.success(), "{raw:?}");
    let (_, errors) = at(ask, 1, &["get", "d", "raw"]);
    assert!(errors.contains("--value-format hex"), "{errors}");
    let (found, _) = at(ask, 0, &["get", "d", "raw", "--value-format", "hex"]);
    assert_eq!(found, "00ff0a\n");

    let (rows, _) = at(ask, 0, &["scan", "d"]);
    let all = [
        "k0\tv0",
        "k1\tv1",
        "k2\tv2",
        "raw\t\\x00\\xff\\n",
        "\\xff\\x00\t\\n\\\\",
    ];
    assert_eq!(lines(&rows), all);
    let (rows, _) = at(&asks[1], 0, &["scan", "d", "--prefix", "k", "--limit", "2"]);
    assert_eq!(lines(&rows), all[..2]);
    let (keys, _) = at(&asks[2], 0, &["scan", "d", "--keys-only", "--stale"]);
    assert_eq!(keys.lines().count(), 5);
    let (names, _) = at(ask, 0, &["databases"]);
    assert_eq!(names, "d\n");
}

#[test]
fn what_is_deleted_ended_or_not_there_is_told() {
    let group = Group::start();
    group.status_until(0);
    let ask = &format!("127.0.0.1:{}", group.ports[1]);
    at(ask, 0, &["put", "d", "k0", "v"]);

    at(ask, 0, &["delete", "d", "k0", "k1", "nothing"]);
    for (words, says) in [
        (&["get", "d", "k0"][..], "has no key \"k0\""),
        (&["scan", "e"], "there is no database \"e\""),
        (
            &["export", "-", "--database", "e"],
            "there is no database \"e\"",
        ),
    ] {
        let (_, errors) = at(ask, 1, words);
        assert!(errors.contains(says), "{errors}");
    }
    // One key more than a transaction may write, though they are all the same.
    let many = [vec!["delete", "d"], vec!["k"; 100_001]].concat();
    let (_, errors) = at(ask, 1, &many);
    assert!(
        errors.contains("100,000") || errors.contains("100000"),
        "{errors}"
    );
    let (_, errors) = at(ask, 2, &["get", "d", "0", "--key-format", "hex"]);
    assert!(errors.contains("hexadecimal"), "{errors}");
    let ended = at(ask, 0, &["put", "d", "soon", "gone", "--ttl-ms", "1"]);
    assert!(ended.0.starts_with("committed"), "{ended:?}");
    let deadline = std::time::Instant::now() + super::PATIENCE;
    while run(&["get", "d", "soon", "--ask", ask]).status.success() {
        assert!(std::time::Instant::now() < deadline, "it does not end");
    }
}

#[test]
fn a_watch_prints_each_change_and_goes_on_when_its_node_is_killed() {
    let mut group = Group::start();
    group.status_until(0);
    let asks: Vec<_> = group
        .ports
        .iter()
        .map(|port| format!("127.0.0.1:{port}"))
        .collect();
    at(&asks[1], 0, &["put", "d", "before", "v"]);
    let watched = ["d", "--prefix", "k", "--ask", &asks[0]].map(str::to_owned);
    let watch = Node::run("watch", &watched);
    let everything = ["--ask", &asks[1], "-o", "json"].map(str::to_owned);
    let json = Node::run("watch", &everything);
    // Each begins with what is committed after it: until they have begun, write.
    let begun = |node: &Node, at_node: &str, seen: &str| {
        let deadline = std::time::Instant::now() + super::PATIENCE;
        while !node.lines.try_iter().any(|line| line.contains(seen)) {
            assert!(std::time::Instant::now() < deadline, "it does not begin");
            at(at_node, 0, &["put", "d", "k", "begun"]);
        }
    };
    begun(&watch, &asks[1], "put\td\tk\tbegun");
    begun(&json, &asks[1], "begun");
    at(&asks[2], 0, &["put", "d", "k1", "one"]);
    assert_eq!(watch.wait_for(&["k1"]), "put\td\tk1\tone");
    let change: Value = serde_json::from_str(&json.wait_for(&["k1"])).expect("JSON");
    assert_eq!(change["changes"][0]["change"], "put", "{change}");
    assert_eq!(change["changes"][0]["value"], "one", "{change}");
    group.nodes[0] = None;
    let rest = asks[1..].join(",");
    at(&rest, 0, &["delete", "d", "k1"]);
    at(&rest, 0, &["put", "d", "k2", "two"]);
    assert_eq!(watch.wait_for(&["k1"]), "delete\td\tk1");
    assert_eq!(watch.wait_for(&["k2"]), "put\td\tk2\ttwo");
}

#[test]
fn what_is_exported_is_imported_and_a_line_that_is_no_row_is_named() {
    let group = Group::start();
    group.status_until(0);
    let ask = format!("127.0.0.1:{}", group.ports[0]);
    let dir = TempDir::new().expect("a directory");
    let path = |name: &str| dir.path().join(name).to_str().expect("text").to_owned();
    let line = |n| format!("{{\"key\": \"k{n:04}\", \"value\": \"v{n}\"}}\n");
    let mut input: String = (0..2_500).map(line).collect();
    input += "\n{\"database\": \"other\", \"key_base64\": \"/w==\", \"value\": \"\", \"ttl_ms\": 3600000}\n";
    let imported = with_input(
        &["import", "-", "--database", "d", "--ask", &ask],
        input.as_bytes(),
    );
    let said = String::from_utf8_lossy(&imported.stdout).into_owned();
    assert_eq!(said, "imported 2,501 rows\n", "{imported:?}");
    let exported = path("all.jsonl");
    let (_, said) = at(&ask, 0, &["export", &exported]);
    assert!(said.contains("exported 2,501 rows"), "{said}");
    let (_, said) = at(&ask, 1, &["export", &exported]);
    assert!(said.contains("exists"), "{said}");
    let text = fs::read_to_string(&exported).expect("written");
    let last: Value = serde_json::from_str(text.lines().last().expect("rows")).expect("JSON");
    assert_eq!(last["key_base64"], "/w==", "{last}");
    assert!(last["ttl_ms"].as_u64() > Some(3_000_000), "{last}");
    let (piped, _) = at(&ask, 0, &["export", "-", "--database", "d"]);
    assert_eq!(piped.lines().count(), 2_500);

    at(&ask, 0, &["delete", "d", "k0000", "k2499"]);
    at(&ask, 0, &["import", &exported]);
    let (rows, _) = at(&ask, 0, &["scan", "d"]);
    assert_eq!(rows.lines().count(), 2_500);

    let broken = path("broken.jsonl");
    let line = |n: u32| format!("{{\"database\":\"e\",\"key\":\"{n}\",\"value\":\"\"}}\n");
    let many: String = (0..1_500).map(line).collect();
    fs::write(&broken, many + "{\"key\": 7}\n").expect("written");
    let (_, said) = at(&ask, 1, &["import", &broken]);
    assert!(said.contains("line 1501 of"), "{said}");
    assert!(said.contains("lines 1 to 1000 are committed"), "{said}");
    let (_, said) = at(&ask, 1, &["import", &path("missing")]);
    assert!(said.contains("cannot read"), "{said}");
    let unnamed = with_input(
        &["import", "-", "--ask", &ask],
        b"{\"key\":\"k\",\"value\":\"\"}",
    );
    let said = String::from_utf8_lossy(&unnamed.stderr).into_owned();
    assert!(said.contains("names no database"), "{said}");
}

#[test]
fn databases_of_the_etcd_api_are_marked_and_read_and_never_written() {
    let group = Group::unstarted();
    let listen = ["--client-listen", "127.0.0.1:0"].map(str::to_owned);
    let nodes = (0..3).map(|at| Node::start(&[group.arguments(at), listen.to_vec()].concat()));
    let nodes: Vec<_> = nodes.collect();
    for node in &nodes {
        node.wait_ready();
    }
    let ask = &format!("127.0.0.1:{}", group.ports[1]);
    at(ask, 0, &["put", "d", "k", "v"]);
    let deadline = std::time::Instant::now() + super::PATIENCE;
    // The master of the API writes its first row soon.
    let names = loop {
        let (names, _) = at(ask, 0, &["databases"]);
        if names.contains("etcd/meta") {
            break names;
        }
        assert!(std::time::Instant::now() < deadline, "{names}");
    };
    let lines = lines(&names);
    assert!(lines.contains(&"etcd/meta\tof the etcd API"), "{names}");
    assert!(lines.contains(&"d"), "{names}");
    let (json, _) = at(ask, 0, &["databases", "-o", "json"]);
    let json: Value = serde_json::from_str(&json).expect("JSON");
    let names = json["databases"].as_array().expect("names").len();
    let reserved = json["reserved"].as_array().expect("names");
    assert_eq!(reserved.len(), names - 1, "{json}");

    let (before, _) = at(ask, 0, &["scan", "etcd/meta", "--value-format", "hex"]);
    assert!(before.contains("state"), "{before}");
    for words in [
        &["put", "etcd/meta", "state", ""][..],
        &["put", "etcd/new", "k", "v"],
        &["put", "etcd/leases", "k", "v", "--ttl-ms", "1000"],
        &["delete", "etcd/meta", "state"],
    ] {
        let (_, errors) = at(ask, 1, words);
        assert!(errors.contains("belongs to the etcd API"), "{errors}");
        assert!(errors.contains("nothing was changed"), "{errors}");
    }
    let input = b"{\"database\":\"etcd/meta\",\"key\":\"state\",\"value\":\"\"}\n";
    let own = b"{\"database\":\"d\",\"key\":\"k2\",\"value\":\"\"}\n";
    let imported = with_input(&["import", "-", "--ask", ask], &[&own[..], input].concat());
    let said = String::from_utf8_lossy(&imported.stderr).into_owned();
    assert!(said.contains("belongs to the etcd API"), "{said}");
    assert!(said.contains("nothing was written"), "{said}");
    let (after, _) = at(ask, 0, &["scan", "etcd/meta", "--value-format", "hex"]);
    assert_eq!(after, before);
    let (rows, _) = at(ask, 0, &["scan", "d", "--keys-only"]);
    assert_eq!(rows, "k\n", "a transaction is written whole or not at all");

    let (rows, _) = at(ask, 0, &["export", "-"]);
    assert_eq!(rows.lines().count(), 1, "{rows}");
    let (rows, _) = at(ask, 0, &["export", "-", "--database", "etcd/meta"]);
    assert!(rows.lines().count() >= 1, "{rows}");
}
