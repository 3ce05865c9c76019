//! One connection: a pipe of bytes in each direction, each chunk with its arrival time, and the
//! state of both ends. It draws no randomness and knows no other connection.

use std::collections::VecDeque;
use std::io;
use std::task::Waker;
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::io::ReadBuf;
use tokio::time::Instant;

use super::links::Pair;

/// Maximum bytes written but unread in one direction: about what a TCP connection holds.
pub(super) const WINDOW_BYTES: usize = 256 * 1024;

/// How long a connection tolerates silence in one direction, as with `TCP_USER_TIMEOUT`.
pub(super) const SILENCE_MAX: Duration = Duration::from_secs(15);

/// When a chunk arrives. `Held` ones wait until their direction is heard again.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Due {
    At(Instant),
    Held,
}

impl Due {
    fn passed(self, now: Instant) -> bool {
        matches!(self, Self::At(at) if at <= now)
    }

    fn instant(self) -> Option<Instant> {
        match self {
            Self::At(at) => Some(at),
            Self::Held => None,
        }
    }
}

/// The bytes sent by one write.
struct Chunk {
    due: Due,
    bytes: Bytes,
}

/// One direction of a connection. Times never decrease from the front chunk to the end of stream;
/// held chunks come after all others.
#[derive(Default)]
pub(super) struct Pipe {
    chunks: VecDeque<Chunk>,
    /// Sum over all chunks, at most [`WINDOW_BYTES`].
    bytes: usize,
    /// When the receiver learns that nothing more will come.
    eof: Option<Due>,
    /// When the receiver learns that the connection is gone.
    reset: Option<Due>,
    /// No new chunk arrives before this.
    last: Option<Instant>,
    /// Since when nothing has got through.
    silent_since: Option<Instant>,
    /// Discards whatever is written: the other side no longer wants it.
    discards: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Pipe {
    pub(super) fn room(&self) -> usize {
        WINDOW_BYTES - self.bytes
    }

    pub(super) fn is_silent(&self) -> bool {
        self.silent_since.is_some()
    }

    pub(super) fn discards(&self) -> bool {
        self.discards
    }

    /// Sends `bytes`; true if the reader has to look.
    fn push(&mut self, bytes: Bytes, now: Instant, delay: Duration) -> bool {
        let due = self.due(now, delay);
        let first = self.chunks.is_empty();
        self.bytes += bytes.len();
        assert!(
            self.bytes <= WINDOW_BYTES,
            "a write stays within the window"
        );
        self.chunks.push_back(Chunk { due, bytes });
        first
    }

    /// When a chunk sent now arrives: in order, so not before the one ahead of it.
    fn due(&mut self, now: Instant, delay: Duration) -> Due {
        if self.is_silent() {
            return Due::Held;
        }
        let at = self.in_order(now + delay);
        self.last = Some(at);
        Due::At(at)
    }

    fn in_order(&self, at: Instant) -> Instant {
        self.last.map_or(at, |last| last.max(at))
    }

    /// Tells the receiver that the connection is gone, after what is already on its way.
    fn reset(&mut self, now: Instant, delay: Duration) {
        let due = if self.is_silent() {
            Due::Held
        } else {
            Due::At(self.in_order(now + delay))
        };
        self.reset = match (self.reset, due) {
            (Some(Due::At(old)), Due::At(new)) => Some(Due::At(old.min(new))),
            (Some(old @ Due::At(_)), Due::Held) => Some(old),
            (_, due) => Some(due),
        };
        self.discards = true;
    }

    /// Moves what has arrived into `buffer`; true if there was anything.
    fn read(&mut self, now: Instant, buffer: &mut ReadBuf<'_>) -> bool {
        let before = buffer.filled().len();
        while let Some(chunk) = self.chunks.front_mut() {
            let count = chunk.bytes.len().min(buffer.remaining());
            if count == 0 || !chunk.due.passed(now) {
                break;
            }
            buffer.put_slice(&chunk.bytes[..count]);
            chunk.bytes.advance(count);
            self.bytes -= count;
            if chunk.bytes.is_empty() {
                self.chunks.pop_front();
            }
        }
        buffer.filled().len() > before
    }

    /// When the next chunk arrives, if known.
    fn next_due(&self) -> Option<Instant> {
        let front = self.chunks.front().map(|chunk| chunk.due);
        let dues = [front, self.eof, self.reset].into_iter().flatten();
        dues.filter_map(Due::instant).min()
    }

    fn dues(&mut self) -> impl Iterator<Item = &mut Due> {
        let chunks = self.chunks.iter_mut().map(|chunk| &mut chunk.due);
        chunks.chain(&mut self.eof).chain(&mut self.reset)
    }

    /// Lets nothing through any more; true if that holds something up.
    fn silence(&mut self, now: Instant) -> bool {
        self.silent_since = Some(now);
        let mut held = false;
        for due in self.dues().filter(|due| !due.passed(now)) {
            *due = Due::Held;
            held = true;
        }
        held
    }

    /// Lets everything through again; held data arrives after `delay`.
    fn hear(&mut self, now: Instant, delay: Duration) {
        self.silent_since = None;
        let at = self.in_order(now + delay);
        let mut held = false;
        for due in self.dues().filter(|due| **due == Due::Held) {
            *due = Due::At(at);
            held = true;
        }
        if held {
            self.last = Some(at);
        }
    }

    /// Discards what has not arrived.
    fn lose(&mut self, now: Instant) {
        self.chunks.retain(|chunk| chunk.due.passed(now));
        self.bytes = self.chunks.iter().map(|chunk| chunk.bytes.len()).sum();
        self.eof = self.eof.filter(|due| due.passed(now));
        self.reset = self.reset.filter(|due| due.passed(now));
        self.last = None;
    }
}

/// State of one end.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// A process holds it.
    Open,
    /// No process holds it. The kernel answers bytes that arrive here with a reset.
    Closed,
    /// Its machine is off.
    Lost,
}

/// Result of a poll: an outcome, or a wait, until a given time if one is known.
pub(super) enum Step<T> {
    Done(io::Result<T>),
    Wait(Option<Instant>),
}

impl<T> Step<T> {
    pub(super) fn failed(kind: io::ErrorKind) -> Self {
        Self::Done(Err(kind.into()))
    }
}

/// A connection. End 0 dialled, end 1 was dialled; pipe 0 carries what end 0 writes.
pub(super) struct Connection {
    hosts: [usize; 2],
    ends: [End; 2],
    pipes: [Pipe; 2],
    /// It was silent for too long; both ends see a timeout.
    timed_out: bool,
}

impl Connection {
    pub(super) fn new(hosts: [usize; 2]) -> Self {
        Self {
            hosts,
            ends: [End::Open; 2],
            pipes: <[Pipe; 2]>::default(),
            timed_out: false,
        }
    }

    /// From the host at `end` to the other.
    pub(super) fn pair(&self, end: usize) -> Pair {
        (self.hosts[end], self.hosts[1 - end])
    }

    pub(super) fn end(&self, end: usize) -> End {
        self.ends[end]
    }

    /// The pipe that `end` writes into.
    pub(super) fn outgoing(&self, end: usize) -> &Pipe {
        &self.pipes[end]
    }

    /// No process holds either end.
    pub(super) fn is_over(&self) -> bool {
        !self.ends.contains(&End::Open)
    }

    /// Whether a process at this end has shut down its side, or there is nothing left to shut down.
    pub(super) fn is_shut(&self, end: usize) -> bool {
        self.pipes[end].eof.is_some()
    }

    /// Reads what has arrived at `end`.
    pub(super) fn read(
        &mut self,
        end: usize,
        now: Instant,
        buffer: &mut ReadBuf<'_>,
        wakes: &mut Vec<Waker>,
    ) -> Step<()> {
        if self.ends[end] != End::Open {
            return Step::failed(io::ErrorKind::ConnectionReset);
        }
        let pipe = &mut self.pipes[1 - end];
        if buffer.remaining() == 0 {
            return Step::Done(Ok(()));
        }
        if pipe.read(now, buffer) {
            wakes.extend(pipe.writer.take());
            return Step::Done(Ok(()));
        }
        if pipe.eof.is_some_and(|due| due.passed(now)) {
            return Step::Done(Ok(()));
        }
        if pipe.reset.is_some_and(|due| due.passed(now)) {
            return Step::failed(io::ErrorKind::ConnectionReset);
        }
        if self.expire(now) {
            return Step::failed(io::ErrorKind::TimedOut);
        }
        let next_due = self.pipes[1 - end].next_due();
        Step::Wait(next_due.into_iter().chain(self.expires_at()).min())
    }

    /// Whether `end` may write, or why not.
    pub(super) fn check_write(&mut self, end: usize, now: Instant) -> Result<(), io::ErrorKind> {
        let incoming = &self.pipes[1 - end];
        let reset = incoming.reset.is_some_and(|due| due.passed(now));
        let ended = incoming.eof.is_some_and(|due| due.passed(now));
        if self.ends[end] != End::Open || (reset && !ended) {
            Err(io::ErrorKind::ConnectionReset)
        } else if reset || self.pipes[end].eof.is_some() {
            Err(io::ErrorKind::BrokenPipe)
        } else if self.expire(now) {
            Err(io::ErrorKind::TimedOut)
        } else {
            Ok(())
        }
    }

    /// When a writer at `end` whose window is full has to look again, even if nobody reads.
    pub(super) fn write_deadline(&self, end: usize) -> Option<Instant> {
        let reset = self.pipes[1 - end].reset.and_then(Due::instant);
        reset.into_iter().chain(self.expires_at()).min()
    }

    /// Wakes `waker` when there is something to read at `end`.
    pub(super) fn park_reader(&mut self, end: usize, waker: &Waker, wakes: &mut Vec<Waker>) {
        park(&mut self.pipes[1 - end].reader, waker, wakes);
    }

    /// Wakes `waker` when there is room to write at `end`.
    pub(super) fn park_writer(&mut self, end: usize, waker: &Waker, wakes: &mut Vec<Waker>) {
        park(&mut self.pipes[end].writer, waker, wakes);
    }

    /// Sends `bytes` from `end`. Returns the reader to wake, if there is one.
    pub(super) fn send(
        &mut self,
        end: usize,
        bytes: Bytes,
        now: Instant,
        delay: Duration,
    ) -> Option<Waker> {
        let pipe = &mut self.pipes[end];
        let is_news = pipe.push(bytes, now, delay);
        pipe.reader.take_if(|_| is_news)
    }

    /// Tells the other side that `end` will write nothing more.
    pub(super) fn shut(
        &mut self,
        end: usize,
        now: Instant,
        delay: Duration,
        wakes: &mut Vec<Waker>,
    ) {
        let pipe = &mut self.pipes[end];
        if pipe.eof.is_none() && !pipe.discards {
            pipe.eof = Some(pipe.due(now, delay));
            wakes.extend(pipe.reader.take());
        }
    }

    /// Releases `end`: its process is gone or no longer wants it.
    pub(super) fn close(&mut self, end: usize) {
        self.ends[end] = End::Closed;
    }

    /// Whether bytes wait for a closed `end`, and nothing keeps them from arriving.
    pub(super) fn must_refuse(&self, end: usize) -> bool {
        let incoming = &self.pipes[1 - end];
        self.ends[end] == End::Closed && !incoming.is_silent() && !incoming.chunks.is_empty()
    }

    /// Answers the bytes on their way to the closed `end` with a reset. `delay` is that of the way
    /// back.
    pub(super) fn refuse(&mut self, end: usize, now: Instant, delay: Duration) {
        let incoming = &mut self.pipes[1 - end];
        incoming.chunks.clear();
        incoming.bytes = 0;
        incoming.discards = true;
        let arrives = incoming.in_order(now);
        self.pipes[end].reset(arrives, delay);
    }

    /// Tells the other side that `end` is gone.
    pub(super) fn reset(&mut self, end: usize, now: Instant, delay: Duration) {
        self.pipes[end].reset(now, delay);
    }

    /// The machine at `end` loses power: what it sent that has not arrived is lost.
    pub(super) fn power_off(&mut self, end: usize, now: Instant) {
        self.pipes[end].lose(now);
        if self.ends[end] == End::Open {
            self.ends[end] = End::Lost;
        }
    }

    /// When the peer of `end` sends its next keepalive, if `end` has fallen silent.
    pub(super) fn keepalive(&self, end: usize) -> Option<Instant> {
        self.pipes[end]
            .silent_since
            .map(|since| since + SILENCE_MAX)
    }

    /// Silences or restores the direction from `end`, after `delay`. True if that held something.
    pub(super) fn set_silent(
        &mut self,
        end: usize,
        silent: bool,
        now: Instant,
        delay: Duration,
    ) -> bool {
        if silent == self.pipes[end].is_silent() {
            return false;
        }
        self.expire(now);
        if silent {
            return self.pipes[end].silence(now);
        }
        self.pipes[end].hear(now, delay);
        false
    }

    /// Wakes everyone who waits at either end.
    pub(super) fn wake_all(&mut self, wakes: &mut Vec<Waker>) {
        for pipe in &mut self.pipes {
            wakes.extend(pipe.reader.take());
            wakes.extend(pipe.writer.take());
        }
    }

    /// Ends the connection if it was silent for too long; true if it has timed out.
    fn expire(&mut self, now: Instant) -> bool {
        if self.expires_at().is_some_and(|at| at <= now) {
            self.timed_out = true;
        }
        self.timed_out
    }

    fn expires_at(&self) -> Option<Instant> {
        let silent = self.pipes.iter().filter_map(|pipe| pipe.silent_since);
        silent.min().map(|since| since + SILENCE_MAX)
    }
}

/// Puts `waker` into `place`. A previous waker of another task is woken rather than dropped,
/// because dropping it may run code that needs the lock held here.
pub(super) fn park(place: &mut Option<Waker>, waker: &Waker, wakes: &mut Vec<Waker>) {
    if !place.as_ref().is_some_and(|old| old.will_wake(waker)) {
        wakes.extend(place.replace(waker.clone()));
    }
}
