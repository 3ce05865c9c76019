//! Reclaiming the rows of dropped databases.

use super::*;

fn fill(engine: &dyn StorageEngine, number: u64, databases: &[DatabaseId], keys: u32) {
    let changes = databases.iter().flat_map(|id| {
        (0..keys).map(|key| {
            let key = Bytes::copy_from_slice(&key.to_be_bytes());
            (*id, key, Change::Put(Bytes::from_static(&[7; 100])))
        })
    });
    engine.apply(&batch(number, changes.collect())).unwrap();
}

fn count(engine: &dyn StorageEngine, database: DatabaseId) -> usize {
    let all = engine.scan(
        database,
        KeyRange::all(),
        Direction::Forward,
        ScanLimit::NONE,
    );
    all.unwrap().len()
}

pub(super) fn a_database_is_reclaimed_in_steps_and_the_others_stay(bed: &Bed) {
    let engine = bed.open();
    let ids = [0, 1, 2].map(DatabaseId);
    fill(&*engine, 1, &ids, 1_000);
    engine.sync().unwrap();
    assert_eq!(engine.databases().unwrap(), ids);
    for steps in 1.. {
        let left = count(&*engine, DB);
        let is_gone = engine.reclaim(DB, 300).unwrap();
        assert!(left - count(&*engine, DB) <= 300 && steps < 10);
        if is_gone {
            break;
        }
    }
    assert_eq!(engine.databases().unwrap(), [0, 2].map(DatabaseId));
    assert_eq!(
        (count(&*engine, DB), get(&*engine, 5_u32.to_be_bytes())),
        (0, None)
    );
    assert!(
        engine.reclaim(DB, 300).unwrap(),
        "giving it up again is no error"
    );
    assert_eq!(engine.stats().databases, 2);
    assert_eq!(engine.applied().unwrap(), Some(applied(1)));
    for id in [ids[0], ids[2]] {
        assert_eq!(count(&*engine, id), 1_000);
    }
}

pub(super) fn what_is_reclaimed_stays_so_beside_batches_and_over_a_restart(bed: &Bed) {
    let mut engine = bed.open();
    let (kept, gone) = (DatabaseId(100), |n| DatabaseId(n));
    for number in 1..=6 {
        let id = u32::try_from(number).unwrap();
        fill(&*engine, number, &[gone(id), kept], 500);
        engine.sync().unwrap();
        let is_gone = engine.reclaim(gone(id), 200).unwrap();
        assert!(!is_gone);
        match number % 3 {
            0 => {
                engine.close().unwrap();
                engine = bed.open();
            }
            1 => {
                drop(engine);
                engine = bed.open();
            }
            _ => {}
        }
        assert!((300..=500).contains(&count(&*engine, gone(id))));
        while !engine.reclaim(gone(id), 200).unwrap() {}
        assert_eq!(engine.databases().unwrap(), [kept]);
        assert_eq!(count(&*engine, kept), 500);
    }
    engine.close().unwrap();
    let engine = bed.open();
    assert_eq!(engine.databases().unwrap(), [kept]);
    assert_eq!(count(&*engine, kept), 500);
    assert_eq!(count(&*engine, gone(3)), 0);
}
