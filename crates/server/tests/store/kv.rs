//! Keys and values, revisions and ranges.

use std::time::Duration;

use bytes::Bytes;
use futures_util::TryStreamExt;
use steadfast_server::error::Error;
use steadfast_server::proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use steadfast_server::proto::etcdserverpb::*;

use crate::group::*;

#[tokio::test(start_paused = true)]
async fn an_empty_store_is_at_revision_one_and_each_change_takes_the_next() {
    let group = Group::new(1).await;
    let store = group.master().await;
    let empty = store.range(get("a")).await.expect("a range");
    assert_eq!(
        (revision(empty.header.as_ref()), empty.count, empty.more),
        (1, 0, false)
    );
    assert_eq!(set(&store, "a", "1").await, 2);
    assert_eq!(set(&store, "b", "1").await, 3);
    assert_eq!(set(&store, "a", "2").await, 4);
    let a = store.range(get("a")).await.expect("a range").kvs.remove(0);
    assert_eq!((a.create_revision, a.mod_revision, a.version), (2, 4, 2));
    // A deletion of nothing takes none.
    let nothing = store.delete_range(delete("c")).await.expect("deleted");
    assert_eq!((revision(nothing.header.as_ref()), nothing.deleted), (4, 0));
    let deleted = store.delete_range(delete("a")).await.expect("deleted");
    assert_eq!((revision(deleted.header.as_ref()), deleted.deleted), (5, 1));
    // A key that was deleted begins anew.
    set(&store, "a", "3").await;
    let a = store.range(get("a")).await.expect("a range").kvs.remove(0);
    assert_eq!((a.create_revision, a.mod_revision, a.version), (6, 6, 1));
    let header = store.header();
    assert_eq!(header.cluster_id, store.cluster_id());
    assert!(header.cluster_id != 0 && header.member_id != 0 && header.raft_term > 0);
    group.close().await;
}

#[tokio::test(start_paused = true)]
async fn puts_keep_and_give_back_what_they_are_asked_to() {
    let group = Group::new(1).await;
    let store = group.master().await;
    let with_previous = |request: PutRequest| PutRequest {
        prev_kv: true,
        ..request
    };
    let first = store.put(with_previous(put("a", "1"))).await.expect("put");
    assert_eq!(first.prev_kv, None);
    let second = store.put(with_previous(put("a", "2"))).await.expect("put");
    assert_eq!(
        second.prev_kv.as_ref().map(pair),
        Some(("a".into(), "1".into()))
    );

    let lease = store
        .lease_grant(LeaseGrantRequest { ttl: 100, id: 7 })
        .await;
    assert_eq!(lease.expect("granted").id, 7);
    let leased = PutRequest {
        lease: 7,
        ..put("a", "3")
    };
    store.put(leased).await.expect("put");
    let value = |value: &str| PutRequest {
        ignore_lease: true,
        ..put("a", value)
    };
    store.put(value("4")).await.expect("put");
    let lease = PutRequest {
        ignore_value: true,
        lease: 0,
        ..put("a", "")
    };
    let a = store.range(get("a")).await.expect("a range").kvs.remove(0);
    assert_eq!((text(&a.value), a.lease), ("4".into(), 7));
    store.put(lease.clone()).await.expect("put");
    let a = store.range(get("a")).await.expect("a range").kvs.remove(0);
    assert_eq!((text(&a.value), a.lease, a.version), ("4".into(), 0, 5));

    let before = store.header().revision;
    let none = |request: PutRequest| PutRequest {
        key: bytes("none"),
        ..request
    };
    assert_eq!(refused(store.put(none(lease)).await), Error::KeyNotFound);
    assert_eq!(
        refused(store.put(none(value("4"))).await),
        Error::KeyNotFound
    );
    let both = PutRequest {
        ignore_value: true,
        ..put("a", "1")
    };
    assert_eq!(refused(store.put(both).await), Error::ValueProvided);
    let both = PutRequest {
        ignore_lease: true,
        lease: 7,
        ..put("a", "1")
    };
    assert_eq!(refused(store.put(both).await), Error::LeaseProvided);
    let unknown = PutRequest {
        lease: 8,
        ..put("a", "1")
    };
    assert_eq!(refused(store.put(unknown).await), Error::LeaseNotFound);
    assert_eq!(
        store
            .range(get("a"))
            .await
            .expect("a range")
            .header
            .map(|h| h.revision),
        Some(before)
    );
    group.close().await;
}

#[tokio::test(start_paused = true)]
async fn empty_keys_are_refused_and_reversed_ranges_are_empty() {
    let group = Group::new(1).await;
    let store = group.master().await;
    set(&store, "b", "1").await;
    assert_eq!(refused(store.put(put("", "1")).await), Error::EmptyKey);
    assert_eq!(refused(store.range(get("")).await), Error::EmptyKey);
    let all = RangeRequest {
        range_end: Bytes::from_static(&[0]),
        ..get("")
    };
    assert_eq!(refused(store.range(all).await), Error::EmptyKey);
    assert_eq!(
        refused(store.delete_range(delete("")).await),
        Error::EmptyKey
    );
    let reversed = RangeRequest {
        range_end: bytes("a"),
        ..get("c")
    };
    let answer = store.range(reversed).await.expect("a range");
    assert_eq!((answer.count, answer.kvs.len()), (0, 0));
    let reversed = DeleteRangeRequest {
        range_end: bytes("a"),
        ..delete("c")
    };
    assert_eq!(
        store.delete_range(reversed).await.expect("deleted").deleted,
        0
    );
    let all = |from: &'static [u8]| RangeRequest {
        key: Bytes::from_static(from),
        range_end: Bytes::from_static(&[0]),
        ..RangeRequest::default()
    };
    assert_eq!(keys(&store, all(b"\0")).await, ["b"]);
    assert_eq!(keys(&store, all(b"b")).await, ["b"]);
    assert_eq!(keys(&store, all(b"b\0")).await, [""; 0]);
    group.close().await;
}

#[tokio::test(start_paused = true)]
async fn limits_counts_orders_and_filters_agree_with_each_other() {
    let group = Group::new(1).await;
    let store = group.master().await;
    for (key, value) in [
        ("s0", "5"),
        ("s1", "1"),
        ("s2", "4"),
        ("s3", "2"),
        ("s4", "3"),
    ] {
        set(&store, key, value).await;
    }
    let sorted = |target: SortTarget, order: SortOrder, limit| RangeRequest {
        sort_target: target as i32,
        sort_order: order as i32,
        limit,
        ..prefix("s")
    };
    let limited = store
        .range(sorted(SortTarget::Key, SortOrder::None, 2))
        .await
        .expect("a range");
    assert_eq!(
        (limited.count, limited.more, limited.kvs.len()),
        (5, true, 2)
    );
    let exact = store
        .range(sorted(SortTarget::Key, SortOrder::None, 5))
        .await
        .expect("a range");
    assert_eq!((exact.count, exact.more, exact.kvs.len()), (5, false, 5));
    let negative = store
        .range(sorted(SortTarget::Key, SortOrder::None, -1))
        .await
        .expect("a range");
    assert_eq!((negative.more, negative.kvs.len()), (false, 5));
    // The true top.
    let top = sorted(SortTarget::Value, SortOrder::Descend, 2);
    assert_eq!(keys(&store, top.clone()).await, ["s0", "s2"]);
    let top = RangeRequest {
        keys_only: true,
        ..top
    };
    let top = store.range(top).await.expect("a range");
    assert_eq!(
        values(&top),
        [("s0".into(), String::new()), ("s2".into(), String::new())]
    );
    // A target alone sorts the first keys only.
    let first = sorted(SortTarget::Value, SortOrder::None, 2);
    assert_eq!(keys(&store, first).await, ["s1", "s2"]);
    let last = sorted(SortTarget::Key, SortOrder::Descend, 1);
    assert_eq!(keys(&store, last).await, ["s4"]);
    let newest = sorted(SortTarget::Mod, SortOrder::Descend, 1);
    assert_eq!(keys(&store, newest).await, ["s4"]);
    // A filter comes before the limit, and does not change the count.
    let filtered = RangeRequest {
        min_mod_revision: 4,
        max_create_revision: 5,
        limit: 1,
        ..prefix("s")
    };
    let filtered = store.range(filtered).await.expect("a range");
    assert_eq!(
        (text(&filtered.kvs[0].key), filtered.more, filtered.count),
        ("s2".into(), true, 5)
    );
    let before = RangeRequest {
        max_create_revision: 1,
        limit: 1,
        ..prefix("s")
    };
    let before = store.range(before).await.expect("a range");
    assert_eq!((before.kvs.len(), before.more, before.count), (0, false, 5));
    let count = RangeRequest {
        count_only: true,
        limit: 2,
        ..prefix("s")
    };
    let count = store.range(count).await.expect("a range");
    assert_eq!((count.kvs.len(), count.more, count.count), (0, false, 5));
    let unknown = RangeRequest {
        sort_order: 9,
        ..prefix("s")
    };
    assert_eq!(
        refused(store.range(unknown).await),
        Error::InvalidSortOption
    );
    group.close().await;
}

#[tokio::test(start_paused = true)]
async fn every_revision_can_be_read_until_it_is_compacted() {
    let group = Group::new(1).await;
    let store = group.master().await;
    let at = |revision| RangeRequest {
        revision,
        ..prefix("k")
    };
    let compact = |revision, physical| CompactionRequest { revision, physical };
    assert_eq!(
        refused(store.compact(compact(-1, false)).await),
        Error::Compacted
    );
    store
        .compact(compact(0, false))
        .await
        .expect("as etcd does");
    set(&store, "k1", "a").await; // 2
    set(&store, "k2", "a").await; // 3
    store.delete_range(delete("k1")).await.expect("deleted"); // 4
    set(&store, "k1", "b").await; // 5
    store
        .delete_range(delete_prefix("k"))
        .await
        .expect("deleted"); // 6
    let read = async |revision| values(&store.range(at(revision)).await.expect("a range"));
    let p = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    let right = [
        vec![],
        vec![p("k1", "a")],
        vec![p("k1", "a"), p("k2", "a")],
        vec![p("k2", "a")],
        vec![p("k1", "b"), p("k2", "a")],
        vec![],
    ];
    for (revision, right) in (1..).zip(&right) {
        assert_eq!(read(revision).await, *right, "at {revision}");
    }
    assert_eq!(read(-5).await, right[5]);
    assert_eq!(refused(store.range(at(7)).await), Error::FutureRevision);
    assert_eq!(
        refused(store.compact(compact(7, false)).await),
        Error::FutureRevision
    );
    store.compact(compact(4, true)).await.expect("compacted");
    assert_eq!(refused(store.range(at(3)).await), Error::Compacted);
    assert_eq!(
        refused(store.compact(compact(4, false)).await),
        Error::Compacted
    );
    for (revision, right) in (1..).zip(&right).skip(3) {
        assert_eq!(read(revision).await, *right, "at {revision}");
    }
    // The current revision may be compacted too.
    store.compact(compact(6, true)).await.expect("compacted");
    assert_eq!(read(0).await, right[5]);
    assert_eq!(read(6).await, right[5]);
    let rows = |name: &str| {
        let env = store.env().clone();
        let read = env.read(steadfast::ConsistencyPolicy::Eventual, |snapshot| {
            Ok::<_, steadfast::ReadError>(snapshot.database(name)?.iter().count())
        });
        read.expect("rows")
    };
    assert_eq!(rows("etcd/history"), 0, "all that was is gone");
    assert_eq!(
        rows("etcd/log"),
        1,
        "what happened at the compacted revision is left"
    );
    group.close().await;
}

#[tokio::test(start_paused = true)]
async fn pages_of_one_revision_are_the_whole_list_whatever_is_written_between_them() {
    let group = Group::new(1).await;
    let store = group.master().await;
    for n in 0..100 {
        set(&store, &format!("k{n:03}"), "1").await;
    }
    let whole = store.range(prefix("k")).await.expect("a range");
    let revision = revision(whole.header.as_ref());
    let mut pages = Vec::new();
    let mut request = RangeRequest {
        limit: 7,
        ..prefix("k")
    };
    for n in 0.. {
        let page = store.range(request.clone()).await.expect("a page");
        assert_eq!(page.count, 100 - 7 * n, "of what is left");
        pages.extend(page.kvs);
        request.revision = revision;
        let last = &pages.last().expect("keys").key;
        request.key = [&last[..], b"\0"].concat().into();
        // Before, behind and at the place where the list goes on.
        set(&store, &format!("k{:03}", 13 * n % 100), "2").await;
        store
            .delete_range(delete(&format!("k{:03}", 17 * n % 100)))
            .await
            .expect("deleted");
        set(&store, &format!("k{n:03}x"), "new").await;
        if !page.more {
            break;
        }
    }
    assert_eq!(pages, whole.kvs);
    let request = RangeRequest {
        revision,
        ..prefix("k")
    };
    let mut stream = std::pin::pin!(store.range_stream(request));
    let first = stream.try_next().await.expect("a page").expect("one");
    assert_eq!(
        (first.kvs, first.more, first.count),
        (whole.kvs, false, 100)
    );
    assert_eq!(stream.try_next().await.expect("its end"), None);
    group.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_stream_of_a_range_has_it_in_pages_of_bounded_size() {
    let group = Group::new(1).await;
    let store = group.master().await;
    let large = "x".repeat(300_000);
    for n in 0..10 {
        set(&store, &format!("k{n}"), &large).await;
    }
    let first = store.header().revision;
    let mut stream = std::pin::pin!(store.range_stream(RangeRequest {
        limit: 9,
        ..prefix("k")
    }));
    let mut found = Vec::new();
    while let Some(page) = stream.try_next().await.expect("a page") {
        assert!(page.kvs.len() <= 4, "{} keys", page.kvs.len());
        assert_eq!((page.count, revision(page.header.as_ref())), (10, first));
        found.extend(page.kvs.iter().map(|kv| text(&kv.key)));
        store
            .delete_range(delete_prefix("k"))
            .await
            .expect("deleted");
        if found.len() < 9 {
            assert!(page.more);
        }
    }
    assert_eq!(found, (0..9).map(|n| format!("k{n}")).collect::<Vec<_>>());
    group.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_request_over_the_limit_is_refused() {
    let group = Group::new(1).await;
    let store = group.master().await;
    let value = |bytes: usize| "x".repeat(bytes);
    set(&store, "k", &value(1_572_834)).await;
    let large = store.put(put("k", &value(1_572_854))).await;
    assert_eq!(refused(large), Error::RequestTooLarge);
    group.close().await;
}

#[tokio::test(start_paused = true)]
async fn any_node_takes_writes_and_reads_what_was_acknowledged() {
    let group = Group::new(3).await;
    let stores = group.stores();
    for (n, writer) in stores.iter().cycle().take(9).enumerate() {
        let written = set(writer, "k", &n.to_string()).await;
        for reader in &stores {
            let answer = reader.range(get("k")).await.expect("a range");
            assert_eq!(values(&answer), [("k".to_owned(), n.to_string())]);
            let header = answer.header.expect("a header");
            assert_eq!(header.revision, written);
            assert_eq!(header.member_id, reader.header().member_id);
        }
    }
    let mut hashes = Vec::new();
    for store in &stores {
        let hash = store.hash_kv(0).await.expect("a hash");
        assert_eq!(hash.compact_revision, -1);
        hashes.push((hash.hash, hash.hash_revision));
    }
    assert!(hashes.iter().all(|hash| *hash == hashes[0]), "{hashes:?}");
    group.close().await;
}

#[tokio::test(start_paused = true)]
async fn without_a_majority_only_serializable_reads_are_answered() {
    let mut group = Group::new(3).await;
    set(&group.master().await, "k", "1").await;
    let master = group.master_name().await;
    for name in ["n1", "n2", "n3"].iter().filter(|name| **name != master) {
        group.crash(name).await;
    }
    let store = group.store(&master);
    let began = tokio::time::Instant::now();
    assert_eq!(refused(store.range(get("k")).await), Error::Timeout);
    let waited = began.elapsed();
    assert!((7..9).contains(&waited.as_secs()), "{waited:?}");
    let error = refused(store.put(put("k", "2")).await);
    assert!(
        matches!(error, Error::NoLeader | Error::OutcomeUnknown),
        "{error:?}"
    );
    let stale = RangeRequest {
        serializable: true,
        ..get("k")
    };
    assert_eq!(values(&store.range(stale).await.expect("a range")).len(), 1);
    assert!(began.elapsed() < Duration::from_secs(30));
    group.close().await;
}
