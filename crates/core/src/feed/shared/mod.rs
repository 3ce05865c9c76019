//! One subscription of a node for any number of listeners in its process.
//!
//! ```text
//!   Feed ──pump──► Ring: the newest transactions, within their bytes ──► every listener, by its token
//!   log  ──part by part, a few listeners at a time──► a listener whose token is older than the ring
//! ```
//!
//! A task moves the events of one [`Feed`] into the ring. A listener is a position in it, which is a
//! token: it holds no events of its own, and none waits for another. One that begins before the
//! ring reads parts of the log until it gets there. One that falls out of the ring has ended.

mod listener;
mod ring;

use std::fmt;
use std::sync::{Arc, Weak};

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::coop::consume_budget;

use crate::error::FeedError;
use crate::feed::{Feed, Filter, StartAt, SubscribeOptions};
use crate::ids::Vlsn;
use crate::limits::SHARED_FEED_BYTES;
use crate::node::Node;
use crate::node::phase::Phase;
use crate::runtime::Ground;
use crate::tasks::Tasks;
use crate::token::CommitToken;

pub use listener::FeedListener;
use ring::Ring;

/// How many listeners read their part of the log at once; the others wait for their turn. Each
/// holds up to 1 MiB of the log while it reads.
const CATCH_UPS_MAX: usize = 8;

/// What a shared feed has, and how much of it is kept.
///
/// By default, everything. If databases or prefixes are added, all other changes are left out, and
/// so are transactions without a matching change.
#[derive(Clone, Debug)]
pub struct SharedFeedOptions {
    filter: Filter,
    bytes_max: usize,
}

impl Default for SharedFeedOptions {
    fn default() -> Self {
        Self {
            filter: Filter::default(),
            bytes_max: SHARED_FEED_BYTES,
        }
    }
}

impl SharedFeedOptions {
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

    /// How many bytes of recent transactions are kept, for listeners that are behind; by default
    /// [`SHARED_FEED_BYTES`]. The newest transaction is always kept, whatever its size.
    #[must_use]
    pub fn bytes_max(self, bytes_max: usize) -> Self {
        Self { bytes_max, ..self }
    }
}

/// Where a listener of a [`SharedFeed`] begins, and which databases and keys it hears of.
///
/// By default, everything that the shared feed has. If databases or prefixes are added, all other
/// changes are left out, and so are transactions without a matching change.
#[derive(Clone, Debug)]
pub struct ListenOptions {
    after: Option<CommitToken>,
    filter: Filter,
}

impl ListenOptions {
    /// After the last transaction that the node has applied when the listener begins.
    pub fn now() -> Self {
        None.into()
    }

    /// After this transaction. A node that has not applied it yet waits until it has.
    pub fn after(token: CommitToken) -> Self {
        Some(token).into()
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

/// [`ListenOptions::after`] the token if there is one, else [`ListenOptions::now`].
impl From<Option<CommitToken>> for ListenOptions {
    fn from(after: Option<CommitToken>) -> Self {
        Self {
            after,
            filter: Filter::default(),
        }
    }
}

/// One subscription of a node in this process, for any number of listeners.
///
/// It takes one of the node's `subscriptions_max` places, and keeps the newest transactions in
/// memory, up to [`SharedFeedOptions::bytes_max`]. Each listener costs a position. Clones are the
/// same feed; it ends when the last of them and of its listeners is dropped, and as a [`Feed`]
/// does: with [`FeedError::Closed`] when the environment closes. It survives changes of master.
#[derive(Clone)]
pub struct SharedFeed {
    hub: Arc<Hub>,
}

/// What all listeners share.
struct Hub {
    ring: watch::Receiver<Ring>,
    /// Weak: a listener that nobody asks for events must not keep a closed node.
    node: Weak<Node>,
    phase: watch::Receiver<Phase>,
    filter: Filter,
    /// For listeners that read the log.
    places: Arc<Semaphore>,
    /// Of the node: they end when it closes.
    tasks: Tasks,
    ground: Ground,
}

impl SharedFeed {
    /// The subscription, to what `options` want.
    pub(crate) fn wanted(options: &SharedFeedOptions) -> SubscribeOptions {
        SubscribeOptions {
            filter: options.filter.clone(),
            ..StartAt::Now.into()
        }
    }

    /// Shares `feed`, which is of what is [`SharedFeed::wanted`].
    ///
    /// # Errors
    /// See [`FeedError`].
    pub(crate) async fn new(
        mut feed: Feed,
        options: SharedFeedOptions,
        tasks: Tasks,
    ) -> Result<Self, FeedError> {
        feed.begin().await?;
        let (Some(source), Some(start)) = (&feed.source, feed.resume) else {
            return Err(FeedError::Closed);
        };
        let (sender, ring) = watch::channel(Ring::new(start, options.bytes_max));
        let hub = Hub {
            ring,
            node: Arc::downgrade(&source.node),
            phase: source.phase.clone(),
            filter: options.filter,
            places: Arc::new(Semaphore::new(CATCH_UPS_MAX)),
            tasks,
            ground: feed.ground.clone(),
        };
        // A task of the runtime must not keep it from ending.
        feed.ground = Ground::Guest(Handle::current());
        hub.tasks.spawn(pump(feed, sender));
        Ok(Self { hub: Arc::new(hub) })
    }

    /// A new listener: after the given token, or from now on. Does not block.
    ///
    /// A token that is older than what is kept in memory is no error: the listener reads what
    /// follows it from the log, when it is its turn.
    ///
    /// ```
    /// # use steadfast::{FeedEvent, ReplicatedEnvironment, SharedFeedOptions};
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let group = ReplicatedEnvironment::in_memory_group(1)?;
    /// # let node = &group[0];
    /// let shared = node.shared_feed(SharedFeedOptions::default())?;
    /// let (mut one, mut other) = (shared.listen(None)?, shared.listen(None)?);
    /// let token = node.database("orders").put("0001", "two seats")?;
    /// for listener in [&mut one, &mut other] {
    ///     let Some(Ok(FeedEvent::Transaction(first))) = listener.next() else {
    ///         panic!("the feed has ended");
    ///     };
    ///     assert_eq!(first.token, token);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`FeedError::WrongGroup`], [`FeedError::Filter`], and the error with which the shared feed
    /// has ended. Any other problem with the token is the listener's first item.
    pub fn listen(&self, options: impl Into<ListenOptions>) -> Result<FeedListener, FeedError> {
        FeedListener::new(Arc::clone(&self.hub), options.into())
    }

    /// Bytes of recent transactions that are kept now: keys, values, and what it takes to hold
    /// them.
    pub fn bytes(&self) -> usize {
        self.hub.ring.borrow().bytes()
    }
}

impl fmt::Debug for SharedFeed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedFeed")
            .field("filter", &self.hub.filter)
            .field("bytes", &self.bytes())
            .finish_non_exhaustive()
    }
}

/// Moves events into the ring until the feed ends, or nobody is left.
async fn pump(mut feed: Feed, ring: watch::Sender<Ring>) {
    loop {
        // Yields to other tasks while there is a backlog.
        consume_budget().await;
        let event = tokio::select! {
            biased;
            () = ring.closed() => return,
            event = feed.next_async() => event.unwrap_or(Err(FeedError::Closed)),
        };
        match event {
            Ok(event) => ring.send_modify(|ring| ring.push(&event)),
            Err(error) => {
                ring.send_modify(|ring| ring.end(error));
                return;
            }
        }
    }
}

impl Hub {
    /// # Errors
    /// Why the shared feed has ended, or that its node has closed.
    fn node(&self) -> Result<Arc<Node>, FeedError> {
        match self.ring.borrow().ended() {
            Some(error) => Err(error),
            None => self.node.upgrade().ok_or(FeedError::Closed),
        }
    }

    /// Waits until the node has applied this transaction.
    async fn applied(&self, vlsn: Vlsn) -> Result<(), FeedError> {
        let mut visible = self.node()?.sequencer.watch_visible();
        let mut ring = self.ring.clone();
        tokio::select! {
            biased;
            ended = ring.wait_for(|ring| ring.ended().is_some()) => {
                Err(ended.ok().and_then(|ring| ring.ended()).unwrap_or(FeedError::Closed))
            }
            applied = visible.wait_for(|visible| *visible >= vlsn) => {
                applied.map(|_| ()).map_err(|_| FeedError::Closed)
            }
        }
    }

    /// A feed of its own for a listener, from `after` on.
    fn feed(&self, after: CommitToken, place: OwnedSemaphorePermit) -> Result<Feed, FeedError> {
        let options = SubscribeOptions {
            filter: self.filter.clone(),
            ..StartAt::Token(after).into()
        };
        let (node, phase) = (self.node()?, self.phase.clone());
        let ground = Ground::Guest(Handle::current());
        Feed::new(node, phase, place, options, ground)
    }
}
