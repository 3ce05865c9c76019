//! The life of a group under load, with real processes: it grows, loses a node, hands over, moves
//! and shrinks while it writes and reads, and nothing acknowledged is lost.
//!
//! ```text
//!  this test                                   demo-node: one process for each node
//!  ---------                                   ------------------------------------
//!  uses the program; keeps what was   stdin    embeds the library, as an application does; writes
//!  acknowledged, and checks every   ─────────► while it is master, reads when asked
//!  read and the final state against ◄───────── one line for each answer
//!  it (`ledger`)                      stdout
//! ```

mod ledger;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use self::ledger::Ledger;
use super::operator::Operated;
use super::{Numbers, PATIENCE, free_port, steadfast};

/// Writer threads in each process; those of the master are active.
const WRITERS: usize = 4;
/// A busy machine causes no election, and a transfer that waits for one is noticeable. Only a master
/// acknowledges: so two in one term are found.
pub(super) const CALM: Numbers = &[
    ("election_timeout_min_ms", 1_500),
    ("election_timeout_max_ms", 2_500),
    ("forward_timeout_ms", 0),
];
/// Upper bound on the median time for which a transfer holds writes, even on a busy machine. An
/// idle machine takes a tenth of it; waiting for an election would take three times as long.
const GAP_MEDIAN_MAX: Duration = Duration::from_millis(500);
/// After this many records the load is known to go on.
const RECORDS_BETWEEN: usize = 40;

/// What all processes report, and a notification for each line.
#[derive(Default)]
struct Board {
    ledger: Mutex<Ledger>,
    changed: Condvar,
}

impl Board {
    fn lock(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().expect("nothing panics with it")
    }

    /// Waits until `find` finds something in the ledger.
    fn wait<T>(&self, what: &str, find: impl Fn(&Ledger) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        let mut ledger = self.lock();
        loop {
            if let Some(found) = find(&ledger) {
                return found;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "{what} took too long: {ledger:?}");
            let waited = self.changed.wait_timeout(ledger, left);
            ledger = waited.expect("nothing panics with it").0;
        }
    }
}

/// One life of a node, as a process that writes and reads. Dropping it kills it.
struct Process {
    child: Child,
    life: u64,
    stdin: Arc<Mutex<Option<ChildStdin>>>,
    listener: Option<JoinHandle<()>>,
}

impl Process {
    fn start(arguments: &[String], log: File, (at, life): (usize, u64), board: Arc<Board>) -> Self {
        let mut child = steadfast()
            .arg("demo-node")
            .args(arguments)
            .args(["--life", &life.to_string()])
            .args(["--clients", &WRITERS.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .expect("the program starts");
        let stdin = Arc::new(Mutex::new(child.stdin.take()));
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let replies = Arc::clone(&stdin);
        let listener = std::thread::spawn(move || {
            // The last line of a killed process may be cut.
            let lines = lines.map_while(Result::ok);
            for report in lines.map_while(|line| serde_json::from_str(&line).ok()) {
                let reads_on = board.lock().take((at, life), &report, Instant::now());
                board.changed.notify_all();
                if reads_on {
                    tell(&replies, "read");
                }
            }
        });
        Self {
            child,
            life,
            stdin,
            listener: Some(listener),
        }
    }

    /// Waits until it has ended and everything it reported is in the ledger.
    fn wait(&mut self) -> std::process::ExitStatus {
        let status = self.child.wait().expect("it ends");
        if let Some(listener) = self.listener.take() {
            listener.join().expect("no panic");
        }
        status
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// A process that is gone cannot be told anything, and need not be.
fn tell(stdin: &Mutex<Option<ChildStdin>>, command: &str) {
    if let Some(stdin) = &mut *stdin.lock().expect("nothing panics with it") {
        writeln!(stdin, "\"{command}\"").ok();
    }
}

/// The operator, and the group under load.
pub(super) struct Script {
    pub(super) group: Operated,
    numbers: Vec<(&'static str, u64)>,
    board: Arc<Board>,
    processes: Vec<Option<Process>>,
    lives: u64,
}

impl Script {
    fn new() -> Self {
        Self::with(&[])
    }

    /// With these numeric settings in addition to [`CALM`].
    pub(super) fn with(numbers: Numbers) -> Self {
        Self {
            group: Operated::unstarted(3),
            numbers: [CALM, numbers].concat(),
            board: Arc::default(),
            processes: vec![None, None, None],
            lives: 0,
        }
    }

    /// Starts one node, and two more that it admits.
    pub(super) fn start_all(&mut self) {
        self.start(0, None);
        self.work();
        for at in [1, 2] {
            let token = self.group.done(0, &["token", "create"]);
            self.start(at, Some(&token));
        }
        self.whole();
    }

    /// Starts a node; once ready, it takes its part of the load.
    fn start(&mut self, at: usize, token: Option<&str>) {
        let mut arguments = self.group.arguments(at);
        if let Some(token) = token {
            arguments.extend(["--join".to_owned(), token.to_owned()]);
        }
        let set = |(key, value): &(&str, u64)| ["--set".to_owned(), format!("{key}={value}")];
        arguments.extend(self.numbers.iter().flat_map(set));
        self.lives += 1;
        let log = self
            .group
            .dir
            .path()
            .join(format!("life{}.log", self.lives));
        let log = File::create(log).expect("a file");
        let who = (at, self.lives);
        self.board.lock().begin(who);
        let process = Process::start(&arguments, log, who, Arc::clone(&self.board));
        self.board.wait("a node to be ready", |ledger| {
            ledger.nodes[at].is_ready.then_some(())
        });
        self.board.lock().begin_reads(at);
        tell(&process.stdin, "load");
        tell(&process.stdin, "read");
        self.processes[at] = Some(process);
    }

    fn running(&self) -> impl Iterator<Item = usize> {
        (0..self.processes.len()).filter(|at| self.processes[*at].is_some())
    }

    /// Ends a node: by SIGKILL, or by closing its environment.
    fn end(&mut self, at: usize, by_kill: bool) {
        let mut process = self.processes[at].take().expect("it runs");
        self.board.lock().end_reads(at);
        if by_kill {
            process.child.kill().expect("killed");
        }
        drop(process.stdin.lock().expect("no panic").take());
        let status = process.wait();
        assert!(by_kill || status.success(), "{status}");
        self.board.lock().ended.insert(process.life);
    }

    /// Waits until the load has progressed on every node.
    fn work(&self) {
        let (records, reads) = self.board.lock().counts();
        let running: Vec<_> = self.running().collect();
        self.board.wait("the load", |ledger| {
            let (now, now_read) = ledger.counts();
            let has_read = running.iter().all(|at| now_read[*at] > reads[*at]);
            (now >= records + RECORDS_BETWEEN && has_read).then_some(())
        });
    }

    pub(super) fn whole(&self) {
        self.group
            .list_until(0, &["3 of 3 nodes work; survives 1 failure"]);
        self.work();
    }

    /// Transfers mastership to the next node after the master; returns the old master's last term.
    fn transfer(&self) -> u64 {
        self.work();
        let to = match self.group.done(0, &["master", "show"]).as_str() {
            "n1" => "n2",
            "n2" => "n3",
            _ => "n1",
        };
        let term = self.board.lock().term();
        let done = self.group.done(0, &["master", "transfer", to]);
        assert_eq!(done, format!("{to} is the master"));
        self.board.wait("a write after a transfer", |ledger| {
            (ledger.term() > term).then_some(term)
        })
    }

    /// Removes a node from the group, and waits until it no longer takes part.
    fn remove(&mut self, at: usize) {
        self.board.lock().nodes[at].is_leaving = true;
        let done = self
            .group
            .done(1, &["node", "remove", &format!("n{}", at + 1)]);
        assert_eq!(done, format!("n{} was removed", at + 1));
        self.board.wait("the end of a removed node", |ledger| {
            (ledger.nodes[at].role == "detached").then_some(())
        });
        self.end(at, false);
        self.work();
    }

    /// Nodes whose processes have ended by themselves.
    pub(super) fn ended(&mut self) -> Vec<usize> {
        let mut ended = Vec::new();
        for (at, process) in self.processes.iter_mut().enumerate() {
            let process = process.as_mut().map(|process| process.child.try_wait());
            if !matches!(process, None | Some(Ok(None))) {
                ended.push(at);
            }
        }
        ended
    }

    /// Ends the load, and checks each node's data against what was acknowledged. Returns the number
    /// of acknowledged records.
    pub(super) fn check_everywhere(&self) -> usize {
        let running: Vec<_> = self.running().collect();
        for at in &running {
            self.rest(*at);
        }
        // Every node catches up with the master.
        self.group.done(0, &["verify", "--deep"]);
        for at in &running {
            self.tell_all(*at);
        }
        let mut ledger = self.board.lock();
        for at in running {
            ledger.check_end(at);
        }
        assert_eq!(ledger.wrong, [] as [String; 0]);
        ledger.counts().0
    }

    /// Ends the load on a node.
    fn rest(&self, at: usize) {
        let stdin = &self.processes[at].as_ref().expect("it runs").stdin;
        let reads = self.board.lock().counts().1[at];
        tell(stdin, "rest");
        self.board.wait("the end of the load", |ledger| {
            let is_read = ledger.counts().1[at] > reads;
            (ledger.nodes[at].is_resting && is_read).then_some(())
        });
        self.board.lock().end_reads(at);
    }

    /// Makes a node report everything it holds.
    fn tell_all(&self, at: usize) {
        let stdin = &self.processes[at].as_ref().expect("it runs").stdin;
        tell(stdin, "tell");
        self.board.wait("all that the node holds", |ledger| {
            ledger.nodes[at].has_told.then_some(())
        });
    }
}

#[test]
fn a_group_that_grows_replaces_hands_over_moves_and_shrinks_under_load_loses_nothing() {
    let mut script = Script::new();
    script.start_all();

    script.end(2, true);
    fs::remove_dir_all(script.group.data_dir(2)).expect("removed");
    let replaced = script.group.done(0, &["node", "replace", "n3"]);
    script.work();
    script.start(2, replaced.split_whitespace().last());
    script.whole();

    let terms: Vec<_> = (0..10).map(|_| script.transfer()).collect();

    script.end(2, false);
    script.group.ports[2] = free_port();
    let moved = format!("127.0.0.1:{}", script.group.ports[2]);
    // It is not there yet.
    let said = ["node", "address", "n3", &moved, "--force"];
    script.group.done(0, &said);
    script.start(2, None);
    script.whole();

    script.remove(2);
    script.remove(0);
    script
        .group
        .list_until(1, &["1 of 1 node works", "n2 electable MASTER"]);
    script.rest(1);
    script.tell_all(1);

    let mut ledger = script.board.lock();
    ledger.check_end(1);
    let (records, reads) = ledger.counts();
    let mut gaps: Vec<_> = terms.into_iter().map(|term| ledger.gap(term)).collect();
    gaps.sort_unstable();
    println!("{records} records acknowledged, {reads:?} reads; no write at transfers for {gaps:?}");
    assert_eq!(ledger.wrong, [] as [String; 0]);
    assert!(gaps[gaps.len() / 2] <= GAP_MEDIAN_MAX, "{gaps:?}");
}
