//! What an environment, its iterators and its calls run on: a runtime of their own, or the application's.
//!
//! A timer or socket that is polled on a runtime that has ended panics. So every call holds its runtime
//! while it is under way, and one of our own ends when its environment has closed *and* the last such
//! call has returned. What is called after that finds it gone, and says so.

use std::future::Future;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::runtime::{Builder, Handle, Runtime, RuntimeFlavor};

/// How long the end of a runtime that has nothing left to run may take.
const END_MAX: Duration = Duration::from_secs(1);

/// A runtime of our own. Dropped, it ends without being waited for, which is allowed anywhere.
pub(crate) struct OwnRuntime(Option<Runtime>);

impl OwnRuntime {
    /// # Errors
    /// When the system has no threads to give.
    pub(crate) fn new(threads: &str, workers: usize) -> std::io::Result<Arc<Self>> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(workers)
            .thread_name(threads)
            .enable_all()
            .build()?;
        Ok(Arc::new(Self(Some(runtime))))
    }

    /// Gives the runtime up. Where nobody else holds it and this thread may wait, its threads have ended
    /// when this returns; an async task may not wait.
    pub(crate) fn end(self: Arc<Self>) {
        let may_wait = Handle::try_current().is_err();
        if may_wait
            && let Some(mut alone) = Arc::into_inner(self)
            && let Some(runtime) = alone.0.take()
        {
            runtime.shutdown_timeout(END_MAX);
        }
    }

    /// What runs on this runtime for as long as it lasts.
    pub(crate) fn ground(self: &Arc<Self>) -> Ground {
        Ground::Own(Arc::downgrade(self))
    }

    fn handle(&self) -> Handle {
        let runtime = self.0.as_ref().expect("taken by the end alone");
        runtime.handle().clone()
    }
}

impl Drop for OwnRuntime {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// What calls run on, whoever polls them. Not a handle of our own runtime: that would keep its descriptors
/// open when it has ended.
#[derive(Clone)]
pub(crate) enum Ground {
    Own(Weak<OwnRuntime>),
    /// The application's.
    Guest(Handle),
}

/// Keeps a runtime of our own from ending.
pub(crate) struct Held {
    pub(crate) handle: Handle,
    _own: Option<Arc<OwnRuntime>>,
}

impl Ground {
    /// Holds the runtime; `None` when it has ended with its environment.
    pub(crate) fn hold(&self) -> Option<Held> {
        let own = match self {
            Self::Own(own) => own.upgrade()?,
            Self::Guest(handle) => {
                return Some(Held {
                    handle: handle.clone(),
                    _own: None,
                });
            }
        };
        Some(Held {
            handle: own.handle(),
            _own: Some(own),
        })
    }

    /// `work` with its timers and sockets on this runtime, wherever it is polled. Where the runtime has
    /// ended, `work` may need none.
    pub(crate) async fn run<T>(&self, work: impl Future<Output = T>) -> T {
        let held = self.hold();
        // Entered for each poll, not for as long as it takes.
        tokio::pin!(work);
        std::future::poll_fn(|context| {
            let _runtime = held.as_ref().map(|held| held.handle.enter());
            work.as_mut().poll(context)
        })
        .await
    }

    /// Waits for `work` on this thread.
    pub(crate) fn block_on<T>(&self, work: impl Future<Output = T>) -> T {
        self.wait_for(self.run(work))
    }

    /// Waits on this thread for what finds its runtime itself. As a guest on the application's runtime,
    /// a worker of it first hands its other tasks to another one: the environment's may be among them.
    pub(crate) fn wait_for<T>(&self, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        // What has nothing to wait for, as most reads, needs nobody who would wake it.
        let context = &mut Context::from_waker(Waker::noop());
        if let Poll::Ready(done) = work.as_mut().poll(context) {
            return done;
        }
        let flavor = Handle::try_current().map(|current| current.runtime_flavor());
        let is_guest = matches!(self, Self::Guest(_));
        if is_guest && matches!(flavor, Ok(RuntimeFlavor::MultiThread)) {
            tokio::task::block_in_place(|| pollster::block_on(work))
        } else {
            pollster::block_on(work)
        }
    }
}
