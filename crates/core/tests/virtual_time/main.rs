//! Three whole nodes in one thread, on in-memory disks, engines and network, under paused time.
//!
//! The same seed gives the same history, through crashes of the master. Each run of that test has
//! its own process, because some of the randomness below us has per-process state: the child prints
//! its story, and the parent compares two of them.

mod durability;
mod health;
mod lifetimes;
mod membership;
mod policies;
mod recovery;
mod restore;
mod world;

use std::process::Command;
use std::time::Duration;

use steadfast::{ReadyError, Role};
use tokio::runtime::RngSeed;
use world::World;

const SEED_VARIABLE: &str = "STEADFAST_DETERMINISM_SEED";
const CRASHES: usize = 4;
const WRITES_BETWEEN_CRASHES: usize = 40;

async fn run(seed: u64) -> String {
    let mut world = World::new(seed).await;
    for round in 0..CRASHES {
        for n in 0..WRITES_BETWEEN_CRASHES {
            world.write(&format!("{round}-{n}")).await;
        }
        world.crash_master(round).await;
    }
    world.write("last").await;
    world.check().await;
    world.story
}

fn paused() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder
        .enable_time()
        .start_paused(true)
        // Decides which of several waiters on a tokio channel is woken first.
        .rng_seed(RngSeed::from_bytes(b"virtual time"))
        .build()
        .expect("a runtime")
}

#[test]
fn a_master_that_lost_what_it_had_not_synced_does_not_write_over_it() {
    paused().block_on(async {
        let mut world = World::new(7).await;
        world.write("first").await;
        let master = world.master().await;
        // The replicas commit without the master's disk, as a majority may.
        world.hosts[master].disk.hold_syncs(true);
        world.write("only on the replicas' disks").await;
        assert_eq!(world.acknowledged.len(), 2, "{}", world.story);
        world.cut_power(master).await;
        // Back before anyone has missed it.
        world.restart(master).await;
        world.write("after").await;
        world.check().await;
    });
}

/// Kills and pauses of tests and of the simulator rest on this.
#[test]
fn nothing_of_a_node_outlives_the_process_that_opened_it() {
    paused().block_on(async {
        let mut world = World::new(8).await;
        world.write("first").await;
        let master = world.master().await;
        let address = format!("{}:7400", world.hosts[master].name);
        let probe = world.network.host("probe");
        assert!(probe.connect(&address).await.is_ok());
        // Its disk and its handle stay: only its tasks end.
        world.hosts[master].process.kill();
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert!(probe.connect(&address).await.is_err(), "it still listens");
        world.kill(master).await;
        world.write("after").await;
        assert_eq!(world.acknowledged.len(), 2, "{}", world.story);
    });
}

/// Longer than a replica takes to notice that it has no master.
const SILENCE: Duration = Duration::from_secs(5);

#[test]
fn a_replica_that_hears_no_master_says_so_until_there_is_one_again() {
    paused().block_on(async {
        let mut world = World::new(11).await;
        let master = world.master().await;
        for host in &world.hosts {
            host.env().wait_ready_async(SILENCE).await.expect("ready");
        }
        let (left, other) = ((master + 1) % 3, (master + 2) % 3);
        let mut states = world.hosts[left].env().state_changes();
        let first = states.next_async().await.expect("a state");
        assert_eq!(first.role, Role::Replica);
        for gone in [master, other] {
            let closed = world.hosts[gone].env().close_async().await;
            closed.expect("closed");
        }
        let lost = tokio::time::timeout(SILENCE, states.next_async()).await;
        let lost = lost.expect("an event").expect("a state");
        assert_eq!((lost.role, lost.master), (Role::Unknown, None));
        let node = world.hosts[left].env();
        assert_eq!(node.state().role, Role::Unknown);
        assert!(node.status().waiting_for.contains("a master"));
        let ready = node.wait_ready_async(SILENCE).await;
        assert!(
            matches!(ready, Err(ReadyError::Timeout { .. })),
            "{ready:?}"
        );
        world.restart(other).await;
        let node = world.hosts[left].env();
        let ready = node.wait_ready_async(SILENCE).await;
        ready.expect("there is a majority again");
        world.restart(master).await;
        world.write("after").await;
        world.check().await;
    });
}

#[test]
fn a_node_that_restarts_alone_follows_no_master_that_it_has_not_heard() {
    paused().block_on(async {
        let mut world = World::new(12).await;
        world.write("first").await;
        let left = (world.master().await + 1) % 3;
        for host in &world.hosts {
            host.env().close_async().await.expect("closed");
        }
        world.restart(left).await;
        let ready = world.hosts[left].env().wait_ready_async(SILENCE).await;
        assert!(
            matches!(ready, Err(ReadyError::Timeout { .. })),
            "{ready:?}"
        );
    });
}

#[test]
fn the_roles_in_an_idle_group_do_not_change() {
    paused().block_on(async {
        let mut world = World::new(13).await;
        world.write("first").await;
        for host in &world.hosts {
            host.env().wait_ready_async(SILENCE).await.expect("ready");
        }
        let mut changes = Vec::new();
        for host in &world.hosts {
            let mut states = host.env().state_changes();
            states.next_async().await.expect("the present state");
            changes.push(async move { states.next_async().await });
        }
        let any = futures_util::future::select_all(changes.into_iter().map(Box::pin));
        let changed = tokio::time::timeout(Duration::from_mins(1), any).await;
        assert!(changed.is_err(), "a role has changed");
        world.check().await;
    });
}

#[test]
fn child() {
    let Ok(seed) = std::env::var(SEED_VARIABLE) else {
        return;
    };
    println!("{}", paused().block_on(run(seed.parse().expect("a seed"))));
}

fn story(seed: u64) -> String {
    let this = std::env::current_exe().expect("this program has a path");
    let output = Command::new(this)
        .args(["child", "--exact", "--nocapture"])
        .env(SEED_VARIABLE, seed.to_string())
        .output()
        .expect("this program can run itself");
    let story = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "seed {seed}:\n{story}\n{errors}");
    // The test harness ends with a duration, which is real time.
    story
        .lines()
        .filter(|line| !line.starts_with("test result"))
        .collect::<Vec<_>>()
        .join("\n")
}

#[test]
fn the_same_seed_gives_the_same_history_through_crashes_of_the_master() {
    let stories: Vec<_> = [1, 2, 3].map(|seed| (story(seed), story(seed))).into();
    for (first, second) in &stories {
        assert_eq!(first, second);
        assert!(first.matches(" is back").count() == CRASHES, "{first}");
    }
    assert_ne!(stories[0].0, stories[1].0, "seeds make a difference");
}
