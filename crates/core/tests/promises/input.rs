//! Bad input is refused by name, and loses nothing: the data is still there afterwards.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use steadfast::engine::{EngineError, EngineFactory, StorageEngine};
use steadfast::limits::{
    DATABASE_NAME_BYTES_MAX, KEY_BYTES_MAX, TRANSACTION_BYTES_MAX, VALUE_BYTES_MAX,
};
use steadfast::machine::Machine;
use steadfast::{
    ConsistencyPolicy, OpenError, Outcome, ReadError, ReadyError, RepConfig, Role, WriteError,
};
use tempfile::TempDir;

use crate::support::{Env, Group, PATIENCE, STEADY, get, in_time, put};

fn config(dir: &Path) -> RepConfig {
    config_of("orders", "n1", dir, "127.0.0.1:0")
}

fn config_of(group: &str, node: &str, dir: &Path, listen: &str) -> RepConfig {
    RepConfig::builder(group, node)
        .data_dir(dir)
        .listen(listen)
        .build()
        .expect("a configuration")
}

fn open(dir: &Path) -> Env {
    let node = Env::open(config(dir)).expect("opened");
    node.wait_ready(PATIENCE).expect("ready");
    node
}

fn refused(config: RepConfig) -> OpenError {
    match Env::open(config) {
        Ok(_) => panic!("opened"),
        Err(error) => error,
    }
}

/// The data directory of a node that has written and was closed.
fn written() -> (TempDir, PathBuf) {
    let temp = TempDir::new().expect("a directory");
    let dir = temp.path().join("data");
    let node = open(&dir);
    for n in 0..50 {
        let _token = put(&node, format!("k{n}"), format!("needle-{n:03}-")).expect("committed");
    }
    node.close().expect("closed");
    (temp, dir)
}

fn assert_unharmed(dir: &Path) {
    let node = open(dir);
    for n in 0..50 {
        let value = get(&node, ConsistencyPolicy::Linearizable, format!("k{n}")).expect("read");
        assert_eq!(value, Some(format!("needle-{n:03}-").into_bytes()));
    }
    node.close().expect("closed");
}

fn only_segment(dir: &Path) -> PathBuf {
    let entries = fs::read_dir(dir.join("log")).expect("a log");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    let mut segments: Vec<_> = paths
        .filter(|path| path.metadata().is_ok_and(|file| file.len() > 0))
        .collect();
    assert_eq!(segments.len(), 1, "{segments:?}");
    segments.remove(0)
}

#[test]
fn the_directory_of_another_group_or_node_is_named() {
    let (_temp, dir) = written();
    for (group, node, which) in [("other", "n1", "group"), ("orders", "n2", "node")] {
        match refused(config_of(group, node, &dir, "127.0.0.1:0")) {
            OpenError::ForeignDirectory {
                what, dir: named, ..
            } => {
                assert_eq!((what, named), (which, dir.clone()));
            }
            other => panic!("{other:?}"),
        }
    }
    assert_unharmed(&dir);
}

#[test]
fn a_directory_is_open_once() {
    let (_temp, dir) = written();
    let node = open(&dir);
    assert!(matches!(refused(config(&dir)), OpenError::InUse { dir: named } if named == dir));
    let _token = put(&node, "after", b"v").expect("the first goes on");
    node.close().expect("closed");
    assert_unharmed(&dir);
}

#[test]
fn an_identity_of_a_newer_format_is_named() {
    let (_temp, dir) = written();
    let path = dir.join("identity");
    let good = fs::read(&path).expect("an identity");
    let mut newer = good.clone();
    newer[8..12].copy_from_slice(&7u32.to_le_bytes());
    fs::write(&path, newer).expect("written");
    match refused(config(&dir)) {
        OpenError::NewerFormat {
            path: named,
            found: 7,
            ..
        } => assert_eq!(named, path),
        other => panic!("{other:?}"),
    }
    fs::write(&path, good).expect("written");
    assert_unharmed(&dir);
}

#[test]
fn a_damaged_or_missing_identity_is_named() {
    let (_temp, dir) = written();
    let path = dir.join("identity");
    let good = fs::read(&path).expect("an identity");
    let mut flipped = good.clone();
    let last = flipped.len() - 1;
    flipped[last] ^= 1;
    for bad in [
        Some(flipped),
        Some(good[..15].to_vec()),
        Some(Vec::new()),
        None,
    ] {
        match bad {
            Some(bytes) => fs::write(&path, bytes).expect("written"),
            None => fs::remove_file(&path).expect("removed"),
        }
        match refused(config(&dir)) {
            OpenError::Corrupt { path: named, .. } => assert_eq!(named, path),
            other => panic!("{other:?}"),
        }
    }
    fs::write(&path, good).expect("written");
    assert_unharmed(&dir);
}

#[test]
fn rot_in_a_synced_record_is_named_by_file_and_offset() {
    let (_temp, dir) = written();
    let path = only_segment(&dir);
    let good = fs::read(&path).expect("a segment");
    let at = good
        .windows(11)
        .position(|bytes| bytes == b"needle-025-")
        .expect("in the log");
    let mut rotten = good.clone();
    rotten[at + 3] ^= 0x40;
    fs::write(&path, rotten).expect("written");
    match refused(config(&dir)) {
        OpenError::Corrupt {
            path: named,
            offset,
            ..
        } => {
            assert_eq!(named, path);
            let offset = usize::try_from(offset).expect("an offset");
            assert!(
                (at - 300..=at).contains(&offset),
                "{offset} for rot at {at}"
            );
        }
        other => panic!("{other:?}"),
    }
    fs::write(&path, good).expect("written");
    assert_unharmed(&dir);
}

#[test]
fn a_directory_that_cannot_be_made_is_named() {
    let temp = TempDir::new().expect("a directory");
    let file = temp.path().join("file");
    fs::write(&file, b"precious").expect("written");
    let dir = file.join("data");
    assert!(matches!(refused(config(&dir)), OpenError::Io { path, .. } if path == dir));
    assert!(matches!(refused(config(&file)), OpenError::Io { .. }));
    assert_eq!(fs::read(&file).expect("read"), b"precious");
}

#[test]
fn a_port_in_use_is_named_and_the_node_opens_on_another() {
    let (_temp, dir) = written();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    match refused(config_of("orders", "n1", &dir, &address)) {
        OpenError::Listen { address: named, .. } => assert_eq!(named, address),
        other => panic!("{other:?}"),
    }
    assert_unharmed(&dir);
}

#[test]
fn what_is_over_a_limit_is_refused_and_what_is_at_it_is_committed() {
    let group = Group::in_memory(3, STEADY);
    let node = group.master();
    let too_large = |key: usize, value: usize| {
        let refused = put(node, vec![b'k'; key], vec![b'v'; value]);
        let refused = refused.expect_err("over a limit");
        assert!(
            matches!(refused, WriteError::TooLarge { .. }),
            "{refused:?}"
        );
        assert_eq!(refused.outcome(), Outcome::NotCommitted);
        assert!(!refused.is_retryable());
    };
    too_large(KEY_BYTES_MAX + 1, 1);
    too_large(1, VALUE_BYTES_MAX + 1);
    let fill = |last: usize| {
        node.write(|txn| {
            let db = txn.database("d")?;
            // Each key counts 16 bytes extra; the first write's catalog entries do not count.
            let (half, other) = (VALUE_BYTES_MAX - 1, VALUE_BYTES_MAX - 1 - 96 + last);
            db.put("a", vec![1; half])?;
            db.put("b", vec![2; other])
        })
    };
    assert!(matches!(
        fill(65),
        Err(WriteError::TooLarge {
            max: TRANSACTION_BYTES_MAX,
            ..
        })
    ));
    let _token = put(node, vec![b'k'; KEY_BYTES_MAX], b"").expect("committed");
    let _token = fill(64).expect("committed");
    let rows = node.read(ConsistencyPolicy::Linearizable, |s| {
        Ok::<_, ReadError>(s.database("d")?.iter().count())
    });
    assert_eq!(rows.expect("read"), 3);
    group.digest();
}

#[test]
fn a_name_that_no_database_can_have_is_refused() {
    let group = Group::in_memory(1, &[]);
    let node = group.master();
    let long = "n".repeat(DATABASE_NAME_BYTES_MAX + 1);
    for name in ["", "a\0b", "\0next", "line\n", &long] {
        let written = node.write(|txn| txn.database(name)?.put("k", "v"));
        let is_named = |error: &ReadError| matches!(error, ReadError::DatabaseName { name: named, .. } if named == name);
        assert!(matches!(written, Err(WriteError::Read(error)) if is_named(&error)));
        let read = node.read(ConsistencyPolicy::Eventual, |s| {
            s.database(name).map(|_| ())
        });
        assert!(read.is_err_and(|error| is_named(&error)));
    }
    let longest = "ü".repeat(DATABASE_NAME_BYTES_MAX / 2);
    let token = node.write(|txn| txn.database(&longest)?.put("k", "v"));
    let _token = token.expect("committed");
    let names = node.read(
        ConsistencyPolicy::Linearizable,
        steadfast::Snapshot::list_databases,
    );
    assert_eq!(names.expect("read"), [longest]);
}

#[test]
fn after_a_close_everything_says_closed() {
    let group = Group::in_memory(1, &[]);
    let node = group.master().clone();
    let _token = put(&node, "k", b"v").expect("committed");
    in_time("closing twice", move || {
        node.close().expect("closed");
        node.close().expect("closed again");
        assert!(matches!(put(&node, "k", b"w"), Err(WriteError::Closed)));
        for policy in [ConsistencyPolicy::Linearizable, ConsistencyPolicy::Eventual] {
            assert!(matches!(get(&node, policy, "k"), Err(ReadError::Closed)));
        }
        let ready = node.wait_ready(Duration::from_secs(1));
        assert!(matches!(ready, Err(ReadyError::Closed)));
        assert!(matches!(node.digest(), Err(ReadError::Closed)));
        assert_eq!(node.state().role, Role::Detached);
        assert_eq!(node.status().role, Role::Detached);
    });
}

#[test]
fn an_engine_that_cannot_be_opened_leaves_the_directory_free_for_the_next_try() {
    let (_temp, dir) = written();
    let (engine, aside) = (dir.join("engine"), dir.join("aside"));
    fs::rename(&engine, &aside).expect("renamed");
    fs::write(&engine, b"not a directory").expect("written");
    assert!(matches!(refused(config(&dir)), OpenError::Engine(_)));
    fs::remove_file(&engine).expect("removed");
    fs::rename(&aside, &engine).expect("renamed");
    assert_unharmed(&dir);
}

#[test]
fn a_directory_is_free_again_after_an_open_that_failed_on_the_runtime_of_the_caller() {
    struct Broken;
    impl EngineFactory for Broken {
        fn open(&self, _: &Path) -> Result<Arc<dyn StorageEngine>, EngineError> {
            Err(EngineError::Failed)
        }

        fn open_copy(&self, _: &Path) -> Result<Arc<dyn StorageEngine>, EngineError> {
            Err(EngineError::Failed)
        }

        fn exists(&self, _: &Path) -> Result<bool, EngineError> {
            Err(EngineError::Failed)
        }

        fn remove(&self, _: &Path) -> Result<(), EngineError> {
            Err(EngineError::Failed)
        }
    }
    let mut group = Group::in_memory(1, &[]);
    let _token = put(group.master(), "k", b"v").expect("committed");
    group.close(0);
    let machine = Machine {
        engines: Arc::new(Broken),
        ..group.machine(0)
    };
    let failed = group
        .runtime
        .block_on(Env::open_on(group.config(0), machine));
    assert!(matches!(failed, Err(OpenError::Engine(_))));
    group.reopen(0).expect("opened");
    group.wait_ready();
}

#[test]
fn a_directory_without_its_log_is_refused() {
    let (_temp, dir) = written();
    let (log, aside) = (dir.join("log"), dir.join("aside"));
    fs::rename(&log, &aside).expect("renamed");
    for empty in [false, true] {
        if empty {
            fs::create_dir(&log).expect("made");
        }
        match in_time("an answer", {
            let config = config(&dir);
            move || Env::open(config)
        }) {
            Err(OpenError::Corrupt { .. }) => {}
            Err(other) => panic!("{other:?}"),
            Ok(node) => {
                let ready = node.wait_ready(PATIENCE);
                panic!(
                    "opened without its log: ready {ready:?}, {:?}",
                    node.status()
                );
            }
        }
        if empty {
            fs::remove_dir_all(&log).expect("removed");
        }
    }
    fs::rename(&aside, &log).expect("renamed");
    assert_unharmed(&dir);
}
