//! What clients see when masters die: nothing lost, nothing twice, and writes that get through.

use std::collections::BTreeMap;
use std::time::Duration;

use steadfast_server::error::Error;
use steadfast_server::store::Store;

use crate::group::*;

/// Puts one key after the other until told to stop; says what was acknowledged, and what may have
/// happened.
async fn write(
    store: Store,
    name: usize,
    mut stop: tokio::sync::watch::Receiver<bool>,
) -> (BTreeMap<String, i64>, Vec<String>) {
    let (mut acknowledged, mut unknown) = (BTreeMap::new(), Vec::new());
    for n in 0.. {
        if *stop.borrow_and_update() {
            break;
        }
        let key = format!("k/{name}/{n}");
        match store.put(put(&key, "1")).await {
            Ok(answer) => {
                acknowledged.insert(key, revision(answer.header.as_ref()));
            }
            Err(Error::OutcomeUnknown) => unknown.push(key),
            Err(Error::Stopped) => break,
            Err(error) => panic!("{error}"),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    (acknowledged, unknown)
}

/// Follows all keys at a node, and goes on at another revision when its stream ends.
async fn follow(store: Store, from: i64, upto: i64) -> (Vec<String>, i64) {
    let mut watches = Watches::new(&store);
    watches.create(watch_prefix("k", from)).await;
    let (mut seen, mut next) = (Vec::new(), from);
    while next <= upto {
        let Ok(answer) = tokio::time::timeout(PATIENCE, watches.answers.recv()).await else {
            panic!("no event after {next} of {upto}");
        };
        let Some(answer) = answer else { break };
        assert!(!answer.canceled, "{answer:?}");
        for event in &answer.events {
            let at = event.kv.as_ref().unwrap().mod_revision;
            assert!(at >= next, "{} after {next}", short(event));
            next = at + 1;
            seen.push(short(event));
        }
    }
    (seen, next)
}

#[tokio::test(start_paused = true)]
async fn every_event_comes_once_and_in_order_over_failovers() {
    let mut group = Group::new(3).await;
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let mut acknowledged = BTreeMap::new();
    let mut unknown = Vec::new();
    let mut followers: Vec<(Vec<String>, i64)> = vec![(Vec::new(), 2); 3];
    for round in 0..3 {
        let names = ["n1", "n2", "n3"];
        let writers: Vec<_> = names
            .iter()
            .enumerate()
            .map(|(n, name)| {
                tokio::spawn(write(group.store(name), 10 * round + n, stopped.clone()))
            })
            .collect();
        let reading: Vec<_> = names
            .iter()
            .zip(&followers)
            .map(|(name, follower)| {
                tokio::spawn(follow(group.store(name), follower.1, i64::MAX - 1))
            })
            .collect();
        tokio::time::sleep(Duration::from_millis(300)).await;
        let master = group.master_name().await;
        group.crash(&master).await;
        let new = group.master_name().await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        stop.send_replace(true);
        for writer in writers {
            let (done, may_be) = writer.await.expect("it ends");
            acknowledged.extend(done);
            unknown.extend(may_be);
        }
        stop.send_replace(false);
        let store = group.store(&new);
        let last = set(&store, "end", "1").await;
        group.start(&master).await;
        // The stream of the node that died has ended; those of the others go on to the end.
        for ((name, reading), follower) in names.iter().zip(reading).zip(&mut followers) {
            if *name == master {
                let (seen, next) = reading.await.expect("it ends");
                follower.0.extend(seen);
                follower.1 = next;
            } else {
                reading.abort();
                reading.await.ok();
            }
            // Again from where it was: what the aborted one had seen is not counted.
            let (seen, next) = follow(group.store(name), follower.1, last - 1).await;
            follower.0.extend(seen);
            follower.1 = next;
        }
    }
    let store = group.master().await;
    let present: BTreeMap<_, _> = store
        .range(prefix("k"))
        .await
        .expect("a range")
        .kvs
        .into_iter()
        .map(|kv| (text(&kv.key), kv.mod_revision))
        .collect();
    for (key, at) in &acknowledged {
        assert_eq!(present.get(key), Some(at), "{key} was acknowledged");
    }
    for key in present.keys() {
        assert!(
            acknowledged.contains_key(key) || unknown.contains(key),
            "{key} came of nothing"
        );
    }
    assert!(acknowledged.len() > 100, "{} writes", acknowledged.len());
    let mut right: Vec<_> = present
        .iter()
        .map(|(key, at)| (*at, format!("+{key}=1@{at}")))
        .collect();
    right.sort_unstable();
    let right: Vec<_> = right.into_iter().map(|(_, event)| event).collect();
    for (seen, _) in &followers {
        assert_eq!(seen, &right);
    }
    let ends = right.len() + 3;
    assert_eq!(
        store.header().revision,
        i64::try_from(ends).unwrap() + 1,
        "no revision is missing"
    );
    let mut hashes = Vec::new();
    for store in group.stores() {
        store.linearize().await.expect("current");
        hashes.push((
            store.hash_kv(0).await.expect("a hash").hash,
            store.hash().await.expect("a hash").hash,
        ));
    }
    assert!(hashes.iter().all(|hash| *hash == hashes[0]), "{hashes:?}");
    group.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_write_that_certainly_did_not_happen_is_tried_again_at_the_new_master() {
    let mut group = Group::new(3).await;
    let replica = group.replica().await;
    set(&replica, "k", "1").await;
    let master = group.master_name().await;
    group.nodes.cut_off(&master).expect("cut off");
    // No master is known for a while, and nothing is refused.
    assert_eq!(set(&replica, "k", "2").await, 3);
    group.nodes.heal(&master).expect("healed");
    let old = group.store(&master);
    assert_eq!(set(&old, "k", "3").await, 4);
    let term = |store: &Store| store.header().raft_term;
    for store in group.stores() {
        store.linearize().await.expect("current");
        assert_eq!(term(&store), term(&old));
    }
    group.close().await;
}
