//! Frames over one byte stream, whatever carries it.
//!
//! A frame is `payload_len: u32 LE | payload`. [`Connection::split`] gives a send half and a
//! receive half that work at the same time, in different tasks or threads.
//!
//! ```text
//!   FrameSender                                   FrameReceiver
//!   small frame ─copy─┐                           ┌─► Bytes ┐
//!   small frame ─copy─┼─► chunk ┐                 ├─► Bytes ├ slices of one buffer, no copy
//!   large frame ─────────► chunk ├─ writev ─► read buffer ─┘
//!                                                 (grows with the bytes received)
//! ```
//!
//! Sending packs small frames together and passes large ones on uncopied, so that one vectored
//! write carries them all. Receiving reads ahead into a buffer whose size follows the bytes
//! received, never the length that a peer claims, and slices frames out of it.
//!
//! The two halves share a switch: an error on either half, or any other holder of the switch, turns
//! both off for good. Deadlines apply to progress, not to whole frames: a peer may be slow, but
//! within [`STALL_TIMEOUT`] some byte must leave, and [`PROGRESS_BYTES`] or the rest of a started frame
//! must arrive.
//!
//! The framing is our own because `tokio_util`'s `LengthDelimitedCodec` reserves the claimed length
//! as soon as a header arrives, and copies every payload it sends.

use std::collections::VecDeque;
use std::fmt;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::error::{NetError, Result};

/// Maximum payload of one frame, in bytes.
pub const MAX_FRAME_PAYLOAD: usize = 64 * 1024 * 1024;

/// How long a connection may stall: inside a frame with no byte arriving, or sending with no byte
/// leaving. Longer than any pause of a healthy node, short enough to free what a dead one holds.
pub(crate) const STALL_TIMEOUT: Duration = Duration::from_secs(10);

/// What has to arrive of a started frame within [`STALL_TIMEOUT`], or else all that is left of it. A slow
/// link carries this many times over. Less can go on for ever: a length with a flipped bit makes one
/// endless frame of all that follows, which may be a heartbeat now and then.
const PROGRESS_BYTES: usize = 64 * 1024;

/// Bytes of the length field that precedes each payload.
const HEADER_BYTES: usize = 4;

/// Bytes that `feed` gathers before it writes: one large write costs little more than a small one.
const GATHER_BYTES_MAX: usize = 256 * 1024;

/// Payloads up to this many bytes are copied next to their neighbours: cheaper than another slice
/// in the vectored write.
const COPY_BYTES_MAX: usize = 16 * 1024;

/// Maximum slices in one vectored write.
const SLICES_MAX: usize = 64;

/// Bytes requested by the first read: the most that each of thousands of idle connections costs.
const READ_BYTES_MIN: usize = 8 * 1024;

/// Maximum bytes requested by one read, once a connection has shown that it delivers that many.
const READ_BYTES_MAX: usize = 256 * 1024;

/// A stream of bytes in both directions: a TCP socket, a TLS session, an in-memory pipe.
pub trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> ByteStream for T {}

/// A framed byte stream, ready to be split into its two halves. Dropping it closes the stream.
pub struct Connection {
    stream: Box<dyn ByteStream>,
    peer: String,
    identity: Option<String>,
    closed: CancellationToken,
}

impl Connection {
    /// A connection over `stream`, whose other end is at `peer` (an address, for people to read).
    pub fn new(stream: Box<dyn ByteStream>, peer: String) -> Self {
        Self {
            stream,
            peer,
            identity: None,
            closed: CancellationToken::new(),
        }
    }

    /// The address of the other end, as the network reports it: not proof of identity.
    pub fn peer(&self) -> &str {
        &self.peer
    }

    /// The name that the other end proved when it connected, if the transport asks for proof.
    pub fn identity(&self) -> Option<&str> {
        self.identity.as_deref()
    }

    /// Splits into a send half and a receive half. Each works while the other waits.
    pub fn split(self) -> (FrameSender, FrameReceiver) {
        let (reader, writer) = tokio::io::split(self.stream);
        let sender = FrameSender::new(writer, self.closed.clone());
        let receiver = FrameReceiver {
            reader,
            buffer: BytesMut::new(),
            read_bytes: READ_BYTES_MIN,
            stalls_at: None,
            progress_bytes: 0,
            moved_at: None,
            ended: false,
            closed: self.closed,
        };
        (sender, receiver)
    }

    /// The same connection, with the identity that the peer proved.
    pub(crate) fn identified(mut self, identity: Option<String>) -> Self {
        self.identity = identity;
        self
    }

    /// The same connection, turned off when `switch` is cancelled.
    pub(crate) fn closed_by(mut self, switch: CancellationToken) -> Self {
        self.closed = switch;
        self
    }

    /// The switch that turns both halves off.
    pub(crate) fn switch(&self) -> CancellationToken {
        self.closed.clone()
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { peer, identity, .. } = self;
        f.debug_struct("Connection")
            .field("peer", peer)
            .field("identity", identity)
            .finish()
    }
}

/// The half of a [`Connection`] that sends. Dropping it tells the peer that nothing more will come;
/// frames fed but not flushed are lost.
pub struct FrameSender {
    writer: WriteHalf<Box<dyn ByteStream>>,
    outgoing: Outgoing,
    /// Whether the peer has been told that nothing more will come.
    finished: bool,
    closed: CancellationToken,
}

impl FrameSender {
    fn new(writer: WriteHalf<Box<dyn ByteStream>>, closed: CancellationToken) -> Self {
        // A stream that takes one slice at a time would need two writes: header, then payload.
        let copy_bytes_max = if writer.is_write_vectored() {
            COPY_BYTES_MAX
        } else {
            usize::MAX
        };
        let outgoing = Outgoing {
            chunks: VecDeque::new(),
            gathered: BytesMut::new(),
            bytes: 0,
            copy_bytes_max,
        };
        Self {
            writer,
            outgoing,
            finished: false,
            closed,
        }
    }

    /// Sends one frame; on return the stream has taken all of it. A send dropped halfway leaves the
    /// rest of its frame to the next call, so frames are never torn.
    ///
    /// # Errors
    ///
    /// [`NetError::Protocol`] for a frame over [`MAX_FRAME_PAYLOAD`]: nothing is sent, and the
    /// connection stays open. All other errors close it: [`NetError::ChannelClosed`],
    /// [`NetError::DeadlineExceeded`] when the peer accepts no bytes for 10 s, [`NetError::Io`].
    pub async fn send(&mut self, frame: Bytes) -> Result<()> {
        self.check_open()?;
        check_sendable(frame.len())?;
        self.outgoing.push(frame);
        self.flush().await
    }

    /// Queues one frame for the next [`flush`](Self::flush), so that several leave in one write.
    /// Flushes by itself once 256 KiB are queued.
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send).
    pub async fn feed(&mut self, frame: Bytes) -> Result<()> {
        self.check_open()?;
        check_sendable(frame.len())?;
        self.outgoing.push(frame);
        if self.outgoing.bytes >= GATHER_BYTES_MAX {
            self.flush().await
        } else {
            Ok(())
        }
    }

    /// Returns once the stream has taken every frame fed so far.
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send).
    pub async fn flush(&mut self) -> Result<()> {
        self.check_open()?;
        let closed = self.closed.clone();
        match closed.run_until_cancelled(self.write_outgoing()).await {
            Some(done) => done.inspect_err(|_| closed.cancel()),
            None => Err(NetError::ChannelClosed),
        }
    }

    /// Flushes, then tells the peer that nothing more will come. The receive half stays open.
    /// Closing twice is not an error.
    ///
    /// # Errors
    ///
    /// As [`flush`](Self::flush).
    pub async fn close(&mut self) -> Result<()> {
        let closed = self.closed.clone();
        match closed.run_until_cancelled(self.finish()).await {
            Some(done) => done.inspect_err(|_| closed.cancel()),
            None => Err(NetError::ChannelClosed),
        }
    }

    /// Sends a copy of `payload`, which the caller keeps.
    pub(crate) async fn send_copy(&mut self, payload: &[u8]) -> Result<()> {
        self.check_open()?;
        check_sendable(payload.len())?;
        self.outgoing.push_copy(payload);
        self.flush().await
    }

    /// Writes what is queued and ends the stream, even when the connection is turned off.
    pub(crate) async fn finish(&mut self) -> Result<()> {
        if self.finished {
            return Ok(());
        }
        self.write_outgoing().await?;
        self.finished = true;
        match timeout(STALL_TIMEOUT, self.writer.shutdown()).await {
            Ok(done) => done.map_err(|error| NetError::io("close a stream", error)),
            Err(_) => Err(NetError::DeadlineExceeded {
                doing: "closing a stream".into(),
            }),
        }
    }

    /// Refuses frames that could never leave, so that a caller that keeps sending cannot fill
    /// memory.
    fn check_open(&self) -> Result<()> {
        if self.finished || self.closed.is_cancelled() {
            return Err(NetError::ChannelClosed);
        }
        Ok(())
    }

    async fn write_outgoing(&mut self) -> Result<()> {
        self.outgoing.seal();
        let stalled = |_| NetError::DeadlineExceeded {
            doing: "sending to a peer".into(),
        };
        let failed = |error| NetError::io("send a frame", error);
        while !self.outgoing.chunks.is_empty() {
            let Self {
                writer, outgoing, ..
            } = self;
            let write = poll_fn(|cx| outgoing.poll_write(Pin::new(writer), cx));
            timeout(STALL_TIMEOUT, write)
                .await
                .map_err(stalled)?
                .map_err(failed)?;
        }
        timeout(STALL_TIMEOUT, self.writer.flush())
            .await
            .map_err(stalled)?
            .map_err(failed)
    }
}

impl Drop for FrameSender {
    fn drop(&mut self) {
        if !self.finished {
            // A drop can poll only once, which is enough to end a socket or a pipe. A stream that
            // needs longer ends when its other half is dropped too.
            let mut cx = Context::from_waker(Waker::noop());
            if let Poll::Ready(Err(error)) = Pin::new(&mut self.writer).poll_shutdown(&mut cx) {
                tracing::trace!(%error, "a stream was already gone when its sender was dropped");
            }
        }
    }
}

/// The half of a [`Connection`] that receives.
pub struct FrameReceiver {
    reader: ReadHalf<Box<dyn ByteStream>>,
    /// Bytes received but not yet returned: whole frames, then the start of one.
    buffer: BytesMut,
    /// Bytes to make room for in the next read.
    read_bytes: usize,
    /// Deadline for [`PROGRESS_BYTES`] or the rest of the frame, once a read has begun inside one. It
    /// outlives the call that set it, so that polling with short timeouts does not postpone it.
    stalls_at: Option<Instant>,
    /// Bytes that arrived since that deadline was set.
    progress_bytes: usize,
    /// When the last byte arrived.
    moved_at: Option<Instant>,
    /// Whether the peer has ended its stream.
    ended: bool,
    closed: CancellationToken,
}

impl FrameReceiver {
    /// As [`receive`](Self::receive), but gives up after `silence` without a byte. A frame that
    /// takes long on a slow link is waited for.
    ///
    /// # Errors
    ///
    /// Those of `receive`, and [`NetError::DeadlineExceeded`] for silence, which leaves the
    /// connection open.
    pub async fn receive_unless_silent(&mut self, silence: Duration) -> Result<Option<Bytes>> {
        self.receive_unless_silent_at(Instant::now() + silence, silence)
            .await
    }

    /// The same, but silence is allowed until `silent_at`.
    ///
    /// # Errors
    ///
    /// As [`receive_unless_silent`](Self::receive_unless_silent).
    pub async fn receive_unless_silent_at(
        &mut self,
        silent_at: Instant,
        silence: Duration,
    ) -> Result<Option<Bytes>> {
        let mut deadline = silent_at;
        loop {
            if let Ok(received) = timeout_at(deadline, self.receive()).await {
                return received;
            }
            let moved = self.moved_at.map(|at| at + silence);
            match moved.filter(|until| *until > deadline) {
                Some(until) => deadline = until,
                None => {
                    return Err(NetError::DeadlineExceeded {
                        doing: "waiting for a peer that sends nothing".into(),
                    });
                }
            }
        }
    }

    /// The next frame, or `None` when the peer closed between two frames. Dropping the future loses
    /// nothing: the next call continues the same frame.
    ///
    /// A frame is a slice of the read buffer. Copy a small one that is kept for long, or it keeps
    /// the whole buffer (up to 256 KiB) alive.
    ///
    /// # Errors
    ///
    /// All close the connection: [`NetError::Protocol`] when the peer claims more than
    /// [`MAX_FRAME_PAYLOAD`] or ends inside a frame, [`NetError::DeadlineExceeded`] when neither
    /// 64 KiB nor the rest of a started frame arrives within 10 s, [`NetError::ChannelClosed`],
    /// [`NetError::Io`].
    pub async fn receive(&mut self) -> Result<Option<Bytes>> {
        let closed = self.closed.clone();
        match closed.run_until_cancelled(self.next_frame()).await {
            Some(Ok(frame)) => Ok(frame),
            Some(Err(error)) => {
                if matches!(error, NetError::Protocol { .. }) {
                    metrics::counter!("steadfast_frames_rejected_total").increment(1);
                }
                closed.cancel();
                Err(error)
            }
            None => Err(NetError::ChannelClosed),
        }
    }

    /// Reads and discards until the peer ends its stream, even when the connection is turned off.
    pub(crate) async fn discard(&mut self) {
        while !self.ended {
            self.buffer.clear();
            self.stalls_at = None;
            if self.read().await.is_err() {
                return;
            }
        }
    }

    /// Bytes of memory for what has been received, and not been returned.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn held_bytes(&self) -> usize {
        self.buffer.capacity()
    }

    async fn next_frame(&mut self) -> Result<Option<Bytes>> {
        loop {
            let missing_bytes = match parse_header(&self.buffer)? {
                Some(payload_len) if self.buffer.len() - HEADER_BYTES >= payload_len => {
                    self.buffer.advance(HEADER_BYTES);
                    self.stalls_at = None;
                    return Ok(Some(self.buffer.split_to(payload_len).freeze()));
                }
                Some(payload_len) => HEADER_BYTES + payload_len - self.buffer.len(),
                None => HEADER_BYTES - self.buffer.len(),
            };
            if self.ended && self.buffer.is_empty() {
                return Ok(None);
            }
            if self.ended {
                return Err(NetError::Protocol {
                    expected: format!("{missing_bytes} more bytes of a frame"),
                    found: "the end of the stream".into(),
                });
            }
            self.read().await?;
        }
    }

    /// Reads what the stream has: at least one byte, or its end.
    async fn read(&mut self) -> Result<()> {
        let spare_bytes = self.buffer.capacity() - self.buffer.len();
        if spare_bytes < self.read_bytes / 2 {
            self.buffer.reserve(self.read_bytes);
        }
        let room_bytes = self.buffer.capacity() - self.buffer.len();
        if !self.buffer.is_empty() && self.stalls_at.is_none() {
            self.stalls_at = Some(Instant::now() + STALL_TIMEOUT);
            self.progress_bytes = 0;
        }
        let read = self.reader.read_buf(&mut self.buffer);
        let read = match self.stalls_at {
            Some(deadline) => {
                timeout_at(deadline, read)
                    .await
                    .map_err(|_| NetError::DeadlineExceeded {
                        doing: "waiting for the rest of a frame".into(),
                    })?
            }
            None => read.await,
        };
        let bytes = match read {
            Ok(bytes) => bytes,
            // A TLS stream whose other end took no leave. Frames tell themselves whether they are
            // whole.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => 0,
            Err(error) => return Err(NetError::io("receive a frame", error)),
        };
        self.ended = bytes == 0;
        self.progress_bytes += bytes;
        if self.progress_bytes >= PROGRESS_BYTES {
            self.stalls_at = None;
        }
        self.moved_at = Some(Instant::now());
        if bytes == room_bytes {
            self.read_bytes = (self.read_bytes * 4).min(READ_BYTES_MAX);
        }
        Ok(())
    }
}

/// Bytes waiting to be written: sealed chunks in order, then small frames still being gathered.
struct Outgoing {
    chunks: VecDeque<Bytes>,
    gathered: BytesMut,
    /// Bytes in `chunks` and `gathered` together.
    bytes: usize,
    /// Larger payloads become chunks of their own.
    copy_bytes_max: usize,
}

impl Outgoing {
    fn push(&mut self, frame: Bytes) {
        if frame.len() <= self.copy_bytes_max {
            return self.push_copy(&frame);
        }
        self.push_header(frame.len());
        self.seal();
        self.bytes += frame.len();
        self.chunks.push_back(frame);
    }

    fn push_copy(&mut self, payload: &[u8]) {
        self.gathered.reserve(HEADER_BYTES + payload.len());
        self.push_header(payload.len());
        self.gathered.extend_from_slice(payload);
        self.bytes += payload.len();
    }

    fn push_header(&mut self, payload_len: usize) {
        let payload_len =
            u32::try_from(payload_len).expect("a frame was checked against its limit");
        self.gathered.put_u32_le(payload_len);
        self.bytes += HEADER_BYTES;
    }

    /// Turns the gathered frames into the last chunk.
    fn seal(&mut self) {
        if !self.gathered.is_empty() {
            self.chunks.push_back(self.gathered.split().freeze());
        }
    }

    /// Hands as many chunks as possible to one write, and drops what was written.
    fn poll_write<W: AsyncWrite>(
        &mut self,
        writer: Pin<&mut W>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        let mut slices = [IoSlice::new(&[]); SLICES_MAX];
        let mut used = 0;
        for (slice, chunk) in slices.iter_mut().zip(&self.chunks) {
            *slice = IoSlice::new(chunk);
            used += 1;
        }
        let written = match writer.poll_write_vectored(cx, &slices[..used]) {
            Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
            Poll::Ready(Ok(written)) => written,
            Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
            Poll::Pending => return Poll::Pending,
        };
        self.advance(written);
        Poll::Ready(Ok(()))
    }

    fn advance(&mut self, mut written: usize) {
        self.bytes -= written;
        while let Some(chunk) = self.chunks.front_mut() {
            if written < chunk.len() {
                chunk.advance(written);
                return;
            }
            written -= chunk.len();
            self.chunks.pop_front();
        }
    }
}

/// The payload length of the frame that `buffer` begins with, if its header is there.
fn parse_header(buffer: &BytesMut) -> Result<Option<usize>> {
    let Some(header) = buffer.first_chunk::<HEADER_BYTES>() else {
        return Ok(None);
    };
    match usize::try_from(u32::from_le_bytes(*header)) {
        Ok(payload_len) if payload_len <= MAX_FRAME_PAYLOAD => Ok(Some(payload_len)),
        _ => Err(NetError::Protocol {
            expected: format!("a payload of at most {MAX_FRAME_PAYLOAD} bytes"),
            found: format!("one that claims {} bytes", u32::from_le_bytes(*header)),
        }),
    }
}

/// Refuses a payload that no receiver would accept.
pub(crate) fn check_sendable(payload_len: usize) -> Result<()> {
    if payload_len <= MAX_FRAME_PAYLOAD {
        return Ok(());
    }
    Err(NetError::Protocol {
        expected: format!("a payload of at most {MAX_FRAME_PAYLOAD} bytes"),
        found: format!("{payload_len} bytes to send"),
    })
}
