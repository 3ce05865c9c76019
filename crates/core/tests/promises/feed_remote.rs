//! Subscriptions from outside, over TCP.

use steadfast::{FeedEvent, StartAt, Subscription};

use crate::feed::{Copy, connect};
use crate::support::{Env, Group, PATIENCE, eventually, in_time, put};

#[test]
fn a_remote_subscriber_that_takes_nothing_is_cut_off_and_goes_on_when_it_reads() {
    let group = Group::in_memory(
        1,
        &[("subscription_stall_ms", 100), ("subscriptions_max", 1)],
    );
    let node = group.master();
    let first = put(node, "k", "v").expect("committed");
    let mut remote = connect(&group, StartAt::Token(first)).expect("connected");
    let value = vec![9; 256 << 10];
    let mut last = first;
    for n in 0..40_u8 {
        last = put(node, [n], &value).expect("committed");
    }
    // Its place is free once the node has dropped it.
    let mut kept = None;
    eventually("the subscriber is cut off", || {
        kept = node.subscribe(StartAt::Now).ok();
        kept.is_some()
    });
    drop(kept);
    let mut copy = Copy::default();
    while copy.last != Some(last) {
        let event = group.runtime.block_on(async {
            let next = tokio::time::timeout(PATIENCE, remote.next_async());
            next.await.expect("in time")
        });
        copy.take(event.expect("an event").expect("it goes on"));
    }
    let rest: Vec<_> = (first.vlsn.0 + 1..=last.vlsn.0).collect();
    assert_eq!(copy.vlsns(), rest);
}

#[test]
fn a_subscription_over_tcp_works_with_blocking_calls_in_and_out_of_tasks() {
    let dir = tempfile::TempDir::new().expect("a directory");
    let config = steadfast::RepConfig::builder("g", "n1")
        .data_dir(dir.path().join("data"))
        .listen("127.0.0.1:0")
        .build();
    let node = Env::open(config.expect("a configuration")).expect("opened");
    node.wait_ready(PATIENCE).expect("ready");
    let first = put(&node, "k", "1").expect("committed");
    let addresses = ["127.0.0.1:1".to_owned(), node.listen_address()];
    let subscribe = move || {
        let connected = Subscription::connect(addresses.clone(), "g", StartAt::Start);
        let mut subscription = connected.expect("connected");
        let events: Vec<_> = subscription.by_ref().take(2).collect();
        assert!(
            matches!(&events[1], Ok(FeedEvent::StateComplete { token, .. }) if *token == first)
        );
        subscription
    };
    let mut subscription = in_time("a thread", subscribe.clone());
    let within = in_time("a task", move || {
        let runtime = crate::support::runtime();
        let task = runtime.spawn(async move { drop(subscribe()) });
        runtime.block_on(task)
    });
    within.expect("no panic");
    let second = put(&node, "k", "2").expect("committed");
    let next = in_time("the next", move || subscription.next());
    assert!(matches!(next, Some(Ok(FeedEvent::Transaction(next))) if next.token == second));
    node.close().expect("closed");
}
