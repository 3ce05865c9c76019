//! `steadfast bench`: how fast a group is on this machine, with the master in this process, as in
//! an embedding application, and each replica in a process of its own.

mod load;
mod probe;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::ValueEnum;
use serde_json::{Value, json};
use steadfast::engine::{EngineFactory, NoxuFactory};
use steadfast::{Bootstrap, Durability, RepConfig, ReplicatedEnvironment, Role, plural};
use tokio::time::Instant;

use self::load::{Load, Measured};
use crate::child::{self, Child, ChildEvents};
use crate::credentials;
use crate::failure::Failure;
use crate::network::now_ms;
use crate::output;
use crate::ports::free_addresses;

const READY_TIMEOUT: Duration = Duration::from_secs(30);
const CLOSE_PATIENCE: Duration = Duration::from_secs(10);
/// Elections that this process may lose before the benchmark gives up.
const ELECTIONS_MAX: usize = 10;
/// Election timeouts of the replicas, long enough that this process stands first.
const REPLICA_ELECTION_MS: (u32, u32) = (2000, 3000);
const TICKS_PER_SECOND: f64 = 100.0;
/// With this interval nothing is flushed while the benchmark runs.
const KEEP_IN_WINDOW_MS: u64 = 3_600_000;
/// How often to check whether everything has been flushed.
const FLUSH_LOOK: Duration = Duration::from_millis(20);
/// Cache of the engine when it is measured alone: a node's default.
const ENGINE_CACHE_BYTES: u64 = 128 << 20;

/// Measure how fast a group is on this machine
#[derive(clap::Args)]
#[command(after_help = "\
The master runs in this process, each replica in its own, all on the loopback interface, with a
real fdatasync for every commit. The same run also measures, each alone, the two things that every
commit needs: an fdatasync of 4 KiB and a TCP round trip.

Workloads: put writes one key; txn reads and writes two keys; get reads one key; mixed is 80 % get and
20 % put; counter reads one key and raises it by one. Clients share the keys: with --keys 1, all raise
the same counter. At the end, the sum of all counters must equal the additions acknowledged.

Reads come from where the data lies. --from window keeps all data in memory; --from engine waits until
all data is in the storage engine. With --workload get and no writers, --from engine also reopens the
node first, and then measures the engine alone as well.

Examples:
  steadfast bench
  steadfast bench --clients 1
  steadfast bench --workload counter --keys 1
  steadfast bench --workload get --writers 1
  steadfast bench --workload get --consistency eventual --from engine --clients 1 --json")]
pub(crate) struct Arguments {
    /// Number of nodes
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=15))]
    nodes: u8,
    /// Number of client threads
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..=4096))]
    clients: u64,
    /// Measuring time, in seconds
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    /// Size of each value, in bytes
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(0..=1_048_576))]
    value_bytes: u32,
    /// What the clients do
    #[arg(long, value_enum, default_value_t = Workload::Put)]
    workload: Workload,
    /// Number of keys that are written and read
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    keys: u64,
    /// Number of extra threads that put meanwhile and are not measured
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=4096))]
    writers: u64,
    /// Where the data to read lies when the clients start
    #[arg(long, value_enum)]
    from: Option<Source>,
    /// How fresh reads must be
    #[arg(long, value_enum, default_value_t = Consistency::Linearizable)]
    consistency: Consistency,
    /// When a write is acknowledged: majority, all, local or none
    #[arg(long, default_value_t = Durability::MAJORITY)]
    durability: Durability,
    /// Directory for the temporary data directories [default: TMPDIR]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Print one JSON line on stdout at the end, and nothing else there
    #[arg(long)]
    json: bool,
    /// Do without TLS, to see what it costs
    #[arg(long)]
    plaintext: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Workload {
    Put,
    Get,
    Txn,
    Mixed,
    Counter,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Source {
    Window,
    Engine,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Consistency {
    Linearizable,
    Eventual,
}

/// Runs the benchmark.
///
/// # Errors
/// When the group could not be started, or this process does not become master.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode, Failure> {
    output::detach_log()?;
    let mut builder = tempfile::Builder::new();
    let builder = builder.prefix("steadfast-bench-");
    let parent = arguments.dir.clone().unwrap_or_else(std::env::temp_dir);
    let dir = builder.tempdir_in(parent).map_err(|error| {
        Failure::no_temporary_dir(&error).with(
            "nothing was changed",
            "name a writable directory with --dir, or set TMPDIR to one",
        )
    })?;
    let probes = probe::fdatasync(dir.path()).and_then(|sync| Ok((sync, probe::round_trip()?)));
    let (sync, round_trip) =
        probes.map_err(|error| Failure::system("cannot measure this machine", &error))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(|error| Failure::system("cannot start the runtime", &error))?;
    let mut group = runtime.block_on(BenchGroup::start(dir.path(), arguments))?;
    let load = Load {
        workload: arguments.workload,
        consistency: arguments.consistency,
        durability: arguments.durability,
        value_bytes: usize::try_from(arguments.value_bytes).unwrap_or(0),
        keys: arguments.keys,
        writers: arguments.writers,
    };
    let measured = measure(&mut group, &load, arguments);
    let closed = group.env.close();
    runtime.block_on(child::end_all(
        &mut group.replicas,
        &mut group.events,
        CLOSE_PATIENCE,
    ));
    closed?;
    let mut line = measured?;
    if arguments.has_engine_alone() {
        line["engine_ops_per_s"] = json!(measure_engine(dir.path(), &load, arguments)?);
    }
    add_ratio(&mut line, sync, round_trip);
    if !arguments.json {
        print(&line);
    }
    println!("{line}");
    Ok(ExitCode::SUCCESS)
}

/// The master in this process, and its replicas.
struct BenchGroup {
    env: ReplicatedEnvironment,
    config: RepConfig,
    replicas: Vec<Option<Child>>,
    events: ChildEvents,
}

impl BenchGroup {
    async fn start(dir: &Path, arguments: &Arguments) -> Result<Self, Failure> {
        let nodes = usize::from(arguments.nodes);
        let addresses = free_addresses(nodes)
            .map_err(|error| Failure::system("no free ports for the nodes", &error))?;
        let list: Vec<_> = (1..)
            .zip(&addresses)
            .map(|(n, at)| format!("n{n}={at}"))
            .collect();
        let secured = (!arguments.plaintext).then(|| dir.join("credentials"));
        if let Some(dir) = &secured {
            let names: Vec<_> = (1..=nodes).map(|n| format!("n{n}")).collect();
            credentials::make(dir, "bench", &names, true)?;
        }
        let (sender, events) = child::events();
        let start = |index: usize| {
            let name = format!("n{}", index + 1);
            let data_dir = dir.join(&name).display().to_string();
            let (min, max) = REPLICA_ELECTION_MS;
            let (min, max) = (
                format!("election_timeout_min_ms={min}"),
                format!("election_timeout_max_ms={max}"),
            );
            let arguments = [
                ["--group", "bench"],
                ["--node", &name],
                ["--data-dir", &data_dir],
                ["--listen", &addresses[index]],
                ["--bootstrap", &list.join(",")],
                ["--set", &min],
                ["--set", &max],
            ];
            let arguments = ["start", "--until-stdin-closes"]
                .into_iter()
                .chain(arguments.into_iter().flatten())
                .map(str::to_owned);
            let secured = secured.iter().flat_map(|dir| {
                let dir = dir.join(&name).display().to_string();
                ["--credentials".to_owned(), dir]
            });
            let arguments = arguments.chain(secured);
            let log = dir.join(format!("{name}.log"));
            Child::start(index - 1, 1, arguments, &log, sender.clone()).map(Some)
        };
        let replicas = (1..nodes).map(start).collect::<Result<_, _>>()?;
        let mut config = RepConfig::builder("bench", "n1")
            .data_dir(dir.join("n1"))
            .listen(&addresses[0])
            .bootstrap(Bootstrap::expect(&list)?);
        if arguments.from == Some(Source::Window) {
            config = config.set("flush_interval_ms", KEEP_IN_WINDOW_MS);
        }
        if let Some(dir) = &secured {
            config = config.credentials(steadfast::credentials::read(&dir.join("n1"), now_ms())?);
        }
        let config = config.build()?;
        let env = ReplicatedEnvironment::open_async(config.clone()).await?;
        let mut group = Self {
            env,
            config,
            replicas,
            events,
        };
        group.wait_master().await?;
        Ok(group)
    }

    /// Reopens this node, so that its engine is in the same state as one opened alone: what it has
    /// in memory was read from its files, not written a moment ago.
    fn reopen(&mut self) -> Result<(), Failure> {
        self.env.close()?;
        self.env = ReplicatedEnvironment::open(self.config.clone())?;
        Ok(self.env.wait_ready(READY_TIMEOUT)?)
    }

    /// Waits until this process is master; the replicas' output does not matter.
    async fn wait_master(&mut self) -> Result<(), Failure> {
        let (env, events) = (&self.env, &mut self.events);
        let leads = async {
            let mut states = env.state_changes();
            for _ in 0..ELECTIONS_MAX {
                env.wait_ready_async(READY_TIMEOUT).await?;
                match states.next_async().await {
                    Some(state) if state.role == Role::Master => return Ok(()),
                    Some(_) => {}
                    None => break,
                }
            }
            Err(Failure::new(
                "another node has become master",
                "the benchmark had only temporary data",
                "run the benchmark again",
            ))
        };
        let leads = async {
            tokio::time::timeout(READY_TIMEOUT, leads)
                .await
                .unwrap_or_else(|_| {
                    Err(Failure::new(
                        "the group has no master in time",
                        "the benchmark had only temporary data",
                        "run the benchmark again",
                    ))
                })
        };
        let drain = async { while events.recv().await.is_some() {} };
        tokio::select! {
            led = leads => led,
            () = drain => Err(Failure::new("all replicas have ended", "the benchmark had only temporary data", "run the benchmark again")),
        }
    }
}

fn measure(group: &mut BenchGroup, load: &Load, arguments: &Arguments) -> Result<Value, Failure> {
    load.prepare(&group.env).map_err(failed)?;
    if arguments.from == Some(Source::Engine) {
        wait_flushed(&group.env)?;
    }
    if arguments.has_engine_alone() {
        group.reopen()?;
    }
    let mut pids = vec![std::process::id()];
    pids.extend(group.replicas.iter().flatten().map(Child::pid));
    let ticks = probe::cpu_ticks(&pids);
    let time = Duration::from_secs(arguments.seconds);
    let measured = load.run(&group.env, arguments.clients, time);
    let ticks = probe::cpu_ticks(&pids) - ticks;
    if arguments.workload == Workload::Counter {
        let (counted, acknowledged) = (
            load.counted(&group.env).map_err(failed)?,
            measured.latencies_us.len(),
        );
        // A write whose outcome is unknown may have counted.
        if !(acknowledged..=acknowledged + measured.errors).contains(&counted) {
            let what =
                format!("{acknowledged} additions were acknowledged, but {counted} were counted");
            return Err(Failure::new(
                what,
                "an update was lost",
                "report this as a bug",
            ));
        }
    }
    Ok(describe(arguments, &measured, ticks))
}

fn failed(why: String) -> Failure {
    Failure::new(
        why,
        "the benchmark had only temporary data",
        "run the benchmark again",
    )
}

/// Waits until the storage engine holds everything that was written.
fn wait_flushed(env: &ReplicatedEnvironment) -> Result<(), Failure> {
    let deadline = Instant::now() + READY_TIMEOUT;
    while env.status().window_bytes > 0 {
        if Instant::now() > deadline {
            return Err(failed("the engine did not take all writes in time".into()));
        }
        #[expect(clippy::disallowed_methods, reason = "there is nothing to wait on")]
        std::thread::sleep(FLUSH_LOOK);
    }
    Ok(())
}

impl Arguments {
    /// Whether the engine is also measured alone.
    fn has_engine_alone(&self) -> bool {
        let gets_alone = self.workload == Workload::Get && self.writers == 0;
        gets_alone && self.from == Some(Source::Engine)
    }
}

/// The same gets on the engine alone, now that its node is closed.
fn measure_engine(dir: &Path, load: &Load, arguments: &Arguments) -> Result<f64, Failure> {
    let factory = NoxuFactory {
        cache_bytes: ENGINE_CACHE_BYTES,
    };
    let engine = factory.open(&dir.join("n1").join("engine"));
    let engine = engine.map_err(|error| failed(error.to_string()))?;
    let time = Duration::from_secs(arguments.seconds);
    let measured = load.run_on_engine(&*engine, arguments.clients, time);
    let closed = engine.close();
    closed.map_err(|error| failed(error.to_string()))?;
    Ok(ops_per_s(&measured.map_err(failed)?))
}

#[expect(clippy::cast_precision_loss, reason = "figures for people and plots")]
fn ops_per_s(measured: &Measured) -> f64 {
    (measured.latencies_us.len() as f64 / measured.elapsed.as_secs_f64()).round()
}

#[expect(clippy::cast_precision_loss, reason = "figures for people and plots")]
fn describe(arguments: &Arguments, measured: &Measured, ticks: u64) -> Value {
    let latencies = &measured.latencies_us;
    let ops = latencies.len();
    let word = |value: &dyn Fn() -> Option<clap::builder::PossibleValue>| {
        value().map(|value| value.get_name().to_owned())
    };
    json!({
        "nodes": arguments.nodes,
        "clients": arguments.clients,
        "value_bytes": arguments.value_bytes,
        "workload": word(&|| arguments.workload.to_possible_value()),
        "consistency": word(&|| arguments.consistency.to_possible_value()),
        "durability": arguments.durability.to_string(),
        "ops": ops,
        "ops_per_s": ops_per_s(measured),
        "p50_us": latencies.value_at_quantile(0.5),
        "p99_us": latencies.value_at_quantile(0.99),
        "p999_us": latencies.value_at_quantile(0.999),
        "max_us": latencies.max(),
        "errors": measured.errors,
        "puts_beside": measured.puts_beside,
        "cpu_s": ticks as f64 / TICKS_PER_SECOND,
    })
}

/// The minimum that the machine needs, and a commit's time as a multiple of that.
#[expect(clippy::cast_precision_loss, reason = "figures for people and plots")]
fn add_ratio(line: &mut Value, sync: Duration, round_trip: Duration) {
    let p50 = line["p50_us"].as_u64().unwrap_or(0) as f64;
    let least = (sync + round_trip).as_secs_f64() * 1e6;
    line["fdatasync_us"] = json!(round(sync.as_secs_f64() * 1e6));
    line["round_trip_us"] = json!(round(round_trip.as_secs_f64() * 1e6));
    line["p50_per_fdatasync_and_round_trip"] = json!(round(p50 / least));
}

fn round(number: f64) -> f64 {
    (number * 100.0).round() / 100.0
}

fn print(line: &Value) {
    let count = |key: &str| line[key].as_u64().unwrap_or(0);
    println!(
        "{} {} {}, {} {}: {} ops/s   p50 {} us   p99 {} us   p99.9 {} us   errors {}",
        line["clients"],
        line["workload"].as_str().unwrap_or_default(),
        plural(count("clients"), "client", "clients"),
        line["nodes"],
        plural(count("nodes"), "node", "nodes"),
        line["ops_per_s"],
        line["p50_us"],
        line["p99_us"],
        line["p999_us"],
        line["errors"]
    );
    println!(
        "this machine: fdatasync {} us, round trip {} us; p50 is {} times their sum",
        line["fdatasync_us"], line["round_trip_us"], line["p50_per_fdatasync_and_round_trip"]
    );
}
