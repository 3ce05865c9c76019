//! Leases: how long they live, and what ends with them.

use std::time::Duration;

use steadfast_server::proto::etcdserverpb::lease_client::LeaseClient;
use steadfast_server::proto::etcdserverpb::{
    LeaseLeasesRequest, LeaseTimeToLiveRequest, PutRequest,
};
use tokio::time::{Instant, sleep};
use tonic::Code;

use crate::ask::{lines, one, put, refused, revision, until, watch_prefix};
use crate::target::{Target, rows};

rows! {
    One:
    a_lease_lists_its_keys_and_its_time,
    an_unknown_lease_has_no_time,
    an_id_can_be_granted_once,
    a_time_to_live_has_a_greatest_value,
    revoking_deletes_every_key_at_one_revision,
    an_empty_lease_ends_without_a_revision,
    a_lease_expires_in_its_time_and_keeping_it_alive_helps,
    a_key_belongs_to_the_lease_of_its_last_put,
    leases_are_listed;
    Three:
    a_time_to_live_has_a_least_value,
    every_member_tells_the_time_and_the_keys_of_a_lease;
}

const NOT_FOUND: &str = "etcdserver: requested lease not found";

fn leased(key: &str, lease: i64) -> PutRequest {
    PutRequest {
        lease,
        ..put(key, "v")
    }
}

async fn a_time_to_live_has_a_least_value(target: Target) {
    for (asked, granted) in [(0, 2), (-1, 2), (1, 2), (2, 2), (3, 3)] {
        let answer = target.grant(asked, 0).await.unwrap();
        assert_eq!(answer.ttl, granted, "asked for {asked}");
        assert!(answer.id > 0 && answer.error.is_empty());
    }
}

async fn every_member_tells_the_time_and_the_keys_of_a_lease(target: Target) {
    target.grant(60, 77).await.unwrap();
    target.try_put(leased("b", 77)).await.unwrap();
    target.try_put(leased("a", 77)).await.unwrap();
    for member in 0..3 {
        let mut client = LeaseClient::new(target.channel_to(member));
        let there = || async {
            let request = LeaseTimeToLiveRequest { id: 77, keys: true };
            let mut client = LeaseClient::new(target.channel_to(member));
            let answer = client.lease_time_to_live(request).await;
            answer.unwrap().into_inner().keys.len() == 2
        };
        // A follower of a real etcd applies what it tells a moment after the leader.
        until("the keys are there", there).await;
        let request = LeaseTimeToLiveRequest { id: 77, keys: true };
        let answer = client.lease_time_to_live(request).await;
        let answer = answer.unwrap().into_inner();
        assert_eq!((answer.id, answer.granted_ttl), (77, 60));
        assert!((30..60).contains(&answer.ttl), "{answer:?}");
        let mut keys = answer.keys;
        keys.sort();
        assert_eq!(keys, ["a", "b"]);
        let request = LeaseTimeToLiveRequest { id: 78, keys: true };
        let answer = client.lease_time_to_live(request).await;
        assert_eq!(answer.unwrap().into_inner().ttl, -1);
        let leases = client.lease_leases(LeaseLeasesRequest {}).await.unwrap();
        let leases: Vec<_> = leases.into_inner().leases;
        assert_eq!(
            leases.iter().map(|lease| lease.id).collect::<Vec<_>>(),
            [77]
        );
    }
}

async fn a_time_to_live_has_a_greatest_value(target: Target) {
    assert_eq!(
        target.grant(9_000_000_000, 0).await.unwrap().ttl,
        9_000_000_000
    );
    let answer = target.grant(9_000_000_001, 0).await;
    refused(answer, Code::OutOfRange, "etcdserver: too large lease TTL");
}

async fn a_lease_lists_its_keys_and_its_time(target: Target) {
    let before = target.revision().await;
    let granted = target.grant(60, 77).await.unwrap();
    assert_eq!((granted.id, granted.ttl), (77, 60));
    assert_eq!(
        revision(granted.header),
        before,
        "a lease alone makes no revision"
    );
    target.try_put(leased("b", 77)).await.unwrap();
    target.try_put(leased("a", 77)).await.unwrap();
    let answer = target.time_to_live(77).await;
    assert_eq!((answer.id, answer.granted_ttl), (77, 60));
    assert!(
        (55..60).contains(&answer.ttl),
        "rounded down: {}",
        answer.ttl
    );
    let mut keys = answer.keys;
    keys.sort();
    assert_eq!(keys, ["a", "b"]);
    assert_eq!(
        target.keep_alive(77).await.unwrap().ttl,
        60,
        "the whole of it"
    );
}

async fn an_unknown_lease_has_no_time(target: Target) {
    let answer = target.time_to_live(77).await;
    assert_eq!((answer.id, answer.ttl, answer.granted_ttl), (77, -1, 0));
    assert!(answer.header.is_some() && answer.keys.is_empty());
    let answer = target.keep_alive(77).await.unwrap();
    assert_eq!((answer.id, answer.ttl), (77, 0));
    refused(target.revoke(77).await, Code::NotFound, NOT_FOUND);
}

async fn an_id_can_be_granted_once(target: Target) {
    target.grant(60, 5).await.unwrap();
    let text = "etcdserver: lease already exists";
    refused(target.grant(60, 5).await, Code::FailedPrecondition, text);
    target.revoke(5).await.unwrap();
    target.grant(60, 5).await.unwrap();
    assert_eq!(
        target.grant(60, -5).await.unwrap().id,
        -5,
        "negative ones are ids as well"
    );
    target.try_put(leased("a", -5)).await.unwrap();
    assert_eq!(target.get("a").await.unwrap().lease, -5);
}

async fn revoking_deletes_every_key_at_one_revision(target: Target) {
    target.grant(60, 5).await.unwrap();
    for key in ["k3", "k1", "k2"] {
        target.try_put(leased(key, 5)).await.unwrap();
    }
    let before = target.put("other", "v").await;
    let mut watches = target.watch().await;
    watches.create(watch_prefix("k")).await;
    let answer = target.revoke(5).await.unwrap();
    assert_eq!(revision(answer.header), before + 1);
    let expected = ["k1", "k2", "k3"].map(|key| format!("DELETE {key}@{}", before + 1));
    assert_eq!(
        lines(&watches.next().await),
        expected,
        "in one message, in the order of keys"
    );
    assert!(target.get("k1").await.is_none() && target.get("other").await.is_some());
}

async fn an_empty_lease_ends_without_a_revision(target: Target) {
    target.grant(60, 5).await.unwrap();
    let before = target.put("a", "v").await;
    assert_eq!(revision(target.revoke(5).await.unwrap().header), before);
    assert_eq!(target.revision().await, before);
}

async fn a_lease_expires_in_its_time_and_keeping_it_alive_helps(target: Target) {
    let lives = target.grant(3, 0).await.unwrap();
    let asked = Instant::now();
    let dies = target.grant(2, 0).await.unwrap();
    let granted = Instant::now();
    target.try_put(leased("k/lives", lives.id)).await.unwrap();
    let before = revision(
        target
            .try_put(leased("k/dies", dies.id))
            .await
            .unwrap()
            .header,
    );
    let mut watches = target.watch().await;
    watches.create(watch_prefix("k/")).await;
    let event = loop {
        tokio::select! {
            answer = watches.next() => break lines(&answer),
            () = sleep(Duration::from_millis(500)) => {
                assert_eq!(target.keep_alive(lives.id).await.unwrap().ttl, 3);
            }
        }
    };
    let (since_asked, since_granted) = (asked.elapsed(), granted.elapsed());
    assert_eq!(event, [format!("DELETE k/dies@{}", before + 1)]);
    assert!(since_asked >= Duration::from_secs(2), "{since_asked:?}");
    assert!(since_granted < Duration::from_secs(5), "{since_granted:?}");
    assert_eq!(target.time_to_live(dies.id).await.ttl, -1);
    assert!(target.time_to_live(lives.id).await.ttl >= 1);
    let kv = target.range(one("k/lives")).await.unwrap();
    assert_eq!(kv.count, 1);
}

async fn a_key_belongs_to_the_lease_of_its_last_put(target: Target) {
    target.grant(60, 5).await.unwrap();
    target.grant(60, 6).await.unwrap();
    target.try_put(leased("a", 5)).await.unwrap();
    target.try_put(leased("b", 5)).await.unwrap();
    target.try_put(leased("a", 6)).await.unwrap();
    target.put("b", "free").await;
    assert!(target.time_to_live(5).await.keys.is_empty());
    assert_eq!(target.time_to_live(6).await.keys, ["a"]);
    target.revoke(5).await.unwrap();
    assert!(target.get("a").await.is_some() && target.get("b").await.is_some());
}

async fn leases_are_listed(target: Target) {
    for id in [5, 9, 7] {
        target.grant(60, id).await.unwrap();
    }
    target.revoke(9).await.unwrap();
    let mut client = LeaseClient::new(target.channel());
    let answer = client
        .lease_leases(LeaseLeasesRequest {})
        .await
        .unwrap()
        .into_inner();
    let mut ids: Vec<_> = answer.leases.iter().map(|lease| lease.id).collect();
    ids.sort_unstable();
    assert_eq!(ids, [5, 7]);
}
