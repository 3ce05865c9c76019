//! The data of an application that used plain Noxu, moved into Steadfast by the example.

use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use noxu::{DatabaseConfig, Environment, EnvironmentConfig};
use steadfast::{ConsistencyPolicy, RepConfig, ReplicatedEnvironment};
use tempfile::TempDir;

const ROWS: u32 = 2_500;

/// What an application with plain Noxu leaves behind.
fn old_application(dir: &Path) {
    let config = EnvironmentConfig::new(dir.to_owned())
        .with_allow_create(true)
        .with_transactional(true);
    let env = Environment::open(config).expect("opened");
    let config = DatabaseConfig::new()
        .with_allow_create(true)
        .with_transactional(true);
    for name in ["orders", "users"] {
        let database = env.open_database(None, name, &config).expect("opened");
        let transaction = env.begin_transaction(None).expect("begun");
        for n in 0..ROWS {
            let value = format!("{name} {n}");
            let put = database.put_in(&transaction, n.to_be_bytes(), value);
            put.expect("put");
        }
        transaction.commit().expect("committed");
        database.close().expect("closed");
    }
    env.close().expect("closed");
}

fn run(arguments: &[&Path]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_move_from_noxu"))
        .args(arguments)
        .output()
        .expect("started")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn what_was_in_plain_noxu_is_in_steadfast_however_often_it_is_moved() {
    let dir = TempDir::new().expect("a directory");
    let (from, to) = (dir.path(), dir.path().join("new"));
    old_application(from);
    for _ in 0..2 {
        let moved = run(&[from, &to]);
        assert!(moved.status.success(), "{}", text(&moved.stderr));
        let said = text(&moved.stdout);
        assert_eq!(
            said,
            "orders: 2500 rows, the same in both\nusers: 2500 rows, the same in both\n"
        );
    }
    let config = RepConfig::builder("moved", "n1")
        .data_dir(&to)
        .listen("127.0.0.1:0")
        .build()
        .expect("a configuration");
    let env = ReplicatedEnvironment::open(config).expect("opened");
    env.wait_ready(Duration::from_secs(30)).expect("ready");
    for name in ["orders", "users"] {
        for n in [0, ROWS / 2, ROWS - 1] {
            let value = env
                .database(name)
                .get(ConsistencyPolicy::Linearizable, n.to_be_bytes())
                .expect("read");
            assert_eq!(value.as_deref(), Some(format!("{name} {n}").as_bytes()));
        }
    }
    env.close().expect("closed");
}

#[test]
fn a_directory_that_is_not_there_is_named_and_nothing_is_made() {
    let dir = TempDir::new().expect("a directory");
    let (from, to) = (dir.path().join("nowhere"), dir.path().join("new"));
    let refused = run(&[&from, &to]);
    assert!(!refused.status.success());
    let said = text(&refused.stderr);
    assert!(said.contains("nowhere is not a directory"), "{said}");
    assert!(!to.exists());
}
