//! The log on the machine's disk, its writer on a thread of its own.

use std::path::Path;
use std::thread;

use super::super::{LogWriter, RealDisk};
use super::*;

#[expect(
    clippy::disallowed_methods,
    reason = "the writer's own thread, as in production"
)]
fn start(writer: LogWriter) -> thread::JoinHandle<()> {
    thread::spawn(move || pollster::block_on(writer.run()))
}

async fn open(dir: &Path, config: LogConfig) -> (Log, thread::JoinHandle<()>) {
    let opened = Log::open(Arc::new(RealDisk), dir.join("log"), IDENTITY, config).await;
    let (log, writer) = opened.unwrap();
    (log, start(writer))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_in_real_files_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let config = LogConfig {
        segment_bytes: 64 << 10,
        cache_bytes_max: 1000,
        ..TINY
    };
    let (log, thread) = open(dir.path(), config).await;
    log.save_vote(vote(2)).await.unwrap();
    let mut durable = Vec::new();
    for position in 0..500 {
        let payload = vec![u8::try_from(position % 251).unwrap(); 700];
        durable.push(
            queue(&log, vec![entry(2, position, &payload)])
                .await
                .unwrap(),
        );
    }
    for durable in durable {
        durable.await.unwrap();
    }
    log.purge(id(2, 99)).await.unwrap();
    log.truncate_after(Some(id(2, 449))).await.unwrap();
    let entries = read_all(&log).await.unwrap();
    assert_eq!(entries.len(), 350);
    log.close().await.unwrap();
    thread.join().unwrap();

    let (log, thread) = open(dir.path(), config).await;
    assert_eq!(read_all(&log).await.unwrap(), entries);
    let second = Log::open(Arc::new(RealDisk), dir.path().join("log"), IDENTITY, config).await;
    assert!(matches!(second.err(), Some(LogError::Locked { .. })));
    append(&log, vec![entry(2, 450, b"more")]).await.unwrap();
    drop(log);
    thread.join().unwrap();
    let (log, _thread) = open(dir.path(), config).await;
    assert_eq!(log.state().persisted, Some(id(2, 450)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_of_default_size_opens_and_closes() {
    let dir = tempfile::tempdir().unwrap();
    let config = LogConfig::default();
    let (log, thread) = open(dir.path(), config).await;
    append(&log, vec![entry(0, 0, &vec![1; 5 << 20])])
        .await
        .unwrap();
    log.close().await.unwrap();
    thread.join().unwrap();
    let (log, _thread) = open(dir.path(), config).await;
    assert_eq!(log.state().persisted, Some(id(0, 0)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn many_tasks_append_while_others_read_and_purge() {
    let dir = tempfile::tempdir().unwrap();
    let config = LogConfig {
        segment_bytes: 64 << 10,
        cache_bytes_max: 5000,
        ..TINY
    };
    let (log, thread) = open(dir.path(), config).await;
    let writer = log.clone();
    let appending = tokio::spawn(async move {
        for position in 0..3000 {
            drop(
                queue(&writer, vec![entry(0, position, &[3; 300])])
                    .await
                    .unwrap(),
            );
            if position % 500 == 499 {
                writer.purge(id(0, position - 100)).await.unwrap();
            }
        }
    });
    while !appending.is_finished() {
        let LogState { purged, .. } = log.state();
        let from = purged.map_or(0, |purged| purged.position.0 + 1);
        match log
            .read(LogPosition(from)..LogPosition(from + 50), 20_000)
            .await
        {
            Ok(entries) => {
                for (entry, position) in entries.iter().zip(from..) {
                    assert_eq!(
                        (entry.position.0, &entry.payload[..]),
                        (position, &[3; 300][..])
                    );
                }
            }
            Err(LogError::Purged { first }) => assert!(first.0 > from),
            Err(error) => panic!("{error}"),
        }
    }
    appending.await.unwrap();
    log.close().await.unwrap();
    thread.join().unwrap();
}
