//! What a seed determines: a group, its limits, its load and its own subset of faults.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

macro_rules! faults {
    ($($name:ident = $text:literal,)*) => {
        /// A kind of fault that a run may have.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Fault {
            $(#[doc = concat!("`", $text, "`")] $name,)*
        }

        impl Fault {
            /// Every kind.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// The name on the command line and in reports.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }
        }
    };
}

faults! {
    Kill = "kill",
    KillAll = "kill_all",
    PowerCut = "power_cut",
    PowerCutAll = "power_cut_all",
    CrashAtStep = "crash_at_step",
    Pause = "pause",
    ClockJump = "clock_jump",
    ClockDrift = "clock_drift",
    SlowSync = "slow_sync",
    FailSync = "fail_sync",
    LyingSync = "lying_sync",
    FailWrite = "fail_write",
    TornByte = "torn_byte",
    DiskFull = "disk_full",
    StuckDisk = "stuck_disk",
    BitRot = "bit_rot",
    ZeroedSector = "zeroed_sector",
    Misdirected = "misdirected_write",
    Stale = "stale_sector",
    Truncated = "truncated_file",
    Wipe = "wipe",
    NetDelay = "net_delay",
    NetLoss = "net_loss",
    NetDuplicate = "net_duplicate",
    NetReorder = "net_reorder",
    NetReset = "net_reset",
    NetCorrupt = "net_corrupt",
    SlowLink = "slow_link",
    Partition = "partition",
    OneWay = "one_way",
    Hub = "quorum_loss_hub",
    Constrained = "constrained_election",
    Chain = "chain",
    Intruder = "intruder",
    OldCopy = "old_copy",
    Transfer = "transfer",
    Priority = "priority",
    Demote = "demote",
    Replace = "replace",
    QuorumLost = "quorum_lost",
    EngineLost = "engine_lost",
    EngineRevived = "engine_revived",
    EngineOld = "engine_old",
    EngineFlipped = "engine_flipped",
    EngineGone = "engine_gone",
    SlowWay = "slow_way",
}

impl Fault {
    /// Scenarios that follow the main run, at most one per run.
    pub const AFTER: &[Self] = &[Self::QuorumLost, Self::EngineGone, Self::SlowWay];

    /// Faults that make an engine wrong about a row.
    pub const OF_ENGINES: &[Self] = &[
        Self::EngineLost,
        Self::EngineRevived,
        Self::EngineOld,
        Self::EngineFlipped,
    ];
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.iter().find(|fault| fault.name() == text);
        found.copied().ok_or_else(|| {
            let known: Vec<_> = Self::ALL.iter().map(|fault| fault.name()).collect();
            format!("no fault {text:?}; there are: {}", known.join(", "))
        })
    }
}

/// Changes to a seed's plan: to find out what a failure needs, or to compare runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cuts {
    /// Maximum number of nodes.
    pub nodes: Option<usize>,
    /// Maximum length of the safety phase.
    pub safety: Option<Duration>,
    /// Every fault, whatever the seed drew.
    pub every_fault: bool,
    /// Faults to leave out.
    pub without: BTreeSet<Fault>,
    /// Whether it is a run with times to live instead.
    pub lifetimes: bool,
    /// Whether clients write at every node, and not at masters alone.
    pub anywhere: bool,
}

impl Cuts {
    /// The cuts as command-line arguments.
    pub fn arguments(&self) -> Vec<String> {
        let mut arguments = Vec::new();
        if let Some(nodes) = self.nodes {
            arguments.extend(["--nodes".to_owned(), nodes.to_string()]);
        }
        if let Some(safety) = self.safety {
            arguments.extend(["--safety-ms".to_owned(), safety.as_millis().to_string()]);
        }
        if self.every_fault {
            arguments.push("--every-fault".to_owned());
        }
        if self.lifetimes {
            arguments.push("--lifetimes".to_owned());
        }
        if self.anywhere {
            arguments.push("--anywhere".to_owned());
        }
        if !self.without.is_empty() {
            let names: Vec<_> = self.without.iter().map(|fault| fault.name()).collect();
            arguments.extend(["--without".to_owned(), names.join(",")]);
        }
        arguments
    }
}

/// Everything that makes up a run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Source of all randomness.
    pub seed: u64,
    /// Number of nodes in the group.
    pub nodes: usize,
    /// The faults of this run.
    pub faults: BTreeSet<Fault>,
    /// How long faults go on.
    pub safety: Duration,
    /// Mean time between two faults injected into a node or the whole network.
    pub fault_every: Duration,
    /// Number of clients that write and read.
    pub clients: u64,
    /// Most operations a client starts at once.
    pub burst_max: u64,
    /// Longest pause of a client between such bursts.
    pub think_max: Duration,
    /// Keys in each database; few keys cause conflicts.
    pub keys: u32,
    /// Largest value.
    pub value_max: usize,
    /// Nodes, by index, that may be lost for good or lose their votes: never more than the group
    /// can spare.
    pub expendable: BTreeSet<usize>,
    /// Reduced limits of the nodes.
    pub limits: Limits,
    /// Whether clients write at every node.
    pub anywhere: bool,
}

/// Limits low enough to be reached in a short run.
#[derive(Clone, Debug)]
pub struct Limits {
    /// `heartbeat_interval_ms`; the election timeouts are multiples of it.
    pub heartbeat_ms: u64,
    /// `flush_interval_ms`.
    pub flush_interval_ms: u64,
    /// `flush_bytes`.
    pub flush_bytes: u64,
    /// `log_cache_bytes_max`; small values make replicas catch up from the segments.
    pub log_cache_bytes: u64,
    /// `window_bytes_max`; small values make writers wait for the flush.
    pub window_bytes: u64,
    /// `log_segment_bytes`; the smallest segments roll again and again.
    pub log_segment_bytes: u64,
    /// `batches_in_flight_max`.
    pub batches_in_flight: u64,
    /// `commit_timeout_ms`.
    pub commit_timeout_ms: u64,
    /// `snapshot_age_max_ms`; some open transactions live longer.
    pub snapshot_age_ms: u64,
    /// `digest_interval_ms`: how often a node counts its rows.
    pub digest_interval_ms: u64,
    /// How much log is kept.
    pub log: LogLimits,
}

/// How much log is kept, and for whom: so little that nodes fall behind.
#[derive(Clone, Debug)]
pub struct LogLimits {
    /// `log_keep_bytes`.
    pub keep_bytes: u64,
    /// `log_retain_bytes_max`.
    pub retain_bytes: u64,
    /// `log_retain_ms_max`.
    pub retain_ms: u64,
    /// Whether segments are as small as the values permit.
    pub has_small_segments: bool,
    /// `restore_bytes_per_s_max`.
    pub restore_bytes_per_s: u64,
}

impl LogLimits {
    /// Drawn separately, so that the rest of a plan does not depend on them.
    fn draw(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed ^ 0x106);
        let keep_bytes = pick(&mut rng, &[0, 0, 64 << 10]);
        Self {
            keep_bytes,
            retain_bytes: keep_bytes + pick(&mut rng, &[0, 256 << 10, 1 << 30]),
            retain_ms: pick(&mut rng, &[100, 100, 1000, 60_000]),
            has_small_segments: rng.random_bool(0.75),
            restore_bytes_per_s: pick(&mut rng, &[64 << 10, 1 << 20, 64 << 20]),
        }
    }
}

/// Time within which a node counts its rows, once it has begun.
const COUNT_MAX: Duration = Duration::from_secs(3);

/// Engine faults of a seed, drawn separately, so that the plan of a seed without any does not
/// depend on them.
fn engine_faults(seed: u64) -> Vec<Fault> {
    let mut rng = StdRng::seed_from_u64(seed ^ 0xe9_61e5);
    let share = if rng.random_bool(0.4) { 0.6 } else { 0.0 };
    let faults = Fault::OF_ENGINES.iter().copied();
    let mut faults: Vec<_> = faults.filter(|_| rng.random_bool(share)).collect();
    faults.extend(rng.random_bool(0.15).then_some(Fault::EngineGone));
    faults
}

/// The faults that come after the run of a seed, drawn apart: the run does not depend on them.
fn faults_after(seed: u64) -> impl Iterator<Item = Fault> {
    let drawn = |fault, salt, chance| {
        let happens = StdRng::seed_from_u64(seed ^ salt).random_bool(chance);
        happens.then_some(fault)
    };
    let quorum_lost = drawn(Fault::QuorumLost, 0x10_57, 0.25);
    let slow_way = drawn(Fault::SlowWay, 0x510, 0.3);
    quorum_lost.into_iter().chain(slow_way)
}

/// Length of the safety phase of a run.
const SAFETY: Duration = Duration::from_secs(20);

impl Limits {
    fn draw(rng: &mut StdRng, seed: u64) -> Self {
        let window_bytes = pick(rng, &[64 << 10, 256 << 10, 1 << 20]);
        Self {
            heartbeat_ms: rng.random_range(30..=120),
            flush_interval_ms: pick(rng, &[20, 100, 1000]),
            flush_bytes: pick(rng, &[1024, 16 << 10, 256 << 10]).min(window_bytes / 2),
            log_cache_bytes: pick(rng, &[0, 4096, 1 << 20]),
            window_bytes,
            log_segment_bytes: pick(rng, &[128 << 10, 256 << 10, 1 << 20]),
            batches_in_flight: rng.random_range(1..=8),
            commit_timeout_ms: pick(rng, &[300, 2000, 10_000]),
            snapshot_age_ms: pick(rng, &[500, 3000, 60_000]),
            digest_interval_ms: pick(&mut StdRng::seed_from_u64(seed ^ 0xd19), &[500, 2000, 5000]),
            log: LogLimits::draw(seed),
        }
    }
}

impl Plan {
    /// The plan of a seed, reduced by `cuts`.
    pub fn new(seed: u64, cuts: &Cuts) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let sizes = [1, 2, 3, 3, 3, 3, 3, 3, 3, 3, 4, 5, 5, 5, 7];
        let nodes = pick(&mut rng, &sizes);
        let share = pick(&mut rng, &[0.1, 0.25, 0.5]);
        let during =
            |fault: &Fault| !Fault::AFTER.contains(fault) && !Fault::OF_ENGINES.contains(fault);
        let mut faults: BTreeSet<Fault> = Fault::ALL
            .iter()
            .copied()
            .filter(during)
            .filter(|_| rng.random_bool(share))
            .collect();
        faults.extend(faults_after(seed));
        faults.extend(engine_faults(seed));
        let mut spare: Vec<usize> = (0..nodes).collect();
        let mut expendable = BTreeSet::new();
        for _ in 0..(nodes - 1) / 2 {
            expendable.insert(spare.swap_remove(rng.random_range(0..spare.len())));
        }
        let limits = Limits::draw(&mut rng, seed);
        let clients = rng.random_range(2..=8);
        let burst_max = pick(&mut rng, &[1, 4, 8]);
        let operations_per_s = rng.random_range(100..=250);
        // On average a client pauses for half of this, and starts half as many operations.
        let think_max = Duration::from_millis(1000 * clients * (1 + burst_max) / operations_per_s);
        let safety = cuts.safety.map_or(SAFETY, |most| most.min(SAFETY));
        let mut plan = Self {
            seed,
            nodes,
            faults: BTreeSet::new(),
            safety,
            fault_every: Duration::from_millis(rng.random_range(300..3000)),
            clients,
            burst_max,
            think_max,
            keys: pick(&mut rng, &[2, 10, 100]),
            value_max: pick(&mut rng, &[16, 300, 20_000]),
            expendable,
            limits,
            anywhere: cuts.anywhere,
        };
        if plan.value_max > 1000 {
            // A copy of large values has to finish in the time all nodes have to agree.
            let fastest = &mut plan.limits.log.restore_bytes_per_s;
            *fastest = (*fastest).max(1 << 20);
        }
        if plan.limits.log.has_small_segments {
            // A transaction may write at most half a segment.
            plan.limits.log_segment_bytes = if plan.value_max > 1000 {
                128 << 10
            } else {
                64 << 10
            };
        }
        if cuts.every_fault {
            faults = Fault::ALL.iter().copied().collect();
        }
        faults.retain(|fault| !cuts.without.contains(fault));
        plan.faults = faults;
        if let Some(most) = cuts.nodes
            && most < nodes
        {
            plan.nodes = most.max(1);
            let spare = (plan.nodes - 1) / 2;
            plan.expendable = plan
                .expendable
                .into_iter()
                .filter(|node| *node < most)
                .take(spare)
                .collect();
        }
        plan
    }

    /// Whether this run has faults of this kind.
    pub fn has(&self, fault: Fault) -> bool {
        self.faults.contains(&fault)
    }

    /// Time within which a node at work reports that it has wrong rows.
    pub fn tells_within(&self) -> Duration {
        Duration::from_millis(self.limits.digest_interval_ms) + COUNT_MAX
    }

    /// Host name of a node.
    pub fn host(at: usize) -> String {
        format!("n{}", at + 1)
    }
}

/// A random element of a non-empty list.
fn pick<T: Copy>(rng: &mut StdRng, from: &[T]) -> T {
    from[rng.random_range(0..from.len())]
}
