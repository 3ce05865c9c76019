//! Child processes that never outlive this one: this program again, with another verb.
//!
//! The output of all children arrives in one queue, in order per child, with the time at which it
//! was read. A child's end comes after all of its output. Dropping a [`Child`] kills it.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{ChildStdin, Command};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::failure::Failure;

/// Lines of children that wait to be read; beyond this, the children wait.
const QUEUE_LINES_MAX: usize = 4096;

/// Something that a child did.
#[derive(Debug)]
pub(crate) struct ChildEvent {
    /// Which child, as given to [`Child::start`].
    pub(crate) who: usize,
    /// Which life of that child.
    pub(crate) life: u64,
    /// When it was seen.
    pub(crate) at: Instant,
    /// What it did.
    pub(crate) what: ChildNews,
}

/// See [`ChildEvent`].
#[derive(Debug)]
pub(crate) enum ChildNews {
    /// A line on stdout.
    Line(String),
    /// The end. Nothing more comes from this life.
    Ended(ExitStatus),
}

/// The queue of all children's events.
pub(crate) type ChildEvents = mpsc::Receiver<ChildEvent>;

/// Makes the queue.
pub(crate) fn events() -> (mpsc::Sender<ChildEvent>, ChildEvents) {
    mpsc::channel(QUEUE_LINES_MAX)
}

/// A running child.
pub(crate) struct Child {
    pid: u32,
    stdin: Option<ChildStdin>,
    kill: Option<oneshot::Sender<()>>,
}

impl Child {
    /// Starts this program with `arguments`; its stderr is appended to the file `log`.
    ///
    /// # Errors
    /// When the process cannot be started.
    pub(crate) fn start<A: AsRef<OsStr>>(
        who: usize,
        life: u64,
        arguments: impl IntoIterator<Item = A>,
        log: &Path,
        events: mpsc::Sender<ChildEvent>,
    ) -> Result<Self, Failure> {
        let failed = |error| Failure::system("cannot start a process", &error);
        let program = std::env::current_exe().map_err(failed)?;
        let mut child = Command::new(program)
            .args(arguments)
            // Ctrl-C in a terminal reaches only this process, which ends its children in order.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(open_log(log).map_err(failed)?)
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        let pid = child.id().unwrap_or_default();
        let stdin = child.stdin.take();
        let (kill, killed) = oneshot::channel();
        tokio::spawn(follow(child, killed, move |what| {
            let (events, at) = (events.clone(), Instant::now());
            async move {
                // Nobody is listening any more when this program is about to end.
                events
                    .send(ChildEvent {
                        who,
                        life,
                        at,
                        what,
                    })
                    .await
                    .ok();
            }
        }));
        Ok(Self {
            pid,
            stdin,
            kill: Some(kill),
        })
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Sends SIGKILL. An event reports its end.
    pub(crate) fn kill(&mut self) {
        self.kill.take();
    }

    /// Writes a line to its stdin; false when the child has ended or is ending.
    pub(crate) async fn tell(&mut self, line: &str) -> bool {
        let Some(stdin) = &mut self.stdin else {
            return false;
        };
        stdin
            .write_all(format!("{line}\n").as_bytes())
            .await
            .is_ok()
    }

    /// Closes its stdin, which asks it to close and end. An event reports its end.
    pub(crate) fn ask_to_end(&mut self) {
        self.stdin.take();
    }
}

/// Reads the child's output until it ends; kills it when the other end of `killed` is dropped.
async fn follow<F: Future<Output = ()>>(
    mut child: tokio::process::Child,
    mut killed: oneshot::Receiver<()>,
    tell: impl Fn(ChildNews) -> F,
) {
    let stdout = child.stdout.take().expect("stdout is piped");
    let mut lines = BufReader::new(stdout).lines();
    let mut is_killed = false;
    loop {
        tokio::select! {
            biased;
            _ = &mut killed, if !is_killed => {
                is_killed = true;
                // An error means that it has already ended.
                child.start_kill().ok();
            }
            line = lines.next_line() => match line {
                Ok(Some(line)) => tell(ChildNews::Line(line)).await,
                Ok(None) | Err(_) => break,
            },
        }
    }
    if let Ok(status) = child.wait().await {
        tell(ChildNews::Ended(status)).await;
    }
}

/// Asks every child to end, kills those that have not ended in time, and waits for all.
pub(crate) async fn end_all(
    children: &mut [Option<Child>],
    events: &mut ChildEvents,
    patience: Duration,
) {
    children.iter_mut().flatten().for_each(Child::ask_to_end);
    let deadline = Instant::now() + patience;
    while children.iter().any(Option::is_some) {
        match tokio::time::timeout_at(deadline, events.recv()).await {
            Ok(Some(event)) if matches!(event.what, ChildNews::Ended(_)) => {
                children[event.who] = None;
            }
            Ok(Some(_)) => {}
            Ok(None) => return,
            Err(_) => break,
        }
    }
    children.iter_mut().flatten().for_each(Child::kill);
    while children.iter().any(Option::is_some) {
        match events.recv().await {
            Some(event) if matches!(event.what, ChildNews::Ended(_)) => children[event.who] = None,
            Some(_) => {}
            None => return,
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "a child needs a real file for its stderr"
)]
fn open_log(path: &Path) -> std::io::Result<std::fs::File> {
    std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
}
