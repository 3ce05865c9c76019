//! Locks and elections.

use std::time::Duration;

use steadfast_server::proto::etcdserverpb::compare::{CompareTarget, TargetUnion};
use steadfast_server::proto::etcdserverpb::lease_client::LeaseClient;
use steadfast_server::proto::etcdserverpb::request_op::Request as Op;
use steadfast_server::proto::etcdserverpb::{
    Compare, LeaseGrantRequest, LeaseRevokeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
};
use steadfast_server::proto::v3electionpb::election_client::ElectionClient;
use steadfast_server::proto::v3electionpb::{
    CampaignRequest, LeaderRequest, ProclaimRequest, ResignRequest,
};
use steadfast_server::proto::v3lockpb::lock_client::LockClient;
use steadfast_server::proto::v3lockpb::{LockRequest, UnlockRequest};
use tokio::time::{sleep, timeout};
use tonic::Code;
use tonic::transport::Channel;

use crate::support::{PATIENCE, Servers};

async fn lease(channel: &Channel) -> i64 {
    let grant = LeaseGrantRequest { ttl: 60, id: 0 };
    let granted = LeaseClient::new(channel.clone()).lease_grant(grant).await;
    granted.expect("a lease").into_inner().id
}

async fn revoke(channel: &Channel, id: i64) {
    let revoked = LeaseClient::new(channel.clone())
        .lease_revoke(LeaseRevokeRequest { id })
        .await;
    revoked.expect("it is there");
}

fn lock(lease: i64) -> LockRequest {
    LockRequest {
        name: "lock".into(),
        lease,
    }
}

/// The create revision of a key; `None` if it is not there.
async fn made(servers: &Servers, key: &[u8]) -> Option<i64> {
    let request = RangeRequest {
        key: key.to_vec().into(),
        ..RangeRequest::default()
    };
    let answer = servers
        .kv()
        .await
        .range(request)
        .await
        .expect("read")
        .into_inner();
    answer.kvs.first().map(|kv| kv.create_revision)
}

/// How many keys begin with `prefix`, which ends with a slash.
async fn in_line(servers: &Servers, prefix: &str) -> i64 {
    let request = RangeRequest {
        key: prefix.to_owned().into(),
        range_end: prefix.replace('/', "0").into(),
        count_only: true,
        ..RangeRequest::default()
    };
    servers
        .kv()
        .await
        .range(request)
        .await
        .expect("read")
        .into_inner()
        .count
}

async fn until_in_line(servers: &Servers, prefix: &str, count: i64) {
    let all = async {
        while in_line(servers, prefix).await != count {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, all).await.expect("in time");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_goes_from_one_to_the_next_in_the_order_of_asking() {
    let servers = Servers::start(1).await;
    let channel = servers.channel(0).await;
    let client = LockClient::new(channel.clone());
    let first = lease(&channel).await;
    let held = client
        .clone()
        .lock(lock(first))
        .await
        .expect("it is free")
        .into_inner();
    assert!(held.key.starts_with(b"lock/"));
    let again = client
        .clone()
        .lock(lock(first))
        .await
        .expect("it is the holder's")
        .into_inner();
    assert_eq!(again.key, held.key);

    let mut waiting = Vec::new();
    for count in 2..=4 {
        let (mut client, lease) = (client.clone(), lease(&channel).await);
        waiting.push(tokio::spawn(async move {
            let held = client
                .lock(lock(lease))
                .await
                .expect("its turn")
                .into_inner();
            client
                .unlock(UnlockRequest {
                    key: held.key.clone(),
                })
                .await
                .expect("it is held");
            held.header.expect("a header").revision
        }));
        until_in_line(&servers, "lock/", count).await;
    }
    assert!(waiting.iter().all(|waiting| !waiting.is_finished()));
    client
        .clone()
        .unlock(UnlockRequest { key: held.key })
        .await
        .expect("it is held");
    let mut revisions = Vec::new();
    for waiting in waiting {
        revisions.push(
            timeout(PATIENCE, waiting)
                .await
                .expect("in time")
                .expect("no panic"),
        );
    }
    assert!(revisions.is_sorted(), "{revisions:?}");
    assert_eq!(in_line(&servers, "lock/").await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_holder_that_has_lost_its_lock_is_refused_by_its_fencing_token() {
    let servers = Servers::start(1).await;
    let channel = servers.channel(0).await;
    let mut client = LockClient::new(channel.clone());
    let (first, second) = (lease(&channel).await, lease(&channel).await);
    let stale = client
        .lock(lock(first))
        .await
        .expect("it is free")
        .into_inner()
        .key;
    let stale_token = made(&servers, &stale).await.expect("it is held");
    // Its lease ends, and it does not notice.
    revoke(&channel, first).await;
    let held = client
        .lock(lock(second))
        .await
        .expect("it is free")
        .into_inner()
        .key;
    let token = made(&servers, &held).await.expect("it is held");
    assert!(token > stale_token, "a later holder has a higher token");

    let guarded = |key: &[u8], token: i64, value: &str| TxnRequest {
        compare: vec![Compare {
            target: CompareTarget::Create.into(),
            key: key.to_vec().into(),
            target_union: Some(TargetUnion::CreateRevision(token)),
            ..Compare::default()
        }],
        success: vec![RequestOp {
            request: Some(Op::RequestPut(PutRequest {
                key: "guarded".into(),
                value: value.to_owned().into(),
                ..PutRequest::default()
            })),
        }],
        ..TxnRequest::default()
    };
    let mut kv = servers.kv().await;
    let written = kv
        .txn(guarded(&held, token, "new"))
        .await
        .expect("answered");
    assert!(written.into_inner().succeeded);
    let late = kv
        .txn(guarded(&stale, stale_token, "late"))
        .await
        .expect("answered");
    assert!(!late.into_inner().succeeded, "the stale holder");
    // Even if it takes a place again under the same lease id, and so the same key.
    let grant = LeaseGrantRequest { ttl: 60, id: first };
    let granted = LeaseClient::new(channel).lease_grant(grant).await;
    granted.expect("it is gone");
    client
        .unlock(UnlockRequest { key: held })
        .await
        .expect("it is held");
    let again = client
        .lock(lock(first))
        .await
        .expect("it is free")
        .into_inner()
        .key;
    assert_eq!(again, stale);
    let late = kv
        .txn(guarded(&stale, stale_token, "late"))
        .await
        .expect("answered");
    assert!(
        !late.into_inner().succeeded,
        "the old token for the same key"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_stops_waiting_stands_in_nobodys_way() {
    let servers = Servers::start(1).await;
    let channel = servers.channel(0).await;
    let mut client = LockClient::new(channel.clone());
    let (first, second) = (lease(&channel).await, lease(&channel).await);
    client.lock(lock(first)).await.expect("it is free");
    let waiting = tokio::spawn({
        let mut client = client.clone();
        async move { client.lock(lock(second)).await.map(|_| ()) }
    });
    until_in_line(&servers, "lock/", 2).await;
    waiting.abort();
    until_in_line(&servers, "lock/", 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_that_ends_with_its_lease_while_it_waits_is_not_held() {
    let servers = Servers::start(1).await;
    let channel = servers.channel(0).await;
    let mut client = LockClient::new(channel.clone());
    let (first, second) = (lease(&channel).await, lease(&channel).await);
    let held = client
        .lock(lock(first))
        .await
        .expect("it is free")
        .into_inner()
        .key;
    let waiting = tokio::spawn({
        let mut client = client.clone();
        async move { client.lock(lock(second)).await }
    });
    until_in_line(&servers, "lock/", 2).await;
    revoke(&channel, second).await;
    client
        .unlock(UnlockRequest { key: held })
        .await
        .expect("it is held");
    let ended = timeout(PATIENCE, waiting)
        .await
        .expect("in time")
        .expect("no panic");
    let ended = ended.expect_err("its lease is gone");
    assert_eq!(ended.message(), "mutex: session is expired");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn locks_and_elections_refuse_in_the_words_that_clients_know() {
    let servers = Servers::start(1).await;
    let channel = servers.channel(0).await;
    let mut locks = LockClient::new(channel.clone());
    let refused = locks.lock(lock(4711)).await.expect_err("no such lease");
    assert_eq!(
        (refused.code(), refused.message()),
        (Code::Unknown, "etcdserver: requested lease not found")
    );
    locks
        .unlock(UnlockRequest {
            key: "nobody's".into(),
        })
        .await
        .expect("that is fine");

    let mut elections = ElectionClient::new(channel.clone());
    let name = LeaderRequest {
        name: "election".into(),
    };
    let refused = elections.leader(name).await.expect_err("nobody leads");
    assert_eq!(
        (refused.code(), refused.message()),
        (Code::Unknown, "election: no leader")
    );
    let campaign = CampaignRequest {
        name: "election".into(),
        lease: lease(&channel).await,
        value: "v".into(),
    };
    let leader = elections
        .campaign(campaign)
        .await
        .expect("nobody leads")
        .into_inner()
        .leader;
    let mut stale = leader.clone().expect("a key");
    stale.rev -= 1;
    let proclaim = ProclaimRequest {
        leader: Some(stale.clone()),
        value: "w".into(),
    };
    let refused = elections
        .proclaim(proclaim)
        .await
        .expect_err("it does not lead");
    assert_eq!(
        (refused.code(), refused.message()),
        (Code::Unknown, "election: not leader")
    );
    elections
        .resign(ResignRequest {
            leader: Some(stale),
        })
        .await
        .expect("that is fine");
    assert_eq!(
        in_line(&servers, "election/").await,
        1,
        "who leads still does"
    );
    assert!(
        elections
            .resign(ResignRequest { leader: None })
            .await
            .is_err()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_observes_an_election_sees_each_leader_and_what_it_says() {
    let servers = Servers::start(1).await;
    let channel = servers.channel(0).await;
    let mut elections = ElectionClient::new(channel.clone());
    let name = LeaderRequest {
        name: "election".into(),
    };
    let mut seen = elections
        .observe(name)
        .await
        .expect("a stream")
        .into_inner();
    let campaign = |lease, value: &'static str| CampaignRequest {
        name: "election".into(),
        lease,
        value: value.into(),
    };
    let first = elections
        .campaign(campaign(lease(&channel).await, "one"))
        .await;
    let first = first
        .expect("nobody leads")
        .into_inner()
        .leader
        .expect("a key");
    let waiting = tokio::spawn({
        let (mut elections, lease) = (elections.clone(), lease(&channel).await);
        async move {
            elections
                .campaign(campaign(lease, "two"))
                .await
                .expect("its turn")
        }
    });
    let mut next = async || {
        let next = timeout(PATIENCE, seen.message()).await.expect("in time");
        next.expect("no error")
            .expect("no end")
            .kv
            .expect("a key")
            .value
    };
    assert_eq!(next().await, "one");
    let proclaim = ProclaimRequest {
        leader: Some(first.clone()),
        value: "more".into(),
    };
    elections.proclaim(proclaim).await.expect("it leads");
    assert_eq!(next().await, "more");
    until_in_line(&servers, "election/", 2).await;
    assert!(!waiting.is_finished());
    elections
        .resign(ResignRequest {
            leader: Some(first),
        })
        .await
        .expect("it leads");
    assert_eq!(next().await, "two");
    timeout(PATIENCE, waiting)
        .await
        .expect("in time")
        .expect("it leads");
}
