use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};

use proptest::prelude::*;

use super::*;

const DB: DatabaseId = DatabaseId(1);

fn written(vlsn: Vlsn, key: &[u8], value: Option<&'static str>) -> Written {
    let operation = Operation {
        database: DB,
        key: Bytes::copy_from_slice(key),
        value: value.map(Into::into),
        expires: false,
    };
    Written::of(vlsn, operation)
}

/// A value that is counted as long as it is in memory.
struct Counted(Arc<AtomicUsize>);

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        b"value"
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[test]
fn what_leaves_is_freed() {
    let (window, in_memory) = (Window::default(), Arc::new(AtomicUsize::new(0)));
    // Of each key, three versions.
    for n in 1..=300 {
        in_memory.fetch_add(1, Ordering::Relaxed);
        let value = Bytes::from_owner(Counted(Arc::clone(&in_memory)));
        let key = u8::try_from(n % 100).expect("a byte");
        let version = written(Vlsn(n), &[key], None);
        window.insert(&Written {
            value: Some(value),
            ..version
        });
    }
    for direction in [Direction::Forward, Direction::Reverse] {
        for keys in [1000, 10] {
            let all = KeyRange::all();
            let rows = window.scan(DB, &all, direction, Vlsn(300));
            assert_eq!(rows.take(keys).count(), keys.min(100));
        }
    }
    for n in 1..=300 {
        let key = u8::try_from(n % 100).expect("a byte");
        assert_ne!(window.remove(&written(Vlsn(n), &[key], None)), 0);
        assert_eq!(window.remove(&written(Vlsn(n), &[key], None)), 0);
    }
    assert_eq!(in_memory.load(Ordering::Relaxed), 0);
    assert!(window.read().is_empty());
}

/// Each key is put and then deleted, and its versions leave in that order.
#[test]
fn a_scan_beside_an_eviction_never_shows_what_was_deleted() {
    let (window, visible) = (Window::default(), AtomicU64::new(0));
    let done = AtomicBool::new(false);
    let scan = |direction| {
        while !done.load(Ordering::Relaxed) {
            let at = Vlsn(visible.load(Ordering::Acquire));
            let all = KeyRange::all();
            let rows: Vec<_> = window.scan(DB, &all, direction, at).take(256).collect();
            assert!(rows.iter().all(|(_, value)| value.is_none()), "{rows:?}");
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| scan(Direction::Forward));
        scope.spawn(|| scan(Direction::Reverse));
        for put in (1..6_000).step_by(2).map(Vlsn) {
            for key in 0..32 {
                window.insert(&written(put, &[key], Some("old")));
                window.insert(&written(put.next(), &[key], None));
            }
            visible.store(put.next().0, Ordering::Release);
            for key in 0..32 {
                window.remove(&written(put, &[key], Some("old")));
                window.remove(&written(put.next(), &[key], None));
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    assert_eq!(window.bytes(), 0);
}

/// Keys that are alike in their first 16 bytes, or in all but the zeros at their end.
fn key() -> impl Strategy<Value = Vec<u8>> {
    let alike = prop_oneof![Just(0_usize), Just(14), Just(15), Just(16), Just(17)];
    let end = proptest::collection::vec(prop_oneof![Just(0_u8), Just(1), Just(255)], 0..3);
    (alike, end).prop_map(|(alike, end)| [vec![b'k'; alike], end].concat())
}

#[derive(Clone, Debug)]
enum Step {
    /// Adds a version, or takes the oldest away that is there.
    Add(Vec<u8>, bool),
    TakeOldest,
    TakeNewest,
    Get(Vec<u8>, u64),
    Scan(Bound<Vec<u8>>, Bound<Vec<u8>>, bool, u64),
}

fn bound() -> impl Strategy<Value = Bound<Vec<u8>>> {
    prop_oneof![
        Just(Bound::Unbounded),
        key().prop_map(Bound::Included),
        key().prop_map(Bound::Excluded)
    ]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    const AT: RangeInclusive<u64> = 0..=300;
    let step = prop_oneof![
        4 => (key(), any::<bool>()).prop_map(|(key, is_value)| Step::Add(key, is_value)),
        1 => Just(Step::TakeOldest),
        1 => Just(Step::TakeNewest),
        2 => (key(), AT).prop_map(|(key, at)| Step::Get(key, at)),
        2 => (bound(), bound(), any::<bool>(), AT)
            .prop_map(|(start, end, forward, at)| Step::Scan(start, end, forward, at)),
    ];
    proptest::collection::vec(step, 1..300)
}

proptest! {
    /// Held against a list of all versions that is looked through each time.
    #[test]
    fn reads_see_what_a_list_of_all_versions_has(steps in steps()) {
        let window = Window::default();
        let mut list: VecDeque<Written> = VecDeque::new();
        let mut vlsn = Vlsn(0);
        let newest = |list: &VecDeque<Written>, key: &[u8], at: u64| {
            let of_key = list.iter().filter(|one| one.place.key == key && one.vlsn.0 <= at);
            of_key.max_by_key(|one| one.vlsn).cloned()
        };
        for step in steps {
            match step {
                Step::Add(key, is_value) => {
                    vlsn = vlsn.next();
                    let added = written(vlsn, &key, is_value.then_some("value"));
                    window.insert(&added);
                    list.push_back(added);
                }
                Step::TakeOldest | Step::TakeNewest => {
                    let taken = match step {
                        Step::TakeOldest => list.pop_front(),
                        _ => list.pop_back(),
                    };
                    if let Some(taken) = taken {
                        prop_assert_eq!(window.remove(&taken), taken.bytes());
                    }
                }
                Step::Get(key, at) => {
                    let key = Bytes::from(key);
                    let wanted = newest(&list, &key, at).map(|one| Version::from(one.value));
                    prop_assert_eq!(window.newest(DB, &key, Vlsn(at)), wanted);
                    let last = newest(&list, &key, u64::MAX);
                    let is_newer = last.is_some_and(|last| last.vlsn.0 > at);
                    prop_assert_eq!(window.key_changed(DB, &key, Vlsn(at)), is_newer);
                }
                Step::Scan(start, end, forward, at) => {
                    let range = KeyRange { start: start.map(Bytes::from), end: end.map(Bytes::from) };
                    let inside = list.iter().filter(|one| range.contains(&one.place.key));
                    let keys: std::collections::BTreeSet<_> = inside.map(|one| one.place.key.clone()).collect();
                    let rows = keys.iter().filter_map(|key| newest(&list, key, at));
                    let mut rows: Vec<WindowRow> = rows.map(|one| (one.place.key, one.value)).collect();
                    let direction = if forward { Direction::Forward } else { Direction::Reverse };
                    if !forward {
                        rows.reverse();
                    }
                    let scanned: Vec<_> = window.scan(DB, &range, direction, Vlsn(at)).collect();
                    prop_assert_eq!(scanned, rows);
                    let is_newer = keys.iter().any(|key| newest(&list, key, u64::MAX).is_some_and(|one| one.vlsn.0 > at));
                    prop_assert_eq!(window.range_changed(DB, &range, Vlsn(at)), is_newer);
                    prop_assert!(!window.range_changed(DatabaseId(2), &range, Vlsn(0)));
                }
            }
        }
        prop_assert_eq!(window.bytes(), list.iter().map(Written::bytes).sum::<usize>());
    }
}
