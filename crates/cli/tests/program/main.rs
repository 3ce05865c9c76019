//! The program as users run it: real processes, real sockets, real signals.

#![expect(
    clippy::disallowed_methods,
    reason = "tests use real processes, files, sockets and deadlines"
)]

mod addresses;
mod backup;
mod clients;
mod credentials;
mod data;
mod enrolment;
mod etcd;
mod etcdctl;
mod every_verb;
mod floods;
mod full_disk;
mod mistakes;
mod moving;
mod operator;
#[path = "../../src/ports.rs"]
mod ports;
mod printing;
mod recorded;
mod strangers;
mod tls;
mod under_load;
mod verify;
mod volumes;

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use serde_json::Value;
use steadfast::{
    AdminCommand, Bootstrap, CommitToken, ConsistencyPolicy, Durability, NodeType, ReadError,
    RepConfig, RepConfigBuilder, ReplicatedEnvironment, Role, Transaction, WriteError,
};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(40);

fn steadfast() -> Command {
    Command::new(env!("CARGO_BIN_EXE_steadfast"))
}

/// Runs the program to its end.
fn run(arguments: &[&str]) -> Output {
    steadfast()
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .expect("the program runs")
}

fn free_port() -> u16 {
    let address = ports::free_addresses(1).expect("a free port").remove(0);
    let (_, port) = address.rsplit_once(':').expect("host:port");
    port.parse().expect("a port")
}

/// One node as a process; dropping it kills it.
struct Node {
    child: Child,
    lines: Receiver<String>,
}

impl Node {
    fn start(arguments: &[String]) -> Self {
        Self::run("start", arguments)
    }

    /// Runs another verb that continues until told to stop.
    fn run(verb: &str, arguments: &[String]) -> Self {
        Self::spawn(steadfast().arg(verb).args(arguments))
    }

    fn spawn(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let (sender, lines) = channel();
        let output = child.stdout.take().expect("piped");
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                // Nobody may be listening any more.
                sender.send(line).ok();
            }
        });
        Self { child, lines }
    }

    /// Waits until the node prints a line with one of these words.
    fn wait_for(&self, words: &[&str]) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = self
                .lines
                .recv_timeout(left)
                .expect("the node says it in time");
            if words.iter().any(|word| line.contains(word)) {
                return line;
            }
        }
    }

    fn wait_ready(&self) {
        self.wait_for(&["is master", "is replica"]);
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill")
            .args([name, &pid])
            .status()
            .expect("kill runs");
        assert!(sent.success());
    }

    /// Waits for the end; returns the exit status and stderr.
    fn end(mut self) -> (ExitStatus, String) {
        let mut errors = String::new();
        let mut stderr = self.child.stderr.take().expect("piped");
        stderr.read_to_string(&mut errors).expect("text");
        (self.child.wait().expect("it ends"), errors)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Three nodes of one group, each in its own directory.
struct Group {
    dir: TempDir,
    data_dirs: Vec<PathBuf>,
    list: String,
    ports: Vec<u16>,
    nodes: Vec<Option<Node>>,
    numbers: Numbers,
}

/// Numeric settings, by key.
type Numbers = &'static [(&'static str, u64)];

/// Timers that keep a master in office on a busy machine: for tests that write in this process.
const STEADY: Numbers = &[
    ("election_timeout_min_ms", 2_000),
    ("election_timeout_max_ms", 3_000),
];

impl Group {
    fn start() -> Self {
        Self::start_with(&[])
    }

    fn start_with(numbers: Numbers) -> Self {
        let mut group = Self {
            numbers,
            ..Self::unstarted()
        };
        group.nodes = (0..3)
            .map(|at| Some(Node::start(&group.arguments(at))))
            .collect();
        for node in group.nodes.iter().flatten() {
            node.wait_ready();
        }
        group
    }

    fn unstarted() -> Self {
        let ports: Vec<_> = (0..3).map(|_| free_port()).collect();
        let items = ports
            .iter()
            .zip(1..)
            .map(|(port, n)| format!("n{n}=127.0.0.1:{port}"));
        let list = items.collect::<Vec<_>>().join(",");
        let dir = TempDir::new().expect("a directory");
        Self {
            data_dirs: (1..=3).map(|n| dir.path().join(format!("n{n}"))).collect(),
            dir,
            list,
            ports,
            nodes: vec![None, None, None],
            numbers: STEADY,
        }
    }

    fn data_dir(&self, at: usize) -> PathBuf {
        self.data_dirs[at].clone()
    }

    fn arguments(&self, at: usize) -> Vec<String> {
        let mut arguments = node_arguments(
            "g",
            &format!("n{}", at + 1),
            &self.data_dir(at),
            self.ports[at],
        );
        arguments.extend(["--bootstrap".to_owned(), self.list.clone()]);
        let set = |(key, value): &(&str, u64)| ["--set".to_owned(), format!("{key}={value}")];
        arguments.extend(self.numbers.iter().flat_map(set));
        arguments
    }

    /// Queries the first node until `status` exits with `code`; returns its output.
    fn status_until(&self, code: i32) -> String {
        let address = format!("127.0.0.1:{}", self.ports[0]);
        let deadline = Instant::now() + PATIENCE;
        loop {
            let output = run(&["status", &address]);
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            if output.status.code() == Some(code) {
                return text;
            }
            assert!(Instant::now() < deadline, "{:?}: {text}", output.status);
        }
    }
}

fn node_arguments(group: &str, node: &str, dir: &Path, port: u16) -> Vec<String> {
    let dir = dir.display().to_string();
    let listen = format!("127.0.0.1:{port}");
    let pairs = [
        ("--group", group),
        ("--node", node),
        ("--data-dir", &dir),
        ("--listen", &listen),
    ];
    pairs
        .iter()
        .flat_map(|(flag, value)| [(*flag).to_owned(), (*value).to_owned()])
        .collect()
}

/// Starts a node that must not come up: it exits with `code` and prints all of `words`.
fn assert_refused(arguments: &[String], code: i32, words: &[&str]) {
    let (status, errors) = Node::start(arguments).end();
    assert_eq!(status.code(), Some(code), "{errors}");
    for word in words {
        assert!(errors.contains(word), "{word:?} is not in: {errors}");
    }
    // What happened, what it means for the data, what to do.
    for part in ["error: ", "data: ", "to do: "] {
        assert!(errors.contains(part), "{part:?} is not in: {errors}");
    }
}

/// A directory in which a single node has written before it was closed.
fn written_dir(dir: &TempDir) -> PathBuf {
    let path = dir.path().join("data");
    let node = Node::start(&node_arguments("g", "n1", &path, free_port()));
    node.wait_for(&["is master"]);
    node.signal("-INT");
    let (status, errors) = node.end();
    assert!(status.success(), "{errors}");
    path
}

/// A node does come up on the directory: nothing was lost.
fn assert_unharmed(path: &Path) {
    let node = Node::start(&node_arguments("g", "n1", path, free_port()));
    node.wait_for(&["is master"]);
}

#[test]
fn a_demo_with_ten_kills_loses_nothing_and_its_subscriber_is_told_of_everything() {
    let output = run(&["demo", "--seconds", "20", "--kills", "10", "--json"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{text}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let line: Value = serde_json::from_str(text.lines().last().expect("a line")).expect("JSON");
    assert_eq!(line["lost"], 0, "{line}");
    assert_eq!(line["kills"], 10, "{line}");
    assert_eq!(line["violations"], serde_json::json!([]), "{line}");
    assert!(line["acked"].as_u64().expect("a number") > 100, "{line}");
    assert!(line["fed"].as_u64() > line["acked"].as_u64(), "{line}");
}

#[test]
fn status_tells_a_whole_group_from_a_degraded_and_a_masterless_one() {
    let mut group = Group::start();
    let whole = group.status_until(0);
    for word in ["HEALTHY", "n1", "n2", "n3", "MASTER"] {
        assert!(whole.contains(word), "{word:?} is not in: {whole}");
    }
    group.nodes[2] = None;
    assert!(group.status_until(3).contains("DOWN"));
    group.nodes[1] = None;
    let alone = group.status_until(4);
    assert!(!alone.contains("MASTER"), "{alone}");
    for at in [1, 2] {
        group.nodes[at] = Some(Node::start(&group.arguments(at)));
    }
    group.status_until(0);
}

/// Writes on a master until all nodes have it, waiting for one that was briefly not heard.
fn write_everywhere(
    env: &ReplicatedEnvironment,
    mut write: impl FnMut(&Transaction) -> Result<(), WriteError>,
) -> CommitToken {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match env.write_with(Durability::ALL.within(PATIENCE), &mut write) {
            Ok(written) => return written.token,
            Err(WriteError::InsufficientReplicas { .. }) if Instant::now() < deadline => {}
            Err(error) => panic!("{error}"),
        }
    }
}

/// Runs the program, which must exit with `code`; returns stdout and stderr.
fn run_to(code: i32, arguments: &[&str]) -> (String, String) {
    let output = run(arguments);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, errors) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{out}{errors}");
    (out, errors)
}

impl Group {
    /// The first node, in this process.
    fn embed(&self) -> ReplicatedEnvironment {
        let config = RepConfig::builder("g", "n1")
            .data_dir(self.data_dir(0))
            .listen(format!("127.0.0.1:{}", self.ports[0]))
            .bootstrap(Bootstrap::expect(self.list.split(',')).expect("a list"));
        let set = |config: RepConfigBuilder, (key, value): &(&str, u64)| config.set(*key, *value);
        let config = self.numbers.iter().fold(config, set).build();
        let env = ReplicatedEnvironment::open(config.expect("valid")).expect("it opens");
        env.wait_ready(PATIENCE).expect("it comes to work");
        env
    }

    /// Makes this node master, through the group.
    fn make_master(env: &ReplicatedEnvironment) {
        let transfer = AdminCommand::Transfer {
            to: vec!["n1".to_owned()],
            within: PATIENCE,
        };
        env.administer(&transfer).expect("it has caught up");
        let mut states = env.state_changes();
        assert!(states.any(|state| state.role == Role::Master));
    }
}

/// The lost nodes had ids up to 3, and may have given out others.
fn assert_new_node_gets_a_new_id(group: &Group, env: &ReplicatedEnvironment) {
    let token = env.join_token(NodeType::Secondary).expect("a member");
    let dir = group.dir.path().join("n4");
    let mut arguments = node_arguments("g", "n4", &dir, free_port());
    arguments.extend(["--join".to_owned(), token.to_string()]);
    let fourth = Node::start(&arguments);
    fourth.wait_ready();
    let members = env.status().members;
    let newest = members.iter().map(|member| member.node.id.0).max();
    assert_eq!(newest, Some(1_000_001));
}

#[test]
fn a_group_that_lost_two_of_three_directories_goes_on_from_the_third() {
    let mut group = Group::start();
    group.nodes[0] = None;
    let env = group.embed();
    Group::make_master(&env);
    let written = env.write_with(Durability::ALL, |txn| {
        (0..100_u32).try_for_each(|n| txn.database("d")?.put(n.to_be_bytes(), "v"))
    });
    let kept = written.expect("all three are there").token.vlsn;
    env.close().expect("closed");
    let lost = group.dir.path().join("lost");
    fs::create_dir(&lost).expect("made");
    let dir = group.data_dir(0).display().to_string();
    let (_, errors) = run_to(1, &["recover", "plan", "--data-dir", &dir]);
    assert!(
        errors.contains("is a majority"),
        "two of three run: {errors}"
    );
    for at in [1, 2] {
        group.nodes[at] = None;
        let aside = lost.join(format!("n{}", at + 1));
        fs::rename(group.data_dir(at), aside).expect("renamed");
    }

    let (plan, _) = run_to(0, &["recover", "plan", "--data-dir", &dir]);
    for word in ["NO QUORUM: 1 of 3", "MISSING", "are a majority", "apply"] {
        assert!(plan.contains(word), "{word:?} is not in: {plan}");
    }
    let (plan, _) = run_to(0, &["recover", "plan", "--data-dir", &dir, "-o", "json"]);
    let plan: Value = serde_json::from_str(&plan).expect("JSON");
    let confirm = plan["next"]["apply"]["confirm"].as_str().expect("a text");
    assert_eq!(
        confirm,
        format!("recover group g from n1 with {kept} VLSNs")
    );
    let apply = |text: &str, code| {
        run_to(
            code,
            &["recover", "apply", "--data-dir", &dir, "--confirm", text],
        )
    };
    let before = volumes::contents_of(&group.data_dir(0));
    apply("recover group g from n1 with 0 VLSNs", 2);
    let after = volumes::contents_of(&group.data_dir(0));
    assert!(before == after, "a wrong text changes nothing");
    let is_given = volumes::give_to_service(&group.data_dir(0));
    apply(confirm, 0);
    if is_given {
        volumes::assert_of_service(&group.data_dir(0));
    }

    let env = group.embed();
    assert_eq!(env.state().role, Role::Master);
    let found = env.read(
        ConsistencyPolicy::Linearizable,
        |snapshot| -> Result<_, ReadError> { Ok(snapshot.database("d")?.iter().count()) },
    );
    assert_eq!(found.expect("it is master"), 100);
    let written = env.write(|txn| txn.database("d")?.put("new", "v"));
    assert_eq!(written.expect("it needs nobody").token.vlsn, kept.next());

    assert_new_node_gets_a_new_id(&group, &env);

    fs::rename(lost.join("n2"), group.data_dir(1)).expect("renamed");
    let words = ["recovered without this node", "epoch 2", "keep it aside"];
    assert_refused(&group.arguments(1), 1, &words);
    env.close().expect("closed");
    // It has heard of the new epoch, and needs nobody to tell it again.
    assert_refused(&group.arguments(1), 1, &words);
}

#[test]
fn a_directory_of_another_group_or_node_is_refused() {
    let dir = TempDir::new().expect("a directory");
    let path = written_dir(&dir);
    assert_refused(
        &node_arguments("other", "n1", &path, free_port()),
        1,
        &["belongs to group"],
    );
    assert_refused(
        &node_arguments("g", "n9", &path, free_port()),
        1,
        &["belongs to node"],
    );
    assert_unharmed(&path);
}

#[test]
fn a_port_in_use_is_refused() {
    let dir = TempDir::new().expect("a directory");
    let port = free_port();
    let node = Node::start(&node_arguments("g", "n1", &dir.path().join("data"), port));
    node.wait_for(&["is master"]);
    assert_refused(
        &node_arguments("g", "n1", &dir.path().join("elsewhere"), port),
        1,
        &[&format!(
            "cannot listen on 127.0.0.1:{port}: Address already in use"
        )],
    );
}

#[test]
fn a_directory_with_files_of_others_is_named_with_them_and_an_empty_one_is_asked_for() {
    let dir = TempDir::new().expect("a directory");
    for name in ["identity", "notes", "photos"] {
        fs::write(dir.path().join(name), "something else").expect("written");
    }
    let words = ["also holds notes, photos", "name an empty one"];
    assert_refused(
        &node_arguments("g", "n1", dir.path(), free_port()),
        1,
        &words,
    );
}

#[test]
fn a_recovery_without_a_temporary_directory_asks_for_one() {
    let dir = TempDir::new().expect("a directory");
    let path = written_dir(&dir);
    let plan = steadfast()
        .args(["recover", "plan", "--data-dir"])
        .arg(&path)
        .env("TMPDIR", dir.path().join("none"))
        .output()
        .expect("the program runs");
    let errors = String::from_utf8_lossy(&plan.stderr).into_owned();
    assert_eq!(plan.status.code(), Some(1), "{errors}");
    assert!(errors.contains("to do: set TMPDIR"), "{errors}");
}

#[test]
fn a_recovery_plan_takes_no_directory_twice_however_it_is_spelt() {
    let dir = TempDir::new().expect("a directory");
    let path = written_dir(&dir);
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(&path, &link).expect("linked");
    let dotted = dir.path().join(".").join("..");
    let dotted = dotted
        .join(dir.path().file_name().expect("a name"))
        .join("data");
    let before = volumes::contents_of(&path);
    for other in [&path, &link, &dotted] {
        let (one, other) = (path.display().to_string(), other.display().to_string());
        let arguments = ["recover", "plan", "--data-dir", &one, "--data-dir", &other];
        let (_, errors) = run_to(2, &arguments);
        let words = [
            &*one,
            &other,
            "one and the same directory",
            "nothing was changed",
        ];
        for word in words {
            assert!(errors.contains(word), "{word:?} is not in: {errors}");
        }
    }
    assert!(volumes::contents_of(&path) == before);
}

#[test]
fn a_newer_format_and_a_corrupt_log_are_refused_by_file_and_place() {
    let dir = TempDir::new().expect("a directory");
    let path = written_dir(&dir);
    let arguments = node_arguments("g", "n1", &path, free_port());

    let identity = path.join("identity");
    let whole = fs::read(&identity).expect("an identity");
    let mut newer = whole.clone();
    newer[8] = 9;
    fs::write(&identity, newer).expect("written");
    assert_refused(&arguments, 1, &["identity", "format version 9"]);
    fs::write(&identity, whole).expect("written");

    let log = path.join("log");
    let names = fs::read_dir(&log)
        .expect("a log")
        .map(|entry| entry.expect("an entry").path());
    let segment = names
        .filter(|name| name.extension().is_some_and(|e| e == "log"))
        .min();
    let segment = segment.expect("a segment");
    let whole = fs::read(&segment).expect("a segment");
    // The first record starts at 4096; its payload begins some 50 bytes later.
    let mut rotten = whole.clone();
    rotten[4096 + 60] ^= 1;
    fs::write(&segment, rotten).expect("written");
    let name = segment
        .file_name()
        .expect("a name")
        .to_string_lossy()
        .into_owned();
    let words = [
        &name[..],
        "corrupt at byte 4096",
        "steadfast backup restore",
    ];
    assert_refused(&arguments, 1, &words);
    fs::write(&segment, whole).expect("written");
    assert_unharmed(&path);
}

#[test]
fn what_cannot_be_used_is_named_before_anything_is_touched() {
    let dir = TempDir::new().expect("a directory");
    let file = dir.path().join("file");
    fs::write(&file, b"not a directory").expect("written");
    let below = file.join("data");
    assert_refused(
        &node_arguments("g", "n1", &below, free_port()),
        1,
        &["cannot create"],
    );

    let config = dir.path().join("n1.toml");
    fs::write(&config, "group = \"g\"\nflush_intervall_ms = 3\n").expect("written");
    let arguments = ["--config".to_owned(), config.display().to_string()];
    assert_refused(&arguments, 2, &["did you mean flush_interval_ms?"]);
    let missing = [
        "--config".to_owned(),
        dir.path().join("none").display().to_string(),
    ];
    assert_refused(&missing, 2, &["cannot read"]);
}
