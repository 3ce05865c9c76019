//! The contract of [`StorageEngine`] as a test, run against every engine.
//!
//! To add an engine, add a constructor to [`Bed`] and a line to `every_engine!`.
//! `tests/engine_crash.rs` tests what a process crash leaves, for the engines that have a process
//! to kill.

mod random;
mod reclaim;

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use tempfile::TempDir;

use super::{
    Applied, Change, Direction, EngineBatch, EngineError, EngineFactory, KEY_BYTES_MAX, KeyRange,
    MemoryStore, NoxuFactory, ScanLimit, StorageEngine, VALUE_BYTES_MAX,
};
use crate::ids::{DatabaseId, LogPosition, Term, Vlsn};

use random::{random_histories_match_a_map, reads_beside_an_apply_are_right};
use reclaim::{
    a_database_is_reclaimed_in_steps_and_the_others_stay,
    what_is_reclaimed_stays_so_beside_batches_and_over_a_restart,
};

const DB: DatabaseId = DatabaseId(1);

/// An engine's factory and the directory that it opens.
struct Bed {
    factory: Box<dyn EngineFactory>,
    dir: TempDir,
}

impl Bed {
    fn new(factory: impl EngineFactory + 'static) -> Self {
        Self {
            factory: Box::new(factory),
            dir: TempDir::new().unwrap(),
        }
    }

    fn memory() -> Self {
        Self::new(MemoryStore::new())
    }

    fn noxu() -> Self {
        Self::new(NoxuFactory {
            cache_bytes: 32 << 20,
        })
    }

    /// A cache so small that most reads miss it.
    fn noxu_uncached() -> Self {
        Self::new(NoxuFactory {
            cache_bytes: 1 << 20,
        })
    }

    fn open(&self) -> Arc<dyn StorageEngine> {
        self.factory.open(self.dir.path()).unwrap()
    }
}

macro_rules! every_engine {
    ($($contract:ident)*) => {
        mod memory { $(#[test] fn $contract() { super::$contract(&super::Bed::memory()); })* }
        mod noxu { $(#[test] fn $contract() { super::$contract(&super::Bed::noxu()); })* }
        mod noxu_uncached {
            $(#[test] fn $contract() { super::$contract(&super::Bed::noxu_uncached()); })*
        }
    };
}

every_engine! {
    a_fresh_engine_is_empty
    puts_overwrites_and_deletes_are_read_back
    a_batch_moves_applied_also_when_it_changes_nothing
    durable_follows_applied_at_sync_and_at_open
    everything_applied_survives_close_and_drop
    empty_keys_and_values_are_kept
    the_longest_keys_and_values_are_kept
    databases_do_not_mix
    ranges_hold_what_their_bounds_say
    scans_go_on_where_a_chunk_ended
    scans_skip_stretches_of_deleted_keys
    a_scan_ends_with_the_pair_that_reaches_its_bytes
    a_database_is_reclaimed_in_steps_and_the_others_stay
    what_is_reclaimed_stays_so_beside_batches_and_over_a_restart
    what_was_written_passes_a_check_also_unsynced_and_after_a_close
    an_unsorted_batch_panics_and_changes_nothing
    a_closed_engine_says_so
    a_directory_opens_once
    an_engine_that_was_removed_is_gone
    random_histories_match_a_map
    reads_beside_an_apply_are_right
}

fn applied(number: u64) -> Applied {
    Applied {
        term: Term(number / 10),
        position: LogPosition(number),
        vlsn: Vlsn(number * 3),
        membership: Bytes::from(format!("members {number}")),
    }
}

fn put(key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> (DatabaseId, Bytes, Change) {
    let copy = Bytes::copy_from_slice;
    (DB, copy(key.as_ref()), Change::Put(copy(value.as_ref())))
}

fn delete(key: impl AsRef<[u8]>) -> (DatabaseId, Bytes, Change) {
    (DB, Bytes::copy_from_slice(key.as_ref()), Change::Delete)
}

fn batch(number: u64, changes: Vec<(DatabaseId, Bytes, Change)>) -> EngineBatch {
    EngineBatch {
        applied: applied(number),
        changes,
    }
}

fn apply(engine: &dyn StorageEngine, number: u64, changes: Vec<(DatabaseId, Bytes, Change)>) {
    engine.apply(&batch(number, changes)).unwrap();
}

fn get(engine: &dyn StorageEngine, key: impl AsRef<[u8]>) -> Option<Bytes> {
    engine.get(DB, key.as_ref()).unwrap()
}

fn keys(engine: &dyn StorageEngine, range: KeyRange, direction: Direction) -> Vec<Bytes> {
    let pairs = engine.scan(DB, range, direction, ScanLimit::NONE).unwrap();
    pairs.into_iter().map(|(key, _)| key).collect()
}

fn a_fresh_engine_is_empty(bed: &Bed) {
    let engine = bed.open();
    assert_eq!(engine.applied().unwrap(), None);
    assert_eq!(engine.durable(), None);
    assert_eq!(get(&*engine, "a"), None);
    assert_eq!(
        keys(&*engine, KeyRange::all(), Direction::Forward),
        Vec::<Bytes>::new()
    );
    assert_eq!(
        keys(&*engine, KeyRange::all(), Direction::Reverse),
        Vec::<Bytes>::new()
    );
    engine.sync().unwrap();
    assert_eq!(engine.durable(), None);
}

fn puts_overwrites_and_deletes_are_read_back(bed: &Bed) {
    let engine = bed.open();
    apply(
        &*engine,
        1,
        vec![put("a", "1"), put("b", "1"), put("c", "1")],
    );
    apply(
        &*engine,
        2,
        vec![put("a", "2"), delete("b"), delete("missing")],
    );
    assert_eq!(get(&*engine, "a").unwrap(), "2");
    assert_eq!(get(&*engine, "b"), None);
    assert_eq!(get(&*engine, "c").unwrap(), "1");
    apply(&*engine, 3, vec![put("b", "3")]);
    assert_eq!(get(&*engine, "b").unwrap(), "3");
}

fn a_batch_moves_applied_also_when_it_changes_nothing(bed: &Bed) {
    let engine = bed.open();
    apply(&*engine, 7, vec![]);
    assert_eq!(engine.applied().unwrap(), Some(applied(7)));
    drop(engine);
    assert_eq!(bed.open().applied().unwrap(), Some(applied(7)));
}

fn durable_follows_applied_at_sync_and_at_open(bed: &Bed) {
    let engine = bed.open();
    apply(&*engine, 1, vec![put("a", "1")]);
    assert_eq!(engine.durable(), None);
    engine.sync().unwrap();
    apply(&*engine, 2, vec![put("a", "2")]);
    assert_eq!(engine.durable(), Some(applied(1)));
    drop(engine);
    let engine = bed.open();
    assert_eq!(engine.applied().unwrap(), Some(applied(2)));
    assert_eq!(engine.durable(), Some(applied(2)));
}

fn what_was_written_passes_a_check_also_unsynced_and_after_a_close(bed: &Bed) {
    for round in 0..3_u64 {
        let engine = bed.open();
        engine.check().unwrap();
        for number in 1..=8 {
            let rows = (0..64_u64).map(|row| put(row.to_be_bytes(), vec![7; 2000]));
            apply(&*engine, round * 8 + number, rows.collect());
        }
        assert!(engine.check().unwrap() >= 64 * 2000);
        engine.close().unwrap();
    }
}

fn everything_applied_survives_close_and_drop(bed: &Bed) {
    for number in 1..=6_u64 {
        let engine = bed.open();
        let expected = (number > 1).then(|| Bytes::from((number - 1).to_string()));
        assert_eq!(get(&*engine, "round"), expected);
        apply(&*engine, number, vec![put("round", number.to_string())]);
        if number.is_multiple_of(2) {
            engine.close().unwrap();
        }
    }
}

fn empty_keys_and_values_are_kept(bed: &Bed) {
    let engine = bed.open();
    let many = (0..2_000_u32).map(|n| put(n.to_be_bytes(), [7; 100]));
    apply(&*engine, 1, many.collect());
    apply(&*engine, 2, vec![put("", "empty key"), put("a", "")]);
    drop(engine);
    let engine = bed.open();
    assert_eq!(get(&*engine, "").unwrap(), "empty key");
    assert_eq!(get(&*engine, "a").unwrap(), "");
    let all = engine
        .scan(DB, KeyRange::all(), Direction::Forward, ScanLimit::NONE)
        .unwrap();
    assert_eq!(all.len(), 2_002);
    assert_eq!(
        all.first().unwrap(),
        &(Bytes::new(), Bytes::from("empty key"))
    );
    assert_eq!(all.last().unwrap(), &(Bytes::from("a"), Bytes::new()));
    let (_, values): (Vec<_>, Vec<_>) = all.into_iter().unzip();
    assert!(values[1..2_001].iter().all(|value| value[..] == [7; 100]));
    let all = keys(&*engine, KeyRange::all(), Direction::Reverse);
    assert_eq!(all.last().unwrap(), "");
    apply(&*engine, 3, vec![delete("")]);
    assert_eq!(get(&*engine, ""), None);
    assert_eq!(
        keys(&*engine, KeyRange::all(), Direction::Forward).len(),
        2_001
    );
}

fn the_longest_keys_and_values_are_kept(bed: &Bed) {
    let key = |end: u8| {
        let mut key = vec![b'k'; KEY_BYTES_MAX];
        key[KEY_BYTES_MAX - 1] = end;
        key
    };
    let value = vec![b'v'; VALUE_BYTES_MAX];
    let engine = bed.open();
    apply(
        &*engine,
        1,
        (0..20).map(|end| put(key(end), [end])).collect(),
    );
    apply(&*engine, 2, vec![put("big", &value), put(key(3), &value)]);
    apply(&*engine, 3, vec![put("big", "small"), delete(key(4))]);
    apply(&*engine, 4, vec![put("big", &value)]);
    drop(engine);
    let engine = bed.open();
    assert!(get(&*engine, "big").unwrap() == value);
    assert!(get(&*engine, key(3)).unwrap() == value);
    assert_eq!(get(&*engine, key(4)), None);
    assert_eq!(&get(&*engine, key(5)).unwrap()[..], [5]);
    assert_eq!(
        keys(&*engine, KeyRange::prefix(b"kk"), Direction::Forward).len(),
        19
    );
}

fn databases_do_not_mix(bed: &Bed) {
    let ids = || [0, 1, 2, 77, u32::MAX].map(DatabaseId);
    let value = |id: DatabaseId| Bytes::from(id.to_string());
    let key = Bytes::from_static(b"key");
    let engine = bed.open();
    let changes = ids().map(|id| (id, key.clone(), Change::Put(value(id))));
    engine.apply(&batch(1, changes.to_vec())).unwrap();
    engine
        .apply(&batch(
            2,
            vec![(DatabaseId(2), key.clone(), Change::Delete)],
        ))
        .unwrap();
    engine
        .apply(&batch(
            3,
            vec![(DatabaseId(9), key.clone(), Change::Delete)],
        ))
        .unwrap();
    drop(engine);
    let engine = bed.open();
    assert_eq!(engine.stats().databases, ids().len());
    for id in ids() {
        let expected = (id != DatabaseId(2)).then(|| value(id));
        assert_eq!(engine.get(id, &key).unwrap(), expected);
        let pairs = engine
            .scan(id, KeyRange::all(), Direction::Forward, ScanLimit::keys(10))
            .unwrap();
        assert_eq!(pairs.first().map(|(_, value)| value.clone()), expected);
    }
}

fn ranges_hold_what_their_bounds_say(bed: &Bed) {
    let engine = bed.open();
    let all: [&[u8]; 15] = [
        b"",
        b"\0",
        b"a",
        b"a\0",
        b"aa",
        b"ab",
        b"b",
        b"ba",
        b"c",
        b"\xfe",
        b"\xff",
        b"\xff\0",
        b"\xff\xfe",
        b"\xff\xff",
        b"\xff\xff\xff",
    ];
    let all = all.map(Bytes::from_static);
    apply(&*engine, 1, all.iter().map(|key| put(key, key)).collect());
    // Bounds on, between, before and after the keys, including crossed ones.
    let mut bounds = vec![Bound::Unbounded];
    for key in all
        .iter()
        .cloned()
        .chain([Bytes::from("aaa"), Bytes::from("zz")])
    {
        bounds.push(Bound::Included(key.clone()));
        bounds.push(Bound::Excluded(key));
    }
    let mut ranges: Vec<_> = ["", "a", "b", "z"]
        .map(|p| KeyRange::prefix(p.as_bytes()))
        .into();
    ranges.extend([KeyRange::prefix(b"\xff"), KeyRange::prefix(b"\xff\xff")]);
    for start in &bounds {
        for end in &bounds {
            ranges.push(KeyRange {
                start: start.clone(),
                end: end.clone(),
            });
        }
    }
    for range in ranges {
        let mut expected: Vec<_> = all
            .iter()
            .filter(|key| range.contains(key))
            .cloned()
            .collect();
        assert_eq!(
            keys(&*engine, range.clone(), Direction::Forward),
            expected,
            "{range:?}"
        );
        expected.reverse();
        assert_eq!(
            keys(&*engine, range.clone(), Direction::Reverse),
            expected,
            "{range:?}"
        );
    }
}

fn scans_go_on_where_a_chunk_ended(bed: &Bed) {
    let engine = bed.open();
    apply(
        &*engine,
        1,
        (0..1_000_u32)
            .map(|n| put(n.to_be_bytes(), n.to_string()))
            .collect(),
    );
    assert_eq!(
        engine
            .scan(DB, KeyRange::all(), Direction::Forward, ScanLimit::keys(0))
            .unwrap(),
        vec![]
    );
    for direction in [Direction::Forward, Direction::Reverse] {
        let whole = keys(&*engine, KeyRange::all(), direction);
        assert_eq!(whole.len(), 1_000);
        for limit in [1, 7, 250, 1_000, 1_001] {
            assert_eq!(chunked(&*engine, direction, ScanLimit::keys(limit)), whole);
        }
        for bytes in [1, 7, 8, 3_000, usize::MAX] {
            let limit = ScanLimit { keys: 300, bytes };
            assert_eq!(chunked(&*engine, direction, limit), whole);
        }
    }
}

fn chunked(engine: &dyn StorageEngine, direction: Direction, limit: ScanLimit) -> Vec<Bytes> {
    let (mut found, mut range) = (Vec::new(), KeyRange::all());
    loop {
        let chunk = engine.scan(DB, range.clone(), direction, limit).unwrap();
        let is_last = !limit.is_reached(&chunk);
        found.extend(chunk.into_iter().map(|(key, _)| key));
        if is_last {
            return found;
        }
        range = range.after(found.last().unwrap().clone(), direction);
    }
}

fn scans_skip_stretches_of_deleted_keys(bed: &Bed) {
    let engine = bed.open();
    let count = 20_000_u32;
    apply(
        &*engine,
        1,
        (0..count).map(|n| put(n.to_be_bytes(), [1; 30])).collect(),
    );
    // All but the first, the last and one in the middle.
    let kept = [0, 9_000, count - 1];
    let deleted = (0..count).filter(|n| !kept.contains(n));
    apply(
        &*engine,
        2,
        deleted.map(|n| delete(n.to_be_bytes())).collect(),
    );
    let expect = |engine: &dyn StorageEngine| {
        let mut expected = kept
            .map(|n| Bytes::copy_from_slice(&n.to_be_bytes()))
            .to_vec();
        assert_eq!(keys(engine, KeyRange::all(), Direction::Forward), expected);
        for start in (1..count).step_by(977) {
            let from = KeyRange::of(start.to_be_bytes()..);
            let left: Vec<_> = expected
                .iter()
                .filter(|key| from.contains(key))
                .cloned()
                .collect();
            assert_eq!(keys(engine, from, Direction::Forward), left, "from {start}");
            let to = KeyRange::of(..start.to_be_bytes());
            let mut left: Vec<_> = expected
                .iter()
                .filter(|key| to.contains(key))
                .cloned()
                .collect();
            left.reverse();
            assert_eq!(keys(engine, to, Direction::Reverse), left, "to {start}");
        }
        expected.reverse();
        assert_eq!(keys(engine, KeyRange::all(), Direction::Reverse), expected);
    };
    expect(&*engine);
    engine.close().unwrap();
    expect(&*bed.open());
}

fn a_scan_ends_with_the_pair_that_reaches_its_bytes(bed: &Bed) {
    let engine = bed.open();
    // A key of one byte and a value of 999 each.
    apply(
        &*engine,
        1,
        (0..50_u8).map(|n| put([n], [n; 999])).collect(),
    );
    engine.close().unwrap();
    let engine = bed.open();
    for direction in [Direction::Forward, Direction::Reverse] {
        for (bytes, count) in [
            (1, 1),
            (1_000, 1),
            (1_001, 2),
            (9_999, 10),
            (49_000, 49),
            (49_001, 50),
        ] {
            let limit = ScanLimit { keys: 100, bytes };
            let found = engine.scan(DB, KeyRange::all(), direction, limit).unwrap();
            assert_eq!(found.len(), count, "{bytes} bytes");
            assert!(limit.is_reached(&found));
        }
        let limit = ScanLimit {
            keys: 51,
            bytes: 50_001,
        };
        let found = engine.scan(DB, KeyRange::all(), direction, limit).unwrap();
        assert!(found.len() == 50 && !limit.is_reached(&found));
    }
}

fn an_unsorted_batch_panics_and_changes_nothing(bed: &Bed) {
    let engine = bed.open();
    for changes in [
        vec![put("b", "1"), put("a", "1")],
        vec![put("a", "1"), delete("a")],
    ] {
        let engine = std::panic::AssertUnwindSafe(&engine);
        let result = std::panic::catch_unwind(|| engine.apply(&batch(1, changes)));
        assert!(result.is_err());
    }
    assert_eq!(engine.applied().unwrap(), None);
    apply(&*engine, 1, vec![put("b", "1")]);
    assert_eq!(get(&*engine, "a"), None);
}

fn a_closed_engine_says_so(bed: &Bed) {
    let engine = bed.open();
    apply(&*engine, 1, vec![put("a", "1")]);
    engine.close().unwrap();
    engine.close().unwrap();
    assert_eq!(engine.durable(), Some(applied(1)));
    assert!(matches!(engine.applied(), Err(EngineError::Closed)));
    assert!(matches!(
        engine.apply(&batch(2, vec![put("a", "2")])),
        Err(EngineError::Closed)
    ));
    assert!(matches!(engine.sync(), Err(EngineError::Closed)));
    assert!(matches!(engine.get(DB, b"a"), Err(EngineError::Closed)));
    let scan = engine.scan(DB, KeyRange::all(), Direction::Forward, ScanLimit::NONE);
    assert!(matches!(scan, Err(EngineError::Closed)));
}

fn a_directory_opens_once(bed: &Bed) {
    let engine = bed.open();
    let second = bed.factory.open(bed.dir.path());
    assert!(matches!(second.err(), Some(EngineError::InUse { .. })));
    drop(engine);
    bed.open();
}

type Model = BTreeMap<(DatabaseId, Bytes), Bytes>;

fn an_engine_that_was_removed_is_gone(bed: &Bed) {
    let other = bed.dir.path().join("other");
    assert!(!bed.factory.exists(&other).unwrap());
    bed.factory.remove(&other).unwrap();
    let engine = bed.factory.open(&other).unwrap();
    engine.apply(&batch(1, vec![put("k", "v")])).unwrap();
    engine.close().unwrap();
    assert!(bed.factory.exists(&other).unwrap());
    bed.factory.remove(&other).unwrap();
    assert!(!bed.factory.exists(&other).unwrap());
    let engine = bed.factory.open(&other).unwrap();
    assert_eq!(engine.applied().unwrap(), None);
    assert_eq!(engine.get(DB, b"k").unwrap(), None);
    engine.close().unwrap();
}
