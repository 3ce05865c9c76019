//! The load of the benchmark: threads that call the blocking interface as fast as it answers.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hdrhistogram::Histogram;
use steadfast::{ConsistencyPolicy, Durability, ReplicatedEnvironment};
use tokio::time::Instant;

use super::{Consistency, Workload};
use crate::demo::scramble;

const DATABASE: &str = "bench";
/// Keys that are written and read.
const KEYS: u64 = 10_000;
/// Keys that one transaction of the preparation writes.
const KEYS_PER_TRANSACTION: u64 = 500;
/// Of ten operations of the mixed workload, so many are writes.
const MIXED_WRITES_OF_TEN: u64 = 2;
/// Latencies are kept with so many digits.
const DIGITS: u8 = 3;

/// What the threads do.
pub(super) struct Load {
    pub(super) workload: Workload,
    pub(super) consistency: Consistency,
    pub(super) durability: Durability,
    pub(super) value_bytes: usize,
}

/// What came of it.
pub(super) struct Measured {
    pub(super) latencies_us: Histogram<u64>,
    pub(super) errors: u64,
    pub(super) elapsed: Duration,
}

impl Load {
    /// Writes every key once.
    ///
    /// # Errors
    /// What the environment says.
    pub(super) fn prepare(&self, env: &ReplicatedEnvironment) -> Result<(), String> {
        let value = vec![0x11; self.value_bytes];
        for first in (0..KEYS).step_by(usize::try_from(KEYS_PER_TRANSACTION).unwrap_or(1)) {
            let written = env.write(|txn| {
                let database = txn.database(DATABASE)?;
                (first..first + KEYS_PER_TRANSACTION)
                    .try_for_each(|key| database.put(key.to_be_bytes(), &value))
            });
            let _token = written.map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    /// Runs `clients` threads for `time`. Operations that are under way at its end count.
    pub(super) fn run(
        &self,
        env: &ReplicatedEnvironment,
        clients: u64,
        time: Duration,
    ) -> Measured {
        let stop = AtomicBool::new(false);
        let begun = Instant::now();
        let mut total = new_histogram();
        let mut errors = 0;
        std::thread::scope(|scope| {
            let client = |client| {
                let stop = &stop;
                move || self.drive(env, client, stop)
            };
            let threads: Vec<_> = (0..clients).map(|n| scope.spawn(client(n))).collect();
            #[expect(clippy::disallowed_methods, reason = "the load lasts for a set time")]
            std::thread::sleep(time);
            stop.store(true, Ordering::Relaxed);
            for thread in threads {
                let (latencies, failed) = thread.join().expect("a client does not panic");
                total
                    .add(latencies)
                    .expect("all histograms have the same range");
                errors += failed;
            }
        });
        Measured {
            latencies_us: total,
            errors,
            elapsed: begun.elapsed(),
        }
    }

    fn drive(
        &self,
        env: &ReplicatedEnvironment,
        client: u64,
        stop: &AtomicBool,
    ) -> (Histogram<u64>, u64) {
        let (mut latencies, mut errors, mut round) = (new_histogram(), 0, 0);
        let value = vec![u8::try_from(client % 256).unwrap_or(0); self.value_bytes];
        while !stop.load(Ordering::Relaxed) {
            let chance = scramble(client << 40 | round);
            round += 1;
            let is_write = match self.workload {
                Workload::Put | Workload::Txn => true,
                Workload::Get => false,
                Workload::Mixed => (chance >> 40) % 10 < MIXED_WRITES_OF_TEN,
            };
            let begun = Instant::now();
            let done = if is_write {
                self.write(env, chance, &value)
            } else {
                self.read(env, chance)
            };
            let took = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
            if done {
                latencies
                    .record(took)
                    .expect("the histogram grows with what it is given");
            } else {
                errors += 1;
            }
        }
        (latencies, errors)
    }

    /// One put; or, as a transaction, two keys read and both written.
    fn write(&self, env: &ReplicatedEnvironment, chance: u64, value: &[u8]) -> bool {
        let (first, second) = (chance % KEYS, (chance >> 20) % KEYS);
        let written = env.write_with(self.durability, |txn| {
            let database = txn.database(DATABASE)?;
            if self.workload == Workload::Txn {
                database.get(first.to_be_bytes())?;
                database.get(second.to_be_bytes())?;
                database.put(second.to_be_bytes(), value)?;
            }
            database.put(first.to_be_bytes(), value)
        });
        written.is_ok()
    }

    fn read(&self, env: &ReplicatedEnvironment, chance: u64) -> bool {
        let policy = match self.consistency {
            Consistency::Linearizable => ConsistencyPolicy::Linearizable,
            Consistency::Eventual => ConsistencyPolicy::Eventual,
        };
        let key = (chance % KEYS).to_be_bytes();
        let read = env.read(policy, |snapshot| snapshot.database(DATABASE)?.get(key));
        matches!(read, Ok(Some(_)))
    }
}

fn new_histogram() -> Histogram<u64> {
    Histogram::new(DIGITS).expect("the number of digits is within 0 to 5")
}
