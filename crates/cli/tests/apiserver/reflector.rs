//! Lists keys in pages at one revision, watches them from there, goes on from the last revision seen
//! when a stream ends, and lists anew when what it wants is compacted.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use steadfast_server::proto::etcdserverpb::watch_request::RequestUnion;
use steadfast_server::proto::etcdserverpb::{
    RangeRequest, RangeResponse, WatchCreateRequest, WatchProgressRequest, WatchRequest,
    WatchResponse,
};
use steadfast_server::proto::mvccpb::event::EventType;
use steadfast_server::proto::mvccpb::{Event, KeyValue};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, interval, sleep, timeout};
use tonic::{Code, Request, Status, Streaming};

use crate::PATIENCE;
use crate::ledger::{Keys, Ledger, List, State, Version, id_of};
use crate::nodes::Client;

/// Keys of a page.
pub(crate) const PAGE: i64 = 15;

/// Pause before the next node is asked.
const AGAIN: Duration = Duration::from_millis(50);

/// How often progress is asked for.
const PROGRESS: Duration = Duration::from_secs(1);

/// A stream that knows its leader says something at least this often.
const SILENCE_MAX: Duration = Duration::from_secs(25);

/// How long one try of a list may take.
const LIST_MAX: Duration = Duration::from_secs(15);

pub(crate) fn version(kv: &KeyValue) -> Version {
    Version {
        changed: kv.mod_revision,
        created: kv.create_revision,
        number: kv.version,
        lease: kv.lease,
        id: id_of(&kv.value),
    }
}

/// One list in pages; `None`: it has to be begun anew.
pub(crate) async fn list(client: &Client, ledger: &Ledger, keys: &Keys, page: i64) -> Option<List> {
    let known = ledger.known();
    let (mut found, mut revision, mut count) = (State::new(), 0, 0);
    let mut start = keys.start.clone();
    loop {
        let request = RangeRequest {
            key: start.clone(),
            range_end: keys.end.clone(),
            limit: page,
            revision,
            ..RangeRequest::default()
        };
        let answer = timeout(LIST_MAX, client.kv().range(request)).await.ok()?;
        let page = match answer {
            Ok(answer) => answer.into_inner(),
            Err(status) => {
                check_refusal(ledger, revision, &status);
                return None;
            }
        };
        let header = page.header.as_ref().expect("a header");
        assert!(
            header.revision >= known,
            "a list at {header:?}, known is {known}"
        );
        if revision == 0 {
            (revision, count) = (header.revision, page.count);
        }
        let Some(last) = take(&mut found, &page, keys, revision) else {
            break;
        };
        start = [&*last, b"\0"].concat().into();
    }
    assert!(
        count == i64::try_from(found.len()).expect("few"),
        "{count} keys were counted"
    );
    ledger.told(revision);
    Some(List {
        keys: keys.clone(),
        revision,
        found,
    })
}

/// A list may be refused by a node without a master, or because its revision is compacted.
fn check_refusal(ledger: &Ledger, revision: i64, status: &Status) {
    match status.code() {
        Code::Unavailable | Code::Unknown | Code::Cancelled => {}
        Code::OutOfRange if revision > 0 && revision < ledger.compacting() => {}
        _ => panic!("a list at {revision}: {status:?}"),
    }
}

/// Takes a page; returns its last key if there are more.
fn take(found: &mut State, page: &RangeResponse, keys: &Keys, revision: i64) -> Option<Bytes> {
    for kv in &page.kvs {
        let is_next = found
            .last_key_value()
            .is_none_or(|(last, _)| *last < kv.key);
        let is_right = is_next && keys.has(&kv.key) && kv.mod_revision <= revision;
        assert!(is_right, "{kv:?} in a list of {keys:?} at {revision}");
        found.insert(kv.key.clone(), version(kv));
    }
    let last = page.kvs.last().map(|kv| kv.key.clone());
    last.filter(|_| page.more)
}

/// What a reflector has seen of one list and the watch after it.
pub(crate) struct Segment {
    after: i64,
    upto: i64,
    /// The revision of each event.
    seen: Vec<i64>,
}

impl Segment {
    pub(crate) fn after(revision: i64) -> Self {
        Self {
            after: revision,
            upto: revision,
            seen: Vec::new(),
        }
    }
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Watched {
    pub(crate) events: usize,
    pub(crate) streams: usize,
    pub(crate) compacted: usize,
    pub(crate) progress: usize,
    pub(crate) without_previous: usize,
    /// The longest time after the first watch that an event came here, while it did not sleep.
    pub(crate) later_max: Duration,
    /// The longest time in which nothing came.
    pub(crate) silence_max: Duration,
}

enum Ended {
    /// It goes on at another node.
    Stream,
    /// It sleeps until what it has seen is compacted.
    Sleep,
    Compacted,
    /// It has come to the last revision.
    Finished,
}

pub(crate) struct Reflector {
    /// 0 watches everything, for the audit.
    pub(crate) number: usize,
    pub(crate) client: Client,
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) keys: Keys,
    /// How long a stream lasts, of one that sleeps then until it has missed a compaction.
    pub(crate) sleeps_after: Option<Duration>,
    /// The last revision of the run, once it is known.
    pub(crate) last: watch::Receiver<Option<i64>>,
    pub(crate) state: State,
    /// The next revision that it wants.
    pub(crate) next: i64,
    pub(crate) segments: Vec<Segment>,
    pub(crate) watched: Watched,
}

impl Reflector {
    /// Until it has seen the last revision.
    pub(crate) async fn run(mut self) -> Self {
        loop {
            if self.segments.is_empty() {
                self.begin().await;
            }
            match self.watch().await {
                Ended::Stream => {
                    sleep(AGAIN).await;
                    self.client.go_on();
                }
                Ended::Sleep => self.sleep().await,
                Ended::Compacted => {
                    self.end_segment();
                    self.begin().await;
                }
                Ended::Finished => {
                    self.end_segment();
                    return self;
                }
            }
        }
    }

    fn end_segment(&mut self) {
        let upto = self.next - 1;
        if let Some(segment) = self.segments.last_mut() {
            segment.upto = upto;
        }
    }

    /// Lists.
    async fn begin(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        let list = loop {
            if let Some(list) = list(&self.client, &self.ledger, &self.keys, PAGE).await {
                break list;
            }
            assert!(Instant::now() < deadline, "no list in time");
            sleep(AGAIN).await;
            self.client.go_on();
        };
        self.state.clone_from(&list.found);
        self.next = list.revision + 1;
        self.segments.push(Segment::after(list.revision));
        self.ledger.listed(list);
    }

    async fn open(
        &self,
        asked: mpsc::Receiver<WatchRequest>,
    ) -> Result<Streaming<WatchResponse>, Status> {
        let requests = stream::unfold(asked, |mut asked| async {
            Some((asked.recv().await?, asked))
        });
        let mut request = Request::new(requests);
        let yes = "true".parse().expect("text");
        request.metadata_mut().insert("hasleader", yes);
        let answer = timeout(LIST_MAX, self.client.watch().watch(request)).await;
        let answer = answer.map_err(|_| Status::unavailable("no answer"))?;
        answer.map(tonic::Response::into_inner)
    }

    /// One stream with one watch.
    async fn watch(&mut self) -> Ended {
        let (ask, asked) = mpsc::channel(4);
        let create = WatchCreateRequest {
            key: self.keys.start.clone(),
            range_end: self.keys.end.clone(),
            start_revision: self.next,
            progress_notify: true,
            prev_kv: true,
            ..WatchCreateRequest::default()
        };
        let request = |union| WatchRequest {
            request_union: Some(union),
        };
        ask.try_send(request(RequestUnion::CreateRequest(create)))
            .expect("room");
        let Ok(mut answers) = self.open(asked).await else {
            return Ended::Stream;
        };
        self.watched.streams += 1;
        let began = Instant::now();
        let mut heard = began;
        let mut last = self.last.clone();
        let mut ticks = interval(PROGRESS);
        loop {
            if last
                .borrow_and_update()
                .is_some_and(|last| self.next > last)
            {
                return Ended::Finished;
            }
            tokio::select! {
                answer = answers.message() => {
                    let Ok(Some(answer)) = answer else {
                        return Ended::Stream;
                    };
                    let silence = heard.elapsed();
                    self.watched.silence_max = self.watched.silence_max.max(silence);
                    heard = Instant::now();
                    if self.take(&answer) {
                        return Ended::Compacted;
                    }
                }
                _ = ticks.tick() => {
                    // If there is no room, it has been asked.
                    let progress = RequestUnion::ProgressRequest(WatchProgressRequest {});
                    ask.try_send(request(progress)).ok();
                    let silence = heard.elapsed();
                    let number = self.number;
                    assert!(silence < SILENCE_MAX, "watch {number} was told nothing for {silence:?}");
                    let is_over = last.borrow().is_some();
                    let is_tired = self.sleeps_after.is_some_and(|after| began.elapsed() > after);
                    if is_tired && !is_over {
                        return Ended::Sleep;
                    }
                }
                _ = last.changed() => {}
            }
        }
    }

    async fn sleep(&mut self) {
        while self.ledger.compacted() <= self.next && self.last.borrow().is_none() {
            sleep(AGAIN).await;
        }
    }

    /// Whether the watch is over, as what it wants is compacted.
    fn take(&mut self, answer: &WatchResponse) -> bool {
        let header = answer.header.as_ref().expect("a header");
        if answer.canceled {
            let (next, compacted) = (self.next, answer.compact_revision);
            let is_right = next < compacted && compacted <= self.ledger.compacting();
            assert!(
                is_right && answer.events.is_empty(),
                "at {next}: {answer:?}"
            );
            self.watched.compacted += 1;
            return true;
        }
        if answer.created {
            assert!(answer.events.is_empty(), "{answer:?}");
        } else if answer.events.is_empty() {
            self.watched.progress += 1;
            self.next = self.next.max(header.revision + 1);
        } else {
            let first = self.next;
            for event in &answer.events {
                let at = event.kv.as_ref().expect("a key").mod_revision;
                assert!(
                    at >= first && at + 1 >= self.next && at <= header.revision,
                    "watch {} was at {}, and got {event:?} in {header:?}",
                    self.number,
                    self.next,
                );
                self.next = at + 1;
                self.event(event);
            }
        }
        if self.number == 0 {
            self.ledger.audit(self.next - 1);
        }
        false
    }

    /// The event has to follow from the version of the key that was seen before.
    fn event(&mut self, event: &Event) {
        let kv = event.kv.as_ref().expect("a key");
        let (at, was) = (kv.mod_revision, self.state.get(&kv.key).copied());
        let is = (event.r#type() == EventType::Put).then(|| version(kv));
        let number = self.number;
        assert!(self.keys.has(&kv.key), "watch {number}: {event:?}");
        let previous = event.prev_kv.as_ref();
        let is_previous_right = match (previous, was) {
            (Some(previous), Some(was)) => previous.key == kv.key && version(previous) == was,
            (None, None) => true,
            // It is compacted.
            (None, Some(_)) => at <= self.ledger.compacting(),
            (Some(_), None) => false,
        };
        let is_next = match (is, was) {
            (Some(is), Some(was)) => is.created == was.created && is.number == was.number + 1,
            (Some(is), None) => is.created == at && is.number == 1,
            (None, was) => was.is_some(),
        };
        assert!(
            is_previous_right && is_next,
            "watch {number} had {was:?}, and got {event:?}"
        );
        self.watched.without_previous += usize::from(previous.is_none() && was.is_some());
        self.watched.events += 1;
        match is {
            Some(is) => self.state.insert(kv.key.clone(), is),
            None => self.state.remove(&kv.key),
        };
        if let Some(segment) = self.segments.last_mut() {
            segment.seen.push(at);
        }
        let later = self.ledger.saw(number, at, &kv.key, is);
        if self.sleeps_after.is_none() {
            self.watched.later_max = self.watched.later_max.max(later);
        }
    }

    /// Panics unless each event up to the last revision came exactly once.
    pub(crate) fn check(&self, last: i64) {
        for segment in &self.segments {
            let upto = segment.upto.min(last);
            let changes = self.ledger.changes(&self.keys, segment.after, upto);
            let seen = segment.seen.iter().filter(|at| **at <= upto);
            let seen: Vec<_> = seen.copied().collect();
            let differs = changes.iter().zip(&seen).find(|(is, seen)| is != seen);
            assert!(
                seen == changes,
                "watch {} of {:?} saw {} of {} events from {} to {upto}; they differ at {differs:?}",
                self.number,
                self.keys,
                seen.len(),
                changes.len(),
                segment.after
            );
        }
    }
}
