//! ELECTION: short requests with short answers, on a connection of their own so that bulk data
//! never delays them.
//!
//! Requests carry an id and may be answered in any order. On the calling side, one task per peer
//! owns the connection, dials it when there is a request, and drops it when it goes silent.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use steadfast_net::process;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::time::Instant;

use crate::ids::NodeId;
use crate::recent::Recent;
use crate::wire::ELECTION;
use crate::wire::dialling::Dialler;
use crate::wire::hello::{DialError, Session};
use crate::wire::messages::{
    ElectionAnswer, ElectionCall, ElectionReply, ElectionRequest, Kind, Refusal, decode, encode,
};

/// Requests of one peer answered concurrently; no further one is read until one is answered.
const ANSWERS_IN_FLIGHT_MAX: usize = 256;
/// Requests to one peer that are unanswered or not sent yet. Votes, heartbeats and one barrier are
/// only a handful; at this limit the peer is not answering at all.
const CALLS_UNANSWERED_MAX: usize = 64;

/// Why a request has no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum CallError {
    /// The request did not arrive.
    #[error("cannot reach the peer: {0}")]
    Unreachable(Arc<DialError>),
    /// The request may have arrived.
    #[error("the connection ended before the answer arrived")]
    Lost,
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// The request was not sent.
    #[error("{CALLS_UNANSWERED_MAX} requests to the peer are unanswered")]
    Busy,
}

struct Call {
    call: ElectionCall,
    waiter: Waiter,
}

/// A waiter for an answer. It keeps its place until the answer comes or the connection ends, even
/// after it has given up: the peer still has its request.
struct Waiter {
    answer: oneshot::Sender<Result<ElectionAnswer, CallError>>,
    _place: OwnedSemaphorePermit,
}

impl Waiter {
    fn answer(self, answer: Result<ElectionAnswer, CallError>) {
        // The waiter may have given up.
        self.answer.send(answer).ok();
    }
}

/// A client for one peer. Clones share the connection; dropping the last one closes it.
#[derive(Clone)]
pub(crate) struct ElectionClient {
    /// Has room for every call that has a place.
    calls: mpsc::Sender<Call>,
    places: Arc<Semaphore>,
    /// Recent heartbeat round-trip times.
    round_trips: Arc<Recent>,
    /// When the peer last answered.
    answered: Arc<watch::Sender<Option<Instant>>>,
}

/// Whom an [`ElectionClient`] calls, and how.
pub(crate) struct Peer {
    pub(crate) dialler: Dialler,
    pub(crate) address: String,
    pub(crate) id: NodeId,
    /// A connection is given up when its oldest request has waited this long.
    pub(crate) silence_max: Duration,
    /// Contains the peer while it refuses the caller as not a member of the group.
    pub(crate) refusing: watch::Sender<BTreeSet<NodeId>>,
}

impl ElectionClient {
    /// Starts the task that owns the connection, on the current runtime.
    pub(crate) fn start(peer: Peer) -> Self {
        let (calls, receiver) = mpsc::channel(CALLS_UNANSWERED_MAX);
        process::spawn(peer.run(receiver));
        let places = Arc::new(Semaphore::new(CALLS_UNANSWERED_MAX));
        Self {
            calls,
            places,
            round_trips: Arc::default(),
            answered: Arc::default(),
        }
    }

    /// Whether the peer has answered anything within this time.
    pub(crate) fn has_answered_within(&self, time: Duration) -> bool {
        self.answered
            .borrow()
            .is_some_and(|at| at.elapsed() <= time)
    }

    /// Median round-trip time of the last heartbeats, as an upper bound.
    pub(crate) fn round_trip_p50(&self) -> Option<Duration> {
        self.round_trips.within(50)
    }

    /// # Errors
    /// See [`CallError`].
    pub(crate) async fn call(
        &self,
        call: ElectionCall,
        timeout: Duration,
    ) -> Result<ElectionAnswer, CallError> {
        let place = Arc::clone(&self.places).try_acquire_owned();
        let place = place.map_err(|_| CallError::Busy)?;
        let (began, is_heartbeat) = (Instant::now(), matches!(call, ElectionCall::Heartbeat(_)));
        let (answer, receiver) = oneshot::channel();
        let waiter = Waiter {
            answer,
            _place: place,
        };
        let called = async {
            self.calls
                .send(Call { call, waiter })
                .await
                .map_err(|_| CallError::Lost)?;
            receiver.await.unwrap_or(Err(CallError::Lost))
        };
        let answered = tokio::time::timeout(timeout, called).await;
        // A call that timed out counts with its timeout.
        if is_heartbeat && !matches!(answered, Ok(Err(_))) {
            self.round_trips.note(began.elapsed());
        }
        if matches!(answered, Ok(Ok(_))) {
            self.answered.send_replace(Some(Instant::now()));
        }
        answered.unwrap_or(Err(CallError::Timeout(timeout)))
    }
}

/// Requests by id, so the oldest comes first, with the time by which each must be answered.
type Unanswered = BTreeMap<u64, (Instant, Waiter)>;

impl Peer {
    async fn run(self, mut calls: mpsc::Receiver<Call>) {
        while let Some(first) = calls.recv().await {
            let dialling = self.dialler.dial(&self.address, self.id, ELECTION);
            let dialled = dialling.await;
            self.note_refusal(&dialled);
            match dialled {
                Ok(session) => {
                    let ended = self.converse(session, first, &mut calls).await;
                    tracing::debug!(peer = %self.id, ?ended, "the ELECTION connection ended");
                }
                Err(error) => {
                    let error = CallError::Unreachable(Arc::new(error));
                    fail(first, &error);
                    while let Ok(call) = calls.try_recv() {
                        fail(call, &error);
                    }
                }
            }
        }
    }

    fn note_refusal(&self, dialled: &Result<Session, DialError>) {
        let refuses = match dialled {
            Ok(_) => false,
            Err(DialError::Refused { refusal, .. }) => *refusal == Refusal::NotAMember,
            // The peer has not answered.
            Err(_) => return,
        };
        self.refusing.send_if_modified(|refusing| {
            if refuses {
                refusing.insert(self.id)
            } else {
                refusing.remove(&self.id)
            }
        });
    }

    /// Sends calls and hands out answers until the connection ends or no caller is left.
    async fn converse(
        &self,
        mut session: Session,
        first: Call,
        calls: &mut mpsc::Receiver<Call>,
    ) -> Result<(), DialError> {
        let mut unanswered = Unanswered::new();
        let mut next = Some(first);
        for id in 0_u64.. {
            while next.is_none() {
                let oldest = unanswered.values().next();
                let deadline = oldest.map_or_else(Instant::now, |(deadline, _)| *deadline);
                tokio::select! {
                    biased;
                    frame = session.receiver.receive() => {
                        let frame = frame?.ok_or(DialError::Closed)?;
                        let reply: ElectionReply = decode(Kind::ElectionReply, frame)?;
                        if let (Some((_, waiter)), Some(answer)) = (unanswered.remove(&reply.id), reply.answer) {
                            waiter.answer(Ok(answer));
                        }
                    }
                    () = tokio::time::sleep_until(deadline), if !unanswered.is_empty() => {
                        return Err(DialError::Timeout(self.silence_max));
                    }
                    call = calls.recv() => match call {
                        Some(call) => next = Some(call),
                        None => return Ok(()),
                    },
                }
            }
            let Some(Call { call, waiter }) = next.take() else {
                continue;
            };
            unanswered.insert(id, (Instant::now() + self.silence_max, waiter));
            let request = ElectionRequest {
                id,
                call: Some(call),
            };
            session
                .sender
                .send(encode(Kind::ElectionRequest, &request))
                .await?;
        }
        Ok(())
    }
}

fn fail(call: Call, error: &CallError) {
    call.waiter.answer(Err(error.clone()));
}

/// Answers the requests of one peer with `handle` until it closes. `handle` returns `None` for an
/// invalid request, which ends the connection.
///
/// # Errors
/// When the peer sends invalid data or goes away.
pub(crate) async fn serve<F>(
    mut session: Session,
    handle: impl Fn(ElectionCall) -> F,
) -> Result<(), DialError>
where
    F: Future<Output = Option<ElectionAnswer>>,
{
    let mut answers = FuturesUnordered::new();
    loop {
        tokio::select! {
            biased;
            Some((id, answer)) = answers.next(), if !answers.is_empty() => {
                let answer: Option<ElectionAnswer> = answer;
                if answer.is_none() {
                    return Ok(());
                }
                let reply = encode(Kind::ElectionReply, &ElectionReply { id, answer });
                session.sender.send(reply).await?;
            }
            frame = session.receiver.receive(), if answers.len() < ANSWERS_IN_FLIGHT_MAX => {
                let Some(frame) = frame? else { return Ok(()) };
                let request: ElectionRequest = decode(Kind::ElectionRequest, frame)?;
                let Some(call) = request.call else { return Ok(()) };
                let answer = handle(call);
                answers.push(async move { (request.id, answer.await) });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future::join_all;
    use steadfast_net::{
        AsyncServiceHandler, BoxFuture, Connection, Dispatcher, DispatcherOptions, MemoryNetwork,
    };

    use super::*;
    use crate::wire::hello::Caller;
    use crate::wire::messages::{BarrierRequest, HelloReply};

    const PATIENCE: Duration = Duration::from_mins(1);
    const SILENCE_MAX: Duration = Duration::from_secs(5);

    /// Says hello, reads everything and answers nothing.
    struct Silent;

    impl AsyncServiceHandler for Silent {
        fn service_name(&self) -> &'static str {
            ELECTION
        }

        fn serve(&self, connection: Connection) -> BoxFuture<'static, steadfast_net::Result<()>> {
            Box::pin(async move {
                let (mut sender, mut receiver) = connection.split();
                let hello = receiver.receive().await?;
                assert!(hello.is_some());
                let welcome = HelloReply {
                    version: 1,
                    ..HelloReply::default()
                };
                sender.send(encode(Kind::HelloReply, &welcome)).await?;
                while receiver.receive().await?.is_some() {}
                Ok(())
            })
        }
    }

    fn barrier() -> ElectionCall {
        ElectionCall::Barrier(BarrierRequest {})
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_to_a_peer_that_answers_nothing_is_refused_at_the_bound() {
        let network = MemoryNetwork::new();
        let dispatcher = Dispatcher::new(DispatcherOptions::default());
        dispatcher.register_async(Arc::new(Silent));
        let listening = dispatcher.start(network.host("silent"), "silent:1").await;
        let client = ElectionClient::start(Peer {
            dialler: Dialler {
                caller: Caller::Client,
                transport: network.host("caller"),
                addresses: Arc::default(),
                timeout: PATIENCE,
            },
            address: listening.expect("it listens"),
            id: NodeId(1),
            silence_max: SILENCE_MAX,
            refusing: watch::Sender::default(),
        });
        let started = Instant::now();
        let impatient = SILENCE_MAX / 5;
        let calls = (0..CALLS_UNANSWERED_MAX).map(|_| client.call(barrier(), impatient));
        for given_up in join_all(calls).await {
            assert!(matches!(given_up, Err(CallError::Timeout(_))));
        }
        let refused = client.call(barrier(), PATIENCE).await;
        assert!(matches!(refused, Err(CallError::Busy)), "{refused:?}");
        assert!(started.elapsed() < SILENCE_MAX, "refused at once");
        tokio::time::sleep(SILENCE_MAX).await;
        // The connection was given up with all its requests, including the next one.
        let next = client.call(barrier(), PATIENCE).await;
        assert!(matches!(next, Err(CallError::Lost)), "{next:?}");
        dispatcher.stop().await;
    }
}
