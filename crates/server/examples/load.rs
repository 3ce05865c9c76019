//! Measures a server of the etcd v3 API as its clients see it: any server, so that two can be
//! compared by the same program. The traffic goes to the addresses that it is given, and nowhere else.
//!
//! ```sh
//! cargo run --release -p steadfast-server --example load -- put 127.0.0.1:2379,127.0.0.1:2381 64 10
//! ```
//!
//! The arguments are what to do (`put`, `get`, `serializable-get`, `watch`), the addresses, the number of clients and, but
//! for `watch`, the seconds. Clients are spread over the addresses, a connection for each eight of them. `watch` has one
//! writer change one key, and so many watchers of it: it tells when the last one has heard of each change.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use steadfast_server::proto::etcdserverpb::kv_client::KvClient;
use steadfast_server::proto::etcdserverpb::watch_client::WatchClient;
use steadfast_server::proto::etcdserverpb::watch_request::RequestUnion;
use steadfast_server::proto::etcdserverpb::{
    PutRequest, RangeRequest, WatchCreateRequest, WatchRequest,
};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

const VALUE_BYTES: usize = 256;
/// Keys that puts and gets choose from.
const KEYS: u64 = 10_000;
const CLIENTS_PER_CONNECTION: usize = 8;
const WATCHERS_PER_STREAM: usize = 100;
const WATCHED: &[u8] = b"load/watched";
/// Changes that watchers are told of.
const CHANGES: u32 = 20;
const HEARD_MAX: Duration = Duration::from_mins(1);

#[derive(Clone, Copy, PartialEq)]
enum Work {
    Put,
    Get { serializable: bool },
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let usage = "put|get|serializable-get|watch ADDRESS[,ADDRESS…] CLIENTS [SECONDS]";
    let [what, addresses, clients, rest @ ..] = &arguments[..] else {
        return Err(usage.into());
    };
    let addresses: Vec<&str> = addresses.split(',').collect();
    let clients: usize = clients.parse()?;
    let seconds: u64 = rest.first().map_or(Ok(10), |seconds| seconds.parse())?;
    let work = match &what[..] {
        "put" => Work::Put,
        "get" => Work::Get {
            serializable: false,
        },
        "serializable-get" => Work::Get { serializable: true },
        "watch" => return watch(&addresses, clients).await,
        _ => return Err(usage.into()),
    };
    let channels = connect(&addresses, clients.div_ceil(CLIENTS_PER_CONNECTION)).await?;
    if work != Work::Put {
        fill(&channels[0]).await?;
    }
    let until = Instant::now() + Duration::from_secs(seconds);
    let mut tasks = JoinSet::new();
    for client in 0..clients {
        let channel = channels[client % channels.len()].clone();
        tasks.spawn(work_until(work, channel, client as u64, until));
    }
    let (mut all, mut failed) = (histogram(), 0);
    while let Some(done) = tasks.join_next().await {
        let (histogram, failures) = done??;
        all.add(histogram)?;
        failed += failures;
    }
    println!(
        "{what}: {clients} clients, {} /s, p50 {} us, p99 {} us, max {} us, {failed} failed",
        all.len() / seconds,
        all.value_at_quantile(0.5),
        all.value_at_quantile(0.99),
        all.max()
    );
    Ok(())
}

fn histogram() -> Histogram<u64> {
    Histogram::new(3).expect("three digits are few enough")
}

fn micros(took: Duration) -> u64 {
    u64::try_from(took.as_micros()).unwrap_or(u64::MAX)
}

async fn connect(addresses: &[&str], connections: usize) -> Result<Vec<Channel>> {
    let mut channels = Vec::new();
    for at in 0..connections.max(addresses.len()) {
        let address = addresses[at % addresses.len()];
        let endpoint = Channel::from_shared(format!("http://{address}"))?;
        channels.push(endpoint.tcp_nodelay(true).connect().await?);
    }
    Ok(channels)
}

fn key(number: u64) -> Vec<u8> {
    format!("load/{number:08}").into_bytes()
}

fn put(number: u64) -> PutRequest {
    PutRequest {
        key: key(number).into(),
        value: vec![b'v'; VALUE_BYTES].into(),
        ..PutRequest::default()
    }
}

async fn fill(channel: &Channel) -> Result<()> {
    let mut tasks = JoinSet::new();
    for first in 0..64 {
        let mut client = KvClient::new(channel.clone());
        tasks.spawn(async move {
            for number in (first..KEYS).step_by(64) {
                client.put(put(number)).await?;
            }
            Ok::<_, tonic::Status>(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(())
}

async fn work_until(
    work: Work,
    channel: Channel,
    client: u64,
    until: Instant,
) -> Result<(Histogram<u64>, u64)> {
    let mut kv = KvClient::new(channel);
    let (mut histogram, mut failed) = (histogram(), 0);
    let mut number = client.wrapping_mul(0x9e37_79b9);
    while Instant::now() < until {
        number = number
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let at = (number >> 33) % KEYS;
        let began = Instant::now();
        let done = match work {
            Work::Put => kv.put(put(at)).await.map(drop),
            Work::Get { serializable } => {
                let range = RangeRequest {
                    key: key(at).into(),
                    serializable,
                    ..RangeRequest::default()
                };
                kv.range(range).await.map(drop)
            }
        };
        match done {
            Ok(()) => histogram.record(micros(began.elapsed()))?,
            Err(_) => failed += 1,
        }
    }
    Ok((histogram, failed))
}

/// Has `watchers` watch one key, and changes it.
async fn watch(addresses: &[&str], watchers: usize) -> Result<()> {
    let streams = watchers.div_ceil(WATCHERS_PER_STREAM);
    let channels = connect(addresses, streams.div_ceil(CLIENTS_PER_CONNECTION)).await?;
    let (heard, created) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let mut tasks = JoinSet::new();
    for stream in 0..streams {
        let channel = channels[stream % channels.len()].clone();
        let of_stream = WATCHERS_PER_STREAM.min(watchers - stream * WATCHERS_PER_STREAM);
        let (heard, created) = (Arc::clone(&heard), Arc::clone(&created));
        tasks.spawn(watch_on(channel, of_stream, heard, created));
    }
    let all = watchers as u64;
    reaches(&created, all).await?;
    let mut kv = KvClient::new(channels[0].clone());
    let mut histogram = histogram();
    for change in 1..=u64::from(CHANGES) {
        let began = Instant::now();
        let request = PutRequest {
            key: WATCHED.into(),
            value: change.to_string().into_bytes().into(),
            ..PutRequest::default()
        };
        kv.put(request).await?;
        reaches(&heard, all * change).await?;
        histogram.record(micros(began.elapsed()))?;
    }
    println!(
        "watch: {watchers} watchers, the last one hears of a change after p50 {} us, max {} us",
        histogram.value_at_quantile(0.5),
        histogram.max()
    );
    tasks.shutdown().await;
    Ok(())
}

async fn reaches(count: &AtomicU64, wanted: u64) -> Result<()> {
    let deadline = Instant::now() + HEARD_MAX;
    while count.load(Ordering::Relaxed) < wanted {
        if Instant::now() >= deadline {
            let count = count.load(Ordering::Relaxed);
            return Err(format!("{count} of {wanted} came in {HEARD_MAX:?}").into());
        }
        tokio::time::sleep(Duration::from_micros(200)).await;
    }
    Ok(())
}

async fn watch_on(
    channel: Channel,
    watchers: usize,
    heard: Arc<AtomicU64>,
    created: Arc<AtomicU64>,
) -> Result<()> {
    let (requests, receiver) = mpsc::channel(WATCHERS_PER_STREAM);
    for _ in 0..watchers {
        let create = WatchCreateRequest {
            key: WATCHED.into(),
            ..WatchCreateRequest::default()
        };
        let request = WatchRequest {
            request_union: Some(RequestUnion::CreateRequest(create)),
        };
        requests.send(request).await?;
    }
    let mut client = WatchClient::new(channel);
    let mut answers = client
        .watch(ReceiverStream::new(receiver))
        .await?
        .into_inner();
    while let Some(answer) = answers.message().await? {
        if answer.created {
            created.fetch_add(1, Ordering::Relaxed);
        }
        heard.fetch_add(answer.events.len() as u64, Ordering::Relaxed);
    }
    drop(requests);
    Ok(())
}
