//! Watches: which events come, in which order, and what else is told.

use std::time::Duration;

use bytes::Bytes;
use steadfast_server::proto::etcdserverpb::watch_create_request::FilterType;
use steadfast_server::proto::etcdserverpb::*;
use steadfast_server::store::{Store, StoreConfig};

use crate::group::*;

const QUIET: Duration = Duration::from_secs(30);

async fn created(watches: &mut Watches, request: WatchCreateRequest) -> i64 {
    watches.create(request).await;
    let answer = watches.next().await;
    assert!(answer.created && !answer.canceled, "{answer:?}");
    answer.watch_id
}

async fn refused_watch(watches: &mut Watches, request: WatchCreateRequest, reason: &str) {
    watches.create(request).await;
    let answer = watches.next().await;
    assert!(answer.created && answer.canceled, "{answer:?}");
    assert_eq!((answer.watch_id, &answer.cancel_reason[..]), (-1, reason));
}

async fn compact(store: &Store, revision: i64) {
    let request = CompactionRequest {
        revision,
        physical: true,
    };
    store.compact(request).await.expect("compacted");
}

#[tokio::test(start_paused = true)]
async fn a_watch_gets_what_happens_to_its_keys_from_its_start_on() {
    let group = Group::new(1).await;
    let store = group.master().await;
    for (key, value) in [("a", "1"), ("b", "1"), ("a", "2")] {
        set(&store, key, value).await; // 2, 3, 4
    }
    let mut watches = Watches::new(&store);
    created(&mut watches, watch("a", 0)).await;
    assert!(watches.is_silent(QUIET).await, "nothing is new");
    created(&mut watches, watch("a", 2)).await;
    assert_eq!(shorts(&watches.events(2).await), ["+a=1@2", "+a=2@4"]);
    created(&mut watches, watch_prefix("a", 4)).await;
    assert_eq!(shorts(&watches.events(1).await), ["+a=2@4"]);
    let all = WatchCreateRequest {
        range_end: Bytes::from_static(&[0]),
        ..watch("", 3)
    };
    created(&mut watches, all).await;
    assert_eq!(shorts(&watches.events(2).await), ["+b=1@3", "+a=2@4"]);
    set(&store, "a", "3").await;
    assert_eq!(shorts(&watches.events(4).await), ["+a=3@5"; 4]);
    set(&store, "c", "1").await;
    let answer = watches.next().await;
    assert_eq!(
        (shorts(&answer.events), revision(answer.header.as_ref())),
        (vec!["+c=1@6".into()], 6)
    );
    assert!(watches.is_silent(QUIET).await);
    // Without an end, the empty key is one key.
    let zero = watch("", 0);
    created(&mut watches, zero).await;
    set(&store, "\0", "x").await;
    assert_eq!(shorts(&watches.events(2).await), ["+\0=x@7"; 2]);
    drop(watches);
    group.close().await;
}

#[tokio::test(start_paused = true)]
async fn the_events_of_a_transaction_come_together_in_the_order_of_its_operations() {
    let group = Group::new(1).await;
    let store = group.master().await;
    for key in ["d1", "d5", "d9", "r2", "r1"] {
        set(&store, key, "1").await;
    }
    let mut watches = Watches::new(&store);
    created(&mut watches, watch_prefix("d", 7)).await;
    created(&mut watches, watch_prefix("r", 7)).await;
    created(&mut watches, watch_prefix("k", 7)).await;
    let ops = ["d9", "d1", "d5"].map(|key| op(delete(key))).to_vec();
    store.txn(txn(ops)).await.expect("deleted");
    let answer = watches.next().await;
    assert_eq!(shorts(&answer.events), ["-d9@7", "-d1@7", "-d5@7"]);
    store
        .delete_range(delete_prefix("r"))
        .await
        .expect("deleted");
    let answer = watches.next().await;
    assert_eq!(shorts(&answer.events), ["-r1@8", "-r2@8"]);
    let ops = vec![
        op(txn(vec![op(put("k", "1"))])),
        op(txn(vec![op(delete("k"))])),
    ];
    store.txn(txn(ops)).await.expect("done");
    let answer = watches.next().await;
    assert_eq!(shorts(&answer.events), ["+k=1@9", "-k@9"]);
    // The same from the past.
    let previous = WatchCreateRequest {
        prev_kv: true,
        ..watch_prefix("k", 9)
    };
    created(&mut watches, previous).await;
    let answer = watches.next().await;
    assert_eq!(shorts(&answer.events), ["+k=1@9", "-k@9"]);
    let before = answer.events[1].prev_kv.as_ref().expect("what was deleted");
    assert_eq!(
        (pair(before), before.mod_revision),
        (("k".into(), "1".into()), 9)
    );
    assert_eq!(store.range(get("k")).await.expect("a range").count, 0);
    drop(watches);
    group.close().await;
}

#[tokio::test(start_paused = true)]
async fn previous_versions_and_filters_are_as_asked() {
    let group = Group::new(1).await;
    let store = group.master().await;
    set(&store, "a", "1").await; // 2
    let mut previous = Watches::new(&store);
    let request = WatchCreateRequest {
        prev_kv: true,
        ..watch("a", 2)
    };
    created(&mut previous, request.clone()).await;
    let mut filtered = Watches::new(&store);
    let filter = |kind: FilterType| WatchCreateRequest {
        filters: vec![kind as i32],
        ..watch("a", 2)
    };
    let puts = created(&mut filtered, filter(FilterType::Nodelete)).await;
    assert_eq!(shorts(&filtered.events(1).await), ["+a=1@2"]);
    let deletes = created(&mut filtered, filter(FilterType::Noput)).await;
    set(&store, "a", "2").await; // 3
    store.delete_range(delete("a")).await.expect("deleted"); // 4
    set(&store, "a", "3").await; // 5
    let events = previous.events(4).await;
    let was: Vec<_> = events
        .iter()
        .map(|event| {
            event
                .prev_kv
                .as_ref()
                .map(|kv| (text(&kv.value), kv.version))
        })
        .collect();
    assert_eq!(
        was,
        [None, Some(("1".into(), 1)), Some(("2".into(), 2)), None]
    );
    let deleted = events[2].kv.as_ref().expect("a key");
    assert_eq!(
        (
            deleted.create_revision,
            deleted.version,
            deleted.value.len()
        ),
        (0, 0, 0)
    );
    for right in [(puts, "+a=2@3"), (deletes, "-a@4"), (puts, "+a=3@5")] {
        let answer = filtered.next().await;
        assert_eq!(
            (answer.watch_id, &shorts(&answer.events)[..]),
            (right.0, &[right.1.to_owned()][..])
        );
    }
    // Absent in silence where it is compacted.
    compact(&store, 3).await;
    let mut late = Watches::new(&store);
    created(
        &mut late,
        WatchCreateRequest {
            start_revision: 3,
            ..request
        },
    )
    .await;
    let events = late.events(3).await;
    let was: Vec<_> = events.iter().map(|event| event.prev_kv.is_some()).collect();
    assert_eq!(was, [false, true, false]);
    drop((previous, filtered, late));
    group.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_watch_from_a_compacted_revision_is_created_and_canceled() {
    let group = Group::new(1).await;
    let store = group.master().await;
    for n in 0..4 {
        set(&store, "a", &n.to_string()).await; // 2 to 5
    }
    store.delete_range(delete("a")).await.expect("deleted"); // 6
    compact(&store, 6).await;
    let mut watches = Watches::new(&store);
    let id = created(&mut watches, watch("a", 5)).await;
    let answer = watches.next().await;
    assert!(answer.canceled && !answer.created);
    assert_eq!(
        (
            answer.watch_id,
            answer.compact_revision,
            &answer.cancel_reason[..]
        ),
        (id, 6, "")
    );
    let header = answer.header.expect("a header");
    assert_eq!(header.revision, 0);
    assert!(header.raft_term > 0);
    // At exactly the compacted revision there is nothing missing, a deletion included.
    created(&mut watches, watch("a", 6)).await;
    assert_eq!(shorts(&watches.events(1).await), ["-a@6"]);
    let compacted = "etcdserver: mvcc: required revision has been compacted";
    refused_watch(&mut watches, watch("a", -1), compacted).await;
    set(&store, "a", "x").await;
    assert_eq!(
        shorts(&watches.events(1).await),
        ["+a=x@7"],
        "the stream stays open"
    );
    drop(watches);
    group.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_watch_from_the_future_gets_nothing_below_its_start() {
    let group = Group::new(1).await;
    let store = group.master().await;
    let mut watches = Watches::new(&store);
    created(&mut watches, watch("a", 4)).await;
    set(&store, "a", "2").await;
    watches.ask_progress().await;
    assert!(
        watches.is_silent(QUIET).await,
        "no event and no progress below the start"
    );
    set(&store, "a", "3").await;
    assert!(
        watches.is_silent(QUIET).await,
        "no event and no progress below the start"
    );
    set(&store, "a", "4").await;
    assert_eq!(shorts(&watches.events(1).await), ["+a=4@4"]);
    watches.ask_progress().await;
    assert_eq!(watches.next().await.watch_id, -1);
    drop(watches);
    group.close().await;
}

#[tokio::test(start_paused = true)]
async fn ids_are_counted_from_zero_and_may_be_chosen() {
    let group = Group::new(1).await;
    let store = group.master().await;
    let mut watches = Watches::new(&store);
    let with_id = |watch_id| WatchCreateRequest {
        watch_id,
        ..watch("a", 0)
    };
    for right in [0, 1] {
        assert_eq!(created(&mut watches, watch("a", 0)).await, right);
    }
    assert_eq!(created(&mut watches, with_id(2)).await, 2);
    assert_eq!(created(&mut watches, with_id(-7)).await, -7);
    assert_eq!(
        created(&mut watches, watch("a", 0)).await,
        3,
        "ids in use are left out"
    );
    let duplicate = "mvcc: duplicate watch ID provided on the WatchStream";
    refused_watch(&mut watches, with_id(2), duplicate).await;
    watches.cancel(9).await; // No answer.
    watches.cancel(2).await;
    let answer = watches.next().await;
    assert!(answer.canceled && answer.watch_id == 2 && answer.cancel_reason.is_empty());
    assert_eq!(created(&mut watches, with_id(2)).await, 2);
    set(&store, "a", "1").await;
    let mut told = Vec::new();
    for _ in 0..5 {
        told.push(watches.next().await.watch_id);
    }
    told.sort_unstable();
    assert_eq!(told, [-7, 0, 1, 2, 3]);
    let reversed = WatchCreateRequest {
        range_end: bytes("a"),
        ..watch("b", 0)
    };
    refused_watch(&mut watches, reversed, "mvcc: watcher range is empty").await;
    drop(watches);
    group.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_stream_has_only_so_many_watches() {
    let config = StoreConfig {
        watches_max: 3,
        ..StoreConfig::default()
    };
    let group = Group::with(1, config).await;
    let store = group.master().await;
    let mut watches = Watches::new(&store);
    for _ in 0..3 {
        created(&mut watches, watch("a", 0)).await;
    }
    refused_watch(
        &mut watches,
        watch("a", 0),
        "etcdserver: too many watches on the stream",
    )
    .await;
    watches.cancel(1).await;
    assert!(watches.next().await.canceled);
    created(&mut watches, watch("a", 0)).await;
    drop(watches);
    group.close().await;
}

#[tokio::test(start_paused = true)]
async fn progress_is_told_to_the_idle_and_to_those_who_ask_and_never_before_events() {
    let config = StoreConfig {
        progress_interval: Duration::from_secs(3),
        ..StoreConfig::default()
    };
    let group = Group::with(1, config).await;
    let store = group.master().await;
    let mut none = Watches::new(&store);
    none.ask_progress().await;
    assert!(none.is_silent(QUIET).await, "there is no watch");
    let mut idle = Watches::new(&store);
    let notified = WatchCreateRequest {
        progress_notify: true,
        ..watch("a", 0)
    };
    let id = created(&mut idle, notified.clone()).await;
    let began = tokio::time::Instant::now();
    set(&store, "b", "1").await;
    for n in 1..4 {
        let answer = idle.next().await;
        assert_eq!(
            (
                answer.watch_id,
                answer.events.len(),
                revision(answer.header.as_ref())
            ),
            (id, 0, 2)
        );
        let waited = began.elapsed().as_millis();
        assert!((3000 * n..3000 * n + 300).contains(&waited), "{waited}");
    }
    // One with events is not idle.
    for n in 0..5 {
        tokio::time::sleep(Duration::from_millis(1800)).await;
        set(&store, "a", &n.to_string()).await;
        assert_eq!(idle.next().await.events.len(), 1);
    }
    let mut busy = Watches::new(&store);
    created(&mut busy, watch_prefix("a", 2)).await;
    let mut last = 0;
    for n in 0..6 {
        busy.ask_progress().await;
        set(&store, "a", &n.to_string()).await;
    }
    let mut told = 0;
    while last < store.header().revision || told == 0 {
        let answer = busy.next().await;
        if answer.events.is_empty() {
            assert_eq!(answer.watch_id, -1);
            // All of a's events up to there have come: every revision is one, but for 2.
            assert!(
                revision(answer.header.as_ref()) <= last.max(2),
                "{} > {last}",
                revision(answer.header.as_ref())
            );
            told += 1;
            continue;
        }
        for event in &answer.events {
            let at = event.kv.as_ref().unwrap().mod_revision;
            assert!(at == last + 1 || last == 0 && at == 3, "{at} after {last}");
            last = at;
        }
    }
    drop((none, idle, busy));
    group.close().await;
}

#[tokio::test(start_paused = true)]
async fn large_messages_come_in_fragments_if_asked() {
    let group = Group::new(1).await;
    let store = group.master().await;
    let large = "x".repeat(700_000);
    for n in 0..4 {
        set(&store, &format!("a{n}"), &large).await;
    }
    let mut watches = Watches::new(&store);
    let request = WatchCreateRequest {
        fragment: true,
        ..watch_prefix("a", 2)
    };
    created(&mut watches, request).await;
    let mut events = Vec::new();
    while events.len() < 4 {
        let answer = watches.next().await;
        assert!(answer.events.len() <= 2, "{} events", answer.events.len());
        events.extend(
            shorts(&answer.events)
                .into_iter()
                .map(|event| event[..3].to_owned()),
        );
    }
    assert_eq!(events, ["+a0", "+a1", "+a2", "+a3"]);
    let ops = |key: &str| op(put(key, &"x".repeat(400_000)));
    let big = txn(["a0", "a1", "a2"].map(ops).to_vec());
    store.txn(big).await.expect("put");
    let answer = watches.next().await;
    assert_eq!((answer.events.len(), answer.fragment), (3, false));
    drop(watches);
    group.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_is_not_read_costs_little_and_misses_nothing() {
    let group = Group::new(1).await;
    let store = group.master().await;
    let (mut slow, mut quick) = (Watches::new(&store), Watches::new(&store));
    for watches in [&mut slow, &mut quick] {
        created(watches, watch_prefix("k", 0)).await;
    }
    let large = "x".repeat(100_000);
    let mut right = Vec::new();
    for n in 0..200 {
        let at = set(&store, &format!("k{n}"), &large).await;
        right.push(format!("+k{n}={large}@{at}"));
        assert_eq!(shorts(&quick.events(1).await), right[n..]);
    }
    let events = slow.events(200).await;
    assert_eq!(shorts(&events), right);
    set(&store, "k", "last").await;
    assert_eq!(shorts(&slow.events(1).await), ["+k=last@202"]);
    drop((slow, quick));
    group.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_catches_up_misses_nothing_of_what_happens_meanwhile() {
    let group = Group::new(1).await;
    let store = group.master().await;
    let large = "x".repeat(1_000_000);
    for _ in 0..60 {
        set(&store, "k", &large).await; // 2 to 61
    }
    let mut watches = Watches::new(&store);
    created(&mut watches, watch("k", 2)).await;
    // It stands still with as many answers as may wait, and behind.
    let mut next = 2;
    for n in 62..122 {
        set(&store, "k", "small").await;
        if n < 82 {
            continue;
        }
        for event in watches.next().await.events {
            assert_eq!(event.kv.unwrap().mod_revision, next);
            next += 1;
        }
    }
    while next < 122 {
        for event in watches.next().await.events {
            assert_eq!(event.kv.unwrap().mod_revision, next);
            next += 1;
        }
    }
    drop(watches);
    group.close().await;
}

/// Some clients go on behind it when their connection was cut.
#[tokio::test(start_paused = true)]
async fn the_header_of_a_message_goes_no_further_than_what_was_told() {
    let group = Group::new(1).await;
    let store = group.master().await;
    let large = "x".repeat(400_000);
    for _ in 0..12 {
        set(&store, "k", &large).await; // 2 to 13
    }
    let mut watches = Watches::new(&store);
    created(&mut watches, watch("k", 2)).await;
    let (mut told, mut messages) = (1, 0);
    while told < 13 {
        let answer = watches.next().await;
        messages += 1;
        for event in &answer.events {
            told += 1;
            assert_eq!(event.kv.as_ref().unwrap().mod_revision, told);
        }
        assert_eq!(revision(answer.header.as_ref()), told);
    }
    assert!(messages > 1, "it has caught up at once");
    drop(watches);
    group.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_slow_watch_that_is_overtaken_by_a_compaction_is_canceled() {
    let group = Group::new(1).await;
    let store = group.master().await;
    let mut slow = Watches::new(&store);
    created(&mut slow, watch("k", 0)).await;
    let large = "x".repeat(500_000);
    for _ in 0..60 {
        set(&store, "k", &large).await;
    }
    compact(&store, 60).await;
    let mut next = 2;
    loop {
        let answer = slow.next().await;
        if answer.canceled {
            assert_eq!(answer.compact_revision, 60);
            break;
        }
        for event in answer.events {
            assert_eq!(event.kv.unwrap().mod_revision, next);
            next += 1;
        }
    }
    assert!(next < 60);
    drop(slow);
    group.close().await;
}

#[tokio::test(start_paused = true)]
async fn thousands_of_watches_on_a_stream_each_get_their_events() {
    let group = Group::new(1).await;
    let store = group.master().await;
    let mut watches = Watches::new(&store);
    for n in 0..2000 {
        // Half of them of one key, half of their own; some from the past.
        let request = if n % 2 == 0 {
            watch("k", 1)
        } else {
            watch(&format!("own{n}"), 0)
        };
        created(&mut watches, request).await;
    }
    set(&store, "k", "1").await;
    let mut told = std::collections::BTreeSet::new();
    for _ in 0..1000 {
        let answer = watches.next().await;
        assert_eq!(shorts(&answer.events), ["+k=1@2"]);
        assert!(told.insert(answer.watch_id) && answer.watch_id % 2 == 0);
    }
    set(&store, "own1999", "1").await;
    let answer = watches.next().await;
    assert_eq!(
        (answer.watch_id, shorts(&answer.events)),
        (1999, vec!["+own1999=1@3".to_owned()])
    );
    assert!(watches.is_silent(QUIET).await);
    drop(watches);
    group.close().await;
}
