//! What each durability survives: the table in docs/durability.md, line by line.

use std::path::Path;
use std::time::Duration;

use steadfast::{
    ConsistencyPolicy, Durability, Outcome, ReadError, ReplicaAckPolicy, SyncPolicy, TokenOutcome,
    WriteError,
};

use crate::paused;
use crate::world::World;

const LINEARIZABLE: ConsistencyPolicy = ConsistencyPolicy::Linearizable;
/// The master hands the write to its system and waits for nobody.
const WRITTEN: Durability = Durability::new(SyncPolicy::WriteNoSync, ReplicaAckPolicy::None);
/// Longer than a lease and the election after it.
const FAILOVER: Duration = Duration::from_secs(2);
const IMPATIENT: Duration = Duration::from_millis(300);

#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    Kill,
    PowerCut,
}

async fn end(world: &mut World, at: usize, end: End) {
    match end {
        End::Kill => world.kill(at).await,
        End::PowerCut => world.cut_power(at).await,
    }
}

/// The only node is master again after any restart: nobody else could have taken over.
async fn comes_back(durability: Durability, how: End, is_stuck: bool) -> bool {
    let mut world = World::of(1, 21).await;
    world.write("before").await;
    if is_stuck {
        world.hosts[0].disk.hold_syncs(true);
        // Its sync holds up the batch of the next write.
        let _token = world.put(0, WRITTEN, "first").await.expect("written");
    }
    let acknowledged = world.put(0, durability.within(IMPATIENT), "key").await;
    let _token = acknowledged.expect("the master's own disk is enough");
    end(&mut world, 0, how).await;
    world.restart(0).await;
    world.master().await;
    let has = world.has(0, LINEARIZABLE, "before").await;
    assert!(has.expect("read"));
    world.has(0, LINEARIZABLE, "key").await.expect("read")
}

#[test]
fn a_local_write_is_there_when_its_master_comes_back() {
    paused().block_on(async {
        for how in [End::Kill, End::PowerCut] {
            assert!(comes_back(Durability::LOCAL, how, false).await, "{how:?}");
        }
    });
}

#[test]
fn a_written_write_survives_the_process_and_no_power_cut() {
    paused().block_on(async {
        assert!(comes_back(WRITTEN, End::Kill, false).await);
        let mut world = World::of(1, 22).await;
        world.write("before").await;
        world.hosts[0].disk.hold_syncs(true);
        let _token = world.put(0, WRITTEN, "key").await.expect("written");
        world.cut_power(0).await;
        world.restart(0).await;
        world.master().await;
        assert!(!world.has(0, LINEARIZABLE, "key").await.expect("read"));
    });
}

#[test]
fn a_write_without_any_durability_is_lost_with_the_process() {
    paused().block_on(async {
        assert!(!comes_back(Durability::NONE, End::Kill, true).await);
        assert!(!comes_back(Durability::NONE, End::PowerCut, true).await);
    });
}

#[test]
fn a_local_write_waits_for_its_own_disk() {
    paused().block_on(async {
        let world = World::of(1, 23).await;
        world.master().await;
        world.hosts[0].disk.hold_syncs(true);
        let local = Durability::LOCAL.within(IMPATIENT);
        match world.put(0, local, "key").await {
            Err(
                error @ WriteError::InsufficientAcks {
                    needed: 1,
                    acked: 0,
                    ..
                },
            ) => {
                assert!(matches!(error.outcome(), Outcome::Unknown(_)), "{error}");
            }
            other => panic!("{other:?}"),
        }
        world.hosts[0].disk.hold_syncs(false);
    });
}

#[test]
fn a_write_of_a_majority_survives_the_loss_of_the_master_in_any_way() {
    paused().block_on(async {
        for how in [End::Kill, End::PowerCut] {
            for comes_back in [true, false] {
                let mut world = World::new(24).await;
                let old = world.master().await;
                // Not even on the master's own disk.
                world.hosts[old].disk.hold_syncs(true);
                let _token = world
                    .put(old, Durability::MAJORITY, "key")
                    .await
                    .expect("committed");
                end(&mut world, old, how).await;
                if comes_back {
                    world.restart(old).await;
                }
                let new = world.master().await;
                assert!(world.has(new, LINEARIZABLE, "key").await.expect("read"));
            }
        }
    });
}

#[test]
fn a_write_of_a_majority_survives_a_power_cut_of_all() {
    paused().block_on(async {
        let mut world = World::new(25).await;
        let old = world.master().await;
        let _token = world
            .put(old, Durability::MAJORITY, "key")
            .await
            .expect("committed");
        for at in 0..3 {
            world.cut_power(at).await;
        }
        for at in 0..3 {
            world.restart(at).await;
        }
        let new = world.master().await;
        assert!(world.has(new, LINEARIZABLE, "key").await.expect("read"));
    });
}

/// Whether these bytes on the node's disk would survive a power cut.
fn is_durable(world: &World, at: usize, key: &str) -> bool {
    let disk = &world.hosts[at].disk;
    disk.crash();
    let log = disk.bytes(Path::new("/data/log/0000000001.log"));
    let log = log.expect("a log has a first segment");
    log.windows(key.len()).any(|bytes| bytes == key.as_bytes())
}

#[test]
fn a_write_of_all_is_on_every_disk_and_one_of_a_majority_on_two() {
    paused().block_on(async {
        for (durability, disks) in [(Durability::ALL, 3), (Durability::MAJORITY, 2)] {
            let world = World::new(26).await;
            let master = world.master().await;
            // Followers that have been heard can acknowledge.
            let _token = world
                .put(master, Durability::MAJORITY, "warm")
                .await
                .expect("committed");
            tokio::time::sleep(FAILOVER).await;
            let slow = (master + 1) % 3;
            if durability == Durability::MAJORITY {
                world.hosts[slow].disk.hold_syncs(true);
            }
            let _token = world
                .put(master, durability, "every-disk")
                .await
                .expect("acknowledged");
            let durable = (0..3).filter(|at| is_durable(&world, *at, "every-disk"));
            assert_eq!(durable.count(), disks, "{durability}");
        }
    });
}

#[test]
fn a_write_of_all_that_lacks_a_disk_is_committed_and_says_so() {
    paused().block_on(async {
        let world = World::new(27).await;
        let master = world.master().await;
        let _token = world
            .put(master, Durability::ALL, "all")
            .await
            .expect("acknowledged");
        world.hosts[(master + 1) % 3].disk.hold_syncs(true);
        let token = match world
            .put(master, Durability::ALL.within(IMPATIENT), "two")
            .await
        {
            Err(
                error @ WriteError::InsufficientAcks {
                    token,
                    needed: 3,
                    acked: 2,
                    ..
                },
            ) => {
                assert_eq!(error.outcome(), Outcome::Committed(token));
                token
            }
            other => panic!("{other:?}"),
        };
        let outcome = world.hosts[master].env().outcome_async(token).await;
        assert_eq!(outcome.expect("read"), TokenOutcome::Committed);
        let own = (master + 1) % 3;
        world.hosts[own].disk.hold_syncs(false);
        world.hosts[master].disk.hold_syncs(true);
        let synced = Durability::new(SyncPolicy::Sync, ReplicaAckPolicy::SimpleMajority);
        match world
            .put(master, synced.within(IMPATIENT), "not mine")
            .await
        {
            Err(WriteError::InsufficientAcks {
                needed: 2,
                acked: 2,
                lacks_own_disk: true,
                is_committed: true,
                ..
            }) => {}
            other => panic!("{other:?}"),
        }
    });
}

#[test]
fn a_write_that_cannot_be_acknowledged_is_not_begun() {
    paused().block_on(async {
        let world = World::new(28).await;
        let master = world.master().await;
        let _token = world
            .put(master, Durability::ALL, "all")
            .await
            .expect("acknowledged");
        world.network.isolate(&world.hosts[(master + 1) % 3].name);
        tokio::time::sleep(FAILOVER).await;
        let asked = tokio::time::Instant::now();
        match world.put(master, Durability::ALL, "key").await {
            Err(
                error @ WriteError::InsufficientReplicas {
                    needed: 3,
                    available: 2,
                },
            ) => {
                assert_eq!(error.outcome(), Outcome::NotCommitted);
                assert!(error.is_retryable());
            }
            other => panic!("{other:?}"),
        }
        let _token = world
            .put(master, Durability::MAJORITY, "key")
            .await
            .expect("committed");
        world.network.isolate(&world.hosts[(master + 2) % 3].name);
        tokio::time::sleep(FAILOVER).await;
        let refused = world.put(master, Durability::MAJORITY, "key").await;
        assert!(
            matches!(
                refused,
                Err(WriteError::InsufficientReplicas {
                    needed: 2,
                    available: 1
                })
            ),
            "{refused:?}"
        );
        assert!(asked.elapsed() < FAILOVER * 2, "refused at once");
    });
}

#[test]
fn what_a_master_alone_acknowledged_is_rolled_back_at_a_failover_and_its_token_says_so() {
    paused().block_on(async {
        for durability in [Durability::LOCAL, Durability::NONE] {
            let mut world = World::new(29).await;
            world.write("before").await;
            let old = world.master().await;
            world.network.isolate(&world.hosts[old].name);
            let token = world
                .put(old, durability, "lost")
                .await
                .expect("it is still master");
            let seen = world.has(old, ConsistencyPolicy::Eventual, "lost").await;
            assert!(!seen.expect("read"), "nobody sees what is not committed");
            let own = world.hosts[old].env().outcome_async(token).await;
            assert_eq!(own.expect("read"), TokenOutcome::StillUnknown);
            tokio::time::sleep(FAILOVER).await;
            let new = (0..3).find(|at| *at != old && is_master(&world, *at));
            let new = new.expect("the others have elected one");
            let won = world
                .put(new, Durability::MAJORITY, "won")
                .await
                .expect("committed");
            assert_eq!(won.vlsn, token.vlsn, "the number is given again");
            world.network.heal(&world.hosts[old].name);
            for at in [old, new] {
                let env = world.hosts[at].env();
                let outcome = env.outcome_async(token).await.expect("known");
                assert_eq!(outcome, TokenOutcome::NotCommitted);
                assert!(!world.has(at, LINEARIZABLE, "lost").await.expect("read"));
                let read = world
                    .has(at, ConsistencyPolicy::AtLeast(token), "lost")
                    .await;
                assert!(
                    matches!(read, Err(ReadError::RolledBack { .. })),
                    "{read:?}"
                );
            }
            world.cut_power(old).await;
            world.restart(old).await;
            let read = world.hosts[old].env().outcome_async(token).await;
            assert_eq!(read.expect("known"), TokenOutcome::NotCommitted);
        }
    });
}

fn is_master(world: &World, at: usize) -> bool {
    world.hosts[at].env().state().role == steadfast::Role::Master
}
