//! A subscription to a group in another process: one connection at a time, and another node when
//! the connection is lost.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, stream};
use steadfast_net::{TcpTransport, Transport};
use tokio::runtime::Handle;
use tokio::time::{Instant, timeout, timeout_at};

use crate::error::{FeedError, in_full};
use crate::feed::messages::{FeedMessage, Received, SubscribeMessage};
use crate::feed::{FeedEvent, StartAt, SubscribeOptions};
use crate::ids::GroupUuid;
use crate::runtime::{Ground, OwnRuntime};
use crate::token::CommitToken;
use crate::wire::SUBSCRIPTION;
use crate::wire::hello::{Callee, Caller, DialError, Session};
use crate::wire::messages::{Kind, decode, encode};

/// How long connecting to one node may take.
const DIAL_TIMEOUT: Duration = Duration::from_secs(2);
/// A node silent for this long is given up; an idle node says so every second.
const SILENCE_MAX: Duration = Duration::from_secs(5);
/// Pause after every listed node has been tried.
const ROUND_PAUSE: Duration = Duration::from_millis(100);

/// A subscription to a group of nodes in other processes.
///
/// It reads from one node; when that is lost, it continues at the next listed node where it left
/// off: without gaps or duplicates. It buffers no events: what is not asked for stays at the node.
/// As an iterator it blocks; [`Subscription::next_async`] waits, and [`Subscription::into_stream`]
/// makes a stream. It ends after its first error. Dropping it closes the connection.
pub struct Subscription {
    link: Link,
    session: Option<Session>,
    /// When the node counts as gone if it has sent nothing by then. Kept here, so that calls with
    /// short timeouts do not postpone it.
    silent_at: Instant,
    /// Since when nothing has arrived, after a connection was lost or before the first one.
    lost: Option<Instant>,
    stands: Stands,
    has_ended: bool,
    ground: Ground,
    /// The runtime, if connected by a blocking call.
    _own: Option<Arc<OwnRuntime>>,
}

/// What it takes to reach a node.
struct Link {
    transport: Arc<dyn Transport>,
    addresses: Vec<String>,
    /// The address to try next.
    next: usize,
    group_name: String,
    /// Known once a node has answered.
    group: Option<GroupUuid>,
    options: SubscribeOptions,
    /// The error of a node that answered in the last round but would not serve.
    refused: Option<FeedError>,
}

/// How far a subscription has come.
#[derive(Clone, Copy, Debug)]
enum Stands {
    /// Nothing was delivered yet, or all up to this token.
    At(StartAt),
    /// Within the state, which cannot be resumed.
    InState,
}

/// Why a connection is unusable.
enum Trouble {
    /// Another node may serve, or the same one later.
    Lost(String),
    /// This node refuses; another may not.
    Refused(FeedError),
    /// Every node would refuse.
    Final(FeedError),
}

impl<E: Into<DialError>> From<E> for Trouble {
    fn from(error: E) -> Self {
        let error = error.into();
        let reason = in_full(&error);
        if error.is_about_credentials() {
            Self::Refused(FeedError::NotAllowed { reason })
        } else {
            Self::Lost(reason)
        }
    }
}

impl Subscription {
    /// Subscribes to the group named `group` at whichever of `addresses` (`host:port`) answers
    /// first, over TCP.
    ///
    /// # Errors
    /// See [`FeedError`]; [`FeedError::Disconnected`] when none answers within
    /// [`SubscribeOptions::patience`].
    pub fn connect<A: Into<String>>(
        addresses: impl IntoIterator<Item = A>,
        group: &str,
        options: impl Into<SubscribeOptions>,
    ) -> Result<Self, FeedError> {
        let own = OwnRuntime::new("steadfast-feed", 1).map_err(|error| FeedError::Stopped {
            reason: format!("no runtime: {error}"),
        })?;
        let ground = own.ground();
        let connected = ground.block_on(Self::connect_async(addresses, group, options));
        connected.map(|subscription| Self {
            ground,
            _own: Some(own),
            ..subscription
        })
    }

    /// As [`Subscription::connect`], on the caller's runtime.
    ///
    /// # Errors
    /// As there.
    pub async fn connect_async<A: Into<String>>(
        addresses: impl IntoIterator<Item = A>,
        group: &str,
        options: impl Into<SubscribeOptions>,
    ) -> Result<Self, FeedError> {
        let addresses = addresses.into_iter().map(Into::into).collect();
        Self::connect_on(Arc::new(TcpTransport), addresses, group, options).await
    }

    /// As [`Subscription::connect_async`], over the given network.
    ///
    /// # Errors
    /// As there.
    pub async fn connect_on(
        transport: Arc<dyn Transport>,
        addresses: Vec<String>,
        group: &str,
        options: impl Into<SubscribeOptions>,
    ) -> Result<Self, FeedError> {
        let options = options.into();
        options.filter.check()?;
        let (stands, group_name) = (Stands::At(options.from), group.to_owned());
        let group = match options.from {
            StartAt::Token(token) => Some(token.group),
            StartAt::Now | StartAt::Start => None,
        };
        let mut subscription = Self {
            link: Link {
                transport,
                addresses,
                next: 0,
                group_name,
                group,
                options,
                refused: None,
            },
            session: None,
            silent_at: Instant::now(),
            lost: None,
            stands,
            has_ended: false,
            ground: Ground::Guest(Handle::current()),
            _own: None,
        };
        subscription.reach().await?;
        Ok(subscription)
    }

    /// The token with which a new subscription continues after this one. `None` while the state of
    /// [`StartAt::Start`] is incomplete.
    pub fn resume_token(&self) -> Option<CommitToken> {
        match self.stands {
            Stands::At(StartAt::Token(token)) => Some(token),
            Stands::At(_) | Stands::InState => None,
        }
    }

    /// The next event; waits until there is one. `None` after an error. Dropping the future before
    /// it completes loses nothing.
    ///
    /// # Errors
    /// See [`FeedError`].
    pub async fn next_async(&mut self) -> Option<Result<FeedEvent, FeedError>> {
        if self.has_ended {
            return None;
        }
        let event = self.next_event().await;
        if event.is_err() {
            self.has_ended = true;
            self.session = None;
        }
        Some(event)
    }

    async fn next_event(&mut self) -> Result<FeedEvent, FeedError> {
        loop {
            self.reach().await?;
            let Some(session) = self.session.as_mut() else {
                continue;
            };
            let received = receive(session, self.silent_at).await;
            self.silent_at = Instant::now() + SILENCE_MAX;
            let trouble = match received {
                Ok(received) => match self.take(received) {
                    Ok(event) => {
                        self.lost = None;
                        match event {
                            Some(event) => return Ok(event),
                            None => continue,
                        }
                    }
                    Err(trouble) => trouble,
                },
                Err(trouble) => trouble,
            };
            self.session = None;
            match trouble {
                Trouble::Final(error) => return Err(error),
                // When reached again, the node that refuses will say so again.
                Trouble::Lost(reason) => tracing::debug!(reason, "a subscription lost its node"),
                Trouble::Refused(error) => tracing::debug!(%error, "a node refused a subscription"),
            }
            if self.lost.is_some() {
                // Reached, and lost again before anything arrived.
                tokio::time::sleep(ROUND_PAUSE).await;
            }
        }
    }

    /// The meaning of a message, checked against what came before.
    fn take(&mut self, received: Received) -> Result<Option<FeedEvent>, Trouble> {
        let event = match received {
            Received::Standing(group, token) => {
                self.link.check_group(group)?;
                if let (Stands::At(_), Some(token)) = (self.stands, token) {
                    self.advance(token, false)?;
                }
                return Ok(None);
            }
            Received::Event(event) => event,
            Received::Ended(error) => return Err(trouble(error)),
        };
        match &event {
            FeedEvent::State { .. } => match self.stands {
                Stands::At(StartAt::Start) | Stands::InState => self.stands = Stands::InState,
                Stands::At(_) => return Err(Trouble::Lost("unexpected state".to_owned())),
            },
            FeedEvent::StateComplete { token, .. } => {
                self.stands = Stands::At(StartAt::Start);
                self.advance(*token, false)?;
            }
            FeedEvent::Transaction(transaction) => self.advance(transaction.token, true)?,
            FeedEvent::Progress { token } => self.advance(*token, false)?,
        }
        Ok(Some(event))
    }

    fn advance(&mut self, token: CommitToken, is_transaction: bool) -> Result<(), Trouble> {
        self.link.check_group(token.group)?;
        if let Stands::At(StartAt::Token(last)) = self.stands {
            let is_next = if !is_transaction {
                token.vlsn >= last.vlsn
            } else if self.link.options.filter.is_all() {
                token.vlsn == last.vlsn.next()
            } else {
                token.vlsn > last.vlsn
            };
            if !is_next {
                return Err(Trouble::Lost(format!("{token} arrived after {last}")));
            }
        }
        self.stands = Stands::At(StartAt::Token(token));
        Ok(())
    }

    /// Connects unless connected: tries every node in turn, until one serves or time is up.
    async fn reach(&mut self) -> Result<(), FeedError> {
        if self.session.is_some() {
            return Ok(());
        }
        let Stands::At(from) = self.stands else {
            return Err(FeedError::Disconnected {
                resume: None,
                reason: "the connection was lost before the state was complete".to_owned(),
            });
        };
        let lost = *self.lost.get_or_insert_with(Instant::now);
        let deadline = lost + self.link.options.patience;
        loop {
            let reason = match self.link.try_all(from, deadline).await {
                Ok((session, token)) => {
                    self.session = Some(session);
                    self.silent_at = Instant::now() + SILENCE_MAX;
                    if let Some(token) = token {
                        self.stands = Stands::At(StartAt::Token(token));
                    }
                    return Ok(());
                }
                // If every node refuses, retrying does not help.
                Err(Trouble::Final(error) | Trouble::Refused(error)) => return Err(error),
                Err(Trouble::Lost(reason)) => reason,
            };
            if Instant::now() + ROUND_PAUSE >= deadline {
                // The nodes that can be reached have said why.
                if let Some(error) = self.link.refused.take() {
                    return Err(error);
                }
                let resume = self.resume_token();
                return Err(FeedError::Disconnected { resume, reason });
            }
            tokio::time::sleep(ROUND_PAUSE).await;
        }
    }

    /// The same as a stream, which ends after an error.
    pub fn into_stream(self) -> impl Stream<Item = Result<FeedEvent, FeedError>> + Send + use<> {
        stream::unfold(self, |mut subscription| async move {
            let event = subscription.next_async().await?;
            Some((event, subscription))
        })
    }

    /// Ends the subscription, and waits until the node has been told if it can be reached.
    pub async fn close_async(mut self) {
        self.end().await;
    }

    /// As [`Subscription::close_async`].
    pub fn close(mut self) {
        let ground = self.ground.clone();
        ground.block_on(self.end());
    }

    async fn end(&mut self) {
        self.has_ended = true;
        if let Some(mut session) = self.session.take()
            && let Ok(Err(error)) = timeout(SILENCE_MAX, session.sender.close()).await
        {
            tracing::debug!(%error, "a subscription was already gone when it was closed");
        }
    }
}

impl Iterator for Subscription {
    type Item = Result<FeedEvent, FeedError>;

    fn next(&mut self) -> Option<Self::Item> {
        let ground = self.ground.clone();
        ground.block_on(self.next_async())
    }
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription")
            .field("addresses", &self.link.addresses)
            .field("stands", &self.stands)
            .field("is_connected", &self.session.is_some())
            .finish_non_exhaustive()
    }
}

impl Link {
    /// Subscribes at the first listed node that serves, starting with the next one. If all of them
    /// refuse, so does this.
    async fn try_all(
        &mut self,
        from: StartAt,
        deadline: Instant,
    ) -> Result<(Session, Option<CommitToken>), Trouble> {
        let mut lost = None;
        self.refused = None;
        for _ in 0..self.addresses.len() {
            let tried = timeout_at(deadline, self.try_next(from)).await;
            match tried.unwrap_or_else(|_| Err(Trouble::Lost("no answer in time".to_owned()))) {
                Err(trouble @ Trouble::Lost(_)) => lost = Some(trouble),
                Err(Trouble::Refused(error)) => self.refused = Some(error),
                decided => return decided,
            }
        }
        let nobody = || Trouble::Lost("no address to try".to_owned());
        let refused = |link: &mut Self| link.refused.take().map(Trouble::Refused);
        Err(lost.or_else(|| refused(self)).unwrap_or_else(nobody))
    }

    /// Subscribes at the next listed node; returns where the subscription begins, if known.
    async fn try_next(&mut self, from: StartAt) -> Result<(Session, Option<CommitToken>), Trouble> {
        let address = &self.addresses[self.next % self.addresses.len()];
        self.next += 1;
        let dialled = Caller::Client.dial(
            &*self.transport,
            Callee::any(address),
            SUBSCRIPTION,
            DIAL_TIMEOUT,
        );
        let mut session = dialled.await?;
        let (name, filter) = (&self.group_name, &self.options.filter);
        let request = SubscribeMessage::new(name, self.group, from, filter);
        let request = encode(Kind::Subscribe, &request);
        session.sender.send(request).await?;
        match receive(&mut session, Instant::now() + SILENCE_MAX).await? {
            Received::Standing(group, token) => {
                self.check_group(group)?;
                Ok((session, token))
            }
            Received::Event(_) => Err(Trouble::Lost("an event before the answer".to_owned())),
            Received::Ended(error) => Err(trouble(error)),
        }
    }

    /// Every node that answers must be of the same group.
    fn check_group(&mut self, group: GroupUuid) -> Result<(), Trouble> {
        let known = *self.group.get_or_insert(group);
        if known == group {
            return Ok(());
        }
        let reason =
            format!("the subscription is to group {known}, but the node belongs to {group}");
        Err(Trouble::Final(FeedError::WrongGroup { reason }))
    }
}

async fn receive(session: &mut Session, silent_at: Instant) -> Result<Received, Trouble> {
    let receiver = &mut session.receiver;
    let received = receiver.receive_unless_silent_at(silent_at, SILENCE_MAX);
    let frame = received.await?;
    let message: FeedMessage = decode(Kind::Feed, frame.ok_or(DialError::Closed)?)?;
    Ok(Received::try_from(message)?)
}

fn trouble(error: FeedError) -> Trouble {
    match error {
        FeedError::Stopped { reason } => Trouble::Lost(reason),
        FeedError::HistoryGone { .. } | FeedError::TooMany { .. } => Trouble::Refused(error),
        error => Trouble::Final(error),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use bytes::Bytes;
    use steadfast_net::{
        AsyncServiceHandler, BoxFuture, Connection, Dispatcher, DispatcherOptions, MemoryNetwork,
    };

    use super::*;
    use crate::feed::messages::{FeedItem, StandingMessage};
    use crate::wire::messages::HelloReply;

    /// Begins each subscription, then stays silent.
    #[derive(Default)]
    struct Silent {
        begun: Arc<AtomicUsize>,
    }

    impl AsyncServiceHandler for Silent {
        fn service_name(&self) -> &'static str {
            SUBSCRIPTION
        }

        fn serve(&self, connection: Connection) -> BoxFuture<'static, steadfast_net::Result<()>> {
            let begun = Arc::clone(&self.begun);
            Box::pin(async move {
                let (mut sender, mut receiver) = connection.split();
                receiver.receive().await?;
                let welcome = HelloReply {
                    version: 1,
                    ..HelloReply::default()
                };
                sender.send(encode(Kind::HelloReply, &welcome)).await?;
                receiver.receive().await?;
                let standing = StandingMessage {
                    group: Bytes::from_static(&[7; 16]),
                    token: None,
                };
                let item = Some(FeedItem::Begun(standing));
                sender
                    .send(encode(Kind::Feed, &FeedMessage { item }))
                    .await?;
                begun.fetch_add(1, Ordering::Relaxed);
                while receiver.receive().await?.is_some() {}
                Ok(())
            })
        }
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_noticed_also_by_whoever_asks_with_short_timeouts() {
        let network = MemoryNetwork::new();
        let dispatcher = Dispatcher::new(DispatcherOptions::default());
        let silent = Silent::default();
        let begun = Arc::clone(&silent.begun);
        dispatcher.register_async(Arc::new(silent));
        let listening = dispatcher.start(network.host("silent"), "silent:1").await;
        let addresses = vec![listening.expect("it listens")];
        let connecting = Subscription::connect_on(network.host("s"), addresses, "g", StartAt::Now);
        let mut subscription = connecting.await.expect("it begins");
        for _ in 0..12 {
            let short = SILENCE_MAX / 10;
            assert!(timeout(short, subscription.next_async()).await.is_err());
        }
        assert_eq!(begun.load(Ordering::Relaxed), 2, "it went to a node anew");
        dispatcher.stop().await;
    }
}
