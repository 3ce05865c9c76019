//! The load of the benchmark: threads that call the blocking interface as fast as it answers.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hdrhistogram::Histogram;
use steadfast::engine::StorageEngine;
use steadfast::ids::DatabaseId;
use steadfast::{ConsistencyPolicy, Durability, ReadError, ReplicatedEnvironment};
use tokio::time::Instant;

use super::{Consistency, Workload};
use crate::demo::scramble;

const DATABASE: &str = "bench";
/// The engine's catalog, which maps names of databases to ids.
const CATALOG: DatabaseId = DatabaseId(0);
/// Keys written by one transaction of the preparation.
const KEYS_PER_TRANSACTION: u64 = 500;
/// Writes per ten operations of the mixed workload.
const MIXED_WRITES_OF_TEN: u64 = 2;
/// A counter is stored at the beginning of a value.
const COUNTER_BYTES: usize = 8;
/// The initial value of each counter.
const COUNTER_FIRST: u64 = 0x1111_1111_1111_1111;
/// Significant digits kept of latencies.
const DIGITS: u8 = 3;

/// What the threads do.
pub(super) struct Load {
    pub(super) workload: Workload,
    pub(super) consistency: Consistency,
    pub(super) durability: Durability,
    pub(super) value_bytes: usize,
    /// Keys that are written and read.
    pub(super) keys: u64,
    /// Threads that put alongside the clients, and are not measured.
    pub(super) writers: u64,
}

/// The result of a run.
pub(super) struct Measured {
    pub(super) latencies_us: Histogram<u64>,
    pub(super) errors: u64,
    /// Puts by the writers alongside the clients.
    pub(super) puts_beside: u64,
    pub(super) elapsed: Duration,
}

impl Load {
    /// Writes every key once.
    ///
    /// # Errors
    /// The environment's error.
    pub(super) fn prepare(&self, env: &ReplicatedEnvironment) -> Result<(), String> {
        let value = vec![0x11; self.value_bytes.max(COUNTER_BYTES)];
        for first in (0..self.keys).step_by(usize::try_from(KEYS_PER_TRANSACTION).unwrap_or(1)) {
            let last = self.keys.min(first + KEYS_PER_TRANSACTION);
            let written = env.write(|txn| {
                let database = txn.database(DATABASE)?;
                (first..last).try_for_each(|key| database.put(key.to_be_bytes(), &value))
            });
            let _token = written.map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    /// Sum of all counters, less their initial values.
    ///
    /// # Errors
    /// The environment's error.
    pub(super) fn counted(&self, env: &ReplicatedEnvironment) -> Result<u64, String> {
        let read = env.read(
            ConsistencyPolicy::Linearizable,
            |snapshot| -> Result<_, ReadError> {
                let database = snapshot.database(DATABASE)?;
                let mut sum = 0_u64;
                for key in 0..self.keys {
                    let value = database.get(key.to_be_bytes())?.unwrap_or_default();
                    sum = sum.wrapping_add(counter(&value).wrapping_sub(COUNTER_FIRST));
                }
                Ok(sum)
            },
        );
        read.map_err(|error| error.to_string())
    }

    /// Runs `clients` threads for `time`, each performing one operation of the workload after the
    /// other.
    pub(super) fn run(
        &self,
        env: &ReplicatedEnvironment,
        clients: u64,
        time: Duration,
    ) -> Measured {
        let operate = |client, chance| self.operate(env, client, chance);
        let put = |_, chance| self.write(env, chance, &vec![0x22; self.value_bytes]);
        drive(clients, &operate, self.writers, &put, time)
    }

    /// Gets from the bare engine of a closed node, as many and as random as in `run`.
    ///
    /// # Errors
    /// The engine's error.
    pub(super) fn run_on_engine(
        &self,
        engine: &dyn StorageEngine,
        clients: u64,
        time: Duration,
    ) -> Result<Measured, String> {
        let id = engine.get(CATALOG, DATABASE.as_bytes());
        let id = id.map_err(|error| error.to_string())?;
        let id = id.and_then(|id| id.first_chunk().copied());
        let database = DatabaseId(u32::from_le_bytes(
            id.ok_or("the engine has no such database")?,
        ));
        let get = |_, chance| {
            let key = self.key(chance);
            matches!(engine.get(database, &key), Ok(Some(_)))
        };
        let nothing = |_, _| true;
        Ok(drive(clients, &get, 0, &nothing, time))
    }

    fn key(&self, chance: u64) -> [u8; 8] {
        (chance % self.keys).to_be_bytes()
    }

    fn operate(&self, env: &ReplicatedEnvironment, client: u64, chance: u64) -> bool {
        let is_write = match self.workload {
            Workload::Counter => return self.count(env, client),
            Workload::Put | Workload::Txn => true,
            Workload::Get => false,
            Workload::Mixed => (chance >> 40) % 10 < MIXED_WRITES_OF_TEN,
        };
        if is_write {
            let byte = u8::try_from(client % 256).unwrap_or(0);
            self.write(env, chance, &vec![byte; self.value_bytes])
        } else {
            self.read(env, chance)
        }
    }

    /// One put; or, as a transaction, two keys read and both written.
    fn write(&self, env: &ReplicatedEnvironment, chance: u64, value: &[u8]) -> bool {
        let (first, second) = (chance % self.keys, (chance >> 20) % self.keys);
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

    /// Increments the client's counter, which it may share with others.
    fn count(&self, env: &ReplicatedEnvironment, client: u64) -> bool {
        let key = (client % self.keys).to_be_bytes();
        let written = env.write(|txn| {
            let database = txn.database(DATABASE)?;
            let mut value = database.get(key)?.unwrap_or_default().to_vec();
            value.resize(self.value_bytes.max(COUNTER_BYTES), 0);
            let next = counter(&value).wrapping_add(1);
            value[..COUNTER_BYTES].copy_from_slice(&next.to_be_bytes());
            database.put(key, value)
        });
        written.is_ok()
    }

    fn read(&self, env: &ReplicatedEnvironment, chance: u64) -> bool {
        let policy = match self.consistency {
            Consistency::Linearizable => ConsistencyPolicy::Linearizable,
            Consistency::Eventual => ConsistencyPolicy::Eventual,
        };
        let key = self.key(chance);
        let read = env.read(policy, |snapshot| snapshot.database(DATABASE)?.get(key));
        matches!(read, Ok(Some(_)))
    }
}

/// One operation of a client, given the client's number and a random one: whether it succeeded.
type Operation<'a> = &'a (dyn Fn(u64, u64) -> bool + Sync);

/// Runs the given numbers of threads of both operations for `time`. Only the first is measured.
/// Operations under way at the end count.
fn drive(
    clients: u64,
    operate: Operation<'_>,
    writers: u64,
    beside: Operation<'_>,
    time: Duration,
) -> Measured {
    let stop = AtomicBool::new(false);
    let begun = Instant::now();
    let mut total = Measured {
        latencies_us: new_histogram(),
        errors: 0,
        puts_beside: 0,
        elapsed: Duration::ZERO,
    };
    std::thread::scope(|scope| {
        let start = |client, operate| {
            let stop = &stop;
            scope.spawn(move || repeat(client, operate, stop))
        };
        let clients: Vec<_> = (0..clients).map(|n| start(n, operate)).collect();
        let writers: Vec<_> = (0..writers).map(|n| start(n, beside)).collect();
        #[expect(clippy::disallowed_methods, reason = "the load lasts for a set time")]
        std::thread::sleep(time);
        stop.store(true, Ordering::Relaxed);
        for client in clients {
            let (latencies, failed) = client.join().expect("a client does not panic");
            let added = total.latencies_us.add(latencies);
            added.expect("all histograms have the same range");
            total.errors += failed;
        }
        for writer in writers {
            total.puts_beside += writer.join().expect("a writer does not panic").0.len();
        }
    });
    total.elapsed = begun.elapsed();
    total
}

/// Repeats the operation until told to stop. Returns latencies in microseconds, and the number of
/// failures.
fn repeat(client: u64, operate: Operation<'_>, stop: &AtomicBool) -> (Histogram<u64>, u64) {
    let (mut latencies, mut errors, mut round) = (new_histogram(), 0, 0);
    while !stop.load(Ordering::Relaxed) {
        let chance = scramble(client << 40 | round);
        round += 1;
        let begun = Instant::now();
        let done = operate(client, chance);
        let took = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        if done {
            let recorded = latencies.record(took);
            recorded.expect("the histogram grows with what it is given");
        } else {
            errors += 1;
        }
    }
    (latencies, errors)
}

/// The counter in a value; 0 if the value is too short.
fn counter(value: &[u8]) -> u64 {
    value.first_chunk().copied().map_or(0, u64::from_be_bytes)
}

fn new_histogram() -> Histogram<u64> {
    Histogram::new(DIGITS).expect("the number of digits is within 0 to 5")
}
