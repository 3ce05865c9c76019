//! What a kube-apiserver sends, for some time, while the master is killed again and again: guarded
//! puts and deletes, lists in pages at one revision, watches with previous values and progress,
//! compaction, leases for events.
//!
//! ```text
//!  controllers ─ guarded writes ─►┌──────────────┐─ events, once and in order ─► watches
//!  compactors ─ compact ─────────►│ three nodes  │─ pages at one revision ─────► lists
//!  this test ─ SIGKILL, restart ─►└──────────────┘   all of it is held against the `ledger`
//! ```
//!
//! The tests run a short form. The long one has 300 watches and takes ten minutes:
//!
//! ```sh
//! STEADFAST_APISERVER_SECONDS=600 cargo test -p steadfast-cli --test apiserver -- --nocapture
//! ```

#![expect(
    clippy::disallowed_methods,
    reason = "tests use real processes, files, sockets and deadlines"
)]

mod controller;
mod ledger;
mod nodes;
#[path = "../../src/ports.rs"]
mod ports;
mod reflector;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use crate::controller::{Controller, NAMESPACES, PAGE_OF_ALL, Sender, object, prefix, resource};
use crate::ledger::{Keys, Ledger, State};
use crate::nodes::{Client, Nodes};
use crate::reflector::{PAGE, Reflector, Segment, Watched};

/// Time limit for anything that must happen. Only a failure waits this long.
const PATIENCE: Duration = Duration::from_mins(1);

/// Seconds of the long form.
const SECONDS: &str = "STEADFAST_APISERVER_SECONDS";

/// Watches of each resource.
const WATCHES: usize = 10;

/// Controllers of each resource.
const CONTROLLERS: usize = 2;

/// Resident memory of a node, at most, in MiB.
const MEMORY_MAX: u64 = 1024;

/// What a run does.
struct Plan {
    resources: usize,
    lasts: Duration,
    kill_every: Duration,
    compact_every: Duration,
    /// How long objects of the first resource live.
    ttl: Duration,
    /// How long a watch lasts that sleeps then.
    sleeps_after: Duration,
}

impl Plan {
    fn of_environment() -> Self {
        let set = std::env::var(SECONDS).ok();
        let seconds = set.map(|set| set.parse().expect("seconds"));
        seconds.map_or_else(Self::short, Self::long)
    }

    fn short() -> Self {
        Self {
            resources: 8,
            lasts: Duration::from_secs(15),
            kill_every: Duration::from_secs(4),
            compact_every: Duration::from_secs(2),
            ttl: Duration::from_secs(3),
            sleeps_after: Duration::from_secs(2),
        }
    }

    fn long(seconds: u64) -> Self {
        Self {
            resources: 30,
            lasts: Duration::from_secs(seconds),
            kill_every: Duration::from_secs(20),
            compact_every: Duration::from_mins(1),
            ttl: Duration::from_secs(45),
            sleeps_after: Duration::from_secs(40),
        }
    }

    /// What the watches are of: everything, then of each resource all of it, its namespaces and an
    /// object.
    fn watches(&self) -> Vec<(usize, Keys)> {
        let of_each = (0..self.resources * WATCHES).map(|number| {
            let (at, which) = (number / WATCHES, number % WATCHES);
            let resource = resource(at);
            let keys = match which {
                0 if at == 0 => Keys {
                    start: Bytes::from_static(b"\0"),
                    end: Bytes::from_static(b"\0"),
                },
                0..5 => prefix(&resource),
                9 => Keys {
                    start: object(&resource, 7).into(),
                    end: Bytes::new(),
                },
                _ => {
                    let namespace = u64::try_from(which).expect("small") % NAMESPACES;
                    prefix(&format!("{resource}ns{namespace}/"))
                }
            };
            (number, keys)
        });
        of_each.collect()
    }
}

/// The clients, until they end.
struct Clients {
    ledger: Arc<Ledger>,
    writing: JoinSet<()>,
    watching: JoinSet<Reflector>,
    stop: watch::Sender<bool>,
    last: watch::Sender<Option<i64>>,
}

impl Clients {
    async fn start(nodes: &Nodes, plan: &Plan) -> Self {
        let ledger = Arc::<Ledger>::default();
        let by_resource: Vec<_> = (0..plan.resources).map(|at| nodes.client(at)).collect();
        let everything = prefix("/registry/");
        let first = reflector::list(&by_resource[0], &ledger, &everything, PAGE).await;
        let first = first.expect("all nodes are there").revision;
        ledger.begin(first);
        let mut clients = Self {
            ledger,
            writing: JoinSet::new(),
            watching: JoinSet::new(),
            stop: watch::Sender::new(false),
            last: watch::Sender::new(None),
        };
        clients.watch(plan, &by_resource, first);
        clients.write(plan, &by_resource);
        clients
    }

    fn watch(&mut self, plan: &Plan, by_resource: &[Client], first: i64) {
        for (number, keys) in plan.watches() {
            let sleeps = number % (3 * WATCHES) == 4;
            // The watch of everything lists nothing: nothing has been written yet.
            let segments = (number == 0).then(|| Segment::after(first));
            let reflector = Reflector {
                number,
                client: by_resource[number / WATCHES].beginning_at(number),
                ledger: Arc::clone(&self.ledger),
                keys,
                sleeps_after: sleeps.then_some(plan.sleeps_after),
                last: self.last.subscribe(),
                state: State::new(),
                next: first + 1,
                segments: segments.into_iter().collect(),
                watched: Watched::default(),
            };
            self.watching.spawn(reflector.run());
        }
    }

    fn write(&mut self, plan: &Plan, by_resource: &[Client]) {
        let sender = |client: &Client| Sender {
            client: client.clone(),
            ledger: Arc::clone(&self.ledger),
        };
        for number in 0..plan.resources * CONTROLLERS {
            let at = number / CONTROLLERS;
            let controller = Controller {
                sender: sender(&by_resource[at].beginning_at(number)),
                resource: resource(at),
                chance: u64::try_from(number).expect("small") + 1,
                cache: HashMap::new(),
                ttl: (at == 0).then_some(plan.ttl),
                lease: None,
            };
            let pause = Duration::from_millis(250);
            self.writing
                .spawn(controller.run(pause, self.stop.subscribe()));
        }
        for client in &by_resource[..2] {
            let compactor =
                controller::compactor(sender(client), plan.compact_every, self.stop.subscribe());
            self.writing.spawn(compactor);
            let pause = Duration::from_millis(700);
            let (ledger, stop) = (Arc::clone(&self.ledger), self.stop.subscribe());
            self.writing
                .spawn(controller::lister(client.clone(), ledger, pause, stop));
        }
    }

    /// Goes on until then, or until a client fails.
    async fn go_on(&mut self, until: Instant) {
        tokio::select! {
            () = sleep_until(until) => {}
            Some(ended) = self.writing.join_next() => panic!("a client has ended: {ended:?}"),
            Some(ended) = self.watching.join_next() => {
                panic!("a watch has ended: {:?}", ended.map(|of| of.number));
            }
        }
    }

    /// Ends the writes, and has the watches come to the end.
    async fn end(&mut self, client: &Client) -> Vec<Reflector> {
        self.stop.send_replace(true);
        while let Some(ended) = self.writing.join_next().await {
            ended.expect("no panic");
        }
        let deadline = Instant::now() + PATIENCE;
        let last = loop {
            let list =
                reflector::list(client, &self.ledger, &prefix("/registry/"), PAGE_OF_ALL).await;
            if let Some(list) = list {
                break list.revision;
            }
            assert!(Instant::now() < deadline, "no list in time");
        };
        self.last.send_replace(Some(last));
        let mut ended = Vec::new();
        while let Some(next) = timeout(PATIENCE, self.watching.join_next())
            .await
            .expect("in time")
        {
            ended.push(next.expect("no panic"));
        }
        for reflector in &ended {
            reflector.check(last);
        }
        assert!(self.ledger.audited() >= last);
        self.ledger.finish();
        ended
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_kube_apiserver_needs_holds_while_masters_are_killed() {
    let plan = Plan::of_environment();
    let mut nodes = Nodes::start().await;
    let mut clients = Clients::start(&nodes, &plan).await;
    let began = Instant::now();
    clients.go_on(began + plan.kill_every / 2).await;
    let (first, mut most) = (nodes.memory(), 0);
    let mut kills = 0;
    while began.elapsed() + plan.kill_every <= plan.lasts {
        let next = Instant::now() + plan.kill_every;
        let master = nodes.master().await;
        most = nodes.memory().into_iter().fold(most, u64::max);
        nodes.kill(master);
        kills += 1;
        clients.go_on(Instant::now() + plan.kill_every / 4).await;
        nodes.begin(master);
        nodes.serves(master).await;
        if kills % 5 == 0 {
            println!(
                "{kills} kills, {:?}, {:?} MiB",
                clients.ledger.counts(),
                nodes.memory()
            );
        }
        clients.go_on(next).await;
    }
    let last = nodes.memory();
    most = last.iter().copied().fold(most, u64::max);
    let ended = clients.end(&nodes.client(0)).await;
    report(&plan, kills, &clients.ledger, &ended);
    println!("memory of the nodes in MiB: {first:?} at first, {last:?} at last, at most {most}");
    assert!(most < MEMORY_MAX, "{most} MiB");
}

fn report(plan: &Plan, kills: usize, ledger: &Ledger, ended: &[Reflector]) {
    let counts = ledger.counts();
    let sum = |of: fn(&Watched) -> usize| ended.iter().map(|one| of(&one.watched)).sum::<usize>();
    let longest = |of: fn(&Watched) -> Duration| {
        ended
            .iter()
            .map(|one| of(&one.watched))
            .max()
            .unwrap_or_default()
    };
    let (events, compacted) = (sum(|of| of.events), sum(|of| of.compacted));
    println!(
        "{:?}, {kills} kills of the master, {} watches: {events} events, {} streams, {compacted} \
         times compacted, {} times told of progress, {} events without what is compacted",
        plan.lasts,
        ended.len(),
        sum(|of| of.streams),
        sum(|of| of.progress),
        sum(|of| of.without_previous),
    );
    println!(
        "{counts:?}; an event came to the last watch {:?} after the first at most, and a watch was \
         told nothing for {:?} at most",
        longest(|of| of.later_max),
        longest(|of| of.silence_max),
    );
    let are_all_used = counts.conflicts > 0
        && counts.deletes > 0
        && counts.lists > 0
        && counts.compactions > 0
        && counts.expired_keys > 0
        && compacted > 0
        && kills > 1
        && sum(|of| of.streams) > ended.len()
        && sum(|of| of.progress) > 0;
    assert!(are_all_used, "not everything was tried");
}
