//! The runtime beneath the blocking API, and how a thread waits for a future on it.
//!
//! The future is polled on the calling thread; the runtime only watches its sockets and timers and
//! wakes that thread. So a frame crosses no queue between threads, and blocking inside an async
//! context blocks one of its threads and nothing else: the caller's own runtime is not involved.

use std::io;
use std::pin::pin;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use tokio::runtime::{Builder, Handle, Runtime};
use tokio::task::coop::unconstrained;

use crate::error::{NetError, Result};
use crate::lock::lock;

/// Threads that watch sockets and timers and run the accept loops of blocking dispatchers.
const WORKER_THREADS: usize = 2;

/// Maximum number of threads for blocking handlers, across all dispatchers of the process. Each
/// dispatcher has its own lower limit; this one only has to stay out of their way.
const HANDLER_THREADS_MAX: usize = 16 * 1024;

/// The runtime of this crate, started on first use. It lives as long as the process.
///
/// # Errors
///
/// [`NetError::Io`] when the operating system refuses threads or descriptors. The next call tries
/// again.
pub(crate) fn runtime() -> Result<Handle> {
    static RUNTIME: Mutex<Option<Runtime>> = Mutex::new(None);
    let mut runtime = lock(&RUNTIME);
    if let Some(runtime) = runtime.as_ref() {
        return Ok(runtime.handle().clone());
    }
    let started = Builder::new_multi_thread()
        .worker_threads(WORKER_THREADS)
        .max_blocking_threads(HANDLER_THREADS_MAX)
        .thread_name("steadfast-net")
        .enable_all()
        .build()
        .map_err(|error: io::Error| NetError::io("start the network runtime", error))?;
    Ok(runtime.insert(started).handle().clone())
}

/// Polls `future` on the calling thread until it completes. `runtime` watches the sockets and
/// timers that the future creates.
pub(crate) fn block_on<F: Future>(runtime: &Handle, future: F) -> F::Output {
    let _context = runtime.enter();
    // Inside another runtime's task, that task's budget would run out and never be refilled.
    let mut future = pin!(unconstrained(future));
    let parked = Arc::new(Parked::default());
    let waker = Waker::from(Arc::clone(&parked));
    let mut cx = Context::from_waker(&waker);
    loop {
        match future.as_mut().poll(&mut cx) {
            Poll::Ready(output) => return output,
            Poll::Pending => parked.wait(),
        }
    }
}

/// The output of `future` if a single poll completes it.
pub(crate) fn poll_once<F: Future>(runtime: &Handle, future: F) -> Option<F::Output> {
    let _context = runtime.enter();
    match pin!(unconstrained(future)).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => Some(output),
        Poll::Pending => None,
    }
}

/// A thread that waits to be woken. Not `thread::park`, whose token other code may consume.
#[derive(Default)]
struct Parked {
    woken: Mutex<bool>,
    changed: Condvar,
}

impl Parked {
    fn wait(&self) {
        let woken = lock(&self.woken);
        let mut woken = self
            .changed
            .wait_while(woken, |woken| !*woken)
            .unwrap_or_else(PoisonError::into_inner);
        *woken = false;
    }
}

impl Wake for Parked {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        *lock(&self.woken) = true;
        self.changed.notify_one();
    }
}
