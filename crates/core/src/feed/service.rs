//! SUBSCRIPTION: the change feed over the network. The client asks once, then the node sends.
//!
//! The node pulls the next event once the socket has taken the last one, so a slow reader costs it
//! one event plus what the socket buffers. A reader that takes nothing for too long is cut off, and
//! resumes with its token when it reads again.

use std::time::Duration;

use futures_util::FutureExt;
use tokio::task::coop::consume_budget;

use crate::error::FeedError;
use crate::feed::messages::{
    EndedMessage, FeedItem, FeedMessage, StandingMessage, SubscribeMessage,
};
use crate::feed::{Feed, SubscribeOptions};
use crate::ids::GroupUuid;
use crate::wire::hello::{DialError, Session};
use crate::wire::messages::{Kind, WireError, decode, encode};

/// How often an idle node says that it is there.
pub(crate) const STANDING_INTERVAL: Duration = Duration::from_secs(1);

/// What is served, and how.
pub(crate) struct Served {
    pub(crate) group_name: String,
    pub(crate) group: Option<GroupUuid>,
    pub(crate) request_timeout: Duration,
    /// How long the caller may take for one frame, or for 256 KiB of small ones.
    pub(crate) stall: Duration,
}

/// Serves one subscription, which `subscribe` opens, until either side ends it.
///
/// # Errors
/// When the caller sends nonsense, disconnects, or does not take what it is sent.
pub(crate) async fn serve(
    mut session: Session,
    served: &Served,
    subscribe: impl FnOnce(SubscribeOptions) -> Result<Feed, FeedError>,
) -> Result<(), DialError> {
    let first = tokio::time::timeout(served.request_timeout, session.receiver.receive()).await;
    let frame = first.map_err(|_| DialError::Timeout(served.request_timeout))??;
    let request: SubscribeMessage = decode(Kind::Subscribe, frame.ok_or(DialError::Closed)?)?;
    let begun = match served.check(&request) {
        Ok(group) => subscribe(request.try_into()?).map(|feed| (group, feed)),
        Err(error) => Err(error),
    };
    let error = match begun {
        Ok((group, feed)) => {
            let mut sending = Sending {
                session,
                group,
                feed,
                has_begun: false,
                stall: served.stall,
            };
            let Some(error) = sending.run().await? else {
                return Ok(());
            };
            session = sending.session;
            error
        }
        Err(error) => error,
    };
    tracing::info!(%error, "a subscription ended");
    let ended = FeedItem::Ended(EndedMessage::from(&error));
    let goodbye = async {
        session.sender.send(frame_of(ended)).await?;
        session.sender.close().await
    };
    let said = tokio::time::timeout(served.stall, goodbye).await;
    Ok(said.map_err(|_| DialError::Timeout(served.stall))??)
}

impl Served {
    fn check(&self, request: &SubscribeMessage) -> Result<GroupUuid, FeedError> {
        let group = self.group.ok_or(FeedError::NotReady)?;
        let is_own = request.group.is_empty() || request.group == group.to_bytes();
        if request.group_name != self.group_name || !is_own {
            let name = &self.group_name;
            let reason = format!("the node belongs to group {name:?} ({group})");
            return Err(FeedError::WrongGroup { reason });
        }
        Ok(group)
    }
}

/// One subscription under way.
struct Sending {
    session: Session,
    group: GroupUuid,
    feed: Feed,
    has_begun: bool,
    stall: Duration,
}

impl Sending {
    /// Sends until the caller ends it (`None`), or the feed does (its error).
    async fn run(&mut self) -> Result<Option<FeedError>, DialError> {
        loop {
            // Yields to other tasks while sending a long backlog.
            consume_budget().await;
            let ready = step(&mut self.feed, &mut self.has_begun, self.group).now_or_never();
            let item = match ready {
                Some(item) => item,
                None => match self.wait().await? {
                    Some(item) => item,
                    None => return Ok(None),
                },
            };
            let frame = match item {
                Ok(item) => frame_of(item),
                Err(error) => return Ok(Some(error)),
            };
            let sent = tokio::time::timeout(self.stall, self.session.sender.feed(frame)).await;
            sent.map_err(|_| self.cut_off())??;
        }
    }

    /// Sends what has been buffered and waits for the next item. `None` when the caller has closed.
    async fn wait(&mut self) -> Result<Option<Result<FeedItem, FeedError>>, DialError> {
        let flushed = tokio::time::timeout(self.stall, self.session.sender.flush()).await;
        flushed.map_err(|_| self.cut_off())??;
        tokio::select! {
            biased;
            frame = self.session.receiver.receive() => match frame? {
                None => Ok(None),
                Some(_) => Err(WireError::Invalid("second request").into()),
            },
            item = step(&mut self.feed, &mut self.has_begun, self.group) => Ok(Some(item)),
            () = tokio::time::sleep(STANDING_INTERVAL) => {
                Ok(Some(Ok(FeedItem::Standing(standing(&self.feed, self.group)))))
            }
        }
    }

    fn cut_off(&self) -> DialError {
        metrics::counter!("steadfast_subscriptions_cut_off_total").increment(1);
        let resume = self.feed.resume_token();
        tracing::warn!(
            ?resume,
            "a subscriber does not read what it is sent; it is disconnected"
        );
        DialError::Timeout(self.stall)
    }
}

/// The next item to send. Dropping the future before it completes loses nothing.
async fn step(
    feed: &mut Feed,
    has_begun: &mut bool,
    group: GroupUuid,
) -> Result<FeedItem, FeedError> {
    if !*has_begun {
        feed.begin().await?;
        *has_begun = true;
        return Ok(FeedItem::Begun(standing(feed, group)));
    }
    let event = feed.next_async().await;
    event.unwrap_or(Err(FeedError::Closed)).map(Into::into)
}

fn standing(feed: &Feed, group: GroupUuid) -> StandingMessage {
    StandingMessage {
        group: group.to_bytes(),
        token: feed.resume_token().map(Into::into),
    }
}

fn frame_of(item: FeedItem) -> bytes::Bytes {
    encode(Kind::Feed, &FeedMessage { item: Some(item) })
}
