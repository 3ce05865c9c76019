//! Blocking calls work inside async tasks, on the environment's own runtime and on another one.

use std::sync::mpsc;
use std::time::Duration;

use steadfast::{ConsistencyPolicy, OpenError, ReadError, RepConfig, Role};
use tokio::runtime::Builder;

use crate::support::{Env, Group, PATIENCE, eventually, get, in_time, put, runtime};

/// Opens, uses, closes and drops a node with blocking calls only, from an async task.
async fn use_blocking(dir: std::path::PathBuf) {
    let config = RepConfig::builder("g", "n1")
        .data_dir(&dir)
        .listen("127.0.0.1:0")
        .build()
        .expect("a configuration");
    let node = Env::open(config.clone()).expect("opened");
    node.wait_ready(PATIENCE).expect("ready");
    let _token = put(&node, "k", b"v").expect("committed");
    tokio::task::yield_now().await;
    let value = get(&node, ConsistencyPolicy::Linearizable, "k").expect("read");
    assert_eq!(value.as_deref(), Some(&b"v"[..]));
    node.close().expect("closed");
    drop(node);
    // The last handle is dropped without a close; the directory is free again afterwards.
    drop(Env::open(config.clone()).expect("opened again"));
    let node = Env::open_async(config).await.expect("opened again");
    node.wait_ready_async(PATIENCE).await.expect("ready");
    let value = node.read_async(ConsistencyPolicy::Linearizable, |s| {
        s.database("d")?.get("k")
    });
    assert!(value.await.expect("read").is_some());
    node.close_async().await.expect("closed");
}

#[test]
fn blocking_calls_work_in_a_task_of_a_current_thread_runtime() {
    in_time("the task", || {
        let dir = tempfile::TempDir::new().expect("a directory");
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(use_blocking(dir.path().join("data")));
    });
}

#[test]
fn a_runtime_of_one_thread_is_refused_with_the_reason() {
    let runtime = Builder::new_current_thread().build().expect("a runtime");
    let config = RepConfig::builder("g", "n1")
        .data_dir("/never/made")
        .listen("127.0.0.1:0")
        .runtime(runtime.handle().clone());
    let refused = config.build().expect_err("it would stand still");
    assert_eq!(refused.key, "runtime");
    assert!(refused.problem.contains("stall"), "{refused}");
}

#[test]
fn blocking_calls_work_in_a_task_of_a_multi_thread_runtime() {
    in_time("the task", || {
        let dir = tempfile::TempDir::new().expect("a directory");
        let runtime = runtime();
        let task = runtime.spawn(use_blocking(dir.path().join("data")));
        runtime.block_on(task).expect("no panic");
    });
}

#[test]
fn a_write_within_a_read_and_a_read_within_a_write_do_not_deadlock() {
    let group = Group::in_memory(1, &[("flush_bytes", 1024), ("flush_interval_ms", 1)]);
    let node = group.master().clone();
    in_time("nested calls", move || {
        let read = node.read(ConsistencyPolicy::Linearizable, |s| {
            let _token = put(&node, "k", b"v").expect("committed");
            s.database("d")?.get("k")
        });
        assert_eq!(read.expect("read"), None);
        let written = node.write(|txn| {
            let seen = get(&node, ConsistencyPolicy::Linearizable, "k").expect("read");
            txn.database("d")?.put("copy", seen.expect("committed"))
        });
        let _token = written.expect("committed");
    });
}

#[test]
fn dropping_the_last_handle_ends_waiting_calls_and_the_stream_of_states() {
    let mut group = Group::in_memory(1, &[]);
    let node = group.nodes[0].take().expect("open");
    let mut states = node.state_changes();
    assert!(states.any(|state| state.role == Role::Master));
    drop(node);
    let last = in_time("the stream ends", move || states.last());
    assert_eq!(last.expect("a last state").role, Role::Detached);
}

#[test]
fn calls_that_wait_when_the_environment_closes_are_answered() {
    let group = Group::in_memory(
        3,
        &[("read_timeout_ms", 60_000), ("commit_timeout_ms", 60_000)],
    );
    let at = group.master_except(None);
    let node = group.node(at).clone();
    for other in (0..3).filter(|other| *other != at) {
        group.network.isolate(&crate::support::name(other));
    }
    let (done, results) = mpsc::channel();
    let reader = (node.clone(), done.clone());
    std::thread::spawn(move || {
        let (node, done) = reader;
        let read = get(&node, ConsistencyPolicy::Linearizable, "k");
        done.send(matches!(
            read,
            Err(ReadError::Closed | ReadError::Stopped { .. } | ReadError::NotCurrent { .. })
        ))
    });
    let writer = node.clone();
    std::thread::spawn(move || done.send(put(&writer, "k", b"v").is_err()));
    in_time("the close", move || {
        std::thread::park_timeout(Duration::from_millis(100));
        node.close().expect("closed");
    });
    for _ in 0..2 {
        assert!(results.recv_timeout(PATIENCE).expect("an answer"));
    }
}

#[test]
fn blocking_calls_work_in_a_task_of_the_runtime_that_the_application_gave() {
    in_time("the task", || {
        let dir = tempfile::TempDir::new().expect("a directory");
        let runtime = runtime();
        let config = RepConfig::builder("g", "n1")
            .data_dir(dir.path().join("data"))
            .listen("127.0.0.1:0")
            .runtime(runtime.handle().clone())
            .build()
            .expect("a configuration");
        let task = runtime.spawn(async move {
            let node = Env::open(config.clone()).expect("opened");
            node.wait_ready(PATIENCE).expect("ready");
            let _token = put(&node, "k", b"v").expect("committed");
            assert!(
                get(&node, ConsistencyPolicy::Linearizable, "k")
                    .expect("read")
                    .is_some()
            );
            node.close().expect("closed");
            drop(node);
            let node = Env::open(config.clone()).expect("opened again");
            node.wait_ready(PATIENCE).expect("ready");
            drop(node);
            config
        });
        let config = runtime.block_on(task).expect("no panic");
        // There, the drop closes in the background.
        let mut node = None;
        eventually("the directory is free again", || {
            node = Env::open(config.clone()).ok();
            node.is_some()
        });
        node.expect("just opened").close().expect("closed");
    });
}

#[test]
fn blocking_writes_work_in_every_task_of_the_runtime_that_the_application_gave() {
    in_time("the tasks", || {
        let dir = tempfile::TempDir::new().expect("a directory");
        let runtime = runtime();
        let config = RepConfig::builder("g", "n1")
            .data_dir(dir.path().join("data"))
            .listen("127.0.0.1:0")
            .runtime(runtime.handle().clone())
            .build()
            .expect("a configuration");
        let node = Env::open(config).expect("opened");
        node.wait_ready(PATIENCE).expect("ready");
        let tasks: Vec<_> = (0..4)
            .map(|n| {
                let node = node.clone();
                runtime.spawn(async move {
                    for i in 0..20 {
                        let key = format!("{n}/{i}");
                        let _token = put(&node, &key, b"v").expect("committed");
                        let read = get(&node, ConsistencyPolicy::Linearizable, &key);
                        assert!(read.expect("read").is_some());
                    }
                })
            })
            .collect();
        for task in tasks {
            runtime.block_on(task).expect("no panic");
        }
        node.close().expect("closed");
    });
}

#[test]
fn the_states_of_a_closed_environment_end() {
    let group = Group::in_memory(1, &[]);
    let node = group.master().clone();
    let states = node.state_changes();
    node.close().expect("closed");
    let last = in_time("the states end", move || states.last());
    assert_eq!(last.expect("a state").role, Role::Detached);
}

/// Gives up opening a node at different stages of the open.
fn give_up_opening(config: &RepConfig) {
    in_time("the task", {
        let config = config.clone();
        move || {
            let runtime = runtime();
            let task = runtime.spawn(async move {
                for patience_us in [0, 50, 500, 2000, 5000, 10_000, 20_000] {
                    let patience = Duration::from_micros(patience_us);
                    let opened = tokio::time::timeout(patience, Env::open_async(config.clone()));
                    // Reopening the directory shows what became of it.
                    drop(opened.await);
                }
            });
            runtime.block_on(task).expect("no panic");
        }
    });
}

fn assert_opens(config: &RepConfig) {
    let mut node = None;
    eventually("the directory is free again", || {
        match Env::open(config.clone()) {
            Ok(opened) => node = Some(opened),
            Err(OpenError::InUse { .. }) => {}
            Err(error) => panic!("{error}"),
        }
        node.is_some()
    });
    let node = node.expect("just opened");
    node.wait_ready(PATIENCE).expect("ready");
    node.close().expect("closed");
}

#[test]
fn giving_up_an_open_leaves_the_directory_free() {
    let dir = tempfile::TempDir::new().expect("a directory");
    let config = RepConfig::builder("g", "n1").data_dir(dir.path().join("data"));
    let config = config.listen("127.0.0.1:0").build();
    let config = config.expect("a configuration");
    give_up_opening(&config);
    assert_opens(&config);
    // With a group and a log, opening takes other paths.
    give_up_opening(&config);
    assert_opens(&config);
}

#[test]
fn giving_up_an_open_on_the_runtime_of_the_application_leaves_the_directory_free() {
    let (dir, runtime) = (tempfile::TempDir::new().expect("a directory"), runtime());
    let config = RepConfig::builder("g", "n1").data_dir(dir.path().join("data"));
    let config = config
        .listen("127.0.0.1:0")
        .runtime(runtime.handle().clone());
    let config = config.build().expect("a configuration");
    give_up_opening(&config);
    assert_opens(&config);
    give_up_opening(&config);
    assert_opens(&config);
}
