//! `steadfast verify` and `doctor` on a group of real processes, one of which has something wrong.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use bytes::Bytes;
use serde_json::Value;
use steadfast::engine::{
    Change, Direction, EngineBatch, EngineFactory, KeyRange, NoxuFactory, ScanLimit, StorageEngine,
};
use steadfast::ids::DatabaseId;

use super::{Group, Node, PATIENCE, node_arguments, run, run_to, write_everywhere};

/// A group whose writes are all in every engine.
fn written_group() -> Group {
    let mut group = Group::unstarted();
    for at in [1, 2] {
        group.nodes[at] = Some(Node::start(&group.arguments(at)));
    }
    let env = group.embed();
    Group::make_master(&env);
    let _token = write_everywhere(&env, |txn| {
        let database = txn.database("orders")?;
        (0..1000_u32).try_for_each(|n| database.put(format!("k{n:04}"), "v"))
    });
    // A close flushes.
    env.close().expect("closed");
    for at in [1, 2] {
        group.nodes[at].as_ref().expect("it runs").signal("-INT");
        let node = group.nodes[at].take().expect("it runs");
        assert!(node.end().0.success());
    }
    group
}

/// In each node's engine: digests of what its databases must hold.
const DIGESTS: DatabaseId = DatabaseId(u32::MAX);

/// Gives a stopped node's engine a row that no log has, and makes the node trust it, as a directory
/// written by an earlier version may do.
fn alter(data_dir: &Path, key: &'static str) {
    let factory = NoxuFactory {
        cache_bytes: 16 << 20,
    };
    let engine = factory.open(&data_dir.join("engine")).expect("opened");
    let applied = engine.applied().expect("open").expect("a batch");
    let holds = |engine: &dyn StorageEngine, database| {
        let range = KeyRange::prefix(b"k0");
        let found = engine.scan(database, range, Direction::Forward, ScanLimit::keys(1));
        !found.expect("read").is_empty()
    };
    let databases = engine.databases().expect("open").into_iter();
    let database = databases
        .rev()
        .find(|database| holds(&*engine, *database))
        .expect("the database");
    let change = Change::Put(Bytes::from_static(b"altered"));
    let changes = vec![(database, Bytes::from_static(key.as_bytes()), change)];
    engine
        .apply(&EngineBatch { applied, changes })
        .expect("altered");
    assert!(engine.reclaim(DIGESTS, usize::MAX).expect("open"));
    engine.close().expect("closed");
    fs::remove_file(data_dir.join("digest")).expect("it was there");
}

/// Flips a bit of the byte at `at` in the first file of `dir` with this extension.
fn rot(dir: &Path, extension: &str, at: usize) -> PathBuf {
    let names = fs::read_dir(dir).expect("a directory");
    let files = names.map(|entry| entry.expect("an entry").path());
    let files = files.filter(|path| path.extension().is_some_and(|own| own == extension));
    let file = files.min().expect("a file");
    let mut bytes = fs::read(&file).expect("read");
    bytes[at] ^= 1;
    fs::write(&file, bytes).expect("written");
    file
}

fn start_all(group: &mut Group) {
    group.nodes = (0..3)
        .map(|at| Some(Node::start(&group.arguments(at))))
        .collect();
    group.status_until(0);
}

#[test]
fn the_doctor_finds_nodes_that_are_down_stopped_and_on_the_wrong_address() {
    let mut group = Group::start();
    group.status_until(0);
    let ask = format!("127.0.0.1:{}", group.ports[0]);
    let well = run(&["doctor", "--ask", &ask, "-o", "json"]);
    let well: Value = serde_json::from_slice(&well.stdout).expect("JSON");
    // How fast this machine currently is, is not for a test to judge.
    let findings = well["findings"].as_array().expect("findings").iter();
    let mut kinds = findings.map(|finding| finding["kind"].as_str().expect("a word"));
    assert!(kinds.all(|kind| kind.starts_with("slow")), "{well}");
    group.nodes[2] = None;
    let (found, _) = run_to(3, &["doctor", "--ask", &ask]);
    for word in [
        "WARNING: n3 refuses connections",
        "data:  ",
        "to do: start n3",
    ] {
        assert!(found.contains(word), "{word:?} is not in: {found}");
    }
    // Another node is there now.
    let other = group.dir.path().join("other");
    let stranger = Node::start(&node_arguments("h", "n3", &other, group.ports[2]));
    stranger.wait_ready();
    let (found, _) = run_to(3, &["doctor", "--ask", &ask]);
    assert!(found.contains("of another group"), "{found}");
    group.nodes[1].as_ref().expect("it runs").signal("-STOP");
    group.status_until(4);
    let (found, _) = run_to(4, &["doctor", "--ask", &ask, "-o", "json"]);
    let found: Value = serde_json::from_str(&found).expect("JSON");
    assert_eq!(found["findings"][0]["kind"], "no_master", "{found}");
    let kinds = found["findings"].as_array().expect("findings").iter();
    let kinds: Vec<_> = kinds.map(|finding| finding["kind"].clone()).collect();
    assert!(kinds.contains(&"silent".into()) && kinds.contains(&"wrong_group".into()));
    run_to(1, &["doctor", "--ask", "no-such-host.invalid:7400"]);
}

#[test]
fn a_group_of_one_has_nothing_to_compare_with_and_verify_says_what_it_checked() {
    let dir = tempfile::TempDir::new().expect("a directory");
    let port = super::free_port();
    let node = Node::start(&node_arguments("g", "n1", &dir.path().join("n1"), port));
    node.wait_for(&["is master"]);
    let ask = format!("127.0.0.1:{port}");
    let (said, _) = run_to(0, &["verify", "--ask", &ask]);
    for word in ["n1 is the only node", "nothing to compare with", "--deep"] {
        assert!(said.contains(word), "{word:?} is not in: {said}");
    }
    assert!(!said.contains("the same"), "{said}");
    let (said, _) = run_to(0, &["verify", "--deep", "--ask", &ask]);
    for word in ["n1 is the only node", "rows", "counted", "are intact"] {
        assert!(said.contains(word), "{word:?} is not in: {said}");
    }
}

#[test]
fn verify_finds_and_names_a_node_that_was_altered_and_files_that_have_rotted() {
    let mut group = written_group();
    // Only `verify` compares.
    group.numbers = &[("digest_interval_ms", 0)];
    start_all(&mut group);
    let ask = format!("127.0.0.1:{}", group.ports[0]);
    let (whole, _) = run_to(0, &["verify", "--deep", "--ask", &ask]);
    for word in [
        "hold the same",
        "orders",
        "1,000",
        "n3: ",
        "of engine are intact",
    ] {
        assert!(whole.contains(word), "{word:?} is not in: {whole}");
    }

    for at in 0..3 {
        group.nodes[at].take().expect("it runs").signal("-INT");
    }
    alter(&group.data_dir(2), "k0500x");
    start_all(&mut group);
    let (found, _) = run_to(1, &["verify", "--ask", &ask]);
    for word in [
        "DIVERGED in 1 range ",
        "n3 differs: database orders",
        "VLSN",
    ] {
        assert!(found.contains(word), "{word:?} is not in: {found}");
    }
    let (found, _) = run_to(1, &["verify", "--deep", "-o", "json", "--ask", &ask]);
    let found: Value = serde_json::from_str(&found).expect("JSON");
    assert_eq!(found["divergent"], 1, "{found}");
    assert_eq!(found["divergences"][0]["nodes"], serde_json::json!(["n3"]));
    let key = |name: &str| -> Vec<u8> {
        serde_json::from_value(found["divergences"][0][name].clone()).expect("a key")
    };
    assert!(key("from") <= b"k0500x".to_vec() && key("to") > b"k0500x".to_vec());
    assert!(key("to") < b"k0570".to_vec(), "{found}");

    // While the nodes run; they repair themselves, which also removes the difference.
    for (at, node, dir, extension, byte, place) in [
        (2, "n3", "engine", "ndb", 36 + 40, "36"),
        (1, "n2", "log", "log", 4096 + 60, "4096"),
    ] {
        let file = rot(&group.data_dir(at).join(dir), extension, byte);
        let (found, _) = run_to(1, &["verify", "--deep", "--ask", &ask]);
        let said = format!("{node} is damaged: ");
        let place = format!("at byte {place}");
        for word in [&said, file.to_str().expect("text"), &place] {
            assert!(found.contains(word), "{word:?} is not in: {found}");
        }
        wait_whole(&ask);
        group.status_until(0);
        let data_dir = group.data_dir(at);
        assert!(!data_dir.join("engine").exists() && data_dir.join("log-1").exists());
    }
}

fn wait_whole(ask: &str) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let found = run(&["verify", "--deep", "--ask", ask]);
        if found.status.success() {
            return;
        }
        let found = String::from_utf8_lossy(&found.stdout).into_owned();
        assert!(Instant::now() < deadline, "not whole again: {found}");
    }
}
