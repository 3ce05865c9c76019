//! What clients of three nodes saw while masters were killed under them has one order that explains
//! it: that of the revisions, with each read after the revision that its header names.
//!
//! ```sh
//! STEADFAST_FAILOVERS=100 cargo test -p steadfast-server --test linearizable -- --nocapture
//! ```

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use steadfast::{InMemoryGroup, ReplicatedEnvironment};
use steadfast_server::proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use steadfast_server::proto::etcdserverpb::kv_client::KvClient;
use steadfast_server::proto::etcdserverpb::request_op::Request as Op;
use steadfast_server::proto::etcdserverpb::{
    Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, ResponseHeader, TxnRequest,
};
use steadfast_server::{Server, ServerConfig, serve};
use tonic::transport::Channel;
use tonic::{Code, Response, Status};

const CLIENTS: u64 = 9;
const KEYS: u64 = 4;
const READY_MAX: Duration = Duration::from_secs(30);
/// Operations that succeed between two failovers.
const OPERATIONS_BETWEEN: usize = 300;

/// The failovers of a run.
fn failovers() -> usize {
    let set = std::env::var("STEADFAST_FAILOVERS").ok();
    set.map_or(4, |set| set.parse().unwrap())
}

/// A write as its client saw it. Values are never used twice.
#[derive(Clone, Debug)]
enum Write {
    Put {
        key: u64,
        value: u64,
    },
    /// Sets the key if its last change was at `seen` (0: it was not there).
    Swap {
        key: u64,
        seen: i64,
        value: u64,
    },
    Delete {
        key: u64,
    },
}

/// What came of a write.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Came {
    /// It is the revision.
    Done(i64),
    /// The guard did not hold, or there was nothing to delete, as of the revision.
    Nothing(i64),
    /// It may have happened.
    Unknown,
}

/// The keys as of a revision: value and last change of those that are there.
type Seen = BTreeMap<u64, (u64, i64)>;

#[derive(Clone, Debug)]
enum Event {
    Write(Write, Came),
    /// All keys as of the revision.
    Read(Seen, i64),
}

impl Event {
    fn revision(&self) -> Option<i64> {
        match self {
            Self::Write(_, Came::Done(revision) | Came::Nothing(revision))
            | Self::Read(_, revision) => Some(*revision),
            Self::Write(_, Came::Unknown) => None,
        }
    }
}

/// What a client did, and between which two ticks of the one clock.
#[derive(Clone, Debug)]
struct Record {
    began: u64,
    ended: u64,
    event: Event,
}

#[derive(Default)]
struct History {
    clock: AtomicU64,
    values: AtomicU64,
    records: Mutex<Vec<Record>>,
    /// The newest revision that anybody was told.
    known: AtomicI64,
}

impl History {
    fn tick(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst)
    }

    fn note(&self, began: u64, event: Event) {
        let ended = self.tick();
        let record = Record {
            began,
            ended,
            event,
        };
        self.records.lock().unwrap().push(record);
    }

    fn done(&self) -> usize {
        self.records.lock().unwrap().len()
    }
}

fn key_bytes(number: u64) -> Vec<u8> {
    format!("k{number}").into_bytes()
}

fn put_request(key: u64, value: u64) -> PutRequest {
    PutRequest {
        key: key_bytes(key).into(),
        value: value.to_string().into_bytes().into(),
        ..PutRequest::default()
    }
}

/// Whether what was asked for certainly did not happen.
fn is_refused(status: &Status) -> bool {
    status.code() == Code::Unavailable && status.message().starts_with("etcdserver: ")
}

struct Client {
    kv: KvClient<Channel>,
    history: Arc<History>,
    state: u64,
}

impl Client {
    fn choose(&mut self, of: u64) -> u64 {
        let step = self.state.wrapping_mul(6_364_136_223_846_793_005);
        self.state = step.wrapping_add(1);
        (self.state >> 33) % of
    }

    async fn step(&mut self) {
        let history = Arc::clone(&self.history);
        let key = self.choose(KEYS);
        let value = history.values.fetch_add(1, Ordering::Relaxed);
        let what = self.choose(10);
        let began = history.tick();
        let write = match what {
            0..4 => Write::Put { key, value },
            4..6 => {
                // A guard on what was seen lately, which holds now and then.
                let newest = history.known.load(Ordering::Relaxed);
                let seen = (newest - self.choose(12).cast_signed()).max(0);
                Write::Swap { key, seen, value }
            }
            6 => Write::Delete { key },
            _ => {
                if let Some(read) = self.read().await {
                    history.note(began, read);
                }
                return;
            }
        };
        match self.write(&write).await {
            Some(came) => history.note(began, Event::Write(write, came)),
            // Nothing happened; another node may answer.
            None => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }

    /// What came of it; `None`: certainly nothing.
    async fn write(&mut self, write: &Write) -> Option<Came> {
        let answer = match *write {
            Write::Put { key, value } => {
                let answer = self.kv.put(put_request(key, value)).await;
                came(answer, |answer| (answer.header, true))
            }
            Write::Swap { key, seen, value } => {
                let compare = Compare {
                    result: CompareResult::Equal as i32,
                    target: CompareTarget::Mod as i32,
                    key: key_bytes(key).into(),
                    target_union: Some(TargetUnion::ModRevision(seen)),
                    ..Compare::default()
                };
                let put = Op::RequestPut(put_request(key, value));
                let request = TxnRequest {
                    compare: vec![compare],
                    success: vec![RequestOp { request: Some(put) }],
                    failure: Vec::new(),
                };
                let answer = self.kv.txn(request).await;
                came(answer, |answer| (answer.header, answer.succeeded))
            }
            Write::Delete { key } => {
                let request = DeleteRangeRequest {
                    key: key_bytes(key).into(),
                    ..DeleteRangeRequest::default()
                };
                let answer = self.kv.delete_range(request).await;
                came(answer, |answer| (answer.header, answer.deleted > 0))
            }
        };
        if let Some(Came::Done(revision) | Came::Nothing(revision)) = answer {
            self.history.known.fetch_max(revision, Ordering::Relaxed);
        }
        answer
    }

    async fn read(&mut self) -> Option<Event> {
        let request = RangeRequest {
            key: "k".into(),
            range_end: "l".into(),
            ..RangeRequest::default()
        };
        let answer = self.kv.range(request).await.ok()?.into_inner();
        let number = |bytes: &[u8]| std::str::from_utf8(bytes).unwrap().parse::<u64>().unwrap();
        let seen = answer.kvs.iter().map(|kv| {
            let is = (number(&kv.value), kv.mod_revision);
            (number(&kv.key[1..]), is)
        });
        let seen = seen.collect();
        Some(Event::Read(seen, answer.header.unwrap().revision))
    }
}

fn came<T>(
    answer: Result<Response<T>, Status>,
    parts: impl FnOnce(T) -> (Option<ResponseHeader>, bool),
) -> Option<Came> {
    match answer {
        Ok(answer) => {
            let (header, is_done) = parts(answer.into_inner());
            let revision = header.unwrap().revision;
            Some(if is_done {
                Came::Done(revision)
            } else {
                Came::Nothing(revision)
            })
        }
        Err(status) if is_refused(&status) => None,
        Err(_) => Some(Came::Unknown),
    }
}

/// What is at each revision: what clients were told, and writes of unknown outcome that somebody read.
fn writes_by_revision(records: &[Record]) -> BTreeMap<i64, Write> {
    let (mut writes, mut unknown) = (BTreeMap::new(), HashMap::new());
    for record in records {
        match &record.event {
            Event::Write(write, Came::Done(revision)) => {
                let other = writes.insert(*revision, write.clone());
                assert!(other.is_none(), "revision {revision}: {other:?}, {write:?}");
            }
            Event::Write(
                write @ (Write::Put { value, .. } | Write::Swap { value, .. }),
                Came::Unknown,
            ) => {
                unknown.insert(*value, write.clone());
            }
            _ => {}
        }
    }
    for record in records {
        let Event::Read(seen, _) = &record.event else {
            continue;
        };
        for (value, revision) in seen.values() {
            if let Some(write) = unknown.get(value) {
                writes.entry(*revision).or_insert_with(|| write.clone());
            }
        }
    }
    writes
}

/// The keys as of each revision that has a write.
fn states(writes: &BTreeMap<i64, Write>, may_lack_deletes: bool) -> BTreeMap<i64, Seen> {
    let mut state = Seen::new();
    let of_each = writes.iter().map(|(revision, write)| {
        match *write {
            Write::Put { key, value } => {
                state.insert(key, (value, *revision));
            }
            Write::Swap { key, seen, value } => {
                let was = state.get(&key).map_or(0, |(_, changed)| *changed);
                assert!(
                    was == seen || (may_lack_deletes && seen == 0),
                    "revision {revision}: {write:?}, but the last change was at {was}"
                );
                state.insert(key, (value, *revision));
            }
            Write::Delete { key } => {
                let was = state.remove(&key);
                assert!(was.is_some(), "revision {revision}: {key} is not there");
            }
        }
        (*revision, state.clone())
    });
    of_each.collect()
}

/// Panics at the first thing that the order of the revisions does not explain.
fn check(records: &[Record]) {
    // One that was not told leaves no value to know it by.
    let may_lack_deletes = records.iter().any(|record| {
        matches!(
            record.event,
            Event::Write(Write::Delete { .. }, Came::Unknown)
        )
    });
    let states = states(&writes_by_revision(records), may_lack_deletes);
    let at = |revision: i64| {
        let state = states.range(..=revision).next_back();
        state.map(|(_, state)| state.clone()).unwrap_or_default()
    };
    for record in records {
        match &record.event {
            Event::Read(seen, revision) => {
                let state = at(*revision);
                let has_all = state.iter().all(|(key, was)| {
                    let is = seen.get(key);
                    is == Some(was) || (may_lack_deletes && is.is_none())
                });
                let has_no_more = seen.iter().all(|(key, is)| state.get(key) == Some(is));
                assert!(
                    has_all && has_no_more,
                    "at revision {revision} {seen:?} was read, not {state:?}"
                );
            }
            Event::Write(Write::Swap { key, seen, .. }, Came::Nothing(revision)) => {
                let was = at(*revision).get(key).map_or(0, |(_, changed)| *changed);
                assert!(
                    was != *seen || may_lack_deletes,
                    "the guard of {record:?} held at revision {revision}"
                );
            }
            Event::Write(..) => {}
        }
    }
    check_real_time(records);
}

/// Nothing sees or becomes an earlier revision than what had ended before it began.
fn check_real_time(records: &[Record]) {
    let ends = records.iter();
    let ends = ends.filter_map(|record| Some((record.ended, record.event.revision()?)));
    let mut ends: Vec<_> = ends.collect();
    ends.sort_unstable();
    let mut newest = 0;
    for (_, revision) in &mut ends {
        newest = newest.max(*revision);
        *revision = newest;
    }
    for record in records {
        let before = ends.partition_point(|(ended, _)| *ended < record.began);
        let known = before.checked_sub(1).map(|last| ends[last].1);
        let (Some(own), Some(known)) = (record.event.revision(), known) else {
            continue;
        };
        let is_new = matches!(record.event, Event::Write(_, Came::Done(_)));
        assert!(
            own > known || (own == known && !is_new),
            "{record:?} began when revision {known} was known"
        );
    }
}

async fn start(env: &ReplicatedEnvironment, listen: &str) -> Server {
    env.wait_ready_async(READY_MAX).await.unwrap();
    let config = ServerConfig::new(listen);
    serve(env.clone(), config).await.unwrap()
}

/// Nine clients at three addresses, until told to stop.
fn clients(
    addresses: &[SocketAddr],
    history: &Arc<History>,
    stop: &Arc<AtomicBool>,
) -> Vec<tokio::task::JoinHandle<()>> {
    let client = |number: u64| {
        let address = addresses[usize::try_from(number).unwrap() % addresses.len()];
        let channel = Channel::from_shared(format!("http://{address}")).unwrap();
        let mut client = Client {
            kv: KvClient::new(channel.connect_lazy()),
            history: Arc::clone(history),
            state: (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15),
        };
        let stop = Arc::clone(stop);
        tokio::spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                client.step().await;
            }
        })
    };
    (0..CLIENTS).map(client).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_clients_saw_through_failovers_has_one_order() {
    let mut group = InMemoryGroup::new_async(3).await.unwrap();
    let mut servers = BTreeMap::new();
    for name in ["n1", "n2", "n3"] {
        let server = start(group.node(name).unwrap(), "127.0.0.1:0").await;
        servers.insert(name.to_owned(), server);
    }
    let (history, stop) = (Arc::<History>::default(), Arc::<AtomicBool>::default());
    let addresses: Vec<_> = servers.values().map(Server::local_address).collect();
    let clients = clients(&addresses, &history, &stop);
    let goes_on = async |operations: usize| {
        let wanted = history.done() + operations;
        let deadline = tokio::time::Instant::now() + READY_MAX;
        while history.done() < wanted {
            let is_late = tokio::time::Instant::now() >= deadline;
            assert!(!is_late, "clients get nowhere");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    for failover in 1..=failovers() {
        goes_on(OPERATIONS_BETWEEN).await;
        let master = group.wait_master_async(READY_MAX).await.unwrap();
        let name = master.status().node.name;
        let server = servers.remove(&name).unwrap();
        let address = server.local_address().to_string();
        group.crash_async(&name).await.unwrap();
        server.close().await;
        goes_on(OPERATIONS_BETWEEN / 3).await;
        let env = group.start_async(&name).await.unwrap().clone();
        servers.insert(name, start(&env, &address).await);
        if failover % 10 == 0 {
            println!("{failover} failovers, {} operations", history.done());
        }
    }
    goes_on(OPERATIONS_BETWEEN).await;
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.unwrap();
    }
    let records = history.records.lock().unwrap().clone();
    let count = |is: fn(&Event) -> bool| records.iter().filter(|of| is(&of.event)).count();
    let unknown = count(|event| event.revision().is_none());
    let reads = count(|event| matches!(event, Event::Read(..)));
    let swaps = count(|event| matches!(event, Event::Write(Write::Swap { .. }, Came::Done(_))));
    println!(
        "{} operations, {reads} reads, {swaps} guards that held, {unknown} of unknown outcome",
        records.len()
    );
    assert!(reads > 0 && swaps > 0, "they were used");
    check(&records);
    for server in servers.into_values() {
        server.close().await;
    }
}

#[test]
fn a_history_that_has_no_order_is_found() {
    let record = |began: u64, ended: u64, event: Event| Record {
        began,
        ended,
        event,
    };
    let put = |at: i64, value: u64| Event::Write(Write::Put { key: 0, value }, Came::Done(at));
    let read = |value: u64, changed: i64, at: i64| {
        Event::Read(BTreeMap::from([(0, (value, changed))]), at)
    };
    let swap = |seen: i64, came: Came| {
        let (key, value) = (0, 12);
        Event::Write(Write::Swap { key, seen, value }, came)
    };
    let good = [
        record(0, 1, put(2, 10)),
        record(2, 5, put(3, 11)),
        record(3, 4, read(10, 2, 2)),
        record(6, 7, swap(2, Came::Nothing(3))),
        record(8, 9, swap(3, Came::Done(4))),
    ];
    check(&good);
    let stale = read(10, 2, 2);
    let torn = read(10, 2, 4);
    let twice = put(3, 13);
    let backwards = put(1, 13);
    let guarded = swap(2, Came::Done(5));
    let refused = swap(4, Came::Nothing(4));
    for wrong in [stale, torn, twice, backwards, guarded, refused] {
        let history = [&good[..], &[record(10, 11, wrong.clone())]].concat();
        let found = std::panic::catch_unwind(|| check(&history));
        assert!(found.is_err(), "{wrong:?} was not found");
    }
}
