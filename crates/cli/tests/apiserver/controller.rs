//! Those who change objects: by what they saw last, with a guard on it, as a kube-apiserver does.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use steadfast_server::proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use steadfast_server::proto::etcdserverpb::request_op::Request as Op;
use steadfast_server::proto::etcdserverpb::response_op::Response as Done;
use steadfast_server::proto::etcdserverpb::{
    CompactionRequest, Compare, DeleteRangeRequest, LeaseGrantRequest, PutRequest, RangeRequest,
    RequestOp, TxnRequest, TxnResponse,
};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, interval_at, timeout};
use tonic::{Code, Status};

use crate::ledger::{Asked, Fate, Guard, Id, Keys, Ledger, Version, value};
use crate::nodes::Client;
use crate::reflector;

/// How long a client waits for an answer.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// Objects of a resource.
const OBJECTS: u64 = 24;

/// Namespaces of a resource.
pub(crate) const NAMESPACES: u64 = 4;

/// The key by which compactors agree.
const COMPACT_KEY: &str = "compact_rev_key";

/// When a compactor tries again of which nothing is known.
const COMPACT_AGAIN: Duration = Duration::from_secs(1);

/// Keys of a page of everything.
pub(crate) const PAGE_OF_ALL: i64 = 40;

/// Whether what was asked for certainly did not happen.
fn is_refused(status: &Status) -> bool {
    status.code() == Code::Unavailable && status.message().starts_with("etcdserver: ")
}

/// Whoever sends guarded writes.
pub(crate) struct Sender {
    pub(crate) client: Client,
    pub(crate) ledger: Arc<Ledger>,
}

/// What came of a guarded write.
enum Came {
    Done(i64),
    /// The guard did not hold; what is there.
    Conflict(Option<Version>),
    /// Nothing is known.
    Nothing,
    /// There is no such lease.
    NoLease,
}

impl Sender {
    /// `if guard { write } else { get }`.
    async fn send(&mut self, asked: Asked) -> Came {
        let known = self.ledger.known();
        let (key, guard) = (asked.key.clone(), asked.guard);
        let (lease, is_delete) = (asked.lease, asked.is_delete);
        let id = self.ledger.ask(asked);
        let request = TxnRequest {
            compare: vec![compare(&key, guard)],
            success: vec![op(write(id, &key, lease, is_delete))],
            failure: vec![op(Op::RequestRange(get(&key)))],
        };
        let answer = timeout(ANSWER_MAX, self.client.kv().txn(request)).await;
        let status = match answer {
            Ok(Ok(answer)) => return self.answered(id, known, &answer.into_inner()),
            Ok(Err(status)) => status,
            Err(_) => Status::unknown("no answer"),
        };
        self.client.go_on();
        if status.code() == Code::NotFound && lease != 0 {
            self.ledger.answered(id, Fate::Refused);
            return Came::NoLease;
        }
        let is_expected = matches!(
            status.code(),
            Code::Unavailable | Code::Unknown | Code::Cancelled | Code::ResourceExhausted
        );
        assert!(is_expected, "{key:?}: {status:?}");
        let fate = if is_refused(&status) {
            Fate::Refused
        } else {
            Fate::Open
        };
        self.ledger.answered(id, fate);
        Came::Nothing
    }

    fn answered(&self, id: Id, known: i64, answer: &TxnResponse) -> Came {
        let revision = answer.header.as_ref().expect("a header").revision;
        if answer.succeeded {
            assert!(revision > known, "done at {revision}, known was {known}");
            self.ledger.answered(id, Fate::Done(revision));
            return Came::Done(revision);
        }
        assert!(
            revision >= known,
            "refused at {revision}, known was {known}"
        );
        let response = answer.responses.first().and_then(|of| of.response.as_ref());
        let Some(Done::ResponseRange(found)) = response else {
            panic!("no range in {answer:?}");
        };
        let found = found.kvs.first().map(reflector::version);
        self.ledger.conflicted(id, found.as_ref());
        self.ledger.told(revision);
        Came::Conflict(found)
    }

    async fn get(&mut self, key: &Bytes) -> Option<Option<Version>> {
        let known = self.ledger.known();
        let answer = timeout(ANSWER_MAX, self.client.kv().range(get(key))).await;
        let Ok(Ok(answer)) = answer else {
            self.client.go_on();
            return None;
        };
        let answer = answer.into_inner();
        let revision = answer.header.as_ref().expect("a header").revision;
        assert!(revision >= known, "read at {revision}, known was {known}");
        Some(answer.kvs.first().map(reflector::version))
    }
}

fn compare(key: &Bytes, guard: Guard) -> Compare {
    let (target, union) = match guard {
        Guard::Changed(at) => (CompareTarget::Mod, TargetUnion::ModRevision(at)),
        Guard::Number(number) => (CompareTarget::Version, TargetUnion::Version(number)),
    };
    Compare {
        result: CompareResult::Equal.into(),
        target: target.into(),
        key: key.clone(),
        target_union: Some(union),
        ..Compare::default()
    }
}

fn op(request: Op) -> RequestOp {
    let request = Some(request);
    RequestOp { request }
}

fn get(key: &Bytes) -> RangeRequest {
    RangeRequest {
        key: key.clone(),
        ..RangeRequest::default()
    }
}

fn write(id: Id, key: &Bytes, lease: i64, is_delete: bool) -> Op {
    let key = key.clone();
    if is_delete {
        return Op::RequestDeleteRange(DeleteRangeRequest {
            key,
            ..DeleteRangeRequest::default()
        });
    }
    Op::RequestPut(PutRequest {
        key,
        value: value(id),
        lease,
        ..PutRequest::default()
    })
}

/// The keys of a resource.
pub(crate) fn resource(number: usize) -> String {
    format!("/registry/resource{number:02}/")
}

/// All keys with this prefix, which ends with `/`.
pub(crate) fn prefix(prefix: &str) -> Keys {
    let end = prefix.strip_suffix('/').map(|start| format!("{start}0"));
    Keys {
        start: prefix.to_owned().into(),
        end: end.expect("it ends with a slash").into(),
    }
}

/// The key of an object.
pub(crate) fn object(resource: &str, number: u64) -> String {
    format!("{resource}ns{}/object{number:02}", number % NAMESPACES)
}

/// Changes the objects of one resource.
pub(crate) struct Controller {
    pub(crate) sender: Sender,
    pub(crate) resource: String,
    pub(crate) chance: u64,
    /// The last change of each object, as far as it is known; 0: it is not there.
    pub(crate) cache: HashMap<Bytes, i64>,
    /// How long its objects live, which are events then.
    pub(crate) ttl: Option<Duration>,
    pub(crate) lease: Option<(i64, Instant)>,
}

impl Controller {
    fn choose(&mut self, of: u64) -> u64 {
        let step = self.chance.wrapping_mul(6_364_136_223_846_793_005);
        self.chance = step.wrapping_add(1);
        (self.chance >> 33) % of
    }

    /// One step at each tick, until told to stop.
    pub(crate) async fn run(mut self, pause: Duration, stop: watch::Receiver<bool>) {
        // Not all at once.
        let first = pause * u32::try_from(self.chance % 16).expect("small") / 16;
        let mut ticks = interval_at(Instant::now() + first, pause);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !*stop.borrow() {
            ticks.tick().await;
            self.step().await;
        }
    }

    async fn step(&mut self) {
        let lease = match self.ttl {
            Some(ttl) => match self.lease(ttl).await {
                Some(lease) => lease,
                None => return,
            },
            None => 0,
        };
        let number = self.choose(OBJECTS);
        let key = Bytes::from(object(&self.resource, number));
        let Some(changed) = self.cache.get(&key).copied() else {
            if let Some(found) = self.sender.get(&key).await {
                self.cache
                    .insert(key, found.map_or(0, |found| found.changed));
            }
            return;
        };
        let asked = Asked {
            key: key.clone(),
            guard: Guard::Changed(changed),
            lease,
            is_delete: changed != 0 && self.choose(7) == 0,
        };
        let is_delete = asked.is_delete;
        match self.sender.send(asked).await {
            Came::Done(_) if is_delete => self.cache.insert(key, 0),
            Came::Done(revision) => self.cache.insert(key, revision),
            Came::Conflict(found) => self
                .cache
                .insert(key, found.map_or(0, |found| found.changed)),
            Came::Nothing => self.cache.remove(&key),
            Came::NoLease => {
                let (id, asked_at) = self.lease.take().expect("it was used");
                let lived = asked_at.elapsed();
                let ttl = self.ttl.expect("it has one");
                assert!(
                    lived >= ttl,
                    "lease {id:x} of {ttl:?} was gone after {lived:?}"
                );
                None
            }
        };
    }

    /// A lease for events: the same one for a third of its time.
    async fn lease(&mut self, ttl: Duration) -> Option<i64> {
        if let Some((id, asked_at)) = self.lease
            && asked_at.elapsed() < ttl / 3
        {
            return Some(id);
        }
        let asked_at = Instant::now();
        let request = LeaseGrantRequest {
            ttl: ttl.as_secs().try_into().expect("small"),
            id: 0,
        };
        let answer = timeout(ANSWER_MAX, self.sender.client.lease().lease_grant(request)).await;
        let Ok(Ok(answer)) = answer else {
            self.sender.client.go_on();
            return None;
        };
        let id = answer.into_inner().id;
        self.sender.ledger.granted(id, asked_at, ttl);
        self.lease = Some((id, asked_at));
        Some(id)
    }
}

/// Compacts, at each tick, what was there at the tick before: if no other compactor was faster.
pub(crate) async fn compactor(
    mut sender: Sender,
    every: Duration,
    mut stop: watch::Receiver<bool>,
) {
    let key = Bytes::from_static(COMPACT_KEY.as_bytes());
    let (mut number, mut before) = (0, 0);
    let mut ticks = interval(every);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            _ = stop.changed() => return,
        }
        let asked = Asked {
            key: key.clone(),
            guard: Guard::Number(number),
            lease: 0,
            is_delete: false,
        };
        match sender.send(asked).await {
            Came::Done(revision) => {
                number += 1;
                // The audit needs everything.
                let upto = before.min(sender.ledger.audited());
                if upto > sender.ledger.compacting() {
                    compact(&mut sender, upto).await;
                }
                before = revision;
            }
            Came::Conflict(found) => {
                (number, before) = found.map_or((0, 0), |found| (found.number, found.changed));
            }
            Came::Nothing | Came::NoLease => ticks.reset_after(COMPACT_AGAIN),
        }
    }
}

async fn compact(sender: &mut Sender, revision: i64) {
    sender.ledger.compact(revision, false);
    let request = CompactionRequest {
        revision,
        physical: false,
    };
    match timeout(ANSWER_MAX, sender.client.kv().compact(request)).await {
        Ok(Ok(_)) => sender.ledger.compact(revision, true),
        Ok(Err(status)) if status.code() == Code::OutOfRange => {
            // Only a higher one of another compactor may have come before.
            let highest = sender.ledger.compacting();
            assert!(highest > revision, "compacting {revision}: {status:?}");
        }
        _ => sender.client.go_on(),
    }
}

/// Lists a resource again and again.
pub(crate) async fn lister(
    client: Client,
    ledger: Arc<Ledger>,
    pause: Duration,
    stop: watch::Receiver<bool>,
) {
    let mut ticks = interval(pause);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for number in 0.. {
        if *stop.borrow() {
            return;
        }
        ticks.tick().await;
        let client = client.beginning_at(number);
        let all = prefix("/registry/");
        if let Some(list) = reflector::list(&client, &ledger, &all, PAGE_OF_ALL).await {
            ledger.listed(list);
        }
    }
}
