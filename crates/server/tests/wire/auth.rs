//! Users, roles and tokens.

use serde_json::json;
use steadfast_server::proto::authpb::{Permission, permission::Type};
use steadfast_server::proto::etcdserverpb::auth_client::AuthClient;
use steadfast_server::proto::etcdserverpb::kv_client::KvClient;
use steadfast_server::proto::etcdserverpb::lease_client::LeaseClient;
use steadfast_server::proto::etcdserverpb::maintenance_client::MaintenanceClient;
use steadfast_server::proto::etcdserverpb::request_op::Request as Op;
use steadfast_server::proto::etcdserverpb::watch_client::WatchClient;
use steadfast_server::proto::etcdserverpb::watch_request::RequestUnion;
use steadfast_server::proto::etcdserverpb::{
    AuthDisableRequest, AuthEnableRequest, AuthRoleAddRequest, AuthRoleGrantPermissionRequest,
    AuthUserAddRequest, AuthUserChangePasswordRequest, AuthUserGrantRoleRequest,
    AuthUserListRequest, AuthUserRevokeRoleRequest, AuthenticateRequest, DeleteRangeRequest,
    HashKvRequest, LeaseGrantRequest, LeaseRevokeRequest, LeaseTimeToLiveRequest, PutRequest,
    RangeRequest, RequestOp, TxnRequest, WatchCreateRequest, WatchRequest,
};
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::support::{PATIENCE, Servers, base64, http, with_token};

/// A group with the users root and alice, whose passwords are their names. Alice may read and write
/// `a` to `b`, write `w` and read `r`.
struct Guarded {
    servers: Servers,
    channel: Channel,
    root: String,
    alice: String,
}

async fn token(channel: &Channel, name: &str, password: &str) -> Result<String, Status> {
    let (name, password) = (name.to_owned(), password.to_owned());
    let mut auth = AuthClient::new(channel.clone());
    let made = auth
        .authenticate(AuthenticateRequest { name, password })
        .await?;
    Ok(made.into_inner().token)
}

async fn make_users(channel: &Channel) {
    let mut auth = AuthClient::new(channel.clone());
    for name in ["root", "alice"] {
        let (name, password) = (name.to_owned(), name.to_owned());
        let user = AuthUserAddRequest {
            name,
            password,
            ..AuthUserAddRequest::default()
        };
        auth.user_add(user).await.expect("added");
    }
    auth.role_add(AuthRoleAddRequest {
        name: "role".to_owned(),
    })
    .await
    .expect("added");
    for (kind, key, range_end) in [
        (Type::Readwrite, "a", "b"),
        (Type::Write, "w", ""),
        (Type::Read, "r", ""),
    ] {
        let perm = Permission {
            perm_type: kind.into(),
            key: key.into(),
            range_end: range_end.into(),
        };
        let grant = AuthRoleGrantPermissionRequest {
            name: "role".to_owned(),
            perm: Some(perm),
        };
        auth.role_grant_permission(grant).await.expect("granted");
    }
    for (user, role) in [("alice", "role"), ("root", "root")] {
        let grant = AuthUserGrantRoleRequest {
            user: user.to_owned(),
            role: role.to_owned(),
        };
        auth.user_grant_role(grant).await.expect("granted");
    }
}

impl Guarded {
    async fn start(servers: Servers) -> Self {
        let channel = servers.channel(0).await;
        make_users(&channel).await;
        AuthClient::new(channel.clone())
            .auth_enable(AuthEnableRequest {})
            .await
            .expect("enabled");
        let root = token(&channel, "root", "root").await.expect("the password");
        let alice = token(&channel, "alice", "alice")
            .await
            .expect("the password");
        Self {
            servers,
            channel,
            root,
            alice,
        }
    }

    fn kv(&self) -> KvClient<Channel> {
        KvClient::new(self.channel.clone())
    }
}

fn put(key: &str) -> PutRequest {
    PutRequest {
        key: key.to_owned().into(),
        ..PutRequest::default()
    }
}

fn range(key: &str, range_end: &str) -> RangeRequest {
    RangeRequest {
        key: key.to_owned().into(),
        range_end: range_end.to_owned().into(),
        ..RangeRequest::default()
    }
}

fn code<T>(result: Result<T, Status>) -> Code {
    result.map_or_else(|status| status.code(), |_| Code::Ok)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_enabled_by_a_root_with_the_role_of_root_alone() {
    let servers = Servers::start(1).await;
    let channel = servers.channel(0).await;
    let mut auth = AuthClient::new(channel.clone());
    let refused = token(&channel, "root", "root")
        .await
        .expect_err("it is off");
    assert_eq!(
        (refused.code(), refused.message()),
        (
            Code::FailedPrecondition,
            "etcdserver: authentication is not enabled"
        )
    );
    let refused = auth
        .auth_enable(AuthEnableRequest {})
        .await
        .expect_err("no root");
    assert_eq!(
        (refused.code(), refused.message()),
        (
            Code::FailedPrecondition,
            "etcdserver: root user does not exist"
        )
    );
    // With it off, whatever a client says of itself is ignored.
    let headers = "Authorization: nonsense\r\n";
    let body = r#"{"key":"YQ=="}"#;
    let answer = http(servers.address(0), "POST", "/v3/kv/range", headers, body).await;
    assert_eq!(answer.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_needs_a_token_and_a_right_and_the_errors_are_those_of_etcd() {
    let guarded = Guarded::start(Servers::start(1).await).await;
    let refused = guarded.kv().put(put("a")).await.expect_err("no token");
    assert_eq!(
        (refused.code(), refused.message()),
        (Code::InvalidArgument, "etcdserver: user name is empty")
    );
    let refused = guarded
        .kv()
        .put(with_token("nonsense", put("a")))
        .await
        .expect_err("no token");
    assert_eq!(
        (refused.code(), refused.message()),
        (Code::Unauthenticated, "etcdserver: invalid auth token")
    );
    for (name, password) in [("alice", "wrong"), ("nobody", "nobody")] {
        let refused = token(&guarded.channel, name, password)
            .await
            .expect_err("wrong");
        assert_eq!(refused.code(), Code::InvalidArgument);
        let text = "etcdserver: authentication failed, invalid user ID or password";
        assert_eq!(refused.message(), text);
    }
    let alice = &*guarded.alice;
    guarded
        .kv()
        .put(with_token(alice, put("a1")))
        .await
        .expect("hers");
    let refused = guarded
        .kv()
        .put(with_token(alice, put("r")))
        .await
        .expect_err("to read alone");
    assert_eq!(
        (refused.code(), refused.message()),
        (Code::PermissionDenied, "etcdserver: permission denied")
    );
    guarded
        .kv()
        .range(with_token(alice, range("a", "b")))
        .await
        .expect("hers");
    let wide = guarded.kv().range(with_token(alice, range("a", "c"))).await;
    assert_eq!(code(wide), Code::PermissionDenied);
    guarded
        .kv()
        .put(with_token(&guarded.root, put("z")))
        .await
        .expect("root may do everything");

    let mut auth = AuthClient::new(guarded.channel.clone());
    let list = auth
        .user_list(with_token(alice, AuthUserListRequest {}))
        .await;
    assert_eq!(code(list), Code::PermissionDenied);
    let mut maintenance = MaintenanceClient::new(guarded.channel.clone());
    let hash = maintenance
        .hash_kv(with_token(alice, HashKvRequest { revision: 0 }))
        .await;
    let refused = hash.expect_err("for root alone");
    assert_eq!(
        (refused.code(), refused.message()),
        (Code::Unknown, "auth: permission denied")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_values_and_nested_transactions_need_the_right_to_what_they_touch() {
    let guarded = Guarded::start(Servers::start(1).await).await;
    let alice = &*guarded.alice;
    let mut kv = guarded.kv();
    kv.put(with_token(alice, put("w")))
        .await
        .expect("she may write");
    let old = PutRequest {
        prev_kv: true,
        ..put("w")
    };
    assert_eq!(
        code(kv.put(with_token(alice, old.clone())).await),
        Code::PermissionDenied
    );
    let delete = DeleteRangeRequest {
        key: "w".into(),
        prev_kv: true,
        ..Default::default()
    };
    assert_eq!(
        code(kv.delete_range(with_token(alice, delete)).await),
        Code::PermissionDenied
    );

    let op = |op: Op| vec![RequestOp { request: Some(op) }];
    let txn = |inner: Op| {
        let inner = TxnRequest {
            failure: op(inner),
            ..TxnRequest::default()
        };
        TxnRequest {
            success: op(Op::RequestTxn(inner)),
            ..TxnRequest::default()
        }
    };
    let fine = txn(Op::RequestPut(put("a")));
    kv.txn(with_token(alice, fine)).await.expect("hers");
    for forbidden in [
        Op::RequestPut(put("z")),
        Op::RequestPut(old),
        Op::RequestRange(range("w", "")),
        Op::RequestDeleteRange(DeleteRangeRequest {
            key: "r".into(),
            ..Default::default()
        }),
    ] {
        let done = kv.txn(with_token(alice, txn(forbidden.clone()))).await;
        assert_eq!(code(done), Code::PermissionDenied, "{forbidden:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_is_ended_and_its_keys_told_only_with_the_right_to_them() {
    let guarded = Guarded::start(Servers::start(1).await).await;
    let (alice, root) = (&*guarded.alice, &*guarded.root);
    let mut leases = LeaseClient::new(guarded.channel.clone());
    let grant = LeaseGrantRequest { ttl: 60, id: 7 };
    leases
        .lease_grant(with_token(root, grant))
        .await
        .expect("granted");
    let roots = PutRequest {
        lease: 7,
        ..put("z")
    };
    guarded
        .kv()
        .put(with_token(root, roots))
        .await
        .expect("put");
    let revoke = LeaseRevokeRequest { id: 7 };
    assert_eq!(
        code(leases.lease_revoke(with_token(alice, revoke)).await),
        Code::PermissionDenied
    );
    let left = LeaseTimeToLiveRequest { id: 7, keys: true };
    assert_eq!(
        code(leases.lease_time_to_live(with_token(alice, left)).await),
        Code::PermissionDenied
    );
    // A key of hers under it would end with what she may not end.
    let hers = PutRequest {
        lease: 7,
        ..put("a")
    };
    assert_eq!(
        code(guarded.kv().put(with_token(alice, hers)).await),
        Code::PermissionDenied
    );
    leases
        .lease_revoke(with_token(root, revoke))
        .await
        .expect("revoked");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_of_what_one_may_not_read_is_canceled() {
    let guarded = Guarded::start(Servers::start(1).await).await;
    let create = |key: &str| WatchRequest {
        request_union: Some(RequestUnion::CreateRequest(WatchCreateRequest {
            key: key.to_owned().into(),
            ..WatchCreateRequest::default()
        })),
    };
    let requests = tokio_stream::iter([create("z"), create("a")]);
    let requests = with_token(&guarded.alice, requests);
    let mut answers = WatchClient::new(guarded.channel.clone())
        .watch(requests)
        .await
        .expect("a stream")
        .into_inner();
    let mut canceled = Vec::new();
    for _ in 0..2 {
        let answer = tokio::time::timeout(PATIENCE, answers.message())
            .await
            .expect("in time");
        let answer = answer.expect("no error").expect("no end");
        assert!(answer.created);
        if answer.canceled {
            assert_eq!(answer.watch_id, -1);
            canceled.push(answer.cancel_reason);
        }
    }
    assert_eq!(
        canceled,
        ["rpc error: code = PermissionDenied desc = etcdserver: permission denied"]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_of_one_node_is_good_at_another_until_the_password_changes() {
    let guarded = Guarded::start(Servers::start(3).await).await;
    for index in 1..3 {
        let mut kv = KvClient::new(guarded.servers.channel(index).await);
        let deadline = tokio::time::Instant::now() + PATIENCE;
        // The node may not have heard of users yet.
        while code(kv.put(put("a")).await) == Code::Ok {
            assert!(tokio::time::Instant::now() < deadline);
        }
        kv.put(with_token(&guarded.alice, put("a")))
            .await
            .expect("hers");
    }
    let change = AuthUserChangePasswordRequest {
        name: "alice".to_owned(),
        password: "another".to_owned(),
        ..AuthUserChangePasswordRequest::default()
    };
    let mut auth = AuthClient::new(guarded.channel.clone());
    auth.user_change_password(with_token(&guarded.root, change))
        .await
        .expect("changed");
    let old = guarded.kv().put(with_token(&guarded.alice, put("a"))).await;
    assert_eq!(code(old), Code::Unauthenticated);
    assert!(token(&guarded.channel, "alice", "alice").await.is_err());
    let new = token(&guarded.channel, "alice", "another")
        .await
        .expect("the password");
    guarded
        .kv()
        .put(with_token(&new, put("a")))
        .await
        .expect("hers");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_lost_a_role_writes_no_more_once_that_is_acknowledged() {
    let guarded = Guarded::start(Servers::start(1).await).await;
    let mut auth = AuthClient::new(guarded.channel.clone());
    for round in 0..10 {
        let mut writers = Vec::new();
        for writer in 0..4 {
            let (mut kv, token) = (guarded.kv(), guarded.alice.clone());
            writers.push(tokio::spawn(async move {
                let mut last = 0;
                loop {
                    let key = format!("a{round}-{writer}");
                    match kv.put(with_token(&token, put(&key))).await {
                        Ok(done) => last = done.into_inner().header.expect("a header").revision,
                        Err(refused) => {
                            assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
                            return last;
                        }
                    }
                }
            }));
        }
        let mut kv = guarded.kv();
        let begun = |round| range(&format!("a{round}-"), &format!("a{round}."));
        while kv
            .range(with_token(&guarded.root, begun(round)))
            .await
            .expect("read")
            .get_ref()
            .count
            < 4
        {}
        let (name, role) = ("alice".to_owned(), "role".to_owned());
        let revoke = AuthUserRevokeRoleRequest {
            name: name.clone(),
            role: role.clone(),
        };
        auth.user_revoke_role(with_token(&guarded.root, revoke))
            .await
            .expect("revoked");
        // What she wrote, she wrote before: the next revision is root's.
        let mark = kv
            .put(with_token(&guarded.root, put("mark")))
            .await
            .expect("put")
            .into_inner();
        let mark = mark.header.expect("a header").revision;
        for writer in writers {
            let last = writer.await.expect("no panic");
            assert!(last < mark, "a write at {last} after the mark at {mark}");
        }
        let grant = AuthUserGrantRoleRequest { user: name, role };
        auth.user_grant_role(with_token(&guarded.root, grant))
            .await
            .expect("granted");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_json_form_takes_a_token_with_and_without_bearer() {
    let guarded = Guarded::start(Servers::start(1).await).await;
    let address = guarded.servers.address(0);
    let body = json!({"key": base64("a"), "value": base64("v")}).to_string();
    for prefix in ["", "Bearer "] {
        let headers = format!("Authorization: {prefix}{}\r\n", guarded.alice);
        let answer = http(address, "POST", "/v3/kv/put", &headers, &body).await;
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    let none = http(address, "POST", "/v3/kv/put", "", &body).await;
    assert_eq!((none.status, none.json()["code"].as_i64()), (400, Some(3)));
    let bad = http(
        address,
        "POST",
        "/v3/kv/put",
        "Authorization: nonsense\r\n",
        &body,
    )
    .await;
    assert_eq!((bad.status, bad.json()["code"].as_i64()), (401, Some(16)));
    let headers = format!("Authorization: {}\r\n", guarded.alice);
    let denied = json!({"key": base64("z")}).to_string();
    let denied = http(address, "POST", "/v3/kv/put", &headers, &denied).await;
    assert_eq!(
        (denied.status, denied.json()["code"].as_i64()),
        (403, Some(7))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_it_was_disabled_old_tokens_are_void_for_ever() {
    let guarded = Guarded::start(Servers::start(1).await).await;
    let mut auth = AuthClient::new(guarded.channel.clone());
    auth.auth_disable(with_token(&guarded.root, AuthDisableRequest {}))
        .await
        .expect("disabled");
    guarded.kv().put(put("z")).await.expect("it is off");
    auth.auth_enable(AuthEnableRequest {})
        .await
        .expect("enabled");
    let old = guarded.kv().put(with_token(&guarded.root, put("z"))).await;
    assert_eq!(code(old), Code::Unauthenticated);
}
