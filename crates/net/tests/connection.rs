//! The async halves of a connection, over streams that record what is done to them.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use steadfast_net::{Connection, FrameReceiver, FrameSender, NetError};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf};
use tokio::time::Instant;

/// The halves of a connection, and the raw stream at its other end.
fn open(queue_bytes: usize) -> (FrameSender, FrameReceiver, DuplexStream) {
    let (ours, theirs) = tokio::io::duplex(queue_bytes);
    let (sender, receiver) = Connection::new(Box::new(ours), "peer".into()).split();
    (sender, receiver, theirs)
}

fn framed(payload: &[u8]) -> Vec<u8> {
    [
        &u32::try_from(payload.len()).unwrap().to_le_bytes(),
        payload,
    ]
    .concat()
}

#[tokio::test]
async fn a_frame_is_its_length_in_four_little_endian_bytes_then_its_payload() {
    let (mut sender, mut receiver, mut raw) = open(1024);
    sender.send(Bytes::from_static(b"abc")).await.unwrap();
    let mut bytes = [0; 7];
    raw.read_exact(&mut bytes).await.unwrap();
    assert_eq!(&bytes, b"\x03\0\0\0abc");
    raw.write_all(b"\x02\0\0\0de\0\0\0\0").await.unwrap();
    assert_eq!(
        receiver.receive().await.unwrap().as_deref(),
        Some(&b"de"[..])
    );
    assert_eq!(receiver.receive().await.unwrap().as_deref(), Some(&b""[..]));
}

#[tokio::test]
async fn a_frame_leaves_in_one_write_whatever_its_size() {
    for vectored in [true, false] {
        let (stream, writes) = Writes::watched(vectored);
        let (mut sender, _receiver) = Connection::new(Box::new(stream), "peer".into()).split();
        for payload_len in [0, 5, 100_000] {
            sender.send(vec![1; payload_len].into()).await.unwrap();
            let written = std::mem::take(&mut *writes.lock().unwrap());
            assert_eq!(written, [4 + payload_len], "vectored: {vectored}");
        }
    }
}

#[tokio::test]
async fn frames_that_were_fed_leave_together_at_the_flush() {
    let (stream, writes) = Writes::watched(true);
    let (mut sender, _receiver) = Connection::new(Box::new(stream), "peer".into()).split();
    for payload_len in [10, 20, 50_000, 30] {
        sender.feed(vec![1; payload_len].into()).await.unwrap();
    }
    assert!(writes.lock().unwrap().is_empty());
    sender.flush().await.unwrap();
    assert_eq!(*writes.lock().unwrap(), [4 * 4 + 10 + 20 + 50_000 + 30]);
}

#[tokio::test]
async fn feeding_without_end_flushes_by_itself() {
    let (stream, writes) = Writes::watched(true);
    let (mut sender, _receiver) = Connection::new(Box::new(stream), "peer".into()).split();
    for _ in 0..100 {
        sender.feed(vec![1; 10_000].into()).await.unwrap();
    }
    let writes = writes.lock().unwrap();
    assert!((2..10).contains(&writes.len()), "{writes:?}");
}

#[tokio::test]
async fn a_frame_fed_to_a_closed_connection_is_an_error_at_once() {
    let (mut sender, mut receiver, raw) = open(1024);
    sender.close().await.unwrap();
    assert!(matches!(
        sender.feed(Bytes::new()).await,
        Err(NetError::ChannelClosed)
    ));
    drop(raw);
    assert_eq!(receiver.receive().await.unwrap(), None);

    let (mut sender, mut receiver, mut raw) = open(1024);
    raw.write_all(&u32::MAX.to_le_bytes()).await.unwrap();
    assert!(receiver.receive().await.is_err());
    assert!(matches!(
        sender.feed(Bytes::new()).await,
        Err(NetError::ChannelClosed)
    ));
}

#[tokio::test]
async fn the_end_between_two_frames_is_no_error_and_stays_the_end() {
    let (_sender, mut receiver, mut raw) = open(1024);
    raw.write_all(&framed(b"last")).await.unwrap();
    drop(raw);
    assert_eq!(
        receiver.receive().await.unwrap().as_deref(),
        Some(&b"last"[..])
    );
    assert_eq!(receiver.receive().await.unwrap(), None);
    assert_eq!(receiver.receive().await.unwrap(), None);
}

#[tokio::test]
async fn a_side_that_ended_its_frames_still_receives() {
    let (mut sender, mut receiver, mut raw) = open(1024);
    sender.send(Bytes::from_static(b"question")).await.unwrap();
    sender.close().await.unwrap();
    sender.close().await.unwrap();
    assert!(matches!(
        sender.send(Bytes::new()).await,
        Err(NetError::ChannelClosed)
    ));
    let mut question = Vec::new();
    raw.read_to_end(&mut question).await.unwrap();
    raw.write_all(&framed(b"answer")).await.unwrap();
    assert_eq!(
        receiver.receive().await.unwrap().as_deref(),
        Some(&b"answer"[..])
    );
}

#[tokio::test]
async fn dropping_the_sender_ends_the_frames_for_the_peer() {
    let (sender, _receiver, mut raw) = open(1024);
    drop(sender);
    assert_eq!(raw.read(&mut [0; 1]).await.unwrap(), 0);
}

#[tokio::test]
async fn an_error_of_one_half_closes_the_other() {
    let (mut sender, mut receiver, mut raw) = open(1024);
    raw.write_all(&u32::MAX.to_le_bytes()).await.unwrap();
    assert!(matches!(
        receiver.receive().await,
        Err(NetError::Protocol { .. })
    ));
    assert!(matches!(
        sender.send(Bytes::new()).await,
        Err(NetError::ChannelClosed)
    ));
    assert!(matches!(
        receiver.receive().await,
        Err(NetError::ChannelClosed)
    ));
}

#[tokio::test]
async fn a_receive_dropped_inside_a_frame_loses_nothing() {
    let (_sender, mut receiver, mut raw) = open(1024);
    for byte in framed(b"in pieces") {
        assert!(receiver.receive().now_or_never().is_none());
        raw.write_all(&[byte]).await.unwrap();
    }
    assert_eq!(
        receiver.receive().await.unwrap().as_deref(),
        Some(&b"in pieces"[..])
    );
}

#[tokio::test]
async fn a_send_dropped_inside_a_frame_is_finished_by_the_next() {
    let (mut sender, _receiver, mut raw) = open(8);
    assert!(
        sender
            .send(Bytes::from_static(b"longer than the queue"))
            .now_or_never()
            .is_none()
    );
    let expected = [framed(b"longer than the queue"), framed(b"next")].concat();
    let mut bytes = vec![0; expected.len()];
    let (sent, read) = tokio::join!(
        sender.send(Bytes::from_static(b"next")),
        raw.read_exact(&mut bytes)
    );
    sent.unwrap();
    read.unwrap();
    assert_eq!(bytes, expected);
}

#[tokio::test]
async fn memory_follows_the_bytes_received_and_not_the_length_claimed() {
    // Each connection claims 64 MiB and sends one byte of it: 64 GiB if the claims counted.
    let address_space_bytes = || memory_bytes(0);
    let before = address_space_bytes();
    let mut held = Vec::new();
    for _ in 0..1000 {
        let (sender, mut receiver, mut raw) = open(64);
        raw.write_all(&(64_u32 << 20).to_le_bytes()).await.unwrap();
        raw.write_all(&[1]).await.unwrap();
        assert!(receiver.receive().now_or_never().is_none());
        held.push((sender, receiver, raw));
    }
    let grown = address_space_bytes().saturating_sub(before);
    assert!(grown < 256 << 20, "{grown} bytes");
}

#[tokio::test(start_paused = true)]
async fn a_frame_may_take_long_but_64_kib_or_the_rest_have_to_come_within_ten_seconds() {
    let (_sender, mut receiver, mut raw) = open(1 << 20);
    let large = vec![7; 300 * 1024];
    let sent = large.clone();
    let slow = tokio::spawn(async move {
        for part in framed(b"in two parts").chunks(8) {
            tokio::time::sleep(Duration::from_secs(9)).await;
            raw.write_all(part).await.unwrap();
        }
        for part in framed(&sent).chunks(70 * 1024) {
            tokio::time::sleep(Duration::from_secs(9)).await;
            raw.write_all(part).await.unwrap();
        }
        raw
    });
    let small = receiver.receive().await.unwrap();
    assert_eq!(small.as_deref(), Some(&b"in two parts"[..]));
    let received = receiver.receive().await.unwrap();
    assert!(received.as_deref() == Some(&large[..]));
    drop(slow.await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_length_with_a_flipped_bit_makes_no_frame_that_small_ones_feed_for_ever() {
    let (sender, mut receiver, mut raw) = open(1024);
    let endless = tokio::spawn(async move {
        let mut flipped = framed(b"heartbeat");
        // 16 MiB longer.
        flipped[3] ^= 1;
        while raw.write_all(&flipped).await.is_ok() {
            flipped = framed(b"heartbeat");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    let began = Instant::now();
    let failed = tokio::time::timeout(Duration::from_mins(1), receiver.receive()).await;
    assert!(
        matches!(failed, Ok(Err(NetError::DeadlineExceeded { .. }))),
        "{failed:?}"
    );
    assert!(began.elapsed() < Duration::from_secs(11));
    drop((receiver, sender));
    endless.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn silence_between_frames_has_no_deadline() {
    let (_sender, mut receiver, mut raw) = open(1024);
    let slow = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs(100_000)).await;
        raw.write_all(&framed(b"after a day")).await.unwrap();
        raw
    });
    assert_eq!(
        receiver.receive().await.unwrap().as_deref(),
        Some(&b"after a day"[..])
    );
    drop(slow.await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_reads_nothing_is_given_up_after_ten_seconds() {
    let (mut sender, _receiver, _raw) = open(1024);
    let began = Instant::now();
    let failed = sender.send(vec![0; 2000].into()).await;
    assert!(
        matches!(failed, Err(NetError::DeadlineExceeded { .. })),
        "{failed:?}"
    );
    assert_eq!(began.elapsed(), Duration::from_secs(10));
    assert!(matches!(
        sender.send(Bytes::new()).await,
        Err(NetError::ChannelClosed)
    ));
}

/// Memory of this process in bytes: all of it (field 0) or the resident part (field 1).
#[expect(
    clippy::disallowed_methods,
    reason = "the kernel's own account of this process"
)]
fn memory_bytes(field: usize) -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages
        .split(' ')
        .nth(field)
        .unwrap()
        .parse::<usize>()
        .unwrap()
        * 4096
}

/// A stream that accepts all it is given, and records the size of each write.
struct Writes {
    vectored: bool,
    sizes: Arc<Mutex<Vec<usize>>>,
}

impl Writes {
    fn watched(vectored: bool) -> (Self, Arc<Mutex<Vec<usize>>>) {
        let sizes = Arc::new(Mutex::new(Vec::new()));
        (
            Self {
                vectored,
                sizes: Arc::clone(&sizes),
            },
            sizes,
        )
    }
}

impl AsyncRead for Writes {
    fn poll_read(
        self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        _buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Poll::Pending
    }
}

impl AsyncWrite for Writes {
    fn poll_write(
        self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.sizes.lock().unwrap().push(bytes.len());
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if !self.vectored {
            let first = slices.iter().find(|slice| !slice.is_empty());
            return self.poll_write(cx, first.map_or(&[], |slice| slice));
        }
        let size = slices.iter().map(|slice| slice.len()).sum();
        self.sizes.lock().unwrap().push(size);
        Poll::Ready(Ok(size))
    }

    fn is_write_vectored(&self) -> bool {
        self.vectored
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
