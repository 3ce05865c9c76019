//! A client: one random operation after the other, each noted with what came of it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::stream;
use steadfast_server::proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use steadfast_server::proto::etcdserverpb::kv_client::KvClient;
use steadfast_server::proto::etcdserverpb::lease_client::LeaseClient;
use steadfast_server::proto::etcdserverpb::request_op::Request as Op;
use steadfast_server::proto::etcdserverpb::{
    Compare, DeleteRangeRequest, LeaseGrantRequest, LeaseKeepAliveRequest, LeaseRevokeRequest,
    LeaseTimeToLiveRequest, PutRequest, RangeRequest, RequestOp, ResponseHeader, TxnRequest,
};
use tonic::transport::Channel;
use tonic::{Code, Response, Status};

use crate::history::{Came, Event, History, Is, Keys, Said, Write};

/// Keys that are written without a lease.
const KEYS: u64 = 6;

/// Keys that are written with one, among them those: most of them are left to their lease.
const LEASED_KEYS: u64 = 24;

/// Leases that all clients use.
const LEASES: usize = 12;

/// Pause after an operation.
const PAUSE: Duration = Duration::from_millis(4);

/// Pause after one of which nothing, or nothing certain, came: the node may be away.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_millis(50);

/// The lease that a client keeps alive.
#[derive(Clone, Copy)]
struct Own {
    id: i64,
    ttl: Duration,
    /// When it is kept alive again.
    next: Duration,
}

pub(crate) struct Client {
    number: u64,
    kv: KvClient<Channel>,
    lease: LeaseClient<Channel>,
    history: Arc<History>,
    chance: u64,
    own: Option<Own>,
}

fn key_bytes(number: u64) -> Vec<u8> {
    format!("k{number}").into_bytes()
}

fn number(bytes: &[u8]) -> u64 {
    std::str::from_utf8(bytes).unwrap().parse().unwrap()
}

fn put_request(key: u64, value: u64, lease: i64) -> PutRequest {
    PutRequest {
        key: key_bytes(key).into(),
        value: value.to_string().into_bytes().into(),
        lease,
        ..PutRequest::default()
    }
}

/// Whether what was asked for certainly did not happen.
fn is_refused(status: &Status) -> bool {
    status.code() == Code::Unavailable && status.message().starts_with("etcdserver: ")
}

/// All keys as of a revision (0: as they are), at the node of a channel.
pub(crate) async fn read(
    kv: &mut KvClient<Channel>,
    revision: i64,
    history: &History,
) -> Result<(Keys, i64), Status> {
    let request = RangeRequest {
        key: "k".into(),
        range_end: "l".into(),
        revision,
        ..RangeRequest::default()
    };
    let answer = kv.range(request).await?.into_inner();
    let keys = answer.kvs.iter().map(|kv| {
        let is = Is {
            value: number(&kv.value),
            changed: kv.mod_revision,
            lease: kv.lease,
        };
        (number(&kv.key[1..]), is)
    });
    let header = answer.header.unwrap();
    history.note_term(header.raft_term);
    Ok((keys.collect(), header.revision))
}

impl Client {
    pub(crate) fn new(number: u64, channel: Channel, history: &Arc<History>) -> Self {
        Self {
            number,
            kv: KvClient::new(channel.clone()),
            lease: LeaseClient::new(channel),
            history: Arc::clone(history),
            chance: (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15),
            own: None,
        }
    }

    fn choose(&mut self, of: u64) -> u64 {
        let step = self.chance.wrapping_mul(6_364_136_223_846_793_005);
        self.chance = step.wrapping_add(1);
        (self.chance >> 33) % of
    }

    /// One operation.
    pub(crate) async fn step(&mut self) {
        let history = Arc::clone(&self.history);
        let began = history.now();
        let event = self.operate(began).await;
        let has_failed = matches!(event, None | Some(Event::Write(_, Came::Unknown)));
        if let Some(event) = event {
            history.note(self.number, began, event);
        }
        let pause = if has_failed {
            PAUSE_AFTER_FAILURE
        } else {
            PAUSE
        };
        tokio::time::sleep(pause).await;
    }

    /// What came of it; `None`: certainly nothing.
    async fn operate(&mut self, began: Duration) -> Option<Event> {
        let grants = self.choose(8) == 0;
        match self.own {
            Some(own) if own.next <= began => return self.keep_alive(own, began).await,
            None if grants => return self.grant(began).await,
            _ => {}
        }
        let (key, value) = (self.choose(KEYS), self.history.value());
        let write = match self.choose(40) {
            0..9 => Write::Put {
                key,
                value,
                lease: 0,
            },
            9..18 => {
                let (key, lease) = (self.choose(LEASED_KEYS), self.any_lease()?);
                Write::Put { key, value, lease }
            }
            18..24 => {
                // A guard on what was seen lately, which holds now and then.
                let newest = self.history.known.load(Ordering::Relaxed);
                let seen = (newest - self.choose(12).cast_signed()).max(0);
                Write::Swap { key, seen, value }
            }
            24..27 => Write::Delete { key },
            27 => {
                let lease = self.any_lease()?;
                return match self.choose(6) {
                    0 => self.revoke(lease).await,
                    _ => self.left(lease).await,
                };
            }
            _ => {
                let (keys, revision) = read(&mut self.kv, 0, &self.history).await.ok()?;
                return Some(Event::Read(keys, revision));
            }
        };
        let came = self.write(&write).await?;
        Some(Event::Write(write, came))
    }

    fn any_lease(&mut self) -> Option<i64> {
        let leases = self.history.leases.lock().unwrap().clone();
        let count = u64::try_from(leases.len()).unwrap();
        let at = self.choose(count.max(1));
        leases.get(usize::try_from(at).unwrap()).copied()
    }

    async fn write(&mut self, write: &Write) -> Option<Came> {
        match *write {
            Write::Put { key, value, lease } => {
                let answer = self.kv.put(put_request(key, value, lease)).await;
                came(&self.history, answer, |answer| (answer.header, true))
            }
            Write::Swap { key, seen, value } => {
                let compare = Compare {
                    result: CompareResult::Equal as i32,
                    target: CompareTarget::Mod as i32,
                    key: key_bytes(key).into(),
                    target_union: Some(TargetUnion::ModRevision(seen)),
                    ..Compare::default()
                };
                let put = Op::RequestPut(put_request(key, value, 0));
                let request = TxnRequest {
                    compare: vec![compare],
                    success: vec![RequestOp { request: Some(put) }],
                    failure: Vec::new(),
                };
                let answer = self.kv.txn(request).await;
                came(&self.history, answer, |answer| {
                    (answer.header, answer.succeeded)
                })
            }
            Write::Delete { key } => {
                let request = DeleteRangeRequest {
                    key: key_bytes(key).into(),
                    ..DeleteRangeRequest::default()
                };
                let answer = self.kv.delete_range(request).await;
                came(&self.history, answer, |answer| {
                    (answer.header, answer.deleted > 0)
                })
            }
            Write::Revoke { lease } => {
                let answer = self.lease.lease_revoke(LeaseRevokeRequest { id: lease });
                came(&self.history, answer.await, |answer| (answer.header, true))
            }
        }
    }

    async fn revoke(&mut self, lease: i64) -> Option<Event> {
        let write = Write::Revoke { lease };
        let came = self.write(&write).await?;
        Some(match came {
            Came::NoLease => Event::Lease(lease, Said::Gone),
            came => Event::Write(write, came),
        })
    }

    async fn grant(&mut self, began: Duration) -> Option<Event> {
        let id = self.history.value().cast_signed();
        let seconds = 2 + self.choose(2);
        let ttl = Duration::from_secs(seconds);
        let request = LeaseGrantRequest {
            ttl: seconds.cast_signed(),
            id,
        };
        match self.lease.lease_grant(request).await {
            Ok(answer) => {
                assert_eq!(answer.into_inner().ttl, seconds.cast_signed());
                let mut leases = self.history.leases.lock().unwrap();
                leases.push(id);
                let surplus = leases.len().saturating_sub(LEASES);
                leases.drain(..surplus);
                drop(leases);
                self.own = Some(Own {
                    id,
                    ttl,
                    next: began,
                });
                self.plan(began);
                Some(Event::Lease(id, Said::Granted(ttl)))
            }
            Err(status) if is_refused(&status) => None,
            Err(_) => Some(Event::Lease(id, Said::MayBeGranted(ttl))),
        }
    }

    /// Keeps the own lease alive some time later, often when it is nearly over; or never.
    fn plan(&mut self, began: Duration) {
        let of_hundred = match self.choose(3) {
            0 => u32::try_from(self.choose(90)).unwrap(),
            _ => 98,
        };
        let is_left = self.choose(5) == 0;
        let own = self.own.take().filter(|_| !is_left);
        self.own = own.map(|own| Own {
            next: began + own.ttl * of_hundred / 100,
            ..own
        });
    }

    async fn keep_alive(&mut self, own: Own, began: Duration) -> Option<Event> {
        let request = LeaseKeepAliveRequest { id: own.id };
        let answers = self.lease.lease_keep_alive(stream::iter([request])).await;
        let answer = match answers {
            Ok(answers) => answers.into_inner().message().await,
            Err(status) => Err(status),
        };
        let said = match answer {
            Ok(Some(answer)) if answer.ttl > 0 => Said::KeptAlive,
            Ok(Some(_)) => Said::Gone,
            Err(status) if is_refused(&status) => return None,
            Ok(None) | Err(_) => Said::MayBeKeptAlive,
        };
        if said == Said::Gone {
            self.own = None;
        } else {
            self.plan(began);
        }
        Some(Event::Lease(own.id, said))
    }

    async fn left(&mut self, lease: i64) -> Option<Event> {
        let request = LeaseTimeToLiveRequest {
            id: lease,
            keys: true,
        };
        let answer = self.lease.lease_time_to_live(request).await.ok()?;
        let answer = answer.into_inner();
        let Ok(seconds) = u64::try_from(answer.ttl) else {
            return Some(Event::Lease(lease, Said::Gone));
        };
        let mut keys: Vec<_> = answer.keys.iter().map(|key| number(&key[1..])).collect();
        keys.sort_unstable();
        let revision = answer.header.unwrap().revision;
        let said = Said::Left {
            seconds,
            keys,
            revision,
        };
        Some(Event::Lease(lease, said))
    }
}

fn came<T>(
    history: &History,
    answer: Result<Response<T>, Status>,
    parts: impl FnOnce(T) -> (Option<ResponseHeader>, bool),
) -> Option<Came> {
    match answer {
        Ok(answer) => {
            let (header, is_done) = parts(answer.into_inner());
            let header = header.unwrap();
            history.note_term(header.raft_term);
            Some(if is_done {
                Came::Done(header.revision)
            } else {
                Came::Nothing(header.revision)
            })
        }
        Err(status) if is_refused(&status) => None,
        Err(status) if status.code() == Code::NotFound => Some(Came::NoLease),
        Err(_) => Some(Came::Unknown),
    }
}
