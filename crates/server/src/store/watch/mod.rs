//! Watches: the events of the keys that clients look at, each once and in order.
//!
//! ```text
//!  change feed ──► hub: decodes each transaction once, finds who watches its keys
//!                   │ mail: what is new, shared, up to a bound; past it the watch is lost here
//!                   ▼
//!                session of a stream ──► answers, as fast as the client reads
//!                   ▲ what a watch has missed, a part at a time
//!  etcd/log, etcd/history
//! ```
//!
//! A watch registers with the hub, which says up to which revision it has seen everything: what comes
//! later is mailed, and the rest the session reads from the log. If the mail of a session that does
//! not read has reached its bound, its watches register again, and read from the log what they have
//! missed. So nothing is lost or comes twice, and a slow client holds up nobody.

mod decode;
mod hub;
mod index;
mod past;
mod session;

use std::sync::Arc;

use steadfast::{ConsistencyPolicy, Feed, FeedError, FeedEvent, StartAt, SubscribeOptions};
use tokio::sync::mpsc;
use tokio::time::{Duration, sleep};

use super::inner::Inner;
use super::keys::{AUTH, Failure, HISTORY, LOG, META, Tables};
use crate::proto::etcdserverpb::{WatchRequest, WatchResponse};

pub(super) use hub::Hub;

/// Requests of a stream that wait; its client waits then.
const REQUESTS_MAX: usize = 16;

/// Answers of a stream that wait; then the events of its watches wait in its mail.
const ANSWERS_MAX: usize = 16;

/// Pause before the changes of a node that does not give them are asked for again, as while it copies
/// the state of another.
const RETRY: Duration = Duration::from_millis(100);

/// One stream of watches. See [`super::Store::watches`].
pub(super) fn open(
    inner: &Arc<Inner>,
) -> (mpsc::Sender<WatchRequest>, mpsc::Receiver<WatchResponse>) {
    let (requests, asked) = mpsc::channel(REQUESTS_MAX);
    let (answers, told) = mpsc::channel(ANSWERS_MAX);
    inner.spawn(session::run(Arc::clone(inner), asked, answers));
    (requests, told)
}

/// The changes of the databases that the hub follows, from now on.
///
/// # Errors
/// Those of a subscription.
pub(super) fn subscribe(inner: &Inner) -> Result<Feed, FeedError> {
    let options = SubscribeOptions::new(StartAt::Now)
        .database(LOG)
        .database(HISTORY)
        .database(META)
        .database(AUTH);
    inner.env.subscribe(options)
}

/// Brings the hub to what this node has, before it follows a new feed: watches that have missed
/// something read it from the log.
///
/// # Errors
/// Those of a read.
pub(super) async fn resume(inner: &Inner) -> Result<(), Failure> {
    let read = inner
        .env
        .read_async(ConsistencyPolicy::Eventual, |snapshot| {
            let tables = Tables::of_snapshot(snapshot)?;
            let done = tables.number(super::keys::COMPACTED_DONE)?;
            Ok::<_, Failure>((tables.state()?, tables.compacted()?, done))
        });
    let (state, compacted, done) = read.await?;
    inner.seen(state);
    inner.hub.resume(state.revision, compacted, done);
    Ok(())
}

/// Follows the changes until the store or the environment closes.
pub(super) async fn follow(inner: Arc<Inner>, mut feed: Feed) {
    let following = async {
        loop {
            match follow_feed(&inner, &mut feed).await {
                FeedError::Closed => return,
                error => tracing::warn!(%error, "the changes are followed anew"),
            }
            feed = loop {
                sleep(RETRY).await;
                match subscribe(&inner) {
                    Ok(feed) if resume(&inner).await.is_ok() => break feed,
                    Err(FeedError::Closed) => return,
                    _ => {}
                }
            };
        }
    };
    inner.unless_stopped(following).await;
    inner.stops.send_replace(true);
}

/// Hands on what a feed yields, until it ends.
async fn follow_feed(inner: &Inner, feed: &mut Feed) -> FeedError {
    loop {
        match feed.next_async().await {
            None => return FeedError::Closed,
            Some(Err(error)) => return error,
            Some(Ok(FeedEvent::Transaction(transaction))) => {
                let Ok(news) = decode::news(transaction.changes) else {
                    let reason = "a change of the store is malformed".to_owned();
                    return FeedError::Stopped { reason };
                };
                if let Some(state) = news.state {
                    inner.seen(state);
                }
                inner.hub.take(news);
            }
            Some(Ok(_)) => {}
        }
    }
}
