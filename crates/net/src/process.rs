//! Tracks which tasks belong to which process, where several processes share a runtime.
//!
//! An ordinary program is one process and does not need this: outside a [`Process`], [`spawn`] is
//! `tokio::spawn`. A simulator runs many nodes in one thread; to stop or kill one of them as the
//! operating system would, it has to reach every task that the node started. So tasks are spawned
//! through this module, and each inherits the process of the task that spawned it.

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use tokio::task::{AbortHandle, JoinHandle};

use crate::lock::lock;

thread_local! {
    /// The process of the task that this thread is polling.
    static CURRENT: RefCell<Option<Process>> = const { RefCell::new(None) };
}

/// A set of tasks that can be paused and killed together. Clones are the same process.
#[derive(Clone, Default)]
pub struct Process(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    phase: Phase,
    /// Tasks that were polled while the process was paused.
    waiting: Vec<Waker>,
    tasks: Vec<AbortHandle>,
    /// Length of `tasks` at which finished ones are removed.
    prune_at: usize,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Running,
    Paused,
    Killed,
}

impl Process {
    /// A running process without tasks.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes `future`, and everything that it spawns, part of this process.
    pub fn run<F: Future>(&self, future: F) -> InProcess<F> {
        InProcess {
            process: Some(self.clone()),
            future: Some(Box::pin(future)),
        }
    }

    /// Runs `f` as part of this process: tasks that it spawns belong to the process.
    pub fn enter<T>(&self, f: impl FnOnce() -> T) -> T {
        let _entered = Entered::new(self);
        f()
    }

    /// Stops every task where it is, as `SIGSTOP` does. Time goes on: timers that expire meanwhile
    /// fire at [`resume`](Self::resume).
    pub fn pause(&self) {
        let mut state = lock(&self.0);
        if state.phase == Phase::Running {
            state.phase = Phase::Paused;
        }
    }

    /// Resumes a paused process.
    pub fn resume(&self) {
        let waiting = {
            let mut state = lock(&self.0);
            if state.phase == Phase::Paused {
                state.phase = Phase::Running;
            }
            std::mem::take(&mut state.waiting)
        };
        waiting.into_iter().for_each(Waker::wake);
    }

    /// Ends every task where it is, as `SIGKILL` does: none is polled again. [`InProcess`] futures
    /// that were not spawned stay pending for ever.
    pub fn kill(&self) {
        let (waiting, tasks) = {
            let mut state = lock(&self.0);
            state.phase = Phase::Killed;
            (
                std::mem::take(&mut state.waiting),
                std::mem::take(&mut state.tasks),
            )
        };
        tasks.iter().for_each(AbortHandle::abort);
        waiting.into_iter().for_each(Waker::wake);
    }

    fn adopt(&self, task: AbortHandle) {
        let mut state = lock(&self.0);
        if state.phase == Phase::Killed {
            task.abort();
            return;
        }
        if state.tasks.len() >= state.prune_at {
            state.tasks.retain(|task| !task.is_finished());
            state.prune_at = 64 + 2 * state.tasks.len();
        }
        state.tasks.push(task);
    }
}

/// A future that runs only while its process does.
pub struct InProcess<F> {
    process: Option<Process>,
    /// `None` once the process has been killed.
    future: Option<Pin<Box<F>>>,
}

impl<F: Future> Future for InProcess<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let Self { process, future } = &mut *self;
        let Some(running) = future else {
            return Poll::Pending;
        };
        let Some(process) = process else {
            return running.as_mut().poll(cx);
        };
        let phase = {
            let mut state = lock(&process.0);
            if state.phase == Phase::Paused {
                state.waiting.push(cx.waker().clone());
            }
            state.phase
        };
        match phase {
            Phase::Running => {
                let _entered = Entered::new(process);
                running.as_mut().poll(cx)
            }
            Phase::Paused => Poll::Pending,
            Phase::Killed => {
                *future = None;
                Poll::Pending
            }
        }
    }
}

/// Makes a process the current one of this thread until dropped.
struct Entered(Option<Process>);

impl Entered {
    fn new(process: &Process) -> Self {
        Self(CURRENT.replace(Some(process.clone())))
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        CURRENT.set(self.0.take());
    }
}

/// Makes `future` part of the calling process.
pub fn in_current<F: Future>(future: F) -> InProcess<F> {
    InProcess {
        process: CURRENT.with_borrow(Clone::clone),
        future: Some(Box::pin(future)),
    }
}

/// Spawns a task in the calling process.
///
/// # Panics
///
/// Outside a tokio runtime.
pub fn spawn<F>(future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    let Some(process) = CURRENT.with_borrow(Clone::clone) else {
        return tokio::spawn(future);
    };
    let task = tokio::spawn(process.run(future));
    process.adopt(task.abort_handle());
    task
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    use super::*;

    /// Counts milliseconds in a task spawned by a task of the process.
    fn ticking(process: &Process) -> Arc<AtomicU32> {
        let ticks = Arc::new(AtomicU32::new(0));
        let counter = Arc::clone(&ticks);
        tokio::spawn(process.run(async move {
            spawn(async move {
                loop {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    counter.fetch_add(1, Ordering::Relaxed);
                }
            });
        }));
        ticks
    }

    #[tokio::test(start_paused = true)]
    async fn a_paused_process_does_nothing_until_it_goes_on() {
        let process = Process::new();
        let ticks = ticking(&process);
        tokio::time::sleep(Duration::from_millis(10)).await;
        process.pause();
        let before = ticks.load(Ordering::Relaxed);
        assert!(before >= 9, "{before}");
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(ticks.load(Ordering::Relaxed), before);
        process.resume();
        tokio::time::sleep(Duration::from_millis(10)).await;
        let after = ticks.load(Ordering::Relaxed);
        assert!((before + 9..before + 12).contains(&after), "{after}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_killed_process_lets_go_of_its_tasks() {
        let process = Process::new();
        let ticks = ticking(&process);
        tokio::time::sleep(Duration::from_millis(10)).await;
        process.kill();
        let before = ticks.load(Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert_eq!(ticks.load(Ordering::Relaxed), before);
        assert_eq!(Arc::strong_count(&ticks), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_into_a_killed_process_never_returns() {
        let process = Process::new();
        process.kill();
        let call = process.run(async { 1 });
        let waited = tokio::time::timeout(Duration::from_secs(1), call).await;
        assert!(waited.is_err());
    }
}
