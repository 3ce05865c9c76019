use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::ids::Term;

/// A clock that runs at a speed of its own, in millionths.
struct Runs(AtomicU64);

impl Clock for Runs {
    fn now_ms(&self) -> u64 {
        0
    }

    fn passed_since(&self, then: Instant) -> Duration {
        let true_us = u64::try_from(then.elapsed().as_micros()).expect("a short run");
        Duration::from_micros(true_us * self.0.load(Ordering::Relaxed) / 1_000_000)
    }
}

fn node(ppm: i64) -> GroupTime {
    let speed = 1_000_000_u64.saturating_add_signed(ppm);
    GroupTime::new(Arc::new(Runs(AtomicU64::new(speed))))
}

fn session(term: u64) -> SessionId {
    SessionId { term: Term(term) }
}

async fn pass(ms: u64) {
    tokio::time::advance(Duration::from_millis(ms)).await;
}

#[tokio::test(start_paused = true)]
async fn no_more_group_time_than_true_time_passes_through_masters_with_fast_and_slow_clocks() {
    let began = Instant::now();
    let mut noted = 0;
    let masters = [1_000, -1_000, 900, 0, -500_000, 1_000];
    for (term, ppm) in (1..).zip(masters) {
        let time = node(ppm);
        assert_eq!(time.go_on(session(term), noted), noted);
        for _ in 0..50 {
            pass(1_237).await;
            let now = time.go_on(session(term), 0);
            assert!(now >= noted, "it goes back");
            noted = now;
            let passed = u64::try_from(began.elapsed().as_millis()).expect("a short run");
            assert!(noted <= passed, "{noted} of {passed}, clock {ppm} ppm");
        }
        // Nobody is master.
        pass(3_000).await;
    }
    // Except in the fifth life, it loses the times without a master and the allowances alone.
    let passed = u64::try_from(began.elapsed().as_millis()).expect("a short run");
    let lost = 6 * 3_000 + 50 * 1_237 / 2 + passed / 400;
    assert!(noted + lost >= passed, "{noted} of {passed}");
}

#[tokio::test(start_paused = true)]
async fn each_session_has_its_own_time_and_an_earlier_one_does_not_come_back() {
    let time = node(0);
    assert_eq!(time.now(session(1)), None);
    time.go_on(session(1), 500);
    pass(10_000).await;
    let told = time.now(session(1)).expect("it goes on");
    assert!((10_480..=10_500).contains(&told), "{told}");
    time.go_on(session(2), 7_000);
    assert_eq!(time.now(session(2)), Some(7_000));
    time.go_on(session(1), 0);
    assert_eq!(
        (time.now(session(1)), time.now(session(2))),
        (None, Some(7_000))
    );
}

#[tokio::test(start_paused = true)]
async fn a_wait_by_the_own_clock_is_long_enough_for_group_time_and_hardly_longer() {
    for group_ms in [0, 1, 2, 998, 999, 1_000, 60_000, 86_400_000] {
        let time = node(0);
        time.go_on(session(1), 0);
        tokio::time::advance(own_time(group_ms)).await;
        let now = time.now(session(1)).expect("it goes on");
        assert!(
            (group_ms..=group_ms + 2).contains(&now),
            "{now} for {group_ms}"
        );
    }
}

#[test]
fn entries_of_the_index_come_back_in_the_order_of_their_deadlines() {
    let entry = |at_ms, database, key: &'static str| Deadline {
        at_ms,
        database: DatabaseId(database),
        key: key.into(),
    };
    let entries = [
        entry(1, 9, "z"),
        entry(255, 2, ""),
        entry(256, 1, "b"),
        entry(256, 2, "a"),
        entry(u64::MAX, 1, "a"),
    ];
    let rows = entries.each_ref().map(Deadline::index_key);
    assert!(rows.is_sorted());
    let due = |now_ms| {
        let range = Deadline::range(&Deadline::first_index_key(), now_ms);
        assert!(!range.contains(&time_key()));
        assert!(!range.contains(&current_key(DatabaseId(1), b"k")));
        rows.iter().filter(|row| range.contains(row)).count()
    };
    assert_eq!([Some(0), Some(255), Some(256), None].map(due), [0, 2, 4, 5]);
    assert!(!Deadline::range(&rows[1], None).contains(&rows[0]));
    for (row, entry) in rows.iter().zip(entries) {
        assert_eq!(Deadline::parse(row).expect("an entry"), entry);
    }
    assert!(Deadline::parse(&Bytes::from_static(&[1, 0, 0])).is_err());
}
