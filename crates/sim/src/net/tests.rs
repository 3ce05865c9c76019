//! Guarantees of the network, fault by fault, as seen by the processes on its hosts.

mod crashes;
mod faults;
mod partitions;
mod streams;

use std::io::ErrorKind;
use std::time::Duration;

use steadfast_net::{ByteStream, Listener, NetError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout};

use super::{NetFaults, SimNet};

const ALWAYS: u32 = 1_000_000;

type Stream = Box<dyn ByteStream>;

fn perfect() -> SimNet {
    SimNet::new(1, NetFaults::default())
}

fn faulty(faults: NetFaults) -> SimNet {
    SimNet::new(1, faults)
}

async fn listen(net: &SimNet, address: &str) -> Box<dyn Listener> {
    let (host, _) = address.split_once(':').unwrap();
    net.host(host).bind(address).await.unwrap()
}

/// A connection from n1 to n2: both ends, the dialler's first.
async fn connect(net: &SimNet) -> (Stream, Stream) {
    let mut listener = listen(net, "n2:7400").await;
    let ours = net.host("n1").connect("n2:7400").await.unwrap().stream;
    let (theirs, _) = listener.accept().await.unwrap();
    (ours, theirs)
}

/// The bytes that arrive at the other end when `bytes` are written, and how long that takes.
async fn carry(from: &mut Stream, to: &mut Stream, bytes: &[u8]) -> (Vec<u8>, Duration) {
    let start = Instant::now();
    from.write_all(bytes).await.unwrap();
    let mut got = vec![0; bytes.len()];
    to.read_exact(&mut got).await.unwrap();
    (got, start.elapsed())
}

async fn read_error(stream: &mut Stream) -> ErrorKind {
    stream.read(&mut [0; 64]).await.unwrap_err().kind()
}

async fn write_error(stream: &mut Stream) -> ErrorKind {
    stream.write(b"x").await.unwrap_err().kind()
}

/// Nothing arrives within this time.
async fn assert_silent(stream: &mut Stream, within: Duration) {
    let mut buffer = [0; 64];
    let read = timeout(within, stream.read(&mut buffer)).await;
    assert!(read.is_err(), "{read:?}");
}

/// Writes until the window is full, and returns how much that was.
async fn fill(stream: &mut Stream) -> usize {
    let mut sum = 0;
    while let Ok(count) = timeout(Duration::from_millis(1), stream.write(&[7; 10_000])).await {
        sum += count.unwrap();
    }
    sum
}

async fn dial_error(net: &SimNet, from: &str, address: &str) -> ErrorKind {
    match net.host(from).connect(address).await {
        Err(NetError::Io { source, .. }) => source.kind(),
        Err(NetError::ChannelClosed) => ErrorKind::ConnectionReset,
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("connected"),
    }
}

fn hosts(names: &[&str]) -> Vec<String> {
    names.iter().map(ToString::to_string).collect()
}

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}
