//! Three nodes on this machine, the lives a test gives them, and their answers.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::model::Model;
use crate::node::{self, Settings};
use crate::protocol::{Command, Found, Keys, Outcome, Report, Stream, Write};
use crate::{PATIENCE, ports};

pub(crate) const NODES: usize = 3;
/// How many lines of a node's log a failure shows.
const LOG_LINES: usize = 40;
/// If set, directories of failed groups are kept; otherwise they are removed.
const KEEP: &str = "STEADFAST_LIVES_KEEP";

/// Numeric settings, by key.
pub(crate) type Numbers = Vec<(String, u64)>;

/// How a life ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The environment is closed.
    Stop,
    /// SIGKILL.
    Kill,
}

/// What a node's life reports.
enum News {
    Said(Report),
    /// Nothing more comes from this life.
    Ended,
}

/// The node, its life, and what that reports.
type NewsOf = (usize, u64, News);

/// One life of a node. Dropping it kills it.
struct Process {
    child: Child,
    stdin: Option<ChildStdin>,
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// What is known of a node's current life.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    life: u64,
    pub(crate) is_ready: bool,
    /// Rows that its engine did not hold as the log gave them.
    pub(crate) put_right: u64,
    has_ended: bool,
    role: String,
    /// Result of the last read.
    read: Option<Found>,
    unread: Option<String>,
    /// What a watcher has found.
    pub(crate) watched: Vec<Found>,
    /// Why it cannot go on.
    pub(crate) failed: Option<String>,
}

/// The writes to make.
#[derive(Default)]
struct Load {
    streams: BTreeMap<usize, Left>,
    /// The node that makes them, until it reports that it rests or ends.
    at: Option<usize>,
    /// Why the last write was refused.
    refused: Option<String>,
}

/// The rest of a stream.
struct Left {
    writes: VecDeque<Write>,
    is_under_way: bool,
}

/// The group, and what it must hold.
pub(crate) struct Group {
    dir: Option<TempDir>,
    addresses: Vec<String>,
    numbers: Numbers,
    processes: Vec<Option<Process>>,
    pub(crate) seen: Vec<Seen>,
    news: (Sender<NewsOf>, Receiver<NewsOf>),
    lives: u64,
    load: Load,
    pub(crate) model: Model,
    /// What each node's watcher reads continually.
    pub(crate) watched: Keys,
    /// Whether a node may report that it cannot go on.
    pub(crate) may_fail: bool,
    /// What was done and when, for anyone investigating a failure.
    story: Vec<String>,
    begun: Instant,
}

impl Group {
    /// Nodes that have never been started.
    pub(crate) fn new(numbers: &[(&str, u64)]) -> Self {
        let own = |(key, value): &(&str, u64)| ((*key).to_owned(), *value);
        Self {
            dir: Some(TempDir::new().expect("a directory")),
            addresses: ports::free_addresses(NODES).expect("free ports"),
            numbers: numbers.iter().map(own).collect(),
            processes: (0..NODES).map(|_| None).collect(),
            seen: (0..NODES).map(|_| Seen::default()).collect(),
            news: channel(),
            lives: 0,
            load: Load::default(),
            model: Model::default(),
            watched: Keys::new(),
            may_fail: false,
            story: Vec::new(),
            begun: Instant::now(),
        }
    }

    /// Records an action and its time.
    pub(crate) fn note(&mut self, what: &str) {
        let at = self.begun.elapsed();
        self.story.push(format!("{at:.1?} {what}"));
    }

    fn path(&self) -> &Path {
        self.dir.as_ref().expect("until it is dropped").path()
    }

    /// The data directory of a node.
    pub(crate) fn data_dir(&self, at: usize) -> PathBuf {
        self.path().join(format!("n{}", at + 1))
    }

    pub(crate) fn address(&self, at: usize) -> &str {
        &self.addresses[at]
    }

    fn log_file(&self, at: usize) -> PathBuf {
        self.path().join(format!("n{}.stderr", at + 1))
    }

    pub(crate) fn is_running(&self, at: usize) -> bool {
        self.processes[at].is_some()
    }

    pub(crate) fn running(&self) -> Vec<usize> {
        (0..NODES).filter(|at| self.is_running(*at)).collect()
    }

    /// Starts nodes, in this order, without waiting for them.
    pub(crate) fn begin(&mut self, nodes: &[usize]) {
        self.note(&format!("start {nodes:?}"));
        for at in nodes.iter().copied() {
            self.begin_one(at);
        }
    }

    /// Starts nodes, in this order, and waits until all of them are ready.
    pub(crate) fn start(&mut self, nodes: &[usize]) {
        self.begin(nodes);
        self.wait("the nodes to be ready", |group| {
            nodes.iter().all(|at| group.seen[*at].is_ready)
        });
    }

    fn begin_one(&mut self, at: usize) {
        assert!(self.processes[at].is_none(), "it has ended");
        self.lives += 1;
        let life = self.lives;
        let list = self.addresses.iter().zip(1..);
        let settings = Settings {
            name: format!("n{}", at + 1),
            dir: self.data_dir(at),
            listen: self.addresses[at].clone(),
            list: list.map(|(of, n)| format!("n{n}={of}")).collect(),
            numbers: self.numbers.clone(),
            watched: self.watched.clone(),
        };
        let mut log = OpenOptions::new();
        let log = log.create(true).append(true).open(self.log_file(at));
        let mut log: File = log.expect("a log");
        writeln!(log, "--- life {life}").expect("written");
        let spawned = node::process(&settings, log).spawn();
        let mut child = spawned.expect("the process starts");
        self.seen[at] = Seen {
            life,
            ..Seen::default()
        };
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let news = self.news.0.clone();
        std::thread::spawn(move || {
            // Lines of the harness are no reports; the last line of a killed process may be cut.
            for line in lines.map_while(Result::ok) {
                if let Ok(report) = serde_json::from_str(&line) {
                    news.send((at, life, News::Said(report))).ok();
                }
            }
            news.send((at, life, News::Ended)).ok();
        });
        let stdin = child.stdin.take();
        self.processes[at] = Some(Process { child, stdin });
    }

    /// Ends these nodes' lives at once, and waits for all.
    pub(crate) fn end(&mut self, nodes: &[(usize, End)]) {
        self.note(&format!("end {nodes:?}"));
        for (at, end) in nodes {
            let process = self.processes[*at].as_mut().expect("it runs");
            match end {
                End::Kill => process.child.kill().expect("killed"),
                End::Stop => drop(process.stdin.take()),
            }
        }
        self.wait("the end of nodes", |group| {
            nodes.iter().all(|(at, _)| group.seen[*at].has_ended)
        });
        for (at, end) in nodes {
            let mut process = self.processes[*at].take().expect("it ran");
            let status = process.child.wait().expect("it has ended");
            assert!(
                *end == End::Kill || self.may_fail || status.success(),
                "n{}: {status}",
                at + 1
            );
        }
    }

    /// Ends all running nodes at once.
    pub(crate) fn end_all(&mut self, end: End) {
        let nodes: Vec<_> = self.running().into_iter().map(|at| (at, end)).collect();
        self.end(&nodes);
    }

    fn tell(&mut self, at: usize, command: &Command) {
        let process = self.processes[at].as_mut().expect("it runs");
        let stdin = process.stdin.as_mut().expect("it was not stopped");
        let line = serde_json::to_string(command).expect("plain data");
        // A node that has just ended reports it.
        writeln!(stdin, "{line}").ok();
    }

    /// Takes the nodes' reports until `is_there`.
    pub(crate) fn wait(&mut self, what: &str, is_there: impl Fn(&Self) -> bool) {
        let in_time = self.wait_for(PATIENCE, is_there);
        assert!(in_time, "{what} took too long: {:?}", self.seen_shortly());
    }

    /// The same, for at most this long; returns whether it is there.
    pub(crate) fn wait_for(&mut self, most: Duration, is_there: impl Fn(&Self) -> bool) -> bool {
        let deadline = Instant::now() + most;
        while !is_there(self) {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.news.1.recv_timeout(left) {
                Ok(news) => self.take(news),
                Err(_) => return false,
            }
        }
        true
    }

    fn seen_shortly(&self) -> Vec<String> {
        let seen = self.seen.iter().zip(&self.processes);
        let shortly = |(seen, process): (&Seen, &Option<Process>)| {
            format!(
                "runs {}, ready {}, {}, {:?}",
                process.is_some(),
                seen.is_ready,
                seen.role,
                seen.unread
            )
        };
        seen.map(shortly).collect()
    }

    fn take(&mut self, (at, life, news): NewsOf) {
        if self.seen[at].life != life {
            return;
        }
        let seen = &mut self.seen[at];
        match news {
            News::Ended => {
                seen.has_ended = true;
                if self.load.at == Some(at) {
                    self.break_off();
                }
            }
            News::Said(Report::Ready { put_right }) => {
                seen.is_ready = true;
                seen.put_right = put_right;
            }
            News::Said(Report::Role(role)) => seen.role = role,
            News::Said(Report::Read(found)) => seen.read = Some(found),
            News::Said(Report::Unread(why)) => seen.unread = Some(why),
            News::Said(Report::Watched(found)) => seen.watched.push(found),
            News::Said(Report::Failed(why)) => {
                assert!(self.may_fail, "n{}: {why}", at + 1);
                seen.failed = Some(why);
            }
            News::Said(Report::Rests) => self.load.at = None,
            News::Said(Report::Wrote(stream, number, outcome)) => {
                self.take_outcome(stream, number, &outcome);
            }
        }
    }

    fn take_outcome(&mut self, number: usize, write: u64, outcome: &Outcome) {
        let left = self.load.streams.get_mut(&number).expect("it was asked");
        assert_eq!(left.writes.front().map(|first| first.number), Some(write));
        match outcome {
            Outcome::Acknowledged(token) => {
                let write = left.writes.pop_front().expect("just seen");
                self.model.acknowledge(&write, *token);
                if left.writes.is_empty() {
                    self.load.streams.remove(&number);
                }
            }
            Outcome::Unknown => self.give_up(number),
            Outcome::Refused(why) => {
                left.is_under_way = false;
                self.load.refused = Some(why.clone());
            }
        }
    }

    /// The outcome of the first write left in a stream is unknown. The later ones were not begun.
    fn give_up(&mut self, stream: usize) {
        let left = self.load.streams.remove(&stream).expect("it is there");
        let write = left.writes.into_iter().next().expect("one is left");
        self.model.leave_unknown(write);
    }

    /// The writing node has ended: it may have done more than it reported.
    fn break_off(&mut self) {
        self.load.at = None;
        let streams = self.load.streams.iter();
        let under_way = streams.filter(|(_, left)| left.is_under_way);
        let under_way: Vec<_> = under_way.map(|(number, _)| *number).collect();
        for stream in under_way {
            self.give_up(stream);
        }
    }

    /// Starts writing, on the node that is master.
    pub(crate) fn begin_load(&mut self, streams: Vec<Stream>) {
        assert!(!self.model.has_unknown(), "all is settled");
        for stream in streams {
            let left = Left {
                writes: stream.writes.into(),
                is_under_way: false,
            };
            self.load.streams.insert(stream.number, left);
        }
        self.hand_out_load();
    }

    fn hand_out_load(&mut self) {
        let is_master = |group: &Self, at: &usize| group.seen[*at].role == "master";
        self.wait("a master", |group| {
            group.running().iter().any(|at| is_master(group, at))
        });
        let mut running = self.running().into_iter();
        let master = running.find(|at| is_master(self, at)).expect("just seen");
        let streams = self.load.streams.iter_mut().map(|(number, left)| {
            left.is_under_way = true;
            let (number, writes) = (*number, left.writes.iter().cloned().collect());
            Stream { number, writes }
        });
        let command = Command::Write(streams.collect());
        self.load.at = Some(master);
        self.tell(master, &command);
    }

    /// Waits until this many more writes are acknowledged, or none is left.
    pub(crate) fn wait_acknowledged(&mut self, more: u64) {
        let due = self.model.acknowledged + more;
        let mut progress = (self.model.acknowledged, Instant::now());
        while self.model.acknowledged < due && !self.load.streams.is_empty() {
            self.wait("writes", |group| {
                group.model.acknowledged >= due || group.load.at.is_none()
            });
            if progress.0 != self.model.acknowledged {
                progress = (self.model.acknowledged, Instant::now());
            }
            assert!(progress.1.elapsed() < PATIENCE, "{:?}", self.load.refused);
            if self.load.at.is_none() && !self.load.streams.is_empty() {
                self.hand_out_load();
            }
        }
    }

    /// Writes the rest of the load, on whichever node is master, and waits for all of it.
    pub(crate) fn end_load(&mut self) {
        self.wait_acknowledged(u64::MAX / 2);
        self.wait("the load to rest", |group| group.load.at.is_none());
    }

    /// Writes all streams.
    pub(crate) fn write(&mut self, streams: Vec<Stream>) {
        let count: usize = streams.iter().map(|stream| stream.writes.len()).sum();
        self.note(&format!("write {count}"));
        if count > 0 {
            self.begin_load(streams);
            self.end_load();
        }
    }

    /// Reads every row on every running node, and checks it against what must be there. With
    /// `by_token` the reads are at least as new as the last write, otherwise linearizable.
    pub(crate) fn verify(&mut self, by_token: bool) {
        self.note("verify");
        assert!(self.load.streams.is_empty(), "nothing is under way");
        let unsettled = self.model.has_unknown();
        let command = Command::Read {
            keys: self.model.keys.clone(),
            token: self.model.token.filter(|_| by_token && !unsettled),
        };
        let nodes = self.running();
        for at in nodes.iter().copied() {
            self.seen[at].read = None;
            self.tell(at, &command);
        }
        for at in nodes.iter().copied() {
            self.wait_read(at, &command);
        }
        if let Some(found) = nodes.first().and_then(|at| self.seen[*at].read.as_ref()) {
            self.model.settle(&found.scanned);
        }
        let mut wrong = Vec::new();
        for at in nodes {
            let found = self.seen[at].read.take().expect("it was read");
            if let Err(what) = self.model.check(&self.model.keys, &found) {
                wrong.push(format!("n{} {what}", at + 1));
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }

    /// No engine had lost or altered anything that its node had to correct.
    pub(crate) fn check_engines_were_right(&self) {
        for (seen, n) in self.seen.iter().zip(1..) {
            assert_eq!(seen.put_right, 0, "n{n} has put rows right");
        }
    }

    fn wait_read(&mut self, at: usize, command: &Command) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.wait("a read", |group| {
                group.seen[at].read.is_some() || group.seen[at].unread.is_some()
            });
            let unread = self.seen[at].unread.take();
            if self.seen[at].read.is_some() {
                return;
            }
            assert!(Instant::now() < deadline, "n{}: {unread:?}", at + 1);
            self.tell(at, command);
        }
    }

    /// The end of a node's log.
    pub(crate) fn log_end(&self, at: usize) -> String {
        let log = std::fs::read_to_string(self.log_file(at)).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        self.processes.clear();
        println!("what was done: {:#?}", self.story);
        for at in 0..NODES {
            println!("log of n{}:\n{}", at + 1, self.log_end(at));
        }
        if std::env::var_os(KEEP).is_some()
            && let Some(dir) = self.dir.take()
        {
            println!("kept: {}", dir.keep().display());
        }
    }
}
