//! Users, roles and tokens.

use serde_json::json;
use steadfast_server::proto::authpb::Permission;
use steadfast_server::proto::authpb::permission::Type;
use steadfast_server::proto::etcdserverpb::auth_client::AuthClient;
use steadfast_server::proto::etcdserverpb::kv_client::KvClient;
use steadfast_server::proto::etcdserverpb::maintenance_client::MaintenanceClient;
use steadfast_server::proto::etcdserverpb::{
    AuthEnableRequest, AuthRoleAddRequest, AuthRoleGetRequest, AuthRoleGrantPermissionRequest,
    AuthRoleListRequest, AuthUserAddRequest, AuthUserDeleteRequest, AuthUserGetRequest,
    AuthUserGrantRoleRequest, AuthUserListRequest, AuthUserRevokeRoleRequest, AuthenticateRequest,
    HashKvRequest, SnapshotRequest,
};
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use crate::ask::{bytes, end_of, one, prefix, put, refused};
use crate::target::{Target, Version, rows};

rows! {
    One:
    nobody_is_known_while_it_is_off,
    it_cannot_be_turned_on_without_root,
    users_and_roles_are_kept_while_it_is_off,
    a_token_is_needed_once_it_is_on,
    a_user_has_the_ranges_of_its_roles,
    maintenance_is_for_root;
}

fn client(target: &Target) -> AuthClient<Channel> {
    AuthClient::new(target.channel())
}

async fn add_user(target: &Target, name: &str, password: &str) -> Result<(), Status> {
    let request = AuthUserAddRequest {
        name: name.to_owned(),
        password: password.to_owned(),
        ..AuthUserAddRequest::default()
    };
    client(target).user_add(request).await.map(|_| ())
}

async fn add_role(target: &Target, name: &str) -> Result<(), Status> {
    let request = AuthRoleAddRequest {
        name: name.to_owned(),
    };
    client(target).role_add(request).await.map(|_| ())
}

async fn grant_role(target: &Target, user: &str, role: &str) -> Result<(), Status> {
    let request = AuthUserGrantRoleRequest {
        user: user.to_owned(),
        role: role.to_owned(),
    };
    client(target).user_grant_role(request).await.map(|_| ())
}

async fn token(target: &Target, name: &str, password: &str) -> Result<String, Status> {
    let request = AuthenticateRequest {
        name: name.to_owned(),
        password: password.to_owned(),
    };
    Ok(client(target)
        .authenticate(request)
        .await?
        .into_inner()
        .token)
}

/// The request with the token in its metadata.
fn with<T>(token: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    let value = MetadataValue::try_from(token).unwrap();
    request.metadata_mut().insert("token", value);
    request
}

fn kv(target: &Target) -> KvClient<Channel> {
    target.kv()
}

/// Turns it on, with `root` and with `user`, who may read `r…` and write `w…`.
async fn turn_on(target: &Target) {
    add_user(target, "root", "rootpw").await.unwrap();
    add_role(target, "root").await.unwrap();
    grant_role(target, "root", "root").await.unwrap();
    add_user(target, "user", "pw").await.unwrap();
    add_role(target, "some").await.unwrap();
    for (kind, key) in [(Type::Read, "r"), (Type::Write, "w")] {
        let perm = Permission {
            perm_type: kind.into(),
            key: bytes(key),
            range_end: end_of(key),
        };
        let request = AuthRoleGrantPermissionRequest {
            name: "some".to_owned(),
            perm: Some(perm),
        };
        client(target).role_grant_permission(request).await.unwrap();
    }
    grant_role(target, "user", "some").await.unwrap();
    client(target)
        .auth_enable(AuthEnableRequest {})
        .await
        .unwrap();
}

async fn nobody_is_known_while_it_is_off(target: Target) {
    let off = "etcdserver: authentication is not enabled";
    refused(
        token(&target, "root", "pw").await,
        Code::FailedPrecondition,
        off,
    );
    let head = [("Authorization", "something")];
    let answer = target
        .http("POST", "/v3/kv/range", &head, r#"{"key":"YQ=="}"#)
        .await;
    let expected = if target.version < Version(3, 5, 16) {
        401
    } else {
        200
    };
    if target.version < Version(3, 5, 16) || target.version >= Version(3, 5, 30) {
        assert_eq!(answer.status, expected);
    }
}

async fn it_cannot_be_turned_on_without_root(target: Target) {
    let enable = || async {
        client(&target)
            .auth_enable(AuthEnableRequest {})
            .await
            .map(|_| ())
    };
    let missing = "etcdserver: root user does not exist";
    refused(enable().await, Code::FailedPrecondition, missing);
    add_user(&target, "root", "pw").await.unwrap();
    let missing = "etcdserver: root user does not have root role";
    refused(enable().await, Code::FailedPrecondition, missing);
}

async fn users_and_roles_are_kept_while_it_is_off(target: Target) {
    add_user(&target, "b", "pw").await.unwrap();
    add_user(&target, "a", "pw").await.unwrap();
    let taken = "etcdserver: user name already exists";
    refused(
        add_user(&target, "a", "pw").await,
        Code::FailedPrecondition,
        taken,
    );
    refused(
        add_user(&target, "", "pw").await,
        Code::InvalidArgument,
        "etcdserver: user name is empty",
    );
    add_role(&target, "r").await.unwrap();
    let taken = "etcdserver: role name already exists";
    refused(
        add_role(&target, "r").await,
        Code::FailedPrecondition,
        taken,
    );
    let missing = "etcdserver: role name not found";
    refused(
        grant_role(&target, "a", "none").await,
        Code::FailedPrecondition,
        missing,
    );
    let missing = "etcdserver: user name not found";
    refused(
        grant_role(&target, "none", "r").await,
        Code::FailedPrecondition,
        missing,
    );
    grant_role(&target, "a", "r").await.unwrap();
    users_and_roles_are_told_and_taken_away(&target).await;
    assert_eq!(target.revision().await, 1, "none of it makes a revision");
}

/// Of the users `a`, which has the role `r`, and `b`.
async fn users_and_roles_are_told_and_taken_away(target: &Target) {
    let users = client(target)
        .user_list(AuthUserListRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(users.users, ["a", "b"]);
    let roles = client(target)
        .role_list(AuthRoleListRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(roles.roles, ["r"]);
    let get = |name: &str| AuthUserGetRequest {
        name: name.to_owned(),
    };
    let user = client(target)
        .user_get(get("a"))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(user.roles, ["r"]);
    let get_role = AuthRoleGetRequest {
        role: "none".to_owned(),
    };
    let answer = client(target).role_get(get_role).await.map(|_| ());
    refused(
        answer,
        Code::FailedPrecondition,
        "etcdserver: role name not found",
    );

    let revoke = AuthUserRevokeRoleRequest {
        name: "a".to_owned(),
        role: "r".to_owned(),
    };
    client(target)
        .user_revoke_role(revoke.clone())
        .await
        .unwrap();
    let answer = client(target).user_revoke_role(revoke).await.map(|_| ());
    let text = "etcdserver: role is not granted to the user";
    refused(answer, Code::FailedPrecondition, text);
    let delete = AuthUserDeleteRequest {
        name: "a".to_owned(),
    };
    client(target).user_delete(delete).await.unwrap();
    let answer = client(target).user_get(get("a")).await.map(|_| ());
    refused(
        answer,
        Code::FailedPrecondition,
        "etcdserver: user name not found",
    );
}

async fn a_token_is_needed_once_it_is_on(target: Target) {
    turn_on(&target).await;
    let unnamed = "etcdserver: user name is empty";
    refused(target.range(one("r")).await, Code::InvalidArgument, unnamed);
    let wrong = "etcdserver: authentication failed, invalid user ID or password";
    refused(
        token(&target, "root", "no").await,
        Code::InvalidArgument,
        wrong,
    );
    refused(
        token(&target, "nobody", "no").await,
        Code::InvalidArgument,
        wrong,
    );
    let bad = kv(&target).range(with("bad.1", one("r"))).await.map(|_| ());
    refused(bad, Code::Unauthenticated, "etcdserver: invalid auth token");

    let key = r#"{"key":"cg=="}"#;
    let answer = target.http("POST", "/v3/kv/range", &[], key).await;
    assert_eq!(
        (answer.status, answer.json()["code"].as_u64()),
        (400, Some(3))
    );
    let answer = target
        .http("POST", "/v3/kv/range", &[("Authorization", "bad.1")], key)
        .await;
    assert_eq!(
        (answer.status, answer.json()["code"].as_u64()),
        (401, Some(16))
    );
    let body = json!({"name": "user", "password": "pw"});
    let token = target.json("/v3/auth/authenticate", body).await["token"].clone();
    let head = [("Authorization", token.as_str().unwrap())];
    let answer = target.http("POST", "/v3/kv/range", &head, key).await;
    assert_eq!(
        answer.status,
        200,
        "without a word before it: {}",
        answer.text()
    );
    let answer = target.http("POST", "/v3/kv/put", &head, key).await;
    assert_eq!(
        (answer.status, answer.json()["code"].as_u64()),
        (403, Some(7))
    );
}

async fn a_user_has_the_ranges_of_its_roles(target: Target) {
    turn_on(&target).await;
    let user = token(&target, "user", "pw").await.unwrap();
    let denied = "etcdserver: permission denied";
    let mut client = kv(&target);
    client.range(with(&user, prefix("r"))).await.unwrap();
    client.put(with(&user, put("w1", "v"))).await.unwrap();
    let answer = client.put(with(&user, put("r1", "v"))).await.map(|_| ());
    refused(answer, Code::PermissionDenied, denied);
    let answer = client.range(with(&user, one("w1"))).await.map(|_| ());
    refused(answer, Code::PermissionDenied, denied);
    let asks_before = steadfast_server::proto::etcdserverpb::PutRequest {
        prev_kv: true,
        ..put("w1", "v")
    };
    let answer = client.put(with(&user, asks_before)).await.map(|_| ());
    refused(answer, Code::PermissionDenied, denied);
    let mut wide = prefix("r");
    wide.range_end = bytes("t");
    let answer = client.range(with(&user, wide)).await.map(|_| ());
    refused(answer, Code::PermissionDenied, denied);
    let root = token(&target, "root", "rootpw").await.unwrap();
    client.put(with(&root, put("anything", "v"))).await.unwrap();
}

async fn maintenance_is_for_root(target: Target) {
    turn_on(&target).await;
    let user = token(&target, "user", "pw").await.unwrap();
    let root = token(&target, "root", "rootpw").await.unwrap();
    let mut client = MaintenanceClient::new(target.channel());
    let hash = HashKvRequest { revision: 0 };
    let answer = client.hash_kv(with(&user, hash)).await.map(|_| ());
    refused(answer, Code::Unknown, "auth: permission denied");
    client.hash_kv(with(&root, hash)).await.unwrap();
    let opened = client.snapshot(with("bad.1", SnapshotRequest {})).await;
    let answer = match opened {
        Ok(stream) => stream.into_inner().message().await.map(|_| ()),
        Err(status) => Err(status),
    };
    refused(answer, Code::Unknown, "auth: invalid auth token");
}
