//! The machine under a node: disk, network, engine, clock, randomness and threads.
//!
//! This is the edge: the only place that names the real ones. Tests and the simulator pass in their
//! own, and the rest of the crate runs unchanged.

use std::future::Future;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rand::TryRng;
use rand::rngs::SysRng;
use steadfast_net::{MemoryNetwork, TcpTransport, Transport, background, process};
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::engine::{EngineFactory, MemoryStore, NoxuFactory};
use crate::error::OpenError;
use crate::log::{Disk, MemoryDisk, RealDisk};

/// The clocks of a machine, passed in.
pub trait Clock: Send + Sync + 'static {
    /// Milliseconds since 1970, by the wall clock.
    fn now_ms(&self) -> u64;

    /// How long ago `then` was, by the monotonic clock. Never more than the true time and a
    /// thousandth of it: no key ends before its time to live.
    fn passed_since(&self, then: Instant) -> Duration {
        then.elapsed()
    }
}

/// What a node runs on.
#[derive(Clone)]
pub struct Machine {
    /// Where the log and the identity are kept.
    pub disk: Arc<dyn Disk>,
    /// How the other nodes are reached.
    pub transport: Arc<dyn Transport>,
    /// What opens the storage engine.
    pub engines: Arc<dyn EngineFactory>,
    /// Its clocks. Correctness never depends on the wall clock.
    pub clock: Arc<dyn Clock>,
    /// Seed of all randomness: election timeouts, incarnations, UUIDs.
    pub seed: u64,
    /// Where blocking work runs.
    pub threads: Threads,
}

/// Where work that blocks on a disk runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Threads {
    /// One OS thread for the log and one for the flush.
    Own,
    /// The runtime itself, as tasks: for a disk and an engine that do not block.
    Tasks,
}

/// The times accepted from a clock, in milliseconds since 1970: the start of 2020 to the end of
/// 2099. A clock that was never set shows an earlier time.
const CLOCK_MS: RangeInclusive<u64> = 1_577_836_800_000..=4_102_444_799_999;

/// The average length of a year over 400 years, in milliseconds.
const YEAR_MS: u64 = 31_556_952_000;

/// The time by this machine's clock, in milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    SystemClock.now_ms()
}

struct SystemClock;

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is the real clock")]
    fn now_ms(&self) -> u64 {
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }
}

impl Machine {
    /// The machine that this process runs on, with a cache of `cache_bytes` for the engine.
    ///
    /// # Errors
    /// When the system cannot provide entropy; [`OpenError::Clock`].
    pub fn real(cache_bytes: u64) -> Result<Self, OpenError> {
        check_clock(&SystemClock)?;
        Ok(Self {
            disk: Arc::new(RealDisk),
            transport: Arc::new(TcpTransport),
            engines: Arc::new(NoxuFactory { cache_bytes }),
            clock: Arc::new(SystemClock),
            seed: entropy()?,
            threads: Threads::Own,
        })
    }

    /// A machine with an in-memory disk and engine that reaches others over `network`, as `host`.
    ///
    /// # Errors
    /// When the system cannot provide entropy.
    pub fn in_memory(network: &MemoryNetwork, host: &str) -> Result<Self, OpenError> {
        Ok(Self {
            disk: Arc::new(MemoryDisk::new()),
            transport: network.host(host),
            engines: Arc::new(MemoryStore::new()),
            clock: Arc::new(SystemClock),
            seed: entropy()?,
            threads: Threads::Own,
        })
    }

    /// Runs `work` to completion where it may block; the receiver gets its result.
    pub(crate) fn run<T: Send + 'static>(
        &self,
        name: &str,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<oneshot::Receiver<T>, OpenError> {
        let (done, result) = oneshot::channel();
        let work = async move {
            // The caller may have stopped waiting; the work is done all the same.
            done.send(work.await).ok();
        };
        match self.threads {
            Threads::Tasks => {
                process::spawn(work);
            }
            Threads::Own => {
                let runtime = tokio::runtime::Handle::current();
                start_thread(name, move || runtime.block_on(work))?;
            }
        }
        Ok(result)
    }

    /// The same for work that nobody waits for: its thread gives way to the others.
    pub(crate) fn run_in_background<T: Send + 'static>(
        &self,
        name: &str,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<oneshot::Receiver<T>, OpenError> {
        let gives_way = self.threads == Threads::Own;
        self.run(name, async move {
            if gives_way {
                background::give_way();
            }
            work.await
        })
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "this is where threads are started"
)]
fn start_thread(name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), OpenError> {
    let started = std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(work);
    started
        .map(|_| ())
        .map_err(|error| OpenError::Start(format!("thread {name}: {error}")))
}

/// Refuses impossible times: parts of this library depend on the clock.
fn check_clock(clock: &dyn Clock) -> Result<(), OpenError> {
    let now_ms = clock.now_ms();
    if CLOCK_MS.contains(&now_ms) {
        return Ok(());
    }
    let year = 1970 + now_ms / YEAR_MS;
    Err(OpenError::Clock { year })
}

fn entropy() -> Result<u64, OpenError> {
    SysRng
        .try_next_u64()
        .map_err(|error| OpenError::Start(format!("no entropy: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Says(u64);

    impl Clock for Says {
        fn now_ms(&self) -> u64 {
            self.0
        }
    }

    #[test]
    fn a_clock_that_cannot_be_right_is_refused_with_what_it_says() {
        let wrong = [
            (0, 1970),
            (1_577_836_799_999, 2019),
            (4_102_444_800_000, 2100),
            (u64::MAX, 584_556_019),
        ];
        for (now_ms, said) in wrong {
            match check_clock(&Says(now_ms)) {
                Err(OpenError::Clock { year }) => assert!(year.abs_diff(said) <= 1, "{year}"),
                other => panic!("{other:?}"),
            }
        }
        for now_ms in [1_577_836_800_000, 1_800_000_000_000, 4_102_444_799_999] {
            assert!(check_clock(&Says(now_ms)).is_ok(), "{now_ms}");
        }
        assert!(check_clock(&SystemClock).is_ok());
    }
}
