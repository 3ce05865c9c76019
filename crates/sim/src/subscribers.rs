//! Subscribers: they follow the feed from node to node, whatever happens to those nodes, and resume
//! with their tokens.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use steadfast::{
    Change, CommitToken, CommittedTransaction, Feed, FeedError, FeedEvent, StartAt,
    SubscribeOptions, Subscription,
};

use crate::history::{DATABASES, FeedRecord, SeenChange, SeenRow, SeenTransaction, Span};
use crate::plan::Plan;
use crate::world::{Life, PORT, World, wait};

/// Host that remote subscribers connect from.
const HOST: &str = "subscriber";
/// Longest wait of a subscriber on a feed that has nothing for it.
const LOOK_EVERY: Duration = Duration::from_millis(400);
/// A remote subscription that reaches nobody for this long is opened anew.
const PATIENCE: Duration = Duration::from_secs(3);

/// The source a subscriber reads from.
enum Source {
    Here(usize, Life, Box<Feed>),
    Remote(Box<Subscription>),
}

impl Source {
    async fn next(&mut self) -> Option<Result<FeedEvent, FeedError>> {
        match self {
            Self::Here(_, life, feed) => tokio::select! {
                biased;
                event = life.process.run(feed.next_async()) => event,
                () = life.ended.cancelled() => None,
            },
            Self::Remote(subscription) => subscription.next_async().await,
        }
    }

    fn resume_token(&self) -> Option<CommitToken> {
        match self {
            Self::Here(_, _, feed) => feed.resume_token(),
            Self::Remote(subscription) => subscription.resume_token(),
        }
    }
}

/// Runs one subscriber forever. Now and then it forgets everything and starts over.
pub async fn subscriber(world: Arc<World>, is_remote: bool, seed: u64) {
    let mut follower = Follower {
        world,
        is_remote,
        rng: StdRng::seed_from_u64(seed),
        record: 0,
        resume: None,
        state: Vec::new(),
    };
    loop {
        if follower.resume.is_none() || follower.rng.random_range(0..8) == 0 {
            follower.begin_record();
        }
        if let Some(source) = follower.open().await {
            follower.follow(source).await;
        }
        let pause = follower.rng.random_range(1..100);
        wait(Duration::from_millis(pause)).await;
    }
}

struct Follower {
    world: Arc<World>,
    is_remote: bool,
    rng: StdRng,
    /// Index of the current record.
    record: usize,
    resume: Option<CommitToken>,
    /// Rows of a state that is not complete yet.
    state: Vec<SeenRow>,
}

impl Follower {
    fn begin_record(&mut self) {
        self.resume = None;
        let filter = (self.rng.random_range(0..3) == 0).then(|| {
            let database = DATABASES[self.rng.random_range(0..DATABASES.len())];
            let prefixes = ["", "k0", "k00", "k001"];
            let prefix = prefixes[self.rng.random_range(0..prefixes.len())];
            (database, Bytes::from_static(prefix.as_bytes()))
        });
        let mut history = self.world.history();
        history.feeds.push(FeedRecord {
            is_remote: self.is_remote,
            filter,
            ..FeedRecord::default()
        });
        self.record = history.feeds.len() - 1;
    }

    fn options(&self) -> SubscribeOptions {
        let from = self.resume.map_or(StartAt::Start, StartAt::Token);
        let options = SubscribeOptions::new(from).patience(PATIENCE);
        match &self.world.history().feeds[self.record].filter {
            Some((database, prefix)) => options.prefix(*database, prefix),
            None => options,
        }
    }

    async fn open(&mut self) -> Option<Source> {
        self.state.clear();
        let options = self.options();
        if self.is_remote {
            let transport = self.world.net.host(HOST);
            let mut nodes: Vec<_> = (0..self.world.plan.nodes).collect();
            nodes.rotate_left(self.rng.random_range(0..self.world.plan.nodes));
            let addresses = nodes.into_iter();
            let addresses = addresses.map(|at| format!("{}:{PORT}", Plan::host(at)));
            let connecting =
                Subscription::connect_on(transport, addresses.collect(), "sim", options);
            return match connecting.await {
                Ok(subscription) => Some(Source::Remote(Box::new(subscription))),
                Err(error) => {
                    self.judge(&error);
                    None
                }
            };
        }
        let mut open = self.world.open_nodes();
        if open.is_empty() {
            return None;
        }
        let (at, life) = open.swap_remove(self.rng.random_range(0..open.len()));
        match life.env.as_ref()?.subscribe(options) {
            Ok(feed) => Some(Source::Here(at, life, Box::new(feed))),
            Err(error) => {
                self.judge(&error);
                None
            }
        }
    }

    /// Follows until the source ends, or the subscriber leaves of its own accord.
    async fn follow(&mut self, mut source: Source) {
        let span = Span {
            node: match &source {
                Source::Here(at, ..) => Some(*at),
                Source::Remote(_) => None,
            },
            began: self.world.history().tick(),
            ended: u64::MAX,
        };
        let stay = self.rng.random_range(1..400);
        for _ in 0..stay {
            let event = tokio::time::timeout(LOOK_EVERY, source.next()).await;
            match event {
                Ok(Some(Ok(event))) => self.take(event, span),
                Ok(Some(Err(error))) => {
                    self.judge(&error);
                    break;
                }
                Ok(None) => break,
                Err(_nothing_yet) => {}
            }
            if let Some(token) = source.resume_token() {
                self.resume = Some(token);
                let record = &mut self.world.history().feeds[self.record];
                record.passed = record.passed.max(token.vlsn.0);
            }
        }
        // Dropping a feed runs as part of its node.
        if let Source::Here(_, life, feed) = source {
            life.process.enter(|| drop(feed));
        }
    }

    fn take(&mut self, event: FeedEvent, span: Span) {
        match event {
            FeedEvent::State { database, rows, .. } => {
                let named = |(key, value)| (database.to_string(), key, value);
                self.state.extend(rows.into_iter().map(named));
            }
            FeedEvent::StateComplete { token, .. } => {
                let state = std::mem::take(&mut self.state);
                let vlsn = token.vlsn.0;
                self.world.story.trace(&[b"state", &vlsn.to_le_bytes()]);
                let mut history = self.world.history();
                let ended = history.tick();
                let record = &mut history.feeds[self.record];
                record.state = Some((vlsn, state));
                record.span = Some(Span { ended, ..span });
            }
            FeedEvent::Transaction(transaction) => {
                let vlsn = transaction.token.vlsn.0;
                self.world.story.trace(&[b"fed", &vlsn.to_le_bytes()]);
                let seen = &mut self.world.history().feeds[self.record].seen;
                seen.push(seen_transaction(transaction));
            }
            _ => {}
        }
    }

    /// Nodes come and go; committed data stays. Logs are purged: a latecomer starts over.
    fn judge(&mut self, error: &FeedError) {
        if matches!(error, FeedError::HistoryGone { .. }) {
            self.resume = None;
        }
        let who = if self.is_remote { "remote" } else { "local" };
        self.world
            .story
            .tell(|| format!("a {who} subscription ends: {error}"));
        let is_wrong = matches!(
            error,
            FeedError::NotCommitted { .. }
                | FeedError::WrongGroup { .. }
                | FeedError::Filter { .. }
                | FeedError::TooMany { .. }
        );
        if is_wrong {
            self.world
                .story
                .violation(format!("a {who} subscriber was told: {error}"));
        }
    }
}

fn seen_transaction(transaction: CommittedTransaction) -> SeenTransaction {
    let change = |change: Change| match change {
        Change::Put {
            database,
            key,
            value,
        } => SeenChange::Key(database.to_string(), key, Some(value)),
        Change::Delete { database, key } => SeenChange::Key(database.to_string(), key, None),
        Change::Created { database } => SeenChange::Created(database.to_string()),
        Change::Dropped { database } => SeenChange::Dropped(database.to_string()),
        other => SeenChange::Other(format!("{other:?}")),
    };
    SeenTransaction {
        vlsn: transaction.token.vlsn.0,
        term: transaction.token.term.0,
        changes: transaction.changes.into_iter().map(change).collect(),
    }
}
