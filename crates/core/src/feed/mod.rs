//! The change feed: committed transactions, whole and in order, each once.
//!
//! ```text
//!  Begin ──► State (StartAt::Start only) ──► Tail
//!   where    one snapshot, in chunks      entries of the log by position, as far as applied
//! ```
//!
//! A feed pulls. It reads the entries that the node has applied, from the log's cache while it is
//! close behind and otherwise from the segments. It holds nothing but its position and the part it
//! has read: one entry, or 1 MiB of smaller ones. A slow subscriber costs the node nothing else. A
//! [`Feed`] subscribes to a node in this process, a [`Subscription`] to nodes elsewhere. A
//! [`SharedFeed`] hands what one feed yields to many listeners.

mod event;
mod filter;
pub(crate) mod messages;
mod names;
mod remote;
pub(crate) mod service;
mod shared;
mod state;
mod tail;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, stream};
use tokio::sync::{OwnedSemaphorePermit, oneshot, watch};
use tracing::Instrument;

use crate::error::FeedError;
use crate::ids::{LogPosition, Term, Vlsn};
use crate::log::LogId;
use crate::node::Node;
use crate::node::phase::Phase;
use crate::runtime::Ground;
use crate::spans;
use crate::token::CommitToken;
use crate::txn::history::HistoryError;
use crate::txn::holds::Hold;

pub use event::{Change, CommittedTransaction, FeedEvent};
pub(crate) use filter::Filter;
use names::Names;
pub use remote::Subscription;
pub use shared::{FeedListener, ListenOptions, SharedFeed, SharedFeedOptions};
use state::StateScan;
use tail::Tail;

/// How long a subscription tries to reach a node. Far longer than a failover or a restart takes.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where a subscription begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartAt {
    /// After the last transaction that the node has applied when the subscription begins.
    Now,
    /// With the whole state as of one transaction, followed by every later transaction.
    Start,
    /// After this transaction. A node that has not applied it yet waits until it has.
    Token(CommitToken),
}

/// What to subscribe to: where to begin, and which databases and keys.
///
/// By default, everything. If databases or prefixes are added, all other changes are left out, and
/// so are transactions without a matching change.
#[derive(Clone, Debug)]
pub struct SubscribeOptions {
    pub(crate) from: StartAt,
    pub(crate) filter: Filter,
    pub(crate) patience: Duration,
}

impl SubscribeOptions {
    /// Everything, from there on.
    pub fn new(from: StartAt) -> Self {
        Self {
            from,
            filter: Filter::default(),
            patience: PATIENCE,
        }
    }

    /// How long a [`Subscription`] that has lost its node tries to reach one before it ends with
    /// [`FeedError::Disconnected`]; 30 s by default. Has no effect on a [`Feed`].
    #[must_use]
    pub fn patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// Adds all keys of a database.
    #[must_use]
    pub fn database(self, name: impl Into<String>) -> Self {
        self.prefix(name, b"")
    }

    /// Adds the keys of a database that begin with `prefix`.
    #[must_use]
    pub fn prefix(mut self, database: impl Into<String>, prefix: impl AsRef<[u8]>) -> Self {
        let prefix = Bytes::copy_from_slice(prefix.as_ref());
        self.filter.add(database.into(), prefix);
        self
    }
}

impl From<StartAt> for SubscribeOptions {
    fn from(from: StartAt) -> Self {
        Self::new(from)
    }
}

/// A subscription to a node in this process.
///
/// As an iterator it blocks; [`Feed::next_async`] waits, and [`Feed::into_stream`] makes a stream.
/// It ends after its first error, and with [`FeedError::Closed`] when the environment closes. It
/// survives changes of master.
pub struct Feed {
    source: Option<Source>,
    resume: Option<CommitToken>,
    ground: Ground,
}

/// What a feed reads from.
struct Source {
    node: Arc<Node>,
    phase: watch::Receiver<Phase>,
    /// This feed's slot among the node's subscriptions.
    _place: OwnedSemaphorePermit,
    /// Keeps the part of the log that has not been read yet.
    hold: Hold,
    stage: Stage,
    filter: Filter,
    applied: watch::Receiver<Option<LogId>>,
}

enum Stage {
    /// After this number; of this term, if known.
    Begin(Vlsn, Option<Term>),
    /// Before the state.
    Start,
    /// A part of the state is being read.
    State(oneshot::Receiver<(StateScan, StatePart)>),
    /// The whole state has been delivered, and is being checked against its digest.
    Vouch(StateScan),
    /// It is complete: its last transaction, its names and its digest.
    Complete(Vlsn, Names, Option<u128>),
    Tail(Tail),
}

/// The next part of the state; `None` after the last one.
type StatePart = Result<Option<FeedEvent>, FeedError>;

impl Feed {
    /// # Errors
    /// [`FeedError::WrongGroup`] and [`FeedError::Filter`].
    pub(crate) fn new(
        node: Arc<Node>,
        phase: watch::Receiver<Phase>,
        place: OwnedSemaphorePermit,
        options: SubscribeOptions,
        ground: Ground,
    ) -> Result<Self, FeedError> {
        options.filter.check()?;
        let mut resume = None;
        let stage = match options.from {
            StartAt::Now => Stage::Begin(node.sequencer.visible(), None),
            StartAt::Start => Stage::Start,
            StartAt::Token(token) => {
                if token.group != node.group() {
                    let reason = format!("the token belongs to group {}", token.group);
                    return Err(FeedError::WrongGroup { reason });
                }
                resume = Some(token);
                Stage::Begin(token.vlsn, Some(token.term))
            }
        };
        // Until the starting point is known, the whole log is needed.
        let purged = node.log.state().purged;
        let hold = node
            .holds
            .hold(purged.map(|id| id.position).unwrap_or_default());
        let source = Source {
            hold,
            applied: node.consensus.applied(),
            filter: options.filter,
            node,
            phase,
            _place: place,
            stage,
        };
        Ok(Self {
            source: Some(source),
            resume,
            ground,
        })
    }

    /// The token with which a new subscription continues after this one: everything up to it has
    /// been delivered, or left out by the filter. `None` while the state of [`StartAt::Start`] is
    /// incomplete, and before the first event of [`StartAt::Now`].
    pub fn resume_token(&self) -> Option<CommitToken> {
        self.resume
    }

    /// The next event; waits until there is one. `None` after an error. Dropping the future before
    /// it completes loses nothing.
    ///
    /// # Errors
    /// See [`FeedError`].
    pub async fn next_async(&mut self) -> Option<Result<FeedEvent, FeedError>> {
        let source = self.source.as_mut()?;
        let event = match self.ground.hold() {
            Some(_held) => {
                let span = spans::feed(&source.node.identity.node_name);
                let next = source.next(&mut self.resume).instrument(span);
                let event = self.ground.run(next).await;
                event.map_err(|error| source.why_ended(error))
            }
            None => Err(FeedError::Closed),
        };
        if event.is_err() {
            self.source = None;
        }
        Some(event)
    }

    /// The same as a stream, which ends after an error.
    pub fn into_stream(self) -> impl Stream<Item = Result<FeedEvent, FeedError>> + Send + use<> {
        stream::unfold(self, |mut feed| async move {
            let event = feed.next_async().await?;
            Some((event, feed))
        })
    }

    /// The next event among what the node has applied; `None` after the last. Of a feed that has
    /// begun after a transaction.
    ///
    /// # Errors
    /// See [`FeedError`].
    pub(crate) async fn next_applied(&mut self) -> Result<Option<FeedEvent>, FeedError> {
        let Some(source) = self.source.as_mut() else {
            return Err(FeedError::Closed);
        };
        let event = source.next_applied(&mut self.resume).await;
        event.map_err(|error| source.why_ended(error))
    }

    /// Finds where the tail begins, so that [`Feed::resume_token`] is known. Returns at once for a
    /// feed that begins with the state.
    ///
    /// # Errors
    /// See [`FeedError`].
    pub(crate) async fn begin(&mut self) -> Result<(), FeedError> {
        let Some(source) = self.source.as_mut() else {
            return Err(FeedError::Closed);
        };
        source.begin(&mut self.resume).await
    }
}

impl Iterator for Feed {
    type Item = Result<FeedEvent, FeedError>;

    fn next(&mut self) -> Option<Self::Item> {
        let ground = self.ground.clone();
        ground.wait_for(self.next_async())
    }
}

impl fmt::Debug for Feed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Feed")
            .field("has_ended", &self.source.is_none())
            .field("resume", &self.resume)
            .finish_non_exhaustive()
    }
}

impl Source {
    async fn next(&mut self, resume: &mut Option<CommitToken>) -> Result<FeedEvent, FeedError> {
        loop {
            self.begin(resume).await?;
            self.check_running()?;
            match &mut self.stage {
                Stage::Start => {
                    let scan = StateScan::begin(&self.node, &self.filter)?;
                    self.stage = Stage::State(scan.step(&self.node)?);
                }
                Stage::State(step) => {
                    let stepped = step
                        .await
                        .map_err(|_| stopped("a thread ended unexpectedly"))?;
                    let (scan, part) = stepped;
                    if let Some(part) = part? {
                        self.stage = Stage::State(scan.step(&self.node)?);
                        return Ok(part);
                    }
                    self.stage = Stage::Vouch(scan);
                }
                Stage::Vouch(scan) => {
                    let digest = scan.vouch(&self.node).await?;
                    if let Stage::Vouch(scan) = std::mem::replace(&mut self.stage, Stage::Start) {
                        let (at, names) = scan.end();
                        self.stage = Stage::Complete(at, names, digest);
                    }
                }
                Stage::Complete(..) => return self.complete(resume).await,
                Stage::Tail(_) => {
                    if let Some(event) = self.next_applied(resume).await? {
                        return Ok(event);
                    }
                    let Stage::Tail(tail) = &self.stage else {
                        continue;
                    };
                    let tail_ends = tail.next_position();
                    self.wait_applied(|id| id.position >= tail_ends).await?;
                }
                Stage::Begin(..) => {}
            }
        }
    }

    /// The next event of the tail; `None` until another entry is applied.
    async fn next_applied(
        &mut self,
        resume: &mut Option<CommitToken>,
    ) -> Result<Option<FeedEvent>, FeedError> {
        let Stage::Tail(tail) = &mut self.stage else {
            return Ok(None);
        };
        let next = tail.next_position();
        self.hold.advance(LogPosition(next.0.saturating_sub(1)));
        let event = tail.next(&self.node, &self.filter).await?;
        *resume = Some(tail.token());
        Ok(event)
    }

    /// Finds where the tail begins, if that is the next step.
    async fn begin(&mut self, resume: &mut Option<CommitToken>) -> Result<(), FeedError> {
        let Stage::Begin(vlsn, term) = self.stage else {
            return Ok(());
        };
        self.check_running()?;
        while self.node.sequencer.visible() < vlsn {
            let applied = *self.applied.borrow_and_update();
            if self.node.sequencer.visible() < vlsn {
                self.wait_applied(|id| Some(*id) != applied).await?;
            }
        }
        let names = Names::read(&self.node.view())?;
        let tail = self.tail_after(vlsn, term, names).await?;
        *resume = Some(tail.token());
        self.stage = Stage::Tail(tail);
        Ok(())
    }

    async fn complete(&mut self, resume: &mut Option<CommitToken>) -> Result<FeedEvent, FeedError> {
        let Stage::Complete(at, names, digest) = &self.stage else {
            unreachable!("called in this stage only");
        };
        let digest = *digest;
        let tail = self.tail_after(*at, None, names.clone()).await?;
        let token = tail.token();
        *resume = Some(token);
        self.stage = Stage::Tail(tail);
        Ok(FeedEvent::StateComplete { token, digest })
    }

    /// What follows a transaction that this node has applied.
    async fn tail_after(
        &self,
        vlsn: Vlsn,
        term: Option<Term>,
        names: Names,
    ) -> Result<Tail, FeedError> {
        let history = self.node.history();
        let group = self.node.group();
        if vlsn == Vlsn(0) {
            let oldest = history.oldest().await?;
            if oldest > Vlsn(1) {
                return Err(FeedError::HistoryGone { oldest });
            }
            let token = CommitToken {
                group,
                term: Term(0),
                vlsn,
            };
            return Ok(Tail::from_first(token, history.first(), names));
        }
        let found = history.find(vlsn).await?;
        let token = CommitToken {
            group,
            term: found.id.term,
            vlsn,
        };
        match term {
            Some(term) if term != token.term => Err(FeedError::NotCommitted {
                token: CommitToken { term, ..token },
                committed: token.term,
            }),
            _ => Ok(Tail::after(token, &found, names)),
        }
    }

    /// Once the node is closing, any error of a part being torn down means closed.
    fn why_ended(&self, error: FeedError) -> FeedError {
        if self.phase.borrow().is_closing() {
            FeedError::Closed
        } else {
            error
        }
    }

    fn check_running(&self) -> Result<(), FeedError> {
        if self.node.has_ended() && self.phase.borrow().running().is_ok() {
            // Another one runs in its place.
            return Err(FeedError::Restoring);
        }
        self.phase.borrow().running().map_err(Into::into)
    }

    /// Waits until the last applied entry satisfies `is`, or the node ends.
    async fn wait_applied(&mut self, mut is: impl FnMut(&LogId) -> bool) -> Result<(), FeedError> {
        let Self { phase, applied, .. } = self;
        tokio::select! {
            biased;
            ended = phase.wait_for(|phase| phase.running().is_err()) => {
                let phase = ended.map_err(|_| FeedError::Closed)?;
                phase.running().map_err(Into::into)
            }
            applied = applied.wait_for(|id| id.as_ref().is_some_and(&mut is)) => {
                applied.map(|_| ()).map_err(|_| stopped("consensus has ended"))
            }
        }
    }
}

impl From<HistoryError> for FeedError {
    fn from(error: HistoryError) -> Self {
        match error {
            HistoryError::Gone { oldest } => Self::HistoryGone { oldest },
            HistoryError::Log(error) => Self::Log(error),
            HistoryError::Batch(error) => stopped(&error.to_string()),
        }
    }
}

fn stopped(reason: &str) -> FeedError {
    FeedError::Stopped {
        reason: reason.to_owned(),
    }
}
