//! Health: a master that has lost its majority shows it everywhere within an election timeout.

use std::time::Duration;

use steadfast::{
    GroupEvent, GroupEvents, GroupHealth, NodePhase, ReadyError, ReplicatedEnvironment, Role,
};

use crate::paused;
use crate::world::World;

/// The default of `election_timeout_max_ms`.
const ELECTION_TIMEOUT: Duration = Duration::from_millis(300);

/// For the message about what has happened, and the step of the paused clock.
const MARGIN: Duration = Duration::from_millis(5);

/// No write waits for its end.
const GENEROUS: &[(&str, u64)] = &[("commit_timeout_ms", 600_000)];

async fn until_health(events: &mut GroupEvents, wanted: &GroupHealth) {
    loop {
        let event = events.next_async().await.expect("the group is there");
        if event == GroupEvent::Health(wanted.clone()) {
            return;
        }
    }
}

/// What each interface says about whether this node is master: state, readiness, status, health.
async fn voices(env: &ReplicatedEnvironment) -> [bool; 6] {
    let (status, health) = (env.status(), env.health());
    [
        env.state().role == Role::Master,
        env.wait_ready_async(Duration::ZERO).await.is_ok(),
        status.waiting_for.is_empty(),
        status.role == Role::Master,
        env.can_write() && health.hears_majority == Some(true),
        health.is_ready() && health.waiting_for.is_none(),
    ]
}

#[test]
fn a_master_without_a_majority_says_so_everywhere_within_an_election_timeout_and_again_with_one() {
    paused().block_on(async {
        let mut world = World::tuned(3, 31, GENEROUS).await;
        world.write("before").await;
        let master = world.master().await;
        let env = world.hosts[master].env().clone();
        let mut events = env.group_events();
        let first = events.next_async().await.expect("the group is there");
        assert!(matches!(first, GroupEvent::Present(_)), "{first}");
        assert_eq!(voices(&env).await, [true; 6]);

        let others = [(master + 1) % 3, (master + 2) % 3].map(|at| world.hosts[at].name.clone());
        for other in &others {
            world.network.isolate(other);
        }
        let lost = until_health(&mut events, &GroupHealth::NoMaster);
        let told = tokio::time::timeout(ELECTION_TIMEOUT + MARGIN, lost).await;
        told.expect("the events say so within an election timeout");
        assert_eq!(voices(&env).await, [false; 6]);
        let health = env.health();
        assert_eq!(health.hears_majority, Some(false));
        assert!(health.heard_ms_ago >= Some(300), "{health:?}");
        assert!(health.is_live(), "a restart would not help");
        let timeout = env.wait_ready_async(Duration::ZERO).await;
        let Err(ReadyError::Timeout { waiting_for, .. }) = timeout else {
            panic!("{timeout:?}");
        };
        for other in &others {
            assert!(waiting_for.contains(other), "{waiting_for}");
        }

        for other in &others {
            world.network.heal(other);
        }
        let ready = env.wait_ready_async(Duration::from_mins(1)).await;
        ready.expect("there is a majority again");
        let health = async { until_health(&mut events, &GroupHealth::Healthy).await };
        let told = tokio::time::timeout(Duration::from_mins(1), health).await;
        told.expect("the events say so");
        let again = world.hosts[world.master().await].env();
        assert_eq!(voices(again).await, [true; 6]);
        world.write("after").await;
        world.check().await;
    });
}

#[test]
fn a_replica_that_is_cut_off_says_how_long_it_has_heard_nothing() {
    paused().block_on(async {
        let mut world = World::new(32).await;
        world.write("before").await;
        let replica = (world.master().await + 1) % 3;
        let env = world.hosts[replica].env().clone();
        env.wait_ready_async(Duration::from_mins(1))
            .await
            .expect("ready");
        let health = env.health();
        assert_eq!((health.role, health.can_write), (Role::Replica, false));
        assert_eq!(health.hears_majority, None, "it cannot tell");
        assert_eq!(env.status().phase, Some(NodePhase::Running));
        assert!(health.heard_ms_ago < Some(300), "{health:?}");
        world.network.isolate(&world.hosts[replica].name);
        tokio::time::sleep(Duration::from_secs(10)).await;
        let health = env.health();
        let heard = health.heard_ms_ago.expect("it heard one before");
        assert!((9_900..10_100).contains(&heard), "{heard}");
        assert!(health.is_live() && !health.is_ready(), "{health:?}");
        env.close_async().await.expect("closed");
        let health = env.health();
        assert_eq!(health.phase, NodePhase::Closed);
        assert_eq!(env.status().phase, Some(health.phase));
        assert!(!health.is_live() && !health.is_ready(), "{health:?}");
    });
}
