//! Tells a verb that runs until stopped when to stop.

use std::io::Read;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

use crate::failure::Failure;

/// Ctrl-C, SIGTERM and, if requested, the end of stdin.
pub(crate) struct Stop {
    interrupt: Signal,
    terminate: Signal,
    stdin_closed: Option<oneshot::Receiver<()>>,
}

impl Stop {
    /// From here on neither signal ends the process by itself.
    ///
    /// # Errors
    /// When the system cannot install a handler.
    pub(crate) fn new(with_stdin: bool) -> Result<Self, Failure> {
        let handler = |kind| {
            signal(kind).map_err(|error| Failure::system("cannot listen for signals", &error))
        };
        Ok(Self {
            interrupt: handler(SignalKind::interrupt())?,
            terminate: handler(SignalKind::terminate())?,
            stdin_closed: with_stdin.then(stdin_closed).transpose()?,
        })
    }

    /// Returns when the verb should stop.
    pub(crate) async fn wait(&mut self) {
        let stdin_closed = async {
            match &mut self.stdin_closed {
                // An error means that the reading thread has ended, and so has stdin.
                Some(closed) => {
                    closed.await.ok();
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            () = stdin_closed => {}
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "nothing else can wait for stdin")]
fn stdin_closed() -> Result<oneshot::Receiver<()>, Failure> {
    let (closed, receiver) = oneshot::channel();
    let read = move || {
        let mut sink = [0; 1024];
        while matches!(std::io::stdin().read(&mut sink), Ok(count) if count > 0) {}
        // Nobody is waiting any more if the node ended for another reason.
        closed.send(()).ok();
    };
    let started = std::thread::Builder::new()
        .name("stdin".to_owned())
        .spawn(read);
    started.map_err(|error| Failure::system("cannot start a thread", &error))?;
    Ok(receiver)
}
