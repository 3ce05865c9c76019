//! Single puts, reads and deletes.

use steadfast_server::proto::etcdserverpb::{DeleteRangeRequest, PutRequest, RangeRequest};
use tonic::Code;

use crate::ask::{bytes, delete, delete_prefix, keys, one, put, refused, revision, text};
use crate::target::{Target, rows};

rows! {
    One:
    an_empty_store_has_revision_one,
    a_delete_says_what_it_deleted,
    a_put_may_keep_the_value_or_the_lease,
    what_was_there_before_is_absent_for_a_new_key,
    an_empty_key_is_refused_and_a_zero_byte_is_every_key,
    a_range_that_ends_before_it_begins_is_empty,
    a_request_has_a_greatest_size;
}

async fn an_empty_store_has_revision_one(target: Target) {
    assert_eq!(target.revision().await, 1);
    assert_eq!(target.put("a", "v").await, 2);
}

async fn a_delete_says_what_it_deleted(target: Target) {
    let first = target.put("a1", "x").await;
    target.put("a2", "y").await;
    let request = DeleteRangeRequest {
        prev_kv: true,
        ..delete_prefix("a")
    };
    let answer = target.delete(request.clone()).await.unwrap();
    assert_eq!((answer.deleted, revision(answer.header)), (2, first + 2));
    let before: Vec<_> = answer
        .prev_kvs
        .iter()
        .map(|kv| (text(&kv.key), text(&kv.value)))
        .collect();
    assert_eq!(
        before,
        [("a1".into(), "x".into()), ("a2".into(), "y".into())]
    );
    let answer = target.delete(request).await.unwrap();
    assert_eq!((answer.deleted, revision(answer.header)), (0, first + 2));
}

async fn a_put_may_keep_the_value_or_the_lease(target: Target) {
    let lease = target.grant(600, 0).await.unwrap().id;
    let not_found = "etcdserver: requested lease not found";
    let unknown = PutRequest {
        lease: lease + 1,
        ..put("a", "v")
    };
    refused(target.try_put(unknown).await, Code::NotFound, not_found);

    let keep_value = PutRequest {
        ignore_value: true,
        lease,
        ..put("a", "")
    };
    let keep_lease = PutRequest {
        ignore_lease: true,
        ..put("a", "w")
    };
    let missing = "etcdserver: key not found";
    refused(
        target.try_put(keep_value.clone()).await,
        Code::InvalidArgument,
        missing,
    );
    refused(
        target.try_put(keep_lease.clone()).await,
        Code::InvalidArgument,
        missing,
    );
    assert_eq!(target.revision().await, 1);

    target.put("a", "v").await;
    target.try_put(keep_value.clone()).await.unwrap();
    let kv = target.get("a").await.unwrap();
    assert_eq!(
        (text(&kv.value).as_str(), kv.lease, kv.version),
        ("v", lease, 2)
    );
    target.try_put(keep_lease.clone()).await.unwrap();
    let kv = target.get("a").await.unwrap();
    assert_eq!(
        (text(&kv.value).as_str(), kv.lease, kv.version),
        ("w", lease, 3)
    );

    let both = PutRequest {
        value: bytes("x"),
        ..keep_value
    };
    refused(
        target.try_put(both).await,
        Code::InvalidArgument,
        "etcdserver: value is provided",
    );
    let both = PutRequest {
        lease,
        ..keep_lease
    };
    refused(
        target.try_put(both).await,
        Code::InvalidArgument,
        "etcdserver: lease is provided",
    );

    target.put("a", "plain").await;
    assert_eq!(
        target.get("a").await.unwrap().lease,
        0,
        "a put without a lease takes it away"
    );
}

async fn what_was_there_before_is_absent_for_a_new_key(target: Target) {
    let asking = |value: &str| PutRequest {
        prev_kv: true,
        ..put("a", value)
    };
    assert!(target.try_put(asking("x")).await.unwrap().prev_kv.is_none());
    let before = target.try_put(asking("y")).await.unwrap().prev_kv.unwrap();
    assert_eq!((text(&before.value).as_str(), before.version), ("x", 1));
}

async fn an_empty_key_is_refused_and_a_zero_byte_is_every_key(target: Target) {
    let empty = "etcdserver: key is not provided";
    refused(
        target.try_put(put("", "v")).await,
        Code::InvalidArgument,
        empty,
    );
    refused(target.range(one("")).await, Code::InvalidArgument, empty);
    refused(
        target.delete(delete("")).await,
        Code::InvalidArgument,
        empty,
    );
    let to_end = RangeRequest {
        range_end: bytes("\0"),
        ..one("")
    };
    refused(target.range(to_end).await, Code::InvalidArgument, empty);

    for key in ["a", "b", "c"] {
        target.put(key, "v").await;
    }
    let from = |key: &str| RangeRequest {
        range_end: bytes("\0"),
        ..one(key)
    };
    assert_eq!(
        keys(&target.range(from("\0")).await.unwrap()),
        ["a", "b", "c"]
    );
    assert_eq!(keys(&target.range(from("b")).await.unwrap()), ["b", "c"]);
    let all = DeleteRangeRequest {
        range_end: bytes("\0"),
        ..delete("\0")
    };
    assert_eq!(target.delete(all).await.unwrap().deleted, 3);
}

async fn a_range_that_ends_before_it_begins_is_empty(target: Target) {
    let before = target.put("m", "v").await;
    let range = RangeRequest {
        range_end: bytes("a"),
        ..one("z")
    };
    let answer = target.range(range).await.unwrap();
    assert_eq!((answer.count, answer.kvs.len(), answer.more), (0, 0, false));
    let range = DeleteRangeRequest {
        range_end: bytes("a"),
        ..delete("z")
    };
    let answer = target.delete(range).await.unwrap();
    assert_eq!((answer.deleted, revision(answer.header)), (0, before));
}

async fn a_request_has_a_greatest_size(target: Target) {
    let sized = |bytes: usize| PutRequest {
        value: vec![b'x'; bytes].into(),
        ..put("a", "")
    };
    target.try_put(sized(1_572_834)).await.unwrap();
    let refusal = target.try_put(sized(1_572_854)).await;
    refused(
        refusal,
        Code::InvalidArgument,
        "etcdserver: request is too large",
    );
    let status = target.try_put(sized(2_097_252)).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    let start = "grpc: received message larger than max (";
    assert!(status.message().starts_with(start), "{status:?}");
    assert!(status.message().ends_with(" vs. 2097152)"), "{status:?}");
    assert_eq!(target.get("a").await.unwrap().value.len(), 1_572_834);
}
