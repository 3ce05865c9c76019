//! What clients of three nodes saw while masters were taken away under them has one order that
//! explains it: that of the revisions, with each read after the revision that its header names. No
//! lease ends before its time, or lives longer than its time and what a failover may add.
//!
//! ```text
//!  clients ──► history ──► piece ──► checker: revision by revision, each with a cause
//!   rest after each failover │          └──► leases: what was said of each, in time
//!                            └── revisions that nobody was told: read from the store
//! ```
//!
//! ```sh
//! STEADFAST_FAILOVERS=100 cargo test -p steadfast-server --test linearizable -- --nocapture
//! ```

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod check;
mod client;
mod history;
mod leases;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use steadfast::{InMemoryGroup, ReplicatedEnvironment};
use steadfast_server::proto::etcdserverpb::kv_client::KvClient;
use steadfast_server::{Server, ServerConfig, serve};
use tokio::sync::RwLock;
use tokio::time::{Instant, sleep};
use tonic::transport::Channel;

use crate::check::{Checker, Piece};
use crate::client::Client;
use crate::history::{Came, Event, History, Is, Keys, Record, Said, Write};

const CLIENTS: u64 = 9;
const READY_MAX: Duration = Duration::from_secs(30);
/// Operations between two failovers.
const OPERATIONS_BETWEEN: usize = 300;
/// Time between two failovers: as long as a lease is kept alive.
const TIME_BETWEEN: Duration = Duration::from_secs(2);

/// The failovers of a run.
fn failovers() -> usize {
    let set = std::env::var("STEADFAST_FAILOVERS").ok();
    set.map_or(4, |set| set.parse().unwrap())
}

async fn start(env: &ReplicatedEnvironment, listen: &str) -> Server {
    env.wait_ready_async(READY_MAX).await.unwrap();
    let config = ServerConfig::new(listen);
    serve(env.clone(), config).await.unwrap()
}

/// Three nodes, their clients, and what those saw.
struct Run {
    group: InMemoryGroup,
    servers: BTreeMap<String, Server>,
    channels: Vec<Channel>,
    history: Arc<History>,
    /// Held by each client during an operation.
    rest: Arc<RwLock<()>>,
    stop: Arc<AtomicBool>,
    clients: Vec<tokio::task::JoinHandle<()>>,
    checker: Checker,
    counts: BTreeMap<&'static str, usize>,
}

impl Run {
    async fn start() -> Self {
        let group = InMemoryGroup::new_async(3).await.unwrap();
        let mut servers = BTreeMap::new();
        for name in ["n1", "n2", "n3"] {
            let server = start(group.node(name).unwrap(), "127.0.0.1:0").await;
            servers.insert(name.to_owned(), server);
        }
        let channel = |address: SocketAddr| {
            let endpoint = Channel::from_shared(format!("http://{address}")).unwrap();
            endpoint.connect_lazy()
        };
        let channels = servers
            .values()
            .map(|server| channel(server.local_address()));
        let mut run = Self {
            channels: channels.collect(),
            group,
            servers,
            history: Arc::default(),
            rest: Arc::default(),
            stop: Arc::default(),
            clients: Vec::new(),
            checker: Checker::default(),
            counts: BTreeMap::new(),
        };
        let (keys, revision) = run.read(0, 0).await;
        run.checker = Checker::new(revision, keys);
        run.clients = (0..CLIENTS).map(|number| run.client(number)).collect();
        run
    }

    /// A client at one of the addresses, until it is told to stop.
    fn client(&self, number: u64) -> tokio::task::JoinHandle<()> {
        let at = usize::try_from(number).unwrap() % self.channels.len();
        let mut client = Client::new(number, self.channels[at].clone(), &self.history);
        let (rest, stop) = (Arc::clone(&self.rest), Arc::clone(&self.stop));
        tokio::spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                let _busy = rest.read().await;
                client.step().await;
            }
        })
    }

    async fn goes_on(&self, operations: usize, at_least: Duration) {
        let mut done = self.history.done();
        let wanted = done + operations;
        let begin = Instant::now() + at_least;
        let mut deadline = Instant::now() + READY_MAX;
        while done < wanted || Instant::now() < begin {
            let states: Vec<_> = self
                .group
                .nodes()
                .map(ReplicatedEnvironment::state)
                .collect();
            let is_late = Instant::now() >= deadline;
            assert!(!is_late, "clients get nowhere: {states:?}");
            sleep(Duration::from_millis(10)).await;
            if self.history.done() > done {
                done = self.history.done();
                deadline = Instant::now() + READY_MAX;
            }
        }
    }

    /// Ends the master, and starts it again.
    async fn crash(&mut self, name: &str) {
        let server = self.servers.remove(name).unwrap();
        let address = server.local_address().to_string();
        self.group.crash_async(name).await.unwrap();
        server.close().await;
        self.goes_on(OPERATIONS_BETWEEN / 3, Duration::ZERO).await;
        let env = self.group.start_async(name).await.unwrap().clone();
        let server = start(&env, &address).await;
        self.servers.insert(name.to_owned(), server);
    }

    /// Keeps the master from the others, but not from its clients.
    async fn cut_off(&mut self, name: &str) {
        self.group.cut_off(name).unwrap();
        self.goes_on(OPERATIONS_BETWEEN / 3, Duration::ZERO).await;
        self.group.heal(name).unwrap();
    }

    async fn fail_over(&mut self, number: usize) {
        self.goes_on(OPERATIONS_BETWEEN, TIME_BETWEEN).await;
        let master = self.group.wait_master_async(READY_MAX).await.unwrap();
        let name = master.status().node.name;
        if number % 3 == 2 {
            self.cut_off(&name).await;
        } else {
            self.crash(&name).await;
        }
        self.check().await;
    }

    /// All keys as of a revision (0: as they are) at a node.
    async fn read(&self, at: usize, revision: i64) -> (Keys, i64) {
        let mut kv = KvClient::new(self.channels[at].clone());
        let deadline = Instant::now() + READY_MAX;
        loop {
            match client::read(&mut kv, revision, &self.history).await {
                Ok(read) => return read,
                Err(status) => assert!(Instant::now() < deadline, "{status:?}"),
            }
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// Checks what happened since the last time, while all clients rest.
    async fn check(&mut self) {
        let rest = Arc::clone(&self.rest);
        let _all_rest = rest.write().await;
        let records = self.history.take();
        let began = self.history.now();
        let (keys, last) = self.read(0, 0).await;
        let read = (began, self.history.now());
        for at in 1..self.channels.len() {
            let (same, _) = self.read(at, last).await;
            assert_eq!(same, keys, "at another node at revision {last}");
        }
        let mut untold = BTreeMap::new();
        for (number, revision) in self.checker.untold(&records, last).into_iter().enumerate() {
            let (keys, _) = self.read(number % self.channels.len(), revision).await;
            untold.insert(revision, keys);
        }
        for record in &records {
            *self.counts.entry(kind(&record.event)).or_default() += 1;
        }
        let piece = Piece {
            records,
            last,
            keys,
            read,
            untold,
            failed: self.history.take_ended(),
        };
        if let Err(what) = self.checker.check(&piece) {
            panic!("{what}");
        }
    }

    async fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        for client in self.clients {
            client.await.unwrap();
        }
        for server in self.servers.into_values() {
            server.close().await;
        }
    }
}

/// What an event counts as.
fn kind(event: &Event) -> &'static str {
    match event {
        Event::Read(..) => "reads",
        Event::Write(_, Came::Unknown) => "of unknown outcome",
        Event::Write(Write::Swap { .. }, Came::Done(_)) => "guards that held",
        Event::Write(Write::Swap { .. }, _) => "guards that did not",
        Event::Write(Write::Put { lease: 1.., .. }, Came::Done(_)) => "puts with a lease",
        Event::Write(Write::Revoke { .. }, _) => "leases revoked",
        Event::Write(..) => "other writes",
        Event::Lease(_, Said::KeptAlive) => "keep-alives",
        Event::Lease(_, Said::Granted(_)) => "leases granted",
        Event::Lease(_, Said::Left { .. }) => "times to live",
        Event::Lease(..) => "other answers on leases",
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_clients_saw_through_failovers_has_one_order() {
    let mut run = Run::start().await;
    let failovers = failovers();
    for failover in 1..=failovers {
        run.fail_over(failover).await;
        if failover % 10 == 0 {
            println!("{failover} failovers, {} operations", run.history.done());
        }
    }
    run.goes_on(OPERATIONS_BETWEEN, TIME_BETWEEN).await;
    run.check().await;
    let (checker, counts) = (&run.checker, &run.counts);
    println!(
        "{failovers} failovers, {} operations: {counts:?}; {} revisions that clients were told, {} \
         others, {} leases that ended with keys",
        run.history.done(),
        checker.told,
        checker.untold,
        checker.leases.expired
    );
    for kind in [
        "reads",
        "guards that held",
        "puts with a lease",
        "keep-alives",
        "leases revoked",
    ] {
        assert!(
            counts.get(kind).is_some_and(|count| *count > 0),
            "there were {kind}"
        );
    }
    assert!(checker.leases.expired > 0, "leases ended");
    run.end().await;
}

/// A history of one client.
#[derive(Clone)]
struct Story {
    piece: Piece,
    now: u64,
}

impl Story {
    /// Something that took from one tenth of a second to the next.
    fn then(mut self, event: Event) -> Self {
        let at = |tenths: u64| Duration::from_millis(100 * tenths);
        self.piece.records.push(Record {
            client: 0,
            began: at(self.now),
            ended: at(self.now + 1),
            event,
        });
        self.now += 2;
        self
    }

    /// Tenths of a second go by.
    fn after(mut self, tenths: u64) -> Self {
        self.now += tenths;
        self
    }

    /// Nobody was told the revision at which these were the keys.
    fn untold(mut self, revision: i64, keys: &Keys) -> Self {
        self.piece.untold.insert(revision, keys.clone());
        self
    }

    /// The end, at a revision with these keys.
    fn ends(mut self, last: i64, keys: &Keys) -> Result<(), String> {
        self.piece.last = last;
        self.piece.keys.clone_from(keys);
        let at = Duration::from_millis(100 * self.now);
        self.piece.read = (at, at);
        Checker::new(1, Keys::new()).check(&self.piece)
    }
}

fn put(at: i64, value: u64, lease: i64) -> Event {
    let key = 0;
    Event::Write(Write::Put { key, value, lease }, Came::Done(at))
}

fn swap(seen: i64, came: Came) -> Event {
    let (key, value) = (0, 12);
    Event::Write(Write::Swap { key, seen, value }, came)
}

fn key(value: u64, changed: i64, lease: i64) -> Keys {
    let is = Is {
        value,
        changed,
        lease,
    };
    BTreeMap::from([(0, is)])
}

#[test]
fn a_history_that_has_no_order_is_found() {
    let story = Story {
        piece: Piece::default(),
        now: 0,
    };
    let good = story
        .then(put(2, 10, 0))
        .then(Event::Read(key(10, 2, 0), 2))
        .then(put(3, 11, 0))
        .then(swap(2, Came::Nothing(3)))
        .then(swap(3, Came::Done(4)));
    good.clone().ends(4, &key(12, 4, 0)).unwrap();
    let stale = Event::Read(key(10, 2, 0), 2);
    let torn = Event::Read(key(10, 2, 0), 4);
    let twice = put(3, 13, 0);
    let backwards = put(1, 13, 0);
    let refused = swap(4, Came::Nothing(4));
    for wrong in [stale, torn, twice, backwards, refused] {
        let found = good.clone().then(wrong.clone()).ends(4, &key(12, 4, 0));
        assert!(found.is_err(), "{wrong:?} was not found");
    }
    let guarded = good.clone().then(swap(2, Came::Done(5)));
    assert!(guarded.ends(5, &key(12, 5, 0)).is_err());
    let lost = good.clone().ends(4, &key(11, 3, 0));
    assert!(lost.is_err(), "an acknowledged write was lost");
    let by_nobody = good.clone().untold(5, &Keys::new());
    assert!(by_nobody.ends(5, &Keys::new()).is_err());
    let unknown = Event::Write(Write::Delete { key: 0 }, Came::Unknown);
    let deleted = good.then(unknown).untold(5, &Keys::new());
    deleted.clone().ends(5, &Keys::new()).unwrap();
    let again = deleted.then(put(6, 13, 0)).untold(7, &Keys::new());
    assert!(
        again.ends(7, &Keys::new()).is_err(),
        "it was asked for once"
    );
}

/// A lease of two seconds that takes a key.
fn leased() -> Story {
    let story = Story {
        piece: Piece::default(),
        now: 0,
    };
    story
        .then(said(Said::Granted(Duration::from_secs(2))))
        .then(put(2, 10, 7))
}

fn said(said: Said) -> Event {
    Event::Lease(7, said)
}

fn read(keys: &Keys, at: i64) -> Event {
    Event::Read(keys.clone(), at)
}

#[test]
fn a_lease_that_ends_early_or_late_is_found() {
    let granted = leased();
    let (there, gone) = (key(10, 2, 7), Keys::new());
    let expired = |story: Story| story.untold(3, &gone).then(read(&gone, 3)).ends(3, &gone);
    expired(granted.clone().after(18)).unwrap();
    assert!(expired(granted.clone().after(10)).is_err(), "early");
    let kept = granted.clone().after(10).then(said(Said::KeptAlive));
    assert!(
        expired(kept.clone().after(10)).is_err(),
        "early after it was kept alive"
    );
    expired(kept.clone().after(20)).unwrap();
    granted.clone().after(30).ends(2, &there).unwrap();
    assert!(granted.clone().after(60).ends(2, &there).is_err(), "late");
    let mut failed = granted.clone().after(60);
    failed.piece.failed.push(Duration::from_secs(1));
    failed
        .clone()
        .then(put(3, 11, 7))
        .ends(3, &key(11, 3, 7))
        .unwrap();
    let later = failed.then(put(3, 11, 7)).after(100);
    assert!(
        later.ends(3, &key(11, 3, 7)).is_err(),
        "late after a failover"
    );
}

#[test]
fn a_lease_that_is_not_gone_as_a_whole_is_found() {
    let granted = leased();
    let (there, gone) = (key(10, 2, 7), Keys::new());
    let ended = granted
        .clone()
        .after(18)
        .untold(3, &gone)
        .then(read(&gone, 3));
    ended.clone().then(said(Said::Gone)).ends(3, &gone).unwrap();
    for of_life in [
        Said::KeptAlive,
        Said::Left {
            seconds: 1,
            keys: Vec::new(),
            revision: 3,
        },
    ] {
        let lives = ended.clone().then(said(of_life)).ends(3, &gone);
        assert!(lives.is_err(), "it lives after its end");
    }
    let less = Said::Left {
        seconds: 0,
        keys: vec![0],
        revision: 2,
    };
    assert!(
        granted.clone().then(said(less)).ends(2, &there).is_err(),
        "less is left"
    );
    let revoked = Event::Write(Write::Revoke { lease: 7 }, Came::Done(3));
    let revoked = granted.clone().then(revoked).untold(3, &gone);
    revoked.clone().ends(3, &gone).unwrap();
    let attached = revoked.then(put(4, 11, 7)).ends(4, &key(11, 4, 7));
    assert!(attached.is_err(), "it takes a key after its end");
    let other = Event::Write(
        Write::Put {
            key: 1,
            value: 11,
            lease: 7,
        },
        Came::Done(3),
    );
    let two = granted.then(other).after(18);
    let part = BTreeMap::from([(0, there[&0])]);
    let parted = two.untold(4, &part).then(read(&part, 4)).ends(4, &part);
    assert!(parted.is_err(), "it left a key behind");
}
