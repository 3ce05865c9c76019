//! Full disks: the group goes on where there is room, says where there is none, loses nothing and
//! recovers by itself.

use std::time::Duration;

use steadfast::{
    AdminCommand, AdminError, ConsistencyPolicy, Outcome, ReadError, Role, WriteError,
};

use crate::support::{Group, Numbers, eventually, get, name, put, stays};

const LIMITS: Numbers = &[
    ("disk_free_warn_bytes", 200 << 20),
    ("disk_free_read_only_bytes", 100 << 20),
];
const LOW: u64 = 150 << 20;
const FULL: u64 = 50 << 20;
const ENOUGH: u64 = 1 << 40;

fn set_free(group: &Group, at: usize, bytes: u64) {
    group.storages[at].disk().set_free_bytes(bytes);
}

fn is_read_only(group: &Group, at: usize) -> bool {
    group.node(at).status().read_only.is_some()
}

#[test]
fn a_master_that_runs_out_of_room_hands_over_and_is_not_chosen_until_it_has_room() {
    let mut group = Group::in_memory(3, LIMITS);
    let old = group.master_except(None);
    set_free(&group, old, LOW);
    eventually("a warning", || group.node(old).status().disk_is_low);
    assert!(!is_read_only(&group, old));
    assert!(put(group.node(old), "low", b"v").is_ok());

    set_free(&group, old, FULL);
    let new = group.master_except(Some(old));
    eventually("the old master is read-only", || is_read_only(&group, old));
    let back = AdminCommand::Transfer {
        to: vec![name(old)],
        within: Duration::from_secs(1),
    };
    let refused = group.node(new).administer(&back);
    assert!(
        matches!(refused, Err(AdminError::Refused { .. })),
        "{refused:?}"
    );
    // The full node goes on to append: without it, one more failure would stop the group.
    let other = 3 - old - new;
    group.network.isolate(&name(other));
    let _token = put(group.node(new), "k", b"v").expect("the full node acknowledges");
    group.network.heal(&name(other));
    group.wait_persisted();
    group.close(new);
    assert_eq!(group.master_except(Some(old)), other, "the one with room");
    group.reopen(new).expect("opened");

    set_free(&group, old, ENOUGH);
    eventually("room again", || !is_read_only(&group, old));
    group.digest();
}

#[test]
fn a_group_without_room_refuses_writes_by_name_answers_reads_and_comes_back_by_itself() {
    let group = Group::in_memory(3, LIMITS);
    let _token = put(group.master(), "before", b"v").expect("committed");
    (0..3).for_each(|at| set_free(&group, at, FULL));
    let mut refused = None;
    eventually("a refusal", || {
        refused = put(group.master(), "early", b"v").err();
        matches!(refused, Some(WriteError::DiskFull { .. }))
    });
    let refused = refused.expect("refused");
    assert!(refused.is_retryable());
    assert_eq!(refused.outcome(), Outcome::NotCommitted);
    assert!(
        refused.to_string().contains("nothing acknowledged is lost"),
        "{refused}"
    );
    let again = put(group.master(), "refused", b"v");
    assert!(matches!(again, Err(WriteError::DiskFull { .. })));
    let begun = group.master().begin_transaction();
    assert!(matches!(begun, Err(WriteError::DiskFull { .. })));
    let health = group.master().health();
    assert!(health.is_live() && health.is_ready(), "{health:?}");
    assert!(!health.can_write, "{health:?}");
    let why = health.read_only.expect("why");
    assert!(why.contains("disk_free_read_only_bytes"), "{why}");
    stays("a master", || {
        group
            .open_nodes()
            .any(|node| node.state().role == Role::Master)
    });
    for node in group.open_nodes() {
        let read = |key| get(node, ConsistencyPolicy::Linearizable, key).expect("read");
        assert_eq!(read("before").as_deref(), Some(&b"v"[..]));
        assert_eq!(read("refused"), None);
    }
    (0..3).for_each(|at| set_free(&group, at, ENOUGH));
    eventually("writes again", || {
        put(group.master(), "after", b"v").is_ok()
    });
    eventually("it says so", || group.master().can_write());
}

#[test]
fn a_full_node_that_alone_has_what_was_acknowledged_leads_until_another_has_it_too() {
    let mut group = Group::in_memory(3, LIMITS);
    let old = group.master_except(None);
    let (full, behind) = ((old + 1) % 3, (old + 2) % 3);
    set_free(&group, full, FULL);
    eventually("read-only", || is_read_only(&group, full));
    group.network.isolate(&name(behind));
    let _token = put(group.node(old), "k", b"v").expect("committed by two");
    group.close(old);
    group.network.heal(&name(behind));
    eventually("the one with room leads in the end", || {
        group.node(behind).state().role == Role::Master
    });
    let read = get(group.node(behind), ConsistencyPolicy::Linearizable, "k");
    assert_eq!(read.expect("read").as_deref(), Some(&b"v"[..]));
    eventually("it takes writes", || {
        put(group.node(behind), "l", b"v").is_ok()
    });
}

#[test]
fn a_node_that_stopped_on_a_full_disk_opens_again_with_all_that_was_acknowledged() {
    let mut group = Group::in_memory(1, &[("log_segment_bytes", 64 << 10)]);
    let _token = put(group.master(), "before", b"v").expect("committed");
    group.storages[0].disk().set_full(true);
    let mut acknowledged = 0_u32;
    eventually("a write that does not fit", || {
        let written = put(group.node(0), acknowledged.to_le_bytes(), vec![7; 20 << 10]);
        acknowledged += u32::from(written.is_ok());
        matches!(written, Err(WriteError::Stopped { .. }))
    });
    assert!(is_read_only(&group, 0), "it says why");
    group.storages[0].disk().set_full(false);
    group.close_failed(0);
    group.reopen(0).expect("opened");
    let rows = group.master().read(ConsistencyPolicy::Linearizable, |s| {
        Ok::<_, ReadError>(s.database("d")?.iter().count())
    });
    assert!(rows.expect("read") > acknowledged as usize);
}
