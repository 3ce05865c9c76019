//! The change feed: every committed transaction, whole, once and in order, within this process and
//! from another.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use steadfast::ids::{Term, Vlsn};
use steadfast::{
    Change, CommitToken, CommittedTransaction, ConsistencyPolicy, FeedError, FeedEvent, ReadError,
    SharedFeedOptions, StartAt, SubscribeOptions, Subscription,
};

use crate::support::{Env, Group, STEADY, eventually, in_time, name, put, runtime};

type Rows = BTreeMap<(String, Bytes), Bytes>;

/// A subscriber's state, built from what it receives.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Copy {
    pub(crate) rows: Rows,
    pub(crate) last: Option<CommitToken>,
    pub(crate) seen: Vec<CommittedTransaction>,
}

impl Copy {
    pub(crate) fn take(&mut self, event: FeedEvent) {
        match event {
            FeedEvent::State { database, rows, .. } => {
                assert!(self.last.is_none(), "state after its end");
                for (key, value) in rows {
                    let old = self.rows.insert((database.to_string(), key), value);
                    assert_eq!(old, None, "a row twice");
                }
            }
            FeedEvent::StateComplete { token, .. } | FeedEvent::Progress { token } => {
                self.last = Some(token);
            }
            FeedEvent::Transaction(transaction) => {
                if let Some(last) = self.last {
                    assert!(
                        transaction.token > last,
                        "{} after {last}",
                        transaction.token
                    );
                }
                self.last = Some(transaction.token);
                transaction
                    .changes
                    .iter()
                    .for_each(|change| self.change(change));
                self.seen.push(transaction);
            }
            other => panic!("{other:?}"),
        }
    }

    fn change(&mut self, change: &Change) {
        match change {
            Change::Put {
                database,
                key,
                value,
            } => {
                let place = (database.to_string(), key.clone());
                self.rows.insert(place, value.clone());
            }
            Change::Delete { database, key } => {
                self.rows.remove(&(database.to_string(), key.clone()));
            }
            Change::Created { database } | Change::Dropped { database } => {
                self.rows.retain(|(of, _), _| **of != **database);
            }
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn vlsns(&self) -> Vec<u64> {
        let seen = self.seen.iter();
        seen.map(|transaction| transaction.token.vlsn.0).collect()
    }
}

/// Follows a feed up to `last`.
fn follow<E: Into<FeedError> + std::fmt::Debug>(
    feed: impl Iterator<Item = Result<FeedEvent, E>>,
    last: Vlsn,
) -> Copy {
    let mut copy = Copy::default();
    for event in feed {
        copy.take(event.expect("the feed goes on"));
        if copy.last.is_some_and(|token| token.vlsn >= last) {
            break;
        }
    }
    copy
}

fn rows_of(node: &Env) -> Rows {
    let read = node.read(
        ConsistencyPolicy::Eventual,
        |snapshot| -> Result<_, ReadError> {
            let mut rows = Rows::new();
            for name in snapshot.list_databases()? {
                for row in &snapshot.database(&name)? {
                    let (key, value) = row?;
                    rows.insert((name.clone(), key), value);
                }
            }
            Ok(rows)
        },
    );
    read.expect("a read")
}

/// A subscription to all nodes of the group, from its own host.
pub(crate) fn connect(
    group: &Group,
    options: impl Into<SubscribeOptions>,
) -> Result<Subscription, FeedError> {
    let addresses = (0..group.nodes.len()).map(|at| format!("{}:7400", name(at)));
    let transport = group.network.host("subscriber");
    let connecting =
        Subscription::connect_on(transport, addresses.collect(), "promises", options.into());
    group.runtime.block_on(connecting)
}

fn vlsn(node: &Env) -> Vlsn {
    node.status().vlsn
}

/// Waits until every open node has applied everything up to `last`.
fn level(group: &Group, last: Vlsn) {
    eventually("every node has it", || {
        group.open_nodes().all(|node| vlsn(node) >= last)
    });
}

#[test]
fn every_node_yields_every_transaction_with_its_token_and_its_changes() {
    let group = Group::in_memory(3, STEADY);
    let mut tokens = Vec::new();
    for n in 0..20_u8 {
        tokens.push(put(group.master(), [n % 7], [n]).expect("committed"));
    }
    let deleted = group.master().write(|txn| {
        txn.database("d")?.delete([1])?;
        txn.database("e")?.put("x", "y")
    });
    tokens.push(deleted.expect("committed").token);
    let last = tokens[20].vlsn;
    let rows = rows_of(group.master());
    let zero = CommitToken {
        term: Term(0),
        vlsn: Vlsn(0),
        ..tokens[0]
    };
    level(&group, last);
    let mut copies = Vec::new();
    for node in group.open_nodes() {
        let feed = node.subscribe(StartAt::Token(zero)).expect("a feed");
        copies.push(in_time("the feed", move || follow(feed, last)));
    }
    let remote = connect(&group, StartAt::Token(zero)).expect("connected");
    copies.push(in_time("the subscription", move || follow(remote, last)));
    for copy in &copies {
        assert_eq!(copy, &copies[0]);
    }
    let copy = &copies[0];
    assert_eq!(copy.rows, rows);
    let seen: Vec<_> = copy.seen.iter().map(|seen| seen.token).collect();
    assert_eq!(seen, tokens);
    let (d, e): (Arc<str>, Arc<str>) = ("d".into(), "e".into());
    let key = Bytes::from_static(&[1]);
    let x = Change::Put {
        database: e.clone(),
        key: "x".into(),
        value: "y".into(),
    };
    let delete = Change::Delete { database: d, key };
    assert_eq!(
        copy.seen[20].changes,
        [Change::Created { database: e }, delete, x]
    );
    assert!(copy.seen[20].committed_at_ms > 1_600_000_000_000);
}

#[test]
fn a_feed_resumed_from_any_token_goes_on_with_the_next_transaction() {
    let group = Group::in_memory(1, STEADY);
    let node = group.master();
    let tokens: Vec<_> = (0..30_u8)
        .map(|n| put(node, [n], [n]).expect("committed"))
        .collect();
    let last = tokens[29].vlsn;
    for token in &tokens[..29] {
        let feed = node.subscribe(StartAt::Token(*token)).expect("a feed");
        let copy = in_time("the feed", move || follow(feed, last));
        let rest: Vec<_> = (token.vlsn.0 + 1..=last.0).collect();
        assert_eq!(copy.vlsns(), rest);
    }
    let mut now = node.subscribe(StartAt::Now).expect("a feed");
    let next = put(node, "k", "v").expect("committed");
    let first = in_time("the next", move || now.next());
    let first = first.expect("an event").expect("a transaction");
    assert!(matches!(first, FeedEvent::Transaction(first) if first.token == next));
}

#[test]
fn a_feed_names_what_was_written_to_a_database_that_has_been_dropped_since() {
    let group = Group::in_memory(1, STEADY);
    let node = group.master();
    let before = put(node, "k", "0").expect("committed");
    let _written = put(node, "k", "1").expect("committed");
    let dropped = node.write(|txn| txn.drop_database("d").map(|_| ()));
    let dropped = dropped.expect("committed").token.vlsn;
    let again = put(node, "k", "2").expect("committed").vlsn;
    let feed = node.subscribe(StartAt::Token(before)).expect("a feed");
    let seen = follow(feed, again).seen;
    let changes: Vec<_> = seen.into_iter().map(|of| of.changes).collect();
    let change = |value: &'static str| Change::Put {
        database: "d".into(),
        key: "k".into(),
        value: value.into(),
    };
    let (created, dropped_change) = (
        Change::Created {
            database: "d".into(),
        },
        Change::Dropped {
            database: "d".into(),
        },
    );
    assert!(dropped < again);
    let expected = [
        vec![change("1")],
        vec![dropped_change],
        vec![created, change("2")],
    ];
    assert_eq!(changes, expected);
}

#[test]
fn the_state_and_what_follows_are_the_whole_under_concurrent_writes() {
    let group = Group::in_memory(3, STEADY);
    let node = group.master().clone();
    for n in 0..2_000_u16 {
        let value = vec![7; 700];
        let _token = put(&node, n.to_be_bytes(), value).expect("committed");
    }
    let is_over = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..3_u16)
        .map(|writer| {
            let (node, is_over) = (node.clone(), Arc::clone(&is_over));
            std::thread::spawn(move || {
                for n in (0_u16..).map(|n| n.wrapping_mul(31) % 2_500) {
                    if is_over.load(Ordering::Relaxed) {
                        return;
                    }
                    let written = node.write(|txn| {
                        let database = txn.database("d")?;
                        if n % 5 == writer {
                            return database.delete(n.to_be_bytes());
                        }
                        database.put(n.to_be_bytes(), writer.to_be_bytes())?;
                        txn.database(&format!("w{writer}"))?
                            .put("last", n.to_be_bytes())
                    });
                    let _token = written.expect("committed");
                }
            })
        })
        .collect();
    let feed = node.subscribe(StartAt::Start).expect("a feed");
    let remote = connect(&group, StartAt::Start).expect("connected");
    let enough = Vlsn(vlsn(&node).0 + 500);
    eventually("some more writes", || vlsn(&node) > enough);
    is_over.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.join().expect("no panic");
    }
    let last = vlsn(&node);
    let rows = rows_of(&node);
    let copy = in_time("the feed", move || follow(feed, last));
    assert_eq!(copy.rows, rows);
    let remote = in_time("the subscription", move || follow(remote, last));
    assert_eq!(remote.rows, rows);
    let seen = remote.vlsns();
    let dense: Vec<_> = (seen[0]..=last.0).collect();
    assert_eq!(seen, dense);
}

#[test]
fn a_filter_lets_nothing_else_through_and_its_position_moves_on() {
    let group = Group::in_memory(1, STEADY);
    let node = group.master();
    let first = put(node, "a1", "v").expect("committed");
    let write = |database: &str, key: &str| {
        let written = node.write(|txn| txn.database(database)?.put(key, "v"));
        written.expect("committed").token
    };
    let _other = write("other", "x");
    for _ in 0..1_500 {
        let _token = write("other", "a1");
    }
    let wanted = write("other", "x2");
    let _beside = write("d", "b1");
    let last = write("d", "a2");
    let options = || {
        SubscribeOptions::new(StartAt::Token(first))
            .prefix("d", "a")
            .prefix("other", "x")
    };
    let subscriptions: [Box<dyn Iterator<Item = _> + Send>; 2] = [
        Box::new(node.subscribe(options()).expect("a feed")),
        Box::new(connect(&group, options()).expect("connected")),
    ];
    for feed in subscriptions {
        let mut progressed = 0;
        let counted = feed.inspect(move |event| {
            if let Ok(FeedEvent::Progress { token }) = event {
                progressed += 1;
                assert!(token.vlsn.0 > 1_000 && progressed == 1);
            }
        });
        let copy = in_time("the feed", move || follow(counted, last.vlsn));
        assert_eq!(copy.vlsns(), [first.vlsn.0 + 1, wanted.vlsn.0, last.vlsn.0]);
        assert!(copy.seen.iter().all(|seen| seen.changes.len() <= 2));
    }
    let start = SubscribeOptions::new(StartAt::Start).prefix("d", "a");
    let feed = node.subscribe(start).expect("a feed");
    let copy = in_time("the state", move || follow(feed, last.vlsn));
    let keys: Vec<_> = copy.rows.keys().map(|(_, key)| key.clone()).collect();
    assert_eq!(keys, ["a1", "a2"]);
}

#[test]
fn an_idle_filtered_feed_says_where_it_stands() {
    let group = Group::in_memory(1, STEADY);
    let node = group.master();
    let options = SubscribeOptions::new(StartAt::Now).database("nothing");
    let mut feed = node.subscribe(options.clone()).expect("a feed");
    let mut remote = connect(&group, options).expect("connected");
    let last = put(node, "k", "v").expect("committed");
    // The calls are cancelled, but what they have skipped stays skipped.
    eventually("the feeds have come on", || {
        let wait = Duration::from_millis(50);
        group.runtime.block_on(async {
            let waited = tokio::time::timeout(wait, feed.next_async()).await;
            assert!(waited.is_err());
            let waited = tokio::time::timeout(wait, remote.next_async()).await;
            assert!(waited.is_err());
        });
        feed.resume_token() == Some(last) && remote.resume_token() == Some(last)
    });
}

#[test]
fn a_token_that_is_not_of_this_history_is_refused() {
    let group = Group::in_memory(1, STEADY);
    let node = group.master();
    let token = put(node, "k", "v").expect("committed");
    let foreign = CommitToken {
        group: "0191d5a8-0000-7000-8000-000000000000"
            .parse()
            .expect("a UUID"),
        ..token
    };
    let refused = node.subscribe(StartAt::Token(foreign));
    assert!(matches!(refused, Err(FeedError::WrongGroup { .. })));
    let refused = connect(&group, StartAt::Token(foreign));
    assert!(matches!(refused, Err(FeedError::WrongGroup { .. })));
    let rolled_back = CommitToken {
        term: Term(token.term.0 + 7),
        ..token
    };
    let mut feed = node.subscribe(StartAt::Token(rolled_back)).expect("a feed");
    let first = in_time("an answer", move || (feed.next(), feed.next()));
    assert!(
        matches!(&first, (Some(Err(FeedError::NotCommitted { token: told, committed })), None)
            if *told == rolled_back && *committed == token.term),
        "{first:?}"
    );
    let refused = connect(&group, StartAt::Token(rolled_back));
    assert!(
        matches!(refused, Err(FeedError::NotCommitted { .. })),
        "{refused:?}"
    );
    let transport = group.network.host("subscriber");
    let other = Subscription::connect_on(transport, vec!["n1:7400".into()], "other", StartAt::Now);
    let refused = group.runtime.block_on(other);
    assert!(
        matches!(refused, Err(FeedError::WrongGroup { .. })),
        "{refused:?}"
    );
}

#[test]
fn feeds_as_streams_yield_the_same_and_end_after_an_error() {
    let group = Group::in_memory(1, STEADY);
    let node = group.master();
    let before = put(node, "k", "0").expect("committed");
    let after = put(node, "k", "1").expect("committed");
    let from = StartAt::Token(before);
    let feed = node.subscribe(from).expect("a feed").into_stream();
    let shared = node.shared_feed(SharedFeedOptions::default());
    let listener = shared.expect("a shared feed").listen(Some(before));
    let listener = listener.expect("a listener").into_stream();
    let remote = connect(
        &group,
        SubscribeOptions::new(from).patience(Duration::from_secs(5)),
    );
    let remote = remote.expect("connected").into_stream();
    let streams = [feed.boxed(), listener.boxed(), remote.boxed()];
    let firsts = streams.map(|mut stream| {
        let first = group.runtime.block_on(stream.next());
        assert!(
            matches!(&first, Some(Ok(FeedEvent::Transaction(of))) if of.token == after),
            "{first:?}"
        );
        stream
    });
    node.close().expect("closed");
    for stream in firsts {
        let rest = in_time("its end", move || {
            runtime().block_on(stream.collect::<Vec<_>>())
        });
        assert!(matches!(rest[..], [Err(_)]), "{rest:?}");
    }
}

#[test]
fn a_node_has_so_many_subscriptions_and_no_more() {
    let group = Group::in_memory(1, &[("subscriptions_max", 2)]);
    let node = group.master();
    let one = node.subscribe(StartAt::Now).expect("a feed");
    let two = connect(&group, StartAt::Now).expect("connected");
    let refused = node.subscribe(StartAt::Now);
    assert!(matches!(refused, Err(FeedError::TooMany { max: 2 })));
    let refused = connect(&group, StartAt::Now);
    assert!(
        matches!(refused, Err(FeedError::TooMany { max: 2 })),
        "{refused:?}"
    );
    drop(one);
    let one = node.subscribe(StartAt::Now).expect("a place is free");
    two.close();
    eventually("the other place is free", || {
        node.subscribe(StartAt::Now).is_ok()
    });
    drop(one);
}

#[test]
fn a_closed_environment_ends_its_feeds_with_a_name_for_it() {
    let group = Group::in_memory(1, &[]);
    let node = group.master().clone();
    let mut waiting = node.subscribe(StartAt::Now).expect("a feed");
    let mut idle = node.subscribe(StartAt::Start).expect("a feed");
    let options = SubscribeOptions::new(StartAt::Now).patience(Duration::from_millis(300));
    let mut remote = connect(&group, options).expect("connected");
    let resume = remote.resume_token();
    let waiter = std::thread::spawn(move || (waiting.next(), waiting.next()));
    node.close().expect("closed");
    let ended = in_time("the waiting feed", move || waiter.join().expect("no panic"));
    assert!(
        matches!(ended, (Some(Err(FeedError::Closed)), None)),
        "{ended:?}"
    );
    assert!(matches!(idle.next(), Some(Err(FeedError::Closed))));
    assert!(matches!(
        node.subscribe(StartAt::Now),
        Err(FeedError::Closed)
    ));
    let ended = in_time("the subscription", move || (remote.next(), remote.next()));
    assert!(
        matches!(&ended, (Some(Err(FeedError::Disconnected { resume: told, .. })), None)
            if *told == resume),
        "{ended:?}"
    );
}

/// Reads on its own thread, up to the put of the key "the end".
fn follow_while(
    feed: impl Iterator<Item = Result<FeedEvent, FeedError>> + Send + 'static,
) -> std::thread::JoinHandle<Vec<CommittedTransaction>> {
    std::thread::spawn(move || {
        let mut seen = Vec::new();
        for event in feed {
            if let FeedEvent::Transaction(transaction) = event.expect("the feed goes on") {
                let is_last = transaction
                    .changes
                    .iter()
                    .any(|change| matches!(change, Change::Put { key, .. } if key == "the end"));
                seen.push(transaction);
                if is_last {
                    break;
                }
            }
        }
        seen
    })
}

#[test]
fn a_subscriber_sees_everything_once_while_ten_masters_go() {
    let mut group = Group::in_memory(3, &[("log_cache_bytes_max", 4096)]);
    let first = put(group.master(), "k", "v").expect("committed");
    let remote = connect(&group, StartAt::Token(first)).expect("connected");
    let remote = follow_while(remote);
    let mut tokens = vec![];
    for round in 0..10_u8 {
        for n in 0..20_u8 {
            // A write that lost its master may have been committed or not: the log decides.
            if let Ok(token) = put(group.master(), [n], [round]) {
                tokens.push(token);
            }
        }
        let master = group.master_except(None);
        group.close(master);
        let next = group.master_except(Some(master));
        eventually("a write of the next master", || {
            put(group.node(next), "next", [round]).is_ok_and(|token| {
                tokens.push(token);
                true
            })
        });
        group.reopen(master).expect("opened");
    }
    group.wait_ready();
    let mut last = None;
    eventually("the last write", || {
        last = put(group.master(), "the end", "").ok();
        last.is_some()
    });
    let last = last.expect("just committed");
    level(&group, last.vlsn);
    let seen = in_time("the subscriber", move || remote.join().expect("no panic"));
    let vlsns: Vec<_> = seen.iter().map(|seen| seen.token.vlsn.0).collect();
    let dense: Vec<_> = (first.vlsn.0 + 1..=last.vlsn.0).collect();
    assert_eq!(vlsns, dense);
    for token in tokens {
        let at = usize::try_from(token.vlsn.0 - first.vlsn.0 - 1).expect("few");
        assert_eq!(seen[at].token, token);
    }
    let zero = CommitToken {
        term: Term(0),
        vlsn: Vlsn(0),
        ..first
    };
    for node in group.open_nodes() {
        let feed = node.subscribe(StartAt::Token(zero)).expect("a feed");
        let copy = in_time("the feed", move || follow(feed, last.vlsn));
        assert_eq!(
            copy.seen[usize::try_from(first.vlsn.0).expect("few")..],
            seen
        );
    }
}

#[test]
fn a_feed_of_a_node_that_stays_goes_on_when_the_master_changes() {
    let mut group = Group::in_memory(3, &[]);
    let master = group.master_except(None);
    let before = put(group.node(master), "k", "1").expect("committed");
    level(&group, before.vlsn);
    let stays = (master + 1) % 3;
    let feed = group.node(stays).subscribe(StartAt::Token(before));
    let feed = follow_while(feed.expect("a feed"));
    group.close(master);
    let next = group.master_except(Some(master));
    let after = put(group.node(next), "the end", "2").expect("committed");
    let seen = in_time("the feed", move || feed.join().expect("no panic"));
    assert_eq!(seen.last().map(|seen| seen.token), Some(after));
    assert!(after.term > before.term);
    let vlsns: Vec<_> = seen.iter().map(|seen| seen.token.vlsn.0).collect();
    let dense: Vec<_> = (before.vlsn.0 + 1..=after.vlsn.0).collect();
    assert_eq!(vlsns, dense);
}
