//! All addresses of a group change at once.

use std::time::Instant;

use serde_json::Value;
use steadfast::ConsistencyPolicy;

use super::mistakes::copy_dir;
use super::{Group, Node, PATIENCE, STEADY, free_port, run, run_to, steadfast, write_everywhere};

impl Group {
    /// The files of a node that record who and where the members are.
    fn notes(&self, at: usize) -> Vec<Option<Vec<u8>>> {
        let read = |name| std::fs::read(self.data_dir(at).join(name)).ok();
        ["identity", "members", "addresses"].map(read).to_vec()
    }

    fn say(&self, at: usize, said: &[String], code: i32) -> (String, String) {
        let dir = self.data_dir(at).display().to_string();
        let verb = ["node", "address", "--data-dir", &dir];
        let said = said.iter().map(String::as_str);
        let words: Vec<_> = verb.into_iter().chain(said).collect();
        run_to(code, &words)
    }

    /// All addresses, as arguments of the verb.
    fn items(&self) -> Vec<String> {
        let items = self.ports.iter().zip(1..);
        items
            .map(|(port, n)| format!("n{n}=127.0.0.1:{port}"))
            .collect()
    }

    fn stop_all(&mut self) {
        for node in self.nodes.iter_mut().filter_map(Option::take) {
            node.signal("-INT");
            assert!(node.end().0.success());
        }
    }

    fn start_all(&mut self) {
        for at in 0..3 {
            self.nodes[at] = Some(Node::start(&self.arguments(at)));
        }
    }

    fn status(&self) -> Value {
        let address = format!("127.0.0.1:{}", self.ports[0]);
        let output = run(&["status", &address, "-o", "json"]);
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    }

    fn status_once(&self, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = self.status();
            if holds(&status) {
                return status;
            }
            assert!(Instant::now() < deadline, "{what}: {status}");
        }
    }
}

/// The group is healthy, with its nodes at exactly these addresses.
fn is_healthy_at(items: &[String]) -> impl Fn(&Value) -> bool + '_ {
    |status| {
        let nodes = status["nodes"].as_array().into_iter().flatten();
        let text = |node: &Value, key: &str| node[key].as_str().unwrap_or_default().to_owned();
        let found = nodes.map(|node| format!("{}={}", text(node, "name"), text(node, "address")));
        status["health"] == "HEALTHY" && found.eq(items.iter().cloned())
    }
}

fn put(group: &Group, key: &str) {
    let env = group.embed();
    Group::make_master(&env);
    let _token = write_everywhere(&env, |txn| txn.database("d")?.put(key, "v"));
    env.close().expect("closed");
}

#[test]
fn a_group_whose_addresses_have_all_changed_is_told_where_it_is_and_loses_nothing() {
    let mut group = Group::start_with(STEADY);
    group.nodes[0] = None;
    put(&group, "before");
    group.nodes[0] = Some(Node::start(&group.arguments(0)));
    let old = group.items();
    let before = group.status_once("healthy", is_healthy_at(&old));
    let (epoch, id) = (
        &before["nodes"][0]["status"]["epoch"],
        &before["nodes"][0]["status"]["group"],
    );
    assert!(!epoch.is_null() && !id.is_null(), "{before}");
    let (_, errors) = group.say(0, &old, 1);
    for word in ["in use", "the node keeps running", "stop the node first"] {
        assert!(errors.contains(word), "{word:?} is not in: {errors}");
    }
    group.stop_all();

    // No node finds another, and a node that is asked says what to do.
    group.ports = (0..3).map(|_| free_port()).collect();
    group.start_all();
    group.nodes[0]
        .as_ref()
        .expect("it runs")
        .wait_for(&["waiting for a master"]);
    let asked = format!("127.0.0.1:{}", group.ports[0]);
    for verb in ["status", "doctor"] {
        let (found, _) = run_to(4, &[verb, "--ask", &asked]);
        assert!(found.contains("node address --data-dir"), "{found}");
    }
    group.stop_all();

    for at in 0..3 {
        let (said, _) = group.say(at, &group.items(), 0);
        for item in group.items() {
            let words = item.replace('=', "  ");
            let said = said.split_whitespace().collect::<Vec<_>>().join("  ");
            assert!(said.contains(&words), "{words:?} is not in: {said}");
        }
    }
    group.start_all();
    let items = group.items();
    let after = group.status_once("the new addresses", is_healthy_at(&items));
    assert_eq!(
        &after["nodes"][0]["status"]["epoch"], epoch,
        "no epoch began"
    );
    assert_eq!(&after["nodes"][0]["status"]["group"], id, "the same group");

    // They are in the membership: a node that was told nothing more finds the others.
    group.nodes[0] = None;
    let env = group.embed();
    let found = env.read(ConsistencyPolicy::Linearizable, |snapshot| {
        snapshot.database("d")?.get("before")
    });
    assert_eq!(found.expect("read").as_deref(), Some(&b"v"[..]));
    Group::make_master(&env);
    let _token = write_everywhere(&env, |txn| txn.database("d")?.put("after", "v"));
    let token = env
        .join_token(steadfast::NodeType::Electable)
        .expect("a group");
    for port in &group.ports {
        assert!(token.to_string().contains(&format!(":{port}")), "{token}");
    }
    env.close().expect("closed");
}

/// The master accepts an address only if the intended node proves its identity there.
#[test]
fn a_wrong_list_harms_nothing_and_a_right_one_corrects_it() {
    let mut group = Group::start_with(STEADY);
    group.stop_all();
    group.ports = (0..3).map(|_| free_port()).collect();
    let right = group.items();
    let mut wrong = right.clone();
    wrong.swap(0, 1);
    let crossed: Vec<_> = wrong
        .iter()
        .zip(["n1", "n2", "n3"])
        .map(|(item, name)| format!("{name}={}", item.split_once('=').expect("an item").1))
        .collect();
    for at in 0..3 {
        group.say(at, &crossed, 0);
    }
    group.start_all();
    group.nodes[2].as_ref().expect("it runs").wait_for(&[
        "waiting for a master",
        "is master",
        "is replica",
    ]);
    group.stop_all();
    for at in 0..3 {
        group.say(at, &right, 0);
    }
    group.start_all();
    group.status_once("the right addresses", is_healthy_at(&right));
}

#[test]
fn what_makes_no_sense_is_not_said_to_a_directory() {
    let mut group = Group::start_with(STEADY);
    group.stop_all();
    let notes = group.notes(0);
    let item = |item: &str| vec![item.to_owned()];
    let twice = ["n1=10.0.0.1:1", "n1=10.0.0.2:1"].map(str::to_owned);
    let shared = ["n1=10.0.0.1:1", "n2=10.0.0.1:1"].map(str::to_owned);
    for (said, words) in [
        (&item("n9=10.0.0.9:7400")[..], ["\"n9\"", "n1, n2, n3"]),
        (&item("n1=10.0.0.9"), ["n1", "host:port"]),
        (&item("n1=0.0.0.0:7400"), ["n1", "every address"]),
        (&item("n1=[::]:7400"), ["n1", "every address"]),
        (&item("n1"), ["\"n1\"", "NODE=HOST:PORT"]),
        (&twice, ["n1", "twice"]),
        (&shared, ["n1 and n2", "10.0.0.1:1"]),
    ] {
        let (_, errors) = group.say(0, said, 2);
        for word in words.iter().chain(&["nothing was changed", "to do: "]) {
            assert!(errors.contains(word), "{word:?} is not in: {errors}");
        }
    }
    let missing = group.dir.path().join("missing");
    let word = missing.display().to_string();
    let (_, errors) = run_to(2, &["node", "address", "--data-dir", &word, "n1=h:1"]);
    assert!(errors.contains("is not the data directory"), "{errors}");
    assert!(
        !missing.exists() && group.notes(0) == notes,
        "nothing was made"
    );

    let copy = group.dir.path().join("copy");
    copy_dir(&group.data_dir(0), &copy);
    let word = copy.display().to_string();
    let (_, errors) = run_to(1, &["node", "address", "--data-dir", &word, "n1=h:1"]);
    assert!(errors.contains("is a copy"), "{errors}");
    let force = steadfast()
        .args(["node", "address", "--data-dir", &word, "--force", "n1=h:1"])
        .output();
    assert_eq!(force.expect("it runs").status.code(), Some(2));
    group.start_all();
    group.status_until(0);
}
