//! One run: a safety phase with faults, a liveness phase without, and the checks.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use rand::RngExt;
use serde::{Deserialize, Serialize};
use steadfast::ids::LogPosition;
use steadfast::{ReplicatedEnvironment, Role};
use steadfast_net::lock;
use tokio::runtime::RngSeed;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::check::NodeLog;
use crate::net::NetFaults;
use crate::plan::{Fault, Plan};
use crate::story::Story;
use crate::world::{Host, World, wait, where_it_is};
use crate::{
    check, falsehood, gone, lifetimes, logfile, nemesis, onlooker, recovery, slow_way, subscribers,
    workload,
};

/// After the faults have ended, a majority commits within this time, and all nodes agree within
/// twice this time: some forty election timeouts of the slowest node.
const LIVENESS_BOUND: Duration = Duration::from_secs(30);

/// A run with fewer acknowledged transactions does not count.
pub const TRANSACTIONS_MIN: usize = 50;

/// Most memory a node may use for versions outside the engine: its limit plus one transaction.
const WINDOW_BYTES_MAX: u64 = 3 << 20;

/// All panics of the process, wherever they happened.
static PANICS: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Result of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The seed.
    pub seed: u64,
    /// Hash of the whole trace.
    pub hash: u64,
    /// Violated invariants.
    pub violations: Vec<String>,
    /// Virtual time.
    pub simulated_ms: u64,
    /// Number of acknowledged transactions.
    pub transactions: usize,
    /// Faults that fired.
    pub faults: BTreeMap<String, u64>,
    /// CPU time of the run, in microseconds.
    pub cpu_us: u64,
}

impl Report {
    /// Whether the run counts: faults fired, and work was done.
    pub fn counts(&self) -> bool {
        self.transactions >= TRANSACTIONS_MIN && !self.faults.is_empty()
    }
}

/// Runs a plan to its end, on its own runtime.
///
/// # Errors
/// When no runtime can be created.
pub fn run(plan: Plan, story_of: impl FnOnce() -> Story) -> std::io::Result<(Report, Story)> {
    drive(plan, story_of, simulate)
}

/// Runs a plan with keys that have a time to live, in place of its own load, to its end.
///
/// # Errors
/// As [`run`].
pub fn lifetimes(plan: Plan, story_of: impl FnOnce() -> Story) -> std::io::Result<(Report, Story)> {
    drive(plan, story_of, async |plan: Plan, story: Story| {
        let seed = plan.seed;
        let (world, transactions) = lifetimes::simulate(plan, story.clone()).await;
        tell_panics(&story);
        Report {
            transactions,
            ..report(seed, &world)
        }
    })
}

fn drive<R: Future<Output = Report>>(
    plan: Plan,
    story_of: impl FnOnce() -> Story,
    simulate: impl FnOnce(Plan, Story) -> R,
) -> std::io::Result<(Report, Story)> {
    std::panic::set_hook(Box::new(|panic| lock(&PANICS).push(panic.to_string())));
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder
        .enable_time()
        .start_paused(true)
        // Orders that tokio leaves to chance, such as which of several waiters is woken first.
        .rng_seed(RngSeed::from_bytes(&plan.seed.to_le_bytes()))
        .build()?;
    let (report, story) = runtime.block_on(async {
        let story = story_of();
        let report = simulate(plan, story.clone()).await;
        (report, story)
    });
    // What is left of the nodes is dropped without running.
    runtime.shutdown_background();
    Ok((report, story))
}

async fn simulate(plan: Plan, story: Story) -> Report {
    let seed = plan.seed;
    story.tell(|| format!("{plan:#?}"));
    let world = World::new(plan, story.clone());
    for at in 0..world.plan.nodes {
        nemesis::restart(&world, at).await;
    }
    let calm = CancellationToken::new();
    let mut clients = JoinSet::new();
    for _ in 0..world.plan.clients {
        clients.spawn(workload::client(
            Arc::clone(&world),
            world.chance(RngExt::random),
        ));
    }
    let mut followers = JoinSet::new();
    for is_remote in [false, true] {
        let seed = world.chance(RngExt::random);
        followers.spawn(subscribers::subscriber(Arc::clone(&world), is_remote, seed));
    }
    let seed_of_onlooker = world.chance(RngExt::random);
    followers.spawn(onlooker::onlooker(Arc::clone(&world), seed_of_onlooker));
    let watch = tokio::spawn(nemesis::watch(Arc::clone(&world)));
    let look = tokio::spawn(falsehood::watch(Arc::clone(&world)));
    let observe = tokio::spawn(observe(Arc::clone(&world)));
    let rage = tokio::spawn(nemesis::rage(Arc::clone(&world), calm.clone()));
    wait(world.plan.safety).await;
    story.tell(|| "the faults end".into());
    calm.cancel();
    for host in &world.hosts {
        host.calm();
    }
    world.net.set_faults(NetFaults::default());
    world.net.clear_links();
    world.net.unblock_all();
    if tokio::time::timeout(LIVENESS_BOUND, rage).await.is_err() {
        story.violation("a fault does not end: a node does not open");
    }
    world.net.unblock_all();
    for host in &world.hosts {
        host.calm();
    }
    settle(&world).await;
    clients.shutdown().await;
    falsehood::settle(&world).await;
    watch.abort();
    look.abort();
    observe.abort();
    finish(&world).await;
    followers.shutdown().await;
    if story.violations().is_empty() {
        if world.plan.has(Fault::QuorumLost) {
            recovery::run(&world).await;
        } else if world.plan.has(Fault::EngineGone) {
            gone::run(&world).await;
        } else if world.plan.has(Fault::SlowWay) {
            slow_way::run(&world).await;
        }
    }
    tell_panics(&story);
    report(seed, &world)
}

fn tell_panics(story: &Story) {
    for panic in lock(&PANICS).drain(..) {
        story.violation(format!("panic: {panic}"));
    }
}

/// Checks all nodes now and then.
async fn observe(world: Arc<World>) {
    loop {
        let pause = world.chance(|rng| rng.random_range(500..4000));
        wait(Duration::from_millis(pause)).await;
        world.compare_digests();
        let at = world.chance(|rng| rng.random_range(0..world.hosts.len()));
        falsehood::check_purge(&world, &world.hosts[at]);
        for (at, life) in world.open_nodes() {
            let Some(env) = life.env else { continue };
            let is_in = matches!(env.state().role, Role::Master | Role::Replica);
            if is_in && world.hosts[at].state().fenced {
                let n = at + 1;
                let why = "takes part without what it was let in with";
                world.story.violation(format!("n{n} {why}"));
            }
            let status = env.status();
            falsehood::check_word(&world, &world.hosts[at], &status);
            let bytes = status.window_bytes;
            if bytes > WINDOW_BYTES_MAX {
                world
                    .story
                    .violation(format!("the window of n{} has {bytes} bytes", at + 1));
            }
        }
    }
}

/// Waits until a majority commits again.
async fn settle(world: &Arc<World>) {
    let before = world.history().acknowledged;
    let healed = async {
        while world.history().acknowledged == before {
            wait(Duration::from_millis(10)).await;
        }
    };
    if tokio::time::timeout(LIVENESS_BOUND, healed).await.is_err() {
        world.story.violation(format!(
            "nothing is committed within {LIVENESS_BOUND:?} of the last fault"
        ));
    }
    // Some more load on the healed group.
    wait(Duration::from_secs(1)).await;
}

/// Lets all nodes catch up and checks everything against the committed log.
async fn finish(world: &Arc<World>) {
    let Some(last) = last_write(world).await else {
        return;
    };
    // Damaged nodes that could open have repaired themselves by now.
    for (at, _) in world.open_nodes() {
        world.hosts[at].set_state(|state| state.lost &= !state.damaged);
    }
    let live: Vec<usize> = world
        .open_nodes()
        .into_iter()
        .map(|(at, _)| at)
        .filter(|at| !world.hosts[*at].state().lost)
        .collect();
    for host in &world.hosts {
        if !live.contains(&host_index(world, host)) && !host.state().lost {
            world
                .story
                .violation(format!("{} is down without a reason", host.name));
        }
    }
    let caught_up = async {
        while live.iter().any(|at| vlsn(world, *at) < last) {
            wait(Duration::from_millis(20)).await;
        }
    };
    if tokio::time::timeout(LIVENESS_BOUND, caught_up)
        .await
        .is_err()
    {
        let behind = live.iter().filter(|at| vlsn(world, **at) < last);
        let behind: Vec<_> = behind.map(|at| where_it_is(world, *at)).collect();
        world.story.violation(format!(
            "nodes do not catch up to {last}: {}",
            behind.join("; ")
        ));
        return;
    }
    world.compare_digests();
    falsehood::read_everywhere(world, &live).await;
    for at in &live {
        if let Some(env) = env(world, *at) {
            workload::settle_outcomes(world, *at, &env).await;
        }
    }
    await_subscribers(world, last).await;
    check_logs(world, &live);
}

/// Waits until every subscriber has been told of the last transaction.
async fn await_subscribers(world: &World, last: u64) {
    let passed = |is_remote| {
        let history = world.history();
        let mut feeds = history.feeds.iter().rev();
        let newest = feeds.find(|feed| feed.is_remote == is_remote);
        newest.map_or(0, |feed| feed.passed)
    };
    let all_told = async {
        while [false, true]
            .into_iter()
            .any(|is_remote| passed(is_remote) < last)
        {
            wait(Duration::from_millis(20)).await;
        }
    };
    if tokio::time::timeout(LIVENESS_BOUND, all_told)
        .await
        .is_err()
    {
        let (local, remote) = (passed(false), passed(true));
        world.story.violation(format!(
            "subscribers do not come to {last}: the local one is at {local}, the remote one at {remote}"
        ));
    }
}

fn host_index(world: &World, host: &Host) -> usize {
    world
        .hosts
        .iter()
        .position(|other| other.name == host.name)
        .unwrap_or_default()
}

fn env(world: &World, at: usize) -> Option<ReplicatedEnvironment> {
    world.hosts[at].life().and_then(|life| life.env)
}

fn vlsn(world: &World, at: usize) -> u64 {
    env(world, at).map_or(0, |env| env.status().vlsn.0)
}

/// Commits one more transaction, after which nothing is under way.
async fn last_write(world: &Arc<World>) -> Option<u64> {
    let writing = async {
        loop {
            let master = world.masters().first().and_then(|at| env(world, *at));
            if let Some(env) = master
                && let Some(token) = workload::mark(world, &env).await
            {
                return token.vlsn.0;
            }
            wait(Duration::from_millis(20)).await;
        }
    };
    let written = tokio::time::timeout(LIVENESS_BOUND, writing).await;
    if written.is_err() {
        world.story.violation("the last write is not committed");
    }
    written.ok()
}

fn check_logs(world: &World, live: &[usize]) {
    let mut logs = Vec::new();
    let mut committed = u64::MAX;
    for at in live {
        let host = &world.hosts[*at];
        let status = env(world, *at).map(|env| env.status());
        let at_or_zero = |position: Option<LogPosition>| position.map_or(0, |position| position.0);
        let (applied, persisted) = status.map_or((0, 0), |status| {
            (at_or_zero(status.applied), at_or_zero(status.persisted))
        });
        committed = committed.min(applied);
        match host.log() {
            Ok(log) => logs.push(NodeLog {
                name: host.name.clone(),
                log,
                persisted,
            }),
            Err(error) => world
                .story
                .violation(format!("the log of {}: {error}", host.name)),
        }
    }
    // A node may apply entries it does not have on disk yet: the first node here has them all.
    logs.sort_by_key(|node| std::cmp::Reverse(node.persisted));
    for problem in check::logs_agree(&logs, committed) {
        world.story.violation(problem);
    }
    // What a node received by copy is in another node's log, even if that has since given it up.
    let mut others: Vec<_> = world.hosts.iter().flat_map(Host::former_logs).collect();
    let down = world.hosts.iter().filter(|host| !live.contains(&host.at()));
    others.extend(down.flat_map(Host::log));
    let mut log = check::union(logs.iter().map(|node| &node.log));
    for (position, entry) in check::union(others.iter()) {
        log.entry(position).or_insert(entry);
    }
    let all = logs.iter().map(|node| &node.log).chain(&others);
    for (position, entry) in all.flat_map(|log| &log.replaced) {
        log.entry(*position).or_insert_with(|| entry.clone());
    }
    match logfile::transactions(&log, committed) {
        Ok(transactions) => {
            let history = world.history();
            let problems = check::history(&history, &transactions);
            let of_feeds = check::feeds(&history, &transactions);
            for problem in problems.into_iter().chain(of_feeds) {
                world.story.violation(problem);
            }
        }
        Err(error) => world.story.violation(error),
    }
}

fn report(seed: u64, world: &World) -> Report {
    let mut faults: BTreeMap<String, u64> = BTreeMap::new();
    let mut add = |counts: BTreeMap<&'static str, u64>| {
        for (fault, count) in counts.into_iter().filter(|(_, count)| *count > 0) {
            *faults.entry(fault.to_owned()).or_default() += count;
        }
    };
    add(world.story.counts());
    add(world.net.counts());
    for host in &world.hosts {
        add(host.disk().counts());
    }
    Report {
        seed,
        hash: world.story.hash(),
        violations: world.story.violations(),
        simulated_ms: world.story.now_us() / 1000,
        transactions: world.history().committed(),
        faults,
        cpu_us: 0,
    }
}
