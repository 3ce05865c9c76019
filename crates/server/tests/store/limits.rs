//! Bounds, what the store does by itself, and what it keeps for others.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use steadfast_server::error::Error;
use steadfast_server::proto::etcdserverpb::*;
use steadfast_server::store::{AuthChange, Store, StoreConfig};

use crate::group::*;

#[tokio::test(start_paused = true)]
async fn writes_beyond_the_queue_are_refused_and_the_others_done() {
    let config = StoreConfig {
        waiting_writes_max: 8,
        ..StoreConfig::default()
    };
    let group = Group::with(1, config).await;
    let store = group.master().await;
    let puts = (0..100).map(|n| {
        let store = store.clone();
        async move { store.put(put(&format!("k{n}"), "1")).await }
    });
    let answers = join_all(puts).await;
    let done = answers.iter().filter(|answer| answer.is_ok()).count();
    let refused = answers
        .iter()
        .filter(|answer| matches!(answer, Err(Error::TooManyRequests)));
    assert!((8..100).contains(&done), "{done}");
    assert_eq!(refused.count(), 100 - done);
    let count = store.range(prefix("k")).await.expect("a range").count;
    assert_eq!(usize::try_from(count), Ok(done));
    set(&store, "k", "1").await;
    group.close().await;
}

#[tokio::test(start_paused = true)]
async fn many_large_writes_at_a_time_go_through_in_several_rounds() {
    let group = Group::new(1).await;
    let store = group.master().await;
    let value = "x".repeat(1_000_000);
    let puts = (0..20).map(|n| {
        let (store, value) = (store.clone(), value.clone());
        async move { store.put(put(&format!("k{n:02}"), &value)).await }
    });
    let answers = join_all(puts).await;
    let mut revisions: Vec<_> = answers
        .into_iter()
        .map(|answer| revision(answer.expect("put").header.as_ref()))
        .collect();
    revisions.sort_unstable();
    assert_eq!(revisions, (2..22).collect::<Vec<_>>());
    // One that is too large for a transaction of this group's logs is refused, with no other.
    let mut leased = Vec::new();
    for _ in 0..3 {
        leased.push(store.delete_range(DeleteRangeRequest {
            prev_kv: true,
            ..delete_prefix("k")
        }));
    }
    let deleted: i64 = join_all(leased)
        .await
        .into_iter()
        .map(|answer| answer.expect("deleted").deleted)
        .sum();
    assert_eq!(deleted, 20);
    group.close().await;
}

async fn oldest(store: &Store) -> i64 {
    store.hash_kv(0).await.expect("a hash").compact_revision
}

#[tokio::test(start_paused = true)]
async fn the_store_gives_up_what_is_old_but_keeps_the_newest_revisions() {
    let config = StoreConfig {
        history_keep: Some(Duration::ZERO),
        history_revisions_min: 10,
        ..StoreConfig::default()
    };
    let group = Group::with(3, config).await;
    let store = group.master().await;
    for n in 0..50 {
        set(&store, "k", &n.to_string()).await;
    }
    let newest = store.header().revision;
    tokio::time::sleep(Duration::from_secs(5)).await;
    for store in group.stores() {
        store.linearize().await.expect("current");
        assert_eq!(oldest(&store).await, newest - 10);
    }
    let read = RangeRequest {
        revision: newest - 10,
        ..get("k")
    };
    assert_eq!(store.range(read).await.expect("a range").count, 1);
    group.close().await;
}

#[tokio::test(start_paused = true)]
async fn history_is_kept_for_its_time() {
    let config = StoreConfig {
        history_keep: Some(Duration::from_mins(1)),
        history_revisions_min: 10,
        ..StoreConfig::default()
    };
    let group = Group::with(1, config).await;
    let store = group.master().await;
    for n in 0..50 {
        set(&store, "k", &n.to_string()).await;
    }
    tokio::time::sleep(Duration::from_secs(40)).await;
    assert_eq!(oldest(&store).await, -1);
    group.close().await;
}

#[tokio::test(start_paused = true)]
async fn rows_of_users_change_only_as_expected_and_take_no_revision() {
    let group = Group::new(3).await;
    let (store, replica) = (group.master().await, group.replica().await);
    let row = |key: &str, value: Option<&str>| (bytes(key), value.map(bytes));
    let version = *replica.auth_version().borrow();
    let change = AuthChange {
        expect: vec![row("user/a", None)],
        set: vec![row("user/a", Some("1")), row("role/b", Some("2"))],
    };
    assert_eq!(replica.auth_change(change.clone()).await, Ok(true));
    assert_eq!(store.auth_change(change).await, Ok(false));
    replica.linearize().await.expect("current");
    let rows = replica.auth_rows(b"user/").await.expect("rows");
    assert_eq!(rows, [(bytes("user/a"), bytes("1"))]);
    let mut versions = replica.auth_version();
    let changed = versions.wait_for(|now| *now != version);
    tokio::time::timeout(PATIENCE, changed)
        .await
        .expect("in time")
        .expect("open");
    let change = AuthChange {
        expect: vec![row("user/a", Some("1"))],
        set: vec![row("user/a", None)],
    };
    assert_eq!(store.auth_change(change).await, Ok(true));
    assert_eq!(
        store.auth_rows(b"user/").await.expect("rows"),
        Vec::<(Bytes, Bytes)>::new()
    );
    assert_eq!(store.header().revision, 1);
    group.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_closed_store_ends_its_streams_and_leaves_the_node_open() {
    let mut group = Group::new(1).await;
    let store = group.master().await;
    set(&store, "k", "1").await;
    let mut watches = Watches::new(&store);
    watches.create(watch("k", 0)).await;
    assert!(watches.next().await.created);
    store.clone().close().await;
    assert_eq!(watches.answers.recv().await, None);
    assert_eq!(refused(store.put(put("k", "2")).await), Error::Stopped);
    drop(store);
    group.open("n1").await;
    let store = group.master().await;
    assert_eq!(set(&store, "k", "2").await, 3);
    group.close().await;
}
