//! Members, status, hashes, and the headers of their answers.

use std::collections::BTreeSet;

use steadfast_server::proto::etcdserverpb::cluster_client::ClusterClient;
use steadfast_server::proto::etcdserverpb::kv_client::KvClient;
use steadfast_server::proto::etcdserverpb::lease_client::LeaseClient;
use steadfast_server::proto::etcdserverpb::maintenance_client::MaintenanceClient;
use steadfast_server::proto::etcdserverpb::{
    AlarmRequest, CompactionRequest, DefragmentRequest, HashKvRequest, HashKvResponse, HashRequest,
    LeaseGrantRequest, LeaseKeepAliveRequest, LeaseLeasesRequest, LeaseRevokeRequest,
    LeaseTimeToLiveRequest, MemberAddRequest, MemberListRequest, MoveLeaderRequest, ResponseHeader,
    StatusRequest, StatusResponse, TxnRequest,
};
use tonic::Code;
use tonic::transport::Channel;

use crate::ask::{refused, until};
use crate::target::{Target, Version, rows};

rows! {
    One:
    headers_of_the_group_carry_no_revision,
    status_names_the_leader_and_a_version,
    a_hash_of_nothing_compacted_says_so,
    identity_is_in_every_header,
    a_member_is_added_as_a_learner_or_by_a_verb;
    Three:
    members_are_the_same_from_each_of_them,
    hashes_are_equal_on_every_member,
    leadership_moves_to_who_is_named_and_leases_live_on,
    a_write_at_one_member_is_read_at_every_other,
    the_term_is_in_every_header_and_never_goes_down;
}

fn maintenance(target: &Target, member: usize) -> MaintenanceClient<Channel> {
    MaintenanceClient::new(target.channel_to(member))
}

async fn status(target: &Target, member: usize) -> StatusResponse {
    maintenance(target, member)
        .status(StatusRequest {})
        .await
        .unwrap()
        .into_inner()
}

async fn hash_kv(target: &Target, member: usize) -> HashKvResponse {
    let request = HashKvRequest { revision: 0 };
    maintenance(target, member)
        .hash_kv(request)
        .await
        .unwrap()
        .into_inner()
}

async fn headers_of_the_group_carry_no_revision(target: Target) {
    target.put("a", "v").await;
    let mut cluster = ClusterClient::new(target.channel());
    let request = MemberListRequest { linearizable: true };
    let header = cluster
        .member_list(request)
        .await
        .unwrap()
        .into_inner()
        .header
        .unwrap();
    assert_eq!(header.revision, 0);
    assert!(header.cluster_id != 0 && header.member_id != 0 && header.raft_term > 0);

    let alarm = maintenance(&target, 0)
        .alarm(AlarmRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert!(alarm.alarms.is_empty());
    if target.version < Version(3, 5, 0) {
        assert!(alarm.header.is_none());
    } else {
        assert_eq!(alarm.header.unwrap().revision, 2);
    }
    let answer = maintenance(&target, 0)
        .defragment(DefragmentRequest {})
        .await
        .unwrap();
    assert!(answer.into_inner().header.is_none());
}

async fn status_names_the_leader_and_a_version(target: Target) {
    target.put("a", "v").await;
    let answer = status(&target, 0).await;
    let header = answer.header.unwrap();
    assert_eq!(header.revision, 2);
    assert_eq!(Version::parse(&answer.version), target.version);
    assert!(answer.leader != 0 && answer.raft_term == header.raft_term);
    assert!(answer.raft_index >= answer.raft_applied_index && answer.raft_applied_index > 0);
    assert!(answer.db_size > 0 && answer.db_size_in_use > 0);
    assert!(answer.errors.is_empty() && !answer.is_learner);
}

async fn a_hash_of_nothing_compacted_says_so(target: Target) {
    target.put("a", "v").await;
    let fresh = hash_kv(&target, 0).await;
    assert_eq!(
        (fresh.compact_revision, fresh.header.unwrap().revision),
        (-1, 2)
    );
    target.put("a", "w").await;
    assert_ne!(hash_kv(&target, 0).await.hash, fresh.hash);
    target.compact(2).await.unwrap();
    assert_eq!(hash_kv(&target, 0).await.compact_revision, 2);
    maintenance(&target, 0).hash(HashRequest {}).await.unwrap();
}

async fn identity_is_in_every_header(target: Target) {
    let id = status(&target, 0).await.header.unwrap();
    let put = target
        .try_put(crate::ask::put("a", "v"))
        .await
        .unwrap()
        .header
        .unwrap();
    let grant = target.grant(60, 0).await.unwrap().header.unwrap();
    let mut watches = target.watch().await;
    let watch = watches.create(crate::ask::watch("a")).await.header.unwrap();
    for header in [put, grant, watch] {
        assert_eq!(
            (header.cluster_id, header.member_id),
            (id.cluster_id, id.member_id)
        );
        assert!(header.raft_term >= id.raft_term);
    }
}

async fn a_member_is_added_as_a_learner_or_by_a_verb(target: Target) {
    let mut client = ClusterClient::new(target.channel());
    let request = MemberAddRequest {
        peer_ur_ls: vec!["http://127.0.0.1:1".to_owned()],
        is_learner: true,
    };
    let answer = client.member_add(request).await;
    let request = MemberListRequest { linearizable: true };
    let members = client.member_list(request).await.unwrap();
    let members = members.into_inner().members;
    if target.is_ours {
        let status = answer.expect_err("a new node needs a certificate and a name");
        assert_eq!(status.code(), Code::Unimplemented);
        assert!(status.message().contains("steadfast token create"));
        assert!(members.iter().all(|member| !member.is_learner));
        return;
    }
    let added = answer.unwrap().into_inner();
    assert_eq!(added.header.unwrap().revision, 0);
    let member = added.member.unwrap();
    assert!(member.is_learner && member.name.is_empty() && member.id != 0);
    assert_eq!(added.members.len(), 2);
    assert_eq!(members.len(), 2);
    let learners: Vec<_> = members.iter().filter(|one| one.is_learner).collect();
    assert_eq!(learners, [&member]);
    // It does not count: the one member is a majority.
    target.put("a", "v").await;
}

/// The terms of all headers that a member gives, in the order in which they came.
async fn terms(target: &Target, member: usize) -> Vec<u64> {
    let channel = || target.channel_to(member);
    let mut terms = Vec::new();
    let mut told = |header: Option<ResponseHeader>| terms.push(header.unwrap().raft_term);
    let mut kv = KvClient::new(channel());
    let key = format!("k{member}");
    let put = kv.put(crate::ask::put(&key, "v")).await.unwrap();
    told(put.into_inner().header);
    let range = kv.range(crate::ask::one(&key)).await.unwrap();
    told(range.into_inner().header);
    let txn = kv.txn(TxnRequest::default()).await.unwrap();
    told(txn.into_inner().header);
    let deleted = kv.delete_range(crate::ask::delete(&key)).await.unwrap();
    let revision = deleted.get_ref().header.as_ref().unwrap().revision;
    told(deleted.into_inner().header);
    let request = CompactionRequest {
        revision,
        physical: false,
    };
    told(kv.compact(request).await.unwrap().into_inner().header);
    let mut leases = LeaseClient::new(channel());
    let request = LeaseGrantRequest { ttl: 60, id: 0 };
    let granted = leases.lease_grant(request).await.unwrap().into_inner();
    told(granted.header);
    let id = granted.id;
    let request = LeaseTimeToLiveRequest { id, keys: true };
    let left = leases.lease_time_to_live(request).await.unwrap();
    told(left.into_inner().header);
    let listed = leases.lease_leases(LeaseLeasesRequest {}).await.unwrap();
    told(listed.into_inner().header);
    let requests = futures_util::stream::iter([LeaseKeepAliveRequest { id }]);
    let kept = leases.lease_keep_alive(requests).await.unwrap();
    told(kept.into_inner().message().await.unwrap().unwrap().header);
    let request = LeaseRevokeRequest { id };
    let revoked = leases.lease_revoke(request).await.unwrap();
    told(revoked.into_inner().header);
    told(hash_kv(target, member).await.header);
    told(status(target, member).await.header);
    let request = MemberListRequest { linearizable: true };
    let listed = ClusterClient::new(channel()).member_list(request).await;
    told(listed.unwrap().into_inner().header);
    terms
}

async fn the_term_is_in_every_header_and_never_goes_down(target: Target) {
    let mut watches = target.watch().await;
    let created = watches.create(crate::ask::watch_prefix("k")).await;
    let mut told = vec![created.header.unwrap().raft_term];
    let mut seen = Vec::new();
    for member in 0..3 {
        seen.extend(terms(&target, member).await);
    }
    let before = status(&target, 0).await;
    let mut leader = 0;
    let mut other = 0;
    for member in 0..3 {
        match status(&target, member).await.header.unwrap().member_id {
            id if id == before.leader => leader = member,
            id => other = id,
        }
    }
    let to = MoveLeaderRequest { target_id: other };
    maintenance(&target, leader).move_leader(to).await.unwrap();
    for member in 0..3 {
        let moved = || async { status(&target, member).await.leader == other };
        until("every member knows the new leader", moved).await;
    }
    for member in 0..3 {
        seen.extend(terms(&target, member).await);
    }
    assert!(seen[0] > 0 && seen.is_sorted(), "{seen:?}");
    assert!(seen.last() > Some(&before.raft_term), "{seen:?}");
    // A put and a deletion at each member, twice.
    let mut events = 0;
    while events < 12 {
        let answer = watches.next().await;
        events += answer.events.len();
        told.push(answer.header.unwrap().raft_term);
    }
    assert!(told[0] > 0 && told.is_sorted(), "{told:?}");
}

async fn members_are_the_same_from_each_of_them(target: Target) {
    let mut seen = BTreeSet::new();
    let mut lists = Vec::new();
    for member in 0..3 {
        let mut client = ClusterClient::new(target.channel_to(member));
        let request = MemberListRequest { linearizable: true };
        let answer = client.member_list(request).await.unwrap().into_inner();
        seen.insert(answer.header.unwrap().member_id);
        let mut members = answer.members;
        members.sort_by_key(|member| member.id);
        lists.push(members);
    }
    assert!(lists.windows(2).all(|pair| pair[0] == pair[1]), "{lists:?}");
    let ids: BTreeSet<_> = lists[0].iter().map(|member| member.id).collect();
    assert_eq!(
        (ids.len(), &ids),
        (3, &seen),
        "each answers with its own id"
    );
    for member in &lists[0] {
        assert!(!member.is_learner && !member.name.is_empty());
        let url = member.client_ur_ls[0].strip_prefix("http://").unwrap();
        assert!(target.addresses.contains(&url.parse().unwrap()), "{url}");
    }
}

async fn hashes_are_equal_on_every_member(target: Target) {
    for value in ["1", "2", "3"] {
        target.put("a", value).await;
    }
    target.compact(3).await.unwrap();
    let first = hash_kv(&target, 0).await;
    for member in 1..3 {
        let equal = || async {
            let other = hash_kv(&target, member).await;
            (other.hash, other.compact_revision) == (first.hash, first.compact_revision)
        };
        until("the hashes are equal", equal).await;
    }
}

async fn leadership_moves_to_who_is_named_and_leases_live_on(target: Target) {
    let lease = target.grant(20, 0).await.unwrap().id;
    let before = status(&target, 0).await;
    let mut leader = 0;
    let mut other = None;
    for member in 0..3 {
        let id = status(&target, member).await.header.unwrap().member_id;
        if id == before.leader {
            leader = member;
        } else {
            other = Some(id);
        }
    }
    let to = MoveLeaderRequest {
        target_id: other.unwrap(),
    };
    let answer = maintenance(&target, (leader + 1) % 3).move_leader(to).await;
    refused(
        answer.map(|_| ()),
        Code::FailedPrecondition,
        "etcdserver: not leader",
    );
    let nobody = MoveLeaderRequest { target_id: 12345 };
    let answer = maintenance(&target, leader).move_leader(nobody).await;
    let text = "etcdserver: bad leader transferee";
    refused(answer.map(|_| ()), Code::FailedPrecondition, text);
    let answer = maintenance(&target, leader)
        .move_leader(to)
        .await
        .unwrap()
        .into_inner();
    assert!(answer.header.is_none());
    for member in 0..3 {
        let moved = || async { status(&target, member).await.leader == to.target_id };
        until("every member knows the new leader", moved).await;
    }
    let after = status(&target, 0).await;
    assert!(after.raft_term > before.raft_term);
    assert!(target.time_to_live(lease).await.ttl > 10);
    target.put("a", "v").await;
}

async fn a_write_at_one_member_is_read_at_every_other(target: Target) {
    for n in 0..9 {
        let at = put_at(&target, n % 3, &n.to_string()).await;
        for member in 0..3 {
            let mut client = KvClient::new(target.channel_to(member));
            let answer = client
                .range(crate::ask::one("a"))
                .await
                .unwrap()
                .into_inner();
            assert_eq!(answer.kvs[0].mod_revision, at);
            assert!(answer.header.unwrap().revision >= at);
        }
    }
}

async fn put_at(target: &Target, member: usize, value: &str) -> i64 {
    let mut client = KvClient::new(target.channel_to(member));
    let answer = client
        .put(crate::ask::put("a", value))
        .await
        .unwrap()
        .into_inner();
    answer.header.unwrap().revision
}
