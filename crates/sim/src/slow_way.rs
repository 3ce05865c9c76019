//! Runs after the main run, if nothing is lost: the link to one node becomes slow, and stays slow.
//!
//! A slow link is not a dead peer: the node receives everything, from the log or as a copy, in
//! about the time that the bytes take.

use std::sync::Arc;
use std::time::Duration;

use rand::seq::IndexedRandom;
use steadfast::ReplicatedEnvironment;
use steadfast::ids::Vlsn;

use crate::net::NetFaults;
use crate::plan::Fault;
use crate::world::{World, wait, where_it_is};

/// Bandwidth of the link. By a clock without drift, a full connection drains in a third of the silence
/// limit, so heartbeats come through; what is written takes more than twice that limit.
const BYTES_PER_MS: u32 = 400;
/// Bytes of each value: less than the smallest limit of a transaction.
const VALUE_BYTES: usize = 24 << 10;
const VALUES: usize = 80;
/// Time limit: five times what the bytes take, and what an election takes.
const BOUND: Duration = Duration::from_mins(1);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Writes more than a slow link carries at once. Any unexpected outcome is a violation.
pub async fn run(world: &Arc<World>) {
    let is_up = |at: &usize| env(world, *at).is_some() && !world.hosts[*at].state().lost;
    let up: Vec<usize> = (0..world.plan.nodes).filter(is_up).collect();
    // Without the slow node, a majority that nothing holds up remains.
    if up.len() < world.plan.nodes || up.len() < 3 {
        return;
    }
    let masters = world.masters();
    let others: Vec<usize> = up.into_iter().filter(|at| !masters.contains(at)).collect();
    let Some(slow) = world.chance(|rng| others.choose(rng).copied()) else {
        return;
    };
    slow_down(world, slow);
    world.story.count(Fault::SlowWay.name());
    if let Err(what) = catch_up(world, slow).await {
        let nodes: Vec<_> = (0..world.plan.nodes)
            .map(|at| where_it_is(world, at))
            .collect();
        world.story.violation(format!(
            "on the slow way to n{}, {what}: {}",
            slow + 1,
            nodes.join("; ")
        ));
    }
}

fn env(world: &World, at: usize) -> Option<ReplicatedEnvironment> {
    world.hosts[at].life().and_then(|life| life.env)
}

fn slow_down(world: &World, slow: usize) {
    let faults = NetFaults {
        bytes_per_ms: Some(BYTES_PER_MS),
        ..NetFaults::default()
    };
    let name = &world.hosts[slow].name;
    for other in world.hosts.iter().filter(|host| host.name != *name) {
        world.net.set_link(name, &other.name, faults);
        world.net.set_link(&other.name, name, faults);
    }
}

async fn catch_up(world: &Arc<World>, slow: usize) -> Result<(), String> {
    let last = tokio::time::timeout(BOUND, write(world)).await;
    let last = last.map_err(|_| format!("not everything is committed within {BOUND:?}"))?;
    let has_all = async {
        while env(world, slow).is_none_or(|env| env.status().vlsn < last) {
            wait(LOOK_EVERY).await;
        }
    };
    let caught_up = tokio::time::timeout(BOUND, has_all).await;
    caught_up.map_err(|_| format!("it has not got {last} within {BOUND:?}"))?;
    world.compare_digests();
    Ok(())
}

/// Writes all values; returns the VLSN of the last one.
async fn write(world: &World) -> Vlsn {
    let mut last = Vlsn(0);
    for n in 0..VALUES {
        let key = format!("slow{n}");
        loop {
            let master = world.masters().first().and_then(|at| env(world, *at));
            if let Some(master) = master {
                let written = master.write_async(|txn| {
                    let database = txn.database("slow")?;
                    database.put(key.as_bytes(), vec![0; VALUE_BYTES])
                });
                if let Ok(written) = written.await {
                    last = written.token.vlsn;
                    break;
                }
            }
            wait(LOOK_EVERY).await;
        }
    }
    last
}
