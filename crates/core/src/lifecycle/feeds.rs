//! Subscriptions to a node: their slots, and those from the network.

use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::sync::TryAcquireError;

use crate::error::FeedError;
use crate::feed::service::{self, Served};
use crate::feed::{Feed, SharedFeed, SharedFeedOptions, SubscribeOptions};
use crate::lifecycle::Lifecycle;
use crate::node::phase::NotRunning;
use crate::runtime::Ground;
use crate::wire::hello::{DialError, Session};

impl Lifecycle {
    /// See [`crate::ReplicatedEnvironment::subscribe`].
    ///
    /// # Errors
    /// See there.
    pub(crate) fn subscribe(
        &self,
        options: SubscribeOptions,
        ground: Ground,
    ) -> Result<Feed, FeedError> {
        let node = self.running()?;
        if self.with_data().is_err() {
            return Err(FeedError::NoData);
        }
        let place = Arc::clone(&self.subscriptions).try_acquire_owned();
        let place = place.map_err(|full| match full {
            TryAcquireError::NoPermits => FeedError::TooMany {
                max: self.config.tuning.subscriptions_max,
            },
            TryAcquireError::Closed => FeedError::Closed,
        })?;
        Feed::new(node, self.phase.subscribe(), place, options, ground)
    }

    /// See [`crate::ReplicatedEnvironment::shared_feed`].
    ///
    /// # Errors
    /// See there.
    pub(crate) async fn shared_feed(
        &self,
        options: SharedFeedOptions,
        ground: Ground,
    ) -> Result<SharedFeed, FeedError> {
        let feed = self.subscribe(SharedFeed::wanted(&options), ground)?;
        SharedFeed::new(feed, options, self.tasks.clone()).await
    }

    /// Serves one SUBSCRIPTION connection.
    ///
    /// # Errors
    /// See [`DialError`].
    pub(super) async fn serve_subscription(
        self: Arc<Self>,
        session: Session,
    ) -> Result<(), DialError> {
        let tuning = &self.config.tuning;
        let identity = self.identity.borrow().clone();
        let served = Served {
            group_name: identity.group_name.clone(),
            group: identity.group,
            request_timeout: tuning.dial_timeout,
            stall: tuning.subscription_stall,
        };
        let weak = Arc::downgrade(&self);
        // A connection must not keep a dropped environment alive.
        drop(self);
        let subscribe = |options| {
            let lifecycle = weak.upgrade().ok_or(FeedError::Closed)?;
            lifecycle.subscribe(options, Ground::Guest(Handle::current()))
        };
        service::serve(session, &served, subscribe).await
    }
}

impl From<NotRunning> for FeedError {
    fn from(why: NotRunning) -> Self {
        match why {
            NotRunning::NotYet => Self::NotReady,
            NotRunning::Restoring => Self::Restoring,
            NotRunning::Stopped(reason) => Self::Stopped { reason },
            NotRunning::Closed => Self::Closed,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use steadfast_net::MemoryNetwork;

    use super::*;
    use crate::config::RepConfig;
    use crate::feed::{FeedEvent, StartAt, Subscription};
    use crate::ids::{LogPosition, Vlsn};
    use crate::log::LogId;
    use crate::machine::Machine;
    use crate::token::CommitToken;

    const PATIENCE: Duration = Duration::from_mins(1);

    struct Rig {
        network: MemoryNetwork,
        lifecycle: Arc<Lifecycle>,
        tokens: Vec<CommitToken>,
    }

    impl Rig {
        /// A node with some transactions, each in an entry of its own.
        async fn new() -> Self {
            let network = MemoryNetwork::new();
            let machine = Machine::in_memory(&network, "n1").expect("entropy");
            let config = RepConfig::builder("g", "n1")
                .data_dir("/data")
                .listen("n1:7400");
            let config = config.build().expect("a configuration");
            let opened = Lifecycle::open(config, machine).await;
            let lifecycle = opened.expect("opened");
            lifecycle.wait_ready(PATIENCE).await.expect("ready");
            let mut rig = Self {
                network,
                lifecycle,
                tokens: Vec::new(),
            };
            for n in 0..20_u8 {
                rig.put(n).await;
            }
            rig
        }

        async fn put(&mut self, n: u8) {
            let put = self
                .lifecycle
                .write(None, |txn| txn.database("d")?.put([n], [n]));
            self.tokens.push(put.await.expect("committed").token);
        }

        /// Drops the log through the current last transaction.
        async fn purge(&self) {
            let node = self.lifecycle.node().expect("at work");
            let upto = node.log.state().last.expect("entries");
            node.log.purge(upto).await.expect("purged");
        }

        fn subscribe(&self, begin: StartAt) -> Feed {
            let ground = Ground::Guest(Handle::current());
            let subscribed = self.lifecycle.subscribe(begin.into(), ground);
            subscribed.expect("a feed")
        }

        async fn connect(&self, begin: StartAt) -> Result<Subscription, FeedError> {
            let transport = self.network.host("subscriber");
            Subscription::connect_on(transport, vec!["n1:7400".into()], "g", begin).await
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn history_that_was_purged_is_gone_and_what_is_left_goes_on() {
        let mut rig = Rig::new().await;
        let mut behind = rig.subscribe(StartAt::Token(rig.tokens[3]));
        assert!(matches!(behind.begin().await, Ok(())));
        rig.purge().await;
        for n in 0..3 {
            rig.put(n).await;
        }
        let oldest = rig.tokens[20].vlsn;
        let is_gone = |error: &FeedError| matches!(error, FeedError::HistoryGone { oldest: told } if *told == oldest);
        let first = behind.next_async().await;
        assert!(
            matches!(&first, Some(Err(error)) if is_gone(error)),
            "{first:?}"
        );
        for begin in [
            rig.tokens[0],
            rig.tokens[19],
            CommitToken {
                vlsn: Vlsn(0),
                ..rig.tokens[0]
            },
        ] {
            let mut feed = rig.subscribe(StartAt::Token(begin));
            let first = feed.next_async().await;
            assert!(
                matches!(&first, Some(Err(error)) if is_gone(error)),
                "{first:?}"
            );
            let remote = rig.connect(StartAt::Token(begin)).await;
            assert!(
                matches!(&remote, Err(error) if is_gone(error)),
                "{remote:?}"
            );
        }
        for begin in [StartAt::Token(rig.tokens[20]), StartAt::Start, StartAt::Now] {
            let mut feed = rig.subscribe(begin);
            let from = rig.tokens.len();
            rig.put(9).await;
            let last = rig.tokens[from];
            let seen = async {
                while let Some(event) = feed.next_async().await {
                    let event = event.expect("it goes on");
                    if matches!(&event, FeedEvent::Transaction(seen) if seen.token == last)
                        || matches!(event, FeedEvent::StateComplete { token, .. } if token == last)
                    {
                        return;
                    }
                }
            };
            tokio::time::timeout(PATIENCE, seen).await.expect("in time");
        }
        rig.lifecycle.close().await.expect("closed");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_feed_begins_where_a_purge_ends_within_the_entries_before_the_first_transaction() {
        let rig = Rig::new().await;
        let node = rig.lifecycle.node().expect("at work");
        let members = LogId {
            term: rig.tokens[0].term,
            position: LogPosition(0),
        };
        node.log.purge(members).await.expect("purged");
        let zero = CommitToken {
            vlsn: Vlsn(0),
            ..rig.tokens[0]
        };
        let mut feed = rig.subscribe(StartAt::Token(zero));
        let first = feed.next_async().await;
        assert!(
            matches!(&first, Some(Ok(FeedEvent::Transaction(first))) if first.token == rig.tokens[0]),
            "{first:?}"
        );
        rig.lifecycle.close().await.expect("closed");
    }
}
