//! Runs of their own: keys with a time to live, put anew, made lasting and left to end, while nodes
//! and networks fail and clocks run at different speeds.
//!
//! Two promises are checked against the true time. No node shows a state in which a key is gone
//! before its time to live has passed since its put began. And each key is gone at most as much
//! later as the guide says. What the runs of all other seeds do does not depend on these.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use steadfast::ids::Term;
use steadfast::{ConsistencyPolicy, Outcome, ReadError, ReplicatedEnvironment, WriteError};
use steadfast_net::lock;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use crate::nemesis;
use crate::net::NetFaults;
use crate::plan::Plan;
use crate::story::Story;
use crate::workload::ask;
use crate::world::{World, wait};

/// Counted besides faults: keys that have ended, and were in time.
const ENDED: &str = "key_ended";

/// The database of the keys.
const DATABASE: &str = "leases";

/// What a clock may gain or lose, in millionths: what the library allows for.
const DRIFT_PPM: i64 = 1_000;

/// Longest time to live of a key.
const TTL_MS_MAX: u64 = 8_000;

/// Clients that put keys.
const CLIENTS: usize = 3;

/// Longest pause of a client between two puts, and between two looks at a node.
const PAUSE_MS_MAX: u64 = 60;

/// A time without any acknowledged put of this length counts as one without a master.
const STALL: Duration = Duration::from_millis(250);

/// What a key may be late without a failover, besides [`allowance`].
const LATE_MAX: Duration = Duration::from_millis(600);

/// What a change of master may add to the time without one.
const FAILOVER_MAX: Duration = Duration::from_millis(1_500);

/// After the faults, a majority commits, and every key has ended, within this time: what the group
/// may need to heal, and the longest time to live.
const LIVENESS_BOUND: Duration = Duration::from_mins(1);

/// What the clocks make a key late.
fn allowance(ttl: Duration) -> Duration {
    ttl / 400
}

/// One acknowledged put of a key.
struct Put {
    vlsn: u64,
    began: Instant,
    /// `None` for one that lasts.
    ttl: Option<Duration>,
}

#[derive(Default)]
struct Key {
    /// Oldest first.
    puts: Vec<Put>,
    /// Whether a put of it is under way, or has an unknown outcome: then nothing of it is checked.
    is_vague: bool,
    /// When a node first showed a state without it, after its last put.
    gone: Option<Instant>,
}

/// What the clients know.
#[derive(Default)]
struct Known {
    keys: BTreeMap<String, Key>,
    /// When puts were acknowledged, and by the master of which term.
    acknowledged: Vec<(Instant, Term)>,
}

impl Known {
    /// How much of the time since `from` was without a master, until `to`, and what failovers added.
    fn without_master(&self, from: Instant, to: Instant) -> Duration {
        let (mut before, mut without) = (None::<(Instant, Term)>, Duration::ZERO);
        for (at, term) in self.acknowledged.iter().copied() {
            let (since, last) = before.replace((at, term)).unwrap_or((at, term));
            if at < from || since > to {
                continue;
            }
            if term != last {
                without += FAILOVER_MAX;
            }
            if at - since > STALL {
                without += at - since;
            }
        }
        without
    }
}

/// Runs a plan with keys that have a time to live. Returns the world, and the number of
/// acknowledged puts.
pub(crate) async fn simulate(plan: Plan, story: Story) -> (Arc<World>, usize) {
    let mut rng = StdRng::seed_from_u64(plan.seed ^ 0x0077_1111);
    story.tell(|| format!("{plan:#?}"));
    let world = World::new(plan, story.clone());
    for host in &world.hosts {
        host.clock().gain(rng.random_range(-DRIFT_PPM..=DRIFT_PPM));
    }
    for at in 0..world.plan.nodes {
        nemesis::restart(&world, at).await;
    }
    let known = Arc::<Mutex<Known>>::default();
    let calm = CancellationToken::new();
    let mut tasks = JoinSet::new();
    for client in 0..CLIENTS {
        let seed = rng.random();
        tasks.spawn(put_keys(
            Arc::clone(&world),
            Arc::clone(&known),
            client,
            seed,
        ));
    }
    for at in 0..world.plan.nodes {
        let seed = rng.random();
        tasks.spawn(look(Arc::clone(&world), Arc::clone(&known), at, seed));
    }
    let watch = tokio::spawn(nemesis::watch(Arc::clone(&world)));
    let rage = tokio::spawn(nemesis::rage(Arc::clone(&world), calm.clone()));
    wait(world.plan.safety).await;
    story.tell(|| "the faults end".into());
    calm.cancel();
    heal(&world);
    if timeout(LIVENESS_BOUND, rage).await.is_err() {
        story.violation("a fault does not end: a node does not open");
    }
    heal(&world);
    if timeout(LIVENESS_BOUND, settle(&world, &known))
        .await
        .is_err()
    {
        story.violation(format!("keys have not ended within {LIVENESS_BOUND:?}"));
    }
    tasks.shutdown().await;
    watch.abort();
    check(&world, &known);
    world.compare_digests();
    let acknowledged = lock(&known).acknowledged.len();
    (world, acknowledged)
}

fn heal(world: &World) {
    for host in &world.hosts {
        host.calm();
    }
    world.net.set_faults(NetFaults::default());
    world.net.clear_links();
    world.net.unblock_all();
}

/// Puts keys of its own, new ones and known ones, for ever.
async fn put_keys(world: Arc<World>, known: Arc<Mutex<Known>>, client: usize, seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut count = 0;
    loop {
        wait(Duration::from_millis(rng.random_range(1..=PAUSE_MS_MAX))).await;
        let nodes = world.open_nodes();
        let masters = world.masters();
        let Some(at) = masters.get(rng.random_range(0..masters.len().max(1))) else {
            continue;
        };
        let Some((_, life)) = nodes.into_iter().find(|(node, _)| node == at) else {
            continue;
        };
        let Some(env) = life.env.clone() else {
            continue;
        };
        let is_known = count > 0 && rng.random_bool(0.3);
        let number = if is_known {
            rng.random_range(0..count)
        } else {
            count
        };
        count += u64::from(!is_known);
        let name = format!("{client}-{number}");
        let ttl = Duration::from_millis(rng.random_range(1..=TTL_MS_MAX));
        let ttl = (!rng.random_bool(0.05)).then_some(ttl);
        let began = Instant::now();
        let was_vague = {
            let mut known = lock(&known);
            let key = known.keys.entry(name.clone()).or_default();
            std::mem::replace(&mut key.is_vague, true)
        };
        let written = ask(&life, put(&env, &name, ttl)).await;
        world
            .story
            .tell(|| format!("{name} lives for {ttl:?}: {written:?}"));
        let mut known = lock(&known);
        let key = known.keys.entry(name).or_default();
        match written {
            Some(Ok((term, vlsn))) => {
                key.puts.push(Put { vlsn, began, ttl });
                (key.gone, key.is_vague) = (None, was_vague);
                known.acknowledged.push((Instant::now(), term));
            }
            Some(Err(error)) if error.outcome() == Outcome::NotCommitted => {
                key.is_vague = was_vague;
            }
            _ => {}
        }
    }
}

async fn put(
    env: &ReplicatedEnvironment,
    name: &str,
    ttl: Option<Duration>,
) -> Result<(Term, u64), WriteError> {
    let database = env.database(DATABASE);
    let token = match ttl {
        Some(ttl) => database.put_with_ttl_async(name, "", ttl).await?,
        None => database.put_async(name, "").await?,
    };
    Ok((token.term, token.vlsn.0))
}

/// Looks at the states of a node, for ever. A node that is paused keeps nobody from the others.
async fn look(world: Arc<World>, known: Arc<Mutex<Known>>, at: usize, seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    loop {
        wait(Duration::from_millis(rng.random_range(1..=PAUSE_MS_MAX))).await;
        let Some(life) = world.hosts[at].life() else {
            continue;
        };
        let Some(env) = life.env.clone() else {
            continue;
        };
        let read = env.read_async(ConsistencyPolicy::Eventual, |snapshot| {
            let rows = snapshot.database(DATABASE)?.iter();
            let names = rows.map(|row| row.map(|row| String::from_utf8_lossy(&row.0).into_owned()));
            let names = names.collect::<Result<Vec<_>, ReadError>>()?;
            Ok::<_, ReadError>((snapshot.vlsn().0, names))
        });
        if let Some(Ok((vlsn, mut there))) = ask(&life, read).await {
            there.sort();
            see(&world, &mut lock(&known), at, (vlsn, &there));
        }
    }
}

/// Checks that nothing is gone early in a state that a node shows.
fn see(world: &World, known: &mut Known, at: usize, state: (u64, &[String])) {
    let (vlsn, there) = state;
    for (name, key) in known.keys.iter_mut().filter(|(_, key)| !key.is_vague) {
        let newest = key.puts.partition_point(|put| put.vlsn <= vlsn);
        let Some(put) = newest.checked_sub(1).map(|newest| &key.puts[newest]) else {
            continue;
        };
        if there.binary_search(name).is_ok() {
            continue;
        }
        let lived = put.began.elapsed();
        if put.ttl.is_none_or(|ttl| lived < ttl) {
            world.story.violation(format!(
                "n{} shows VLSN {vlsn} without the key {name}, after {lived:?} of {:?}",
                at + 1,
                put.ttl
            ));
            key.is_vague = true;
        } else if newest == key.puts.len() {
            key.gone.get_or_insert_with(Instant::now);
        }
    }
}

/// Waits until the group commits, and every key that is to end has ended.
async fn settle(world: &World, known: &Mutex<Known>) {
    let before = lock(known).acknowledged.len();
    while lock(known).acknowledged.len() == before {
        wait(Duration::from_millis(10)).await;
    }
    // Puts go on: what is put from here on need not end.
    let from = Instant::now();
    let lives = |known: &Known| {
        let keys = known.keys.values();
        keys.filter(|key| !key.is_vague && key.gone.is_none())
            .filter_map(|key| key.puts.last())
            .any(|put| put.ttl.is_some() && put.began < from)
    };
    while lives(&lock(known)) && world.story.violations().is_empty() {
        wait(Duration::from_millis(20)).await;
    }
}

/// Checks that every key that has ended was in time.
fn check(world: &World, known: &Mutex<Known>) {
    let known = lock(known);
    for (name, key) in known.keys.iter().filter(|(_, key)| !key.is_vague) {
        let (Some(gone), Some(put)) = (key.gone, key.puts.last()) else {
            continue;
        };
        let Some(ttl) = put.ttl else { continue };
        let without = known.without_master(put.began, gone);
        let max = ttl + allowance(ttl) + LATE_MAX + without;
        let lived = gone - put.began;
        world.story.count(ENDED);
        if lived > max {
            world.story.violation(format!(
                "the key {name} lived for {lived:?}, with {ttl:?}, {without:?} without a master"
            ));
        }
    }
}
