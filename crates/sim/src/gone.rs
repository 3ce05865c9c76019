//! Runs after the main run, unless the quorum is lost: a row is gone on every node that is up, and
//! no log holds it any more. The one node that still has it is down.
//!
//! Nothing can repair that, so no node may serve, and each must report the damage. Then the missing
//! node comes back, and all of them recover.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rand::RngExt;
use rand::seq::IndexedRandom;
use steadfast::engine::Falsehood;
use steadfast::ids::DatabaseId;
use steadfast::{ConsistencyPolicy, ReadError, ReadyError};

use crate::check::{self, CATALOG};
use crate::falsehood::{engine, kept, tells};
use crate::nemesis::restart;
use crate::plan::Fault;
use crate::workload::mark;
use crate::world::{End, Host, World, wait, where_it_is};

/// Time limit for each step.
const BOUND: Duration = Duration::from_mins(1);
/// How long nodes that cannot be right have to refuse service.
const STAY: Duration = Duration::from_secs(10);
/// Polling interval.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Loses a row on all nodes of a group but one. Any unexpected outcome is a violation.
pub async fn run(world: &Arc<World>) {
    let is_whole =
        |host: &Host| !host.state().lost && host.life().is_some_and(|life| life.env.is_some());
    if world.plan.nodes < 2 || !world.hosts.iter().all(is_whole) {
        return;
    }
    if let Err(what) = lose_row(world).await {
        let nodes = (0..world.plan.nodes).map(|at| where_it_is(world, at));
        let nodes: Vec<_> = nodes.collect();
        world.story.violation(format!(
            "after a row was lost on all nodes but one, {what}: {}",
            nodes.join("; ")
        ));
    }
}

async fn lose_row(world: &Arc<World>) -> Result<(), String> {
    for at in 0..world.plan.nodes {
        world.end(at, End::Kill);
    }
    let right = world.chance(|rng| rng.random_range(0..world.plan.nodes));
    let wrong: Vec<usize> = (0..world.plan.nodes).filter(|at| *at != right).collect();
    let row = unkept_row(world);
    let is_lost = row.is_some_and(|row| wrong.iter().all(|at| lose(world, *at, &row)));
    for at in &wrong {
        world.start(*at).await?;
    }
    if is_lost {
        world.story.count(Fault::EngineGone.name());
        stay_without_use(world, &wrong).await?;
    }
    world.start(right).await?;
    // Nodes that have stopped are reopened once there is something to copy.
    wait(LOOK_EVERY).await;
    for at in &wrong {
        if has_stopped(world, *at).await {
            world.end(*at, End::Kill);
            restart(world, *at).await;
        }
    }
    become_right(world).await
}

/// A user's row that every node has, and whose last change is in no log any more.
fn unkept_row(world: &World) -> Option<(DatabaseId, Bytes)> {
    let first = world.hosts.first()?;
    let (store, dir) = engine(first)?;
    let applied = store.applied(&dir)?.position.0;
    let mut logs: Vec<_> = world.hosts.iter().flat_map(Host::former_logs).collect();
    logs.extend(world.hosts.iter().flat_map(Host::log));
    let log = check::union(logs.iter());
    let mut rows = check::last_changes(&log, applied).ok()?;
    let ids = check::database_ids(&log, applied).ok()?;
    for host in &world.hosts {
        let (store, dir) = engine(host)?;
        let kept = kept(world, host, &store, &dir);
        let has = |(database, key): &(u32, Bytes)| {
            let is_there = store.row(&dir, DatabaseId(*database), key).is_some();
            is_there && !kept.contains_key(&(*database, key.clone()))
        };
        rows.retain(|row, _| row.0 != CATALOG && ids.contains(&row.0) && has(row));
    }
    // The last ones are the most costly to lose: the log has only just purged them.
    let rows: Vec<_> = rows.into_keys().collect();
    let (database, key) = world.chance(|rng| rows.choose(rng).cloned())?;
    world.story.tell(|| {
        let key = String::from_utf8_lossy(&key).into_owned();
        format!("row {key:?} of database {database} is lost on all nodes but one")
    });
    Some((DatabaseId(database), key))
}

fn lose(world: &World, at: usize, row: &(DatabaseId, Bytes)) -> bool {
    let host = &world.hosts[at];
    host.set_state(|state| state.suspect = true);
    let lost = engine(host).and_then(|(store, dir): (_, _)| {
        let is_this = |database, key: &[u8]| (database, key) == (row.0, &row.1[..]);
        let dir: &Path = &dir;
        store.falsify(dir, Falsehood::Lost, is_this, &mut |_| 0)
    });
    lost.is_some()
}

async fn has_stopped(world: &World, at: usize) -> bool {
    let env = world.hosts[at].life().and_then(|life| life.env);
    let Some(env) = env else { return true };
    let ready = env.wait_ready_async(Duration::ZERO).await;
    matches!(ready, Err(ReadyError::Stopped { .. }))
}

/// Nodes that are all wrong serve nothing, and each of them eventually reports it.
async fn stay_without_use(world: &World, wrong: &[usize]) -> Result<(), String> {
    let mut told = vec![false; world.plan.nodes];
    let until = tokio::time::Instant::now() + STAY;
    while tokio::time::Instant::now() < until {
        for at in wrong {
            let name = &world.hosts[*at].name;
            let Some(env) = world.hosts[*at].life().and_then(|life| life.env) else {
                return Err(format!("{name} is down"));
            };
            let read = env.read_async(ConsistencyPolicy::Eventual, |_| Ok::<_, ReadError>(()));
            if read.await.is_ok() {
                return Err(format!("{name} lets itself be read"));
            }
            told[*at] |= tells(&env, 0).await;
        }
        wait(LOOK_EVERY).await;
    }
    match wrong.iter().find(|at| !told[**at]) {
        Some(at) => Err(format!("n{} does not tell", at + 1)),
        None => Ok(()),
    }
}

/// The group commits again, and all nodes hold the same data.
async fn become_right(world: &Arc<World>) -> Result<(), String> {
    let committing = async {
        loop {
            for at in world.masters() {
                let env = world.hosts[at].life().and_then(|life| life.env);
                if let Some(env) = env
                    && let Some(token) = mark(world, &env).await
                {
                    return token.vlsn;
                }
            }
            wait(LOOK_EVERY).await;
        }
    };
    let last = tokio::time::timeout(BOUND, committing).await;
    let last = last.map_err(|_| format!("nothing is committed within {BOUND:?}"))?;
    let have_all = async {
        let has = |host: &Host| {
            let env = host.life().and_then(|life| life.env);
            env.is_some_and(|env| env.status().vlsn >= last)
        };
        while !world.hosts.iter().all(has) {
            wait(LOOK_EVERY).await;
        }
    };
    let have_all = tokio::time::timeout(BOUND, have_all).await;
    have_all.map_err(|_| format!("not all nodes have {last} within {BOUND:?}"))?;
    world.compare_digests();
    Ok(())
}
