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
//! [`Feed`] subscribes to a node in this process, a [`Subscription`] to nodes elsewhere.

mod filter;
pub(crate) mod messages;
mod names;
mod remote;
pub(crate) mod service;
mod state;
mod tail;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
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

pub(crate) use filter::Filter;
use names::Names;
pub use remote::Subscription;
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

/// One change within a committed transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Change {
    /// The key has this value.
    Put {
        /// The database.
        database: Arc<str>,
        /// The key.
        key: Bytes,
        /// Its value.
        value: Bytes,
    },
    /// The key is gone.
    Delete {
        /// The database.
        database: Arc<str>,
        /// The key.
        key: Bytes,
    },
    /// The database is now empty: it was created, or truncated.
    Created {
        /// The database.
        database: Arc<str>,
    },
    /// The database is gone, with everything in it.
    Dropped {
        /// The database.
        database: Arc<str>,
    },
}

impl Change {
    /// The database that is changed.
    pub fn database(&self) -> &str {
        match self {
            Self::Put { database, .. }
            | Self::Delete { database, .. }
            | Self::Created { database }
            | Self::Dropped { database } => database,
        }
    }
}

/// A committed transaction, as far as the subscription's filter lets it through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommittedTransaction {
    /// Its token, which includes its VLSN. A subscription from this token continues after it.
    pub token: CommitToken,
    /// The master's wall clock when it was proposed, in milliseconds since 1970.
    pub committed_at_ms: u64,
    /// What it changed: first databases created and dropped, then keys, each once, ordered by
    /// database and key.
    pub changes: Vec<Change>,
}

/// What a subscription yields.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FeedEvent {
    /// A part of the initial state of [`StartAt::Start`]: up to 1 MiB, or one larger row. Databases
    /// come in order of their names, keys ascending, each once; at least one part per database.
    State {
        /// The database.
        database: Arc<str>,
        /// Keys with their values.
        rows: Vec<(Bytes, Bytes)>,
    },
    /// The parts so far are the whole state as of this transaction. What follows comes after it.
    StateComplete {
        /// The last transaction in the state; VLSN 0 when there is none yet.
        token: CommitToken,
        /// The running digest of all databases as of that transaction, the same on every node,
        /// which the rows match. `None` if a filter left some out, or the node could not tell in
        /// time.
        digest: Option<u128>,
    },
    /// The next transaction.
    Transaction(CommittedTransaction),
    /// The filter has left out every transaction since the last event up to this one, and there
    /// were many. A subscription from this token skips them.
    Progress {
        /// The last transaction left out.
        token: CommitToken,
    },
}

/// A subscription to a node in this process.
///
/// As an iterator it blocks; [`Feed::next_async`] waits. It ends after its first error, and with
/// [`FeedError::Closed`] when the environment closes. It survives changes of master.
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
                // Once the node is closing, any error of a part being torn down means closed.
                event.map_err(|error| {
                    if source.has_closed() {
                        FeedError::Closed
                    } else {
                        error
                    }
                })
            }
            None => Err(FeedError::Closed),
        };
        if event.is_err() {
            self.source = None;
        }
        Some(event)
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
                Stage::Tail(tail) => {
                    let next = tail.next_position();
                    self.hold.advance(LogPosition(next.0.saturating_sub(1)));
                    if let Some(event) = tail.next(&self.node, &self.filter).await? {
                        *resume = Some(tail.token());
                        return Ok(event);
                    }
                    *resume = Some(tail.token());
                    let tail_ends = tail.next_position();
                    self.wait_applied(|id| id.position >= tail_ends).await?;
                }
                Stage::Begin(..) => {}
            }
        }
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

    fn has_closed(&self) -> bool {
        self.phase.borrow().is_closing()
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
