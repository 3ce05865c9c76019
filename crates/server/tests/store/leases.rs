//! Leases: how long they last, and what ends with them.

use std::time::Duration;

use steadfast_server::error::Error;
use steadfast_server::proto::etcdserverpb::*;
use steadfast_server::store::Store;
use tokio::time::{Instant, sleep};

use crate::group::*;

pub async fn grant(store: &Store, ttl: i64, id: i64) -> LeaseGrantResponse {
    store
        .lease_grant(LeaseGrantRequest { ttl, id })
        .await
        .expect("granted")
}

pub async fn put_leased(store: &Store, key: &str, lease: i64) {
    let request = PutRequest {
        lease,
        ..put(key, "1")
    };
    store.put(request).await.expect("put");
}

async fn left(store: &Store, id: i64) -> LeaseTimeToLiveResponse {
    let request = LeaseTimeToLiveRequest { id, keys: true };
    store
        .lease_time_to_live(request)
        .await
        .expect("what is left")
}

/// Waits until a key is gone, and says how long that took from `began`.
pub async fn gone(store: &Store, key: &str, began: Instant) -> Duration {
    loop {
        let request = RangeRequest {
            serializable: true,
            ..get(key)
        };
        let found = store.range(request).await.expect("a range");
        if found.count == 0 {
            return began.elapsed();
        }
        assert!(began.elapsed() < Duration::from_mins(10), "it lives on");
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn times_to_live_have_bounds_and_are_rounded_down() {
    let group = Group::new(1).await;
    let store = group.master().await;
    for ttl in [-1, 0, 1] {
        assert_eq!(grant(&store, ttl, 0).await.ttl, 2);
    }
    let large = grant(&store, 9_000_000_000, -5).await;
    assert_eq!(
        (large.id, large.ttl, revision(large.header.as_ref())),
        (-5, 9_000_000_000, 1)
    );
    let request = |ttl, id| LeaseGrantRequest { ttl, id };
    let too_large = store.lease_grant(request(9_000_000_001, 0)).await;
    assert_eq!(refused(too_large), Error::LeaseTtlTooLarge);
    assert_eq!(
        refused(store.lease_grant(request(5, -5)).await),
        Error::LeaseExists
    );
    grant(&store, 60, 6).await;
    sleep(Duration::from_millis(10)).await;
    let answer = left(&store, 6).await;
    assert_eq!(
        (answer.ttl, answer.granted_ttl, answer.keys.len()),
        (59, 60, 0)
    );
    let kept = store.lease_keep_alive(6).await.expect("kept");
    assert_eq!((kept.id, kept.ttl), (6, 60));
    let unknown = left(&store, 99).await;
    assert_eq!((unknown.id, unknown.ttl, unknown.granted_ttl), (99, -1, 0));
    assert_eq!(store.lease_keep_alive(99).await.expect("an answer").ttl, 0);
    assert_eq!(refused(store.lease_revoke(99).await), Error::LeaseNotFound);
    let ids: Vec<_> = store.lease_leases().await.expect("leases").leases;
    assert_eq!(ids.len(), 5);
    assert!(ids.contains(&LeaseStatus { id: -5 }));
    group.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_lease_takes_its_keys_with_it_as_one_revision() {
    let group = Group::new(1).await;
    let store = group.master().await;
    grant(&store, 100, 7).await;
    grant(&store, 100, 8).await;
    for key in ["b", "a", "c", "moved", "freed"] {
        put_leased(&store, key, 7).await; // 2 to 6
    }
    put_leased(&store, "moved", 8).await; // 7
    set(&store, "freed", "1").await; // 8
    let mut keys = left(&store, 7).await.keys;
    keys.sort_unstable();
    assert_eq!(keys, ["a", "b", "c"]);
    let mut watches = Watches::new(&store);
    let all = WatchCreateRequest {
        range_end: bytes("\0"),
        ..watch("", 0)
    };
    watches.create(all).await;
    assert!(watches.next().await.created);
    let revoked = store.lease_revoke(7).await.expect("revoked");
    assert_eq!(revision(revoked.header.as_ref()), 9);
    let answer = watches.next().await;
    assert_eq!(shorts(&answer.events), ["-a@9", "-b@9", "-c@9"]);
    assert_eq!(left(&store, 7).await.ttl, -1);
    // One without keys takes none.
    grant(&store, 100, 9).await;
    assert_eq!(
        revision(
            store
                .lease_revoke(9)
                .await
                .expect("revoked")
                .header
                .as_ref()
        ),
        9
    );
    assert_eq!(crate::group::keys(&store, prefix("m")).await, ["moved"]);
    drop(watches);
    group.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_lease_ends_soon_after_its_time_and_not_while_it_is_kept_alive() {
    let group = Group::new(3).await;
    let (store, replica) = (group.master().await, group.replica().await);
    grant(&replica, 5, 7).await;
    put_leased(&replica, "k", 7).await;
    for n in 0..6 {
        sleep(Duration::from_secs(4)).await;
        let keeper = if n % 2 == 0 { &store } else { &replica };
        assert_eq!(keeper.lease_keep_alive(7).await.expect("kept").ttl, 5);
        let answer = left(keeper, 7).await;
        assert!((4..=5).contains(&answer.ttl), "{answer:?}");
        assert_eq!(answer.keys, ["k"]);
    }
    let ended = gone(&store, "k", Instant::now()).await;
    assert!((5000..6000).contains(&ended.as_millis()), "{ended:?}");
    assert_eq!(store.lease_keep_alive(7).await.expect("an answer").ttl, 0);
    assert_eq!(replica.lease_leases().await.expect("leases").leases, []);
    group.close().await;
}

#[tokio::test(start_paused = true)]
async fn keeping_a_lease_alive_seldom_writes() {
    let group = Group::new(1).await;
    let store = group.master().await;
    for id in 1..=100 {
        grant(&store, 60, id).await;
    }
    sleep(Duration::from_secs(1)).await;
    let began = store.env().status().vlsn.0;
    for _ in 0..30 {
        sleep(Duration::from_millis(100)).await;
        for id in 1..=100 {
            assert_eq!(store.lease_keep_alive(id).await.expect("kept").ttl, 60);
        }
    }
    let written = store.env().status().vlsn.0 - began;
    // The environment notes the time once a second.
    assert!(
        written <= 120,
        "{written} transactions for 3000 keep-alives"
    );
    group.close().await;
}

/// A lease of `ttl` that is kept alive some times, each `every` seconds, until the master dies.
async fn over_a_failover(ttl: u64, kept: u32, every: u64, then: u64) {
    let mut group = Group::new(3).await;
    let store = group.master().await;
    grant(&store, ttl.try_into().unwrap(), 7).await;
    put_leased(&store, "k", 7).await;
    let mut began = Instant::now();
    for _ in 0..kept {
        sleep(Duration::from_secs(every)).await;
        began = Instant::now();
        store.lease_keep_alive(7).await.expect("kept");
    }
    sleep(Duration::from_secs(then)).await;
    let master = group.master_name().await;
    let failed = Instant::now();
    group.crash(&master).await;
    let store = group.master().await;
    set(&store, "other", "1").await;
    let without_master = failed.elapsed();
    let lived = gone(&store, "k", began).await;
    let ttl = Duration::from_secs(ttl);
    let allowance = (ttl / 10).max(Duration::from_secs(5));
    assert!(lived >= ttl, "it ended after {lived:?}, early");
    assert!(
        lived <= ttl + allowance + without_master,
        "it ended after {lived:?}"
    );
    group.close().await;
}

#[tokio::test(start_paused = true)]
async fn no_lease_ends_early_or_late_over_a_failover() {
    over_a_failover(10, 0, 0, 4).await;
    over_a_failover(10, 1, 2, 0).await;
    over_a_failover(10, 5, 1, 9).await;
    over_a_failover(60, 2, 3, 0).await;
    over_a_failover(2, 0, 0, 1).await;
}

#[tokio::test(start_paused = true)]
async fn a_master_that_was_replaced_keeps_no_lease_alive() {
    let mut group = Group::new(3).await;
    let (name, old) = (group.master_name().await, group.master().await);
    grant(&old, 2, 7).await;
    put_leased(&old, "k", 7).await;
    group.nodes.cut_off(&name).expect("cut off");
    // The others have a new master at once, and the old one does not know it yet.
    let mut kept_at = Instant::now();
    for _ in 0..60 {
        let asked_at = Instant::now();
        let answer = old.lease_keep_alive(7);
        let answer = tokio::time::timeout(Duration::from_millis(10), answer).await;
        if let Ok(Ok(answer)) = answer
            && answer.ttl > 0
        {
            kept_at = asked_at;
        }
        sleep(Duration::from_millis(10)).await;
    }
    let mut others = ["n1", "n2", "n3"].into_iter().filter(|of| *of != name);
    let other = group.store(others.next_back().expect("a node"));
    set(&other, "other", "1").await;
    let lived = gone(&other, "k", kept_at).await;
    assert!(
        lived >= Duration::from_secs(2),
        "it ended after {lived:?}, early"
    );
    group.nodes.heal(&name).expect("healed");
    group.close().await;
}
