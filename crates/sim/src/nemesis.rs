//! Injects faults into machines and the network, from the plan's own subset.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use rand::RngExt;
use rand::seq::IndexedRandom;
use steadfast::{ReadyError, ReplicatedEnvironment, Role};
use tokio::io::AsyncWriteExt;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::disk::{Damage, DiskFaults};
use crate::faults::disk_faults;
use crate::hardware::DATA_DIR;
use crate::plan::Fault;
use crate::world::{End, Host, PORT, World, wait};

/// How often the operator looks for nodes that have stopped by themselves.
const WATCH_EVERY: Duration = Duration::from_millis(50);

/// Counted besides faults: a node begins to copy a peer's state, and finishes or closes.
const COPY_BEGUN: &str = "copy_begun";
/// See above.
const COPY_ENDED: &str = "copy_ended";

/// Faults injected into a node or the whole network, one at a time; the others happen at a rate, or
/// are set when the machine is created.
const EVENTS: &[Fault] = &[
    Fault::Kill,
    Fault::KillAll,
    Fault::PowerCut,
    Fault::PowerCutAll,
    Fault::CrashAtStep,
    Fault::Pause,
    Fault::ClockJump,
    Fault::DiskFull,
    Fault::StuckDisk,
    Fault::BitRot,
    Fault::ZeroedSector,
    Fault::Misdirected,
    Fault::Stale,
    Fault::Truncated,
    Fault::Wipe,
    Fault::Partition,
    Fault::OneWay,
    Fault::Hub,
    Fault::Constrained,
    Fault::Chain,
    Fault::Intruder,
    Fault::OldCopy,
    Fault::Transfer,
    Fault::Priority,
    Fault::Demote,
    Fault::Replace,
    Fault::EngineLost,
    Fault::EngineRevived,
    Fault::EngineOld,
    Fault::EngineFlipped,
];

/// Injects faults until `calm`; nodes are left as they are then.
pub async fn rage(world: Arc<World>, calm: CancellationToken) {
    let events: Vec<Fault> = EVENTS
        .iter()
        .copied()
        .filter(|fault| world.plan.has(*fault))
        .collect();
    let mut under_way = JoinSet::new();
    let mean = u64::try_from(world.plan.fault_every.as_millis()).unwrap_or(u64::MAX);
    while !events.is_empty() {
        let pause = world.chance(|rng| rng.random_range(1..=2 * mean));
        tokio::select! {
            biased;
            () = calm.cancelled() => break,
            () = wait(Duration::from_millis(pause)) => {}
        }
        let Some(fault) = world.chance(|rng| events.choose(rng).copied()) else {
            break;
        };
        let event = Event {
            world: Arc::clone(&world),
            calm: calm.clone(),
            fault,
        };
        under_way.spawn(event.happen());
        while under_way.try_join_next().is_some() {}
    }
    calm.cancelled().await;
    under_way.join_all().await;
}

/// Restarts nodes that have stopped by themselves, as an operator would. Runs forever.
pub async fn watch(world: Arc<World>) {
    let mut copying = BTreeSet::new();
    loop {
        wait(WATCH_EVERY).await;
        count_copies(&world, &mut copying);
        for host in 0..world.hosts.len() {
            let state = world.hosts[host].state();
            let Some(env) = world.hosts[host].life().and_then(|life| life.env) else {
                continue;
            };
            let reason = match env.wait_ready_async(Duration::ZERO).await {
                Err(ReadyError::Stopped { reason }) => reason,
                Err(ReadyError::Refused { reason }) => {
                    if !state.lost {
                        let name = &world.hosts[host].name;
                        world
                            .story
                            .violation(format!("{name} is refused: {reason}"));
                    }
                    continue;
                }
                _ => continue,
            };
            if state.busy {
                continue;
            }
            world.hosts[host].set_state(|state| state.busy = true);
            world
                .story
                .tell(|| format!("n{} has stopped: {reason}", host + 1));
            world.end(host, End::Kill);
            let world = Arc::clone(&world);
            tokio::spawn(async move {
                let delay = world.chance(|rng| rng.random_range(10..500));
                wait(Duration::from_millis(delay)).await;
                restart(&world, host).await;
                world.hosts[host].set_state(|state| state.busy = false);
            });
        }
    }
}

/// Counts copies of the state begun, and copies ended.
fn count_copies(world: &World, copying: &mut BTreeSet<usize>) {
    for (at, life) in world.open_nodes() {
        // A node that takes part makes no copy; asking for its whole status costs much more.
        let copies = |env: ReplicatedEnvironment| {
            let takes_part = matches!(env.state().role, Role::Master | Role::Replica);
            !takes_part && env.status().restore.is_some()
        };
        if life.env.is_some_and(copies) {
            if copying.insert(at) {
                world.story.count(COPY_BEGUN);
            }
        } else if copying.remove(&at) {
            world.story.count(COPY_ENDED);
        }
    }
}

/// Starts a node again and again until it opens, unless it is lost.
pub async fn restart(world: &Arc<World>, at: usize) {
    loop {
        if world.hosts[at].life().is_some() {
            return;
        }
        let Err(error) = world.start(at).await else {
            return;
        };
        let state = world.hosts[at].state();
        world
            .story
            .tell(|| format!("n{} does not open: {error}", at + 1));
        if state.lost {
            return;
        }
        if error.contains("corrupt") {
            world.story.violation(format!(
                "n{} was not damaged and does not open: {error}",
                at + 1
            ));
            world.hosts[at].set_state(|state| state.lost = true);
            return;
        }
        wait(Duration::from_millis(200)).await;
    }
}

/// One event under way.
pub(crate) struct Event {
    pub(crate) world: Arc<World>,
    calm: CancellationToken,
    pub(crate) fault: Fault,
}

impl Event {
    async fn happen(self) {
        match self.fault {
            Fault::Partition | Fault::OneWay | Fault::Hub | Fault::Constrained | Fault::Chain => {
                self.cut_network().await;
            }
            Fault::KillAll | Fault::PowerCutAll => self.end_all().await,
            Fault::Intruder => self.intrude().await,
            Fault::EngineLost | Fault::EngineRevived | Fault::EngineOld | Fault::EngineFlipped => {
                self.falsify().await;
            }
            Fault::Transfer | Fault::Priority | Fault::Demote | Fault::Replace => {
                self.administer().await;
            }
            Fault::ClockJump => {
                let at = self
                    .world
                    .chance(|rng| rng.random_range(0..self.world.plan.nodes));
                let ms = self
                    .world
                    .chance(|rng| rng.random_range(-3_600_000..3_600_000));
                self.fired(|| format!("the clock of n{} jumps by {ms} ms", at + 1));
                self.world.hosts[at].clock().jump(ms);
            }
            _ => self.harm_host().await,
        }
    }

    pub(crate) fn fired(&self, line: impl FnOnce() -> String) {
        self.world.story.count(self.fault.name());
        self.world.story.tell(line);
    }

    /// Waits up to `max_ms`, less if calm is requested.
    pub(crate) async fn last(&self, max_ms: u64) {
        let ms = self.world.chance(|rng| rng.random_range(1..=max_ms));
        tokio::select! {
            biased;
            () = self.calm.cancelled() => {}
            () = wait(Duration::from_millis(ms)) => {}
        }
    }

    async fn cut_network(&self) {
        let world = &self.world;
        let mut hosts: Vec<String> = world.hosts.iter().map(|host| host.name.clone()).collect();
        if hosts.len() < 2 {
            return;
        }
        for at in (1..hosts.len()).rev() {
            hosts.swap(at, world.chance(|rng| rng.random_range(0..=at)));
        }
        let split = world.chance(|rng| rng.random_range(1..hosts.len()));
        let (one, other) = hosts.split_at(split);
        let old_leader = world
            .masters()
            .first()
            .map(|at| world.hosts[*at].name.clone());
        self.fired(|| format!("network: {}, {hosts:?} split at {split}", self.fault));
        match self.fault {
            Fault::Partition => world.net.partition(&[one.to_vec(), other.to_vec()]),
            Fault::OneWay => world.net.one_way(one, other),
            Fault::Hub => world.net.quorum_loss_hub(&hosts, &hosts[0]),
            Fault::Constrained => {
                let old_leader = old_leader.unwrap_or_else(|| hosts[1].clone());
                let outdated = hosts.iter().find(|host| **host != old_leader);
                let outdated = outdated.expect("there are two").clone();
                world.net.partition(&[
                    vec![outdated.clone()],
                    hosts
                        .iter()
                        .filter(|host| **host != outdated)
                        .cloned()
                        .collect(),
                ]);
                self.last(500).await;
                world.net.unblock_all();
                world
                    .net
                    .constrained_election(&hosts, &old_leader, &outdated);
            }
            _ => world.net.chain(&hosts),
        }
        self.last(4000).await;
        world.net.unblock_all();
        world.story.tell(|| "network: healed".into());
    }

    async fn end_all(&self) {
        let world = &self.world;
        let mine: Vec<usize> = (0..world.plan.nodes).filter(|at| self.take(*at)).collect();
        self.fired(|| format!("{}: {} nodes", self.fault, mine.len()));
        for at in &mine {
            self.end(*at, self.fault == Fault::PowerCutAll);
        }
        self.last(1000).await;
        for at in mine {
            // In any order: nodes may need each other to become ready, but not to open.
            if !world.hosts[at].state().lost {
                restart(world, at).await;
            }
            world.hosts[at].set_state(|state| state.busy = false);
        }
    }

    /// Claims the machine for this event, if it is free. Returns whether it was.
    pub(crate) fn take(&self, at: usize) -> bool {
        let host = &self.world.hosts[at];
        let state = host.state();
        let is_free =
            !state.busy && !state.lost && host.life().is_some_and(|life| life.env.is_some());
        if is_free {
            host.set_state(|state| state.busy = true);
        }
        is_free
    }

    /// A power cut loses a node whose disk lies. Until the group has formed it needs every node, so
    /// none may be lost before.
    fn may_lose_power(&self, at: usize) -> bool {
        let is_liar = disk_faults(&self.world.plan, at).lying_sync;
        !is_liar || self.world.history().acknowledged > 0
    }

    pub(crate) fn end(&self, at: usize, is_power_cut: bool) {
        let world = &self.world;
        let is_power_cut = is_power_cut && self.may_lose_power(at);
        let end = if is_power_cut {
            End::PowerCut
        } else {
            End::Kill
        };
        world.end(at, end);
        if is_power_cut && disk_faults(&world.plan, at).lying_sync {
            // Its disk lost what it reported durable. It cannot know, and must not come back.
            world
                .story
                .tell(|| format!("n{} has lost what its disk had promised", at + 1));
            world.hosts[at].set_state(|state| (state.lost, state.damaged) = (true, false));
        }
    }

    async fn harm_host(&self) {
        let world = &self.world;
        let at = match self.fault {
            // What takes a node away for a while hits only nodes that the group can spare.
            Fault::BitRot
            | Fault::ZeroedSector
            | Fault::Misdirected
            | Fault::Stale
            | Fault::Truncated
            | Fault::Wipe
            | Fault::OldCopy => {
                let expendable: Vec<usize> = world.plan.expendable.iter().copied().collect();
                world.chance(|rng| expendable.choose(rng).copied())
            }
            _ => Some(world.chance(|rng| rng.random_range(0..world.plan.nodes))),
        };
        let Some(at) = at.filter(|at| self.take(*at)) else {
            return;
        };
        // Until the group has formed it needs every node, so none may be lost before.
        let is_lasting = !matches!(
            self.fault,
            Fault::Kill
                | Fault::PowerCut
                | Fault::CrashAtStep
                | Fault::Pause
                | Fault::DiskFull
                | Fault::StuckDisk
        );
        if is_lasting && world.history().acknowledged == 0 {
            world.hosts[at].set_state(|state| state.busy = false);
            return;
        }
        self.harm(at).await;
        let host = &world.hosts[at];
        if !host.state().lost {
            restart(world, at).await;
        }
        host.set_state(|state| state.busy = false);
    }

    async fn harm(&self, at: usize) {
        let world = &self.world;
        let host = &world.hosts[at];
        let name = &host.name;
        match self.fault {
            Fault::Kill | Fault::PowerCut => {
                self.fired(|| format!("{name}: {}", self.fault));
                self.end(at, self.fault == Fault::PowerCut);
                self.last(2000).await;
            }
            Fault::CrashAtStep => self.crash_at_step(at).await,
            Fault::Pause => {
                let Some(life) = host.life() else { return };
                self.fired(|| format!("{name} is paused"));
                life.process.pause();
                self.last(if world.chance(|rng| rng.random_range(0..10) == 0) {
                    30_000
                } else {
                    1500
                })
                .await;
                life.process.resume();
                world.story.tell(|| format!("{name} goes on"));
            }
            Fault::DiskFull => {
                self.fired(|| format!("{name}: the disk is full"));
                host.disk().set_full(true);
                self.last(3000).await;
                host.disk().set_full(false);
                world
                    .story
                    .tell(|| format!("{name}: the disk has room again"));
            }
            Fault::StuckDisk => {
                self.fired(|| format!("{name}: the disk is stuck"));
                host.disk().hold(true);
                self.last(3000).await;
                host.disk().hold(false);
                world.story.tell(|| format!("{name}: the disk goes on"));
            }
            Fault::Wipe => {
                // A node still joining has promised nothing, and may join without its disk.
                let was_let_in = host.is_founder() || is_member(host);
                world.end(at, End::Kill);
                host.set_state(|state| (state.lost, state.fenced) = (true, was_let_in));
                host.replace_disk(world);
                self.fired(|| format!("{name} is wiped and started under its old name"));
                restart(world, at).await;
            }
            Fault::OldCopy => self.put_back_old_copy(at).await,
            _ => self.damage(at).await,
        }
    }

    /// Copies a node's directory, lets the node run on for a while, and starts it on the copy.
    async fn put_back_old_copy(&self, at: usize) {
        let world = &self.world;
        let host = &world.hosts[at];
        let name = &host.name;
        world.end(at, End::Kill);
        let copy = host.copy();
        restart(world, at).await;
        self.last(3000).await;
        world.end(at, End::Kill);
        host.put_back(copy);
        host.set_state(|state| (state.lost, state.fenced) = (true, true));
        self.fired(|| format!("{name} is started on an older copy of its directory"));
        if let Err(error) = world.start(at).await {
            world
                .story
                .tell(|| format!("{name} does not open: {error}"));
            return;
        }
        let why = "opens on an older copy of its directory";
        world.story.violation(format!("{name} {why}"));
        // A master whose replica has lost entries sends them again and again.
        world.end(at, End::Kill);
    }

    /// Cuts the power at one of the next I/O steps.
    async fn crash_at_step(&self, at: usize) {
        let world = &self.world;
        let host = &world.hosts[at];
        if !self.may_lose_power(at) {
            return;
        }
        let Some(life) = host.life() else { return };
        let steps = world.chance(|rng| rng.random_range(1..200));
        let tripped = life.clone();
        let (net, name) = (world.net.clone(), host.name.clone());
        host.disk().crash_after(steps, move || {
            net.power_off(&name);
            tripped.process.kill();
            tripped.ended.cancel();
        });
        tokio::select! {
            biased;
            () = life.ended.cancelled() => {}
            () = wait(Duration::from_secs(2)) => {}
        }
        self.fired(|| format!("{}: power cut at a step of I/O", host.name));
        self.end(at, true);
        self.last(1000).await;
    }

    /// Damages the disk of a closed node. On opening, it reports the damage and repairs itself, unless
    /// the damage hit nothing.
    async fn damage(&self, at: usize) {
        let world = &self.world;
        let host = &world.hosts[at];
        self.close(at).await;
        let damage = match self.fault {
            Fault::BitRot => Damage::FlipBit,
            Fault::ZeroedSector => Damage::ZeroSector,
            Fault::Misdirected => Damage::Misdirected,
            Fault::Stale => Damage::Stale,
            _ => Damage::Truncate,
        };
        host.keep_log();
        if let Some(report) = host.disk().damage(damage, std::path::Path::new(DATA_DIR)) {
            self.fired(|| format!("{}: {report:?}", host.name));
            host.set_state(|state| (state.lost, state.damaged) = (true, true));
            // If it opens anyway, it takes part and is held to its promises.
            restart(world, at).await;
        }
    }

    /// Closes a node cleanly, or kills it if that takes too long.
    pub(crate) async fn close(&self, at: usize) {
        if let Some(life) = self.world.hosts[at].life()
            && let Some(env) = &life.env
        {
            let closing = life.process.run(env.close_async());
            tokio::select! {
                biased;
                closed = closing => drop(closed),
                () = life.ended.cancelled() => {}
                () = wait(Duration::from_secs(5)) => {}
            }
        }
        self.world.end(at, End::Kill);
    }

    /// A non-member talks to a node.
    async fn intrude(&self) {
        let world = &self.world;
        let at = world.chance(|rng| rng.random_range(0..world.plan.nodes));
        let address = format!("{}:{PORT}", world.hosts[at].name);
        let transport = world.net.host("intruder");
        let Ok(connected) = transport.connect(&address).await else {
            return;
        };
        let mut stream = connected.stream;
        let services = [
            "FEEDER",
            "ELECTION",
            "NODE_STATE",
            "SUBSCRIPTION",
            "nonsense",
        ];
        let service = world.chance(|rng| *services.choose(rng).expect("there are some"));
        self.fired(|| format!("an intruder talks to n{} as {service}", at + 1));
        let mut bytes = u32::try_from(service.len())
            .unwrap_or(0)
            .to_le_bytes()
            .to_vec();
        bytes.extend_from_slice(service.as_bytes());
        let noise = world.chance(|rng| {
            let count = rng.random_range(0..300);
            (0..count).map(|_| rng.random()).collect::<Vec<u8>>()
        });
        bytes.extend_from_slice(&noise);
        stream.write_all(&bytes).await.ok();
        self.last(500).await;
    }
}

impl Host {
    /// Ends every fault of this machine that a switch keeps on.
    pub fn calm(&self) {
        let disk = self.disk();
        disk.set_full(false);
        disk.hold(false);
        disk.set_faults(DiskFaults::default());
        if let Some(life) = self.life() {
            life.process.resume();
        }
    }
}

/// Whether the node is master or replica.
pub(crate) fn is_member(host: &Host) -> bool {
    let env = host.life().and_then(|life| life.env);
    env.is_some_and(|env| matches!(env.state().role, Role::Master | Role::Replica))
}
