//! Keys with a time to live among many threads, and in the real engine.

use std::time::Duration;

use steadfast::{ConsistencyPolicy, WriteError};

use crate::support::{Env, Group, STEADY, eventually};

const LINEARIZABLE: ConsistencyPolicy = ConsistencyPolicy::Linearizable;
/// Several chunks of those that the master deletes at once.
const KEYS: u32 = 3_000;
const THREADS: u32 = 4;
const ROUNDS: usize = 3;

fn is_there(node: &Env, key: &[u8]) -> bool {
    let keys = node.database("keys");
    keys.get(LINEARIZABLE, key).expect("read").is_some()
}

fn left(node: &Env, key: &str) -> Option<Duration> {
    let read = node.read(LINEARIZABLE, |s| s.database("keys")?.expires_in(key));
    read.expect("read")
}

#[test]
fn a_put_that_races_with_the_end_of_many_keys_is_never_lost() {
    let group = Group::in_memory(1, STEADY);
    let node = group.master();
    for _ in 0..ROUNDS {
        let put = node.write(|txn| {
            let keys = txn.database("keys")?;
            let ttl = Duration::from_millis(300);
            (0..KEYS).try_for_each(|n| keys.put_with_ttl(n.to_be_bytes(), "short", ttl))?;
            Ok::<_, WriteError>(())
        });
        let _token = put.expect("committed");
        eventually("the first key ends", || {
            !is_there(node, &0_u32.to_be_bytes())
        });
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                scope.spawn(move || {
                    let keys = node.database("keys");
                    // Towards the chunks that are deleted meanwhile.
                    for n in (0..KEYS).rev().filter(|n| n % THREADS == thread) {
                        let _token = keys.put(n.to_be_bytes(), "lasts").expect("committed");
                    }
                });
            }
        });
        // It ends behind all of them.
        let keys = node.database("keys");
        let last = keys.put_with_ttl("last", "", Duration::from_millis(1));
        let _token = last.expect("committed");
        eventually("the last key ends", || !is_there(node, b"last"));
        let there = node.read(LINEARIZABLE, |s| Ok(s.database("keys")?.iter().count()));
        assert_eq!(there.expect("read"), KEYS as usize);
    }
}

#[test]
fn times_to_live_are_in_the_real_engine_and_go_on_after_a_restart() {
    let mut group = Group::on_disk(1, STEADY);
    let hour = Duration::from_hours(1);
    for (key, ttl) in [("long", hour), ("short", Duration::from_secs(2))] {
        let put = group.master().database("keys").put_with_ttl(key, "", ttl);
        let _token = put.expect("committed");
    }
    let before = left(group.master(), "long").expect("a time to live");
    group.close(0);
    group.reopen(0).expect("opened");
    group.wait_ready();
    let after = left(group.master(), "long").expect("a time to live");
    assert!(after <= before && before <= hour + Duration::from_millis(1));
    eventually("the short one ends", || !is_there(group.master(), b"short"));
    assert!(is_there(group.master(), b"long"));
}
