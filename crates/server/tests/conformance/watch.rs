//! Watches: where they begin, what they tell and in what order.

use std::collections::BTreeSet;

use steadfast_server::proto::etcdserverpb::watch_create_request::FilterType;
use steadfast_server::proto::etcdserverpb::{WatchCreateRequest, WatchResponse};

use crate::ask::{
    Operation, bytes, delete, delete_prefix, lines, put, revision, text, txn, watch, watch_prefix,
};
use crate::target::{Target, Version, rows};

rows! {
    One:
    events_come_from_the_revision_that_was_asked_for,
    a_watch_from_a_compacted_revision_is_told_so_and_the_stream_goes_on,
    a_watch_may_begin_at_the_compacted_revision,
    a_watch_from_the_future_hears_nothing_before,
    what_was_there_before_is_absent_once_compacted,
    progress_comes_when_asked_for_and_not_before_its_events,
    progress_without_watches_has_no_answer,
    ids_are_counted_up_past_those_in_use,
    an_id_can_be_used_once_at_a_time,
    a_cancelled_watch_ends_and_an_unknown_one_has_no_answer,
    events_of_a_transaction_come_whole_and_in_the_order_of_its_parts,
    a_key_that_nested_parts_put_and_delete_has_both_events,
    an_empty_key_is_the_zero_byte,
    a_range_that_ends_before_it_begins_cannot_be_watched,
    a_negative_start_is_compacted,
    filters_leave_out_kinds_of_events,
    one_revision_is_cut_only_when_that_was_asked_for,
    large_revisions_come_in_order,
    many_watches_on_one_stream_hear_each_their_own;
    Progress:
    an_idle_watch_is_told_of_progress_by_itself;
}

const COMPACTED: &str = "etcdserver: mvcc: required revision has been compacted";

/// The answer to a watch that cannot be.
#[track_caller]
fn never_was(answer: &WatchResponse, reason: &str) {
    assert!(answer.created && answer.canceled, "{answer:?}");
    assert_eq!(
        (answer.watch_id, answer.cancel_reason.as_str()),
        (-1, reason)
    );
}

fn from(start_revision: i64, request: WatchCreateRequest) -> WatchCreateRequest {
    WatchCreateRequest {
        start_revision,
        ..request
    }
}

async fn events_come_from_the_revision_that_was_asked_for(target: Target) {
    let first = target.put("a", "1").await;
    target.put("b", "x").await;
    target.put("a", "2").await;
    target.delete(delete("a")).await.unwrap();
    let mut watches = target.watch().await;
    let answer = watches.create(from(first + 1, watch("a"))).await;
    assert_eq!(revision(answer.header), first + 3);
    let events = watches.events(2).await;
    assert_eq!(
        events,
        [
            format!("PUT a=2@{}", first + 2),
            format!("DELETE a@{}", first + 3)
        ]
    );
    target.put("b", "y").await;
    target.put("a", "3").await;
    let answer = watches.next().await;
    assert_eq!(lines(&answer), [format!("PUT a=3@{}", first + 5)]);
    assert_eq!(revision(answer.header), first + 5);
    let kv = answer.events[0].kv.as_ref().unwrap();
    assert_eq!((kv.create_revision, kv.version), (first + 5, 1));
}

async fn a_watch_from_a_compacted_revision_is_told_so_and_the_stream_goes_on(target: Target) {
    let first = target.put("a", "1").await;
    target.put("a", "2").await;
    target.compact(first + 1).await.unwrap();
    let mut watches = target.watch().await;
    let created = watches.create(from(first, watch("a"))).await;
    assert!(!created.canceled);
    let answer = watches.next().await;
    assert!(answer.canceled && !answer.created && answer.events.is_empty());
    assert_eq!(
        (answer.watch_id, answer.compact_revision),
        (created.watch_id, first + 1)
    );
    assert_eq!(
        (answer.cancel_reason.as_str(), revision(answer.header)),
        ("", 0)
    );
    assert!(answer.header.unwrap().raft_term > 0);

    watches.create(watch("a")).await;
    let last = target.put("a", "3").await;
    assert_eq!(watches.events(1).await, [format!("PUT a=3@{last}")]);
}

async fn a_watch_may_begin_at_the_compacted_revision(target: Target) {
    let first = target.put("a", "1").await;
    target.delete(delete("a")).await.unwrap();
    target.put("a", "3").await;
    target.compact(first).await.unwrap();
    let mut watches = target.watch().await;
    assert!(!watches.create(from(first, watch("a"))).await.canceled);
    assert_eq!(watches.events(3).await[0], format!("PUT a=1@{first}"));

    target.compact(first + 1).await.unwrap();
    let mut watches = target.watch().await;
    assert!(!watches.create(from(first + 1, watch("a"))).await.canceled);
    let events = watches.events(1).await;
    if target.loses_a_delete_at_the_compacted_revision() {
        assert_eq!(events[0], format!("PUT a=3@{}", first + 2));
    } else {
        assert_eq!(events[0], format!("DELETE a@{}", first + 1));
    }
}

async fn a_watch_from_the_future_hears_nothing_before(target: Target) {
    let now = target.revision().await;
    let mut watches = target.watch().await;
    watches.create(from(now + 3, watch("a"))).await;
    for value in ["1", "2", "3", "4"] {
        target.put("a", value).await;
    }
    let events = watches.events(2).await;
    assert_eq!(
        events,
        [
            format!("PUT a=3@{}", now + 3),
            format!("PUT a=4@{}", now + 4)
        ]
    );
}

async fn what_was_there_before_is_absent_once_compacted(target: Target) {
    let first = target.put("a", "1").await;
    target.put("a", "2").await;
    target.put("a", "3").await;
    target.compact(first + 1).await.unwrap();
    let mut watches = target.watch().await;
    let request = WatchCreateRequest {
        prev_kv: true,
        ..from(first + 1, watch("a"))
    };
    watches.create(request).await;
    let mut events = Vec::new();
    while events.len() < 2 {
        events.extend(watches.next().await.events);
    }
    assert!(
        events[0].prev_kv.is_none(),
        "what the put at the compacted revision replaced"
    );
    assert_eq!(text(&events[1].prev_kv.as_ref().unwrap().value), "2");
    target.delete(delete("a")).await.unwrap();
    let event = watches.next().await.events.remove(0);
    assert_eq!(text(&event.prev_kv.unwrap().value), "3");
    let kv = event.kv.unwrap();
    assert_eq!(
        (kv.create_revision, kv.version, kv.value.len()),
        (0, 0, 0),
        "a deletion"
    );
}

async fn progress_comes_when_asked_for_and_not_before_its_events(target: Target) {
    let mut watches = target.watch().await;
    watches.create(watch("a")).await;
    target.put("b", "elsewhere").await;
    let last = target.put("a", "1").await;
    watches.ask_progress().await;
    let mut seen = false;
    loop {
        let answer = watches.next().await;
        if answer.events.is_empty() {
            assert_eq!((answer.watch_id, answer.created), (-1, false), "{answer:?}");
            if !target.tells_progress_before_its_events() {
                assert!(seen || revision(answer.header) < last, "{answer:?}");
            }
            if seen {
                break;
            }
            watches.ask_progress().await;
        } else {
            seen = true;
            assert_eq!(lines(&answer), [format!("PUT a=1@{last}")]);
            watches.ask_progress().await;
        }
    }
}

async fn an_idle_watch_is_told_of_progress_by_itself(target: Target) {
    let wanting = |key: &str| WatchCreateRequest {
        progress_notify: true,
        ..watch(key)
    };
    let mut watches = target.watch().await;
    watches.create(watch("a")).await;
    let idle = watches.create(wanting("a")).await.watch_id;
    let now = target.put("b", "elsewhere").await;
    if target.is_ours || target.version >= Version(3, 5, 30) {
        watches.create(from(now + 9, wanting("a"))).await;
    }
    for _ in 0..2 {
        let answer = watches.next().await;
        assert!(
            answer.events.is_empty() && !answer.created && !answer.canceled,
            "{answer:?}"
        );
        assert_eq!((answer.watch_id, revision(answer.header)), (idle, now));
    }
}

async fn progress_without_watches_has_no_answer(target: Target) {
    let mut watches = target.watch().await;
    watches.ask_progress().await;
    watches.send_create(watch("a")).await;
    let mut answer = watches.next().await;
    if target.tells_progress_without_watches() {
        assert_eq!((answer.watch_id, answer.created), (-1, false), "{answer:?}");
        answer = watches.next().await;
    }
    assert!(answer.created && answer.watch_id == 0, "{answer:?}");
}

async fn ids_are_counted_up_past_those_in_use(target: Target) {
    let with_id = |watch_id| WatchCreateRequest {
        watch_id,
        ..watch("a")
    };
    let mut watches = target.watch().await;
    let mut ids = Vec::new();
    for asked in [0, 2, 0, 0, -7] {
        ids.push(watches.create(with_id(asked)).await.watch_id);
    }
    assert_eq!(ids, [0, 2, 1, 3, -7]);
    target.put("a", "v").await;
    let mut heard = BTreeSet::new();
    while heard.len() < ids.len() {
        heard.insert(watches.next().await.watch_id);
    }
    assert_eq!(heard, ids.into_iter().collect());
}

async fn an_id_can_be_used_once_at_a_time(target: Target) {
    let with_id = |watch_id| WatchCreateRequest {
        watch_id,
        ..watch("a")
    };
    let mut watches = target.watch().await;
    assert_eq!(watches.create(with_id(5)).await.watch_id, 5);
    let answer = watches.create(with_id(5)).await;
    never_was(
        &answer,
        "mvcc: duplicate watch ID provided on the WatchStream",
    );
    watches.cancel(5).await;
    let answer = watches.next().await;
    assert!(answer.canceled && answer.watch_id == 5, "{answer:?}");
    let answer = watches.create(with_id(5)).await;
    assert!(!answer.canceled && answer.watch_id == 5, "{answer:?}");
}

async fn a_cancelled_watch_ends_and_an_unknown_one_has_no_answer(target: Target) {
    let mut watches = target.watch().await;
    let first = watches.create(watch("a")).await.watch_id;
    let second = watches.create(watch("a")).await.watch_id;
    watches.cancel(99).await;
    watches.cancel(first).await;
    let answer = watches.next().await;
    assert!(answer.canceled && !answer.created, "{answer:?}");
    assert_eq!((answer.watch_id, answer.compact_revision), (first, 0));
    target.put("a", "v").await;
    let answer = watches.next().await;
    assert_eq!((answer.watch_id, answer.events.len()), (second, 1));
}

async fn events_of_a_transaction_come_whole_and_in_the_order_of_its_parts(target: Target) {
    let mut watches = target.watch().await;
    watches.create(watch_prefix("d")).await;
    let puts = ["d9", "d1", "d5"].map(|key| put(key, "v").op());
    let at = revision(target.txn(txn(puts)).await.unwrap().header);
    let answer = watches.next().await;
    let expected = ["d9", "d1", "d5"].map(|key| format!("PUT {key}=v@{at}"));
    assert_eq!(lines(&answer), expected, "one message");
    assert_eq!(revision(answer.header), at);
    target.delete(delete_prefix("d")).await.unwrap();
    let expected = ["d1", "d5", "d9"].map(|key| format!("DELETE {key}@{}", at + 1));
    assert_eq!(
        lines(&watches.next().await),
        expected,
        "a range is deleted in the order of keys"
    );

    let mut later = target.watch().await;
    later.create(from(at, watch_prefix("d"))).await;
    let expected = ["d9", "d1", "d5"].map(|key| format!("PUT {key}=v@{at}"));
    assert_eq!(later.events(6).await[..3], expected, "also from the past");
}

async fn a_key_that_nested_parts_put_and_delete_has_both_events(target: Target) {
    let mut watches = target.watch().await;
    watches.create(watch("a")).await;
    let request = txn([txn([put("a", "v").op()]).op(), txn([delete("a").op()]).op()]);
    let at = revision(target.txn(request).await.unwrap().header);
    let answer = watches.next().await;
    assert_eq!(
        lines(&answer),
        [format!("PUT a=v@{at}"), format!("DELETE a@{at}")]
    );
}

async fn an_empty_key_is_the_zero_byte(target: Target) {
    let mut watches = target.watch().await;
    let zero = watches.create(watch("")).await.watch_id;
    let every = WatchCreateRequest {
        range_end: bytes("\0"),
        ..watch("")
    };
    let every = watches.create(every).await.watch_id;
    target.put("a", "v").await;
    assert_eq!(watches.next().await.watch_id, every);
    target.put("\0", "v").await;
    let heard = BTreeSet::from([watches.next().await.watch_id, watches.next().await.watch_id]);
    assert_eq!(heard, BTreeSet::from([zero, every]));
}

async fn a_range_that_ends_before_it_begins_cannot_be_watched(target: Target) {
    let mut watches = target.watch().await;
    let reversed = WatchCreateRequest {
        range_end: bytes("a"),
        ..watch("z")
    };
    never_was(
        &watches.create(reversed).await,
        "mvcc: watcher range is empty",
    );
    let nothing = WatchCreateRequest {
        range_end: bytes("a"),
        ..watch("a")
    };
    never_was(
        &watches.create(nothing).await,
        "mvcc: watcher range is empty",
    );
}

async fn a_negative_start_is_compacted(target: Target) {
    target.put("a", "1").await;
    target.put("a", "2").await;
    let mut watches = target.watch().await;
    let answer = watches.create(from(-5, watch("a"))).await;
    if target.accepts_a_negative_start_first() {
        assert!(!answer.canceled);
        let answer = watches.next().await;
        assert!(
            answer.canceled && answer.compact_revision == -1,
            "{answer:?}"
        );
    } else {
        never_was(&answer, COMPACTED);
        never_was(&watches.create(from(-1, watch("a"))).await, COMPACTED);
    }
}

async fn filters_leave_out_kinds_of_events(target: Target) {
    let filtered = |filter: FilterType| WatchCreateRequest {
        filters: vec![filter.into()],
        ..watch("a")
    };
    let mut deletes = target.watch().await;
    deletes.create(filtered(FilterType::Noput)).await;
    let mut puts = target.watch().await;
    puts.create(filtered(FilterType::Nodelete)).await;
    let first = target.put("a", "1").await;
    target.delete(delete("a")).await.unwrap();
    target.put("a", "3").await;
    target.delete(delete("a")).await.unwrap();
    let expected = [format!("PUT a=1@{first}"), format!("PUT a=3@{}", first + 2)];
    assert_eq!(puts.events(2).await, expected);
    let expected = [
        format!("DELETE a@{}", first + 1),
        format!("DELETE a@{}", first + 3),
    ];
    assert_eq!(deletes.events(2).await, expected);
}

async fn one_revision_is_cut_only_when_that_was_asked_for(target: Target) {
    let large = "x".repeat(700_000);
    for key in ["a1", "a2", "a3", "a4"] {
        target.put(key, &large).await;
    }
    let at = revision(target.delete(delete_prefix("a")).await.unwrap().header);
    let request = || WatchCreateRequest {
        prev_kv: true,
        ..from(at, watch_prefix("a"))
    };
    let mut watches = target.watch().await;
    watches.create(request()).await;
    let answer = watches.next().await;
    assert_eq!((answer.events.len(), answer.fragment), (4, false));

    let mut watches = target.watch().await;
    watches
        .create(WatchCreateRequest {
            fragment: true,
            ..request()
        })
        .await;
    for fragment in [true, false] {
        let answer = watches.next().await;
        assert_eq!((answer.events.len(), answer.fragment), (2, fragment));
    }
}

/// A real etcd sends them in one message, however large it is.
async fn large_revisions_come_in_order(target: Target) {
    let large = "x".repeat(700_000);
    let first = target.put("a", &large).await;
    for _ in 0..3 {
        target.put("a", &large).await;
    }
    let mut watches = target.watch().await;
    watches.create(from(first, watch("a"))).await;
    let mut at = first;
    while at < first + 4 {
        let answer = watches.next().await;
        assert!(!answer.fragment && !answer.events.is_empty());
        assert!(target.is_ours || answer.events.len() == 4);
        for event in answer.events {
            assert_eq!(event.kv.unwrap().mod_revision, at);
            at += 1;
        }
    }
}

async fn many_watches_on_one_stream_hear_each_their_own(target: Target) {
    let mut watches = target.watch().await;
    let mut ids = Vec::new();
    for n in 0..300 {
        ids.push(watches.create(watch(&format!("k{n}"))).await.watch_id);
    }
    let puts = |from: usize| (from..from + 100).map(|n| put(&format!("k{n}"), "v").op());
    for part in [0, 100, 200] {
        target.txn(txn(puts(part))).await.unwrap();
    }
    let mut heard = BTreeSet::new();
    while heard.len() < ids.len() {
        let answer = watches.next().await;
        assert_eq!(answer.events.len(), 1);
        let key = text(&answer.events[0].kv.as_ref().unwrap().key);
        assert_eq!(key, format!("k{}", answer.watch_id));
        assert!(heard.insert(answer.watch_id), "once");
    }
}
