//! What the log promises its callers, one test each.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::super::Disk;
use super::super::format::RECORDS_START;
use super::super::reader::read_located;
use super::*;

#[tokio::test]
async fn what_was_written_is_there_after_opening_again() {
    let disk = MemoryDisk::new();
    let node = Node::open(&disk, TINY).await.unwrap();
    assert_eq!(node.log.state(), LogState::default());
    node.log.save_vote(vote(3)).await.unwrap();
    let entries: Vec<Entry> = (0..20).map(|p| entry(3, p, &[7; 700])).collect();
    append(&node.log, entries.clone()).await.unwrap();
    node.log.save_committed(id(3, 15)).unwrap();
    node.log.purge(id(3, 4)).await.unwrap();
    node.log.truncate_after(Some(id(3, 17))).await.unwrap();
    let state = node.log.state();
    assert_eq!(
        state,
        LogState {
            purged: Some(id(3, 4)),
            last: Some(id(3, 17)),
            vote: Some(vote(3)),
            committed: Some(id(3, 15)),
            persisted: Some(id(3, 17)),
        }
    );
    assert_eq!(read_all(&node.log).await.unwrap(), entries[5..18]);
    node.close().await;

    let node = Node::open(&disk, TINY).await.unwrap();
    assert_eq!(node.log.state(), state);
    assert_eq!(read_all(&node.log).await.unwrap(), entries[5..18]);
    append(&node.log, vec![entry(3, 18, b"more")])
        .await
        .unwrap();
    let purged = node
        .log
        .read(LogPosition(4)..LogPosition(9), 0)
        .await
        .unwrap_err();
    assert!(matches!(
        purged,
        LogError::Purged {
            first: LogPosition(5)
        }
    ));
}

#[tokio::test]
async fn an_entry_is_noted_as_committed_only_where_it_stands() {
    // A majority may have what is still queued here.
    for steps in 0..40 {
        let disk = MemoryDisk::new();
        let node = Node::open(&disk, TINY).await.unwrap();
        disk.fail_after(steps);
        let mut durable = Vec::new();
        for position in 0..8 {
            let entries = vec![entry(0, position, &[1; 700])];
            durable.push(queue(&node.log, entries).await.unwrap());
        }
        node.log.save_committed(id(0, 7)).unwrap();
        for durable in durable {
            // The disk fails in the middle of it.
            durable.await.ok();
        }
        node.writer.abort();
        node.writer.await.ok();
        disk.crash();
        let node = Node::open(&disk, TINY).await.unwrap();
        let LogState {
            last, committed, ..
        } = node.log.state();
        let position = |id: Option<LogId>| id.map(|id| id.position);
        assert!(
            position(committed) <= position(last),
            "{committed:?} is committed, the last entry is {last:?}"
        );
    }
}

#[tokio::test]
async fn a_read_keeps_to_its_bytes_but_makes_progress() {
    let disk = MemoryDisk::new();
    let node = Node::open(
        &disk,
        LogConfig {
            cache_bytes_max: 900,
            ..TINY
        },
    )
    .await
    .unwrap();
    let entries: Vec<Entry> = (0..10).map(|p| entry(0, p, &[1; 300])).collect();
    append(&node.log, entries.clone()).await.unwrap();
    for (start, at) in (0..10).zip(0_usize..) {
        let range = LogPosition(start)..LogPosition(100);
        assert_eq!(node.log.read(range.clone(), 0).await.unwrap().len(), 1);
        let some = node.log.read(range, 1000).await.unwrap();
        assert!(some.len() <= 3 && some[..] == entries[at..][..some.len()]);
    }
    assert!(
        node.log
            .read(LogPosition(10)..LogPosition(12), 9)
            .await
            .unwrap()
            .is_empty()
    );
}

#[tokio::test]
async fn an_entry_can_be_read_before_it_is_durable() {
    let disk = MemoryDisk::new();
    let node = Node::open(&disk, TINY).await.unwrap();
    let before = disk.syncs();
    disk.hold_syncs(true);
    let durable = queue(&node.log, vec![entry(0, 0, b"a")]).await.unwrap();
    until(|| disk.syncs() > before).await;
    let read = node
        .log
        .read(LogPosition(0)..LogPosition(1), 10)
        .await
        .unwrap();
    assert_eq!(read, [entry(0, 0, b"a")]);
    assert_eq!(node.log.state().persisted, None);
    assert_eq!(*node.log.persisted().borrow(), None);
    disk.hold_syncs(false);
    durable.await.unwrap();
    assert_eq!(*node.log.persisted().borrow(), Some(id(0, 0)));
}

#[tokio::test]
async fn appends_that_meet_a_running_sync_share_the_next() {
    let disk = MemoryDisk::new();
    let config = LogConfig {
        segment_bytes: 1 << 20,
        group_bytes_max: 1 << 20,
        ..TINY
    };
    let node = Node::open(&disk, config).await.unwrap();
    let before = disk.syncs();
    disk.hold_syncs(true);
    let mut durable = vec![queue(&node.log, vec![entry(0, 0, b"first")]).await.unwrap()];
    until(|| disk.syncs() > before).await;
    for position in 1..=100 {
        durable.push(
            queue(&node.log, vec![entry(0, position, b"x")])
                .await
                .unwrap(),
        );
    }
    disk.hold_syncs(false);
    for durable in durable {
        durable.await.unwrap();
    }
    assert_eq!(disk.syncs() - before, 2);
}

#[tokio::test]
async fn callbacks_run_in_the_order_of_the_calls() {
    let disk = MemoryDisk::new();
    let node = Node::open(&disk, TINY).await.unwrap();
    let order = Arc::new(Mutex::new(Vec::new()));
    for position in 0..50 {
        let order = Arc::clone(&order);
        let done = Box::new(move |result: std::io::Result<()>| {
            result.unwrap();
            order.lock().unwrap().push(position);
        });
        node.log
            .append(vec![entry(0, position, &[1; 200])], done)
            .await
            .unwrap();
    }
    node.close().await;
    assert_eq!(*order.lock().unwrap(), (0..50).collect::<Vec<_>>());
}

#[tokio::test]
async fn an_appender_that_outruns_the_disk_waits() {
    let disk = MemoryDisk::new();
    let config = LogConfig {
        queue_bytes_max: 20_000,
        ..TINY
    };
    let node = Node::open(&disk, config).await.unwrap();
    disk.hold_syncs(true);
    let queued = Arc::new(AtomicUsize::new(0));
    let (log, counter) = (node.log.clone(), Arc::clone(&queued));
    let appender = tokio::spawn(async move {
        for position in 0..200 {
            let durable = queue(&log, vec![entry(0, position, &[1; 1000])])
                .await
                .unwrap();
            drop(durable);
            counter.fetch_add(1, Ordering::Relaxed);
        }
    });
    until(|| queued.load(Ordering::Relaxed) >= 10).await;
    for _ in 0..1000 {
        tokio::task::yield_now().await;
    }
    assert!(
        queued.load(Ordering::Relaxed) < 20,
        "20 entries are more than the queue holds"
    );
    assert!(!appender.is_finished());

    disk.hold_syncs(false);
    appender.await.unwrap();
    node.log.save_vote(vote(1)).await.unwrap();
    assert_eq!(node.log.state().persisted, Some(id(0, 199)));
    // An append larger than the queue is admitted once the queue is empty.
    let large = (200..230)
        .map(|position| entry(0, position, &[2; 1000]))
        .collect();
    append(&node.log, large).await.unwrap();
}

#[tokio::test]
async fn entries_leave_the_cache_when_they_are_durable_and_many() {
    let disk = MemoryDisk::new();
    let node = Node::open(&disk, TINY).await.unwrap();
    for (position, byte) in (0..4).zip(0_u8..) {
        append(&node.log, vec![entry(0, position, &[byte; 200])])
            .await
            .unwrap();
    }
    // Reads from memory do not notice that the file has gone bad.
    disk.plant(&segment_path(1), &[0; 8192]);
    let read = async |position| {
        node.log
            .read(LogPosition(position)..LogPosition(9), 0)
            .await
    };
    assert!(matches!(read(0).await, Err(LogError::Corrupt { .. })));
    assert!(matches!(read(1).await, Err(LogError::Corrupt { .. })));
    assert_eq!(read(2).await.unwrap(), [entry(0, 2, &[2; 200])]);
    assert_eq!(read(3).await.unwrap(), [entry(0, 3, &[3; 200])]);
}

#[tokio::test]
async fn what_is_not_durable_stays_in_memory() {
    let disk = MemoryDisk::new();
    let node = Node::open(
        &disk,
        LogConfig {
            cache_bytes_max: 0,
            ..TINY
        },
    )
    .await
    .unwrap();
    let before = disk.syncs();
    disk.hold_syncs(true);
    let stop = disk.clone();
    let done = Box::new(move |result: std::io::Result<()>| {
        result.unwrap();
        stop.hold_syncs(true);
    });
    node.log
        .append(vec![entry(0, 0, b"first")], done)
        .await
        .unwrap();
    until(|| disk.syncs() > before).await;
    let second = queue(&node.log, vec![entry(0, 1, b"second")])
        .await
        .unwrap();
    disk.hold_syncs(false);
    until(|| disk.syncs() > before + 1).await;
    assert_eq!(node.log.state().persisted, Some(id(0, 0)));
    let expected = [entry(0, 0, b"first"), entry(0, 1, b"second")];
    assert_eq!(read_all(&node.log).await.unwrap(), expected);
    disk.hold_syncs(false);
    second.await.unwrap();
    assert_eq!(read_all(&node.log).await.unwrap(), expected);
}

#[tokio::test]
async fn a_failed_sync_ends_the_log_until_it_is_opened_again() {
    let disk = MemoryDisk::new();
    let node = Node::open(&disk, TINY).await.unwrap();
    append(&node.log, vec![entry(0, 0, b"durable")])
        .await
        .unwrap();
    disk.fail_syncs(true);
    let waits = queue(&node.log, vec![entry(0, 1, b"a")]).await.unwrap();
    let (vote_result, append_result) = tokio::join!(
        node.log.save_vote(vote(1)),
        queue(&node.log, vec![entry(0, 2, b"b")])
    );
    assert!(matches!(vote_result, Err(LogError::Failed { .. })));
    assert!(waits.await.is_err());
    assert!(append_result.unwrap().await.is_err());
    disk.fail_syncs(false);
    let late = node.log.purge(id(0, 0)).await;
    assert!(
        matches!(late, Err(LogError::Failed { .. })),
        "a failure is for good: {late:?}"
    );
    assert_eq!(node.log.state().vote, None);
    assert_eq!(node.log.state().persisted, Some(id(0, 0)));
    assert!(matches!(
        node.log.close().await,
        Err(LogError::Failed { .. })
    ));

    // The page cache still has the bytes and considers them written. Whatever the log says it has
    // after opening must survive a power cut.
    let node = Node::open(&disk, TINY).await.unwrap();
    let (state, entries) = (node.log.state(), read_all(&node.log).await.unwrap());
    assert_eq!(state.persisted, state.last);
    disk.crash();
    let node = Node::open(&disk, TINY).await.unwrap();
    assert_eq!(read_all(&node.log).await.unwrap(), entries);
    assert_eq!(node.log.state(), state);
}

#[tokio::test]
async fn a_killed_process_leaves_nothing_that_a_power_cut_takes_back() {
    let disk = MemoryDisk::new();
    let node = Node::open(&disk, TINY).await.unwrap();
    let before = disk.syncs();
    disk.hold_syncs(true);
    let durable = queue(&node.log, vec![entry(0, 0, b"a")]).await.unwrap();
    until(|| disk.syncs() > before).await;
    node.kill().await;
    assert!(durable.await.is_err(), "the callback hears of the end");
    disk.hold_syncs(false);

    let node = Node::open(&disk, TINY).await.unwrap();
    assert_eq!(node.log.state().persisted, Some(id(0, 0)));
    disk.crash();
    let node = Node::open(&disk, TINY).await.unwrap();
    assert_eq!(node.log.state().persisted, Some(id(0, 0)));
}

#[tokio::test]
async fn a_full_disk_loses_nothing_and_opens_again() {
    let disk = MemoryDisk::new();
    let node = Node::open(&disk, TINY).await.unwrap();
    disk.set_full(true);
    let mut durable = 0;
    let error = loop {
        match append(&node.log, vec![entry(0, durable, &[1; 500])]).await {
            Ok(()) => durable += 1,
            Err(error) => break error,
        }
    };
    assert!(error.to_string().contains("failed"), "{error}");
    assert_eq!(durable, 6, "the segment there is can be filled");
    disk.set_full(false);
    let node = Node::open(&disk, TINY).await.unwrap();
    assert_eq!(node.log.state().persisted, Some(id(0, 5)));
    append(&node.log, vec![entry(0, 6, &[1; 500])])
        .await
        .unwrap();
}

#[tokio::test]
async fn the_log_is_open_once() {
    let disk = MemoryDisk::new();
    let node = Node::open(&disk, TINY).await.unwrap();
    let second = Node::open(&disk, TINY).await.err().unwrap();
    assert!(matches!(second, LogError::Locked { .. }));
    let log = node.log.clone();
    node.close().await;
    assert!(matches!(
        log.save_vote(vote(1)).await,
        Err(LogError::Closed)
    ));
    assert!(matches!(
        queue(&log, vec![]).await.err(),
        Some(LogError::Closed)
    ));
    Node::open(&disk, TINY).await.unwrap();
}

#[tokio::test]
async fn dropping_the_last_handle_writes_what_is_queued() {
    let disk = MemoryDisk::new();
    let node = Node::open(&disk, TINY).await.unwrap();
    let durable = queue(&node.log, vec![entry(0, 0, b"a")]).await.unwrap();
    drop(node.log);
    node.writer.await.unwrap();
    durable.await.unwrap();
}

#[tokio::test]
async fn an_entry_larger_than_a_segment_is_refused_and_the_largest_is_not() {
    let disk = MemoryDisk::new();
    let node = Node::open(&disk, TINY).await.unwrap();
    let bytes_max = TINY.entry_bytes_max();
    let refused = queue(&node.log, vec![entry(0, 0, &vec![1; bytes_max + 1])])
        .await
        .err();
    assert!(matches!(refused, Some(LogError::EntryTooLarge { .. })));
    for position in 0..3 {
        append(&node.log, vec![entry(0, position, &vec![1; bytes_max])])
            .await
            .unwrap();
    }
    node.close().await;
    let node = Node::open(&disk, TINY).await.unwrap();
    assert_eq!(read_all(&node.log).await.unwrap().len(), 3);
}

#[tokio::test]
async fn purged_segments_are_used_again() {
    let disk = MemoryDisk::new();
    let node = Node::open(&disk, TINY).await.unwrap();
    node.log.save_vote(vote(1)).await.unwrap();
    for position in 0..400 {
        append(&node.log, vec![entry(1, position, &[1; 300])])
            .await
            .unwrap();
        if position % 20 == 19 {
            node.log.purge(id(1, position - 5)).await.unwrap();
        }
    }
    assert!(
        disk.list(&dir()).unwrap().len() <= 6,
        "{:?}",
        disk.list(&dir())
    );
    node.close().await;
    let node = Node::open(&disk, TINY).await.unwrap();
    assert_eq!(
        node.log.state().vote,
        Some(vote(1)),
        "the vote outlives its segment"
    );
    assert_eq!(node.log.state().purged, Some(id(1, 394)));
    assert_eq!(read_all(&node.log).await.unwrap().len(), 5);
}

#[tokio::test]
async fn a_purge_that_was_cut_short_is_finished_by_opening() {
    let disk = MemoryDisk::new();
    let node = Node::open(&disk, TINY).await.unwrap();
    for position in 0..30 {
        append(&node.log, vec![entry(0, position, &[1; 500])])
            .await
            .unwrap();
    }
    let files = disk.list(&dir()).unwrap().len();
    // The write and the sync of the purge itself.
    disk.fail_after(2);
    node.log.purge(id(0, 28)).await.unwrap();
    until(|| node.writer.is_finished()).await;
    assert_eq!(disk.list(&dir()).unwrap().len(), files);
    disk.crash();
    let node = Node::open(&disk, TINY).await.unwrap();
    let names = disk.list(&dir()).unwrap();
    let segments = names.iter().filter(|name| !name.starts_with("spare"));
    assert_eq!(segments.count(), 1, "{names:?}");
    assert_eq!(
        read_all(&node.log).await.unwrap(),
        [entry(0, 29, &[1; 500])]
    );
}

#[tokio::test]
async fn a_log_goes_on_after_a_purge_past_its_end() {
    let disk = MemoryDisk::new();
    let node = Node::open(&disk, TINY).await.unwrap();
    append(&node.log, vec![entry(0, 0, b"a")]).await.unwrap();
    node.log.purge(id(5, 90)).await.unwrap();
    assert_eq!(node.log.state().last, Some(id(5, 90)));
    assert!(
        node.log
            .read(LogPosition(91)..LogPosition(99), 9)
            .await
            .unwrap()
            .is_empty()
    );
    node.close().await;
    let node = Node::open(&disk, TINY).await.unwrap();
    assert_eq!(node.log.state().persisted, Some(id(5, 90)));
    node.log.save_vote(vote(5)).await.unwrap();
    append(&node.log, vec![entry(5, 91, b"b")]).await.unwrap();
    assert_eq!(read_all(&node.log).await.unwrap(), [entry(5, 91, b"b")]);
}

#[tokio::test]
async fn reads_follow_a_truncation_that_is_not_yet_written() {
    let disk = MemoryDisk::new();
    let node = Node::open(
        &disk,
        LogConfig {
            cache_bytes_max: 0,
            ..TINY
        },
    )
    .await
    .unwrap();
    append(&node.log, (0..6).map(|p| entry(0, p, b"old")).collect())
        .await
        .unwrap();
    let before = disk.syncs();
    disk.hold_syncs(true);
    let log = node.log.clone();
    let truncated = tokio::spawn(async move { log.truncate_after(Some(id(0, 2))).await });
    until(|| disk.syncs() > before).await;
    let durable = queue(&node.log, vec![entry(1, 3, b"new")]).await.unwrap();
    let expected: Vec<Entry> = (0..3)
        .map(|p| entry(0, p, b"old"))
        .chain([entry(1, 3, b"new")])
        .collect();
    assert_eq!(read_all(&node.log).await.unwrap(), expected);
    disk.hold_syncs(false);
    truncated.await.unwrap().unwrap();
    durable.await.unwrap();
    assert_eq!(read_all(&node.log).await.unwrap(), expected);
}

#[tokio::test]
async fn a_truncation_that_is_not_yet_synced_is_no_damage() {
    let disk = MemoryDisk::new();
    let node = Node::open(&disk, TINY).await.unwrap();
    let old = (0..6).map(|p| entry(0, p, b"old")).collect();
    append(&node.log, old).await.unwrap();
    let check = |log: &Log| log.check(&(Arc::new(disk.clone()) as _), &dir(), IDENTITY);
    let bytes = check(&node.log).unwrap();
    let before = disk.syncs();
    disk.hold_syncs(true);
    let log = node.log.clone();
    let truncated = tokio::spawn(async move { log.truncate_after(Some(id(0, 2))).await });
    until(|| disk.syncs() > before).await;
    assert_eq!(check(&node.log).unwrap(), bytes, "what is synced");
    disk.hold_syncs(false);
    truncated.await.unwrap().unwrap();
    assert!(check(&node.log).unwrap() > bytes);
}

#[tokio::test]
async fn a_read_that_was_overtaken_starts_again() {
    let disk = MemoryDisk::new();
    let node = Node::open(
        &disk,
        LogConfig {
            cache_bytes_max: 0,
            ..TINY
        },
    )
    .await
    .unwrap();
    let shared = &node.log.shared;
    append(&node.log, (0..3).map(|p| entry(0, p, &[1; 900])).collect())
        .await
        .unwrap();
    let overtaken = shared.locate(LogPosition(2)..LogPosition(3), 9).unwrap();
    // The entry is rewritten in another segment, and the file of its first one is reused.
    node.log.truncate_after(Some(id(0, 0))).await.unwrap();
    let group = (1..20).map(|p| entry(0, p, &[2; 900])).collect();
    append(&node.log, group).await.unwrap();
    disk.plant(&segment_path(1), &[0; 8192]);
    assert_eq!(read_located(shared, overtaken).unwrap(), None);
    let entries = node
        .log
        .read(LogPosition(5)..LogPosition(6), 0)
        .await
        .unwrap();
    assert_eq!(entries, [entry(0, 5, &[2; 900])]);

    let purged = shared.locate(LogPosition(1)..LogPosition(2), 9).unwrap();
    node.log.purge(id(0, 3)).await.unwrap();
    assert_eq!(read_located(shared, purged).unwrap(), None);
}

#[tokio::test]
async fn segments_of_several_lengths_make_one_log() {
    let disk = MemoryDisk::new();
    for (life, blocks) in [2_u64, 5, 3].into_iter().enumerate() {
        let segment_bytes = RECORDS_START * u32::try_from(blocks).unwrap();
        let config = LogConfig {
            segment_bytes,
            ..TINY
        };
        let node = Node::open(&disk, config).await.unwrap();
        let first = 10 * life as u64;
        let bytes = config.entry_bytes_max();
        let group = (first..first + 10)
            .map(|p| entry(0, p, &vec![1; bytes]))
            .collect();
        append(&node.log, group).await.unwrap();
        node.log.purge(id(0, first + 2)).await.unwrap();
        assert_eq!(read_all(&node.log).await.unwrap().len(), 7);
        node.close().await;
    }
    let node = Node::open(&disk, TINY).await.unwrap();
    assert_eq!(node.log.state().purged, Some(id(0, 22)));
    assert_eq!(read_all(&node.log).await.unwrap().len(), 7);
}
