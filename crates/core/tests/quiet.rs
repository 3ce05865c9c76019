//! A healthy node says a line for each change, and nothing else.

#![expect(
    clippy::disallowed_methods,
    reason = "tests use real threads, files and deadlines"
)]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use steadfast::machine::Machine;
use steadfast::{Bootstrap, ConsistencyPolicy, LOG_FILTER, RepConfig, ReplicatedEnvironment, Role};
use steadfast_net::MemoryNetwork;
use tempfile::TempDir;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Context, SubscriberExt};

/// How long the group works.
const LOAD: Duration = Duration::from_secs(3);

/// Lines that each node may say while its group forms, works and closes: roles, and what it opened.
const LINES_MAX: usize = 15;

/// Lines by level and source.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<BTreeMap<(String, String), usize>>>);

impl Lines {
    fn add(&self, level: &str, target: &str) {
        let mut lines = self.0.lock().expect("no panic");
        *lines
            .entry((level.to_owned(), target.to_owned()))
            .or_default() += 1;
    }
}

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let metadata = event.metadata();
        self.add(metadata.level().as_str(), metadata.target());
    }
}

/// What the engine says goes through `log`, as an application's subscriber gets it from there.
struct Bridge(Lines, Targets);

impl log::Log for Bridge {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let level = match record.level() {
            log::Level::Error => Level::ERROR,
            log::Level::Warn => Level::WARN,
            log::Level::Info => Level::INFO,
            log::Level::Debug => Level::DEBUG,
            log::Level::Trace => Level::TRACE,
        };
        if self.1.would_enable(record.target(), &level) {
            self.0.add(level.as_str(), record.target());
        }
    }

    fn flush(&self) {}
}

fn listen() -> Lines {
    let lines = Lines::default();
    let targets: Targets = LOG_FILTER.parse().expect("a filter");
    let bridge = Bridge(lines.clone(), targets.clone());
    log::set_logger(Box::leak(Box::new(bridge))).expect("the first");
    log::set_max_level(log::LevelFilter::Info);
    let subscriber = tracing_subscriber::registry().with(lines.clone().with_filter(targets));
    tracing::subscriber::set_global_default(subscriber).expect("the first");
    lines
}

fn open(dir: &TempDir) -> Vec<ReplicatedEnvironment> {
    let network = MemoryNetwork::new();
    let list = ["n1=n1:7400", "n2=n2:7400", "n3=n3:7400"];
    let machine = |name: &str| Machine {
        transport: network.host(name),
        ..Machine::real(16 << 20).expect("entropy")
    };
    let open = |name: &str| {
        let config = RepConfig::builder("quiet", name)
            .data_dir(dir.path().join(name))
            .listen(format!("{name}:7400"))
            .bootstrap(Bootstrap::expect(list).expect("a list"))
            .set("election_timeout_min_ms", 5_000)
            .set("election_timeout_max_ms", 6_000)
            .set("flush_interval_ms", 100)
            .build();
        (config.expect("a configuration"), machine(name))
    };
    let handle = tokio::runtime::Handle::current();
    let nodes = ["n1", "n2", "n3"].map(open);
    nodes
        .into_iter()
        .map(|(config, machine)| {
            let opened = handle.block_on(ReplicatedEnvironment::open_on(config, machine));
            opened.expect("opened")
        })
        .collect()
}

fn work(nodes: &[ReplicatedEnvironment]) {
    for node in nodes {
        node.wait_ready(Duration::from_mins(1)).expect("ready");
    }
    let master = nodes.iter().find(|node| node.state().role == Role::Master);
    let master = master.expect("a master");
    let until = Instant::now() + LOAD;
    std::thread::scope(|scope| {
        for thread in 0..4_u32 {
            scope.spawn(move || {
                let mut n = 0_u32;
                while Instant::now() < until {
                    n += 1;
                    let key = [thread.to_be_bytes(), (n % 500).to_be_bytes()].concat();
                    let put = master.database("d").put(&key, vec![7; 1000]);
                    let _token = put.expect("committed");
                    let node = &nodes[n as usize % nodes.len()];
                    let read = node.read(ConsistencyPolicy::Linearizable, |snapshot| {
                        Ok::<_, steadfast::ReadError>(
                            snapshot.database("d")?.iter().take(20).count(),
                        )
                    });
                    assert!(read.expect("read") > 0);
                }
            });
        }
    });
}

#[test]
fn a_healthy_group_under_load_says_little_and_warns_of_nothing() {
    let lines = listen();
    let dir = TempDir::new().expect("a directory");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let nodes = {
        let _runtime = runtime.enter();
        open(&dir)
    };
    work(&nodes);
    // A cursor of the engine that is dropped instead of closed is told of here.
    let digests = nodes.iter().map(|node| node.digest().expect("read"));
    assert!(digests.count() == nodes.len());
    for node in &nodes {
        node.close().expect("closed");
    }
    let lines = lines.0.lock().expect("no panic").clone();
    let told: usize = lines.values().sum();
    let is_trouble = |level: &str| level == "WARN" || level == "ERROR";
    assert!(
        !lines.keys().any(|(level, _)| is_trouble(level)),
        "{lines:#?}"
    );
    assert!((1..=LINES_MAX * nodes.len()).contains(&told), "{lines:#?}");
}
