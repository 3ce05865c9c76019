//! The clients: transactions that read and write few keys, and snapshots.

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use steadfast::{
    ConsistencyPolicy, ReadError, Snapshot, SnapshotDatabase, Transaction as Txn,
    TransactionDatabase, WriteError,
};

use crate::check::marker;
use crate::history::{DATABASES, Fate, MARKERS, Read, SnapshotRead, Write};
use crate::promise;
use crate::world::{Life, World, lock, wait};

/// How long a client waits for an answer of a node.
const CLIENT_PATIENCE: Duration = Duration::from_secs(12);

/// Of so many transactions one has a rival.
const RIVAL_EVERY: u32 = 8;

/// One client: an endless run of operations.
pub async fn client(world: Arc<World>, seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let think_max = u64::try_from(world.plan.think_max.as_millis()).unwrap_or(u64::MAX);
    loop {
        wait(Duration::from_millis(rng.random_range(0..=think_max))).await;
        for _ in 0..rng.random_range(1..=4) {
            let Some((at, life)) = pick(&world, &mut rng) else {
                break;
            };
            if rng.random_range(0..4) == 0 {
                snapshot(&world, &mut rng, at, &life).await;
            } else {
                transaction(&world, &mut rng, at, &life).await;
            }
        }
    }
}

/// Whom to ask: mostly somebody who takes himself for the master.
fn pick(world: &World, rng: &mut StdRng) -> Option<(usize, Life)> {
    let mut open = world.open_nodes();
    let masters = world.masters();
    if rng.random_range(0..10) > 0 && !masters.is_empty() {
        open.retain(|(at, _)| masters.contains(at));
    }
    (!open.is_empty()).then(|| open.swap_remove(rng.random_range(0..open.len())))
}

/// What a transaction does, drawn before it runs: it may run several times.
struct Script {
    gets: Vec<(&'static str, Bytes)>,
    ranges: Vec<RangeScript>,
    writes: Vec<Write>,
}

#[derive(Clone)]
struct RangeScript {
    database: &'static str,
    from: Bytes,
    to: Bytes,
    reverse: bool,
    limit: usize,
}

impl Script {
    fn draw(world: &World, rng: &mut StdRng, id: Option<usize>) -> Self {
        let keys = world.plan.keys;
        let database = |rng: &mut StdRng| DATABASES[rng.random_range(0..DATABASES.len())];
        let key = |rng: &mut StdRng| Bytes::from(format!("k{:03}", rng.random_range(0..keys)));
        let gets = (0..rng.random_range(0..3)).map(|_| (database(rng), key(rng)));
        let gets = gets.collect();
        let ranges = (0..rng.random_range(0..10) / 8)
            .map(|_| {
                let (one, other) = (key(rng), key(rng));
                RangeScript {
                    database: database(rng),
                    from: one.clone().min(other.clone()),
                    to: one.max(other),
                    reverse: rng.random(),
                    limit: rng.random_range(1..20),
                }
            })
            .collect();
        let mut writes = Vec::new();
        if let Some(id) = id {
            for nth in 0..rng.random_range(1..4) {
                let is_put = rng.random_range(0..5) > 0;
                let value = is_put.then(|| value(rng, world.plan.value_max, id, nth));
                writes.push((database(rng), key(rng), value));
            }
            writes.push((MARKERS, marker(id), Some(Bytes::new())));
        }
        Self {
            gets,
            ranges,
            writes,
        }
    }

    fn read<D: Readable>(
        &self,
        open: impl Fn(&'static str) -> Result<D, D::Error>,
    ) -> Result<Vec<Read>, D::Error> {
        let mut reads = Vec::new();
        for (database, key) in &self.gets {
            reads.push(Read::Get {
                database,
                key: key.clone(),
                value: open(database)?.get(key)?,
            });
        }
        for range in &self.ranges {
            let pairs = open(range.database)?.range(range)?;
            let RangeScript {
                database,
                from,
                to,
                reverse,
                limit,
            } = range.clone();
            reads.push(Read::Range {
                database,
                from,
                to,
                reverse,
                limit,
                pairs,
            });
        }
        Ok(reads)
    }
}

/// A value that no other write has, of up to `max` bytes.
fn value(rng: &mut StdRng, max: usize, id: usize, nth: usize) -> Bytes {
    let mut value = format!("{id}.{nth}.").into_bytes();
    // Most values are small: large ones are about limits, not about order.
    let max = if rng.random_range(0..4) == 0 {
        max
    } else {
        max.min(40)
    };
    value.resize(value.len() + rng.random_range(0..=max), b'x');
    Bytes::from(value)
}

/// A database as either kind of transaction has it.
trait Readable {
    type Error;
    fn get(&self, key: &Bytes) -> Result<Option<Bytes>, Self::Error>;
    fn range(&self, range: &RangeScript) -> Result<Vec<(Bytes, Bytes)>, Self::Error>;
}

macro_rules! readable {
    ($database:ident, $error:ident) => {
        impl Readable for $database<'_> {
            type Error = $error;

            fn get(&self, key: &Bytes) -> Result<Option<Bytes>, $error> {
                $database::get(self, key)
            }

            fn range(&self, range: &RangeScript) -> Result<Vec<(Bytes, Bytes)>, $error> {
                let scan = $database::range(self, range.from.clone()..range.to.clone());
                let scan = scan.limit(range.limit);
                let scan = if range.reverse { scan.reverse() } else { scan };
                scan.collect::<Result<_, _>>().map_err(Into::into)
            }
        }
    };
}

readable!(SnapshotDatabase, ReadError);
readable!(TransactionDatabase, WriteError);

/// Runs `call` in a node's process. `None` when the process ended or gave no answer.
async fn ask<T>(life: &Life, call: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        biased;
        answer = life.process.run(call) => Some(answer),
        () = life.ended.cancelled() => None,
        () = wait(CLIENT_PATIENCE) => None,
    }
}

/// One transaction, and now and then a rival of it.
async fn transaction(world: &Arc<World>, rng: &mut StdRng, at: usize, life: &Life) {
    if rng.random_range(0..RIVAL_EVERY) > 0 {
        return write(world, rng, (at, life), || {}).await;
    }
    let mut rng_of_rival = StdRng::seed_from_u64(rng.random());
    let rival = write(world, &mut rng_of_rival, (at, life), || {});
    let rival: Mutex<Option<Rival<'_>>> = Mutex::new(Some(Box::pin(rival)));
    let poll = |context: &mut Context<'_>| {
        let mut rival = lock(&rival);
        let state = rival.as_mut().map(|rival| rival.as_mut().poll(context));
        if state != Some(Poll::Pending) {
            *rival = None;
            return Poll::Ready(());
        }
        Poll::Pending
    };
    let come_between = || {
        // Whether it has ended shows below.
        poll(&mut Context::from_waker(Waker::noop())).is_ready();
    };
    let own = write(world, rng, (at, life), come_between);
    tokio::join!(own, std::future::poll_fn(poll));
}

/// A transaction that comes in between what another one reads and its commit, as on a machine with
/// many threads any may.
type Rival<'a> = Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

/// One transaction. `between` is called when it has read.
async fn write(
    world: &Arc<World>,
    rng: &mut StdRng,
    (at, life): (usize, &Life),
    between: impl Fn(),
) {
    let Some(env) = &life.env else { return };
    let id = world.history().begin(at);
    let script = Script::draw(world, rng, Some(id));
    let run = |txn: &Txn| {
        let reads = script.read(|name| txn.database(name))?;
        between();
        for (database, key, value) in &script.writes {
            let database = txn.database(database)?;
            match value {
                Some(value) => database.put(key, value)?,
                None => database.delete(key)?,
            }
        }
        let mut history = world.history();
        let record = &mut history.transactions[id];
        record.reads = reads;
        record.writes.clone_from(&script.writes);
        Ok(())
    };
    let answer = ask(life, env.write_async(run)).await;
    let fate = match &answer {
        None => Fate::Unknown,
        Some(Ok(token)) => Fate::Committed {
            term: token.term.0,
            vlsn: token.vlsn.0,
        },
        Some(Err(WriteError::OutcomeUnknown { token })) => Fate::UnknownAs {
            term: token.term.0,
            vlsn: token.vlsn.0,
        },
        Some(Err(_)) => Fate::NotCommitted,
    };
    world.history().end(id, fate);
    if let Fate::Committed { term, vlsn } = fate {
        promise::check(world, id, (term, vlsn));
    }
    world.story.tell(|| {
        let answer = match answer {
            None => "no answer".into(),
            Some(Ok(token)) => format!("committed {}/{}", token.term.0, token.vlsn.0),
            Some(Err(error)) => error.to_string(),
        };
        format!("transaction {id} on n{}: {answer}", at + 1)
    });
}

async fn snapshot(world: &Arc<World>, rng: &mut StdRng, at: usize, life: &Life) {
    let Some(env) = &life.env else { return };
    let script = Script::draw(world, rng, None);
    let is_linearizable = rng.random();
    let policy = if is_linearizable {
        ConsistencyPolicy::Linearizable
    } else {
        ConsistencyPolicy::Eventual
    };
    let floor = is_linearizable.then(|| world.history().acknowledged);
    let read = |snapshot: &Snapshot| {
        let reads = script.read(|name| snapshot.database(name))?;
        Ok((snapshot.vlsn().0, reads))
    };
    let answer = ask(life, env.read_async(policy, read)).await;
    let Some(Ok((vlsn, reads))) = answer else {
        return;
    };
    world.story.trace(&[b"snapshot", &vlsn.to_le_bytes()]);
    world.history().snapshots.push(SnapshotRead {
        node: at,
        floor,
        vlsn,
        reads,
    });
}
