//! What is more than one transaction of the environment, or one call between nodes, can take.

use std::collections::BTreeSet;
use std::time::Duration;

use steadfast_server::error::Error;
use steadfast_server::proto::etcdserverpb::*;
use steadfast_server::proto::mvccpb::Event;
use steadfast_server::proto::mvccpb::event::EventType;
use steadfast_server::store::Store;
use tokio::time::Instant;

use crate::group::*;
use crate::leases::{gone, grant, put_leased};

/// A transaction may write half of this: a few of the keys below.
const SMALL_SEGMENT: u64 = 64 * 1024;

const KEYS: usize = 300;

fn long_key(n: usize) -> String {
    format!("k/{n:04}/{}", "x".repeat(200))
}

/// Puts keys under a lease, and watches them from there.
async fn fill(store: &Store, ttl: i64) -> (BTreeSet<String>, Watches) {
    grant(store, ttl, 7).await;
    let mut keys = BTreeSet::new();
    for n in 0..KEYS {
        put_leased(store, &long_key(n), 7).await;
        keys.insert(long_key(n));
    }
    let next = store.header().revision + 1;
    let mut watches = Watches::new(store);
    watches.create(watch_prefix("k/", next)).await;
    assert!(watches.next().await.created);
    (keys, watches)
}

/// The keys of events, which are all deletions, each of a key that is among them once.
fn deleted(events: &[Event]) -> BTreeSet<String> {
    let keys: BTreeSet<_> = events
        .iter()
        .map(|event| {
            assert_eq!(event.r#type(), EventType::Delete);
            text(&event.kv.as_ref().expect("a key").key)
        })
        .collect();
    assert_eq!(keys.len(), events.len(), "a key was deleted twice");
    keys
}

async fn count(store: &Store) -> i64 {
    store.range(prefix("k/")).await.expect("a range").count
}

/// For clients there is no lease 7 any more, but its id is not free. All is asked at once: the steps
/// do not wait.
async fn is_being_ended(store: &Store) {
    let put = PutRequest {
        lease: 7,
        ..put("other", "1")
    };
    let (put, kept, left, granted) = tokio::join!(
        store.put(put),
        store.lease_keep_alive(7),
        store.lease_time_to_live(LeaseTimeToLiveRequest { id: 7, keys: true }),
        store.lease_grant(LeaseGrantRequest { ttl: 60, id: 7 }),
    );
    assert_eq!(refused(put), Error::LeaseNotFound);
    assert_eq!(kept.expect("an answer").ttl, 0);
    let left = left.expect("an answer");
    assert_eq!((left.ttl, left.keys.len()), (-1, 0));
    assert_eq!(refused(granted), Error::LeaseExists);
}

#[tokio::test(start_paused = true)]
async fn a_lease_with_more_keys_than_a_transaction_takes_expires_in_steps() {
    let group = Group::with_segments(1, SMALL_SEGMENT).await;
    let store = group.master().await;
    let (keys, mut watches) = fill(&store, 20).await;
    let began = Instant::now();
    let first = watches.next().await;
    assert!(first.events.len() < KEYS, "it is one step");
    is_being_ended(&store).await;
    let mut events = first.events;
    events.extend(watches.events(KEYS - events.len()).await);
    assert_eq!(deleted(&events), keys);
    assert!(began.elapsed() < Duration::from_mins(1));
    // The lease goes last.
    assert_eq!(store.lease_leases().await.expect("leases").leases, []);
    grant(&store, 60, 7).await;
    drop(watches);
    group.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_lease_with_more_keys_than_a_transaction_takes_is_revoked_in_steps_from_any_node() {
    let group = Group::with_segments(3, SMALL_SEGMENT).await;
    let (store, replica) = (group.master().await, group.replica().await);
    let (keys, mut watches) = fill(&store, 1000).await;
    let revoking = {
        let replica = replica.clone();
        tokio::spawn(async move { replica.lease_revoke(7).await })
    };
    let mut events = watches.next().await.events;
    is_being_ended(&store).await;
    assert!(!revoking.is_finished(), "keys are left");
    let revoked = revoking.await.expect("it ends").expect("revoked");
    assert_eq!(count(&store).await, 0);
    let last = revision(revoked.header.as_ref());
    events.extend(watches.events(KEYS - events.len()).await);
    assert_eq!(deleted(&events), keys);
    let newest = events.last().and_then(|event| event.kv.clone());
    assert_eq!(newest.expect("a key").mod_revision, last);
    assert_eq!(refused(replica.lease_revoke(7).await), Error::LeaseNotFound);
    drop(watches);
    group.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_new_master_goes_on_to_end_a_lease() {
    for is_revoked in [false, true] {
        let mut group = Group::with_segments(3, SMALL_SEGMENT).await;
        let (store, replica) = (group.master().await, group.replica().await);
        let ttl = if is_revoked { 1000 } else { 20 };
        let (keys, _) = fill(&store, ttl).await;
        let mut watches = Watches::new(&replica);
        let next = store.header().revision + 1;
        watches.create(watch_prefix("k/", next)).await;
        assert!(watches.next().await.created);
        let revoking = is_revoked.then(|| {
            let store = store.clone();
            tokio::spawn(async move { store.lease_revoke(7).await })
        });
        let mut events = watches.next().await.events;
        let master = group.master_name().await;
        drop(store);
        group.crash(&master).await;
        assert!(events.len() < KEYS, "it was over before");
        if let Some(revoking) = revoking {
            let told = refused(revoking.await.expect("it ends"));
            assert_eq!(told, Error::OutcomeUnknown);
        }
        events.extend(watches.events(KEYS - events.len()).await);
        assert_eq!(deleted(&events), keys);
        let store = group.master().await;
        gone(&store, &long_key(KEYS - 1), Instant::now()).await;
        assert_eq!(store.lease_keep_alive(7).await.expect("an answer").ttl, 0);
        assert_eq!(store.lease_leases().await.expect("leases").leases, []);
        drop(watches);
        group.close().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_range_that_no_transaction_takes_is_not_deleted_at_all() {
    let group = Group::with_segments(1, SMALL_SEGMENT).await;
    let store = group.master().await;
    for n in 0..KEYS {
        set(&store, &long_key(n), "1").await;
    }
    let before = store.header().revision;
    let refusal = refused(store.delete_range(delete_prefix("k/")).await);
    assert_eq!(refusal, Error::RequestTooLarge);
    let all = txn(vec![op(delete_prefix("k/"))]);
    assert_eq!(refused(store.txn(all).await), Error::RequestTooLarge);
    assert_eq!(count(&store).await, i64::try_from(KEYS).unwrap());
    assert_eq!(store.header().revision, before);
    // Others are not held up, and a part of it can be deleted.
    let part = store.delete_range(delete_prefix("k/000")).await;
    assert_eq!(part.expect("deleted").deleted, 10);
    group.close().await;
}

#[tokio::test(start_paused = true)]
async fn what_a_replica_could_not_be_told_is_not_done() {
    let group = Group::new(3).await;
    let (store, replica) = (group.master().await, group.replica().await);
    let value = "x".repeat(1024 * 1024);
    for n in 0..9 {
        set(&store, &format!("k/{n}"), &value).await;
    }
    let before = store.header().revision;
    let large = || txn(vec![op(put("other", "1")), op(prefix("k/"))]);
    assert_eq!(refused(replica.txn(large()).await), Error::AnswerTooLarge);
    let deletion = DeleteRangeRequest {
        prev_kv: true,
        ..delete_prefix("k/")
    };
    let refusal = refused(replica.delete_range(deletion.clone()).await);
    assert_eq!(refusal, Error::AnswerTooLarge);
    assert_eq!(count(&replica).await, 9);
    assert_eq!(keys(&replica, get("other")).await, [""; 0]);
    assert_eq!(store.header().revision, before);
    // One that only reads is answered by the replica itself, and the master needs no call.
    let read = txn(vec![op(prefix("k/"))]);
    let answer = replica.txn(read).await.expect("an answer");
    assert_eq!(answer.responses.len(), 1);
    let answer = store.txn(large()).await.expect("an answer");
    assert!(answer.succeeded);
    let answer = store.delete_range(deletion).await.expect("deleted");
    assert_eq!(answer.prev_kvs.len(), 9);
    group.close().await;
}

#[tokio::test(start_paused = true)]
async fn the_keys_of_a_lease_are_told_by_a_replica_however_many() {
    let group = Group::new(3).await;
    let (store, replica) = (group.master().await, group.replica().await);
    grant(&store, 100_000, 7).await;
    let long = "x".repeat(60_000);
    for n in 0..145 {
        put_leased(&store, &format!("k/{n:03}/{long}"), 7).await;
    }
    let request = LeaseTimeToLiveRequest { id: 7, keys: true };
    let answer = replica.lease_time_to_live(request).await;
    let answer = answer.expect("an answer");
    assert_eq!((answer.keys.len(), answer.granted_ttl), (145, 100_000));
    group.close().await;
}
