//! A node that finds its own data damaged gives up its vote, copies a peer's state, and gets its
//! vote back; but not where the others could not go on without it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use steadfast::engine::EngineFactory;
use steadfast::log::Disk;
use steadfast::quorum_loss;
use steadfast::{AdminCommand, ConsistencyPolicy, NodeType, Repair};

use crate::support::{Env, Group, Numbers, Storage, eventually, get, name, put, stays};

const NUMBERS: Numbers = &[
    ("election_timeout_min_ms", 1_000),
    ("election_timeout_max_ms", 1_500),
    ("commit_timeout_ms", 120_000),
    ("flush_interval_ms", 20),
    ("log_segment_bytes", 64 * 1024),
];

/// With these the log does not reach back to the beginning.
pub(crate) const PURGED: Numbers = &[
    ("election_timeout_min_ms", 1_000),
    ("election_timeout_max_ms", 1_500),
    ("commit_timeout_ms", 120_000),
    ("flush_interval_ms", 20),
    ("log_segment_bytes", 64 * 1024),
    ("log_keep_bytes", 0),
];

pub(crate) fn write(node: &Env, prefix: &str) {
    for n in 0..40 {
        let _token = put(node, format!("{prefix}{n}"), vec![n; 4096]).expect("committed");
    }
}

/// The segments of a node's first log, oldest first.
fn segments(group: &Group, at: usize) -> Vec<PathBuf> {
    let dir = Path::new("/data/log");
    let names = group.storages[at].disk().list(dir).expect("a log");
    let names = names
        .into_iter()
        .filter(|name| name.strip_suffix(".log").is_some());
    names.map(|name| dir.join(name)).collect()
}

/// Changes the bytes of a closed node's file.
fn damage(group: &Group, at: usize, file: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let disk = group.storages[at].disk();
    let mut bytes = disk.bytes(file).expect("a file");
    change(&mut bytes);
    disk.plant(file, &bytes);
}

fn flip_in_the_middle(group: &Group, at: usize) {
    damage(group, at, &segments(group, at)[0], |bytes| {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0x10;
    });
}

pub(crate) fn votes(group: &Group, at: usize) -> bool {
    let id = group.node(at).status().node.id;
    let members = group.master().status().members;
    members
        .iter()
        .any(|member| member.node.id == id && member.votes)
}

/// Opens a damaged node and waits until it has repaired itself.
fn repaired(group: &mut Group, at: usize) {
    group.reopen(at).expect("it opens, and repairs itself");
    group.wait_ready();
    group.digest();
    assert!(group.storages[at].is_copy());
    eventually("it has its vote back", || votes(group, at));
    write(group.master(), "after");
    group.digest();
    // Its old log is gone, and it works across a restart and as one of two.
    assert_eq!(segments(group, at), Vec::<PathBuf>::new());
    group.close(at);
    group.reopen(at).expect("opened");
    group.wait_ready();
    let other = (0..3).find(|other| *other != at && *other != group.master_except(None));
    group.close(other.unwrap_or((at + 1) % 3));
    write(group.master(), "two");
    group.digest();
}

fn closed(numbers: Numbers) -> (Group, usize) {
    let mut group = Group::in_memory(3, numbers);
    write(group.master(), "before");
    let at = (group.master_except(None) + 1) % 3;
    group.wait_persisted();
    group.close(at);
    (group, at)
}

#[test]
fn a_flipped_bit_in_the_middle_of_the_log_is_repaired() {
    let (mut group, at) = closed(NUMBERS);
    flip_in_the_middle(&group, at);
    repaired(&mut group, at);
}

#[test]
fn a_segment_that_is_cut_off_is_repaired() {
    let (mut group, at) = closed(NUMBERS);
    let file = segments(&group, at)[0].clone();
    damage(&group, at, &file, |bytes| bytes.truncate(9000));
    repaired(&mut group, at);
}

#[test]
fn an_engine_that_is_gone_is_repaired_when_the_log_does_not_reach_back() {
    let mut group = Group::in_memory(3, PURGED);
    let at = (group.master_except(None) + 1) % 3;
    let first = segments(&group, at);
    write(group.master(), "before");
    eventually("the log is purged", || segments(&group, at)[0] > first[0]);
    group.close(at);
    let Storage::Memory { store, .. } = &group.storages[at] else {
        unreachable!("it is in memory");
    };
    store
        .remove(Path::new("/data/engine"))
        .expect("nobody has it open");
    repaired(&mut group, at);
}

#[test]
fn a_master_that_is_damaged_is_repaired_too() {
    let mut group = Group::in_memory(3, NUMBERS);
    write(group.master(), "before");
    group.wait_persisted();
    let at = group.master_except(None);
    group.close(at);
    group.master_except(Some(at));
    flip_in_the_middle(&group, at);
    repaired(&mut group, at);
}

#[test]
fn a_node_that_was_away_catches_up_from_a_master_that_repaired_itself_since() {
    let (mut group, at) = closed(NUMBERS);
    group.reopen(at).expect("opened");
    let away = group.join(NodeType::Secondary);
    group.wait_ready();
    group.digest();
    group.close(away);
    group.wait_persisted();
    group.close(at);
    flip_in_the_middle(&group, at);
    group.reopen(at).expect("it opens, and repairs itself");
    eventually("it has its vote back", || votes(&group, at));
    let transfer = AdminCommand::Transfer {
        to: vec![name(at)],
        within: Duration::from_secs(20),
    };
    // What the others know of its vote may predate the repair.
    eventually("the repaired node is given the mastership", || {
        group.master().administer(&transfer).is_ok()
    });
    eventually("it is master", || group.master_except(None) == at);
    write(group.node(at), "since");

    group.reopen(away).expect("opened");
    group.wait_ready();
    group.digest();
}

#[test]
fn members_of_a_group_that_one_node_formed_know_each_other_when_they_are_damaged() {
    let mut group = Group::in_memory(1, NUMBERS);
    write(group.master(), "alone");
    for at in [1, 2] {
        assert_eq!(group.join(NodeType::Electable), at);
        group.wait_ready();
        eventually("it has its vote", || votes(&group, at));
    }
    write(group.master(), "before");
    // The founder knew nobody then, and the second did not know the third.
    for at in [0, 1] {
        group.wait_persisted();
        eventually("all are noted", || {
            let noted = group.storages[at].disk().bytes(Path::new("/data/members"));
            noted.is_some_and(|noted| noted.windows(2).any(|bytes| bytes == b"n3"))
        });
        group.close(at);
        flip_in_the_middle(&group, at);
        repaired(&mut group, at);
        for closed in 0..3 {
            if group.nodes[closed].is_none() {
                group.reopen(closed).expect("opened");
            }
        }
        group.wait_ready();
        group.digest();
    }
}

#[test]
fn two_of_three_that_are_damaged_stay_out_and_nothing_is_lost() {
    let (mut group, at) = closed(NUMBERS);
    let other = (0..3).find(|other| *other != at && *other != group.master_except(None));
    let other = other.expect("three");
    group.close(other);
    let third = 3 - at - other;
    group.close(third);
    let before = segments(&group, at);
    for damaged in [at, other] {
        flip_in_the_middle(&group, damaged);
        group.reopen(damaged).expect("it opens, and waits");
    }
    group.reopen(third).expect("opened");
    stays("nobody is master", || {
        let mut states = group.open_nodes().map(|node| node.state().role);
        states.all(|role| role != steadfast::Role::Master)
    });
    let status = group.node(at).status();
    let waiting_for = status.waiting_for;
    assert!(waiting_for.contains("its data is damaged"), "{waiting_for}");
    let damage = status.damage.expect("it knows");
    assert!(waiting_for.contains(&damage), "{waiting_for}: {damage}");
    assert_eq!(segments(&group, at), before, "nothing is touched");
    // What is left can be read, and recovered from.
    let read = get(group.node(third), ConsistencyPolicy::Eventual, "before0");
    assert_eq!(read.expect("read"), Some(vec![0; 4096]));
    group.close(third);
    let directories = [group.storages[third].dir().to_owned()];
    let machine = group.machine(third);
    let planned = quorum_loss::plan(&machine, &directories, &[]);
    let plan = group
        .runtime
        .block_on(planned)
        .expect("no majority is there");
    assert!(plan.may_lose);
    let why: Vec<_> = plan.missing.iter().map(|missing| &missing.why).collect();
    assert_eq!(why.len(), 2, "{why:?}");
    assert!(why.iter().all(|why| why.contains("damaged")), "{why:?}");
}

#[test]
fn a_node_that_may_not_repair_itself_does_not_open() {
    let (mut group, at) = closed(NUMBERS);
    flip_in_the_middle(&group, at);
    group.repair = Repair::Never;
    let error = group.reopen(at).expect_err("it is damaged").to_string();
    assert!(error.contains("is corrupt at byte"), "{error}");
}
