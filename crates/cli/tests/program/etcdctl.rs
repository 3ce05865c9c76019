//! Every subcommand of an unmodified `etcdctl` at a group of three processes, whose master is killed
//! in the middle. `STEADFAST_ETCDCTL` names another than the one in `PATH`.

use super::clients::{Etcdctl, Serving};
use super::{Instant, PATIENCE};

#[test]
fn every_subcommand_works_while_the_master_is_killed() {
    // A watch that wants a leader ends after 3 s without one.
    let mut group = Serving::start_hasty();
    let endpoints = group.endpoints.clone();
    let Some(ctl) = Etcdctl::at(&endpoints.join(",")) else {
        return;
    };
    ctl.run_at_last(&["endpoint", "health"]);
    keys(&ctl);
    let lease = ctl.field(&["lease", "grant", "60"], 1);
    ctl.run(&["put", "w1", "x", "--lease", &lease]);

    let watch = ctl.start(&["watch", "w", "--prefix", "--rev", "1"]);
    watch.wait_for(&["w1"]);
    let alive = ctl.start(&["lease", "keep-alive", &lease]);
    alive.wait_for(&["keepalived"]);
    let leads = ctl.start(&["elect", "e", "me"]);
    leads.wait_for(&["e/"]);
    let observes = ctl.start(&["elect", "-l", "e"]);
    observes.wait_for(&["e/"]);
    let holds = ctl.start(&["lock", "L"]);
    holds.wait_for(&["L/"]);
    let waits = ctl.start(&["lock", "L"]);
    let mirror = ctl.start(&[
        "make-mirror",
        &endpoints[0],
        "--prefix",
        "w",
        "--dest-prefix",
        "m/w",
    ]);

    // Its write must not be under way when the master dies: nobody could tell how it ended.
    let deadline = Instant::now() + PATIENCE;
    while ctl
        .run(&["get", "L/", "--prefix", "--keys-only"])
        .matches("L/")
        .count()
        < 2
    {
        assert!(Instant::now() < deadline, "the second stands in line");
    }

    let members = ctl.leaders();
    let master = members
        .iter()
        .position(|(id, leader)| id == leader)
        .expect("one leads");
    group.kill(master);
    ctl.run_at_last(&["put", "w2", "after the master"]);
    watch.wait_for(&["after the master"]);
    assert!(ctl.run_at_last(&["get", "w2"]).contains("after the master"));
    group.restart(master);
    ctl.run_at_last(&["endpoint", "health"]);

    holds.signal("-INT");
    waits.wait_for(&["L/"]);
    leads.signal("-INT");
    assert!(
        ctl.run(&["lease", "timetolive", &lease, "--keys"])
            .contains("w1")
    );
    assert!(ctl.run(&["lease", "list"]).contains(&lease));
    ctl.run(&["lease", "keep-alive", "--once", &lease]);
    ctl.run(&["lease", "revoke", &lease]);
    assert_eq!(ctl.run(&["get", "w1"]), "");
    watch.wait_for(&["DELETE"]);
    drop(mirror);
    operator(&ctl);
    users(&ctl);
}

fn keys(ctl: &Etcdctl) {
    for key in ["a", "b", "c"] {
        ctl.run(&["put", key, &format!("v{key}")]);
    }
    assert_eq!(
        ctl.run(&["get", "", "--prefix", "--keys-only"])
            .split_whitespace()
            .count(),
        3
    );
    let sorted = ctl.run(&[
        "get",
        "b",
        "--from-key",
        "--sort-by",
        "VALUE",
        "--limit",
        "1",
    ]);
    assert_eq!(sorted, "b\nvb\n");
    assert_eq!(ctl.run(&["get", "a", "--rev", "2"]), "a\nva\n");
    assert!(
        ctl.run(&["get", "a", "-w", "json"])
            .contains("\"version\":1")
    );
    assert!(
        ctl.run(&["get", "a", "-w", "fields"])
            .contains("\"ModRevision\" : 2")
    );
    assert_eq!(ctl.run(&["del", "c", "--prev-kv"]), "1\nc\nvc\n");
    let guarded = "value(\"a\") = \"va\"\n\nput a new\nget b\n\nput x y\n\n";
    let (succeeded, text) = ctl.try_run(&["txn"], guarded);
    assert!(
        succeeded && text.contains("SUCCESS") && text.contains("vb"),
        "{text}"
    );
    assert_eq!(ctl.run(&["get", "a"]), "a\nnew\n");
    assert!(
        !ctl.try_run(&["get", "a", "--rev", "999"], "").0,
        "it is in the future"
    );
}

fn operator(ctl: &Etcdctl) {
    assert_eq!(ctl.run(&["member", "list"]).matches("started").count(), 3);
    ctl.run(&["endpoint", "hashkv", "--cluster"]);
    ctl.run(&["endpoint", "health", "--cluster"]);
    assert_eq!(ctl.run(&["alarm", "list"]).trim(), "");
    ctl.run(&["alarm", "disarm"]);
    ctl.run(&["compaction", "3"]);
    assert!(
        !ctl.try_run(&["compaction", "3"], "").0,
        "it is compacted already"
    );
    ctl.run(&["defrag"]);
    let members = ctl.leaders();
    let (other, _) = members
        .iter()
        .find(|(id, leader)| id != leader)
        .expect("a replica");
    ctl.run(&["move-leader", &format!("{other:x}")]);
    let deadline = Instant::now() + PATIENCE;
    while ctl.leaders().iter().any(|(_, leader)| leader != other) {
        assert!(
            Instant::now() < deadline,
            "every member knows the new leader"
        );
    }
    let first = ctl.endpoints.split(',').next().expect("one").to_owned();
    let one = ctl.with_endpoints(&first);
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("snapshot");
    let (succeeded, text) = one.try_run(&["snapshot", "save", &file.display().to_string()], "");
    assert!(!succeeded && text.contains("steadfast backup"), "{text}");
    for verb in ["add", "remove", "promote", "update"] {
        let urls = ["--peer-urls", "http://127.0.0.1:1"];
        let arguments = match verb {
            "add" => ["member", "add", "n4", urls[0], urls[1]].to_vec(),
            "update" => ["member", "update", "1", urls[0], urls[1]].to_vec(),
            verb => ["member", verb, "1"].to_vec(),
        };
        let (succeeded, text) = ctl.try_run(&arguments, "");
        assert!(!succeeded && text.contains("steadfast "), "{verb}: {text}");
    }
}

fn users(ctl: &Etcdctl) {
    ctl.run(&["role", "add", "r"]);
    ctl.run(&[
        "role",
        "grant-permission",
        "r",
        "readwrite",
        "w",
        "--prefix",
    ]);
    assert!(ctl.run(&["role", "get", "r"]).contains("prefix w"));
    assert_eq!(ctl.run(&["role", "list"]).trim(), "r");
    ctl.run(&["user", "add", "u:p"]);
    ctl.run(&["user", "grant-role", "u", "r"]);
    assert!(ctl.run(&["user", "get", "u"]).contains('r'));
    let (succeeded, text) = ctl.try_run(&["user", "passwd", "u", "--interactive=false"], "q\n");
    assert!(succeeded, "{text}");
    assert_eq!(ctl.run(&["user", "list"]).trim(), "u");
    ctl.run(&["user", "revoke-role", "u", "r"]);
    ctl.run(&["role", "revoke-permission", "r", "w", "--prefix"]);
    ctl.run(&["role", "delete", "r"]);
    ctl.run(&["user", "delete", "u"]);
    let (succeeded, text) = ctl.try_run(&["auth", "enable"], "");
    assert!(
        !succeeded && text.contains("root user does not exist"),
        "{text}"
    );
}
