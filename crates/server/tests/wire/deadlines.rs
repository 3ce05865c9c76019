//! The time that clients give a call, kept by the server: these clients do not keep it themselves.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use steadfast_server::proto::etcdserverpb::watch_request::RequestUnion;
use steadfast_server::proto::etcdserverpb::{WatchCreateRequest, WatchRequest};
use steadfast_server::proto::v3lockpb::LockRequest;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use crate::support::{PATIENCE, Servers, base64, http};

type RequestBody = UnsyncBoxBody<Bytes, Infallible>;

fn framed(message: &impl Message) -> Bytes {
    let message = message.encode_to_vec();
    let length = u32::try_from(message.len()).expect("short").to_be_bytes();
    Bytes::from([&[0][..], &length, &message].concat())
}

fn whole(message: &impl Message) -> RequestBody {
    Full::new(framed(message)).boxed_unsync()
}

/// A call over HTTP/2, up to its end: how many bytes were answered, and the status.
async fn call(
    address: SocketAddr,
    path: &str,
    timeout_header: &str,
    body: RequestBody,
) -> (usize, Status) {
    let stream = TcpStream::connect(address).await.expect("a connection");
    let io = TokioIo::new(stream);
    let shaken = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await;
    let (mut sender, connection) = shaken.expect("a connection");
    let connection = tokio::spawn(connection);
    let request = Request::post(format!("http://{address}{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("grpc-timeout", timeout_header)
        .body(body)
        .expect("a request");
    let answering = async {
        let answer = sender.send_request(request).await.expect("an answer");
        let (head, body) = answer.into_parts();
        let collected = body.collect().await.expect("a body");
        let trailers = collected.trailers().cloned();
        let bytes = collected.to_bytes().len();
        let status = |headers: &HeaderMap| Status::from_header_map(headers);
        let status = trailers.as_ref().and_then(status);
        let status = status.or_else(|| Status::from_header_map(&head.headers));
        (bytes, status.expect("a status"))
    };
    let answered = timeout(PATIENCE, answering).await.expect("in time");
    connection.abort();
    answered
}

fn lock() -> LockRequest {
    LockRequest {
        name: "lock".into(),
        lease: 0,
    }
}

const LOCK: &str = "/v3lockpb.Lock/Lock";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_waits_ends_with_its_time_and_one_that_does_not_is_answered() {
    let servers = Servers::start(1).await;
    let address = servers.address(0);
    let (bytes, status) = call(address, LOCK, "30S", whole(&lock())).await;
    assert_eq!((bytes > 5, status.code()), (true, Code::Ok), "{status:?}");
    let began = Instant::now();
    let (bytes, status) = call(address, LOCK, "300m", whole(&lock())).await;
    assert_eq!((bytes, status.code()), (0, Code::DeadlineExceeded));
    assert_eq!(status.message(), "context deadline exceeded");
    let took = began.elapsed();
    assert!(
        took >= Duration::from_millis(300) && took < PATIENCE,
        "{took:?}"
    );

    let body = format!(r#"{{"name":"{}"}}"#, base64("lock"));
    let header = "Grpc-Timeout: 300m\r\n";
    let answer = http(address, "POST", "/v3/lock/lock", header, &body).await;
    assert_eq!(answer.status, 504, "{answer:?}");
    assert_eq!(answer.json()["code"], 4, "{answer:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_of_answers_ends_with_its_time() {
    let servers = Servers::start(1).await;
    let create = WatchCreateRequest {
        key: "k".into(),
        ..WatchCreateRequest::default()
    };
    let create = WatchRequest {
        request_union: Some(RequestUnion::CreateRequest(create)),
    };
    let (requests, receiver) = mpsc::channel::<Result<Frame<Bytes>, Infallible>>(1);
    let first = Frame::data(framed(&create));
    requests.send(Ok(first)).await.expect("it is read");
    let body = StreamBody::new(ReceiverStream::new(receiver)).boxed_unsync();
    let (bytes, status) = call(
        servers.address(0),
        "/etcdserverpb.Watch/Watch",
        "500000u",
        body,
    )
    .await;
    assert!(bytes > 5, "that the watch was created is told");
    assert_eq!(status.code(), Code::DeadlineExceeded);
    drop(requests);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_time_that_is_none_is_refused() {
    let servers = Servers::start(1).await;
    for wrong in ["5", "1.5S", "123456789S"] {
        let (bytes, status) = call(servers.address(0), LOCK, wrong, whole(&lock())).await;
        assert_eq!((bytes, status.code()), (0, Code::Internal), "{wrong}");
    }
}
