//! The clients: transactions over a few keys, as functions, open or single operations; databases
//! that come and go; and snapshots.

mod script;

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use steadfast::ids::{Term, Vlsn};
use steadfast::{
    CommitToken, CompareAndSet, ConsistencyPolicy, Durability, Outcome, ReadError,
    ReplicatedEnvironment, Snapshot, TokenOutcome, Transaction as Txn, WriteError,
};
use steadfast_net::lock;

use crate::check::{self, marker};
use crate::history::{DATABASES, Fate, MARKERS, OutcomeRead, Read, SnapshotRead};
use crate::logfile::Log;
use crate::promise;
use crate::world::{Host, Life, World, wait};

use script::{RangeScript, Script, database, key, value};

/// How long a client waits for a node's answer.
const CLIENT_PATIENCE: Duration = Duration::from_secs(12);

/// One in this many transactions has a rival.
const RIVAL_EVERY: u32 = 8;

/// One in this many open transactions stays open for seconds, with its snapshot.
const LONG_EVERY: u32 = 16;

/// Most writes of open fate to ask a node about at the end.
const OUTCOMES_ASKED_MAX: usize = 16;

/// Runs one client: an endless sequence of operations, some at a time.
pub async fn client(world: Arc<World>, seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let think_max = u64::try_from(world.plan.think_max.as_millis()).unwrap_or(u64::MAX);
    loop {
        wait(Duration::from_millis(rng.random_range(0..=think_max))).await;
        let at_once = rng.random_range(1..=world.plan.burst_max);
        let operations = (0..at_once).map(|_| operation(&world, rng.random()));
        join_all(operations.collect::<Vec<_>>()).await;
    }
}

async fn operation(world: &Arc<World>, seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let Some((at, life)) = pick(world, &mut rng) else {
        return;
    };
    match rng.random_range(0..16) {
        0..4 => snapshot(world, &mut rng, at, &life).await,
        4 => outcome(world, &mut rng, at, &life).await,
        5 | 6 => open_transaction(world, &mut rng, at, &life).await,
        7 | 8 => single(world, &mut rng, at, &life).await,
        _ => transaction(world, &mut rng, at, &life).await,
    }
}

/// Picks a node to ask: mostly one that considers itself master, unless all are to be asked.
fn pick(world: &World, rng: &mut StdRng) -> Option<(usize, Life)> {
    let mut open = world.open_nodes();
    let masters = world.masters();
    if rng.random_range(0..10) > 0 && !masters.is_empty() && !world.plan.anywhere {
        open.retain(|(at, _)| masters.contains(at));
    }
    (!open.is_empty()).then(|| open.swap_remove(rng.random_range(0..open.len())))
}

/// Runs `call` in a node's process. `None` if the process ended or gave no answer.
pub(crate) async fn ask<T>(life: &Life, call: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        biased;
        answer = life.process.run(call) => Some(answer),
        () = life.ended.cancelled() => None,
        () = wait(CLIENT_PATIENCE) => None,
    }
}

/// Runs one transaction, and now and then a rival.
async fn transaction(world: &Arc<World>, rng: &mut StdRng, at: usize, life: &Life) {
    if rng.random_range(0..RIVAL_EVERY) > 0 {
        return write(world, rng, at, life, || {}).await;
    }
    let mut rng_of_rival = StdRng::seed_from_u64(rng.random());
    let rival = write(world, &mut rng_of_rival, at, life, || {});
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
        // Whether it has ended is found out below.
        poll(&mut Context::from_waker(Waker::noop())).is_ready();
    };
    let own = write(world, rng, at, life, come_between);
    tokio::join!(own, std::future::poll_fn(poll));
}

/// A transaction that runs between the reads of another one and its commit, as any may on a machine
/// with many threads.
type Rival<'a> = Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

/// Runs one transaction. `between` is called after its reads.
async fn write(world: &Arc<World>, rng: &mut StdRng, at: usize, life: &Life, between: impl Fn()) {
    let Some(env) = &life.env else { return };
    let id = world.history().begin(at);
    let durability = durability(rng);
    let script = Script::draw(world, rng, Some(id));
    let run = |txn: &Txn| script.run(world, id, txn, &between);
    let written = ask(life, env.write_with_async(durability, run)).await;
    let answer = written.map(|written| written.map(|written| written.token));
    end(world, at, id, durability, answer.as_ref());
    if durability == Durability::ALL
        && matches!(answer, Some(Ok(_)))
        && rng.random_range(0..16) == 0
    {
        check_everywhere(world, id);
    }
}

fn durability(rng: &mut StdRng) -> Durability {
    match rng.random_range(0..10) {
        0 => Durability::ALL,
        1 | 2 => Durability::LOCAL,
        3 => Durability::NONE,
        _ => Durability::MAJORITY,
    }
}

/// The same without a function: others may run between its reads and its writes.
async fn open_transaction(world: &Arc<World>, rng: &mut StdRng, at: usize, life: &Life) {
    let Some(env) = &life.env else { return };
    let id = world.history().begin(at);
    let script = Script::draw(world, rng, Some(id));
    let durability = durability(rng);
    let is_long = rng.random_range(0..LONG_EVERY) == 0;
    let pause_max = if is_long { 4000 } else { 40 };
    let pauses = [(); 2].map(|()| Duration::from_millis(rng.random_range(0..pause_max)));
    let is_abandoned = rng.random_range(0..8) == 0;
    let run = async {
        let open = env.begin_transaction_async().await?;
        wait(pauses[0]).await;
        let reads = script.read(|| open.list_databases(), |name| open.database(name))?;
        wait(pauses[1]).await;
        script.write(world, id, &open, reads)?;
        if is_abandoned {
            drop(open);
            return Err(WriteError::abort("abandoned"));
        }
        open.commit_with_async(durability).await
    };
    let answer = ask(life, run).await;
    end(world, at, id, durability, answer.as_ref());
}

/// A single-operation transaction: a put, or a conditional one.
async fn single(world: &Arc<World>, rng: &mut StdRng, at: usize, life: &Life) {
    let Some(env) = &life.env else { return };
    let id = world.history().begin(at);
    let (database, key) = (database(rng), key(world, rng));
    let value = value(rng, world.plan.value_max, id, 0);
    let kind = rng.random_range(0..3);
    let (floor, began) = {
        let mut history = world.history();
        (history.acknowledged, history.tick())
    };
    let record = |reads| {
        let mut history = world.history();
        let record = &mut history.transactions[id];
        record.reads = reads;
        record.writes = vec![(database, key.clone(), Some(value.clone()))];
    };
    let read = |value| Read::Get {
        database,
        key: key.clone(),
        value,
    };
    let run = async {
        let handle = env.database(database);
        if kind == 0 {
            record(Vec::new());
            return handle
                .put_async(&key, &value)
                .await
                .map(CompareAndSet::Done);
        }
        let known = match kind {
            1 => None,
            _ => handle.get_async(ConsistencyPolicy::Eventual, &key).await?,
        };
        record(vec![read(known.clone())]);
        handle
            .compare_and_set_async(&key, known.as_deref(), &value)
            .await
    };
    let answer = match ask(life, run).await {
        Some(Ok(CompareAndSet::Refused { current, token })) => {
            let mut history = world.history();
            let ended = history.tick();
            history.snapshots.push(SnapshotRead {
                node: at,
                began,
                ended,
                floor: Some(floor),
                vlsn: token.vlsn.0,
                reads: vec![read(current)],
            });
            Some(Err(WriteError::abort(format!("refused as of {token}"))))
        }
        Some(Ok(CompareAndSet::Done(token))) => Some(Ok(token)),
        // Then nobody knows whether the token belongs to the write or to its refusal.
        Some(Err(error)) if kind != 0 && error.outcome() != Outcome::NotCommitted => None,
        Some(Err(error)) => Some(Err(error)),
        None => None,
    };
    end(world, at, id, Durability::MAJORITY, answer.as_ref());
}

/// A transaction that only leaves its mark, on a node that may be master.
pub async fn mark(world: &World, env: &ReplicatedEnvironment) -> Option<CommitToken> {
    let id = world.history().begin(0);
    let mark = marker(id);
    // Before the write: the waiting task may be gone when it completes.
    world.history().transactions[id].writes = vec![(MARKERS, mark.clone(), Some(Bytes::new()))];
    let written = env.write_async(|txn| txn.database(MARKERS)?.put(&mark, b""));
    Some(written.await.ok()?.token)
}

/// Records a node's answer.
fn end(
    world: &World,
    at: usize,
    id: usize,
    durability: Durability,
    answer: Option<&Result<CommitToken, WriteError>>,
) {
    let fate = answer.map_or(Fate::Unknown, |answer| fate(durability, answer));
    world.history().end(id, fate, world.story.now_us());
    if let Fate::Committed { term, vlsn } = fate {
        promise::check(world, id, term, vlsn);
    }
    world.story.tell(|| {
        let answer = match answer {
            None => "no answer".into(),
            Some(Ok(token)) => format!("acknowledged {}/{}", token.term.0, token.vlsn.0),
            Some(Err(error)) => error.to_string(),
        };
        format!("transaction {id} on n{} ({durability}): {answer}", at + 1)
    });
}

/// What an answer says about the transaction, given what its durability guarantees.
fn fate(durability: Durability, answer: &Result<CommitToken, WriteError>) -> Fate {
    let is_local = durability == Durability::LOCAL || durability == Durability::NONE;
    let (token, is_acknowledged) = match answer {
        Ok(token) => (*token, true),
        Err(error) => match error.outcome() {
            Outcome::NotCommitted => return Fate::NotCommitted,
            Outcome::Lost => return Fate::Unknown,
            Outcome::Unknown(token) => (token, false),
            Outcome::Committed(token) => {
                let (term, vlsn) = (token.term.0, token.vlsn.0);
                return Fate::Committed { term, vlsn };
            }
        },
    };
    let (term, vlsn) = (token.term.0, token.vlsn.0);
    match (is_acknowledged, is_local) {
        (true, true) => Fate::Local { term, vlsn },
        (true, false) => Fate::Committed { term, vlsn },
        (false, _) => Fate::UnknownAs { term, vlsn },
    }
}

/// A transaction acknowledged with `ALL` is in the log of every node with an honest disk.
fn check_everywhere(world: &World, id: usize) {
    // A node whose engine became wrong may be readmitted, and has no vote until it has caught up.
    let must_have = |host: &&Host| {
        let state = host.state();
        !world.plan.expendable.contains(&host.at()) && !state.lost && !state.suspect
    };
    let has =
        |log: Result<Log, String>| log.is_ok_and(|log| check::position_of(&log, id).is_some());
    if world
        .hosts
        .iter()
        .filter(must_have)
        .all(|host| has(host.log_end()))
    {
        return;
    }
    let logs: Vec<_> = world.hosts.iter().map(Host::log).collect();
    let positions = logs.iter().flatten();
    let position = positions
        .filter_map(|log| check::position_of(log, id))
        .max();
    for (host, log) in world.hosts.iter().zip(&logs) {
        if !must_have(&host) {
            continue;
        }
        let has = |log: &Log| {
            check::position_of(log, id).is_some()
                || position.is_some_and(|position| log.purged >= Some(position))
        };
        if !log.as_ref().is_ok_and(has) {
            let said = log.as_ref().map(|log| log.purged);
            world.story.violation(format!(
                "transaction {id} was acknowledged by all, and the log of {} says {said:?}",
                host.name
            ));
        }
    }
}

/// A transaction that has a token and is known to be committed, or is not if `is_open`.
fn pick_token(world: &World, rng: &mut StdRng, is_open: bool) -> Option<(usize, u64, u64)> {
    let history = world.history();
    let with_token = |(id, transaction): (usize, &crate::history::Transaction)| {
        let (term, vlsn) = transaction.fate.token()?;
        let is_known = matches!(transaction.fate, Fate::Committed { .. });
        (is_known != is_open).then_some((id, term, vlsn))
    };
    let from = history.transactions.len().saturating_sub(200);
    let recent = history.transactions.iter().enumerate().skip(from);
    let known: Vec<_> = recent.filter_map(with_token).collect();
    (!known.is_empty()).then(|| known[rng.random_range(0..known.len())])
}

fn token_of(env: &ReplicatedEnvironment, term: u64, vlsn: u64) -> Option<CommitToken> {
    Some(CommitToken {
        group: env.status().group?,
        term: Term(term),
        vlsn: Vlsn(vlsn),
    })
}

/// Asks a node for the outcome of a write whose fate is open.
async fn outcome(world: &Arc<World>, rng: &mut StdRng, at: usize, life: &Life) {
    let Some(env) = &life.env else { return };
    let Some((id, term, vlsn)) = pick_token(world, rng, true) else {
        return;
    };
    let Some(token) = token_of(env, term, vlsn) else {
        return;
    };
    if let Some(Ok(outcome)) = ask(life, env.outcome_async(token)).await {
        note_outcome(world, at, id, outcome);
    }
}

fn note_outcome(world: &World, node: usize, id: usize, outcome: TokenOutcome) {
    world.story.trace(&[b"outcome", &[outcome as u8]]);
    let is_committed = match outcome {
        TokenOutcome::Committed => true,
        TokenOutcome::NotCommitted => false,
        TokenOutcome::StillUnknown => return,
    };
    world.history().outcomes.push(OutcomeRead {
        node,
        id,
        is_committed,
    });
}

/// Asks a node for the outcomes of writes whose fate is open. Nothing is under way any more, so it
/// knows all of them.
pub async fn settle_outcomes(world: &World, at: usize, env: &ReplicatedEnvironment) {
    let mut open: Vec<_> = {
        let history = world.history();
        let transactions = history.transactions.iter().enumerate();
        let open = transactions.filter(|(_, t)| !matches!(t.fate, Fate::Committed { .. }));
        open.filter_map(|(id, t)| Some((id, t.fate.token()?)))
            .collect()
    };
    while open.len() > OUTCOMES_ASKED_MAX {
        open.swap_remove(world.chance(|rng| rng.random_range(0..open.len())));
    }
    for (id, (term, vlsn)) in open {
        let Some(token) = token_of(env, term, vlsn) else {
            continue;
        };
        match env.outcome_async(token).await {
            Ok(TokenOutcome::StillUnknown) => world.story.violation(format!(
                "n{} does not know what became of transaction {id}, {term}/{vlsn}",
                at + 1
            )),
            Ok(outcome) => note_outcome(world, at, id, outcome),
            // The log is purged past it.
            Err(ReadError::HistoryGone { .. }) => {}
            Err(error) => world
                .story
                .violation(format!("the outcome of transaction {id}: {error}")),
        }
    }
}

fn policy(world: &World, rng: &mut StdRng, env: &ReplicatedEnvironment) -> ConsistencyPolicy {
    match rng.random_range(0..6) {
        0 | 1 => ConsistencyPolicy::Linearizable,
        2 => {
            let is_open = rng.random_range(0..4) == 0;
            let token = pick_token(world, rng, is_open);
            let token = token.and_then(|(_, term, vlsn)| token_of(env, term, vlsn));
            token.map_or(ConsistencyPolicy::Eventual, ConsistencyPolicy::AtLeast)
        }
        3 => ConsistencyPolicy::MaxLag(Duration::from_millis(rng.random_range(0..3000))),
        _ => ConsistencyPolicy::Eventual,
    }
}

/// The VLSN that a read under this policy must include, if it begins now.
fn floor(world: &World, policy: ConsistencyPolicy) -> Option<u64> {
    match policy {
        ConsistencyPolicy::Linearizable => Some(world.history().acknowledged),
        ConsistencyPolicy::AtLeast(token) => Some(token.vlsn.0),
        ConsistencyPolicy::MaxLag(lag) => {
            let lag_us = u64::try_from(lag.as_micros()).unwrap_or(u64::MAX);
            let at_us = world.story.now_us().saturating_sub(lag_us);
            Some(world.history().acknowledged_before(at_us))
        }
        _ => None,
    }
}

async fn snapshot(world: &Arc<World>, rng: &mut StdRng, at: usize, life: &Life) {
    let Some(env) = &life.env else { return };
    let script = Script::draw(world, rng, None);
    let policy = policy(world, rng, env);
    read(world, at, life, &script, policy).await;
}

/// Reads everything from the node, as of its last transaction. Returns whether it could be read.
pub async fn read_all(world: &World, at: usize, life: &Life) -> bool {
    let all = |database| RangeScript {
        database,
        from: Bytes::new(),
        to: Bytes::from_static(b"\xff"),
        reverse: false,
        limit: usize::MAX,
    };
    let script = Script {
        lists: true,
        gets: Vec::new(),
        ranges: DATABASES.into_iter().chain([MARKERS]).map(all).collect(),
        changes: Vec::new(),
        writes: Vec::new(),
    };
    read(world, at, life, &script, ConsistencyPolicy::Eventual).await
}

/// Reads a snapshot under a policy, and records the result.
async fn read(
    world: &World,
    at: usize,
    life: &Life,
    script: &Script,
    policy: ConsistencyPolicy,
) -> bool {
    let Some(env) = &life.env else { return false };
    let floor = floor(world, policy);
    let began = world.history().tick();
    let run = |snapshot: &Snapshot| -> Result<_, ReadError> {
        let reads = script.read(|| snapshot.list_databases(), |name| snapshot.database(name))?;
        Ok((snapshot.vlsn().0, reads))
    };
    let answer = ask(life, env.read_async(policy, run)).await;
    let Some(Ok((vlsn, reads))) = answer else {
        return false;
    };
    world.story.trace(&[b"snapshot", &vlsn.to_le_bytes()]);
    let mut history = world.history();
    let ended = history.tick();
    history.snapshots.push(SnapshotRead {
        node: at,
        began,
        ended,
        floor,
        vlsn,
        reads,
    });
    true
}
