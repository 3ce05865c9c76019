//! The one task that writes: it takes what waits, does it in rounds, and tells everyone.
//!
//! A round begins as soon as the one before it has its number, while that is on its way to the disks:
//! the environment lets a transaction read what is numbered and not yet committed. Rounds end in
//! their order.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesOrdered;
use futures_util::{FutureExt, StreamExt};
use prost::Message;
use steadfast::{Durability, Outcome as Fate, TokenOutcome, WriteError};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};

use super::command::{Answer, Command, CommandMessage, Refusal};
use super::inner::Inner;
use super::keys::{Failure, Tables};
use super::lease::{Effect, load};
use super::round::{self, Doer, Done, LEASE_STEP_KEYS_MAX, Order, ROUND_BYTES_MAX, Stopped};
use crate::error::Error;

/// Most commands in one round.
const ROUND_COMMANDS_MAX: usize = 512;

/// Most leases that are ended in one round.
const ENDED_MAX: usize = 256;

/// After this a lease is tried again that could not be ended.
const END_AGAIN: Duration = Duration::from_millis(500);

/// How long the writer waits to learn what became of a round: a failover takes less. Other rounds wait
/// for it.
const OUTCOME_WAIT: Duration = Duration::from_secs(2);

/// A command in the queue.
pub(super) struct Waiting {
    command: Command,
    bytes: usize,
    /// Steps of it are done and committed: the lease that it ends has begun to end.
    is_continued: bool,
    /// Longest answer, in bytes.
    answer_bytes_max: Option<usize>,
    /// `None`: nobody waits.
    answer: Option<oneshot::Sender<Result<Answer, Refusal>>>,
    /// Its bytes of what may wait.
    _room: Option<OwnedSemaphorePermit>,
}

impl Waiting {
    /// One that nobody waits for.
    fn own(command: Command) -> Self {
        Self {
            command,
            bytes: 0,
            is_continued: false,
            answer_bytes_max: None,
            answer: None,
            _room: None,
        }
    }

    fn order(&self) -> Order<'_> {
        Order {
            command: &self.command,
            is_continued: self.is_continued,
            answer_bytes_max: self.answer_bytes_max,
        }
    }

    /// The lease that it ends.
    fn ends_lease(&self) -> Option<i64> {
        match self.command {
            Command::Revoke(id) | Command::Expire(id) => Some(id),
            _ => None,
        }
    }
}

/// How a part of a batch ended.
struct Part {
    waiting: Vec<Waiting>,
    began: Instant,
    done: Result<Done, Refusal>,
}

impl Inner {
    /// Has a command done by this node's writer. One whose answer has more than `answer_bytes_max` is
    /// not done.
    ///
    /// # Errors
    /// [`Error::TooManyRequests`] when too much waits, and whatever comes of it.
    pub(super) async fn enqueue(
        &self,
        command: Command,
        answer_bytes_max: Option<usize>,
    ) -> Result<Answer, Refusal> {
        let message = CommandMessage {
            command: Some(command),
        };
        let bytes = message.encoded_len();
        let Some(command) = message.command else {
            return Err(Error::Stopped.into());
        };
        let permits = u32::try_from(bytes).unwrap_or(u32::MAX);
        let room = Arc::clone(&self.room).try_acquire_many_owned(permits);
        let room = room.map_err(|_| Error::TooManyRequests)?;
        let (answer, answered) = oneshot::channel();
        let waiting = Waiting {
            command,
            bytes,
            is_continued: false,
            answer_bytes_max,
            answer: Some(answer),
            _room: Some(room),
        };
        self.queue.try_send(waiting).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => Error::TooManyRequests,
            mpsc::error::TrySendError::Closed(_) => Error::Stopped,
        })?;
        // A writer that ends answers nobody: what was under way may have happened.
        answered.await.unwrap_or(Err(Error::OutcomeUnknown.into()))
    }

    /// Makes this store the owner soon, if it is not.
    pub(super) fn enqueue_own(&self) {
        // If the queue is full, any of those who wait will do.
        self.queue.try_send(Waiting::own(Command::Own(()))).ok();
    }

    fn doer(&self) -> Doer {
        let time = SystemTime::now().duration_since(UNIX_EPOCH);
        let time_ms = time.unwrap_or_default().as_millis();
        Doer {
            owner: self.owner(),
            term: self.env.state().term.0,
            time_ms: u64::try_from(time_ms).unwrap_or(u64::MAX),
            lease_step_keys: LEASE_STEP_KEYS_MAX,
        }
    }
}

/// Writes until the store closes.
pub(super) async fn run(inner: Arc<Inner>, mut queue: mpsc::Receiver<Waiting>) {
    let mut stops = inner.stops.subscribe();
    let mut in_flight = FuturesOrdered::<BoxFuture<'static, Vec<Part>>>::new();
    let (mut incoming, mut waiting) = (Vec::new(), VecDeque::new());
    loop {
        let may_begin = in_flight.len() < inner.config.batches_in_flight_max;
        if may_begin && !waiting.is_empty() {
            let batch = take_batch(&mut waiting);
            in_flight.push_back(do_batch(Arc::clone(&inner), batch).boxed());
        }
        let may_begin = in_flight.len() < inner.config.batches_in_flight_max;
        tokio::select! {
            biased;
            _ = stops.wait_for(|stops| *stops) => break,
            // First of all: this lets the newest round get its number.
            Some(parts) = in_flight.next() => for part in parts {
                waiting.extend(end(&inner, part));
            },
            received = queue.recv_many(&mut incoming, ROUND_COMMANDS_MAX), if may_begin => {
                if received == 0 {
                    break;
                }
                waiting.extend(incoming.drain(..));
            }
            due = leases_due(&inner), if may_begin => {
                waiting.extend(due.into_iter().map(|id| Waiting::own(Command::Expire(id))));
            }
        }
    }
    // What is under way ends, and is answered.
    queue.close();
    while let Some(parts) = in_flight.next().await {
        for part in parts {
            waiting.extend(end(&inner, part));
        }
    }
    while let Ok(waiting) = queue.try_recv() {
        tell(waiting, Err(Error::Stopped.into()));
    }
    for waiting in waiting {
        tell(waiting, Err(Error::Stopped.into()));
    }
}

/// The first of what waits, as much as fits into a round.
fn take_batch(waiting: &mut VecDeque<Waiting>) -> Vec<Waiting> {
    let (mut batch, mut bytes) = (Vec::new(), 0);
    while let Some(next) = waiting.front()
        && batch.len() < ROUND_COMMANDS_MAX
        && (batch.is_empty() || bytes + next.bytes <= ROUND_BYTES_MAX)
    {
        bytes += next.bytes;
        batch.extend(waiting.pop_front());
    }
    batch
}

/// Waits until leases are due here.
async fn leases_due(inner: &Inner) -> Vec<i64> {
    loop {
        let changed = inner.leases_changed.notified();
        let next = inner.with_leases(|lessor| lessor.next_end());
        let Some(at) = next.flatten() else {
            changed.await;
            continue;
        };
        tokio::select! {
            () = sleep_until(at) => {}
            () = changed => continue,
        }
        let due = inner.with_leases(|lessor| lessor.take_due(Instant::now(), ENDED_MAX));
        if let Some(due) = due.filter(|due| !due.is_empty()) {
            return due;
        }
    }
}

/// Does a batch: in one round, or in several if it is larger than it seemed.
async fn do_batch(inner: Arc<Inner>, mut batch: Vec<Waiting>) -> Vec<Part> {
    let mut parts = Vec::new();
    let mut upto = batch.len();
    let mut lease_step_keys = LEASE_STEP_KEYS_MAX;
    while !batch.is_empty() {
        let began = Instant::now();
        let doer = Doer {
            lease_step_keys,
            ..inner.doer()
        };
        let mut last = None;
        let is_due = |id| inner.lessor().is_ending(id);
        let durability = Durability::MAJORITY.within(inner.config.request_timeout);
        let commands = &batch[..upto];
        let written = inner.env.write_with_async(durability, |txn| {
            let orders = commands.iter().map(Waiting::order);
            last = Some(round::run(txn, doer, orders, is_due)?);
            Ok::<_, Stopped>(())
        });
        let done = match written.await {
            Ok(_) => last.ok_or(Refusal::Again),
            Err(Stopped::NoRoom(0)) if batch[0].ends_lease().is_some() && lease_step_keys > 1 => {
                lease_step_keys = (lease_step_keys / 4).max(1);
                upto = 1;
                continue;
            }
            Err(Stopped::NoRoom(0)) => {
                upto = 1;
                Err(Error::RequestTooLarge.into())
            }
            Err(Stopped::NoRoom(index)) => {
                upto = index;
                continue;
            }
            Err(Stopped::Failed(failure)) => match fate(&inner, failure).await {
                Ok(()) => last.ok_or(Refusal::Told(Error::OutcomeUnknown)),
                Err(refusal) => Err(refusal),
            },
        };
        let ended = match &done {
            Ok(done) => done.outcomes.len(),
            Err(_) => upto,
        };
        let rest = batch.split_off(ended);
        parts.push(Part {
            waiting: batch,
            began,
            done,
        });
        batch = rest;
        upto = batch.len();
        lease_step_keys = LEASE_STEP_KEYS_MAX;
    }
    parts
}

/// What became of a round that did not end well: nothing if it is committed after all.
async fn fate(inner: &Inner, failure: Failure) -> Result<(), Refusal> {
    let error = match failure {
        Failure::Write(error) => error,
        failure => return Err(refusal(&failure)),
    };
    let token = match error.outcome() {
        Fate::Committed(_) => return Ok(()),
        Fate::Unknown(token) => Some(token),
        Fate::Lost => None,
        Fate::NotCommitted => return Err(refusal(&Failure::Write(error))),
    };
    let outcome = match token {
        Some(token) => timeout(OUTCOME_WAIT, inner.env.outcome_async(token))
            .await
            .ok(),
        None => None,
    };
    match outcome {
        Some(Ok(TokenOutcome::Committed)) => Ok(()),
        Some(Ok(TokenOutcome::NotCommitted)) => Err(Refusal::Again),
        _ => {
            // What it did to leases, if it did, is to be read from the data.
            inner.renew_owner();
            Err(Error::OutcomeUnknown.into())
        }
    }
}

/// What a client is told of a round of which nothing was written.
fn refusal(failure: &Failure) -> Refusal {
    Refusal::Told(match failure {
        Failure::Refused(error) => *error,
        Failure::Row(what) => {
            tracing::error!(what, "a row of the store is malformed");
            Error::Corrupt
        }
        Failure::Read(error) => super::read::read_error(error),
        Failure::Write(error) => match error {
            WriteError::DiskFull { .. } => Error::NoSpace,
            WriteError::TooLarge { .. } | WriteError::TooManyKeys { .. } => Error::RequestTooLarge,
            WriteError::Stopped { .. } | WriteError::Closed => Error::Stopped,
            error if error.is_retryable() => return Refusal::Again,
            WriteError::Overtaken { .. } => return Refusal::Again,
            error => {
                tracing::error!(%error, "the store could not write");
                Error::Corrupt
            }
        },
    })
}

/// Takes the effects of a part, and answers. Returns what goes on.
fn end(inner: &Arc<Inner>, part: Part) -> Vec<Waiting> {
    let Part {
        waiting,
        began,
        done,
    } = part;
    let done = match done {
        Ok(done) => done,
        Err(refusal) => {
            for waiting in waiting {
                if let Some(id) = waiting.ends_lease() {
                    let again = Instant::now() + END_AGAIN;
                    inner.lessor().end_failed(id, again);
                }
                tell(waiting, Err(refusal));
            }
            inner.leases_changed.notify_one();
            return Vec::new();
        }
    };
    {
        let mut lessor = inner.lessor();
        if done.took_over {
            load_leases(inner, lessor.begin());
        }
        let effects = done
            .outcomes
            .iter()
            .filter_map(|outcome| outcome.as_ref().ok()?.1);
        effects.for_each(|effect| lessor.note(effect, began));
    }
    inner.seen(done.state);
    let term = done.state.term;
    inner.leases_term.store(term, Ordering::Release);
    inner.leases_changed.notify_one();
    let mut going_on = Vec::new();
    for (waiting, outcome) in waiting.into_iter().zip(done.outcomes) {
        match outcome {
            Ok((_, Some(Effect::Begun(..)))) => going_on.push(Waiting {
                is_continued: true,
                ..waiting
            }),
            Ok((answer, _)) => tell(waiting, Ok(answer)),
            Err(error) => tell(waiting, Err(error.into())),
        }
    }
    going_on
}

/// Reads the leases in the background, for the number that the lessor gave.
fn load_leases(inner: &Arc<Inner>, number: u64) {
    let inner = Arc::clone(inner);
    tokio::spawn(async move {
        let read = inner
            .read_blocking(|snapshot| load(&Tables::of_snapshot(snapshot)?))
            .await;
        match read {
            Ok(leases) => {
                inner.lessor().loaded(number, leases, Instant::now());
                inner.leases_changed.notify_one();
            }
            Err(error) => {
                tracing::warn!(%error, "the leases could not be read; trying again");
                inner.renew_owner();
                inner.enqueue_own();
            }
        }
    });
}

/// Answers, if there is still somebody who waits. What failed between two steps still happens.
fn tell(waiting: Waiting, answer: Result<Answer, Refusal>) {
    let answer = if waiting.is_continued {
        answer.map_err(|_| Error::OutcomeUnknown.into())
    } else {
        answer
    };
    if let Some(waiter) = waiting.answer {
        waiter.send(answer).ok();
    }
}
