//! What an operator does to a group over its lifetime, with the program alone.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Output;
use std::time::{Duration, Instant};

use serde_json::Value;
use steadfast::ids::NodeId;
use steadfast::{
    ConsistencyPolicy, NodeStatus, Outcome, ReadError, ReplicatedEnvironment, Role, WriteError,
};
use tempfile::TempDir;

use super::{
    Group, Node, PATIENCE, assert_refused, free_port, node_arguments, run, run_to, steadfast,
};

/// Nodes of one group, some with a token.
pub(super) struct Operated {
    pub(super) dir: TempDir,
    pub(super) ports: Vec<u16>,
    pub(super) nodes: Vec<Option<Node>>,
}

impl Operated {
    /// No node runs yet.
    pub(super) fn unstarted(nodes: usize) -> Self {
        Self {
            dir: TempDir::new().expect("a directory"),
            ports: (0..nodes).map(|_| free_port()).collect(),
            nodes: (0..nodes).map(|_| None).collect(),
        }
    }

    pub(super) fn data_dir(&self, at: usize) -> PathBuf {
        self.dir.path().join(format!("n{}", at + 1))
    }

    pub(super) fn arguments(&self, at: usize) -> Vec<String> {
        let name = format!("n{}", at + 1);
        node_arguments("ops", &name, &self.data_dir(at), self.ports[at])
    }

    pub(super) fn start(&mut self, at: usize, token: Option<&str>) {
        let mut arguments = self.arguments(at);
        if let Some(token) = token {
            arguments.extend(["--join".to_owned(), token.to_owned()]);
        }
        let node = Node::start(&arguments);
        node.wait_ready();
        self.nodes[at] = Some(node);
    }

    /// Runs an operator's command against the node at `at`.
    pub(super) fn operate(&self, at: usize, words: &[&str]) -> Output {
        let address = format!("127.0.0.1:{}", self.ports[at]);
        run(&[words, &["--ask", &address]].concat())
    }

    pub(super) fn done(&self, at: usize, words: &[&str]) -> String {
        let output = self.operate(at, words);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{words:?}: {errors}");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// Waits until the list of nodes has all of `rows`, each given as consecutive words.
    pub(super) fn list_until(&self, at: usize, rows: &[&str]) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let output = self.operate(at, &["node", "list"]);
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let words: Vec<_> = text.split_whitespace().collect();
            let words = words.join(" ");
            if rows.iter().all(|row| words.contains(row)) {
                return;
            }
            assert!(Instant::now() < deadline, "{rows:?} are not in: {text}");
        }
    }
}

#[test]
fn a_group_grows_replaces_a_lost_node_hands_over_moves_and_shrinks() {
    let mut group = Operated::unstarted(3);
    group.start(0, None);
    for at in [1, 2] {
        let token = group.done(0, &["token", "create"]);
        group.start(at, Some(&token));
    }
    group.list_until(1, &["3 of 3 nodes work; survives 1 failure"]);
    for to in ["n2", "n3", "n1"] {
        let done = group.done(0, &["master", "transfer", to]);
        assert_eq!(done, format!("{to} is the master"));
        group.list_until(2, &[&format!("{to} electable MASTER")]);
        assert_eq!(group.done(2, &["master", "show"]), to);
    }

    // Its directory is lost. Started under its old name, it is refused until it is replaced.
    group.nodes[2] = None;
    std::fs::remove_dir_all(group.data_dir(2)).expect("removed");
    let token = group.done(0, &["token", "create"]);
    let mut arguments = group.arguments(2);
    arguments.extend(["--join".to_owned(), token]);
    assert_refused(&arguments, 1, &["steadfast node replace n3"]);
    std::fs::remove_dir_all(group.data_dir(2)).expect("removed");
    let replaced = group.done(0, &["node", "replace", "n3"]);
    let token = replaced.split_whitespace().last().expect("a command");
    assert!(replaced.contains("steadfast start --group ops --node n3"));
    group.start(2, Some(token));
    group.list_until(0, &["3 of 3 nodes work; survives 1 failure"]);

    // It moves to another address.
    group.nodes[2] = None;
    group.ports[2] = free_port();
    let moved = format!("127.0.0.1:{}", group.ports[2]);
    let address = ["node", "address", "n3", &moved];
    let refused = group.operate(0, &address);
    let errors = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{errors}");
    for word in ["cannot reach n3", "start n3 there first", "--force"] {
        assert!(errors.contains(word), "{word:?} is not in: {errors}");
    }
    let node = Node::start(&group.arguments(2));
    node.wait_for(&["listens on"]);
    group.nodes[2] = Some(node);
    group.done(0, &address);
    group.list_until(0, &["3 of 3 nodes work; survives 1 failure"]);

    group.done(0, &["node", "demote", "n3"]);
    group.list_until(
        0,
        &["n3 secondary replica", "2 voting nodes survive 0 failures"],
    );
    let refused = group.operate(0, &["node", "remove", "n7"]);
    let errors = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1));
    assert!(errors.contains("name one of n1, n2, n3"), "{errors}");
    for (at, name) in [(2, "n3"), (0, "n1")] {
        group.done(1, &["node", "remove", name]);
        let node = group.nodes[at].take().expect("it ran");
        let (status, errors) = node.end();
        assert_eq!(status.code(), Some(1), "it ends by itself");
        assert!(errors.contains("removed from the group"), "{errors}");
        assert!(errors.contains("steadfast token create"), "{errors}");
    }
    group.list_until(1, &["1 of 1 node works", "n2 electable MASTER"]);
}

/// Writes row after row until the environment is closed; returns how many were acknowledged.
fn write_until_closed(env: &ReplicatedEnvironment) -> u32 {
    let mut acknowledged = 0_u32;
    loop {
        let key = acknowledged.to_be_bytes();
        match env.write(|txn| txn.database("d")?.put(key, vec![7; 10_000])) {
            Ok(_) => acknowledged += 1,
            // The error says that nothing was written, or that the environment is closed.
            Err(error) => {
                assert_eq!(error.outcome(), Outcome::NotCommitted, "{error}");
                if matches!(error, WriteError::Closed) {
                    return acknowledged;
                }
            }
        }
    }
}

/// Waits until a replica lacks something that the master has.
fn wait_until_behind(master: &ReplicatedEnvironment, node: NodeId) {
    let is_behind = |status: &NodeStatus| {
        let mut of = status.replicas.iter().filter(|of| of.node == node);
        of.any(|of| of.persisted < status.persisted)
    };
    let deadline = Instant::now() + PATIENCE;
    while !is_behind(&master.status()) {
        assert!(Instant::now() < deadline, "it has all that is written");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

#[test]
fn a_group_that_is_shut_down_has_everything_everywhere_and_comes_back_with_it() {
    let mut group = Group::unstarted();
    for at in [1, 2] {
        group.nodes[at] = Some(Node::start(&group.arguments(at)));
    }
    let env = group.embed();
    Group::make_master(&env);
    group.status_until(0);
    let writer = std::thread::spawn({
        let env = env.clone();
        move || write_until_closed(&env)
    });
    // A hung node is behind: the group is not shut down, and goes on.
    let hung = group.nodes[2].as_ref().expect("it runs");
    hung.signal("-STOP");
    wait_until_behind(&env, NodeId(3));
    let ask = format!("127.0.0.1:{}", group.ports[1]);
    let words = ["group", "shutdown", "--within", "0", "--ask", &ask];
    let refused = run(&words);
    let errors = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{errors}");
    assert!(errors.contains("the group goes on"), "{errors}");
    hung.signal("-CONT");
    group.status_until(0);

    let done = run(&["group", "shutdown", "--ask", &ask]);
    let text = String::from_utf8_lossy(&done.stdout).trim().to_owned();
    let errors = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(done.status.success(), "{text}{errors}");
    assert_eq!(text, "n2, n3 stopped, then n1");
    for at in [1, 2] {
        let node = group.nodes[at].take().expect("it ran");
        node.wait_for(&["is closed"]);
        let (status, errors) = node.end();
        assert_eq!(status.code(), Some(0), "{errors}");
    }
    let acknowledged = writer.join().expect("no panic");
    assert!(acknowledged > 0);
    assert!(
        env.state_changes()
            .any(|state| state.role == Role::Detached)
    );

    // Each node has everything by itself, even what was acknowledged before it had it.
    drop(env);
    let last = |at: usize| {
        let dir = group.data_dir(at).display().to_string();
        let plan = run(&["recover", "plan", "--data-dir", &dir, "-o", "json"]);
        let plan: Value = serde_json::from_slice(&plan.stdout).expect("JSON");
        let left = &plan["survivors"][0];
        (left["last"].clone(), left["vlsn"].as_u64())
    };
    assert_eq!(last(1), last(0));
    assert_eq!(last(2), last(0));
    assert!(last(0).1 >= Some(acknowledged.into()));
    for at in [1, 2] {
        group.nodes[at] = Some(Node::start(&group.arguments(at)));
    }
    let env = group.embed();
    group.status_until(0);
    let rows = env.read(ConsistencyPolicy::Linearizable, |snapshot| {
        Ok::<_, ReadError>(snapshot.database("d")?.iter().count())
    });
    assert_eq!(rows.expect("read"), acknowledged as usize);
    env.close().expect("closed");
}

#[test]
fn a_group_goes_on_when_its_master_cannot_shut_down_a_majority() {
    let mut group = Group::unstarted();
    for at in [1, 2] {
        group.nodes[at] = Some(Node::start(&group.arguments(at)));
    }
    let env = group.embed();
    Group::make_master(&env);
    group.status_until(0);
    let replicas = || group.nodes[1..].iter().flatten();
    replicas().for_each(|node| node.signal("-STOP"));
    let ask = format!("127.0.0.1:{}", group.ports[0]);
    let refused = run(&["group", "shutdown", "--within", "3", "--ask", &ask]);
    replicas().for_each(|node| node.signal("-CONT"));
    let errors = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{errors}");
    assert!(errors.contains("no node was told to stop"), "{errors}");
    group.status_until(0);
    let deadline = Instant::now() + PATIENCE;
    // It may have been replaced meanwhile.
    while let Err(error) = env.write(|txn| txn.database("d")?.put("k", "v")) {
        assert!(
            !matches!(error, WriteError::Closed) && Instant::now() < deadline,
            "{error}"
        );
        if matches!(error, WriteError::NotMaster { master: Some(_) }) {
            break;
        }
    }
    env.close().expect("closed");
}

#[test]
fn a_monitor_prints_what_happens_to_the_group_that_it_watches() {
    let mut group = Group::start();
    group.status_until(0);
    let ask = format!("127.0.0.1:{},127.0.0.1:{}", group.ports[0], group.ports[1]);
    let monitor = Node::run("events", &["--ask".to_owned(), ask]);
    monitor.wait_for(&["group g: master"]);
    group.nodes[2] = None;
    monitor.wait_for(&["n3 is down"]);
    monitor.wait_for(&["DEGRADED: n3 down; survives 0 more failures"]);
    group.nodes[2] = Some(Node::start(&group.arguments(2)));
    monitor.wait_for(&["n3 is up"]);
    monitor.wait_for(&["HEALTHY"]);
    monitor.signal("-INT");
    let (status, errors) = monitor.end();
    assert!(status.success(), "{errors}");
}

#[test]
fn a_verb_that_waits_for_a_silent_node_says_so_before_it_gives_up() {
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = silent.local_addr().expect("bound").to_string();
    for (verb, limit) in [
        (&["master", "transfer"][..], 45),
        (&["group", "shutdown"], 115),
        (&["node", "priority", "n1", "3"], 15),
    ] {
        let mut arguments = verb.to_vec();
        arguments.extend(["--ask", &address]);
        let began = Instant::now();
        let mut waiting = Node::spawn(steadfast().args(arguments));
        let stderr = waiting.child.stderr.take().expect("piped");
        let mut line = String::new();
        BufReader::new(stderr).read_line(&mut line).expect("text");
        let expected =
            format!("no answer yet from the group at {address}; trying for up to {limit} s\n");
        assert_eq!(line, expected, "{verb:?}");
        assert!(began.elapsed() < Duration::from_secs(10), "{verb:?}");
    }
}

#[test]
fn every_verb_takes_addresses_as_arguments_by_ask_and_from_the_environment() {
    let mut group = Operated::unstarted(1);
    group.start(0, None);
    // Only the second of the two answers.
    let both = format!("127.0.0.1:{},127.0.0.1:{}", free_port(), group.ports[0]);
    let (dead, live) = both.split_once(',').expect("two");
    for verb in [
        &["status"][..],
        &["doctor"],
        &["verify"],
        &["node", "list"],
        &["node", "priority", "n1", "2"],
        &["node", "promote", "n1"],
        &["master", "show"],
        &["token", "create"],
    ] {
        for at in [&[&*both][..], &[dead, live], &["--ask", &both]] {
            let output = run(&[verb, at].concat());
            let errors = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(0), "{verb:?} {at:?}: {errors}");
        }
        let mut by_environment = steadfast();
        let output = by_environment
            .args(verb)
            .env("STEADFAST_ASK", &both)
            .output()
            .expect("the program runs");
        assert_eq!(output.status.code(), Some(0), "{verb:?}: {output:?}");
    }
    // A name has no colon; an address has one.
    let output = run(&["master", "transfer", "n1", &both]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(!errors.contains("does not answer"), "{errors}");
    run_to(0, &["group", "shutdown", &both]);
}

#[test]
fn a_node_publishes_the_metadata_of_its_configuration() {
    let dir = TempDir::new().expect("a directory");
    let (path, port) = (dir.path().join("data"), free_port());
    let config = dir.path().join("node.toml");
    let arguments = |table: &str| {
        std::fs::write(&config, format!("metadata = {table}\n")).expect("written");
        let config = ["--config".to_owned(), config.display().to_string()];
        [&config[..], &node_arguments("g", "n1", &path, port)].concat()
    };
    for wrong in ["7", "{ web = 7 }", "\"web\""] {
        assert_refused(&arguments(wrong), 2, &["metadata", "a table of strings"]);
    }
    let mut unnamed = arguments("{}");
    unnamed.extend(["--set".to_owned(), "metadata=web".to_owned()]);
    assert_refused(&unnamed, 2, &["metadata", "name=value"]);

    let published = |expected: &Value| {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let output = run(&["status", &format!("127.0.0.1:{port}"), "-o", "json"]);
            let status: Value = serde_json::from_slice(&output.stdout).expect("JSON");
            if status["nodes"][0]["metadata"] == *expected {
                return;
            }
            assert!(Instant::now() < deadline, "{status}");
        }
    };
    let node = Node::start(&arguments("{ web = \"http://h:1/?a=b\", zone = \"b\" }"));
    node.wait_ready();
    published(&serde_json::json!({"web": "http://h:1/?a=b", "zone": "b"}));
    drop(node);
    let mut other = arguments("{}");
    other.extend([
        "--set".to_owned(),
        "metadata=web=http://h:2, zone=c".to_owned(),
    ]);
    let node = Node::start(&other);
    node.wait_ready();
    published(&serde_json::json!({"web": "http://h:2", "zone": "c"}));
}
