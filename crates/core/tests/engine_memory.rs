//! A Noxu engine's memory stays near the size of its cache, even under overwrites, and is returned
//! on close. Runs alone in its process, whose memory it measures.

#![expect(
    clippy::disallowed_methods,
    reason = "the system is asked for memory and a directory"
)]

use bytes::Bytes;
use steadfast::engine::{
    Applied, Change, Direction, EngineBatch, EngineFactory, KeyRange, NoxuFactory, ScanLimit,
};
use steadfast::ids::{DatabaseId, LogPosition, Term, Vlsn};

const MIB: u64 = 1024 * 1024;
const VALUE_BYTES: u64 = 4096;
const KEYS: u64 = 96 * MIB / VALUE_BYTES;
const BATCH: u64 = 500;

/// Resident memory of this process in bytes.
fn memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("a status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next());
    kib.expect("VmRSS").parse::<u64>().expect("a number") * 1024
}

#[test]
fn values_that_take_the_place_of_others_are_bounded_by_the_cache_and_a_close_gives_it_back() {
    let dir = tempfile::tempdir().expect("a directory");
    let factory = NoxuFactory {
        cache_bytes: 16 * MIB,
    };
    let open = || factory.open(&dir.path().join("engine")).expect("an engine");
    let engine = open();
    let mut batches = 0;
    let mut apply = |keys: &mut dyn Iterator<Item = u64>| {
        batches += 1;
        let applied = Applied {
            term: Term(1),
            position: LogPosition(batches),
            vlsn: Vlsn(batches),
            membership: Bytes::new(),
        };
        let value = Bytes::from(vec![7; usize::try_from(VALUE_BYTES).expect("small")]);
        let mut keys: Vec<_> = keys.map(u64::to_be_bytes).collect();
        keys.sort_unstable();
        keys.dedup();
        let change = |key: [u8; 8]| {
            let key = Bytes::copy_from_slice(&key);
            (DatabaseId(16), key, Change::Put(value.clone()))
        };
        let changes = keys.into_iter().map(change).collect();
        engine
            .apply(&EngineBatch { applied, changes })
            .expect("applied");
    };
    for first in (0..KEYS).step_by(500) {
        apply(&mut (first..KEYS.min(first + BATCH)));
    }
    let before = memory();
    // Each key at least once, in no particular order.
    for first in (0..4 * KEYS).step_by(500) {
        let scattered = |n: u64| n.wrapping_mul(0x9e37_79b9_7f4a_7c15) % KEYS;
        apply(&mut (first..first + BATCH).map(scattered));
    }
    let grown = memory().saturating_sub(before);
    assert!(grown < 24 * MIB, "by {} MiB", grown / MIB);

    engine.close().expect("closed");
    let before = memory();
    for _ in 0..5 {
        let engine = open();
        let mut range = KeyRange::all();
        loop {
            let found = engine.scan(
                DatabaseId(16),
                range,
                Direction::Forward,
                ScanLimit::keys(500),
            );
            let found = found.expect("scanned");
            let Some((last, _)) = found.last() else { break };
            range = KeyRange::all().after(last.clone(), Direction::Forward);
        }
        engine.close().expect("closed");
    }
    let grown = memory().saturating_sub(before);
    assert!(grown < 24 * MIB, "by {} MiB over five opens", grown / MIB);
}
