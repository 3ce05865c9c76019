//! A group with a store on each node, and short forms of requests.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use steadfast::{InMemoryGroup, RepConfigBuilder, ReplicatedEnvironment};
use steadfast_server::error::Error;
use steadfast_server::proto::etcdserverpb::request_op::Request;
use steadfast_server::proto::etcdserverpb::*;
use steadfast_server::proto::mvccpb::{Event, KeyValue};
use steadfast_server::store::{Store, StoreConfig};
use tokio::sync::mpsc;

pub const PATIENCE: Duration = Duration::from_mins(1);

pub struct Group {
    pub nodes: InMemoryGroup,
    pub config: StoreConfig,
    stores: BTreeMap<String, Store>,
}

impl Group {
    pub async fn new(nodes: usize) -> Self {
        Self::with(nodes, StoreConfig::default()).await
    }

    pub async fn with(nodes: usize, config: StoreConfig) -> Self {
        let nodes = InMemoryGroup::new_async(nodes).await.expect("a group");
        Self::on(nodes, config).await
    }

    /// One whose transactions may write half of this.
    pub async fn with_segments(nodes: usize, log_segment_bytes: u64) -> Self {
        let configure =
            move |builder: RepConfigBuilder| builder.set("log_segment_bytes", log_segment_bytes);
        let nodes = InMemoryGroup::configured_async(nodes, configure).await;
        Self::on(nodes.expect("a group"), StoreConfig::default()).await
    }

    async fn on(nodes: InMemoryGroup, config: StoreConfig) -> Self {
        let mut group = Self {
            nodes,
            config,
            stores: BTreeMap::new(),
        };
        let names: Vec<_> = group.nodes.nodes().map(name).collect();
        for name in names {
            group.open(&name).await;
        }
        group
    }

    pub async fn open(&mut self, name: &str) {
        let env = self.nodes.node(name).expect("a node").clone();
        let store = Store::open(env, self.config.clone()).await;
        self.stores.insert(name.to_owned(), store.expect("a store"));
    }

    pub fn stores(&self) -> Vec<Store> {
        self.stores.values().cloned().collect()
    }

    pub fn store(&self, name: &str) -> Store {
        self.stores[name].clone()
    }

    pub async fn master_name(&self) -> String {
        name(
            self.nodes
                .wait_master_async(PATIENCE)
                .await
                .expect("a master"),
        )
    }

    pub async fn master(&self) -> Store {
        self.store(&self.master_name().await)
    }

    pub async fn replica(&self) -> Store {
        let master = self.master_name().await;
        let mut others = self.stores.iter().filter(|(name, _)| **name != master);
        others.next().expect("a replica").1.clone()
    }

    /// Ends a node as a power cut would.
    pub async fn crash(&mut self, name: &str) {
        let store = self.stores.remove(name).expect("a store");
        self.nodes.crash_async(name).await.expect("crashed");
        store.close().await;
    }

    pub async fn start(&mut self, name: &str) {
        let node = self.nodes.start_async(name).await.expect("started");
        node.wait_ready_async(PATIENCE).await.expect("ready");
        self.open(name).await;
    }

    pub async fn close(self) {
        for (_, store) in self.stores {
            store.close().await;
        }
        let nodes: Vec<_> = self.nodes.nodes().cloned().collect();
        for node in nodes {
            node.close_async().await.expect("closed");
        }
    }
}

fn name(node: &ReplicatedEnvironment) -> String {
    node.status().node.name
}

pub fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

/// The end of the keys that begin with this.
pub fn end_of(prefix: &str) -> Bytes {
    let mut end = prefix.as_bytes().to_vec();
    *end.last_mut().expect("not empty") += 1;
    end.into()
}

pub fn put(key: &str, value: &str) -> PutRequest {
    PutRequest {
        key: bytes(key),
        value: bytes(value),
        ..PutRequest::default()
    }
}

pub fn get(key: &str) -> RangeRequest {
    RangeRequest {
        key: bytes(key),
        ..RangeRequest::default()
    }
}

pub fn prefix(prefix: &str) -> RangeRequest {
    RangeRequest {
        range_end: end_of(prefix),
        ..get(prefix)
    }
}

pub fn delete(key: &str) -> DeleteRangeRequest {
    DeleteRangeRequest {
        key: bytes(key),
        ..DeleteRangeRequest::default()
    }
}

pub fn delete_prefix(prefix: &str) -> DeleteRangeRequest {
    DeleteRangeRequest {
        range_end: end_of(prefix),
        ..delete(prefix)
    }
}

pub fn op(request: impl Into<Op>) -> RequestOp {
    RequestOp {
        request: Some(request.into().0),
    }
}

pub struct Op(Request);

impl From<PutRequest> for Op {
    fn from(request: PutRequest) -> Self {
        Self(Request::RequestPut(request))
    }
}

impl From<RangeRequest> for Op {
    fn from(request: RangeRequest) -> Self {
        Self(Request::RequestRange(request))
    }
}

impl From<DeleteRangeRequest> for Op {
    fn from(request: DeleteRangeRequest) -> Self {
        Self(Request::RequestDeleteRange(request))
    }
}

impl From<TxnRequest> for Op {
    fn from(request: TxnRequest) -> Self {
        Self(Request::RequestTxn(request))
    }
}

pub fn txn(ops: Vec<RequestOp>) -> TxnRequest {
    TxnRequest {
        success: ops,
        ..TxnRequest::default()
    }
}

pub fn values(answer: &RangeResponse) -> Vec<(String, String)> {
    answer.kvs.iter().map(pair).collect()
}

pub fn pair(kv: &KeyValue) -> (String, String) {
    (text(&kv.key), text(&kv.value))
}

pub fn text(bytes: &Bytes) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

pub fn revision<'h>(header: impl Into<Option<&'h ResponseHeader>>) -> i64 {
    header.into().expect("a header").revision
}

/// Puts a key and returns the revision.
pub async fn set(store: &Store, key: &str, value: &str) -> i64 {
    revision(&store.put(put(key, value)).await.expect("put").header)
}

pub async fn keys(store: &Store, request: RangeRequest) -> Vec<String> {
    let answer = store.range(request).await.expect("a range");
    answer.kvs.iter().map(|kv| text(&kv.key)).collect()
}

pub fn refused<T: std::fmt::Debug>(answer: Result<T, Error>) -> Error {
    answer.expect_err("it is refused")
}

/// One stream of watches.
pub struct Watches {
    pub requests: mpsc::Sender<WatchRequest>,
    pub answers: mpsc::Receiver<WatchResponse>,
}

impl Watches {
    pub fn new(store: &Store) -> Self {
        let (requests, answers) = store.watches();
        Self { requests, answers }
    }

    pub async fn create(&mut self, request: WatchCreateRequest) {
        self.send(watch_request::RequestUnion::CreateRequest(request))
            .await;
    }

    pub async fn cancel(&mut self, watch_id: i64) {
        let request = WatchCancelRequest { watch_id };
        self.send(watch_request::RequestUnion::CancelRequest(request))
            .await;
    }

    pub async fn ask_progress(&mut self) {
        let request = WatchProgressRequest {};
        self.send(watch_request::RequestUnion::ProgressRequest(request))
            .await;
    }

    async fn send(&mut self, request: watch_request::RequestUnion) {
        let request = WatchRequest {
            request_union: Some(request),
        };
        self.requests
            .send(request)
            .await
            .expect("the stream is open");
    }

    pub async fn next(&mut self) -> WatchResponse {
        let next = tokio::time::timeout(PATIENCE, self.answers.recv()).await;
        next.expect("in time").expect("the stream is open")
    }

    /// Nothing comes for a while.
    pub async fn is_silent(&mut self, time: Duration) -> bool {
        tokio::time::timeout(time, self.answers.recv())
            .await
            .is_err()
    }

    /// The next events, until there are so many.
    pub async fn events(&mut self, count: usize) -> Vec<Event> {
        let mut events = Vec::new();
        while events.len() < count {
            let answer = self.next().await;
            assert!(!answer.canceled, "{answer:?}");
            events.extend(answer.events);
        }
        events
    }
}

pub fn watch(key: &str, start_revision: i64) -> WatchCreateRequest {
    WatchCreateRequest {
        key: bytes(key),
        start_revision,
        ..WatchCreateRequest::default()
    }
}

pub fn watch_prefix(prefix: &str, start_revision: i64) -> WatchCreateRequest {
    WatchCreateRequest {
        range_end: end_of(prefix),
        ..watch(prefix, start_revision)
    }
}

/// An event in short: `+key=value@revision` or `-key@revision`.
pub fn short(event: &Event) -> String {
    let kv = event.kv.as_ref().expect("a key");
    let (key, value) = pair(kv);
    match event.r#type() {
        steadfast_server::proto::mvccpb::event::EventType::Put => {
            format!("+{key}={value}@{}", kv.mod_revision)
        }
        steadfast_server::proto::mvccpb::event::EventType::Delete => {
            format!("-{key}@{}", kv.mod_revision)
        }
    }
}

pub fn shorts(events: &[Event]) -> Vec<String> {
    events.iter().map(short).collect()
}
