//! Runs after the main run: the group loses its quorum for good, continues from what is left in a
//! new epoch, keeps returning nodes of the old one out, and grows again.
//!
//! This is no ordinary fault, because it may lose acknowledged transactions. So it comes after
//! everything else was checked against the log, and is itself checked against it: a survivor holds
//! exactly the log up to where its own ends.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rand::RngExt;
use rand::seq::SliceRandom;
use steadfast::quorum_loss::{self, NextStep, RecoverError, RecoveryPlan};
use steadfast::{ConsistencyPolicy, NodeType, ReadError, ReplicatedEnvironment, Role};
use steadfast_net::process::Process;
use tokio_util::sync::CancellationToken;

use crate::check::marker;
use crate::faults::disk_faults;
use crate::hardware::DATA_DIR;
use crate::history::{Fate, MARKERS};
use crate::plan::Fault;
use crate::workload::mark;
use crate::world::{End, Host, World, wait, where_it_is};

/// Time limit for each step.
const BOUND: Duration = Duration::from_secs(20);
/// Polling interval.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Most transactions that lagging survivors lack.
const BEHIND_MAX: usize = 20;

/// Makes an intact group lose its quorum. Any unexpected outcome is a violation.
pub async fn run(world: &Arc<World>) {
    let is_whole = |host: &Host| !host.state().lost && env(world, host.at()).is_some();
    if world.plan.nodes < 2 || !world.hosts.iter().all(is_whole) {
        return;
    }
    if let Err(what) = lose_quorum(world).await {
        let nodes = (0..world.plan.nodes).map(|at| where_it_is(world, at));
        let nodes: Vec<_> = nodes.collect();
        world.story.violation(format!(
            "after the quorum was lost, {what}: {}",
            nodes.join("; ")
        ));
    }
}

async fn lose_quorum(world: &Arc<World>) -> Result<(), String> {
    until("not every node has its vote", || all_vote(world)).await?;
    let nodes = world.plan.nodes;
    let mut order: Vec<usize> = (0..nodes).collect();
    let left = world.chance(|rng| {
        order.shuffle(rng);
        rng.random_range(1..=nodes / 2)
    });
    let (survivors, lost) = order.split_at(left);
    let acknowledged = leave_behind(world, survivors).await?;
    world.story.count(Fault::QuorumLost.name());
    world.story.tell(|| {
        format!(
            "the quorum is lost: what is left is n{:?}",
            plus_one(survivors)
        )
    });
    for at in 0..nodes {
        end(world, at);
    }
    world.net.unblock_all();
    world.forget_digests();

    let (survivor, plan) = apply_to_best(world, survivors).await?;
    world.start(survivor).await?;
    let recovered = env(world, survivor).ok_or("the survivor does not open")?;
    until("the survivor is not master", || {
        recovered.state().role == Role::Master
    })
    .await?;
    check_kept(&recovered, &plan, &acknowledged).await?;
    keep_out(world, survivor, lost).await?;
    grow(world, survivor, &recovered).await
}

fn plus_one(nodes: &[usize]) -> Vec<usize> {
    nodes.iter().map(|at| at + 1).collect()
}

fn env(world: &World, at: usize) -> Option<ReplicatedEnvironment> {
    world.hosts[at].life().and_then(|life| life.env)
}

/// Waits until `is_so` holds.
async fn until(otherwise: &str, mut is_so: impl FnMut() -> bool) -> Result<(), String> {
    let so = async {
        while !is_so() {
            wait(LOOK_EVERY).await;
        }
    };
    let so = tokio::time::timeout(BOUND, so).await;
    so.map_err(|_| format!("{otherwise} within {BOUND:?}"))
}

/// Whether every node knows that all nodes are voting members.
fn all_vote(world: &World) -> bool {
    let knows = |host: &Host| {
        let members = env(world, host.at()).map(|env| env.status().members);
        members.is_some_and(|members| {
            members.len() == world.hosts.len() && members.iter().all(|member| member.votes)
        })
    };
    world.hosts.iter().all(knows)
}

/// Commits some more without a minority of the future survivors. Returns everything ever
/// acknowledged by a majority that left its mark: transaction numbers (VLSNs) and ids.
async fn leave_behind(
    world: &Arc<World>,
    survivors: &[usize],
) -> Result<BTreeMap<u64, usize>, String> {
    let most = survivors.len().min((world.plan.nodes - 1) / 2);
    let (behind, more) = world.chance(|rng| {
        let behind = rng.random_range(0..=most);
        (behind, rng.random_range(0..=BEHIND_MAX))
    });
    let host = |at: &usize| world.hosts[*at].name.clone();
    let behind: Vec<_> = survivors[..behind].iter().map(host).collect();
    let mut rest: Vec<_> = (0..world.plan.nodes).map(|at| host(&at)).collect();
    rest.retain(|name| !behind.contains(name));
    world.net.partition(&[behind.clone(), rest]);
    let mut acknowledged: BTreeMap<u64, usize> = BTreeMap::new();
    for (id, transaction) in world.history().transactions.iter().enumerate() {
        let mut writes = transaction.writes.iter();
        if let Fate::Committed { vlsn, .. } = transaction.fate
            && writes.any(|(database, ..)| *database == MARKERS)
        {
            acknowledged.insert(vlsn, id);
        }
    }
    for _ in 0..more {
        let writing = async {
            loop {
                for at in world.masters() {
                    let id = world.history().transactions.len();
                    if !behind.contains(&world.hosts[at].name)
                        && let Some(env) = env(world, at)
                        && let Some(token) = mark(world, &env).await
                    {
                        return (token.vlsn.0, id);
                    }
                }
                wait(LOOK_EVERY).await;
            }
        };
        let written = tokio::time::timeout(BOUND, writing).await;
        let (vlsn, id) = written.map_err(|_| "a majority commits nothing before that")?;
        acknowledged.insert(vlsn, id);
    }
    Ok(acknowledged)
}

/// Whether the disk is honest, so that the power may be cut.
fn is_honest(world: &World, at: usize) -> bool {
    !disk_faults(&world.plan, at).lying_sync
}

fn end(world: &World, at: usize) {
    let is_cut: bool = world.chance(RngExt::random);
    let end = if is_cut && is_honest(world, at) {
        End::PowerCut
    } else {
        End::Kill
    };
    world.end(at, end);
}

async fn plan(world: &World, at: usize) -> Result<RecoveryPlan, RecoverError> {
    let machine = world.machine(at);
    let directories = [PathBuf::from(DATA_DIR)];
    let process = Process::new();
    let planned = process
        .run(quorum_loss::plan(&machine, &directories, &[]))
        .await;
    process.kill();
    planned
}

/// Acts as an operator would: plans with one survivor while the others are up, until the plan names
/// the one that has most; then applies it. Returns which, and the plan.
async fn apply_to_best(
    world: &Arc<World>,
    survivors: &[usize],
) -> Result<(usize, RecoveryPlan), String> {
    let (first, others) = survivors.split_first().ok_or("nothing is left")?;
    for at in others {
        world.start(*at).await?;
    }
    let mut at = *first;
    for _ in survivors {
        let planned = plan(world, at).await.map_err(|error| error.to_string())?;
        match &planned.next {
            NextStep::Apply { confirm, .. } => {
                let again = apply(world, at, confirm).await?;
                return Ok((at, again.unwrap_or(planned)));
            }
            NextStep::Stop { node } => {
                let better = world.hosts.iter().find(|host| host.name == *node);
                let better = better.ok_or_else(|| format!("the plan names {node:?}"))?;
                world.start(at).await?;
                at = better.at();
                world.end(at, End::Kill);
            }
        }
    }
    Err("each survivor is said to have less than another one".to_owned())
}

/// Applies a plan. The power may be cut meanwhile: then it is either done, or planned again and the
/// new plan returned. A plan makes nothing durable, so less may be left then.
async fn apply(world: &World, at: usize, confirm: &str) -> Result<Option<RecoveryPlan>, String> {
    let host = &world.hosts[at];
    let is_honest = is_honest(world, at);
    let steps = world.chance(|rng| rng.random_range(0..40)) * u64::from(is_honest);
    let ended = CancellationToken::new();
    let process = Process::new();
    if steps > 0 {
        let (process, ended) = (process.clone(), ended.clone());
        host.disk().crash_after(steps, move || {
            process.kill();
            ended.cancel();
        });
    }
    let machine = world.machine(at);
    let applying = process.run(quorum_loss::apply(&machine, Path::new(DATA_DIR), confirm));
    let applied = tokio::select! {
        biased;
        () = ended.cancelled() => None,
        applied = applying => Some(applied),
    };
    process.kill();
    drop(machine);
    // An answer from a node without power reaches nobody.
    let applied = applied.filter(|_| !host.disk().tripped());
    // What was applied is durable.
    let how = if is_honest { End::PowerCut } else { End::Kill };
    world.end(at, how);
    match applied {
        Some(Ok(_)) => return Ok(None),
        Some(Err(error)) => return Err(format!("the plan is not applied: {error}")),
        None => world
            .story
            .tell(|| format!("{}: power cut in a recovery", host.name)),
    }
    match plan(world, at).await {
        Err(RecoverError::NotNeeded { voters: 1, .. }) => Ok(None),
        Ok(planned) => {
            let NextStep::Apply { confirm, .. } = &planned.next else {
                let next = planned.next;
                return Err(format!(
                    "a recovery that was cut short goes on with {next:?}"
                ));
            };
            let machine = world.machine(at);
            let applying = process_of(quorum_loss::apply(&machine, Path::new(DATA_DIR), confirm));
            let applied = applying.await;
            world.end(at, End::Kill);
            applied.map_err(|error| error.to_string())?;
            Ok(Some(planned))
        }
        Err(error) => Err(format!("a recovery that was cut short: {error}")),
    }
}

async fn process_of<T>(work: impl Future<Output = T>) -> T {
    let process = Process::new();
    let done = process.run(work).await;
    process.kill();
    done
}

/// The survivor has everything acknowledged up to where the plan says it ends, and nothing
/// acknowledged after; and if that is not all, the plan has said so.
async fn check_kept(
    recovered: &ReplicatedEnvironment,
    plan: &RecoveryPlan,
    acknowledged: &BTreeMap<u64, usize>,
) -> Result<(), String> {
    let end = plan.survivors.first().map_or(0, |survivor| survivor.vlsn.0);
    let read = recovered.read_async(
        ConsistencyPolicy::Linearizable,
        |snapshot| -> Result<_, ReadError> {
            let marks = snapshot.database(MARKERS)?;
            let mut kept = BTreeMap::new();
            for (vlsn, id) in acknowledged {
                kept.insert(*vlsn, marks.get(marker(*id))?.is_some());
            }
            Ok(kept)
        },
    );
    let kept = read.await.map_err(|error| error.to_string())?;
    for (vlsn, is_kept) in kept {
        if is_kept != (vlsn <= end) {
            let is = if is_kept { "is there" } else { "is lost" };
            return Err(format!(
                "VLSN {vlsn} {is}; the plan says that {end} is the last"
            ));
        }
        if !is_kept && !plan.may_lose {
            return Err(format!(
                "VLSN {vlsn} is lost; the plan says that nothing can be"
            ));
        }
    }
    Ok(())
}

/// Returning nodes of the old epoch detach, even if they are a majority of it.
async fn keep_out(world: &Arc<World>, survivor: usize, lost: &[usize]) -> Result<(), String> {
    for at in lost {
        if world.chance(|rng| rng.random_range(0..3) > 0) {
            world.start(*at).await?;
        }
    }
    for (at, life) in world.open_nodes() {
        let Some(env) = life.env.filter(|_| at != survivor) else {
            continue;
        };
        let otherwise = format!("n{} takes part in an epoch that has ended", at + 1);
        until(&otherwise, || env.state().role == Role::Detached).await?;
    }
    Ok(())
}

/// New nodes take the places of the others.
async fn grow(
    world: &Arc<World>,
    survivor: usize,
    recovered: &ReplicatedEnvironment,
) -> Result<(), String> {
    for host in world.hosts.iter().filter(|host| host.at() != survivor) {
        world.end(host.at(), End::Kill);
        host.replace_disk(world);
        host.calm();
        let token = recovered.join_token(NodeType::Electable);
        host.set_token(token.ok_or("the survivor gives no token")?);
        host.set_state(|state| *state = crate::world::HostState::default());
        world.start(host.at()).await?;
    }
    until("the group has not grown again", || all_vote(world)).await?;
    let last = mark(world, recovered).await.map(|token| token.vlsn);
    let last = last.ok_or("the group commits nothing")?;
    until("not every node has the last write", || {
        world.hosts.iter().all(|host| {
            let vlsn = env(world, host.at()).map(|env| env.status().vlsn);
            vlsn.is_some_and(|vlsn| vlsn >= last)
        })
    })
    .await?;
    world.compare_digests();
    Ok(())
}
