//! Transactions and reads by many clients on three nodes whose masters are killed: one order,
//! consistent with real time, explains everything that anyone saw.

mod checker;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use rand::rngs::StdRng;
use rand::seq::IteratorRandom;
use rand::{RngExt, SeedableRng};
use steadfast::{ConsistencyPolicy, Outcome, ReadError, Role, WriteError};

use self::checker::{Operation, Read, check};
use crate::support::{Env, Group, Release, eventually};

const KEYS: u8 = 6;
const CLIENTS: u64 = 8;
const KILLS: usize = 6;
/// Transactions acknowledged between two kills.
const BETWEEN_KILLS: u64 = 150;

/// State shared by all clients.
#[derive(Default)]
struct Run {
    nodes: Mutex<Vec<Option<Env>>>,
    clock: AtomicU64,
    values: AtomicU64,
    acknowledged: AtomicU64,
    done: AtomicBool,
}

impl Run {
    fn now(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// A master for a write; any node for a read.
    fn pick(&self, rng: &mut StdRng, is_write: bool) -> Option<Env> {
        let nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = |node: &&Env| !is_write || node.state().role == Role::Master;
        nodes.iter().flatten().filter(fits).choose(rng).cloned()
    }

    fn share(&self, group: &Group) {
        let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        nodes.clone_from(&group.nodes);
    }

    /// Runs operations until the run is over.
    fn client(&self, seed: u64, policy: ConsistencyPolicy) -> Vec<Operation> {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut history = Vec::new();
        while !self.done.load(Ordering::Relaxed) {
            let is_write = rng.random_range(0..3) > 0;
            let Some(node) = self.pick(&mut rng, is_write) else {
                std::thread::yield_now();
                continue;
            };
            history.extend(if is_write {
                self.transaction(&node, &mut rng)
            } else {
                self.snapshot(&node, policy)
            });
        }
        history
    }

    /// Reads two keys or all of them, and writes one or two.
    fn transaction(&self, node: &Env, rng: &mut StdRng) -> Option<Operation> {
        let keys: Vec<u8> = (0..KEYS).sample(rng, 2);
        let is_scan = rng.random_range(0..4) == 0;
        let written = &keys[..rng.random_range(1..=2)];
        let value = |key: &u8| (*key, self.values.fetch_add(1, Ordering::Relaxed));
        let writes: Vec<(u8, u64)> = written.iter().map(value).collect();
        let begun = self.now();
        let mut reads = Vec::new();
        let result = node.write(|txn| {
            let database = txn.database("d")?;
            reads = if is_scan {
                let rows = database.range::<[u8; 1]>(..);
                whole(rows.collect::<Result<Vec<_>, ReadError>>()?)
            } else {
                let read = |key: &u8| Ok((*key, database.get([*key])?.as_ref().map(number)));
                keys.iter().map(read).collect::<Result<_, WriteError>>()?
            };
            let put = |(key, value): &(u8, u64)| database.put([*key], value.to_be_bytes());
            writes.iter().try_for_each(put)
        });
        let (vlsn, ended) = match &result {
            Ok(written) => (written.token.vlsn.0, Some(self.now())),
            Err(error) => match error.outcome() {
                Outcome::Unknown(token) | Outcome::Committed(token) => (token.vlsn.0, None),
                Outcome::NotCommitted => return None,
                Outcome::Lost => panic!("nothing is forwarded: {error}"),
            },
        };
        self.acknowledged
            .fetch_add(u64::from(result.is_ok()), Ordering::Relaxed);
        Some(Operation {
            begun,
            ended,
            reads,
            writes,
            vlsn: Some(vlsn),
        })
    }

    fn snapshot(&self, node: &Env, policy: ConsistencyPolicy) -> Option<Operation> {
        let begun = self.now();
        let rows = node.read(policy, |snapshot| {
            let rows = snapshot.database("d")?.range::<[u8; 1]>(..);
            rows.collect::<Result<Vec<_>, ReadError>>()
        });
        Some(Operation {
            begun,
            reads: whole(rows.ok()?),
            ended: Some(self.now()),
            writes: Vec::new(),
            vlsn: None,
        })
    }
}

fn number(value: &bytes::Bytes) -> u64 {
    u64::from_be_bytes(value[..].try_into().expect("eight bytes"))
}

/// What a scan saw of every key, including absent ones.
fn whole(rows: Vec<(bytes::Bytes, bytes::Bytes)>) -> Vec<Read> {
    let mut reads: Vec<Read> = (0..KEYS).map(|key| (key, None)).collect();
    for (key, value) in rows {
        reads[usize::from(key[0])].1 = Some(number(&value));
    }
    reads
}

/// Runs clients on a group while `harm` is done to it.
fn run(
    group: &mut Group,
    policy: ConsistencyPolicy,
    harm: impl FnOnce(&Run, &mut Group),
) -> Vec<Operation> {
    let run = Run::default();
    run.share(group);
    std::thread::scope(|scope| {
        let client = |seed| {
            let run = &run;
            scope.spawn(move || run.client(seed, policy))
        };
        let clients: Vec<_> = (0..CLIENTS).map(client).collect();
        let done = Release(&run.done);
        harm(&run, group);
        drop(done);
        let ended = clients
            .into_iter()
            .map(|client| client.join().expect("a client"));
        ended.flatten().collect()
    })
}

fn wait_for_writes(run: &Run) {
    let before = run.acknowledged.load(Ordering::Relaxed);
    eventually("more writes", || {
        run.acknowledged.load(Ordering::Relaxed) >= before + BETWEEN_KILLS
    });
}

const QUICK: &[(&str, u64)] = &[
    // So that each write of unknown outcome has a token.
    ("forward_timeout_ms", 0),
    ("flush_bytes", 1024),
    ("flush_interval_ms", 1),
    ("commit_timeout_ms", 3_000),
    ("read_timeout_ms", 3_000),
];

#[test]
fn all_that_clients_saw_through_kills_of_the_master_has_one_order() {
    let mut group = Group::in_memory(3, QUICK);
    let history = run(&mut group, ConsistencyPolicy::Linearizable, |run, group| {
        for _ in 0..KILLS {
            wait_for_writes(run);
            let master = group.master_except(None);
            group.crash(master);
            run.share(group);
            group.master_except(Some(master));
            group.reopen(master).expect("reopened");
            run.share(group);
        }
        wait_for_writes(run);
    });
    assert_eq!(check(&history), Vec::<String>::new());
    assert!(history.len() > KILLS * 100, "{} operations", history.len());

    // The same history with one update lost must fail.
    let mut tampered = history;
    let is_update = |operation: &&mut Operation| {
        let read = operation.reads.first().copied();
        let writes = |key| operation.writes.iter().any(|write| write.0 == key);
        operation.ended.is_some() && read.is_some_and(|(key, value)| value.is_some() && writes(key))
    };
    let update = tampered.iter_mut().filter(is_update).nth(20);
    let update = update.expect("there are updates");
    update.reads[0].1 = None;
    assert_ne!(check(&tampered), Vec::<String>::new());
}

#[test]
fn reads_of_a_replica_that_is_cut_off_do_not_pass_for_current() {
    let mut group = Group::in_memory(3, QUICK);
    let history = run(&mut group, ConsistencyPolicy::Eventual, |run, group| {
        wait_for_writes(run);
        let replica = (group.master_except(None) + 1) % 3;
        group.network.isolate(&crate::support::name(replica));
        wait_for_writes(run);
    });
    let problems = check(&history);
    let stale = |problem: &String| problem.contains("overwritten before it began");
    assert!(problems.iter().any(stale), "{problems:?}");
}
