//! What a crash leaves of a recovery, at each of its steps.

use std::path::Path;
use std::sync::Arc;

use steadfast_net::MemoryNetwork;

use super::*;
use crate::RepConfig;
use crate::engine::MemoryStore;
use crate::group::identity::{DataDir, Identity};
use crate::group::{Member, MemberRecord, MembershipRecord, VoterSet};
use crate::ids::{DatabaseId, Incarnation, LogPosition, Term};
use crate::log::{Disk, Entry, EntryKind, LogConfig, MemoryDisk, Vote};
use crate::machine::Threads;
use crate::node;
use crate::txn::batch::{BatchBuilder, Operation};

const DIR: &str = "/data";

fn machine(disk: &MemoryDisk, store: &MemoryStore) -> Machine {
    let network = MemoryNetwork::new();
    let machine = Machine::in_memory(&network, "n1").unwrap();
    Machine {
        disk: Arc::new(disk.clone()),
        engines: Arc::new(store.clone()),
        threads: Threads::Tasks,
        ..machine
    }
}

fn founders() -> Vec<(NodeId, Member)> {
    let member = |n: u64| Member {
        name: format!("n{n}"),
        address: format!("n{n}:7400"),
        incarnation: Incarnation(n),
        ..Member::default()
    };
    (1..=3).map(|n| (NodeId(n), member(n))).collect()
}

fn entry(position: u64, kind: EntryKind, payload: bytes::Bytes) -> Entry {
    Entry {
        term: Term(4),
        position: LogPosition(position),
        kind,
        payload,
    }
}

/// The directory of the first of three nodes, with `transactions` in its log.
async fn written(disk: &MemoryDisk, transactions: u64) {
    let machine = machine(disk, &MemoryStore::new());
    let founders = founders();
    let members = founders.iter();
    let membership = MembershipRecord {
        members: members
            .map(|(id, member)| MemberRecord::new(*id, member))
            .collect(),
        voters: vec![VoterSet { ids: vec![1, 2, 3] }],
        ..MembershipRecord::default()
    };
    let identity = Identity {
        group: Some(GroupUuid(uuid::Uuid::from_u128(9))),
        node_id: NodeId(1),
        founders,
        ..Identity::fresh("orders", "n1", Incarnation(1))
    };
    let dir = DataDir::open(disk, Path::new(DIR)).unwrap();
    let config = RepConfig::builder("orders", "n1")
        .data_dir(DIR)
        .listen("n1:7400")
        .set("log_segment_bytes", 128 * 1024)
        .build()
        .unwrap();
    node::create_log(&node::log_config(&config), &machine, &dir, &identity)
        .await
        .unwrap();
    dir.write_identity(disk, &identity).await.unwrap();
    let log = node::open_idle_log(&LogConfig::default(), &machine, &dir, &identity)
        .await
        .unwrap();
    log.save_vote(Vote {
        term: Term(4),
        node: NodeId(2),
        committed: true,
    })
    .await
    .unwrap();
    let mut entries = vec![entry(0, EntryKind::Membership, membership.encode_bytes())];
    for number in 1..=transactions {
        let mut batch = BatchBuilder::new(Vlsn(number));
        batch.push(&[Operation {
            database: DatabaseId(1),
            key: "key".into(),
            value: Some("value".into()),
            expires: false,
        }]);
        let payload = batch.finish(0).bytes().clone();
        entries.push(entry(number, EntryKind::Transactions, payload));
    }
    log.append(entries, Box::new(|_| {})).await.unwrap();
    log.close().await.unwrap();
}

async fn planned(disk: &MemoryDisk) -> Result<RecoveryPlan, RecoverError> {
    let machine = machine(disk, &MemoryStore::new());
    plan(&machine, &[DIR.into()], &[]).await
}

fn confirmation(plan: RecoveryPlan) -> String {
    match plan.next {
        NextStep::Apply { confirm, .. } => confirm,
        NextStep::Stop { .. } => panic!("nothing runs"),
    }
}

/// The entry that a recovery adds, and the identity, if the recovery took place.
async fn recovered(disk: &MemoryDisk) -> (Identity, Entry) {
    let machine = machine(disk, &MemoryStore::new());
    let dir = DataDir::open(disk, Path::new(DIR)).unwrap();
    let identity = dir.find_identity(disk).await.unwrap().unwrap();
    // Only an open, or another recovery, completes one that was begun.
    let identity = finish(&machine, &dir, identity).await.unwrap();
    let log = node::open_idle_log(&LogConfig::default(), &machine, &dir, &identity)
        .await
        .unwrap();
    let last = log.state().last.unwrap();
    let entries = log.read(last.position..LogPosition(u64::MAX), 1).await;
    log.close().await.unwrap();
    (identity, entries.unwrap().remove(0))
}

#[tokio::test(start_paused = true)]
async fn a_crash_at_any_step_leaves_the_old_group_or_the_new_one() {
    const CONFIRM: &str = "recover group orders from n1 with 7 VLSNs";
    let (mut kept_old, mut became_new) = (0, 0);
    for steps in 0.. {
        let disk = MemoryDisk::new();
        written(&disk, 7).await;
        let machine = machine(&disk, &MemoryStore::new());
        disk.fail_after(steps);
        let applied = apply(&machine, Path::new(DIR), CONFIRM).await;
        // Half of what waits for its sync survives.
        disk.crash_keeping(1, |_, offset| if offset % 1024 == 0 { 512 } else { 0 });
        match planned(&disk).await {
            Ok(plan) => {
                assert!(applied.is_err(), "step {steps}: it was said to be done");
                assert_eq!((plan.epoch, plan.voters.len()), (GroupEpoch::FIRST, 3));
                assert_eq!(confirmation(plan), CONFIRM, "step {steps}");
                kept_old += 1;
            }
            Err(RecoverError::NotNeeded { voters: 1, .. }) => {
                let (identity, entry) = recovered(&disk).await;
                assert_eq!((identity.epoch, identity.recovery), (GroupEpoch(2), None));
                assert_eq!(
                    entry.position,
                    LogPosition(8),
                    "once, after everything else"
                );
                assert_eq!(entry.kind, EntryKind::Membership);
                became_new += 1;
            }
            Err(error) => panic!("step {steps}: {error}"),
        }
        if applied.is_ok() {
            break;
        }
    }
    assert!(kept_old > 5 && became_new > 5, "{kept_old}, {became_new}");
}

#[tokio::test(start_paused = true)]
async fn a_copy_can_be_recovered_from_and_is_the_original_from_then_on() {
    let disk = MemoryDisk::new();
    written(&disk, 3).await;
    // Another file `origin` makes it a copy.
    let origin = Path::new(DIR).join("origin");
    disk.remove(&origin).unwrap();
    let machine = machine(&disk, &MemoryStore::new());
    let dir = DataDir::open(&disk, Path::new(DIR)).unwrap();
    let refused = dir.find_identity(&disk).await;
    assert!(matches!(refused, Err(OpenError::Copied { .. })));
    drop(dir);

    let plan = planned(&disk).await.unwrap();
    assert_eq!(plan.survivors[0].standing, Standing::Fenced);
    assert_eq!(plan.missing.len(), 3, "its original as well");
    apply(&machine, Path::new(DIR), &confirmation(plan))
        .await
        .unwrap();
    let (identity, entry) = recovered(&disk).await;
    assert_eq!(identity.epoch, GroupEpoch(2));
    assert!(entry.term > Term(4));
}

#[tokio::test(start_paused = true)]
async fn a_directory_that_is_none_or_is_in_use_is_named_and_left_alone() {
    let disk = MemoryDisk::new();
    let refused = planned(&disk).await;
    assert!(matches!(refused, Err(RecoverError::NoNode { .. })));
    assert!(!disk.exists(Path::new(DIR)).unwrap(), "none is made");
    written(&disk, 1).await;
    let running = DataDir::open(&disk, Path::new(DIR)).unwrap();
    let refused = planned(&disk).await;
    assert!(matches!(
        refused,
        Err(RecoverError::Open(OpenError::InUse { .. }))
    ));
    drop(running);
    planned(&disk).await.unwrap();
}
