//! Operators' worst mistakes are refused or harmless; the program says why and what to do.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use serde_json::Value;
use tempfile::TempDir;

use super::operator::Operated;
use super::{
    Group, Node, Numbers, PATIENCE, assert_refused, assert_unharmed, free_port, node_arguments,
    run, run_to, steadfast, written_dir,
};

/// Timers that keep a master in office on a busy machine.
const CALM: Numbers = &[
    ("election_timeout_min_ms", 1_000),
    ("election_timeout_max_ms", LEASE_MS),
];
/// How long a master takes a dead node for a working one.
const LEASE_MS: u64 = 1_500;

#[test]
fn a_wiped_member_is_refused_under_its_old_name_and_the_others_go_on() {
    let mut group = Group::start();
    group.nodes[2] = None;
    let (dir, aside) = (group.data_dir(2), group.dir.path().join("aside"));
    fs::rename(&dir, &aside).expect("renamed");
    let words = [
        "already a member",
        "could have acknowledged writes that it no longer has",
        "give it its old directory back",
        "steadfast node replace n3",
    ];
    assert_refused(&group.arguments(2), 1, &words);
    group.status_until(3);
    fs::remove_dir_all(&dir).expect("removed");
    fs::rename(&aside, &dir).expect("renamed");
    group.nodes[2] = Some(Node::start(&group.arguments(2)));
    group.status_until(0);
}

impl Group {
    /// Arguments of a node on another machine that was given this group's list.
    fn arguments_elsewhere(&self, at: usize, group: &str) -> Vec<String> {
        let name = format!("n{}", at + 1);
        let dir = self.dir.path().join(format!("elsewhere-{name}"));
        let mut arguments = node_arguments(group, &name, &dir, free_port());
        arguments.extend(["--bootstrap".to_owned(), self.list.clone()]);
        arguments
    }
}

#[test]
fn a_list_that_made_a_group_makes_no_second_one() {
    let group = Group::start();
    let words = ["already a member", "another group needs a list of its own"];
    for at in 0..3 {
        assert_refused(&group.arguments_elsewhere(at, "g"), 1, &words);
    }
    let words = [
        "belongs to group \"g\", not to \"h\"",
        "correct the address",
    ];
    for at in 0..3 {
        let dir = group.dir.path().join(format!("elsewhere-n{}", at + 1));
        fs::remove_dir_all(dir).expect("removed");
        assert_refused(&group.arguments_elsewhere(at, "h"), 1, &words);
    }
    group.status_until(0);
}

/// The other listed nodes answer both, and follow the one at the listed address.
#[test]
fn of_two_founders_with_one_list_the_one_at_another_address_never_gets_a_master() {
    let mut group = Group {
        numbers: &[],
        ..Group::unstarted()
    };
    for at in [1, 2] {
        group.nodes[at] = Some(Node::start(&group.arguments(at)));
    }
    let arguments = group.arguments_elsewhere(0, "g");
    let stray = Node::start(&arguments);
    stray.wait_for(&["in term 1"]);
    group.nodes[0] = Some(Node::start(&group.arguments(0)));
    group.status_until(0);
    let flag = arguments.iter().position(|word| word == "--listen");
    let address = &arguments[flag.expect("it listens") + 1];
    let (found, _) = run_to(4, &["doctor", "--ask", address]);
    for word in [
        "no node is master",
        "a node of another group is at",
        "groups never merge",
        "a list and empty directories of its own",
    ] {
        assert!(found.contains(word), "{word:?} is not in: {found}");
    }
}

/// Copies a directory as an administrator does.
pub(super) fn copy_dir(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").args([from, to]).status();
    assert!(copied.expect("cp runs").success());
}

#[test]
fn a_moved_directory_opens_and_a_copy_is_refused_also_in_the_place_of_the_original() {
    let dir = TempDir::new().expect("a directory");
    let path = written_dir(&dir);
    let (copy, moved) = (dir.path().join("copy"), dir.path().join("moved"));
    copy_dir(&path, &copy);
    let words = [
        "is a copy",
        "may be missing",
        "put the original",
        "node replace",
        "recover",
    ];
    assert_refused(&node_arguments("g", "n1", &copy, free_port()), 1, &words);
    fs::rename(&path, &moved).expect("renamed");
    assert_unharmed(&moved);
    copy_dir(&copy, &path);
    assert_refused(&node_arguments("g", "n1", &path, free_port()), 1, &words);
    // An old copy replaces the directory, whose files may even get the same inode numbers again.
    fs::remove_dir_all(&moved).expect("removed");
    copy_dir(&copy, &moved);
    assert_refused(&node_arguments("g", "n1", &moved, free_port()), 1, &words);
}

impl Group {
    /// Waits until the master, the first node, misses one that has died.
    fn wait_missed(&self, id: u64) {
        let address = format!("127.0.0.1:{}", self.ports[0]);
        let deadline = Instant::now() + PATIENCE;
        loop {
            let output = run(&["status", &address, "-o", "json"]);
            let status: Value = serde_json::from_slice(&output.stdout).expect("JSON");
            let replicas = status["nodes"][0]["status"]["replicas"].as_array();
            let mut of = replicas.into_iter().flatten();
            let of = of.find(|of| of["node"] == id);
            if of.is_some_and(|of| of["heard_ms_ago"].as_u64() > Some(LEASE_MS)) {
                return;
            }
            assert!(Instant::now() < deadline, "{status}");
        }
    }

    /// Asks the first node to remove another one; it must be refused.
    fn assert_not_removed(&self, node: &str, words: &[&str]) {
        let address = format!("127.0.0.1:{}", self.ports[0]);
        let (_, errors) = run_to(1, &["node", "remove", node, "--ask", &address]);
        for word in words.iter().chain(&["nothing was changed", "to do: "]) {
            assert!(errors.contains(word), "{word:?} is not in: {errors}");
        }
    }
}

#[test]
fn the_node_that_a_majority_needs_is_not_removed_and_the_one_that_is_down_is() {
    let mut group = Group::start_with(CALM);
    let address = format!("127.0.0.1:{}", group.ports[0]);
    run_to(0, &["master", "transfer", "n1", "--ask", &address]);
    group.nodes[2] = None;
    group.wait_missed(3);
    let words = [
        "1 of 2 voting nodes (not n3)",
        "would stop",
        "bring n3 back",
    ];
    group.assert_not_removed("n2", &words);
    group.assert_not_removed("n1", &words);
    let (removed, _) = run_to(0, &["node", "remove", "n3", "--ask", &address]);
    assert_eq!(removed.trim(), "n3 was removed");
    group.status_until(0);

    // Of two nodes, only one is left.
    group.nodes[1] = None;
    group.wait_missed(2);
    group.assert_not_removed("n1", &["0 of 1 voting node (not n2)", "would stop"]);
    let words = ["1 of 2 voting nodes (not n2)", "no majority", "start n2"];
    group.assert_not_removed("n2", &words);
    group.nodes[1] = Some(Node::start(&group.arguments(1)));
    group.status_until(0);
}

#[test]
fn the_only_node_that_can_be_master_is_not_removed_even_by_force() {
    let mut group = Operated::unstarted(2);
    group.start(0, None);
    let token = group.done(0, &["token", "create", "--type", "secondary"]);
    group.start(1, Some(&token));
    for force in [&[][..], &["--force"]] {
        let refused = group.operate(1, &[&["node", "remove", "n1"], force].concat());
        let errors = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(1), "{errors}");
        for word in ["no node is left that can be master", "nothing was changed"] {
            assert!(errors.contains(word), "{word:?} is not in: {errors}");
        }
    }
    group.list_until(1, &["n1 electable MASTER", "n2 secondary replica"]);
}

#[test]
fn a_directory_in_use_is_refused_and_its_node_goes_on() {
    let dir = TempDir::new().expect("a directory");
    let path = dir.path().join("data");
    let port = free_port();
    let node = Node::start(&node_arguments("g", "n1", &path, port));
    node.wait_for(&["is master"]);
    let words = [
        "in use by another process",
        "keeps running",
        "stop the other",
    ];
    assert_refused(&node_arguments("g", "n1", &path, free_port()), 1, &words);
    run_to(0, &["status", &format!("127.0.0.1:{port}")]);
}

#[test]
fn a_node_that_listens_everywhere_says_where_the_others_reach_it_or_is_refused() {
    let dir = TempDir::new().expect("a directory");
    let (path, port) = (dir.path().join("data"), free_port());
    let mut arguments = node_arguments("g", "n1", &path, port);
    let listen = arguments.len() - 1;
    arguments[listen] = format!("0.0.0.0:{port}");
    let words = ["advertise", "every address", "the other nodes reach it"];
    assert_refused(&arguments, 2, &words);
    let everywhere = format!("advertise=0.0.0.0:{port}");
    let wrong = [&arguments[..], &["--set".to_owned(), everywhere]].concat();
    assert_refused(&wrong, 2, &["advertise", "every address"]);
    assert!(!path.exists(), "nothing was made");

    let reached = format!("127.0.0.1:{port}");
    arguments.extend(["--set".to_owned(), format!("advertise={reached}")]);
    let words = [
        "credentials",
        "0.0.0.0",
        "steadfast init",
        "insecure_plaintext",
    ];
    assert_refused(&arguments, 2, &words);
    assert!(!path.exists(), "nothing was made");
    arguments.extend(["--set".to_owned(), "insecure_plaintext=yes".to_owned()]);
    let node = Node::start(&arguments);
    node.wait_for(&["is master"]);
    let (said, _) = run_to(3, &["doctor", &reached]);
    assert!(said.contains("are not protected"), "{said}");
    let (token, _) = run_to(0, &["token", "create", &reached]);
    assert!(token.contains(&format!("/{reached}/")), "{token}");
    let (_, errors) = run_to(1, &["node", "address", "n1", "0.0.0.0:1", &reached]);
    for word in ["every address", "nothing was changed"] {
        assert!(errors.contains(word), "{word:?} is not in: {errors}");
    }
}

#[test]
fn an_empty_variable_names_no_credentials() {
    let dir = TempDir::new().expect("a directory");
    let with = |value: &str, arguments: &[String]| {
        let mut command = steadfast();
        command.args(arguments).env("HOME", dir.path());
        command.env_remove("XDG_CONFIG_HOME");
        command.env("STEADFAST_CREDENTIALS", value);
        command
    };
    let port = free_port();
    let mut start = vec!["start".to_owned()];
    start.extend(node_arguments("g", "n1", &dir.path().join("data"), port));
    let node = Node::spawn(&mut with("", &start));
    node.wait_for(&["is master"]);
    let status = ["status".to_owned(), format!("127.0.0.1:{port}")];
    for (value, code) in [("", 0), ("nowhere", 1)] {
        let output = with(value, &status).output().expect("it runs");
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{value:?}: {errors}");
    }
}
