//! One stream of watches: takes requests, and answers as fast as the client reads.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};

use super::super::inner::Inner;
use super::super::keys::Keys;
use super::RETRY;
use super::decode::{Batch, Happened};
use super::hub::Mailbox;
use super::past::{self, Behind};
use crate::error::Error;
use crate::proto::etcdserverpb::watch_create_request::FilterType;
use crate::proto::etcdserverpb::watch_request::RequestUnion;
use crate::proto::etcdserverpb::{WatchCreateRequest, WatchRequest, WatchResponse};
use crate::proto::mvccpb::Event;

/// The id of an answer that belongs to no watch.
const NO_WATCH: i64 = -1;

/// A message that is to be sent in fragments has at most this many bytes of events, if there is more
/// than one: what clients are able to take.
const FRAGMENT_BYTES_MAX: usize = 2 * 1024 * 1024;

/// A watch of the stream.
struct Watch {
    keys: Keys,
    /// The next revision that it wants.
    next: i64,
    /// Its registration with the hub.
    ticket: u64,
    /// From where on the hub mails; what it wants below that is read from the log.
    mailed_after: i64,
    /// What it does not want.
    filters: Vec<i32>,
    with_previous: bool,
    in_fragments: bool,
    /// When it was last told something, if it wants to be told of progress.
    idle_since: Option<Instant>,
}

impl Watch {
    fn wants(&self, event: &Happened) -> bool {
        let filter = if event.is_delete {
            FilterType::Nodelete
        } else {
            FilterType::Noput
        };
        event.revision >= self.next && !self.filters.contains(&(filter as i32))
    }

    fn is_behind(&self) -> bool {
        self.next <= self.mailed_after
    }
}

/// The client has gone, or the store closes.
struct Ended;

struct Session {
    inner: Arc<Inner>,
    answers: mpsc::Sender<WatchResponse>,
    mailbox: Arc<Mailbox>,
    watches: BTreeMap<i64, Watch>,
    /// Those that are behind.
    behind: BTreeSet<i64>,
    /// Where to look for a free id.
    next_id: i64,
    /// The client has asked for progress.
    is_asked: bool,
    /// When to look for watches that are to be told of progress.
    look_at: Option<Instant>,
}

/// Serves one stream until its client goes or the store closes.
pub(super) async fn run(
    inner: Arc<Inner>,
    requests: mpsc::Receiver<WatchRequest>,
    answers: mpsc::Sender<WatchResponse>,
) {
    let mut session = Session {
        inner: Arc::clone(&inner),
        answers,
        mailbox: Arc::default(),
        watches: BTreeMap::new(),
        behind: BTreeSet::new(),
        next_id: 0,
        is_asked: false,
        look_at: None,
    };
    inner.unless_stopped(session.serve(requests)).await;
    for watch in session.watches.values() {
        inner.hub.remove(&watch.keys, watch.ticket);
    }
}

impl Session {
    async fn serve(&mut self, mut requests: mpsc::Receiver<WatchRequest>) -> Result<(), Ended> {
        let mailbox = Arc::clone(&self.mailbox);
        let answers = self.answers.clone();
        let mut is_open = true;
        loop {
            // All of this has been mailed when the mail is taken.
            let mailed = self.inner.hub.revision();
            self.deliver().await?;
            self.tell_progress(mailed).await?;
            let look_at = self.look_at;
            tokio::select! {
                biased;
                () = answers.closed() => return Err(Ended),
                request = requests.recv(), if is_open => match request {
                    Some(request) => self.request(request).await?,
                    None => is_open = false,
                },
                () = mailbox.came.notified() => {}
                () = async {}, if !self.behind.is_empty() => self.catch_up().await?,
                () = sleep_until(look_at.unwrap_or_else(Instant::now)), if look_at.is_some() => {}
            }
        }
    }

    async fn send(&self, answer: WatchResponse) -> Result<(), Ended> {
        self.answers.send(answer).await.map_err(|_| Ended)
    }

    async fn request(&mut self, request: WatchRequest) -> Result<(), Ended> {
        match request.request_union {
            Some(RequestUnion::CreateRequest(request)) => self.create(request).await,
            Some(RequestUnion::CancelRequest(request)) => {
                let answer = WatchResponse {
                    canceled: true,
                    ..self.answer(request.watch_id)
                };
                if self.remove(request.watch_id) {
                    self.send(answer).await?;
                }
                Ok(())
            }
            Some(RequestUnion::ProgressRequest(_)) => {
                self.is_asked = true;
                Ok(())
            }
            None => Ok(()),
        }
    }

    async fn create(&mut self, request: WatchCreateRequest) -> Result<(), Ended> {
        let key = if request.key.is_empty() {
            Bytes::from_static(&[0])
        } else {
            request.key
        };
        let keys = Keys::of(&key, &request.range_end);
        let compacted = Error::Compacted.to_string();
        let refusal = if keys.is_empty() {
            Some("mvcc: watcher range is empty")
        } else if request.start_revision < 0 {
            Some(&compacted[..])
        } else if self.watches.contains_key(&request.watch_id) && request.watch_id != 0 {
            Some("mvcc: duplicate watch ID provided on the WatchStream")
        } else if self.watches.len() >= self.inner.config.watches_max {
            Some("etcdserver: too many watches on the stream")
        } else {
            None
        };
        if let Some(refusal) = refusal {
            let answer = WatchResponse {
                created: true,
                canceled: true,
                cancel_reason: refusal.to_owned(),
                ..self.answer(NO_WATCH)
            };
            return self.send(answer).await;
        }
        let id = match request.watch_id {
            0 => self.free_id(),
            id => id,
        };
        let (mailed_after, ticket) = self.inner.hub.register(&keys, id, &self.mailbox);
        // Nobody is told as new what was acknowledged before, though it may not be mailed yet.
        let known = self.inner.header().revision.max(mailed_after);
        let now = Instant::now();
        let watch = Watch {
            keys,
            next: match request.start_revision {
                0 => known + 1,
                start => start,
            },
            ticket,
            mailed_after,
            filters: request.filters,
            with_previous: request.prev_kv,
            in_fragments: request.fragment,
            idle_since: request.progress_notify.then_some(now),
        };
        if watch.is_behind() {
            self.behind.insert(id);
        }
        if request.progress_notify {
            let look_at = now + self.inner.config.progress_interval;
            self.look_at = Some(self.look_at.map_or(look_at, |at| at.min(look_at)));
        }
        self.watches.insert(id, watch);
        let answer = WatchResponse {
            created: true,
            header: Some(self.inner.header_at(known)),
            ..self.answer(id)
        };
        self.send(answer).await
    }

    fn free_id(&mut self) -> i64 {
        while self.watches.contains_key(&self.next_id) {
            self.next_id += 1;
        }
        self.next_id += 1;
        self.next_id - 1
    }

    fn remove(&mut self, id: i64) -> bool {
        self.behind.remove(&id);
        let Some(watch) = self.watches.remove(&id) else {
            return false;
        };
        self.inner.hub.remove(&watch.keys, watch.ticket);
        true
    }

    /// An answer to a watch, at what has been mailed.
    fn answer(&self, id: i64) -> WatchResponse {
        WatchResponse {
            header: Some(self.inner.header_at(self.inner.hub.revision())),
            watch_id: id,
            ..WatchResponse::default()
        }
    }

    /// Sends what has come by mail.
    async fn deliver(&mut self) -> Result<(), Ended> {
        let mail = self.mailbox.take();
        for letter in mail.letters {
            let watch = self.watches.get(&letter.watch);
            if watch.is_none_or(|watch| watch.ticket != letter.ticket || watch.is_behind()) {
                // One that is behind has not come to the letters: it finds them in the log.
                self.miss(letter.watch, letter.ticket, letter.batch.revision);
                continue;
            }
            self.tell(
                letter.watch,
                &letter.batch,
                &letter.places,
                letter.batch.revision,
            )
            .await?;
        }
        for (id, ticket) in mail.lost {
            let Some(watch) = self.watches.get_mut(&id) else {
                continue;
            };
            if watch.ticket == ticket {
                (watch.mailed_after, watch.ticket) =
                    self.inner.hub.register(&watch.keys, id, &self.mailbox);
                if watch.is_behind() {
                    self.behind.insert(id);
                }
            }
        }
        Ok(())
    }

    /// Leaves a letter to the log.
    fn miss(&mut self, id: i64, ticket: u64, revision: i64) {
        if let Some(watch) = self
            .watches
            .get_mut(&id)
            .filter(|watch| watch.ticket == ticket)
        {
            watch.mailed_after = watch.mailed_after.max(revision);
        }
    }

    /// Sends a watch what it wants of some events, which are all of its own up to `upto`.
    async fn tell(
        &mut self,
        id: i64,
        batch: &Batch,
        places: &[u32],
        upto: i64,
    ) -> Result<(), Ended> {
        let Some(watch) = self.watches.get_mut(&id) else {
            return Ok(());
        };
        let events = places
            .iter()
            .filter_map(|place| batch.events.get(*place as usize));
        let events = events.filter(|event| watch.wants(event) && event.revision <= upto);
        let events: Vec<&Happened> = events.collect();
        watch.next = watch.next.max(upto + 1);
        if events.is_empty() {
            return Ok(());
        }
        watch.idle_since = watch.idle_since.map(|_| Instant::now());
        let (with_previous, in_fragments) = (watch.with_previous, watch.in_fragments);
        if with_previous && past::previous(&self.inner.env, &events).is_err() {
            tracing::warn!("what was before an event could not be read");
        }
        let events = events.into_iter().map(|event| event.event(with_previous));
        let parts = if in_fragments {
            fragments(events)
        } else {
            vec![events.collect()]
        };
        let last = parts.len() - 1;
        for (place, events) in parts.into_iter().enumerate() {
            let answer = WatchResponse {
                header: Some(self.inner.header_at(upto)),
                watch_id: id,
                fragment: place < last,
                events,
                ..WatchResponse::default()
            };
            self.send(answer).await?;
        }
        Ok(())
    }

    /// Sends a part of what the watches that are behind have missed.
    async fn catch_up(&mut self) -> Result<(), Ended> {
        let behind = || {
            self.behind
                .iter()
                .filter_map(|id| Some((*id, self.watches.get(id)?)))
        };
        let Some(from) = behind().map(|(_, watch)| watch.next).min() else {
            self.behind.clear();
            return Ok(());
        };
        let watches = behind().map(|(id, watch)| Behind {
            watch: id,
            keys: watch.keys.clone(),
            with_previous: watch.with_previous,
        });
        let part = match past::read(&self.inner, from, watches.collect()).await {
            Ok(part) => part,
            Err(Error::Stopped) => return Err(Ended),
            // The node is busy, or changing its state.
            Err(_) => {
                sleep(RETRY).await;
                return Ok(());
            }
        };
        let nothing: Arc<[u32]> = Arc::from([]);
        for id in self.behind.clone() {
            let Some(watch) = self.watches.get(&id) else {
                continue;
            };
            if watch.next < part.compacted {
                self.give_up(id, part.compacted).await?;
                continue;
            }
            let upto = part.batch.revision.min(watch.mailed_after);
            let places = part.places.get(&id).unwrap_or(&nothing);
            self.tell(id, &part.batch, places, upto).await?;
            let is_behind = |id| self.watches.get(id).is_some_and(Watch::is_behind);
            if !is_behind(&id) {
                self.behind.remove(&id);
            }
        }
        Ok(())
    }

    /// Ends a watch of which a part is compacted.
    async fn give_up(&mut self, id: i64, compacted: i64) -> Result<(), Ended> {
        self.remove(id);
        let answer = WatchResponse {
            header: Some(self.inner.header_at(0)),
            watch_id: id,
            canceled: true,
            compact_revision: compacted,
            ..WatchResponse::default()
        };
        self.send(answer).await
    }

    /// Tells how far the watches have come, where it is wanted: everything up to `mailed` has been
    /// sent.
    async fn tell_progress(&mut self, mailed: i64) -> Result<(), Ended> {
        if self.is_asked && self.behind.is_empty() {
            self.is_asked = false;
            let are_all_begun = self.watches.values().all(|watch| watch.next <= mailed + 1);
            if are_all_begun && !self.watches.is_empty() {
                self.tell_revision(NO_WATCH, mailed).await?;
            }
        }
        let now = Instant::now();
        if self.look_at.is_none_or(|at| now < at) {
            return Ok(());
        }
        let interval = self.inner.config.progress_interval;
        let mut due = Vec::new();
        for (id, watch) in &mut self.watches {
            let Some(since) = &mut watch.idle_since else {
                continue;
            };
            if *since + interval <= now {
                *since = now;
                let has_begun = watch.next <= mailed + 1 && !watch.is_behind();
                due.extend(has_begun.then_some(*id));
            }
        }
        let idle = self.watches.values().filter_map(|watch| watch.idle_since);
        self.look_at = idle.min().map(|since| since + interval);
        for id in due {
            self.tell_revision(id, mailed).await?;
        }
        Ok(())
    }

    async fn tell_revision(&self, id: i64, revision: i64) -> Result<(), Ended> {
        let answer = WatchResponse {
            header: Some(self.inner.header_at(revision)),
            watch_id: id,
            ..WatchResponse::default()
        };
        self.send(answer).await
    }
}

/// The events in messages that are not too long.
fn fragments(events: impl Iterator<Item = Event>) -> Vec<Vec<Event>> {
    let (mut parts, mut part, mut bytes) = (Vec::new(), Vec::new(), 0);
    for event in events {
        let more = event.encoded_len();
        if !part.is_empty() && bytes + more > FRAGMENT_BYTES_MAX {
            parts.push(std::mem::take(&mut part));
            bytes = 0;
        }
        bytes += more;
        part.push(event);
    }
    parts.push(part);
    parts
}
