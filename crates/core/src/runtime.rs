//! What an environment, its iterators and its calls run on: a runtime of their own, or the
//! application's.
//!
//! Polling a timer or socket whose runtime has ended panics. So every call holds its runtime until
//! it returns, and a runtime of our own ends once its environment has closed *and* the last such
//! call has returned. Later calls find it gone, and say so.

use std::future::Future;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::runtime::{Builder, Handle, Runtime, RuntimeFlavor};

/// How long shutting down an idle runtime may take.
const END_MAX: Duration = Duration::from_secs(1);

/// A runtime of our own. Dropping it does not wait for it to end, so it may be dropped anywhere.
pub(crate) struct OwnRuntime(Option<Runtime>);

impl OwnRuntime {
    /// # Errors
    /// When the system cannot start threads.
    pub(crate) fn new(threads: &str, workers: usize) -> std::io::Result<Arc<Self>> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(workers)
            .thread_name(threads)
            .enable_all()
            .build()?;
        Ok(Arc::new(Self(Some(runtime))))
    }

    /// Gives up the runtime. If this is the last holder and this thread may block, the runtime's
    /// threads have ended when this returns; in an async task it must not block.
    pub(crate) fn end(self: Arc<Self>) {
        let may_wait = Handle::try_current().is_err();
        if may_wait
            && let Some(mut alone) = Arc::into_inner(self)
            && let Some(runtime) = alone.0.take()
        {
            runtime.shutdown_timeout(END_MAX);
        }
    }

    /// A ground that uses this runtime for as long as it exists.
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

/// What calls run on, whoever polls them. It holds no handle to our own runtime, because a handle
/// would keep its descriptors open after it has ended.
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
    /// Holds the runtime; `None` once it has ended with its environment.
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

    /// `work` with its timers and sockets on this runtime, wherever it is polled. Once the runtime
    /// has ended, `work` must need none.
    pub(crate) async fn run<T>(&self, work: impl Future<Output = T>) -> T {
        let held = self.hold();
        // Entered for each poll, not across awaits.
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

    /// Waits on this thread for work that brings its own runtime. On a worker of the application's
    /// runtime, it first hands that worker's other tasks to another one: the environment's may be
    /// among them.
    pub(crate) fn wait_for<T>(&self, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        // Work that is ready at once, as most reads are, needs no waker.
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
