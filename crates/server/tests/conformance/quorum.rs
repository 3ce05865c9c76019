//! What a member answers when the others are gone.

use std::time::Duration;

use serde_json::json;
use steadfast_server::proto::etcdserverpb::maintenance_client::MaintenanceClient;
use steadfast_server::proto::etcdserverpb::{RangeRequest, StatusRequest};
use tokio::time::Instant;
use tonic::metadata::MetadataValue;
use tonic::{Code, Request};

use crate::ask::{one, put, refused, text, until};
use crate::target::{Target, Version, rows};

rows! {
    Three:
    without_a_quorum_reads_of_the_newest_and_writes_end_in_time,
    the_json_form_says_that_there_is_no_quorum,
    a_new_leader_takes_over_with_everything;
}

/// Leaves the first member alone, and waits until it knows that there is no leader.
async fn leave_alone(target: &mut Target) {
    target.put("a", "v").await;
    // The first member has the value as well.
    let serializable = || RangeRequest {
        serializable: true,
        ..one("a")
    };
    let there = || async { target.range(serializable()).await.unwrap().count == 1 };
    until("the value is everywhere", there).await;
    target.kill(1).await;
    target.kill(2).await;
    let target = &*target;
    let alone = || async {
        let mut client = MaintenanceClient::new(target.channel());
        client
            .status(StatusRequest {})
            .await
            .unwrap()
            .into_inner()
            .leader
            == 0
    };
    until("it knows that there is no leader", alone).await;
}

async fn without_a_quorum_reads_of_the_newest_and_writes_end_in_time(mut target: Target) {
    leave_alone(&mut target).await;
    let serializable = || RangeRequest {
        serializable: true,
        ..one("a")
    };
    let answer = target.range(serializable()).await.unwrap();
    assert_eq!(text(&answer.kvs[0].value), "v");
    let mut insisting = Request::new(serializable());
    insisting
        .metadata_mut()
        .insert("hasleader", MetadataValue::from_static("true"));
    let answer = target.kv().range(insisting).await.map(|_| ());
    refused(answer, Code::Unavailable, "etcdserver: no leader");

    let mut client = MaintenanceClient::new(target.channel());
    let status = client.status(StatusRequest {}).await.unwrap().into_inner();
    assert_eq!(
        (status.leader, status.errors),
        (0, vec!["etcdserver: no leader".to_owned()])
    );

    let began = Instant::now();
    let (read, write, alive) = tokio::join!(
        target.range(one("a")),
        target.try_put(put("a", "w")),
        target.keep_alive(77),
    );
    assert!(
        began.elapsed() < Duration::from_secs(12),
        "{:?}",
        began.elapsed()
    );
    refused(read, Code::Unavailable, "etcdserver: request timed out");
    if target.is_ours
        && write
            .as_ref()
            .is_err_and(|status| status.code() == Code::Unavailable)
    {
        // It certainly did not happen, which a real etcd cannot say.
        refused(write, Code::Unavailable, "etcdserver: no leader");
    } else {
        refused(write, target.late_write().0, "context deadline exceeded");
    }
    refused(alive, Code::Unavailable, "etcdserver: no leader");
}

async fn the_json_form_says_that_there_is_no_quorum(mut target: Target) {
    leave_alone(&mut target).await;
    let health = target.http("GET", "/health", &[], "").await;
    assert_eq!(
        (health.status, health.json()["health"].as_str()),
        (503, Some("false"))
    );
    let reason = health.json()["reason"].clone();
    if target.version >= Version(3, 5, 0) {
        assert_eq!(reason, "RAFT NO LEADER");
    }
    let key = json!({"key": "YQ=="});
    let (read, write, alive) = tokio::join!(
        target.post("/v3/kv/range", key.clone()),
        target.post("/v3/kv/put", key.clone()),
        target.post("/v3/lease/keepalive", json!({"ID": "77"})),
    );
    assert_eq!(
        (read.status, read.json()["code"].as_u64()),
        (503, Some(14)),
        "{read:?}"
    );
    if !target.is_ours || write.status != 503 {
        let (code, status) = target.late_write();
        assert_eq!(write.status, status, "{write:?}");
        assert_eq!(write.json()["code"], code as i32, "{write:?}");
    }
    assert_eq!(alive.status, 503, "{alive:?}");
    let error = alive.json()["error"].clone();
    if target.is_ours || target.version < Version(3, 5, 16) {
        let expected = json!({"grpc_code": 14, "http_code": 503,
            "message": "etcdserver: no leader", "http_status": "Service Unavailable"});
        assert_eq!(error, expected);
    } else {
        assert_eq!(error["message"], "etcdserver: no leader");
    }
    let answer = target
        .json("/v3/kv/range", json!({"key": "YQ==", "serializable": true}))
        .await;
    assert_eq!(answer["count"], "1");
}

async fn a_new_leader_takes_over_with_everything(mut target: Target) {
    let mut client = MaintenanceClient::new(target.channel());
    let status = client.status(StatusRequest {}).await.unwrap().into_inner();
    let mine = status.header.unwrap().member_id;
    let lease = target.grant(600, 0).await.unwrap().id;
    for n in 0..20 {
        target.put(&format!("k{n}"), "v").await;
    }
    let before = target.revision().await;
    let mut watches = target.watch().await;
    watches.create(crate::ask::watch_prefix("k")).await;
    // Whoever leads but the first, whose clients stay connected.
    let mut dies = 1;
    if status.leader != mine {
        let mut other = MaintenanceClient::new(target.channel_to(1));
        let other = other.status(StatusRequest {}).await.unwrap().into_inner();
        dies = if other.header.unwrap().member_id == status.leader {
            1
        } else {
            2
        };
    }
    target.kill(dies).await;
    let goes_on = || async { target.try_put(put("after", "v")).await.is_ok() };
    until("writes go on", goes_on).await;
    let answer = target.range(crate::ask::prefix("k")).await.unwrap();
    assert_eq!(answer.count, 20);
    let header = answer.header.unwrap();
    assert!(header.revision > before && header.raft_term >= status.raft_term);
    assert!(target.time_to_live(lease).await.ttl > 500);
    let at = target.put("k0", "w").await;
    assert_eq!(
        watches.events(1).await,
        [format!("PUT k0=w@{at}")],
        "the watch went on"
    );
}
