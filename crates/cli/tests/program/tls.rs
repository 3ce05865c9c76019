//! Groups with credentials, as real processes: what operators do with theirs, and what everybody else
//! gets.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use serde_json::Value;

use super::{Group, Node, PATIENCE, free_port, node_arguments, run, run_to, steadfast};

/// A group of three with credentials, and where these are.
pub(super) struct Secured {
    pub(super) group: Group,
    secrets: String,
}

impl Secured {
    /// The group and its credentials, before any node runs.
    pub(super) fn prepared() -> Self {
        let group = Group::unstarted();
        let secrets = group.dir.path().join("secrets").display().to_string();
        let list: Vec<&str> = group.list.split(',').collect();
        let init = ["init", "--group", "g", "--out", &secrets];
        run_to(0, &[&init[..], &list].concat());
        Self { group, secrets }
    }

    pub(super) fn start() -> Self {
        let mut secured = Self::prepared();
        for at in 0..3 {
            let node = Node::start(&secured.arguments(at));
            secured.group.nodes[at] = Some(node);
        }
        for node in secured.group.nodes.iter().flatten() {
            node.wait_ready();
        }
        secured
    }

    pub(super) fn arguments(&self, at: usize) -> Vec<String> {
        let mut arguments = self.group.arguments(at);
        let of_node = self.of(&format!("n{}", at + 1));
        arguments.extend(["--credentials".to_owned(), of_node]);
        arguments
    }

    /// The directory of somebody's credentials.
    pub(super) fn of(&self, who: &str) -> String {
        format!("{}/{who}", self.secrets)
    }

    pub(super) fn address(&self, at: usize) -> String {
        format!("127.0.0.1:{}", self.group.ports[at])
    }

    /// Runs a verb with the admin's credentials; returns what it printed.
    pub(super) fn run_to(&self, code: i32, verb: &[&str]) -> String {
        let (address, admin) = (self.address(0), self.of("admin"));
        let whom = ["--ask", &address, "--credentials", &admin];
        run_to(code, &[verb, &whom].concat()).0
    }

    /// Waits until all of so many nodes work.
    pub(super) fn wait_whole(&self, nodes: usize) {
        let begun = Instant::now();
        let (address, admin) = (self.address(0), self.of("admin"));
        let ask = ["status", "--ask", &address, "--credentials", &admin];
        let words = format!("{nodes} of {nodes} nodes work");
        loop {
            let said = String::from_utf8_lossy(&run(&ask).stdout).into_owned();
            if said.contains(&words) {
                return;
            }
            assert!(begun.elapsed() < PATIENCE, "{said}");
        }
    }

    /// Issues credentials; returns where they are.
    pub(super) fn issue(&self, role: &str, name: &str) -> String {
        self.issue_for(role, name, "365")
    }

    fn issue_for(&self, role: &str, name: &str, days: &str) -> String {
        let out = self.of(&format!("{role}-{name}-{days}"));
        let authority = self.of("authority");
        let issue = ["certs", "issue", "--authority", &authority, "--role", role];
        let rest = ["--name", name, "--out", &out, "--days", days];
        run_to(0, &[&issue[..], &rest].concat());
        out
    }

    /// What all nodes say of the group, but for what always changes.
    fn state(&self) -> Value {
        let said = self.run_to(0, &["status", "-o", "json"]);
        let status: Value = serde_json::from_str(&said).expect("JSON");
        let kept = ["term", "vlsn", "master", "health"];
        kept.iter().map(|key| status[key].clone()).collect()
    }
}

#[test]
fn operators_do_everything_with_credentials_and_nobody_does_anything_without() {
    let mut secured = Secured::start();
    secured.run_to(0, &["doctor"]);
    secured.run_to(0, &["verify", "--deep"]);
    secured.run_to(0, &["master", "transfer"]);
    secured.wait_whole(3);
    let backup = secured.group.dir.path().join("backup");
    let to = backup.display().to_string();
    secured.run_to(0, &["backup", "create", &to]);

    // A new node.
    let token = secured.run_to(0, &["token", "create"]);
    let dir = secured.group.dir.path().join("n4");
    let mut arguments = node_arguments("g", "n4", &dir, free_port());
    let join = [
        "--join",
        token.trim(),
        "--credentials",
        &secured.issue("node", "4"),
    ];
    arguments.extend(join.map(str::to_owned));
    let fourth = Node::start(&arguments);
    fourth.wait_ready();

    let before = secured.state();
    let address = secured.address(0);
    for verb in [
        &["status"][..],
        &["verify"],
        &["master", "transfer"],
        &["group", "shutdown"],
    ] {
        let outcome = run(&[verb, &["--ask", &address]].concat());
        assert_ne!(outcome.status.code(), Some(0), "{verb:?}");
        let errors = String::from_utf8_lossy(&outcome.stderr).into_owned();
        assert!(errors.contains("credentials"), "{verb:?}: {errors}");
    }
    assert_eq!(secured.state(), before, "nothing was changed");

    secured.run_to(0, &["group", "shutdown"]);
    let audited = |node: usize| fs::read_to_string(secured.group.data_dir(node).join("audit.log"));
    let audited: String = (0..3).filter_map(|node| audited(node).ok()).collect();
    for (who, what) in [
        ("admin/admin", "a new node may join"),
        ("node/4", "n4 is node 4"),
        ("admin/admin", "n4 stopped"),
    ] {
        let is_it = |line: &str| line.contains(what) && line.contains(&format!("g/{who}\""));
        assert!(audited.lines().any(is_it), "{who}, {what}: {audited}");
    }
    for node in secured.group.nodes.iter_mut().filter_map(Option::take) {
        assert!(node.end().0.success());
    }
    assert!(fourth.end().0.success());
}

#[test]
fn those_with_less_credentials_get_less() {
    let secured = Secured::start();
    let monitor = secured.issue("monitor", "grafana");
    let address = secured.address(0);
    let as_monitor = |code: i32, verb: &[&str]| {
        let whom = ["--ask", &address, "--credentials", &monitor];
        run_to(code, &[verb, &whom].concat())
    };
    as_monitor(0, &["status"]);
    let before = secured.state();
    for verb in [
        &["node", "priority", "n1", "0"][..],
        &["master", "transfer"],
    ] {
        let (_, errors) = as_monitor(1, verb);
        assert!(errors.contains("may not call ADMIN"), "{errors}");
    }
    let backup = secured.group.dir.path().join("backup");
    let (_, errors) = as_monitor(1, &["backup", "create", &backup.display().to_string()]);
    assert!(errors.contains("may not call SUBSCRIPTION"), "{errors}");
    assert_eq!(secured.state(), before);
}

#[test]
fn a_node_uses_its_new_credentials_without_a_restart_and_says_when_they_are_not_its_own() {
    let mut secured = Secured::start();
    let node = secured.group.nodes[0].take().expect("it runs");
    let replace = |from: &str| {
        for file in ["certificate.pem", "key.pem"] {
            fs::copy(
                Path::new(from).join(file),
                Path::new(&secured.of("n1")).join(file),
            )
            .expect("copied");
        }
    };
    replace(&secured.issue("node", "1"));
    node.wait_for(&["are in use"]);
    secured.run_to(0, &["doctor"]);
    replace(&secured.issue_for("node", "1", "5"));
    node.wait_for(&["are in use"]);
    let said = secured.run_to(3, &["doctor"]);
    assert!(said.contains("the certificate of n1 ends in"), "{said}");

    replace(&secured.of("n2"));
    node.wait_for(&["names steadfast://g/node/2"]);
    secured.run_to(0, &["status"]);
}

#[test]
fn a_node_does_not_start_with_what_is_not_its_own() {
    let secured = Secured::start();
    let dir = secured.group.dir.path().join("other");
    let start = |credentials: &str, words: &[&str]| {
        let mut arguments = node_arguments("g", "n1", &dir, free_port());
        arguments.extend(["--credentials".to_owned(), credentials.to_owned()]);
        let outcome = steadfast().arg("start").args(&arguments).output();
        let outcome = outcome.expect("it runs");
        let errors = String::from_utf8_lossy(&outcome.stderr).into_owned();
        assert!(!outcome.status.success(), "{errors}");
        for word in words.iter().chain(&["error: ", "data: ", "to do: "]) {
            assert!(errors.contains(word), "{word:?} is not in: {errors}");
        }
        assert!(!dir.exists(), "nothing was made");
    };
    start(
        &secured.of("admin"),
        &["names steadfast://g/admin/admin", "no node"],
    );
    start(
        &secured.of("n2"),
        &["names steadfast://g/node/2", "n1 is node 1"],
    );
    start("nowhere", &["nowhere/certificate.pem is missing"]);
    let loose = Command::new("chmod")
        .args(["640", &format!("{}/key.pem", secured.of("n1"))])
        .status();
    assert!(loose.expect("chmod runs").success());
    start(&secured.of("n1"), &["chmod 600"]);
}

#[test]
fn nothing_is_recovered_while_nodes_are_up_that_do_not_talk_to_the_caller() {
    let mut secured = Secured::start();
    let node = secured.group.nodes[2].take().expect("it runs");
    node.signal("-TERM");
    assert!(node.end().0.success());
    let dir = secured.group.data_dir(2).display().to_string();
    let plan = |credentials: &str, words: &[&str]| {
        let plan = ["recover", "plan", "--data-dir", &dir];
        let (_, errors) = run_to(1, &[&plan[..], &["--credentials", credentials]].concat());
        for word in words {
            assert!(errors.contains(word), "{word:?} is not in: {errors}");
        }
    };
    let other = secured.of("others");
    let init = ["init", "--group", "g", "--out", &other, "n1=127.0.0.1:1"];
    run_to(0, &init);
    plan(
        &format!("{other}/admin"),
        &["is up, but does not talk to this caller"],
    );
    plan(&secured.of("admin"), &["3 of 3 voters are there"]);
    let (_, errors) = run_to(1, &["recover", "plan", "--data-dir", &dir]);
    assert!(errors.contains("(--credentials DIR)"), "{errors}");
}

#[test]
fn a_node_starts_again_without_its_list_and_a_backup_is_restored_for_other_machines() {
    let mut secured = Secured::start();
    let backup = secured
        .group
        .dir
        .path()
        .join("backup")
        .display()
        .to_string();
    secured.run_to(0, &["backup", "create", &backup]);
    let node = secured.group.nodes[1].take().expect("it runs");
    node.signal("-TERM");
    assert!(node.end().0.success());
    let mut arguments = node_arguments(
        "g",
        "n2",
        &secured.group.data_dir(1),
        secured.group.ports[1],
    );
    arguments.extend(["--credentials".to_owned(), secured.of("n2")]);
    Node::start(&arguments).wait_ready();

    let dir = secured
        .group
        .dir
        .path()
        .join("restored")
        .display()
        .to_string();
    let restore = [
        "backup",
        "restore",
        &backup,
        "--data-dir",
        &dir,
        "--node",
        "n7",
    ];
    let (said, _) = run_to(0, &[&restore[..], &["--listen", "192.0.2.7:7400"]].concat());
    assert!(said.contains("certs issue --role node --name 1"), "{said}");
}

#[test]
fn a_group_without_credentials_gets_them_node_by_node() {
    let mut secured = Secured::prepared();
    let plain = |secured: &Secured, at: usize| secured.group.arguments(at);
    let too = |secured: &Secured, at: usize| {
        let mut arguments = secured.arguments(at);
        arguments.extend(["--set", "insecure_plaintext=too"].map(str::to_owned));
        arguments
    };
    for at in 0..3 {
        let node = Node::start(&plain(&secured, at));
        secured.group.nodes[at] = Some(node);
    }
    secured.group.status_until(0);
    let again = |secured: &mut Secured, at: usize, arguments: &[String]| {
        let node = secured.group.nodes[at].take().expect("it runs");
        node.signal("-TERM");
        assert!(node.end().0.success());
        let node = Node::start(arguments);
        node.wait_ready();
        secured.group.nodes[at] = Some(node);
    };
    for at in 0..3 {
        let arguments = too(&secured, at);
        again(&mut secured, at, &arguments);
        // Those with credentials and those without hear each other, and anybody may ask.
        secured.group.status_until(0);
    }
    for at in 0..3 {
        let arguments = secured.arguments(at);
        again(&mut secured, at, &arguments);
        secured.wait_whole(3);
    }
    let address = secured.address(1);
    let (_, errors) = run_to(1, &["status", "--ask", &address]);
    assert!(errors.contains("credentials"), "{errors}");
}
