//! Single operations and batches.

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use steadfast::{CompareAndSet, ConsistencyPolicy, ReadError, WriteBatch, WriteError};

use crate::support::{Group, Release, STEADY, number};
use crate::transactions::value;

const LINEARIZABLE: ConsistencyPolicy = ConsistencyPolicy::Linearizable;

pub(crate) fn single_operations(group: &Group) {
    let node = group.master();
    let database = node.database("single");
    assert_eq!(database.get(LINEARIZABLE, "k").expect("read"), None);
    let _token = database.delete("k").expect("committed");
    let _token = database.put("k", "1").expect("committed");
    let refused = database.put_if_absent("k", "2").expect("committed");
    let current = |set: &CompareAndSet| match set {
        CompareAndSet::Refused { current, .. } => current.clone(),
        CompareAndSet::Done(token) => panic!("done as {token}"),
    };
    assert_eq!(current(&refused).expect("a value"), "1");
    let swap = |expected: Option<&[u8]>, value: &str| {
        database
            .compare_and_set("k", expected, value)
            .expect("committed")
    };
    assert_eq!(current(&swap(None, "3")).expect("a value"), "1");
    assert_eq!(current(&swap(Some(b"0"), "3")).expect("a value"), "1");
    assert!(matches!(swap(Some(b"1"), "3"), CompareAndSet::Done(_)));
    let _token = database.delete("k").expect("committed");
    assert_eq!(current(&swap(Some(b"3"), "4")), None);
    let CompareAndSet::Done(token) = database.put_if_absent("k", "").expect("committed") else {
        panic!("there was none");
    };
    assert!(matches!(swap(Some(b""), "5"), CompareAndSet::Done(later) if later > token));
    for node in group.open_nodes() {
        let seen = node
            .database("single")
            .get(LINEARIZABLE, "k")
            .expect("read");
        assert_eq!(seen.expect("a value"), "5");
    }
    let twins = async {
        let _token = database.put_async("a", "1").await?;
        let set = database.compare_and_set_async("a", Some(b"1"), "2").await?;
        assert!(matches!(set, CompareAndSet::Done(_)));
        let set = database.put_if_absent_async("a", "3").await?;
        assert_eq!(current(&set).expect("a value"), "2");
        let seen = database.get_async(LINEARIZABLE, "a").await?;
        assert_eq!(seen.expect("a value"), "2");
        let mut batch = WriteBatch::new();
        batch.put("single", "b", "1").delete("single", "a");
        let _token = node.write_batch_async(&batch).await?;
        database.delete_async("b").await
    };
    let _token = group.runtime.block_on(twins).expect("committed");
    let rows = node.read(LINEARIZABLE, |s| {
        Ok::<_, ReadError>(s.database("single")?.iter().count())
    });
    assert_eq!(rows.expect("read"), 1);
    assert!(matches!(
        node.database("").put("k", "v"),
        Err(WriteError::Read(ReadError::DatabaseName { .. }))
    ));
}

#[test]
fn single_operations_do_what_they_say_and_say_what_they_found() {
    single_operations(&Group::in_memory(3, STEADY));
}

#[test]
fn of_many_who_put_if_absent_one_is_done_and_all_others_see_its_value() {
    let group = Group::in_memory(3, STEADY);
    let node = group.master();
    for round in 0..10 {
        let (key, barrier) = (format!("lease {round}"), Barrier::new(8));
        let take = |who: u8| {
            barrier.wait();
            node.database("leases")
                .put_if_absent(&key, [who])
                .expect("committed")
        };
        let took: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|who| scope.spawn(move || take(who))).collect();
            let joined = threads
                .into_iter()
                .map(|thread| thread.join().expect("no panic"));
            joined.collect()
        });
        let is_done = |set: &CompareAndSet| matches!(set, CompareAndSet::Done(_));
        assert_eq!(took.iter().filter(|set| is_done(set)).count(), 1);
        let winner = took.iter().position(is_done).expect("just counted");
        let winner = Bytes::from(vec![u8::try_from(winner).expect("few")]);
        for set in took {
            match set {
                CompareAndSet::Done(_) => {}
                CompareAndSet::Refused { current, .. } => assert_eq!(current, Some(winner.clone())),
            }
        }
    }
}

#[test]
fn a_counter_that_is_raised_by_compare_and_set_counts_every_one() {
    let group = Group::in_memory(3, STEADY);
    let node = group.master();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let database = node.database("d");
                let mut known: Option<Bytes> = None;
                let mut done = 0;
                while done < 25 {
                    let raised = (number(known.clone()) + 1).to_le_bytes();
                    let set = database.compare_and_set("n", known.as_deref(), raised);
                    known = match set.expect("committed") {
                        CompareAndSet::Done(_) => {
                            done += 1;
                            Some(Bytes::copy_from_slice(&raised))
                        }
                        CompareAndSet::Refused { current, .. } => current,
                    };
                }
            });
        }
    });
    assert_eq!(value(node, "n"), 100);
}

#[test]
fn a_batch_is_done_whole_and_meets_no_conflict() {
    let group = Group::in_memory(3, STEADY);
    let node = group.master();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let write = |thread: u8| {
            scope.spawn(move || {
                for n in 0..50_u8 {
                    let mut batch = WriteBatch::new();
                    batch
                        .put("a", "k", "overwritten below")
                        .put("b", "k", [thread, n]);
                    batch.put("a", "k", [thread, n]).delete("b", "other");
                    let _token = node.write_batch(&batch).expect("committed");
                }
            })
        };
        let writers: Vec<_> = (0..4).map(write).collect();
        for reader in group.open_nodes() {
            let stop = &stop;
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let seen = reader.read(
                        ConsistencyPolicy::Eventual,
                        |snapshot| -> Result<_, ReadError> {
                            let value = |name: &str| snapshot.database(name)?.get("k");
                            Ok((value("a")?, value("b")?))
                        },
                    );
                    let (a, b) = seen.expect("read");
                    assert_eq!(a, b);
                }
            });
        }
        let _ended = Release(&stop);
        for writer in writers {
            writer.join().expect("no panic");
        }
    });
    let mut too_large = WriteBatch::new();
    too_large.put("a", "k", "v").put("a", vec![0; 1 << 20], "v");
    assert!(matches!(
        node.write_batch(&too_large),
        Err(WriteError::TooLarge { .. })
    ));
    let _token = node
        .write_batch(&WriteBatch::new())
        .expect("nothing is a batch too");
    group.digest();
}
