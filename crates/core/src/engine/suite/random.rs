//! Random histories against a model, and reads beside writes.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;

pub(super) fn random_histories_match_a_map(bed: &Bed) {
    for seed in 0..6 {
        let mut chance = StdRng::seed_from_u64(seed);
        let mut model = Model::new();
        // Each seed has databases of its own, because they share the directory.
        let databases: Vec<_> = (0..3)
            .map(|n| DatabaseId(u32::try_from(seed).unwrap() * 10 + n))
            .collect();
        let mut engine = bed.open();
        for number in 1..=60 {
            let changes = random_changes(&mut chance, &databases);
            for (database, key, change) in &changes {
                match change {
                    Change::Put(value) => {
                        model.insert((*database, key.clone()), value.clone());
                    }
                    Change::Delete => {
                        model.remove(&(*database, key.clone()));
                    }
                }
            }
            apply(&*engine, number, changes);
            match chance.random_range(0..10) {
                0 => engine.sync().unwrap(),
                1 => {
                    drop(engine);
                    engine = bed.open();
                    assert_eq!(engine.applied().unwrap(), Some(applied(number)));
                }
                2 => {
                    engine.close().unwrap();
                    engine = bed.open();
                }
                _ => {}
            }
            compare(&mut chance, &*engine, &model, &databases);
        }
    }
}

fn random_changes(
    chance: &mut StdRng,
    databases: &[DatabaseId],
) -> Vec<(DatabaseId, Bytes, Change)> {
    let count = [0, 1, 5, 40, 400][chance.random_range(0..5)];
    let mut changes = BTreeMap::new();
    for _ in 0..count {
        let database = databases[chance.random_range(0..databases.len())];
        let change = if chance.random_bool(0.6) {
            let length = [0, 1, 16, 17, 300][chance.random_range(0..5)];
            Change::Put(vec![chance.random(); length].into())
        } else {
            Change::Delete
        };
        changes.insert((database, random_key(chance)), change);
    }
    changes
        .into_iter()
        .map(|((database, key), change)| (database, key, change))
        .collect()
}

/// One of few possible keys: short ones of extreme bytes, and longer ones with a common prefix.
fn random_key(chance: &mut StdRng) -> Bytes {
    let length = chance.random_range(0..5);
    let mut key: Vec<u8> = (0..length)
        .map(|_| [0, 1, b'a', 0xfe, 0xff][chance.random_range(0..5)])
        .collect();
    if chance.random_bool(0.5) {
        key = [
            b"common prefix ".to_vec(),
            chance.random_range(0..600_u16).to_be_bytes().into(),
            key,
        ]
        .concat();
    }
    key.into()
}

fn compare(
    chance: &mut StdRng,
    engine: &dyn StorageEngine,
    model: &Model,
    databases: &[DatabaseId],
) {
    for &database in databases {
        for _ in 0..20 {
            let key = random_key(chance);
            let expected = model.get(&(database, key.clone())).cloned();
            assert_eq!(
                engine.get(database, &key).unwrap(),
                expected,
                "{database} {key:?}"
            );
        }
        for _ in 0..4 {
            let range = KeyRange {
                start: random_bound(chance),
                end: random_bound(chance),
            };
            let limit = [1, 10, usize::MAX][chance.random_range(0..3)];
            let inside = model
                .iter()
                .filter(|((id, key), _)| *id == database && range.contains(key))
                .map(|((_, key), value)| (key.clone(), value.clone()));
            let forward: Vec<_> = inside.clone().take(limit).collect();
            let reverse: Vec<_> = inside.rev().take(limit).collect();
            let scan = |direction| {
                engine
                    .scan(database, range.clone(), direction, ScanLimit::keys(limit))
                    .unwrap()
            };
            assert_eq!(scan(Direction::Forward), forward, "{database} {range:?}");
            assert_eq!(scan(Direction::Reverse), reverse, "{database} {range:?}");
        }
    }
}

fn random_bound(chance: &mut StdRng) -> Bound<Bytes> {
    match chance.random_range(0..5) {
        0 => Bound::Unbounded,
        1 | 2 => Bound::Included(random_key(chance)),
        _ => Bound::Excluded(random_key(chance)),
    }
}

const STRESS_KEYS: u32 = 3_000;
const STRESS_BATCHES: u64 = 60;

/// One thread applies batches; three read. Even keys are overwritten by every batch with its
/// number; odd keys are put and deleted in turn.
pub(super) fn reads_beside_an_apply_are_right(bed: &Bed) {
    let engine = bed.open();
    let stress = Stress {
        engine: &*engine,
        started: 0.into(),
        ended: 0.into(),
        stop: false.into(),
    };
    stress.apply(1);
    std::thread::scope(|scope| {
        for seed in 0..3 {
            let stress = &stress;
            scope.spawn(move || {
                let mut chance = StdRng::seed_from_u64(seed);
                while !stress.stop.load(Ordering::SeqCst) {
                    stress.get(&mut chance);
                    stress.scan(&mut chance);
                }
            });
        }
        for number in 2..=STRESS_BATCHES {
            stress.apply(number);
            if number.is_multiple_of(8) {
                engine.sync().unwrap();
            }
        }
        stress.stop.store(true, Ordering::SeqCst);
    });
}

struct Stress<'a> {
    engine: &'a dyn StorageEngine,
    /// Numbers of the newest batch whose `apply` was called, and of the newest whose has returned.
    started: AtomicU64,
    ended: AtomicU64,
    stop: AtomicBool,
}

impl Stress<'_> {
    fn apply(&self, number: u64) {
        let changes = (0..STRESS_KEYS).map(|key| {
            if key.is_multiple_of(2) || number.is_multiple_of(2) {
                put(key.to_be_bytes(), Self::value(key, number))
            } else {
                delete(key.to_be_bytes())
            }
        });
        let changes = changes.collect();
        self.started.store(number, Ordering::SeqCst);
        apply(self.engine, number, changes);
        self.ended.store(number, Ordering::SeqCst);
    }

    /// Long enough to lie outside Noxu's tree, in its log.
    fn value(key: u32, number: u64) -> Vec<u8> {
        format!("{key} {number} {}", "x".repeat(200)).into_bytes()
    }

    fn check(key: u32, value: &[u8], first: u64, last: u64) {
        let text = std::str::from_utf8(value).unwrap();
        let mut words = text.split(' ');
        assert_eq!(
            words.next().unwrap(),
            key.to_string(),
            "value of another key"
        );
        let number: u64 = words.next().unwrap().parse().unwrap();
        assert!(
            (first..=last).contains(&number),
            "{key}: {number} not in {first}..={last}"
        );
        assert_eq!(words.next().unwrap().len(), 200);
    }

    fn get(&self, chance: &mut StdRng) {
        let key = chance.random_range(0..STRESS_KEYS);
        let first = self.ended.load(Ordering::SeqCst);
        let value = self.engine.get(DB, &key.to_be_bytes()).unwrap();
        let last = self.started.load(Ordering::SeqCst);
        match value {
            Some(value) => Self::check(key, &value, first, last),
            None => assert!(!key.is_multiple_of(2), "{key} is missing"),
        }
    }

    fn scan(&self, chance: &mut StdRng) {
        let start = chance.random_range(0..STRESS_KEYS);
        let end = chance.random_range(start..STRESS_KEYS.min(start + 400));
        let range = KeyRange::of(start.to_be_bytes()..=end.to_be_bytes());
        let direction = if chance.random_bool(0.5) {
            Direction::Forward
        } else {
            Direction::Reverse
        };
        let first = self.ended.load(Ordering::SeqCst);
        let mut pairs = self
            .engine
            .scan(DB, range, direction, ScanLimit::NONE)
            .unwrap();
        let last = self.started.load(Ordering::SeqCst);
        if direction == Direction::Reverse {
            pairs.reverse();
        }
        let number = |key: &Bytes| u32::from_be_bytes(key[..].try_into().unwrap());
        assert!(pairs.is_sorted_by(|a, b| a.0 < b.0));
        for (key, value) in &pairs {
            Self::check(number(key), value, first, last);
        }
        let even = |key: &u32| key.is_multiple_of(2);
        let found: Vec<_> = pairs
            .iter()
            .map(|(key, _)| number(key))
            .filter(even)
            .collect();
        let missing: Vec<_> = (start..=end)
            .filter(even)
            .filter(|key| found.binary_search(key).is_err())
            .collect();
        assert!(
            missing.is_empty(),
            "{direction:?} scan of {start}..={end} misses {missing:?}"
        );
    }
}
