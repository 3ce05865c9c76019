//! The election service.

use steadfast_server::proto::v3electionpb::election_client::ElectionClient;
use steadfast_server::proto::v3electionpb::{
    CampaignRequest, CampaignResponse, LeaderKey, LeaderRequest, ProclaimRequest, ResignRequest,
};
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::ask::{bytes, prefix, refused, text, until};
use crate::target::{Target, rows};

rows! {
    One:
    a_campaign_is_won_by_the_first_and_then_by_the_next,
    the_leader_may_proclaim_and_others_may_not,
    what_is_observed_begins_with_the_leader_of_now,
    errors_keep_their_texts_and_lose_their_codes;
}

fn client(target: &Target) -> ElectionClient<Channel> {
    ElectionClient::new(target.channel())
}

async fn campaign(target: &Target, lease: i64, value: &str) -> Result<CampaignResponse, Status> {
    let request = CampaignRequest {
        name: bytes("name"),
        lease,
        value: bytes(value),
    };
    Ok(client(target).campaign(request).await?.into_inner())
}

async fn leader(target: &Target) -> Result<String, Status> {
    let request = LeaderRequest {
        name: bytes("name"),
    };
    let answer = client(target).leader(request).await?.into_inner();
    Ok(text(&answer.kv.expect("a key").value))
}

async fn proclaim(target: &Target, leader: &LeaderKey, value: &str) -> Result<(), Status> {
    let request = ProclaimRequest {
        leader: Some(leader.clone()),
        value: bytes(value),
    };
    client(target).proclaim(request).await.map(|_| ())
}

async fn resign(target: &Target, leader: &LeaderKey) -> Result<(), Status> {
    let request = ResignRequest {
        leader: Some(leader.clone()),
    };
    client(target).resign(request).await.map(|_| ())
}

async fn a_campaign_is_won_by_the_first_and_then_by_the_next(target: Target) {
    target.grant(60, 0xa).await.unwrap();
    target.grant(60, 0xb).await.unwrap();
    let first = campaign(&target, 0xa, "one").await.unwrap().leader.unwrap();
    let kv = target.get("name/a").await.unwrap();
    assert_eq!(
        (text(&first.name), text(&first.key)),
        ("name".into(), "name/a".into())
    );
    assert_eq!((first.rev, first.lease), (kv.create_revision, 0xa));
    assert_eq!(leader(&target).await.unwrap(), "one");

    let mut waiting = Box::pin(campaign(&target, 0xb, "two"));
    let queued = || async { target.range(prefix("name/")).await.unwrap().count == 2 };
    tokio::select! {
        answer = &mut waiting => panic!("two lead: {answer:?}"),
        () = until("the second stands in line", queued) => {}
    }
    resign(&target, &first).await.unwrap();
    assert_eq!(text(&waiting.await.unwrap().leader.unwrap().key), "name/b");
    assert_eq!(leader(&target).await.unwrap(), "two");
}

async fn the_leader_may_proclaim_and_others_may_not(target: Target) {
    target.grant(60, 1).await.unwrap();
    let mine = campaign(&target, 1, "one").await.unwrap().leader.unwrap();
    proclaim(&target, &mine, "news").await.unwrap();
    assert_eq!(leader(&target).await.unwrap(), "news");
    resign(&target, &mine).await.unwrap();
    let answer = proclaim(&target, &mine, "more").await;
    refused(answer, Code::Unknown, "election: not leader");
    resign(&target, &mine).await.unwrap();
}

async fn what_is_observed_begins_with_the_leader_of_now(target: Target) {
    target.grant(60, 1).await.unwrap();
    let mine = campaign(&target, 1, "one").await.unwrap().leader.unwrap();
    let request = LeaderRequest {
        name: bytes("name"),
    };
    let mut seen = client(&target).observe(request).await.unwrap().into_inner();
    let first = seen.message().await.unwrap().unwrap();
    assert_eq!(text(&first.kv.unwrap().value), "one");
    proclaim(&target, &mine, "two").await.unwrap();
    let second = seen.message().await.unwrap().unwrap();
    assert_eq!(text(&second.kv.unwrap().value), "two");
}

async fn errors_keep_their_texts_and_lose_their_codes(target: Target) {
    refused(leader(&target).await, Code::Unknown, "election: no leader");
    let answer = campaign(&target, 77, "v").await;
    refused(
        answer,
        Code::Unknown,
        "etcdserver: requested lease not found",
    );
    let nobody = LeaderKey {
        name: bytes("name"),
        key: bytes("name/4d"),
        rev: 1,
        lease: 77,
    };
    resign(&target, &nobody).await.unwrap();
}
