//! A node copies a peer's state, and its power is cut at every step of that. Also the purging that
//! makes copies necessary, including after a failed log read.

use std::path::Path;
use std::time::Duration;

use steadfast::log::Disk;
use steadfast::{CommitToken, ConsistencyPolicy, ReadyError};

use crate::paused;
use crate::world::World;

const KIB: u64 = 1024;

/// Logs that are purged continually and retained for nobody.
const SMALL: &[(&str, u64)] = &[
    ("log_segment_bytes", 64 * KIB),
    ("log_keep_bytes", 64 * KIB),
    ("log_retain_bytes_max", 64 * KIB),
    ("log_retain_ms_max", 100),
];

/// The same, with every requested entry read from its segment.
const UNCACHED: &[(&str, u64)] = &[
    ("log_segment_bytes", 64 * KIB),
    ("log_keep_bytes", 64 * KIB),
    ("log_retain_bytes_max", 64 * KIB),
    ("log_retain_ms_max", 100),
    ("log_cache_bytes_max", 0),
];

/// One in this many reads fails: more than one look at what can be purged takes.
const READS: u64 = 12;

/// I/O steps at which the power is cut: more than a copy takes outside the engine.
const STEPS: u64 = 20;

async fn write_kib(world: &World, at: usize, kib: u64) -> Vec<CommitToken> {
    let mut tokens = Vec::new();
    for n in 0..kib / 8 {
        let value = vec![b'x'; 8 * 1024];
        let put = world.hosts[at]
            .env()
            .write_async(|txn| txn.database("keys")?.put(format!("large{}", n % 7), &value));
        tokens.push(put.await.expect("two of three are there"));
    }
    tokens
}

/// Keeps the node at `at` down until what it lacks is in no log.
async fn leave_behind(world: &mut World, at: usize) {
    world.close(at).await;
    let master = world.master().await;
    for _ in 0..4 {
        let _tokens = write_kib(world, master, 160).await;
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
}

#[test]
fn a_log_that_could_not_be_read_once_is_purged_nevertheless() {
    paused().block_on(async {
        for reads in 0..READS {
            let world = World::tuned(1, 12, UNCACHED).await;
            let disk = &world.hosts[0].disk;
            let oldest = || {
                disk.list(Path::new("/data/log"))
                    .expect("a log")
                    .into_iter()
                    .min()
            };
            let _tokens = write_kib(&world, world.master().await, 320).await;
            let before = oldest();
            disk.fail_read_after(reads);
            tokio::time::sleep(Duration::from_secs(5)).await;
            assert_ne!(oldest(), before, "when read {reads} failed");
        }
    });
}

async fn wait_same(world: &World) {
    let same = async {
        loop {
            let digests = world.hosts.iter().map(|host| host.env().digest());
            let digests: Vec<_> = digests.flatten().collect();
            if digests.len() == 3 && digests.windows(2).all(|pair| pair[0] == pair[1]) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_mins(1), same).await;
    waited.expect("all nodes hold the same");
}

#[test]
fn a_copy_of_the_state_has_the_times_to_live_and_its_node_goes_on_with_them() {
    paused().block_on(async {
        let mut world = World::tuned(3, 14, SMALL).await;
        let master = world.master().await;
        let behind = (master + 1) % 3;
        let hour = Duration::from_hours(1);
        for (key, ttl) in [("long", hour), ("short", Duration::from_mins(1))] {
            let keys = world.hosts[master].env().database("keys");
            let put = keys.put_with_ttl_async(key, "v", ttl).await;
            let _token = put.expect("committed");
        }
        leave_behind(&mut world, behind).await;
        world.restart(behind).await;
        while world.hosts[behind].env().status().restore.is_none() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        wait_same(&world).await;
        // The others are not there to know better.
        for at in [master, (master + 2) % 3] {
            world.cut_power(at).await;
        }
        world.restart((master + 2) % 3).await;
        let new = world.master().await;
        for key in ["long", "short"] {
            let read = world.hosts[behind]
                .env()
                .read_async(ConsistencyPolicy::Eventual, |s| {
                    s.database("keys")?.expires_in(key)
                });
            let left = read.await.expect("read").expect("a time to live");
            assert!(left <= hour, "{left:?}");
        }
        let node = world.hosts[new].env();
        while world
            .has(new, ConsistencyPolicy::Linearizable, "short")
            .await
            .expect("read")
        {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert!(node.status().damage.is_none());
    });
}

#[test]
fn a_power_cut_at_any_step_of_a_copy_leaves_a_node_that_comes_back() {
    paused().block_on(async {
        let mut world = World::tuned(3, 11, SMALL).await;
        world.write("first").await;
        let master = world.master().await;
        let behind = (master + 1) % 3;
        let mut cut = 0;
        for steps in 0..STEPS {
            leave_behind(&mut world, behind).await;
            world.restart(behind).await;
            // Counted from the start of the copy: opening takes steps of its own.
            let env = world.hosts[behind].env().clone();
            while env.status().restore.is_none() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            world.hosts[behind].disk.fail_after(steps);
            for _ in 0..100 {
                if matches!(
                    env.wait_ready_async(Duration::ZERO).await,
                    Err(ReadyError::Stopped { .. })
                ) {
                    cut += 1;
                    break;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            drop(env);
            world.cut_power(behind).await;
            world.restart(behind).await;
            wait_same(&world).await;
        }
        assert!(cut > 5, "{cut} of {STEPS} steps hit the copy");
        world.check().await;
    });
}

/// The copy is paused by the rate limit when the two other nodes go, and the one that comes back no
/// longer knows that its last entry is committed: only a third vote could tell.
#[test]
fn a_partial_copy_that_nobody_can_complete_is_begun_anew() {
    const SLOW: &[(&str, u64)] = &[
        ("log_segment_bytes", 64 * KIB),
        ("log_keep_bytes", 64 * KIB),
        ("log_retain_bytes_max", 64 * KIB),
        ("log_retain_ms_max", 100),
        ("restore_bytes_per_s_max", 64 * KIB),
        ("flush_interval_ms", 1000),
    ];
    paused().block_on(async {
        let mut world = World::tuned(3, 13, SLOW).await;
        world.write("first").await;
        let master = world.master().await;
        let (behind, source) = ((master + 1) % 3, (master + 2) % 3);
        leave_behind(&mut world, behind).await;
        // The engine of the source takes the first of them only.
        world.write("flushed").await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        world.write("last").await;
        world.restart(behind).await;
        let status = || world.hosts[behind].env().status();
        while status().restore.is_none_or(|copy| copy.bytes < 56 * KIB) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        world.cut_power(master).await;
        world.cut_power(source).await;
        world.restart(source).await;
        let waited = tokio::time::timeout(Duration::from_mins(1), world.write("second"));
        waited.await.expect("two of three are there");
        world.restart(master).await;
        wait_same(&world).await;
        world.check().await;
    });
}
