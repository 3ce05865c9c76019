//! The calling side: one connection to a peer, for all calls that this node makes there.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use steadfast_net::{FrameReceiver, FrameSender, lock};
use tokio::sync::{Notify, Semaphore, oneshot, watch};
use tokio::time::{Instant, timeout_at};

use crate::calls::messages::{CallAnswer, CallRefusal, CallReply, CallRequest};
use crate::error::in_full;
use crate::group::Members;
use crate::ids::NodeId;
use crate::limits::{CALLS_IN_FLIGHT_BYTES_MAX, CALLS_IN_FLIGHT_MAX};
use crate::node::phase::Phase;
use crate::tasks::Tasks;
use crate::wire::dialling::Dialler;
use crate::wire::hello::{DialError, Session};
use crate::wire::messages::{Kind, WireError, decode, encode};

/// A connection without a call for this long is closed.
const IDLE_MAX: Duration = Duration::from_mins(1);

/// Why a call has no answer.
#[derive(Clone, Debug)]
pub(crate) enum LineError {
    /// No byte of the request was sent.
    NotSent(String),
    /// Too many calls have no answer.
    Full { calls: usize, bytes: usize },
    /// The peer has not handled it.
    Refused(CallRefusal),
    /// It may have been handled.
    Unanswered(String),
}

/// Whom to call, and how.
pub(crate) struct Peer<'a> {
    pub(crate) id: NodeId,
    /// Its address in the membership.
    pub(crate) address: String,
    pub(crate) service: &'static str,
    pub(crate) dialler: &'a Dialler,
    /// The tasks of this node, one of which the connection becomes.
    pub(crate) tasks: &'a Tasks,
    pub(crate) phase: watch::Receiver<Phase>,
    /// A connection on which nothing arrives for this long is given up.
    pub(crate) silence_max: Duration,
}

/// What to ask.
#[derive(Clone)]
pub(crate) struct Asked<'a> {
    pub(crate) name: &'a str,
    pub(crate) to_master: bool,
    pub(crate) body: Bytes,
    pub(crate) deadline: Instant,
    /// Whether to wait until earlier calls have their answers, where too many have none.
    pub(crate) waits: bool,
    pub(crate) progress: Arc<Progress>,
}

/// How far a call has come.
#[derive(Debug, Default)]
pub(crate) struct Progress(Mutex<(bool, Option<Bytes>)>);

impl Progress {
    /// Whether any byte of the request may have been sent.
    pub(crate) fn is_sent(&self) -> bool {
        lock(&self.0).0
    }

    /// What the peer has said before its answer.
    pub(crate) fn told(&self) -> Option<Bytes> {
        lock(&self.0).1.clone()
    }

    fn send(&self) {
        lock(&self.0).0 = true;
    }

    fn tell(&self, told: Bytes) {
        lock(&self.0).1 = Some(told);
    }
}

/// The lines to all peers, each made by the first call.
#[derive(Default)]
pub(crate) struct Lines(Mutex<BTreeMap<NodeId, Arc<Line>>>);

impl Lines {
    /// The line to this peer. Those to former members are forgotten.
    pub(crate) fn to(&self, peer: NodeId, members: &Members) -> Arc<Line> {
        let mut lines = lock(&self.0);
        if let Some(line) = lines.get(&peer) {
            return Arc::clone(line);
        }
        lines.retain(|id, _| members.contains_key(id));
        Arc::clone(lines.entry(peer).or_default())
    }
}

/// See the module.
pub(crate) struct Line {
    dialled: tokio::sync::Mutex<Dialled>,
    places: Semaphore,
    room: Semaphore,
}

#[derive(Default)]
struct Dialled {
    open: Option<Arc<Open>>,
    /// When and why the last attempt failed.
    failed: Option<(Instant, String)>,
}

impl Default for Line {
    fn default() -> Self {
        Self {
            dialled: tokio::sync::Mutex::default(),
            places: Semaphore::new(CALLS_IN_FLIGHT_MAX),
            room: Semaphore::new(CALLS_IN_FLIGHT_BYTES_MAX),
        }
    }
}

impl Line {
    /// The answer of the peer.
    ///
    /// # Errors
    /// See [`LineError`].
    pub(crate) async fn call(
        &self,
        peer: &Peer<'_>,
        asked: &Asked<'_>,
    ) -> Result<Bytes, LineError> {
        let full = |_| LineError::Full {
            calls: CALLS_IN_FLIGHT_MAX - self.places.available_permits(),
            bytes: CALLS_IN_FLIGHT_BYTES_MAX - self.room.available_permits(),
        };
        let not_in_time = |_| LineError::NotSent("it could not be reached in time".to_owned());
        let bytes = u32::try_from(asked.body.len()).unwrap_or(u32::MAX);
        let _taken = if asked.waits {
            let taking = async {
                let place = self.places.acquire().await;
                (place.ok(), self.room.acquire_many(bytes).await.ok())
            };
            timeout_at(asked.deadline, taking)
                .await
                .map_err(not_in_time)?
        } else {
            let place = self.places.try_acquire().map_err(full)?;
            let room = self.room.try_acquire_many(bytes).map_err(full)?;
            (Some(place), Some(room))
        };
        let first = timeout_at(asked.deadline, self.open(peer)).await;
        let first = first.map_err(not_in_time)??;
        match first.call(asked).await {
            // A connection that was there may have ended before this.
            Err(LineError::NotSent(_)) if Instant::now() < asked.deadline => {}
            called => return called,
        }
        let second = timeout_at(asked.deadline, self.open(peer)).await;
        second.map_err(not_in_time)??.call(asked).await
    }

    /// The connection, dialled if there is none. Callers that came before a dial failed share its
    /// failure.
    async fn open(&self, peer: &Peer<'_>) -> Result<Arc<Open>, LineError> {
        let began = Instant::now();
        let mut dialled = self.dialled.lock().await;
        if let Some(open) = dialled.open.as_ref().filter(|open| !open.is_over()) {
            return Ok(Arc::clone(open));
        }
        dialled.open = None;
        if let Some((at, why)) = &dialled.failed
            && *at >= began
        {
            return Err(LineError::NotSent(why.clone()));
        }
        let mut phase = peer.phase.clone();
        let session = tokio::select! {
            biased;
            session = peer.dialler.dial(&peer.address, peer.id, peer.service) => session,
            _ = phase.wait_for(Phase::is_closing) => Err(DialError::Closed),
        };
        match session {
            Ok(session) => {
                let open = Arc::new(Open::default());
                let silence_max = peer.silence_max;
                peer.tasks
                    .spawn(run(Running(Arc::clone(&open)), session, silence_max));
                dialled.open = Some(Arc::clone(&open));
                Ok(open)
            }
            Err(error) => {
                let why = why_not_dialled(&error);
                dialled.failed = Some((Instant::now(), why.clone()));
                Err(LineError::NotSent(why))
            }
        }
    }
}

fn why_not_dialled(error: &DialError) -> String {
    match error {
        // A node that has no such service says nothing.
        DialError::Closed | DialError::NoHello => {
            "it closes the connection, as a node that stops or one of an earlier version does"
                .to_owned()
        }
        error => in_full(error),
    }
}

/// A connection.
#[derive(Default)]
struct Open {
    calls: Mutex<Calls>,
    /// There is something to send.
    unsent: Notify,
}

#[derive(Default)]
struct Calls {
    last_id: u64,
    /// Requests of which no byte was sent, in the order in which they came.
    unsent: BTreeMap<u64, Bytes>,
    waiting: BTreeMap<u64, Waiter>,
    used: Option<Instant>,
    /// Why the connection has ended.
    over: Option<String>,
}

impl Calls {
    /// The next request to send.
    fn next(&mut self) -> Option<Bytes> {
        let (id, request) = self.unsent.pop_first()?;
        if let Some(waiting) = self.waiting.get(&id) {
            waiting.progress.send();
        }
        Some(request)
    }

    fn tell(&self, id: u64, told: &Bytes) {
        if let Some(waiting) = self.waiting.get(&id) {
            // It is kept for longer than the buffer that it came in.
            waiting.progress.tell(Bytes::copy_from_slice(told));
        }
    }
}

/// Who waits for an answer.
struct Waiter {
    answer: oneshot::Sender<Result<Bytes, LineError>>,
    progress: Arc<Progress>,
}

impl Waiter {
    fn answer(self, answer: Result<Bytes, LineError>) {
        // The caller may have given up.
        self.answer.send(answer).ok();
    }
}

impl Open {
    fn is_over(&self) -> bool {
        lock(&self.calls).over.is_some()
    }

    async fn call(&self, asked: &Asked<'_>) -> Result<Bytes, LineError> {
        let (answer, receiver) = oneshot::channel();
        let left = asked.deadline.saturating_duration_since(Instant::now());
        let id = {
            let mut calls = lock(&self.calls);
            if let Some(why) = &calls.over {
                return Err(LineError::NotSent(why.clone()));
            }
            calls.last_id += 1;
            calls.used = Some(Instant::now());
            let id = calls.last_id;
            let progress = Arc::clone(&asked.progress);
            calls.waiting.insert(id, Waiter { answer, progress });
            id
        };
        let _forgotten = Waiting { open: self, id };
        let request = encode(
            Kind::CallRequest,
            &CallRequest {
                id,
                name: asked.name.to_owned(),
                to_master: asked.to_master,
                timeout_ms: u64::try_from(left.as_millis()).unwrap_or(u64::MAX),
                body: asked.body.clone(),
            },
        );
        {
            let mut calls = lock(&self.calls);
            if let Some(why) = &calls.over {
                return Err(LineError::NotSent(why.clone()));
            }
            calls.unsent.insert(id, request);
        }
        self.unsent.notify_one();
        if let Ok(answered) = timeout_at(asked.deadline, receiver).await {
            let lost = |_| LineError::Unanswered("the connection ended".to_owned());
            return answered.unwrap_or_else(|error| Err(lost(error)));
        }
        let is_unsent = lock(&self.calls).unsent.remove(&id).is_some();
        Err(if is_unsent {
            LineError::NotSent("it takes no requests".to_owned())
        } else {
            LineError::Unanswered("not in time".to_owned())
        })
    }

    /// Tells all who wait that the connection has ended.
    fn end(&self, why: &str) {
        let (unsent, waiting) = {
            let mut calls = lock(&self.calls);
            calls.over.get_or_insert_with(|| why.to_owned());
            (
                std::mem::take(&mut calls.unsent),
                std::mem::take(&mut calls.waiting),
            )
        };
        for (id, waiting) in waiting {
            let error = if unsent.contains_key(&id) {
                LineError::NotSent(why.to_owned())
            } else {
                LineError::Unanswered(why.to_owned())
            };
            waiting.answer(Err(error));
        }
    }

    /// Ends a connection that nobody has used for long. Whether it has.
    fn end_if_idle(&self) -> bool {
        let mut calls = lock(&self.calls);
        let is_idle =
            calls.waiting.is_empty() && calls.used.is_none_or(|used| used.elapsed() >= IDLE_MAX);
        if is_idle {
            calls.over = Some("it was not used for long".to_owned());
        }
        is_idle
    }

    async fn send_all(&self, mut sender: FrameSender) -> Result<(), DialError> {
        loop {
            let next = lock(&self.calls).next();
            if let Some(request) = next {
                sender.feed(request).await?;
            } else {
                sender.flush().await?;
                self.unsent.notified().await;
            }
        }
    }

    async fn receive_all(
        &self,
        mut receiver: FrameReceiver,
        silence_max: Duration,
    ) -> Result<(), DialError> {
        loop {
            let frame = receiver.receive_unless_silent(silence_max).await?;
            let reply: CallReply = decode(Kind::CallReply, frame.ok_or(DialError::Closed)?)?;
            let answer = match reply.answer.ok_or(WireError::Missing("an answer"))? {
                CallAnswer::Standing(_) if self.end_if_idle() => return Ok(()),
                CallAnswer::Standing(_) => continue,
                CallAnswer::Told(told) => {
                    lock(&self.calls).tell(reply.id, &told);
                    continue;
                }
                CallAnswer::Done(answer) => Ok(answer),
                CallAnswer::Refused(why) => {
                    let why = CallRefusal::try_from(why).unwrap_or(CallRefusal::Other);
                    Err(LineError::Refused(why))
                }
                CallAnswer::Failed(why) => Err(LineError::Unanswered(why)),
            };
            let waiting = lock(&self.calls).waiting.remove(&reply.id);
            if let Some(waiting) = waiting {
                waiting.answer(answer);
            }
        }
    }
}

/// A call that waits. A caller that gives up is forgotten, and its request is not sent any more.
struct Waiting<'a> {
    open: &'a Open,
    id: u64,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut calls = lock(&self.open.calls);
        calls.unsent.remove(&self.id);
        calls.waiting.remove(&self.id);
    }
}

/// A connection whose task runs.
struct Running(Arc<Open>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.end("this node closes");
    }
}

/// Sends and receives until the connection ends.
async fn run(running: Running, session: Session, silence_max: Duration) {
    let open = &running.0;
    let ended = tokio::select! {
        biased;
        ended = open.receive_all(session.receiver, silence_max) => ended,
        ended = open.send_all(session.sender) => ended,
    };
    if let Err(error) = ended {
        open.end(&format!("the connection ended: {}", in_full(&error)));
    }
}
