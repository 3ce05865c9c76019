//! Keys with a time to live: none ends early, whatever the masters' clocks, and each ends.

use std::time::Duration;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use steadfast::limits::{KEY_BYTES_MAX, TTL_MAX};
use steadfast::{
    Change, CommitToken, ConsistencyPolicy, Feed, FeedEvent, ReadError, ReplicatedEnvironment,
    Snapshot, StartAt, WriteBatch, WriteError,
};
use tokio::time::{Instant, sleep, timeout};

use crate::paused;
use crate::world::World;

const fn s(s: u64) -> Duration {
    Duration::from_secs(s)
}

/// What a key may be late while its master stays: a thousandth of its time for the allowance, as
/// much for a slow clock, and what gathering and deleting takes.
fn late_max(ttl: Duration) -> Duration {
    ttl / 500 + Duration::from_millis(200)
}

/// The most that a failover adds to the time without a master.
const FAILOVER_MAX: Duration = Duration::from_millis(1_200);

async fn put(env: &ReplicatedEnvironment, key: &str, ttl: Duration) {
    let keys = env.database("keys");
    let put = keys.put_with_ttl_async(key, "v", ttl);
    let _token = put.await.expect("committed");
}

/// Whether the node has the key, in the newest state of the group.
async fn has(env: &ReplicatedEnvironment, key: &str) -> bool {
    let keys = env.database("keys");
    let read = keys.get_async(ConsistencyPolicy::Linearizable, key);
    read.await.expect("a healthy group answers").is_some()
}

/// How long the key has still to live, as this node knows.
async fn left(env: &ReplicatedEnvironment, key: &str) -> Option<Duration> {
    let policy = ConsistencyPolicy::Linearizable;
    let read = env.read_async(policy, |snapshot| {
        snapshot.database("keys")?.expires_in(key)
    });
    read.await.expect("a healthy group answers")
}

/// How long it takes until the key is gone.
async fn gone_after(env: &ReplicatedEnvironment, key: &str) -> Duration {
    let (began, keys) = (Instant::now(), env.database("keys"));
    let is_there = || keys.get_async(ConsistencyPolicy::Eventual, key);
    while is_there().await.expect("open").is_some() {
        assert!(began.elapsed() < s(3_600), "it does not end");
        sleep(Duration::from_millis(5)).await;
    }
    began.elapsed()
}

/// Checks that all nodes hold the same by their running digests, which count what is kept about
/// times to live.
async fn assert_same(world: &World) {
    for _ in 0..100 {
        let mut digests = Vec::new();
        for host in &world.hosts {
            digests.push(running_digest(host.env()).await);
        }
        let is_known = digests.iter().all(|(_, digest)| digest.is_some());
        if is_known && digests.windows(2).all(|pair| pair[0] == pair[1]) {
            return;
        }
    }
    panic!("the nodes hold different data");
}

async fn running_digest(env: &ReplicatedEnvironment) -> (CommitToken, Option<u128>) {
    let mut feed = env.subscribe(StartAt::Start).expect("subscribed");
    loop {
        let event = feed.next_async().await.expect("open").expect("an event");
        if let FeedEvent::StateComplete { token, digest } = event {
            return (token, digest);
        }
    }
}

/// The changes to keys that come next, up to one to the key `end`.
async fn changes_until(feed: &mut Feed, end: &str) -> Vec<Change> {
    let mut seen = Vec::new();
    loop {
        let next = timeout(s(60), feed.next_async()).await.expect("in time");
        let FeedEvent::Transaction(transaction) = next.expect("open").expect("an event") else {
            continue;
        };
        for change in transaction.changes {
            if matches!(&change, Change::Put { key, .. } if key == end) {
                return seen;
            }
            seen.push(change);
        }
    }
}

#[test]
fn a_key_ends_when_its_time_has_passed_on_every_node_and_subscribers_see_it_expire_once() {
    paused().block_on(async {
        let mut world = World::new(61).await;
        let at = world.master().await;
        let env = world.hosts[at].env().clone();
        let mut feed = env.subscribe(StartAt::Now).expect("subscribed");
        put(&env, "k", s(10)).await;
        let began = Instant::now();
        for host in &world.hosts {
            let left = left(host.env(), "k").await.expect("a time to live");
            assert!((s(9)..=s(11)).contains(&left), "{left:?}");
        }
        let lived = gone_after(&env, "k").await;
        assert!(
            lived >= s(10) && lived <= s(10) + late_max(s(10)),
            "{lived:?}"
        );
        for host in &world.hosts {
            assert!(!has(host.env(), "k").await);
            assert_eq!(left(host.env(), "k").await, None);
        }
        sleep(s(5)).await;
        let keys = env.database("keys");
        let _token = keys.put_async("end", "v").await.expect("committed");
        let (database, key) = ("keys".into(), Bytes::from("k"));
        let value = Bytes::from("v");
        let put = Change::Put {
            database,
            key,
            value,
        };
        let (database, key) = ("keys".into(), Bytes::from("k"));
        let created = Change::Created {
            database: "keys".into(),
        };
        assert_eq!(
            changes_until(&mut feed, "end").await,
            [created, put, Change::Expired { database, key }]
        );
        world.check().await;
        assert!(began.elapsed() < s(60));
    });
}

#[test]
fn a_put_or_delete_ends_a_time_to_live_and_another_put_replaces_it() {
    paused().block_on(async {
        let world = World::new(62).await;
        let env = world.hosts[world.master().await].env().clone();
        let keys = env.database("keys");
        for key in ["put", "deleted", "anew", "shorter", "batch", "same"] {
            put(&env, key, s(10)).await;
        }
        let _token = keys.put_async("put", "w").await.expect("committed");
        let _token = keys.delete_async("deleted").await.expect("committed");
        put(&env, "anew", s(30)).await;
        put(&env, "shorter", s(2)).await;
        let mut batch = WriteBatch::new();
        batch
            .put_with_ttl("keys", "batch", "w", s(40))
            .put_with_ttl("keys", "new", "w", s(3));
        let _token = env.write_batch_async(&batch).await.expect("committed");
        // The last one in a transaction counts.
        let written = env.write_async(|txn| {
            let keys = txn.database("keys")?;
            assert_eq!(keys.expires_in("put")?, None);
            keys.put_with_ttl("same", "w", s(5))?;
            assert_eq!(keys.expires_in("same")?, Some(s(5)));
            keys.put("same", "x")?;
            assert_eq!(keys.expires_in("same")?, None);
            keys.put_with_ttl("other", "w", s(7))?;
            keys.put_with_ttl("other", "w", s(20))
        });
        let _token = written.await.expect("committed");
        assert_eq!(left(&env, "put").await, None);
        for (at, there) in [
            (
                1,
                vec!["put", "anew", "shorter", "batch", "new", "same", "other"],
            ),
            (11, vec!["put", "anew", "batch", "same", "other"]),
            (25, vec!["put", "anew", "batch", "same"]),
            (35, vec!["put", "batch", "same"]),
            (45, vec!["put", "same"]),
        ] {
            sleep(s(at).saturating_sub(sleep_so_far(at))).await;
            for key in [
                "put", "deleted", "anew", "shorter", "batch", "new", "same", "other",
            ] {
                assert_eq!(
                    has(&env, key).await,
                    there.contains(&key),
                    "{key} after {at} s"
                );
            }
        }
    });
}

/// The seconds of the moments before this one in the test above.
fn sleep_so_far(at: u64) -> Duration {
    let before = [1, 11, 25, 35, 45]
        .into_iter()
        .rev()
        .find(|&moment| moment < at);
    s(before.unwrap_or_default())
}

#[test]
fn a_put_at_the_moment_of_the_deadline_wins_or_finds_the_key_gone() {
    paused().block_on(async {
        let world = World::new(63).await;
        let env = world.hosts[world.master().await].env().clone();
        for n in 0..20 {
            let key = format!("k{n}");
            put(&env, &key, s(1)).await;
            let keys = env.database("keys");
            // Spread over the deadline, the chunk of which is under way for some.
            sleep(Duration::from_micros(998_000 + n * 500)).await;
            let _token = keys.put_async(&key, "again").await.expect("committed");
            sleep(s(2)).await;
            assert!(
                has(&env, &key).await,
                "{key} was put after it had ended, or before"
            );
        }
    });
}

#[test]
fn puts_of_a_key_at_the_same_time_do_not_conflict_and_the_last_one_decides() {
    paused().block_on(async {
        let world = World::of(1, 68).await;
        let env = world.hosts[world.master().await].env().clone();
        for key in ["longer", "lasting", "shorter"] {
            put(&env, key, s(5)).await;
        }
        // None of them sees what the other has done.
        let first = env.begin_transaction_async().await.expect("begun");
        let last = env.begin_transaction_async().await.expect("begun");
        for (transaction, ttls) in [(&first, [2, 2, 60]), (&last, [30, 0, 2])] {
            let keys = transaction.database("keys").expect("a database");
            for (key, ttl) in ["longer", "lasting", "shorter"].into_iter().zip(ttls) {
                let put = match ttl {
                    0 => keys.put(key, "v"),
                    ttl => keys.put_with_ttl(key, "v", s(ttl)),
                };
                put.expect("put");
            }
        }
        for transaction in [first, last] {
            let _token = transaction.commit_async().await.expect("no conflict");
        }
        for (after, there) in [
            (1, [true, true, true]),
            (20, [true, true, false]),
            (15, [false, true, false]),
            (60, [false, true, false]),
        ] {
            sleep(s(after)).await;
            for (key, is_there) in ["longer", "lasting", "shorter"].into_iter().zip(there) {
                assert_eq!(has(&env, key).await, is_there, "{key} after {after} s more");
            }
        }
    });
}

/// Long enough that all that a clock may gain is more than what keys wait for each other.
#[test]
fn a_clock_that_gains_all_that_it_may_ends_no_key_early() {
    paused().block_on(async {
        let world = World::of(1, 69).await;
        let host = &world.hosts[world.master().await];
        host.speed_ppm(1_000);
        let ttl = s(300);
        let began = Instant::now();
        put(host.env(), "k", ttl).await;
        sleep(s(299)).await;
        gone_after(host.env(), "k").await;
        let lived = began.elapsed();
        assert!(lived >= ttl && lived <= ttl + late_max(ttl), "{lived:?}");
    });
}

#[test]
fn what_is_no_time_to_live_and_a_key_too_long_for_one_are_refused() {
    paused().block_on(async {
        let world = World::new(64).await;
        let keys = world.hosts[world.master().await].env().database("keys");
        for ttl in [Duration::ZERO, Duration::from_micros(999), TTL_MAX + s(1)] {
            let refused = keys.put_with_ttl_async("k", "v", ttl).await;
            assert!(matches!(refused, Err(WriteError::TimeToLive { ttl: of }) if of == ttl));
        }
        let _token = keys
            .put_with_ttl_async("k", "v", TTL_MAX)
            .await
            .expect("the longest");
        let long = |less| vec![b'k'; KEY_BYTES_MAX - less];
        let refused = keys.put_with_ttl_async(long(12), "v", s(1)).await;
        assert!(
            matches!(refused, Err(WriteError::TooLarge { .. })),
            "{refused:?}"
        );
        let _token = keys
            .put_with_ttl_async(long(13), "v", s(1))
            .await
            .expect("the longest");
        let _token = keys.put_async(long(0), "v").await.expect("it has none");
        sleep(s(2)).await;
        let policy = ConsistencyPolicy::Linearizable;
        let gone = keys.get_async(policy, long(13)).await;
        assert_eq!(gone.expect("read"), None);
    });
}

#[test]
fn the_state_of_a_subscription_says_what_its_keys_have_still_to_live() {
    paused().block_on(async {
        let world = World::new(71).await;
        let env = world.hosts[world.master().await].env().clone();
        // Several parts, and several chunks of each.
        for hundred in 0..30_u32 {
            let mut batch = WriteBatch::new();
            for n in hundred * 100..(hundred + 1) * 100 {
                let key = n.to_be_bytes();
                match n % 3 {
                    0 => batch.put("keys", key, [7; 600]),
                    _ => batch.put_with_ttl("keys", key, [7; 600], s(60 + u64::from(n))),
                };
            }
            let _token = env.write_batch_async(&batch).await.expect("committed");
        }
        put(&env, "other", s(100)).await;
        let mut feed = env.subscribe(StartAt::Start).expect("subscribed");
        let (mut seen, mut parts) = (0, 0);
        while let Some(Ok(event)) = feed.next_async().await {
            let FeedEvent::State { rows, expiring, .. } = event else {
                break;
            };
            parts += 1;
            let mut expiring = expiring.into_iter().peekable();
            for (index, (key, _)) in rows.iter().enumerate() {
                let left = expiring.next_if(|(of, _)| *of == index);
                let left = left.map(|(_, left)| left);
                let Ok(n) = key[..].try_into().map(u32::from_be_bytes) else {
                    assert!(s(98) < left.expect("a time to live"), "{key:?}");
                    continue;
                };
                seen += 1;
                let ttl = s(60 + u64::from(n));
                match left {
                    None => assert_eq!(n % 3, 0, "{n}"),
                    Some(left) => assert!(ttl <= left + s(2) && left <= ttl + s(1), "{left:?}"),
                }
            }
            assert_eq!(expiring.next(), None, "in order, and each of a row");
        }
        assert_eq!((seen, parts > 1), (3_000, true));
    });
}

#[test]
fn what_is_kept_about_times_to_live_is_in_no_list_and_in_no_feed() {
    paused().block_on(async {
        let world = World::new(65).await;
        let env = world.hosts[world.master().await].env().clone();
        put(&env, "k", s(3)).await;
        let list = env.read_async(ConsistencyPolicy::Eventual, Snapshot::list_databases);
        assert_eq!(list.await.expect("read"), ["keys"]);
        let mut listed = Vec::new();
        let written = env.write_async(|txn| {
            listed = txn.list_databases()?;
            Ok::<_, WriteError>(())
        });
        let _token = written.await.expect("committed");
        assert_eq!(listed, ["keys"]);
        sleep(s(5)).await;
        let mut feed = env.subscribe(StartAt::Start).expect("subscribed");
        let mut databases = Vec::new();
        while let Some(Ok(event)) = feed.next_async().await {
            match event {
                FeedEvent::State { database, rows, .. } => databases.push((database, rows.len())),
                FeedEvent::StateComplete { .. } => break,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(databases, [("keys".into(), 0)]);
    });
}

#[test]
fn keys_of_a_database_that_is_truncated_or_dropped_end_with_it_and_hurt_no_later_one() {
    paused().block_on(async {
        let world = World::new(66).await;
        let at = world.master().await;
        let env = world.hosts[at].env().clone();
        for (drops, key) in [(false, "truncated"), (true, "dropped")] {
            put(&env, key, s(5)).await;
            let written = env.write_async(|txn| {
                if drops {
                    txn.drop_database("keys")?;
                } else {
                    txn.truncate_database("keys")?;
                }
                txn.database("keys")?.put(key, "later")
            });
            let _token = written.await.expect("committed");
            assert_eq!(left(&env, key).await, None);
            sleep(s(10)).await;
            assert!(has(&env, key).await, "{key}");
        }
        assert_same(&world).await;
    });
}

#[test]
fn a_restart_of_all_nodes_and_a_failover_let_a_key_live_longer_but_not_anew() {
    paused().block_on(async {
        let mut world = World::new(67).await;
        let mut at = world.master().await;
        put(world.hosts[at].env(), "k", s(40)).await;
        let began = Instant::now();
        let mut without = Duration::ZERO;
        for _ in 0..4 {
            sleep(s(5)).await;
            world.cut_power(at).await;
            let gone = Instant::now();
            let next = world.master().await;
            without += gone.elapsed() + FAILOVER_MAX;
            world.restart(at).await;
            at = next;
        }
        sleep(s(5)).await;
        let gone = Instant::now();
        for at in 0..3 {
            world.close(at).await;
        }
        sleep(s(20)).await;
        for at in 0..3 {
            world.restart(at).await;
        }
        at = world.master().await;
        without += gone.elapsed() + FAILOVER_MAX;
        let env = world.hosts[at].env().clone();
        let left = left(&env, "k").await.expect("a time to live");
        gone_after(&env, "k").await;
        let lived = began.elapsed();
        assert!(left <= s(21) && lived >= s(40), "{left:?}, {lived:?}");
        assert!(
            lived <= s(40) + without + late_max(s(40)),
            "{lived:?} with {without:?}"
        );
        assert_same(&world).await;
    });
}

/// A key as the test knows it.
struct Key {
    name: String,
    ttl: Duration,
    began: Instant,
    token: CommitToken,
    /// The time that failovers have taken since it was put.
    without: Duration,
    is_gone: bool,
}

/// Keys whose nodes have clocks of different speed, within the allowance.
struct Keys {
    world: World,
    chance: StdRng,
    known: Vec<Key>,
    expired: usize,
}

impl Keys {
    async fn new(seed: u64) -> Self {
        let mut chance = StdRng::seed_from_u64(seed);
        let world = World::new(seed).await;
        for host in &world.hosts {
            host.speed_ppm(chance.random_range(-1_000..=1_000));
        }
        Self {
            world,
            chance,
            known: Vec::new(),
            expired: 0,
        }
    }

    async fn put(&mut self) {
        let at = self.world.master().await;
        let ttl = Duration::from_millis(self.chance.random_range(1..20_000));
        let (name, began) = (format!("k{}", self.known.len()), Instant::now());
        let keys = self.world.hosts[at].env().database("keys");
        let written = keys.put_with_ttl_async(&name, "v", ttl).await;
        let key = |token| Key {
            name,
            ttl,
            began,
            token,
            without: Duration::ZERO,
            is_gone: false,
        };
        self.known.extend(written.ok().map(key));
    }

    /// Looks on every node whether a key is gone that may not be, or there that may not be.
    async fn look(&mut self) {
        for host in &self.world.hosts {
            let read = host
                .env()
                .read_async(ConsistencyPolicy::Eventual, |snapshot| {
                    let names = snapshot.database("keys")?.iter();
                    let names: Result<Vec<_>, _> =
                        names.map(|row| row.map(|(key, _)| key)).collect();
                    Ok::<_, ReadError>((snapshot.vlsn(), names?))
                });
            let Ok((vlsn, there)) = read.await else {
                continue;
            };
            for key in self.known.iter_mut().filter(|key| key.token.vlsn <= vlsn) {
                let (lived, ttl) = (key.began.elapsed(), key.ttl);
                let is_there = there.contains(&Bytes::from(key.name.clone()));
                assert!(
                    is_there || lived >= ttl,
                    "{} after {lived:?} of {ttl:?}",
                    key.name
                );
                self.expired += usize::from(!is_there && !key.is_gone);
                key.is_gone |= !is_there;
            }
        }
        for key in self.known.iter().filter(|key| !key.is_gone) {
            let lived = key.began.elapsed();
            let max = key.ttl + key.without + late_max(key.ttl) + s(1);
            assert!(
                lived <= max,
                "{} lives for {lived:?}, at most {max:?}",
                key.name
            );
        }
    }

    /// Takes the master away. Those keys live longer that are there.
    async fn fail_over(&mut self) {
        let at = self.world.master().await;
        let gone = Instant::now();
        if self.chance.random_bool(0.5) {
            self.world.cut_power(at).await;
        } else {
            self.world.kill(at).await;
        }
        self.world.master().await;
        self.world.restart(at).await;
        let ready = self.world.hosts[at].env().wait_ready_async(s(60)).await;
        ready.expect("it comes back");
        let without = gone.elapsed() + FAILOVER_MAX;
        for key in self.known.iter_mut().filter(|key| !key.is_gone) {
            key.without += without;
        }
    }
}

#[test]
fn no_key_ends_early_and_each_ends_in_time_through_failovers_with_fast_and_slow_clocks() {
    for seed in 70..72 {
        paused().block_on(async {
            let mut keys = Keys::new(seed).await;
            for round in 0..300 {
                keys.put().await;
                if round % 60 == 59 {
                    keys.fail_over().await;
                }
                keys.look().await;
                let pause_ms = keys.chance.random_range(0..200);
                sleep(Duration::from_millis(pause_ms)).await;
            }
            while keys.known.iter().any(|key| !key.is_gone) {
                keys.look().await;
                sleep(Duration::from_millis(40)).await;
            }
            assert!(
                keys.expired > 250,
                "{} of {}",
                keys.expired,
                keys.known.len()
            );
            assert_same(&keys.world).await;
        });
    }
}
