//! What a client can take, and what it gets beyond that.

use std::collections::BTreeMap;

use steadfast_server::proto::etcdserverpb::request_op::Request as Op;
use steadfast_server::proto::etcdserverpb::watch_client::WatchClient;
use steadfast_server::proto::etcdserverpb::watch_request::RequestUnion;
use steadfast_server::proto::etcdserverpb::{
    DeleteRangeRequest, PutRequest, RequestOp, TxnRequest, WatchCreateRequest, WatchRequest,
    WatchResponse,
};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming};

use crate::support::{PATIENCE, Servers, base64};

fn put(key: &str, bytes: usize) -> PutRequest {
    PutRequest {
        key: key.to_owned().into(),
        value: vec![b'v'; bytes].into(),
        ..PutRequest::default()
    }
}

fn watch(key: &str) -> WatchRequest {
    let create = WatchCreateRequest {
        key: key.to_owned().into(),
        ..WatchCreateRequest::default()
    };
    WatchRequest {
        request_union: Some(RequestUnion::CreateRequest(create)),
    }
}

/// A stream of watches: where requests go in, and where answers come out.
async fn watches(servers: &Servers) -> (mpsc::Sender<WatchRequest>, Streaming<WatchResponse>) {
    let (requests, receiver) = mpsc::channel(16);
    let mut client = WatchClient::new(servers.channel(0).await);
    client = client.max_decoding_message_size(usize::MAX);
    let answers = client
        .watch(ReceiverStream::new(receiver))
        .await
        .expect("a stream");
    (requests, answers.into_inner())
}

async fn next(answers: &mut Streaming<WatchResponse>) -> WatchResponse {
    let next = timeout(PATIENCE, answers.message()).await.expect("in time");
    next.expect("no error").expect("no end")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_beyond_its_size_is_refused_and_a_message_beyond_its_own_is_not_read() {
    let servers = Servers::start(1).await;
    let mut kv = servers.kv().await;
    kv.put(put("a", 1_572_834))
        .await
        .expect("it is not too large");
    let refused = kv.put(put("a", 1_572_860)).await.expect_err("too large");
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert_eq!(refused.message(), "etcdserver: request is too large");
    let refused = kv.put(put("a", 2_097_252)).await.expect_err("too large");
    assert_eq!(refused.code(), Code::ResourceExhausted);
    let message = refused.message();
    assert!(
        message.starts_with("grpc: received message larger than max (")
            && message.ends_with(" vs. 2097152)"),
        "{message}"
    );
    kv.put(put("a", 1)).await.expect("the connection goes on");

    let value = base64(&"v".repeat(2_200_000));
    let body = format!(r#"{{"key":"YQ==","value":"{value}"}}"#);
    let (status, answer) = servers.post("/v3/kv/put", &body).await;
    assert_eq!(
        (status, answer["code"].as_i64()),
        (429, Some(8)),
        "{answer}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_has_at_most_128_operations_and_no_key_twice() {
    let servers = Servers::start(1).await;
    let mut kv = servers.kv().await;
    let txn = |keys: usize| {
        let op = |n: usize| RequestOp {
            request: Some(Op::RequestPut(put(&format!("key{n}"), 1))),
        };
        TxnRequest {
            success: (0..keys).map(op).collect(),
            ..TxnRequest::default()
        }
    };
    assert!(
        kv.txn(txn(128))
            .await
            .expect("not too many")
            .into_inner()
            .succeeded
    );
    let refused = kv.txn(txn(129)).await.expect_err("too many");
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert_eq!(
        refused.message(),
        "etcdserver: too many operations in txn request"
    );
    let mut twice = txn(2);
    twice.success[1] = twice.success[0].clone();
    let refused = kv.txn(twice).await.expect_err("a key twice");
    assert_eq!(
        refused.message(),
        "etcdserver: duplicate key given in txn request"
    );
    let delete = DeleteRangeRequest {
        key: "key1".into(),
        ..DeleteRangeRequest::default()
    };
    assert_eq!(
        kv.delete_range(delete)
            .await
            .expect("deleted")
            .into_inner()
            .deleted,
        1
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_watches_on_one_stream_all_hear_of_one_key() {
    const WATCHES: usize = 10_000;
    let servers = Servers::start(1).await;
    let (requests, mut answers) = watches(&servers).await;
    let asking = requests.clone();
    let asked = tokio::spawn(async move {
        for _ in 0..WATCHES {
            asking.send(watch("key")).await.expect("it is taken");
        }
    });
    let mut heard = BTreeMap::new();
    while heard.len() < WATCHES {
        let answer = next(&mut answers).await;
        assert!(answer.created && !answer.canceled, "{answer:?}");
        heard.insert(answer.watch_id, 0);
    }
    asked.await.expect("all are asked for");
    servers.kv().await.put(put("key", 10)).await.expect("put");
    let mut left = WATCHES;
    while left > 0 {
        let answer = next(&mut answers).await;
        for _ in &answer.events {
            let count = heard.get_mut(&answer.watch_id).expect("it was made");
            *count += 1;
            assert_eq!(*count, 1, "once each");
            left -= 1;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_is_not_read_holds_nobody_up_and_has_every_event_once_it_is() {
    const PUTS: usize = 400;
    const BYTES: usize = 100_000;
    let servers = Servers::start(1).await;
    let (requests, mut answers) = watches(&servers).await;
    requests.send(watch("key")).await.expect("it is taken");
    assert!(next(&mut answers).await.created);
    let mut kv = servers.kv().await;
    for _ in 0..PUTS {
        let done = timeout(PATIENCE, kv.put(put("key", BYTES))).await;
        done.expect("nobody holds it up").expect("put");
    }
    let mut versions = Vec::new();
    while versions.len() < PUTS {
        let events = next(&mut answers).await.events;
        versions.extend(
            events
                .into_iter()
                .map(|event| event.kv.expect("a key").version),
        );
    }
    let expected: Vec<_> = (1..=i64::try_from(PUTS).expect("few")).collect();
    assert_eq!(versions, expected);
}
