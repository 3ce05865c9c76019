//! Requests over gRPC, and what is said about their answers.

use std::time::Duration;

use steadfast_server::proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use steadfast_server::proto::etcdserverpb::kv_client::KvClient;
use steadfast_server::proto::etcdserverpb::lease_client::LeaseClient;
use steadfast_server::proto::etcdserverpb::request_op::Request;
use steadfast_server::proto::etcdserverpb::watch_client::WatchClient;
use steadfast_server::proto::etcdserverpb::watch_request::RequestUnion;
use steadfast_server::proto::etcdserverpb::{
    CompactionRequest, CompactionResponse, Compare, DeleteRangeRequest, DeleteRangeResponse,
    LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse,
    LeaseRevokeRequest, LeaseRevokeResponse, LeaseTimeToLiveRequest, LeaseTimeToLiveResponse,
    PutRequest, PutResponse, RangeRequest, RangeResponse, RequestOp, ResponseHeader, TxnRequest,
    TxnResponse, WatchCancelRequest, WatchCreateRequest, WatchProgressRequest, WatchRequest,
    WatchResponse,
};
use steadfast_server::proto::mvccpb::KeyValue;
use steadfast_server::proto::mvccpb::event::EventType;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tonic::{Code, Response, Status, Streaming};

use crate::target::{PATIENCE, Target};

/// Larger than any answer of a row.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(20);

impl Target {
    pub(crate) fn kv(&self) -> KvClient<tonic::transport::Channel> {
        KvClient::new(self.channel()).max_decoding_message_size(ANSWER_BYTES_MAX)
    }

    pub(crate) async fn range(&self, request: RangeRequest) -> Result<RangeResponse, Status> {
        Ok(self.kv().range(request).await?.into_inner())
    }

    pub(crate) async fn try_put(&self, request: PutRequest) -> Result<PutResponse, Status> {
        Ok(self.kv().put(request).await?.into_inner())
    }

    pub(crate) async fn delete(
        &self,
        request: DeleteRangeRequest,
    ) -> Result<DeleteRangeResponse, Status> {
        Ok(self.kv().delete_range(request).await?.into_inner())
    }

    pub(crate) async fn txn(&self, request: TxnRequest) -> Result<TxnResponse, Status> {
        Ok(self.kv().txn(request).await?.into_inner())
    }

    pub(crate) async fn compact(&self, revision: i64) -> Result<CompactionResponse, Status> {
        let request = CompactionRequest {
            revision,
            physical: true,
        };
        Ok(self.kv().compact(request).await?.into_inner())
    }

    /// Puts a value; the revision of it.
    pub(crate) async fn put(&self, key: &str, value: &str) -> i64 {
        let answer = self.try_put(put(key, value)).await.unwrap();
        answer.header.unwrap().revision
    }

    /// What is under a key, if anything is.
    pub(crate) async fn get(&self, key: &str) -> Option<KeyValue> {
        self.range(one(key)).await.unwrap().kvs.pop()
    }

    /// The newest revision.
    pub(crate) async fn revision(&self) -> i64 {
        revision(self.range(one("no such key")).await.unwrap().header)
    }

    pub(crate) async fn grant(&self, ttl: i64, id: i64) -> Result<LeaseGrantResponse, Status> {
        let request = LeaseGrantRequest { ttl, id };
        let mut client = LeaseClient::new(self.channel());
        Ok(client.lease_grant(request).await?.into_inner())
    }

    pub(crate) async fn revoke(&self, id: i64) -> Result<LeaseRevokeResponse, Status> {
        let mut client = LeaseClient::new(self.channel());
        Ok(client
            .lease_revoke(LeaseRevokeRequest { id })
            .await?
            .into_inner())
    }

    pub(crate) async fn time_to_live(&self, id: i64) -> LeaseTimeToLiveResponse {
        let request = LeaseTimeToLiveRequest { id, keys: true };
        let mut client = LeaseClient::new(self.channel());
        client
            .lease_time_to_live(request)
            .await
            .unwrap()
            .into_inner()
    }

    pub(crate) async fn keep_alive(&self, id: i64) -> Result<LeaseKeepAliveResponse, Status> {
        let mut client = LeaseClient::new(self.channel());
        let requests = tokio_stream(vec![LeaseKeepAliveRequest { id }]);
        let mut answers = client.lease_keep_alive(requests).await?.into_inner();
        Ok(answers.message().await?.expect("an answer"))
    }

    /// A stream for watches.
    #[expect(clippy::unused_async, reason = "asked like everything else")]
    pub(crate) async fn watch(&self) -> Watches {
        let (requests, mut receiver) = mpsc::channel(1100);
        let stream = futures_util::stream::poll_fn(move |cx| receiver.poll_recv(cx));
        let client = WatchClient::new(self.channel());
        let mut client = client.max_decoding_message_size(ANSWER_BYTES_MAX);
        let call = tokio::spawn(async move { client.watch(stream).await });
        Watches {
            requests,
            call: Some(call),
            answers: None,
        }
    }
}

/// A stream of requests that ends only with the answers.
fn tokio_stream<T: Send + 'static>(items: Vec<T>) -> impl futures_util::Stream<Item = T> + Send {
    use futures_util::StreamExt;
    futures_util::stream::iter(items).chain(futures_util::stream::pending())
}

/// A stream with watches on it.
pub(crate) struct Watches {
    requests: mpsc::Sender<WatchRequest>,
    /// Ends with the head of the answer, which a server may send with its first message.
    call: Option<JoinHandle<Result<Response<Streaming<WatchResponse>>, Status>>>,
    answers: Option<Streaming<WatchResponse>>,
}

impl Watches {
    async fn send(&self, union: RequestUnion) {
        let request = WatchRequest {
            request_union: Some(union),
        };
        self.requests.send(request).await.unwrap();
    }

    pub(crate) async fn cancel(&self, watch_id: i64) {
        self.send(RequestUnion::CancelRequest(WatchCancelRequest { watch_id }))
            .await;
    }

    pub(crate) async fn ask_progress(&self) {
        self.send(RequestUnion::ProgressRequest(WatchProgressRequest {}))
            .await;
    }

    pub(crate) async fn send_create(&self, request: WatchCreateRequest) {
        self.send(RequestUnion::CreateRequest(request)).await;
    }

    /// Asks for a watch; the answer to that.
    pub(crate) async fn create(&mut self, request: WatchCreateRequest) -> WatchResponse {
        self.send_create(request).await;
        let answer = self.next().await;
        assert!(answer.created, "{answer:?}");
        assert!(answer.events.is_empty(), "{answer:?}");
        answer
    }

    pub(crate) async fn next(&mut self) -> WatchResponse {
        let next = timeout(PATIENCE, self.message()).await;
        next.expect("nothing came")
            .unwrap()
            .expect("the stream goes on")
    }

    /// The next message, the end of the stream, or why it broke.
    pub(crate) async fn message(&mut self) -> Result<Option<WatchResponse>, Status> {
        if let Some(call) = self.call.take() {
            self.answers = Some(call.await.expect("no panic")?.into_inner());
        }
        self.answers
            .as_mut()
            .expect("the call was answered")
            .message()
            .await
    }

    /// The next events, as many as `count` at least, each as one line of text.
    pub(crate) async fn events(&mut self, count: usize) -> Vec<String> {
        let mut events = Vec::new();
        while events.len() < count {
            let answer = self.next().await;
            assert!(!answer.created && !answer.canceled, "{answer:?}");
            assert!(!answer.events.is_empty(), "{answer:?}");
            events.extend(lines(&answer));
        }
        events
    }
}

/// The events of a message, each as `PUT key=value@mod` or `DELETE key@mod`.
pub(crate) fn lines(answer: &WatchResponse) -> Vec<String> {
    let line = |event: &steadfast_server::proto::mvccpb::Event| {
        let kv = event.kv.as_ref().expect("an event has its key");
        let key = text(&kv.key);
        match event.r#type() {
            EventType::Put => format!("PUT {key}={}@{}", text(&kv.value), kv.mod_revision),
            EventType::Delete => format!("DELETE {key}@{}", kv.mod_revision),
        }
    };
    answer.events.iter().map(line).collect()
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The keys of an answer, in its order.
pub(crate) fn keys(answer: &RangeResponse) -> Vec<String> {
    answer.kvs.iter().map(|kv| text(&kv.key)).collect()
}

pub(crate) fn revision(header: Option<ResponseHeader>) -> i64 {
    header.expect("a header").revision
}

/// Holds that a request was refused with the code and the text.
#[track_caller]
pub(crate) fn refused<T: std::fmt::Debug>(answer: Result<T, Status>, code: Code, text: &str) {
    let status = answer.expect_err("it has to be refused");
    assert_eq!((status.code(), status.message()), (code, text));
}

/// Waits until a condition holds.
pub(crate) async fn until<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let deadline = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < deadline, "{what}: not in time");
        sleep(POLL).await;
    }
}

pub(crate) fn one(key: &str) -> RangeRequest {
    RangeRequest {
        key: bytes(key),
        ..RangeRequest::default()
    }
}

pub(crate) fn prefix(key: &str) -> RangeRequest {
    RangeRequest {
        range_end: end_of(key),
        ..one(key)
    }
}

pub(crate) fn put(key: &str, value: &str) -> PutRequest {
    PutRequest {
        key: bytes(key),
        value: bytes(value),
        ..PutRequest::default()
    }
}

pub(crate) fn delete(key: &str) -> DeleteRangeRequest {
    DeleteRangeRequest {
        key: bytes(key),
        ..DeleteRangeRequest::default()
    }
}

pub(crate) fn delete_prefix(key: &str) -> DeleteRangeRequest {
    DeleteRangeRequest {
        range_end: end_of(key),
        ..delete(key)
    }
}

pub(crate) fn watch(key: &str) -> WatchCreateRequest {
    WatchCreateRequest {
        key: bytes(key),
        ..WatchCreateRequest::default()
    }
}

pub(crate) fn watch_prefix(key: &str) -> WatchCreateRequest {
    WatchCreateRequest {
        range_end: end_of(key),
        ..watch(key)
    }
}

/// The first key after all that begin with `key`.
pub(crate) fn end_of(key: &str) -> bytes::Bytes {
    let mut end = key.as_bytes().to_vec();
    *end.last_mut().expect("a key") += 1;
    end.into()
}

pub(crate) fn bytes(text: &str) -> bytes::Bytes {
    bytes::Bytes::copy_from_slice(text.as_bytes())
}

/// Something that can stand in a transaction.
pub(crate) trait Operation {
    fn op(self) -> RequestOp;
}

impl Operation for RangeRequest {
    fn op(self) -> RequestOp {
        RequestOp {
            request: Some(Request::RequestRange(self)),
        }
    }
}

impl Operation for PutRequest {
    fn op(self) -> RequestOp {
        RequestOp {
            request: Some(Request::RequestPut(self)),
        }
    }
}

impl Operation for DeleteRangeRequest {
    fn op(self) -> RequestOp {
        RequestOp {
            request: Some(Request::RequestDeleteRange(self)),
        }
    }
}

impl Operation for TxnRequest {
    fn op(self) -> RequestOp {
        RequestOp {
            request: Some(Request::RequestTxn(self)),
        }
    }
}

/// A transaction without a guard.
pub(crate) fn txn(success: impl IntoIterator<Item = RequestOp>) -> TxnRequest {
    TxnRequest {
        success: success.into_iter().collect(),
        ..TxnRequest::default()
    }
}

/// A transaction of guards alone: whether it succeeds says whether they hold.
pub(crate) fn guards(compare: impl IntoIterator<Item = Compare>) -> TxnRequest {
    TxnRequest {
        compare: compare.into_iter().collect(),
        ..TxnRequest::default()
    }
}

/// `key.target RESULT value`.
pub(crate) fn compare(key: &str, result: CompareResult, union: TargetUnion) -> Compare {
    let target = match union {
        TargetUnion::Version(_) => CompareTarget::Version,
        TargetUnion::CreateRevision(_) => CompareTarget::Create,
        TargetUnion::ModRevision(_) => CompareTarget::Mod,
        TargetUnion::Value(_) => CompareTarget::Value,
        TargetUnion::Lease(_) => CompareTarget::Lease,
    };
    Compare {
        result: result.into(),
        target: target.into(),
        key: bytes(key),
        target_union: Some(union),
        ..Compare::default()
    }
}
