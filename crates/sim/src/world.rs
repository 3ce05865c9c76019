//! A group of simulated machines, and the faults that can hit each of them.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use steadfast_net::lock;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use steadfast::engine::MemoryStore;
use steadfast::log::Disk;
use steadfast::machine::{Clock, Machine, Threads};
use steadfast::{Bootstrap, JoinToken, RepConfig, Repair, ReplicatedEnvironment, Role};
use steadfast_net::process::Process;
use tokio_util::sync::CancellationToken;

use crate::disk::{DirectoryCopy, SimDisk};
use crate::faults;
use crate::hardware::{
    DATA_DIR, Hardware, SimClock, file_name, newest_log, read_file, settle_archive,
};
use crate::history::History;
use crate::logfile::{self, Log};
use crate::net::SimNet;
use crate::plan::{Fault, Plan};
use crate::story::Story;

/// Port of every node.
pub const PORT: u16 = 7400;

/// Everything that belongs to a run.
pub struct World {
    /// The seed's plan.
    pub plan: Plan,
    /// What happened.
    pub story: Story,
    /// The network between the hosts.
    pub net: SimNet,
    /// The machines.
    pub hosts: Vec<Host>,
    /// What the clients saw.
    pub history: Mutex<History>,
    /// Digests reported by nodes, by VLSN.
    digests: Mutex<BTreeMap<u64, (u128, usize)>>,
    rng: Mutex<StdRng>,
}

/// One machine.
pub struct Host {
    /// Host name, also the node's name.
    pub name: String,
    at: usize,
    /// What outlives the process.
    hardware: Mutex<Hardware>,
    clock: Arc<SimClock>,
    life: Mutex<Option<Life>>,
    state: Mutex<HostState>,
    /// The token its node joins with, unless it is a founder.
    token: Mutex<Option<JoinToken>>,
    /// Logs as they were before the disk was damaged or replaced.
    former: Mutex<Vec<Log>>,
}

/// A node's disk contents at an earlier moment.
pub struct NodeCopy {
    directory: DirectoryCopy,
    store: MemoryStore,
}

/// One life of a node, from start to end.
#[derive(Clone)]
pub struct Life {
    /// Its tasks.
    pub process: Process,
    /// The node. `None` while it opens.
    pub env: Option<ReplicatedEnvironment>,
    /// Cancelled when the process ends.
    pub ended: CancellationToken,
}

/// State of a machine and its node.
#[expect(clippy::struct_excessive_bools, reason = "each holds or not by itself")]
#[derive(Clone, Copy, Debug, Default)]
pub struct HostState {
    /// A fault is under way that brings the node back by itself.
    pub busy: bool,
    /// The node is lost for good, and not expected to open again.
    pub lost: bool,
    /// Its disk was damaged: it has to repair itself, if it opens.
    pub damaged: bool,
    /// Its directory is not the one admitted, but wiped or an older copy: it has to stay out.
    pub fenced: bool,
    /// At some time it was removed from the group or lost its vote, and may have no vote now.
    pub outside: bool,
    /// Rows of its engine were made wrong, and it has not been seen to be right since.
    pub suspect: bool,
}

/// How a node ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The process only: the kernel closes its connections and keeps its pages.
    Kill,
    /// The machine: unsynced data may be lost, and peers are told nothing.
    PowerCut,
}

impl World {
    /// Creates the plan's machines, without power.
    pub fn new(plan: Plan, story: Story) -> Arc<Self> {
        let mut rng = StdRng::seed_from_u64(plan.seed ^ 0x5eed);
        let net = SimNet::new(rng.random(), faults::net_faults(&plan));
        let hosts = (0..plan.nodes)
            .map(|at| {
                let clock = SimClock::new(plan.has(Fault::ClockDrift).then_some(&mut rng));
                Host {
                    name: Plan::host(at),
                    at,
                    hardware: Mutex::new(Hardware::new(&plan, at, &mut rng, &story)),
                    clock: Arc::new(clock),
                    life: Mutex::new(None),
                    state: Mutex::default(),
                    former: Mutex::default(),
                    token: Mutex::default(),
                }
            })
            .collect();
        let tapped = story.clone();
        net.set_tap(Box::new(move |op, from, to, bytes| {
            tapped.trace(&[op.as_bytes(), from.as_bytes(), to.as_bytes(), bytes]);
        }));
        let anywhere = plan.anywhere;
        Arc::new(Self {
            plan,
            story,
            net,
            hosts,
            history: Mutex::new(History::new(anywhere)),
            digests: Mutex::default(),
            rng: Mutex::new(rng),
        })
    }

    /// Draws from the world's own randomness.
    pub fn chance<T>(&self, draw: impl FnOnce(&mut StdRng) -> T) -> T {
        draw(&mut lock(&self.rng))
    }

    /// What the clients have seen so far.
    pub fn history(&self) -> MutexGuard<'_, History> {
        lock(&self.history)
    }

    fn config(&self, at: usize) -> RepConfig {
        let limits = &self.plan.limits;
        let host = &self.hosts[at];
        let list = (0..self.plan.nodes).map(|at| format!("{0}={0}:{PORT}", Plan::host(at)));
        let list: Vec<_> = list.collect();
        let founding = || Bootstrap::expect(&list).expect("a well-formed list");
        let token = lock(&host.token).clone();
        // A fast or slow clock makes every timer of its node fast or slow.
        let ms = |ms: u64| host.clock.timer_ms(ms);
        let heartbeat = ms(limits.heartbeat_ms).max(5);
        let config = RepConfig::builder("sim", &host.name)
            .data_dir(DATA_DIR)
            .listen(format!("{}:{PORT}", host.name))
            .bootstrap(token.map_or_else(founding, Bootstrap::join))
            .set("heartbeat_interval_ms", heartbeat)
            .set("election_timeout_min_ms", heartbeat * 4)
            .set("election_timeout_max_ms", heartbeat * 6)
            .set("dial_timeout_ms", ms(500).max(10))
            .set("silence_max_ms", ms(2000).max(100))
            .set("commit_timeout_ms", ms(limits.commit_timeout_ms).max(10))
            .set("read_timeout_ms", ms(2000).max(10))
            .set(
                "forward_timeout_ms",
                if self.plan.anywhere {
                    ms(2000).max(10)
                } else {
                    0
                },
            )
            .set("snapshot_age_max_ms", ms(limits.snapshot_age_ms).max(10))
            .set("flush_interval_ms", limits.flush_interval_ms)
            .set("flush_bytes", limits.flush_bytes)
            .set("window_bytes_max", limits.window_bytes)
            .set("commit_queue_bytes_max", 1 << 20)
            .set("log_segment_bytes", limits.log_segment_bytes)
            .set("log_cache_bytes_max", limits.log_cache_bytes)
            .set("batches_in_flight_max", limits.batches_in_flight)
            // An undamaged node must be sound.
            .repair(if host.state().damaged || host.state().suspect {
                Repair::Auto
            } else {
                Repair::Never
            })
            .set("digest_interval_ms", limits.digest_interval_ms)
            .set("log_keep_bytes", limits.log.keep_bytes)
            .set("log_retain_bytes_max", limits.log.retain_bytes)
            .set("log_retain_ms_max", ms(limits.log.retain_ms).max(100))
            .set("restore_bytes_per_s_max", limits.log.restore_bytes_per_s)
            .build();
        config.expect("the limits of a plan are valid")
    }

    /// What a process on a host runs on.
    pub fn machine(&self, at: usize) -> Machine {
        let host = &self.hosts[at];
        let hardware = lock(&host.hardware).clone();
        Machine {
            disk: Arc::new(hardware.disk),
            transport: self.net.host(&host.name),
            engines: Arc::new(hardware.store),
            clock: Arc::clone(&host.clock) as Arc<dyn Clock>,
            seed: self.chance(RngExt::random),
            threads: Threads::Tasks,
        }
    }

    /// Opens the node of a powered host that runs nothing.
    ///
    /// # Errors
    /// Why the node does not open.
    pub async fn start(self: &Arc<Self>, at: usize) -> Result<(), String> {
        let host = &self.hosts[at];
        let life = Life {
            process: Process::new(),
            env: None,
            ended: CancellationToken::new(),
        };
        *lock(&host.life) = Some(life.clone());
        let machine = self.machine(at);
        let opening = ReplicatedEnvironment::open_on(self.config(at), machine);
        let opened = tokio::select! {
            biased;
            () = life.ended.cancelled() => return Ok(()),
            opened = life.process.run(opening) => opened,
        };
        match opened {
            Ok(env) => {
                if let Some(life) = &mut *lock(&host.life) {
                    life.env = Some(env);
                }
                self.story.tell(|| format!("{} is open", host.name));
                Ok(())
            }
            Err(error) => {
                self.end(at, End::Kill);
                Err(error.to_string())
            }
        }
    }

    /// Ends a node, if it runs, with whatever its machine loses by that.
    pub fn end(&self, at: usize, end: End) {
        let host = &self.hosts[at];
        let life = lock(&host.life).take();
        if end == End::PowerCut {
            self.net.power_off(&host.name);
        } else {
            self.net.kill_host(&host.name);
        }
        if let Some(life) = life {
            life.process.kill();
            life.ended.cancel();
            let Life { process, env, .. } = life;
            // Whatever dropping the last handle does, it does as a dead process.
            process.enter(|| drop(env));
        }
        let hardware = lock(&host.hardware).clone();
        let kept = self.chance(|rng| rng.random_range(0..4));
        if end == End::PowerCut {
            hardware.disk.crash();
            hardware.store.crash(kept);
            settle_archive(&hardware.disk, &hardware.archive);
            self.net.power_on(&host.name);
        } else {
            hardware.disk.process_ended();
            hardware.store.crash(usize::MAX);
        }
    }

    /// The nodes that are open now, with their lives.
    pub fn open_nodes(&self) -> Vec<(usize, Life)> {
        let alive = |host: &Host| Some((host.at, host.life().filter(|life| life.env.is_some())?));
        self.hosts.iter().filter_map(alive).collect()
    }

    /// The open nodes that consider themselves master.
    pub fn masters(&self) -> Vec<usize> {
        let mut open = self.open_nodes();
        open.retain(|(_, life)| {
            let env = life.env.as_ref();
            env.is_some_and(|env| env.state().role == Role::Master)
        });
        open.into_iter().map(|(at, _)| at).collect()
    }

    /// From here on, transaction numbers may be reused.
    pub fn forget_digests(&self) {
        lock(&self.digests).clear();
    }

    /// Compares the digests of all open nodes: the same VLSN means the same digest. Nodes that
    /// cannot know of their wrong rows yet are not asked.
    pub fn compare_digests(&self) {
        for (at, life) in self.open_nodes() {
            if is_waited_for(self, at) {
                continue;
            }
            let Some(Ok((vlsn, digest))) = life.env.as_ref().map(ReplicatedEnvironment::digest)
            else {
                continue;
            };
            let known = *lock(&self.digests).entry(vlsn.0).or_insert((digest, at));
            if known.0 != digest {
                let (one, other) = (known.1 + 1, at + 1);
                self.story
                    .violation(format!("n{one} and n{other} differ at VLSN {}", vlsn.0));
            }
        }
    }
}

impl Host {
    /// Its index.
    pub fn at(&self) -> usize {
        self.at
    }

    /// The node's current life.
    pub fn life(&self) -> Option<Life> {
        lock(&self.life).clone()
    }

    /// State of this machine.
    pub fn state(&self) -> HostState {
        *lock(&self.state)
    }

    /// Changes the state of this machine.
    pub fn set_state(&self, change: impl FnOnce(&mut HostState)) {
        change(&mut lock(&self.state));
    }

    /// Whether its node is a founder of the group.
    pub fn is_founder(&self) -> bool {
        lock(&self.token).is_none()
    }

    /// Sets the token its next node joins with.
    pub fn set_token(&self, token: JoinToken) {
        *lock(&self.token) = Some(token);
    }

    /// Its disk.
    pub fn disk(&self) -> SimDisk {
        lock(&self.hardware).disk.clone()
    }

    /// Storage of its engines.
    pub fn store(&self) -> MemoryStore {
        lock(&self.hardware).store.clone()
    }

    /// Its clock.
    pub fn clock(&self) -> &SimClock {
        &self.clock
    }

    /// Keeps the log for the checkers before something happens to it: what others received from
    /// this node by copy may be in no other log.
    pub fn keep_log(&self) {
        if let Ok(log) = self.log() {
            lock(&self.former).push(log);
        }
    }

    /// Replaces the disk with an empty one; the machine runs nothing.
    pub fn replace_disk(&self, world: &World) {
        self.keep_log();
        let fresh = world.chance(|rng| Hardware::new(&world.plan, self.at, rng, &world.story));
        *lock(&self.hardware) = fresh;
        self.set_state(|state| state.suspect = false);
    }

    /// Copies everything on the node's disk; the machine runs nothing.
    pub fn copy(&self) -> NodeCopy {
        let hardware = lock(&self.hardware);
        NodeCopy {
            directory: hardware.disk.copy(Path::new(DATA_DIR)),
            store: hardware.store.copy(),
        }
    }

    /// Replaces the contents of the node's disk with a copy; the machine runs nothing.
    pub fn put_back(&self, copy: NodeCopy) {
        self.keep_log();
        let mut hardware = lock(&self.hardware);
        hardware.disk.put_back(Path::new(DATA_DIR), copy.directory);
        hardware.store = copy.store;
    }

    /// The node's log as a process sees it, including what it has given up.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn log(&self) -> Result<Log, String> {
        let files = self.log_files(|disk, dir| {
            let names = disk.list(dir)?.into_iter();
            let read = |name: String| Ok((name.clone(), read_file(disk, &dir.join(name))?));
            names.map(read).collect()
        });
        logfile::read(files.map_err(|error| error.to_string())?)
    }

    /// Every log the machine has had before the present one.
    pub fn former_logs(&self) -> Vec<Log> {
        let mut logs = lock(&self.former).clone();
        let Hardware { disk, archive, .. } = lock(&self.hardware).clone();
        let newest = newest_log(&disk);
        let mut given_up: BTreeMap<PathBuf, BTreeMap<String, Vec<u8>>> = BTreeMap::new();
        for (path, bytes) in lock(&archive).clone() {
            if let (Some(dir), Some(name)) = (path.parent(), file_name(&path))
                && dir != newest
            {
                let files = given_up.entry(dir.to_owned()).or_default();
                files.insert(name.to_owned(), bytes);
            }
        }
        logs.extend(given_up.into_values().flat_map(logfile::read));
        logs
    }

    /// The last two segments of the log: reading all of a long log is slow.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn log_end(&self) -> Result<Log, String> {
        let files = self.log_files(|disk, dir| {
            let mut names = disk.list(dir)?;
            names.retain(|name| logfile::sequence_of(name).is_some());
            let end = names.split_off(names.len().saturating_sub(2)).into_iter();
            let read = |name: String| Ok((name.clone(), read_file(disk, &dir.join(name))?));
            end.map(read).collect()
        });
        let mut files = files.map_err(|error| error.to_string())?;
        while files.len() > 2 {
            files.pop_first();
        }
        logfile::read(files)
    }

    /// The log that a power cut would leave, including what the node has given up.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn durable_log(&self) -> Result<Log, String> {
        let files = self.log_files(|disk, dir| {
            let files = disk.durable_files().into_iter();
            let files = files.filter(|(path, _)| path.parent() == Some(dir));
            let named = |(path, bytes): (PathBuf, _)| Some((file_name(&path)?.to_owned(), bytes));
            Ok(files.filter_map(named).collect())
        });
        logfile::read(files.map_err(|error| error.to_string())?)
    }

    fn log_files(
        &self,
        read: impl FnOnce(&SimDisk, &Path) -> io::Result<Vec<(String, Vec<u8>)>>,
    ) -> io::Result<BTreeMap<String, Vec<u8>>> {
        let Hardware { disk, archive, .. } = lock(&self.hardware).clone();
        let dir = newest_log(&disk);
        let archive = lock(&archive).clone().into_iter();
        let own = archive.filter(|(path, _)| path.parent() == Some(&dir));
        let named = |(path, bytes): (PathBuf, _)| Some((file_name(&path)?.to_owned(), bytes));
        let mut files: BTreeMap<_, _> = own.filter_map(named).collect();
        let there = read(&disk, &dir)?.into_iter();
        files.extend(there.filter(|(name, _)| logfile::sequence_of(name).is_some()));
        Ok(files)
    }
}

/// Waits in virtual time.
pub async fn wait(duration: Duration) {
    tokio::time::sleep(duration).await;
}

/// A node's progress, in readable form.
pub(crate) fn where_it_is(world: &World, at: usize) -> String {
    let status = world.hosts[at]
        .life()
        .and_then(|life| life.env)
        .map(|env| env.status());
    let status =
        status.map(|status| format!("at {}, waits for: {}", status.vlsn, status.waiting_for));
    format!("n{} is {}", at + 1, status.as_deref().unwrap_or("down"))
}

/// Whether the node has wrong rows that it has not reported yet.
pub(crate) fn is_waited_for(world: &World, at: usize) -> bool {
    let history = world.history();
    let mut rows = history.false_rows.iter();
    rows.any(|row| row.node == at && row.until == u64::MAX)
}
