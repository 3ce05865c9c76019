//! The lock service.

use std::time::Duration;

use serde_json::json;
use steadfast_server::proto::etcdserverpb::TxnRequest;
use steadfast_server::proto::etcdserverpb::compare::{CompareResult, TargetUnion};
use steadfast_server::proto::v3lockpb::lock_client::LockClient;
use steadfast_server::proto::v3lockpb::{LockRequest, LockResponse, UnlockRequest};
use tokio::time::Instant;
use tonic::{Code, Status};

use crate::ask::{Operation, bytes, compare, prefix, put, refused, text, txn, until};
use crate::target::{Target, rows};

rows! {
    One:
    a_lock_is_a_key_named_by_its_lease,
    the_next_in_line_has_the_lock_when_the_first_lets_go,
    a_lock_without_a_lease_makes_one,
    a_lock_with_an_unknown_lease_is_refused_with_a_lost_code,
    a_stale_holder_is_refused_by_the_create_revision,
    a_call_that_waits_ends_with_the_time_that_its_client_gives_it;
}

async fn lock(target: &Target, name: &str, lease: i64) -> Result<LockResponse, Status> {
    let mut client = LockClient::new(target.channel());
    let request = LockRequest {
        name: bytes(name),
        lease,
    };
    Ok(client.lock(request).await?.into_inner())
}

async fn unlock(target: &Target, key: bytes::Bytes) -> Result<(), Status> {
    let mut client = LockClient::new(target.channel());
    client.unlock(UnlockRequest { key }).await.map(|_| ())
}

async fn a_lock_is_a_key_named_by_its_lease(target: Target) {
    target.grant(60, 0xabc).await.unwrap();
    let answer = lock(&target, "name", 0xabc).await.unwrap();
    assert_eq!(text(&answer.key), "name/abc");
    let kv = target.get("name/abc").await.unwrap();
    assert_eq!((kv.lease, kv.value.len()), (0xabc, 0));
    let again = lock(&target, "name", 0xabc).await.unwrap();
    assert_eq!(again.key, answer.key, "who has it may ask again");
    unlock(&target, answer.key.clone()).await.unwrap();
    assert!(target.get("name/abc").await.is_none());
    unlock(&target, answer.key).await.unwrap();
    unlock(&target, bytes("nobody/1")).await.unwrap();
    assert!(
        target.time_to_live(0xabc).await.ttl > 0,
        "the lease goes on"
    );
}

async fn the_next_in_line_has_the_lock_when_the_first_lets_go(target: Target) {
    target.grant(60, 1).await.unwrap();
    target.grant(60, 2).await.unwrap();
    let first = lock(&target, "name", 1).await.unwrap();
    let mut waiting = Box::pin(lock(&target, "name", 2));
    let queued = || async { target.range(prefix("name/")).await.unwrap().count == 2 };
    tokio::select! {
        answer = &mut waiting => panic!("two have it: {answer:?}"),
        () = until("the second stands in line", queued) => {}
    }
    unlock(&target, first.key).await.unwrap();
    assert_eq!(text(&waiting.await.unwrap().key), "name/2");
}

async fn a_lock_without_a_lease_makes_one(target: Target) {
    let key = lock(&target, "name", 0).await.unwrap().key;
    let lease = target.get(&text(&key)).await.unwrap().lease;
    assert_eq!(text(&key), format!("name/{lease:x}"));
    assert_eq!(target.time_to_live(lease).await.granted_ttl, 60);
}

async fn a_lock_with_an_unknown_lease_is_refused_with_a_lost_code(target: Target) {
    let answer = lock(&target, "name", 77).await;
    refused(
        answer,
        Code::Unknown,
        "etcdserver: requested lease not found",
    );
}

async fn a_call_that_waits_ends_with_the_time_that_its_client_gives_it(target: Target) {
    lock(&target, "name", 0).await.unwrap();
    let body = json!({ "name": "bmFtZQ==" }).to_string();
    let began = Instant::now();
    let head = [("Grpc-Timeout", "300m")];
    let answer = target.http("POST", "/v3/lock/lock", &head, &body).await;
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(290), "{took:?}");
    assert_eq!(answer.status, 504, "{}", answer.text());
    assert_eq!(answer.json()["code"], 4, "{}", answer.text());
}

async fn a_stale_holder_is_refused_by_the_create_revision(target: Target) {
    target.grant(60, 1).await.unwrap();
    target.grant(60, 2).await.unwrap();
    let first = text(&lock(&target, "name", 1).await.unwrap().key);
    let token = target.get(&first).await.unwrap().create_revision;
    let guarded = |key: &str, token: i64, value: &str| TxnRequest {
        compare: vec![compare(
            key,
            CompareResult::Equal,
            TargetUnion::CreateRevision(token),
        )],
        ..txn([put("guarded", value).op()])
    };
    assert!(
        target
            .txn(guarded(&first, token, "1"))
            .await
            .unwrap()
            .succeeded
    );
    target.revoke(1).await.unwrap();
    let second = text(&lock(&target, "name", 2).await.unwrap().key);
    let newer = target.get(&second).await.unwrap().create_revision;
    assert!(newer > token, "tokens go up");
    assert!(
        !target
            .txn(guarded(&first, token, "1"))
            .await
            .unwrap()
            .succeeded
    );
    assert!(
        target
            .txn(guarded(&second, newer, "2"))
            .await
            .unwrap()
            .succeeded
    );
}
