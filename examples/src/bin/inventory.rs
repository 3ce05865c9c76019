//! A web service with a node of Steadfast inside each of its processes: stock, and reservations that
//! take one of each named item or nothing.
//!
//! ```text
//! inventory NAME DATA_DIR NODE_ADDRESS WEB_ADDRESS NAME=NODE_ADDRESS…
//!
//! PUT  /items/ITEM          body: how many there are
//! GET  /items/ITEM          how many are left
//! POST /reservations        body: ["tea", "scones"]
//! GET  /events              server-sent events: every change of stock, each once
//! GET  /live, GET /ready    for whoever restarts processes, and whoever routes requests
//! ```
//!
//! Any process can be asked for anything: the nodes send writes to the master among themselves. An
//! answer to a write has the header `token`; a read with that header sees at least that write, whichever
//! process it reaches. `docs/service.md` explains the service part by part.

use std::convert::Infallible;
use std::error::Error;
use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use axum::{Json, Router};
use futures_util::{Stream, StreamExt, future};
use steadfast::table::{Table, TableError};
use steadfast::{
    Bootstrap, Change, CommitToken, Committed, ConsistencyPolicy, FeedError, FeedEvent,
    FeedListener, ReadError, RepConfig, ReplicatedEnvironment, SharedFeed, SharedFeedOptions,
    Transaction, WriteError,
};
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Mutex;

const ITEMS: &str = "items";

#[derive(Clone)]
struct App {
    env: ReplicatedEnvironment,
    feed: Arc<Mutex<Option<SharedFeed>>>,
    items: Arc<Table<String, u64>>,
}

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("there is no {0}")]
    Unknown(String),
    #[error("{0} is sold out")]
    SoldOut(String),
    #[error("the token is none of this group's: {0}")]
    Token(#[from] steadfast::ParseTokenError),
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Table(#[from] TableError),
    #[error(transparent)]
    Feed(#[from] FeedError),
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let retryable = match &self {
            Self::Write(error) => error.is_retryable(),
            Self::Read(error) => error.is_retryable(),
            Self::Table(error) => error.is_retryable(),
            Self::Feed(error) => error.is_retryable(),
            _ => false,
        };
        let status = match &self {
            Self::Unknown(_) => StatusCode::NOT_FOUND,
            Self::SoldOut(_) => StatusCode::CONFLICT,
            Self::Token(_) => StatusCode::BAD_REQUEST,
            _ if retryable => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        (status, self.to_string()).into_response()
    }
}

impl App {
    /// A listener of the one feed that all clients of this process share. It is made when somebody
    /// listens, and made anew after it has ended, as when the node had to copy another one's state.
    async fn listen(&self, after: Option<CommitToken>) -> Answer<FeedListener> {
        let mut feed = self.feed.lock().await;
        match feed.as_ref().map(|feed| feed.listen(after)) {
            Some(Ok(listener)) => return Ok(listener),
            // Of the client's token: another feed would not know it either.
            Some(Err(error)) if !error.is_retryable() => return Err(error.into()),
            Some(Err(_)) | None => {}
        }
        let options = SharedFeedOptions::default().database(ITEMS);
        let feed = feed.insert(self.env.shared_feed_async(options).await?);
        Ok(feed.listen(after)?)
    }
}

type Answer<T> = Result<T, Failure>;

fn done<T: serde::Serialize>(written: Committed<T>) -> ([(&'static str, String); 1], Json<T>) {
    ([("token", written.token.to_string())], Json(written.value))
}

async fn stock(
    State(app): State<App>,
    Path(item): Path<String>,
    Json(count): Json<u64>,
) -> Answer<impl IntoResponse> {
    let set = |txn: &Transaction| -> Answer<_> { Ok(app.items.of(txn)?.put(&item, &count)?) };
    Ok(done(app.env.write_async(set).await?))
}

async fn reserve(
    State(app): State<App>,
    Json(wanted): Json<Vec<String>>,
) -> Answer<impl IntoResponse> {
    let take = |txn: &Transaction| -> Answer<_> {
        let items = app.items.of(txn)?;
        for item in &wanted {
            let left = items.get(item)?;
            let left = left.ok_or_else(|| Failure::Unknown(item.clone()))?;
            let after = left.checked_sub(1);
            items.put(item, &after.ok_or_else(|| Failure::SoldOut(item.clone()))?)?;
        }
        Ok(())
    };
    Ok(done(app.env.write_async(take).await?))
}

async fn left(
    State(app): State<App>,
    Path(item): Path<String>,
    headers: HeaderMap,
) -> Answer<Json<u64>> {
    let policy = match token_in(&headers, "token")? {
        Some(token) => ConsistencyPolicy::AtLeast(token),
        None => ConsistencyPolicy::Linearizable,
    };
    let look = app.env.read_async(policy, |snapshot| -> Answer<_> {
        Ok(app.items.of(snapshot)?.get(&item)?)
    });
    look.await?.map(Json).ok_or(Failure::Unknown(item))
}

fn token_in(headers: &HeaderMap, name: &str) -> Answer<Option<CommitToken>> {
    let text = headers.get(name).and_then(|value| value.to_str().ok());
    Ok(text.map(str::parse).transpose()?)
}

/// Each event has the token of its transaction as id, which a client that comes back sends as
/// `Last-Event-ID`. The stream ends with the first error; the client then does just that.
async fn events(
    State(app): State<App>,
    headers: HeaderMap,
) -> Answer<Sse<impl Stream<Item = Result<Event, Infallible>>>> {
    let listener = app.listen(token_in(&headers, "last-event-id")?).await?;
    let events = listener
        .into_stream()
        .take_while(|event| future::ready(event.is_ok()));
    let events = events.filter_map(move |event| {
        let Ok(FeedEvent::Transaction(transaction)) = event else {
            return future::ready(None);
        };
        let rows = transaction
            .changes
            .iter()
            .filter_map(|change| match change {
                Change::Put { key, value, .. } => app.items.decode_row(key, value).ok(),
                _ => None,
            });
        let event = Event::default().id(transaction.token.to_string());
        future::ready(event.json_data(rows.collect::<Vec<_>>()).ok().map(Ok))
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::default()))
}

async fn live(State(app): State<App>) -> StatusCode {
    answer(app.env.health().is_live())
}

async fn ready(State(app): State<App>) -> StatusCode {
    answer(app.env.health().is_ready())
}

fn answer(yes: bool) -> StatusCode {
    if yes {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let [name, dir, node, web, nodes @ ..] = arguments.as_slice() else {
        return Err(
            "usage: inventory NAME DATA_DIR NODE_ADDRESS WEB_ADDRESS NAME=NODE_ADDRESS…".into(),
        );
    };
    let mut config = RepConfig::builder("inventory", name)
        .data_dir(dir)
        .listen(node)
        .bootstrap(Bootstrap::expect(nodes)?)
        .runtime(Handle::current());
    if let Ok(credentials) = std::env::var("STEADFAST_CREDENTIALS") {
        config = config.credentials(steadfast::credentials::load(credentials)?);
    }
    let env = ReplicatedEnvironment::open_async(config.build()?).await?;
    let items = Arc::new(Table::new(ITEMS));
    let routes = Router::new()
        .route("/items/{item}", put(stock).get(left))
        .route("/reservations", post(reserve))
        .route("/events", get(events))
        .route("/live", get(live))
        .route("/ready", get(ready))
        .with_state(App {
            env: env.clone(),
            feed: Arc::default(),
            items,
        });
    let mut ended = signal(SignalKind::terminate())?;
    // Closing the node ends the streams of events, which would keep the server up.
    let end = async move {
        tokio::select! {
            _ = ended.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        }
        if let Err(error) = env.close_async().await {
            eprintln!("{error}");
        }
    };
    println!("{name} serves http://{web}");
    axum::serve(TcpListener::bind(web).await?, routes)
        .with_graceful_shutdown(end)
        .await?;
    Ok(())
}
