//! Wrong engines: rows change behind the engine's back, and the node has to find out before it
//! serves any of them.
//!
//! At open there is no excuse: whatever happened to the rows while the node was down, it serves
//! none that is wrong. At work a node cannot know before its next count of its rows, so what it
//! says of exactly those rows is excused until it reports them, and it has to report in time.
//!
//! A correct source always remains: either the node's own log still holds the last change of each
//! wrong row, or this is the only wrong node and another one, which no other fault can lose, takes
//! part. So every node has to repair itself.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rand::RngExt;
use rand::seq::{IndexedRandom, SliceRandom};
use steadfast::engine::{EngineFactory, Falsehood, Falsified, MemoryStore};
use steadfast::ids::DatabaseId;
use steadfast::{NodeStatus, ReadyError, ReplicatedEnvironment, Role};

use crate::check::{self, CATALOG};
use crate::hardware::DATA_DIR;
use crate::history::FalseRow;
use crate::logfile;
use crate::nemesis::{Event, restart};
use crate::plan::Fault;
use crate::workload::read_all;
use crate::world::{Host, World, is_waited_for, wait, where_it_is};

/// How often to check whether a node has reported.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// How many times to try to read everything from a newly opened node.
const LOOKS_AFTER_OPEN: usize = 400;
/// Time within which a node repairs itself, once the faults have ended.
const REPAIR_MAX: Duration = Duration::from_mins(1);
/// Most rows of one node to make wrong together.
const ROWS_MAX: usize = 4;
/// The library's own database, which belongs to no user.
const OWN: DatabaseId = DatabaseId(u32::MAX);

/// Counted besides faults: how many nodes became wrong together, and nodes that became so at work.
const ON_ONE: &str = "engine_on_one";
/// See above.
const ON_MAJORITY: &str = "engine_on_majority";
/// See above.
const ON_ALL: &str = "engine_on_all";
/// See above.
const AT_WORK: &str = "engine_at_work";

/// A row to make wrong on several nodes.
type Wanted = Option<(DatabaseId, Bytes)>;

impl Event {
    /// Makes rows wrong, on one node or on several.
    pub(crate) async fn falsify(&self) {
        let nodes = self.world.plan.nodes;
        if self.world.history().acknowledged == 0 {
            return;
        }
        match self.world.chance(|rng| rng.random_range(0..8)) {
            0 => self.falsify_at_open(nodes).await,
            1 => self.falsify_at_open(nodes / 2 + 1).await,
            2..5 => self.falsify_at_open(1).await,
            _ => self.falsify_at_work(),
        }
    }

    /// Ends `count` nodes, makes rows of them wrong, and starts them again.
    async fn falsify_at_open(&self, count: usize) {
        let world = &self.world;
        let mut order: Vec<usize> = (0..world.plan.nodes).collect();
        world.chance(|rng| order.shuffle(rng));
        let free = order.into_iter().filter(|at| self.take(*at));
        let mine: Vec<usize> = free.take(count).collect();
        let has_other = match &mine[..] {
            [] => return,
            [at] => has_right_other(world, *at),
            _ => false,
        };
        for at in &mine {
            self.end_somehow(*at).await;
        }
        self.last(500).await;
        let is_same = world.chance(RngExt::random);
        for _ in 0..world.chance(|rng| rng.random_range(1..=ROWS_MAX)) {
            let mut wanted = None;
            for at in &mine {
                let row = self.falsify_closed(*at, !has_other, wanted.as_ref());
                wanted = row.filter(|_| is_same).or(wanted);
            }
        }
        self.count(&mine);
        for at in mine {
            if !world.hosts[at].state().lost {
                restart(world, at).await;
            }
            world.hosts[at].set_state(|state| state.busy = false);
            tokio::spawn(look(Arc::clone(world), at));
        }
    }

    /// Ends a node by a clean close, a process kill, or a power cut.
    async fn end_somehow(&self, at: usize) {
        match self.world.chance(|rng| rng.random_range(0..3)) {
            0 => self.close(at).await,
            kind => self.end(at, kind == 1),
        }
    }

    /// Makes one row of a stopped node wrong: the wanted one, or any. With `is_kept`, its last
    /// change is still in the node's log.
    fn falsify_closed(
        &self,
        at: usize,
        is_kept: bool,
        wanted: Option<&(DatabaseId, Bytes)>,
    ) -> Wanted {
        let world = &self.world;
        let host = &world.hosts[at];
        if host.state().lost {
            return None;
        }
        let (store, dir) = engine(host)?;
        let kept = is_kept.then(|| kept(world, host, &store, &dir));
        let may = |database: DatabaseId, key: &[u8]| {
            let is_wanted = wanted.is_none_or(|(there, row)| *there == database && *row == *key);
            let key = || (database.0, Bytes::copy_from_slice(key));
            is_wanted && kept.as_ref().is_none_or(|kept| kept.contains_key(&key()))
        };
        let row = self.falsify_row(host, &store, &dir, may)?;
        Some((row.database, row.key))
    }

    /// Makes rows of a running node wrong.
    fn falsify_at_work(&self) {
        let world = &self.world;
        let free = |host: &&Host| {
            let state = host.state();
            let is_right = !(state.busy || state.lost || state.suspect);
            is_right && takes_part(host) && has_right_other(world, host.at())
        };
        let free: Vec<_> = world.hosts.iter().filter(free).collect();
        let Some(host) = world.chance(|rng| free.choose(rng).copied()) else {
            return;
        };
        let Some((store, dir)) = engine(host) else {
            return;
        };
        let rows = world.history().false_rows.len();
        for _ in 0..world.chance(|rng| rng.random_range(1..=ROWS_MAX)) {
            let is_none_of_names = |database: DatabaseId, _: &[u8]| database.0 != CATALOG;
            let row = self.falsify_row(host, &store, &dir, is_none_of_names);
            let Some(row) = row.filter(|row| row.database != OWN) else {
                continue;
            };
            let mut history = world.history();
            let from = history.tick();
            history.false_rows.push(FalseRow {
                node: host.at(),
                database: row.database.0,
                key: row.key,
                from,
                until: u64::MAX,
            });
        }
        if host.state().suspect {
            self.count(&[host.at()]);
            world.story.count(AT_WORK);
        }
        let rows = rows..world.history().false_rows.len();
        if !rows.is_empty() {
            tokio::spawn(await_word(Arc::clone(world), host.at(), rows));
        }
    }

    fn falsify_row(
        &self,
        host: &Host,
        store: &MemoryStore,
        dir: &Path,
        may: impl Fn(DatabaseId, &[u8]) -> bool,
    ) -> Option<Falsified> {
        let world = &self.world;
        let falsehood = match self.fault {
            Fault::EngineLost => Falsehood::Lost,
            Fault::EngineRevived => Falsehood::Revived,
            Fault::EngineOld => Falsehood::Old,
            _ => Falsehood::Flipped,
        };
        let mut chance = |below| world.chance(|rng| rng.random_range(0..below));
        let row = store.falsify(dir, falsehood, may, &mut chance)?;
        host.set_state(|state| state.suspect = true);
        self.fired(|| {
            let short = |value: &Option<Bytes>| value.as_ref().map(text);
            let (key, was, is) = (text(&row.key), short(&row.was), short(&row.is));
            let (name, database) = (&host.name, row.database.0);
            format!("{name}: {falsehood:?}: {key:?} of database {database} was {was:?}, is {is:?}")
        });
        Some(row)
    }

    fn count(&self, nodes: &[usize]) {
        let wrong = |at: &&usize| self.world.hosts[**at].state().suspect;
        let wrong = nodes.iter().filter(wrong).count();
        let all = self.world.plan.nodes;
        let count = match wrong {
            0 => return,
            wrong if wrong == all => ON_ALL,
            wrong if wrong > all / 2 => ON_MAJORITY,
            _ => ON_ONE,
        };
        self.world.story.count(count);
    }
}

fn text(bytes: &Bytes) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(24)]).into_owned()
}

/// The node's engine, if it is the only copy of the state there.
pub(crate) fn engine(host: &Host) -> Option<(MemoryStore, PathBuf)> {
    let store = host.store();
    let dir = |copy| match copy {
        0 => Path::new(DATA_DIR).join("engine"),
        copy => Path::new(DATA_DIR).join(format!("engine-{copy}")),
    };
    let is_there = |dir: &PathBuf| store.exists(dir).unwrap_or(false);
    let mut there = (0..64).map(dir).filter(is_there);
    let only = there.next().filter(|_| there.next().is_none())?;
    Some((store, only))
}

fn takes_part(host: &Host) -> bool {
    let env = host.life().and_then(|life| life.env);
    env.is_some_and(|env| matches!(env.state().role, Role::Master | Role::Replica))
}

/// Whether another node that cannot be lost takes part, and all others are right.
fn has_right_other(world: &World, at: usize) -> bool {
    let mut others = world.hosts.iter().filter(|host| host.at() != at);
    let is_sure = |host: &Host| takes_part(host) && !world.plan.expendable.contains(&host.at());
    others.clone().all(|host| !host.state().suspect) && others.any(is_sure)
}

/// The rows whose last change is in the node's log, with the position of that change.
pub(crate) fn kept(
    world: &World,
    host: &Host,
    store: &MemoryStore,
    dir: &Path,
) -> BTreeMap<(u32, Bytes), u64> {
    let (Ok(own), Some(applied)) = (host.log(), store.applied(dir)) else {
        return BTreeMap::new();
    };
    let applied = applied.position.0;
    let others = world.hosts.iter().filter(|host| !host.state().lost);
    let logs: Vec<_> = others.flat_map(Host::log).collect();
    let mut former: Vec<_> = world.hosts.iter().flat_map(Host::former_logs).collect();
    former.extend(logs);
    let mut log = check::union(former.iter());
    log.extend(
        own.entries
            .range(..=applied)
            .map(|(at, entry)| (*at, entry.clone())),
    );
    let mut changed = check::last_changes(&log, applied).unwrap_or_default();
    changed.retain(|_, position| own.purged.is_none_or(|purged| *position > purged));
    changed
}

/// Reads everything from a newly opened node as soon as it serves reads.
async fn look(world: Arc<World>, at: usize) {
    let Some(life) = world.hosts[at].life() else {
        return;
    };
    for _ in 0..LOOKS_AFTER_OPEN {
        if life.ended.is_cancelled() || read_all(&world, at, &life).await {
            return;
        }
        wait(LOOK_EVERY).await;
    }
}

/// Waits until the node reports its wrong `rows`, which it has to do within its bound.
async fn await_word(world: Arc<World>, at: usize, rows: Range<usize>) {
    let host = &world.hosts[at];
    let Some(life) = host.life() else { return };
    let put_right = life.env.as_ref().map(|env| env.status().put_right);
    let dir = engine(host).map(|(_, dir)| dir);
    let mut left = world.plan.tells_within();
    loop {
        tokio::select! {
            biased;
            () = life.ended.cancelled() => break,
            () = wait(LOOK_EVERY) => {}
        }
        let is_copy = engine(host).is_some_and(|(_, now)| dir.as_ref() != Some(&now));
        if let Some(env) = &life.env
            && (is_copy || tells(env, put_right.unwrap_or_default()).await)
        {
            world
                .story
                .tell(|| format!("{} tells that it is wrong", host.name));
            break;
        }
        // Time under other faults of the machine does not count.
        if host.state().busy {
            continue;
        }
        left = left.saturating_sub(LOOK_EVERY);
        if left.is_zero() {
            if is_of_use(&world, at, rows.clone()) {
                let name = &host.name;
                world
                    .story
                    .violation(format!("{name} has wrong rows and never tells"));
            }
            break;
        }
    }
    let mut history = world.history();
    let until = history.tick();
    for row in &mut history.false_rows[rows] {
        row.until = until;
    }
    drop(history);
    life.process.enter(|| drop(life.env));
}

/// Whether any of these rows belongs to a database that still exists.
fn is_of_use(world: &World, at: usize, rows: Range<usize>) -> bool {
    let logs: Vec<_> = world.hosts.iter().flat_map(Host::log).collect();
    let log = check::union(logs.iter());
    let env = world.hosts[at].life().and_then(|life| life.env);
    let applied = env.and_then(|env| env.status().applied);
    let ids = check::database_ids(&log, applied.map_or(0, |applied| applied.0));
    let history = world.history();
    let mut rows = history.false_rows[rows].iter();
    rows.any(|row| ids.as_ref().is_ok_and(|ids| ids.contains(&row.database)))
}

/// Whether a node says that it is, or was, wrong; `put_right` is its previous count of fixed rows.
pub(crate) async fn tells(env: &ReplicatedEnvironment, put_right: u64) -> bool {
    let status = env.status();
    let ready = env.wait_ready_async(Duration::ZERO).await;
    status.damage.is_some()
        || status.put_right > put_right
        || status.restore.is_some()
        || matches!(ready, Err(ReadyError::Stopped { .. }))
}

/// Clears `suspect` of nodes that say they are right again. Runs forever.
pub async fn watch(world: Arc<World>) {
    loop {
        wait(LOOK_EVERY).await;
        for host in world.hosts.iter().filter(|host| host.state().suspect) {
            let env = host.life().and_then(|life| life.env);
            let is_waited_for = is_waited_for(&world, host.at());
            if is_waited_for || !takes_part(host) {
                continue;
            }
            let status = env.map(|env| env.status());
            if status.is_some_and(|status| status.damage.is_none() && status.checked.is_some()) {
                host.set_state(|state| state.suspect = false);
                world
                    .story
                    .tell(|| format!("{} says that it is right", host.name));
            }
        }
    }
}

/// Waits until every node has reported its wrong rows and is right again.
pub async fn settle(world: &World) {
    let is_right = |host: &Host| host.state().lost || !host.state().suspect;
    let all_right = async {
        while !world.hosts.iter().all(is_right) {
            wait(LOOK_EVERY).await;
        }
    };
    let within = world.plan.tells_within() + REPAIR_MAX;
    if tokio::time::timeout(within, all_right).await.is_err() {
        let wrong = world.hosts.iter().filter(|host| !is_right(host));
        let wrong: Vec<_> = wrong.map(|host| where_it_is(world, host.at())).collect();
        let wrong = wrong.join("; ");
        world.story.violation(format!(
            "nodes with wrong rows do not become right: {wrong}"
        ));
    }
}

/// Reads everything from each of these nodes, for the checkers.
pub async fn read_everywhere(world: &World, nodes: &[usize]) {
    for at in nodes {
        let host = &world.hosts[*at];
        let Some(life) = host.life() else { continue };
        if !read_all(world, *at, &life).await {
            let name = &host.name;
            world
                .story
                .violation(format!("{name} does not let itself be read"));
        }
        life.process.enter(|| drop(life.env));
    }
}

/// No node reports right rows as wrong.
pub fn check_word(world: &World, host: &Host, status: &NodeStatus) {
    let has_reason = Fault::OF_ENGINES.iter().any(|fault| world.plan.has(*fault))
        || host.state().damaged
        || host.state().lost;
    if !has_reason && (status.damage.is_some() || status.put_right > 0) {
        let (name, put_right) = (&host.name, status.put_right);
        let damage = status.damage.as_deref().unwrap_or("nothing");
        world.story.violation(format!(
            "{name} has put {put_right} rows right and says that it is damaged by {damage}"
        ));
    }
}

/// A running node has verified everything that its log has purged since its engine was opened. Until
/// its first count it has verified nothing, and cannot be held to it: what was purged until then was
/// purged with an earlier engine, or replaced by the copy that it opened on.
pub fn check_purge(world: &World, host: &Host) {
    let env = host.life().and_then(|life| life.env);
    let Some(env) = env.filter(|_| takes_part(host)) else {
        return;
    };
    let purged = host.log().ok().and_then(|log| log.purged);
    let (Some(checked), Some(purged)) = (env.status().checked, purged) else {
        return;
    };
    let logs: Vec<_> = world.hosts.iter().flat_map(Host::log).collect();
    let log = check::union(logs.iter());
    let last = logfile::transactions(&log, purged).unwrap_or_default();
    let last = last.last_key_value().map_or(0, |(vlsn, _)| *vlsn);
    if last > checked.0 {
        let name = &host.name;
        world.story.violation(format!(
            "{name} has purged its log up to VLSN {last}, and found right what it has up to {checked}"
        ));
    }
}
