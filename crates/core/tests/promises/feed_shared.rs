//! The shared feed: one subscription of a node, any number of listeners, each of which gets every
//! transaction after its token once and in order.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use steadfast::ids::{Term, Vlsn};
use steadfast::{
    Change, CommitToken, FeedError, FeedEvent, FeedListener, ListenOptions, SharedFeed,
    SharedFeedOptions, StartAt,
};

use crate::support::{
    Env, Group, Numbers, PATIENCE, Release, STEADY, eventually, in_time, put, runtime,
};

/// Bytes that the shared feeds of these tests keep.
const KEPT: usize = 64 * 1024;

/// A node has one place for a subscription, and a master stays in office even on a busy machine.
const ONE_PLACE: Numbers = &[
    ("subscriptions_max", 1),
    ("election_timeout_min_ms", 2_000),
    ("election_timeout_max_ms", 3_000),
    ("commit_timeout_ms", 120_000),
];

fn shared(node: &Env) -> SharedFeed {
    let options = SharedFeedOptions::default().bytes_max(KEPT);
    node.shared_feed(options).expect("a shared feed")
}

/// The token before the first transaction.
fn zero(any: CommitToken) -> CommitToken {
    CommitToken {
        term: Term(0),
        vlsn: Vlsn(0),
        ..any
    }
}

/// Follows up to `last`; returns the numbers of the transactions.
fn follow(listener: impl Iterator<Item = Result<FeedEvent, FeedError>>, last: Vlsn) -> Vec<u64> {
    let mut seen = Vec::new();
    for event in listener {
        match event.expect("it goes on") {
            FeedEvent::Transaction(transaction) => seen.push(transaction.token.vlsn.0),
            FeedEvent::Progress { .. } => {}
            other => panic!("{other:?}"),
        }
        if seen.last() >= Some(&last.0) {
            break;
        }
    }
    seen
}

fn followed(listener: FeedListener, last: Vlsn) -> Vec<u64> {
    in_time("the listener", move || follow(listener, last))
}

fn range(after: CommitToken, last: CommitToken) -> Vec<u64> {
    (after.vlsn.0 + 1..=last.vlsn.0).collect()
}

/// Puts transactions that together are far more than a shared feed keeps; returns their tokens.
fn overflow(node: &Env) -> Vec<CommitToken> {
    let value = [7; 4096];
    let puts = (0..4 * KEPT / value.len()).map(|n| put(node, n.to_be_bytes(), value));
    puts.map(|put| put.expect("committed")).collect()
}

/// As a client that connects again with its last token whenever it was too slow: the numbers of
/// all transactions up to the put of the key "the end".
async fn client(
    shared: SharedFeed,
    mut listener: FeedListener,
    reconnected: Arc<AtomicUsize>,
) -> Vec<u64> {
    let mut seen = Vec::new();
    while let Some(event) = listener.next_async().await {
        match event {
            Ok(FeedEvent::Transaction(transaction)) => {
                seen.push(transaction.token.vlsn.0);
                let is_last =
                    |change: &Change| matches!(change, Change::Put { key, .. } if key == "the end");
                if transaction.changes.iter().any(is_last) {
                    return seen;
                }
            }
            Ok(other) => panic!("{other:?}"),
            Err(FeedError::Slow { resume }) => {
                reconnected.fetch_add(1, Ordering::Relaxed);
                listener = shared.listen(Some(resume)).expect("a listener");
            }
            Err(error) => panic!("{error}"),
        }
    }
    panic!("the listener has ended");
}

/// The most bytes that the feed keeps until the flag is set.
fn most_bytes(shared: SharedFeed, is_over: Arc<AtomicBool>) -> std::thread::JoinHandle<usize> {
    std::thread::spawn(move || {
        let mut most = 0;
        while !is_over.load(Ordering::Relaxed) {
            most = most.max(shared.bytes());
            std::thread::park_timeout(Duration::from_millis(1));
        }
        most
    })
}

#[test]
fn a_thousand_listeners_hear_everything_once_through_a_failover_in_bounded_memory() {
    let mut group = Group::in_memory(3, ONE_PLACE);
    let master = group.master_except(None);
    let tokens = overflow(group.node(master));
    let last = *tokens.last().expect("some");
    let replica = group.node((master + 1) % 3).clone();
    eventually("the replica has it", || replica.status().vlsn >= last.vlsn);
    let shared = shared(&replica);
    assert!(
        matches!(
            replica.subscribe(StartAt::Now),
            Err(FeedError::TooMany { .. })
        ),
        "it has the only place"
    );

    let (clients, reconnected) = (runtime(), Arc::<AtomicUsize>::default());
    let from = |n: usize| match n % 4 {
        0 => None,
        1 => Some(zero(last)),
        _ => Some(tokens[n % tokens.len()]),
    };
    let (go_on, still) = tokio::sync::watch::channel(false);
    let is_still = |n: usize| n.is_multiple_of(40);
    let listening: Vec<_> = (0..1_000)
        .map(|n| {
            let listener = shared.listen(from(n)).expect("a listener");
            let client = client(shared.clone(), listener, Arc::clone(&reconnected));
            let (mut still, is_still) = (still.clone(), is_still(n));
            let client = clients.spawn(async move {
                still
                    .wait_for(|go_on| *go_on || !is_still)
                    .await
                    .expect("it goes on");
                client.await
            });
            (from(n).unwrap_or(last), client)
        })
        .collect();

    let is_over = Arc::new(AtomicBool::new(false));
    let _ended = Release(&is_over);
    let most = most_bytes(shared.clone(), Arc::clone(&is_over));
    for n in 0..50_u8 {
        let _token = put(group.node(master), [n], [n; 1000]).expect("committed");
    }
    group.close(master);
    let next = group.master_except(Some(master));
    // A new master may have to hear of the other node first.
    eventually("it takes writes", || {
        put(group.node(next), "k", "v").is_ok()
    });
    for n in 0..50_u8 {
        let _token = put(group.node(next), [n], [n; 1000]).expect("committed");
    }
    let end = put(group.node(next), "the end", "").expect("committed");
    assert!(end.term > last.term);

    eventually("the replica has it", || replica.status().vlsn >= end.vlsn);
    go_on.send(true).expect("they wait");
    for (from, listening) in listening {
        let seen = async { tokio::time::timeout(PATIENCE, listening).await };
        let seen = clients.block_on(seen).expect("in time").expect("no panic");
        assert_eq!(seen, range(from, end));
    }
    is_over.store(true, Ordering::Relaxed);
    let most = most.join().expect("no panic");
    assert!(most > KEPT / 2 && most <= KEPT, "{most} bytes were kept");
    let still = (0..1_000).filter(|n| is_still(*n)).count();
    assert!(reconnected.load(Ordering::Relaxed) >= still);
}

#[test]
fn a_listener_that_is_too_slow_is_told_from_where_to_go_on_and_misses_nothing() {
    let group = Group::in_memory(1, STEADY);
    let node = group.master();
    let shared = shared(node);
    let mut slow = shared.listen(None).expect("a listener");
    let mut silent = shared.listen(None).expect("a listener");
    let quick = shared.listen(None).expect("a listener");
    let first = put(node, "k", "v").expect("committed");
    let event = in_time("the first", {
        move || {
            let event = slow.next();
            (slow, event)
        }
    });
    let (mut slow, event) = event;
    assert!(
        matches!(&event, Some(Ok(FeedEvent::Transaction(of))) if of.token == first),
        "{event:?}"
    );
    assert_eq!(slow.resume_token(), first);
    let last = *overflow(node).last().expect("some");
    let rest = shared.listen(Some(first)).expect("a listener");
    assert_eq!(followed(rest, last.vlsn), range(first, last));

    let ended = in_time("its end", move || (slow.next(), slow.next()));
    let (Some(Err(FeedError::Slow { resume })), None) = &ended else {
        panic!("{ended:?}");
    };
    assert_eq!(*resume, first);
    let again = shared.listen(Some(*resume)).expect("a listener");
    assert_eq!(followed(again, last.vlsn), range(first, last));
    // Also one that has got nothing yet has a place from which it misses nothing.
    let Some(Err(FeedError::Slow { resume })) = silent.next() else {
        panic!("it is not too slow");
    };
    let again = shared.listen(Some(resume)).expect("a listener");
    assert!(followed(again, last.vlsn).ends_with(&range(first, last)));
    drop(quick);
}

#[test]
fn listeners_that_stand_still_or_wait_for_what_may_never_come_hold_up_no_other() {
    let group = Group::in_memory(1, STEADY);
    let node = group.master();
    let tokens = overflow(node);
    let last = *tokens.last().expect("some");
    let shared = shared(node);
    let future = CommitToken {
        vlsn: Vlsn(last.vlsn.0 + 1_000_000),
        ..last
    };
    let waiting: Vec<_> = (0..50)
        .map(|_| shared.listen(Some(future)).expect("a listener"))
        .collect();
    let still = (0..50).map(|_| {
        let mut still = shared.listen(Some(zero(last))).expect("a listener");
        let first = still.next();
        assert!(matches!(first, Some(Ok(_))), "{first:?}");
        still
    });
    let still: Vec<_> = still.collect();
    let other = shared.listen(Some(tokens[1])).expect("a listener");
    assert_eq!(followed(other, last.vlsn), range(tokens[1], last));
    for still in still {
        let rest = followed(still, last.vlsn);
        assert_eq!(rest, range(zero(last), last)[1..]);
    }
    drop(waiting);
}

#[test]
fn filters_of_the_feed_and_of_a_listener_let_nothing_else_through() {
    let group = Group::in_memory(1, STEADY);
    let node = group.master();
    let write = |database: &str, key: &str| {
        let token = node.write(|txn| {
            txn.database("other")?.put(key, "")?;
            txn.database(database)?.put(key, "")
        });
        token.expect("committed").token
    };
    let start = write("a", "1");
    let _none = write("none", "1");
    let options = SharedFeedOptions::default().database("a").database("b");
    let shared = node.shared_feed(options).expect("a shared feed");
    // Nothing of what the feed has lies between this token and its beginning.
    let all = shared.listen(Some(start)).expect("a listener");
    let some = ListenOptions::after(start)
        .prefix("a", "x")
        .database("none");
    let some = shared.listen(some).expect("a listener");
    let expected = [write("a", "y"), write("b", "x"), write("a", "x1")];
    let keys = |listener: FeedListener, number: usize| {
        let events = in_time("the listener", move || {
            listener.take(number).collect::<Result<Vec<_>, _>>()
        });
        let key = |change: Change| match change {
            Change::Put { database, key, .. } => Some((database.to_string(), key)),
            Change::Created { .. } => None,
            other => panic!("{other:?}"),
        };
        let transaction = |event| match event {
            FeedEvent::Transaction(of) => {
                let changes: Vec<_> = of.changes.into_iter().filter_map(key).collect();
                (of.token, changes)
            }
            other => panic!("{other:?}"),
        };
        let events = events.expect("it goes on").into_iter().map(transaction);
        events.collect::<Vec<_>>()
    };
    let put = |database: &str, key: &'static str| vec![(database.to_owned(), key.into())];
    let (y, x, x1) = (put("a", "y"), put("b", "x"), put("a", "x1"));
    let [first, second, third] = expected;
    let everything = [(first, y), (second, x), (third, x1.clone())];
    assert_eq!(keys(all, 3), everything);
    assert_eq!(keys(some, 1), [(third, x1)]);

    // A listener that wants nothing of many transactions still moves on.
    let mut idle = shared
        .listen(ListenOptions::now().database("never"))
        .expect("a listener");
    for _ in 0..1024 {
        let _token = write("a", "z");
    }
    let moved = in_time("a position", move || idle.next());
    assert!(
        matches!(moved, Some(Ok(FeedEvent::Progress { token })) if token > third),
        "{moved:?}"
    );
}

#[test]
fn a_listener_with_a_token_that_is_not_of_this_history_is_refused() {
    let group = Group::in_memory(1, STEADY);
    let node = group.master();
    let old = put(node, "k", "v").expect("committed");
    let shared = shared(node);
    let new = put(node, "k", "v").expect("committed");
    for token in [old, new] {
        let term = Term(token.term.0 + 1);
        let mut listener = shared
            .listen(Some(CommitToken { term, ..token }))
            .expect("a listener");
        let first = in_time("the refusal", move || (listener.next(), listener.next()));
        assert!(
            matches!(first, (Some(Err(FeedError::NotCommitted { committed, .. })), None)
                if committed == token.term),
            "{first:?}"
        );
    }
    let other = Group::in_memory(1, STEADY);
    let foreign = put(other.master(), "k", "v").expect("committed");
    let refused = shared.listen(Some(foreign));
    assert!(
        matches!(refused, Err(FeedError::WrongGroup { .. })),
        "{refused:?}"
    );
}

#[test]
fn a_closed_environment_ends_its_shared_feeds_and_dropped_ones_free_their_place() {
    let group = Group::in_memory(1, &[("subscriptions_max", 1)]);
    let node = group.master().clone();
    let mut waiting = shared(&node).listen(None).expect("a listener");
    let refused = node.shared_feed(SharedFeedOptions::default());
    assert!(matches!(refused, Err(FeedError::TooMany { max: 1 })));
    // Its listener alone keeps the feed.
    let token = put(&node, "k", "v").expect("committed");
    let first = in_time("the first", move || {
        let first = waiting.next();
        (waiting, first)
    });
    let (waiting, first) = first;
    assert!(matches!(first, Some(Ok(FeedEvent::Transaction(of))) if of.token == token));
    drop(waiting);
    eventually("its place is free", || node.subscribe(StartAt::Now).is_ok());

    let shared = shared(&node);
    let mut waiting = shared.listen(None).expect("a listener");
    let mut idle = shared.listen(Some(zero(token))).expect("a listener");
    let waiter = std::thread::spawn(move || (waiting.next(), waiting.next()));
    node.close().expect("closed");
    let ended = in_time("the listener", move || waiter.join().expect("no panic"));
    assert!(
        matches!(ended, (Some(Err(FeedError::Closed)), None)),
        "{ended:?}"
    );
    assert!(matches!(shared.listen(None), Err(FeedError::Closed)));
    let ended = in_time("the idle one", move || idle.find(Result::is_err));
    assert!(matches!(ended, Some(Err(FeedError::Closed))), "{ended:?}");
}
