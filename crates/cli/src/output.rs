//! All output of the program. In the whole crate, the macros of this module shadow those of the
//! standard library, which panic when a line cannot be written.
//!
//! ```text
//!                         ┌─ a verb that asks ──────────► stdout, stderr
//!   println!, eprintln!,  │
//!   the log, progress ────┴─ a node ──► queue ─► thread ► stdout, stderr
//! ```
//!
//! No output error ends the program in the middle of its work. A reader that went away is not an
//! error: further output is dropped. A device that accepts nothing fails, in the end, the verb whose
//! answer it was to get ([`end`]). A node's work must not depend on who reads its output: [`detach`]
//! gives its lines to a thread; when that is stuck, they are dropped and counted.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::process::ExitCode;
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use steadfast::plural;

use crate::failure::Failure;

/// Bytes of lines waiting for their reader; beyond this, lines are dropped.
const QUEUE_BYTES_MAX: usize = 1024 * 1024;

/// How long the end of the program waits for a reader that takes nothing.
const END_PATIENCE: Duration = Duration::from_secs(1);

static STDOUT: Stream = Stream::new(|| Box::new(io::stdout()));
static STDERR: Stream = Stream::new(|| Box::new(io::stderr()));

/// As in the standard library, but never panics.
macro_rules! print {
    ($($words:tt)*) => { $crate::output::out(&format!($($words)*)) };
}

/// As in the standard library, but never panics.
macro_rules! println {
    ($($words:tt)*) => { $crate::output::out(&format!("{}\n", format_args!($($words)*))) };
}

/// As in the standard library, but never panics.
macro_rules! eprint {
    ($($words:tt)*) => { $crate::output::err(&format!($($words)*)) };
}

/// As in the standard library, but never panics.
macro_rules! eprintln {
    ($($words:tt)*) => { $crate::output::err(&format!("{}\n", format_args!($($words)*))) };
}

/// Writes `text` to stdout, unchanged.
pub(crate) fn out(text: &str) {
    STDOUT.say(text.as_bytes());
}

/// Writes `text` to stderr, unchanged.
pub(crate) fn err(text: &str) {
    STDERR.say(text.as_bytes());
}

/// Whether stdout has lost its reader or device.
pub(crate) fn is_lost() -> bool {
    STDOUT.lost.get().is_some()
}

/// From here on no line waits for its reader: this process is a node.
///
/// # Errors
/// When no thread can be started.
pub(crate) fn detach() -> Result<(), Failure> {
    STDOUT.detach()?;
    detach_log()
}

/// The same for stderr alone, for a process whose stdout is read line by line: a node inside a
/// program that drives it.
///
/// # Errors
/// When no thread can be started.
pub(crate) fn detach_log() -> Result<(), Failure> {
    STDERR.detach()
}

/// Whether people watch stderr as it is written.
pub(crate) fn is_watched() -> bool {
    io::stderr().is_terminal()
}

/// Flushes all output, as far as it is taken; returns how the program ends.
pub(crate) fn end(code: ExitCode) -> ExitCode {
    STDOUT.drain();
    let code = match STDOUT.lost.get() {
        Some(Some(why)) if STDOUT.queue.get().is_none() && code == ExitCode::SUCCESS => {
            Failure::new(
                format!("the answer could not be written to stdout: {why}"),
                "the command has done its work all the same",
                "redirect stdout to a place with room, and run the command again if that changes nothing",
            )
            .print()
        }
        _ => code,
    };
    STDERR.drain();
    code
}

/// The log's writer: a line that cannot be written is dropped.
pub(crate) struct Log;

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        STDERR.say(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

type Open = fn() -> Box<dyn Write>;

/// One of the two streams.
struct Stream {
    open: Open,
    queue: OnceLock<Queue>,
    /// Set when it no longer takes anything: the reason, unless its reader went away.
    lost: OnceLock<Option<String>>,
}

impl Stream {
    const fn new(open: Open) -> Self {
        Self {
            open,
            queue: OnceLock::new(),
            lost: OnceLock::new(),
        }
    }

    fn say(&self, bytes: &[u8]) {
        if let Some(queue) = self.queue.get() {
            return queue.push(bytes);
        }
        if self.lost.get().is_none()
            && let Err(error) = write(&mut *(self.open)(), bytes)
        {
            let why = (error.kind() != ErrorKind::BrokenPipe).then(|| error.to_string());
            // The first reason stays.
            self.lost.set(why).ok();
        }
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "only a thread can wait for a reader while the others work"
    )]
    fn detach(&'static self) -> Result<(), Failure> {
        let queue = self.queue.get_or_init(Queue::default);
        let open = self.open;
        let started = std::thread::Builder::new()
            .name("output".to_owned())
            .spawn(move || queue.run(&mut *open()));
        started
            .map(|_| ())
            .map_err(|error| Failure::system("cannot start a thread", &error))
    }

    fn drain(&self) {
        if let Some(queue) = self.queue.get() {
            queue.drain(END_PATIENCE);
        }
    }
}

/// Lines on their way to a thread that writes them.
#[derive(Default)]
struct Queue {
    state: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Default)]
struct Waiting {
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
    /// Lines dropped for lack of room since the last one was written.
    dropped: u64,
    is_writing: bool,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // A panic elsewhere leaves the lines intact.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, line: &[u8]) {
        let mut waiting = self.lock();
        if waiting.bytes + line.len() > QUEUE_BYTES_MAX {
            waiting.dropped += 1;
            return;
        }
        waiting.bytes += line.len();
        waiting.lines.push_back(line.to_owned());
        drop(waiting);
        self.changed.notify_all();
    }

    /// Writes lines as they arrive, forever. A line that is not taken is dropped: a full device may
    /// have room again.
    fn run(&self, to: &mut dyn Write) {
        loop {
            let line = self.next();
            write(to, &line).ok();
            self.lock().is_writing = false;
            self.changed.notify_all();
        }
    }

    fn next(&self) -> Vec<u8> {
        let empty = |waiting: &mut Waiting| waiting.lines.is_empty() && waiting.dropped == 0;
        let waiting = self.changed.wait_while(self.lock(), empty);
        let mut waiting = waiting.unwrap_or_else(PoisonError::into_inner);
        waiting.is_writing = true;
        if let Some(line) = waiting.lines.pop_front() {
            waiting.bytes -= line.len();
            return line;
        }
        let dropped = std::mem::take(&mut waiting.dropped);
        let lines = plural(dropped, "line was", "lines were");
        format!("{dropped} {lines} dropped here: nobody was reading the output\n").into_bytes()
    }

    /// Waits until all lines are written, or none has been for `patience`.
    fn drain(&self, patience: Duration) {
        let mut waiting = self.lock();
        while !waiting.lines.is_empty() || waiting.is_writing || waiting.dropped > 0 {
            let (next, timeout) = self
                .changed
                .wait_timeout(waiting, patience)
                .unwrap_or_else(PoisonError::into_inner);
            if timeout.timed_out() {
                return;
            }
            waiting = next;
        }
    }
}

/// Writes all of it at once.
fn write(to: &mut dyn Write, bytes: &[u8]) -> io::Result<()> {
    to.write_all(bytes).and_then(|()| to.flush())
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, channel};

    use super::*;

    /// Lets each write through only when allowed.
    struct Gate(Receiver<()>, std::sync::mpsc::Sender<Vec<u8>>);

    impl Write for Gate {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.recv().map_err(io::Error::other)?;
            self.1.send(bytes.to_owned()).map_err(io::Error::other)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "a thread that is stuck")]
    fn who_says_more_than_is_taken_does_not_wait_and_is_told_how_much_was_dropped() {
        let queue: &'static Queue = Box::leak(Box::default());
        let (allow, allowed) = channel();
        let (wrote, written) = channel();
        std::thread::spawn(move || queue.run(&mut Gate(allowed, wrote)));
        let line = vec![b'x'; QUEUE_BYTES_MAX / 4];
        queue.push(b"first");
        // The first line is with the thread, or on its way to it.
        for _ in 0..7 {
            queue.push(&line);
        }
        queue.drain(Duration::from_millis(10));
        let dropped = queue.lock().dropped;
        assert!((3..=4).contains(&dropped), "{dropped}");
        for _ in 0..20 {
            allow.send(()).expect("the thread runs");
        }
        queue.drain(Duration::from_secs(20));
        let written: Vec<_> = written.try_iter().collect();
        assert_eq!(written[0], b"first");
        let last = String::from_utf8_lossy(written.last().expect("lines")).into_owned();
        assert!(
            last.starts_with(&format!("{dropped} lines were dropped")),
            "{last}"
        );
    }
}
