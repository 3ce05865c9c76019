//! Every verb at random moments beside a group under load whose log starts a new file every few
//! seconds: no node stops, nothing is lost, and every verb does its work.
//!
//! For any length of time, by hand:
//!
//! ```sh
//! STEADFAST_VERBS_SECONDS=3600 \
//!     cargo test --release -p steadfast-cli --test program every_verb -- --nocapture
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{RngExt, SeedableRng};

use super::under_load::Script;
use super::{Node, PATIENCE, run, steadfast};

const SECONDS: &str = "STEADFAST_VERBS_SECONDS";
const OPERATORS: u64 = 2;
/// Longest pause of an operator between two verbs, and longest time until one is cut short.
const PAUSE_MAX_MS: u64 = 400;

/// Read-only verbs, as typed.
const LOOKS: [&str; 8] = [
    "status",
    "status --output json",
    "node list",
    "master show",
    "doctor",
    "verify",
    "verify --deep",
    "events",
];
/// Verbs that take more than their words: see [`Operator::act`].
const OTHERS: [&str; 8] = [
    "token create",
    "master transfer",
    "node priority",
    "node address",
    "node demote",
    "backup create",
    "recover plan",
    "cut short",
];

struct Operator {
    ports: Vec<u16>,
    dir: PathBuf,
    rng: StdRng,
    /// How often each verb has succeeded, and how often it was refused.
    counts: BTreeMap<&'static str, [u64; 2]>,
}

impl Operator {
    fn new(script: &Script, number: u64) -> Self {
        Self {
            ports: script.group.ports.clone(),
            dir: script.group.dir.path().join(format!("backup{number}")),
            rng: StdRng::seed_from_u64(number),
            counts: BTreeMap::new(),
        }
    }

    fn ask(&mut self) -> String {
        let port = self.ports.choose(&mut self.rng).expect("three nodes");
        format!("127.0.0.1:{port}")
    }

    /// Runs a verb to completion, asking any node.
    fn run(&mut self, words: &[&str]) -> Output {
        let ask = self.ask();
        check(words, run(&[words, &["--ask", &ask]].concat()))
    }

    /// Starts a verb, and kills it before it has got far.
    fn cut_short(&mut self, words: &[&str]) {
        let ask = self.ask();
        let mut child = steadfast()
            .args(words)
            .args(["--ask", &ask])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the program starts");
        let pause = Duration::from_millis(self.rng.random_range(0..PAUSE_MAX_MS));
        std::thread::park_timeout(pause);
        // It may have ended.
        child.kill().ok();
        child.wait().expect("it ends");
    }

    /// Watches the group until it learns its state; returns whether it did.
    fn watch(&mut self) -> bool {
        let watching = Node::run("events", &["--ask".to_owned(), self.ask()]);
        let is_told = match watching.lines.recv_timeout(PATIENCE) {
            Ok(_) => true,
            // It has ended: on a busy machine no node answered in time.
            Err(RecvTimeoutError::Disconnected) => false,
            Err(RecvTimeoutError::Timeout) => panic!("it says nothing and goes on"),
        };
        if is_told {
            watching.signal("-INT");
        }
        let (status, errors) = watching.end();
        assert_eq!(status.code(), Some(i32::from(!is_told)), "{errors}");
        is_told
    }

    /// Whether the verb did its work; it may be refused while others change the group.
    fn act(&mut self, verb: &str) -> bool {
        let at = self.rng.random_range(0..self.ports.len());
        let (node, address) = (
            format!("n{}", at + 1),
            format!("127.0.0.1:{}", self.ports[at]),
        );
        match verb {
            "events" => self.watch(),
            "master transfer" => self.run(&["master", "transfer", &node]).status.success(),
            "node priority" => {
                let priority = self.rng.random_range(1..4).to_string();
                let words = ["node", "priority", &node, &priority];
                self.run(&words).status.success()
            }
            "node address" => {
                let words = ["node", "address", &node, &address];
                self.run(&words).status.success()
            }
            "node demote" => {
                self.run(&["node", "demote", &node]).status.success() && {
                    self.promote(&node);
                    true
                }
            }
            "backup create" => self.back_up(),
            "recover plan" => {
                let dir = self.dir.with_file_name(&node).display().to_string();
                let words = ["recover", "plan", "--data-dir", &dir];
                let output = check(&words, run(&words));
                let said = text(&output.stderr);
                assert!(!output.status.success(), "{said}");
                true
            }
            "cut short" => {
                let dir = self.dir.display().to_string();
                let verb = *LOOKS.choose(&mut self.rng).expect("some");
                let mut words: Vec<_> = verb.split_whitespace().collect();
                if self.rng.random() {
                    words = vec!["backup", "create", &dir];
                }
                self.cut_short(&words);
                fs::remove_dir_all(&self.dir).ok();
                true
            }
            words => {
                let words: Vec<_> = words.split_whitespace().collect();
                let output = self.run(&words);
                assert!(
                    !text(&output.stdout).contains("DIFFERS"),
                    "{words:?}: {}",
                    text(&output.stdout)
                );
                output.status.success()
            }
        }
    }

    fn promote(&mut self, node: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.run(&["node", "promote", node]).status.success() {
            assert!(Instant::now() < deadline, "{node} is not promoted");
        }
    }

    fn back_up(&mut self) -> bool {
        let dir = self.dir.display().to_string();
        let made = self.run(&["backup", "create", &dir]).status.success();
        if made {
            let words = ["backup", "verify", &dir];
            let output = check(&words, run(&words));
            assert!(output.status.success(), "{}", text(&output.stderr));
        }
        fs::remove_dir_all(&self.dir).ok();
        made
    }

    /// Runs each verb once, then random ones, until time is up.
    fn work(mut self, until: Instant) -> BTreeMap<&'static str, [u64; 2]> {
        let all = [LOOKS, OTHERS].concat();
        let mut next = all.clone();
        next.shuffle(&mut self.rng);
        while !next.is_empty() || Instant::now() < until {
            let any = *all.choose(&mut self.rng).expect("some");
            let verb = next.pop().unwrap_or(any);
            let refused = usize::from(!self.act(verb));
            self.counts.entry(verb).or_default()[refused] += 1;
            let pause = self.rng.random_range(0..PAUSE_MAX_MS);
            std::thread::park_timeout(Duration::from_millis(pause));
        }
        self.counts
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The program ended as one that reports its findings.
fn check(words: &[&str], output: Output) -> Output {
    let said = text(&output.stderr);
    let code = output.status.code();
    assert!(
        matches!(code, Some(0 | 1 | 3 | 4)) && !said.contains("panicked"),
        "{words:?} ended with {:?}: {said}",
        output.status
    );
    output
}

#[test]
fn every_verb_at_any_moment_beside_a_group_under_load_stops_no_node() {
    let seconds = std::env::var(SECONDS).map_or(15, |text| text.parse().expect("a number"));
    let mut script = Script::with(&[("log_segment_bytes", 1 << 20)]);
    script.start_all();
    let until = Instant::now() + Duration::from_secs(seconds);
    let operators: Vec<_> = (0..OPERATORS)
        .map(|number| Operator::new(&script, number))
        .map(|operator| std::thread::spawn(move || operator.work(until)))
        .collect();
    let mut counts: BTreeMap<&str, [u64; 2]> = BTreeMap::new();
    for operator in operators {
        let done = operator.join();
        assert_eq!(script.ended(), [] as [usize; 0], "nodes have stopped");
        for (verb, [done, refused]) in done.expect("no verb failed") {
            let sum = counts.entry(verb).or_default();
            *sum = [sum[0] + done, sum[1] + refused];
        }
    }
    script.whole();
    let records = script.check_everywhere();
    assert_eq!(script.ended(), [] as [usize; 0], "nodes have stopped");
    println!("{records} records acknowledged; verbs done and refused: {counts:?}");
}
