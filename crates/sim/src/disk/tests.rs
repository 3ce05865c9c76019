//! What the disk guarantees, and each way it fails.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::time::Instant;

use super::*;

const DIR: &str = "/d";
const FILE: &str = "/d/f";
const SECTOR: usize = 512;
const ALWAYS: u32 = 1_000_000;

fn dir() -> &'static Path {
    Path::new(DIR)
}

fn path() -> &'static Path {
    Path::new(FILE)
}

fn disk_of(seed: u64, faults: DiskFaults) -> SimDisk {
    let disk = SimDisk::new(seed, faults);
    disk.create_dir_all(dir()).unwrap();
    disk
}

fn healthy() -> SimDisk {
    disk_of(1, DiskFaults::default())
}

/// A file whose name and contents are durable.
async fn durable_file(disk: &SimDisk, path: &Path, bytes: &[u8]) -> Box<dyn DiskFile> {
    let file = disk.open(path, OpenMode::CreateNew).unwrap();
    file.write_all_at(bytes, 0).unwrap();
    file.sync_data().await.unwrap();
    disk.sync_dir(dir()).await.unwrap();
    file
}

fn bytes_of(disk: &SimDisk, path: &Path) -> Vec<u8> {
    let file = disk.open(path, OpenMode::Read).unwrap();
    let len = usize::try_from(file.len().unwrap()).unwrap();
    let mut bytes = vec![0; len + 1];
    assert_eq!(file.read_at(&mut bytes, 0).unwrap(), len);
    bytes.truncate(len);
    bytes
}

fn sectors(values: &[u8]) -> Vec<u8> {
    values.iter().flat_map(|&value| [value; SECTOR]).collect()
}

#[tokio::test(start_paused = true)]
async fn reads_return_what_was_written_across_sectors_and_holes() {
    let disk = healthy();
    let file = disk.open(path(), OpenMode::CreateNew).unwrap();
    let mut model: Vec<u8> = Vec::new();
    for (at, len, value) in [(700, 900, 1), (0, 10, 2), (500, 30, 3), (5000, 1, 4)] {
        file.write_all_at(&vec![value; len], at as u64).unwrap();
        model.resize(model.len().max(at + len), 0);
        model[at..at + len].fill(value);
    }
    assert_eq!(bytes_of(&disk, path()), model);
    file.set_len(1024).unwrap();
    file.set_len(600).unwrap();
    model.truncate(600);
    file.allocate(2000).unwrap();
    file.allocate(100).unwrap();
    model.resize(2000, 0);
    assert_eq!(bytes_of(&disk, path()), model);
    let mut tail = [9; 8];
    assert_eq!(file.read_at(&mut tail, 1996).unwrap(), 4);
    assert_eq!(tail, [0, 0, 0, 0, 9, 9, 9, 9]);
    assert_eq!(file.read_at(&mut tail, 9000).unwrap(), 0);
    let reader = disk.open(path(), OpenMode::Read).unwrap();
    assert!(reader.write_all_at(b"x", 0).is_err());
}

#[tokio::test(start_paused = true)]
async fn names_are_found_listed_changed_and_locked() {
    let disk = healthy();
    let missing = |result: io::Result<()>| result.unwrap_err().kind() == ErrorKind::NotFound;
    assert!(missing(disk.list(Path::new("/e")).map(drop)));
    assert!(missing(disk.open(path(), OpenMode::ReadWrite).map(drop)));
    assert!(missing(
        disk.open(Path::new("/e/f"), OpenMode::CreateNew).map(drop)
    ));
    assert!(missing(disk.rename(path(), Path::new("/d/g"))));
    assert!(missing(disk.remove(path())));
    assert!(missing(disk.sync_dir(Path::new("/e")).await));
    let file = disk.open(path(), OpenMode::CreateNew).unwrap();
    file.write_all_at(b"one", 0).unwrap();
    let taken = disk.open(path(), OpenMode::CreateNew).map(drop);
    assert_eq!(taken.unwrap_err().kind(), ErrorKind::AlreadyExists);
    disk.open(Path::new("/d/a"), OpenMode::CreateNew).unwrap();
    assert_eq!(disk.list(dir()).unwrap(), ["a", "f"]);
    disk.rename(path(), Path::new("/d/a")).unwrap();
    assert_eq!(disk.list(dir()).unwrap(), ["a"]);
    assert_eq!(bytes_of(&disk, Path::new("/d/a")), b"one");
    disk.remove(Path::new("/d/a")).unwrap();
    file.write_all_at(b"two", 0).unwrap();
    assert_eq!(file.len().unwrap(), 3);

    let held = disk.lock(path()).unwrap();
    let refused = disk.lock(path()).map(drop);
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::WouldBlock);
    drop(held);
    disk.lock(path()).unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_is_synced_survives_every_crash() {
    for seed in 0..50 {
        let disk = disk_of(seed, DiskFaults::default());
        let file = durable_file(&disk, path(), &sectors(&[1, 2, 3])).await;
        file.write_all_at(&sectors(&[4]), SECTOR as u64).unwrap();
        file.sync_data().await.unwrap();
        disk.crash();
        assert_eq!(bytes_of(&disk, path()), sectors(&[1, 4, 3]), "seed {seed}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_crash_keeps_any_subset_of_unsynced_sectors_and_none_in_part() {
    let mut seen = BTreeSet::new();
    let mut lost = 0;
    for seed in 0..200 {
        let disk = disk_of(seed, DiskFaults::default());
        let file = durable_file(&disk, path(), &sectors(&[0, 0, 0])).await;
        for at in 0..3 {
            file.write_all_at(&sectors(&[7]), at * SECTOR as u64)
                .unwrap();
        }
        disk.crash();
        let bytes = bytes_of(&disk, path());
        let kept: Vec<bool> = bytes.chunks(SECTOR).map(|sector| sector[0] == 7).collect();
        for sector in bytes.chunks(SECTOR) {
            assert!(sector.iter().all(|byte| *byte == sector[0]), "torn");
        }
        let gone = kept.iter().filter(|kept| !**kept).count() as u64;
        let counted = disk.counts().get("crash_lost_sectors").copied();
        assert_eq!(counted.unwrap_or(0), gone);
        lost += gone;
        seen.insert(kept);
    }
    assert_eq!(seen.len(), 8, "every subset is possible");
    assert!(lost > 0);
}

#[tokio::test(start_paused = true)]
async fn a_crash_may_keep_all_none_or_a_prefix_in_write_order() {
    const SECTORS: u64 = 30;
    let (mut prefixes, mut others) = (BTreeSet::new(), 0);
    for seed in 0..100 {
        let disk = disk_of(seed, DiskFaults::default());
        let file = durable_file(&disk, path(), &vec![0; 30 * SECTOR]).await;
        // Back to front, so that sector order is not write order.
        for at in (0..SECTORS).rev() {
            file.write_all_at(&sectors(&[7]), at * SECTOR as u64)
                .unwrap();
        }
        disk.crash();
        let bytes = bytes_of(&disk, path());
        let newest_last = bytes.chunks(SECTOR).rev();
        let kept: Vec<bool> = newest_last.map(|sector| sector[0] == 7).collect();
        let prefix = kept.partition_point(|kept| *kept);
        if kept[prefix..].contains(&true) {
            others += 1;
        } else {
            prefixes.insert(prefix);
        }
    }
    assert!(prefixes.contains(&0) && prefixes.contains(&30));
    assert!(
        prefixes.len() > 5,
        "chance alone gives no prefix: {prefixes:?}"
    );
    assert!(others > 5, "{others}");
}

#[tokio::test(start_paused = true)]
async fn a_sector_is_torn_only_when_that_is_on() {
    let mut torn = 0;
    for seed in 0..100 {
        let faults = DiskFaults {
            torn_bytes: true,
            ..DiskFaults::default()
        };
        let disk = disk_of(seed, faults);
        let file = durable_file(&disk, path(), &sectors(&[1])).await;
        file.write_all_at(&sectors(&[2]), 0).unwrap();
        disk.crash();
        let bytes = bytes_of(&disk, path());
        let new = bytes.partition_point(|byte| *byte == 2);
        assert_eq!(
            bytes[new..],
            sectors(&[1])[new..],
            "first new, then old bytes"
        );
        let tears = u64::from(new % SECTOR != 0);
        assert_eq!(disk.counts().get("torn_write").copied().unwrap_or(0), tears);
        torn += tears;
    }
    assert!(torn > 5, "{torn}");
}

#[tokio::test(start_paused = true)]
async fn a_crash_keeps_the_durable_length_or_the_new_one() {
    let (mut grown, mut cut) = (BTreeSet::new(), BTreeSet::new());
    for seed in 0..100 {
        let disk = disk_of(seed, DiskFaults::default());
        let file = durable_file(&disk, path(), &sectors(&[1, 2])).await;
        file.write_all_at(&sectors(&[3]), 2 * SECTOR as u64)
            .unwrap();
        disk.crash();
        grown.insert(bytes_of(&disk, path()).len());

        let disk = disk_of(seed, DiskFaults::default());
        let file = durable_file(&disk, path(), &sectors(&[1, 2])).await;
        file.set_len(100).unwrap();
        file.set_len(1000).unwrap();
        disk.crash();
        let bytes = bytes_of(&disk, path());
        if bytes.len() == 1000 {
            let regrown = [vec![1; 100], vec![0; 900]].concat();
            assert!(bytes == regrown, "cut bytes are gone with the cut");
        } else {
            assert!(bytes == sectors(&[1, 2]), "or the cut is lost whole");
        }
        cut.insert(bytes.len());
    }
    assert_eq!(grown, BTreeSet::from([1024, 1536]));
    assert_eq!(cut, BTreeSet::from([1000, 1024]));
}

#[tokio::test(start_paused = true)]
async fn a_crash_loses_a_tail_of_the_name_changes_of_each_directory() {
    let (mut seen, mut other) = (BTreeSet::new(), BTreeSet::new());
    for seed in 0..100 {
        let disk = disk_of(seed, DiskFaults::default());
        disk.create_dir_all(Path::new("/e")).unwrap();
        let file = durable_file(&disk, path(), b"one").await;
        disk.rename(path(), Path::new("/d/g")).unwrap();
        disk.open(path(), OpenMode::CreateNew).unwrap();
        disk.open(Path::new("/e/x"), OpenMode::CreateNew).unwrap();
        disk.remove(Path::new("/d/g")).unwrap();
        drop(file);
        disk.crash();
        seen.insert(disk.list(dir()).unwrap().join(","));
        other.insert((seen.len(), disk.exists(Path::new("/e/x")).unwrap()));
        if disk.exists(Path::new("/d/g")).unwrap() {
            assert_eq!(bytes_of(&disk, Path::new("/d/g")), b"one");
        }
    }
    // Before any change, and after the first, the second and the third.
    let states = ["f", "g", "f,g"].map(str::to_owned);
    assert_eq!(seen, BTreeSet::from(states));
    assert!(other.iter().any(|(_, kept)| *kept) && other.iter().any(|(_, kept)| !kept));
}

#[tokio::test(start_paused = true)]
async fn names_are_durable_after_their_directory_is_synced() {
    let disk = healthy();
    let file = disk.open(path(), OpenMode::CreateNew).unwrap();
    file.write_all_at(b"one", 0).unwrap();
    file.sync_data().await.unwrap();
    assert!(disk.durable_files().is_empty());
    disk.sync_dir(dir()).await.unwrap();
    disk.rename(path(), Path::new("/d/g")).unwrap();
    assert_eq!(
        disk.durable_files(),
        [(path().to_owned(), b"one".to_vec())],
        "the rename waits"
    );
    let sync = disk.sync_dir(dir());
    disk.open(path(), OpenMode::CreateNew).unwrap();
    sync.await.unwrap();
    let durable = disk.durable_files();
    assert_eq!(durable, [(PathBuf::from("/d/g"), b"one".to_vec())]);
}

#[tokio::test(start_paused = true)]
async fn a_sync_covers_what_was_written_before_it_began() {
    let disk = healthy();
    let file = durable_file(&disk, path(), &sectors(&[1, 1, 1])).await;
    file.write_all_at(&sectors(&[2, 2]), 0).unwrap();
    let sync = file.sync_data();
    file.write_all_at(&sectors(&[3]), SECTOR as u64).unwrap();
    file.write_all_at(&sectors(&[3, 3]), 2 * SECTOR as u64)
        .unwrap();
    sync.await.unwrap();
    assert_eq!(disk.durable_files()[0].1, sectors(&[2, 2, 1]));
    file.sync_data().await.unwrap();
    assert_eq!(disk.durable_files()[0].1, sectors(&[2, 3, 3, 3]));
}

#[tokio::test(start_paused = true)]
async fn syncs_that_overlap_never_take_newer_bytes_back() {
    let disk = healthy();
    let file = durable_file(&disk, path(), b"1").await;
    file.write_all_at(b"2", 0).unwrap();
    let first = file.sync_data();
    file.write_all_at(b"3", 0).unwrap();
    file.sync_data().await.unwrap();
    first.await.unwrap();
    assert_eq!(disk.durable_files()[0].1, b"3");
}

#[tokio::test(start_paused = true)]
async fn what_a_failed_sync_covered_is_read_but_lost_despite_a_later_sync() {
    let disk = healthy();
    let file = durable_file(&disk, path(), &sectors(&[1, 1, 1])).await;
    disk.set_faults(DiskFaults {
        fail_sync: ALWAYS,
        ..DiskFaults::default()
    });
    file.write_all_at(&sectors(&[2, 2, 2]), 0).unwrap();
    assert!(file.sync_data().await.is_err());
    assert!(disk.sync_dir(dir()).await.is_err());
    assert_eq!(disk.counts()["fsync_failed"], 2);
    disk.set_faults(DiskFaults::default());
    file.write_all_at(&sectors(&[3]), 0).unwrap();
    file.sync_data().await.unwrap();
    assert_eq!(bytes_of(&disk, path()), sectors(&[3, 2, 2]));
    assert_eq!(disk.durable_files()[0].1, sectors(&[3, 1, 1]));
    disk.crash();
    assert_eq!(bytes_of(&disk, path()), sectors(&[3, 1, 1]));
    assert_eq!(disk.counts()["crash_lost_sectors"], 2);
}

#[tokio::test(start_paused = true)]
async fn a_lying_sync_makes_nothing_durable_until_an_honest_one() {
    let disk = healthy();
    let file = durable_file(&disk, path(), b"1").await;
    disk.set_faults(DiskFaults {
        lying_sync: true,
        ..DiskFaults::default()
    });
    file.write_all_at(b"2", 0).unwrap();
    file.sync_data().await.unwrap();
    assert_eq!(disk.durable_files()[0].1, b"1");
    assert_eq!(disk.counts()["fsync_lied"], 1);
    disk.set_faults(DiskFaults::default());
    file.sync_data().await.unwrap();
    assert_eq!(disk.durable_files()[0].1, b"2");
}

#[tokio::test(start_paused = true)]
async fn syncs_take_virtual_time_and_slow_ones_more() {
    let disk = disk_of(
        1,
        DiskFaults {
            sync_latency: Duration::from_millis(3)..Duration::from_millis(5),
            ..DiskFaults::default()
        },
    );
    let file = durable_file(&disk, path(), b"1").await;
    let start = Instant::now();
    file.sync_data().await.unwrap();
    let took = start.elapsed();
    assert!((3..=6).contains(&took.as_millis()), "{took:?}");
    disk.set_faults(DiskFaults {
        slow_sync: ALWAYS,
        ..DiskFaults::default()
    });
    let start = Instant::now();
    for _ in 0..20 {
        file.sync_data().await.unwrap();
    }
    let took = start.elapsed();
    assert!((500..=6040).contains(&took.as_millis()), "{took:?}");
    assert_eq!(disk.counts()["fsync_slow"], 20);
    disk.set_faults(DiskFaults::default());
    let start = Instant::now();
    for _ in 0..1000 {
        file.sync_data().await.unwrap();
    }
    let took = start.elapsed();
    assert!((100..=700).contains(&took.as_millis()), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_failed_write_leaves_a_prefix() {
    let mut lengths = BTreeSet::new();
    for seed in 0..50 {
        let disk = disk_of(seed, DiskFaults::default());
        let file = durable_file(&disk, path(), &sectors(&[1, 1])).await;
        disk.set_faults(DiskFaults {
            fail_write: ALWAYS,
            ..DiskFaults::default()
        });
        assert!(file.write_all_at(&sectors(&[2, 2]), 0).is_err());
        assert_eq!(disk.counts()["write_failed"], 1);
        let bytes = bytes_of(&disk, path());
        let new = bytes.partition_point(|byte| *byte == 2);
        assert!(new < bytes.len() && bytes[new..].iter().all(|byte| *byte == 1));
        lengths.insert(new);
    }
    assert!(lengths.len() > 25, "any prefix: {lengths:?}");
}

#[tokio::test(start_paused = true)]
async fn a_flipped_read_is_wrong_in_one_bit_and_passes() {
    let disk = healthy();
    let file = durable_file(&disk, path(), &sectors(&[0])).await;
    disk.set_faults(DiskFaults {
        read_flip: ALWAYS,
        ..DiskFaults::default()
    });
    let wrong = bytes_of(&disk, path());
    let bits: u32 = wrong.iter().map(|byte| byte.count_ones()).sum();
    assert_eq!(bits, 1);
    assert_eq!(disk.counts()["read_flipped"], 1);
    disk.set_faults(DiskFaults::default());
    assert_eq!(bytes_of(&disk, path()), sectors(&[0]));
    drop(file);
}

#[tokio::test(start_paused = true)]
async fn a_full_disk_refuses_what_needs_space() {
    let disk = healthy();
    let file = durable_file(&disk, path(), b"12").await;
    disk.set_full(true);
    let refused = |result: io::Result<()>| result.unwrap_err().kind() == ErrorKind::StorageFull;
    assert!(refused(file.write_all_at(b"34", 1)));
    assert!(refused(file.allocate(3)));
    assert!(refused(file.set_len(3)));
    let create = disk.open(Path::new("/d/g"), OpenMode::CreateNew);
    assert!(refused(create.map(drop)));
    assert_eq!(disk.space(dir()).unwrap().free_bytes, 0);
    assert_eq!(disk.counts()["disk_full"], 4);
    file.write_all_at(b"34", 0).unwrap();
    file.sync_data().await.unwrap();
    assert_eq!(disk.durable_files()[0].1, b"34");
    disk.set_full(false);
    assert!(disk.space(dir()).unwrap().free_bytes > 0);
    file.allocate(3).unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_power_goes_off_after_the_last_step() {
    let trips = Arc::new(AtomicU64::new(0));
    // A write, the start of a sync, its end, and what comes after.
    for (steps, durable) in [(1, b"1"), (2, b"1"), (3, b"2"), (4, b"2")] {
        let disk = healthy();
        let file = durable_file(&disk, path(), b"1").await;
        trips.store(0, Ordering::Relaxed);
        let (seen, same) = (Arc::clone(&trips), disk.clone());
        disk.crash_after(steps, move || {
            assert!(same.tripped(), "the disk may be asked");
            seen.fetch_add(1, Ordering::Relaxed);
        });
        file.write_all_at(b"2", 0).unwrap();
        assert_eq!(disk.tripped(), steps == 1);
        assert_eq!(file.sync_data().await.is_ok(), steps > 2);
        assert_eq!(file.write_all_at(b"3", 0).is_ok(), steps > 3);
        assert_eq!(trips.load(Ordering::Relaxed), 1);
        assert!(file.len().is_err() && disk.list(dir()).is_err());
        assert_eq!(disk.durable_files()[0].1, durable, "{steps} steps");
        disk.crash();
        assert!(!disk.tripped());
        disk.list(dir()).unwrap();
    }
    let disk = healthy();
    disk.crash_after(0, || ());
    assert!(disk.tripped() && disk.exists(dir()).is_err());
}

#[tokio::test(start_paused = true)]
async fn a_held_sync_waits_until_it_is_let_go() {
    let disk = healthy();
    let file = durable_file(&disk, path(), b"1").await;
    disk.hold(true);
    file.write_all_at(b"2", 0).unwrap();
    let day = Duration::from_hours(24);
    let mut sync = file.sync_data();
    assert!(tokio::time::timeout(day, &mut sync).await.is_err());
    assert_eq!(disk.durable_files()[0].1, b"1");
    assert_eq!(disk.counts()["fsync_held"], 1);
    disk.hold(false);
    sync.await.unwrap();
    assert_eq!(disk.durable_files()[0].1, b"2");
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_process_loses_nothing_and_closes_everything() {
    let disk = healthy();
    let file = durable_file(&disk, path(), b"1").await;
    let lock = disk.lock(Path::new("/d/LOCK")).unwrap();
    file.write_all_at(b"2", 0).unwrap();
    let sync = file.sync_data();
    disk.process_ended();
    assert!(sync.await.is_err(), "a sync under way has no effect");
    assert!(file.len().is_err() && file.write_all_at(b"3", 0).is_err());
    assert_eq!(bytes_of(&disk, path()), b"2");
    assert_eq!(disk.durable_files()[0].1, b"1");
    let again = disk.lock(Path::new("/d/LOCK")).unwrap();
    drop(lock);
    assert!(
        disk.lock(Path::new("/d/LOCK")).is_err(),
        "the dead release nothing"
    );
    drop(again);
    let file = disk.open(path(), OpenMode::ReadWrite).unwrap();
    file.sync_data().await.unwrap();
    assert_eq!(disk.durable_files()[0].1, b"2");
}

#[tokio::test(start_paused = true)]
async fn a_crash_closes_everything_and_lets_held_syncs_fail() {
    let disk = healthy();
    let file = durable_file(&disk, path(), b"1").await;
    let _lock = disk.lock(Path::new("/d/LOCK")).unwrap();
    disk.hold(true);
    file.write_all_at(b"2", 0).unwrap();
    let sync = file.sync_data();
    disk.crash();
    let before = disk.durable_files();
    assert!(sync.await.is_err());
    assert_eq!(disk.durable_files(), before);
    assert!(file.len().is_err());
    disk.lock(Path::new("/d/LOCK")).unwrap();
}

/// Damages a disk with two files, then returns which bytes of which file differ.
async fn damaged(seed: u64, damage: Damage) -> (DamageReport, Vec<(PathBuf, Vec<usize>)>) {
    let faults = DiskFaults {
        keep_versions: true,
        ..DiskFaults::default()
    };
    let disk = disk_of(seed, faults);
    disk.create_dir_all(Path::new("/e")).unwrap();
    let file = durable_file(&disk, path(), &sectors(&[1, 0, 2])).await;
    file.allocate(1 << 14).unwrap();
    file.write_all_at(&sectors(&[3]), 2 * SECTOR as u64)
        .unwrap();
    file.sync_data().await.unwrap();
    let other = durable_file(&disk, Path::new("/d/g"), &[4; 100]).await;
    let outside = disk.open(Path::new("/e/x"), OpenMode::CreateNew).unwrap();
    outside.write_all_at(b"x", 0).unwrap();
    outside.sync_data().await.unwrap();
    let before = disk.durable_files();
    let report = disk.damage(damage, dir()).unwrap();
    let differing = before.into_iter().map(|(path, old)| {
        let new = bytes_of(&disk, &path);
        let bytes = (0..old.len()).filter(|&at| new.get(at) != Some(&old[at]));
        (path, bytes.collect::<Vec<usize>>())
    });
    let differing = differing.filter(|(_, bytes)| !bytes.is_empty()).collect();
    let durable = disk.durable_files();
    assert!(
        durable
            .iter()
            .all(|(path, bytes)| *bytes == bytes_of(&disk, path))
    );
    drop((file, other));
    (report, differing)
}

#[tokio::test(start_paused = true)]
async fn damage_changes_what_it_reports_and_nothing_else() {
    let kinds = [
        Damage::FlipBit,
        Damage::ZeroSector,
        Damage::Misdirected,
        Damage::Stale,
        Damage::Truncate,
    ];
    for damage in kinds {
        let mut places = BTreeSet::new();
        for seed in 0..40 {
            let (report, differing) = damaged(seed, damage).await;
            assert_eq!(report.damage, damage);
            assert_eq!(differing.len(), 1, "{report:?}");
            let (path, bytes) = &differing[0];
            assert_eq!(*path, report.path);
            let range = report.offset..report.offset + report.bytes;
            assert!(bytes.iter().all(|at| range.contains(&(*at as u64))));
            assert!(range.start < 3 * SECTOR as u64, "only where it was written");
            match damage {
                Damage::FlipBit => assert_eq!(report.bytes, 1),
                Damage::Stale => assert_eq!((report.offset, report.bytes), (1024, 512)),
                Damage::Truncate => {}
                Damage::ZeroSector | Damage::Misdirected => {
                    assert!(report.bytes == 512 || report.bytes == 100);
                    assert_ne!(report.offset, 512, "zeros are never chosen");
                }
            }
            places.insert((report.path, report.offset));
        }
        assert!(places.len() > 1 || damage == Damage::Stale, "{damage:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn damage_needs_a_place_and_is_counted() {
    let disk = healthy();
    let file = durable_file(&disk, path(), &sectors(&[0])).await;
    assert_eq!(disk.damage(Damage::FlipBit, dir()), None);
    file.write_all_at(&sectors(&[1]), 0).unwrap();
    assert_eq!(disk.damage(Damage::FlipBit, dir()), None, "it is unsynced");
    file.sync_data().await.unwrap();
    assert_eq!(disk.damage(Damage::Misdirected, dir()), None, "one sector");
    assert_eq!(disk.damage(Damage::Stale, dir()), None, "no version kept");
    assert!(disk.damage(Damage::FlipBit, dir()).is_some());
    assert!(disk.damage(Damage::ZeroSector, dir()).is_some());
    assert_eq!(disk.counts()["bit_flip"], 1);
    assert_eq!(disk.counts()["zeroed_sector"], 1);
    assert_eq!(disk.counts().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_copy_that_is_put_back_has_the_old_bytes_in_new_files() {
    let disk = healthy();
    let file = durable_file(&disk, path(), &[1; 600]).await;
    file.write_all_at(&[2; 10], 595).unwrap();
    let read = bytes_of(&disk, path());
    drop(file);
    let (mark, copy) = (disk.file_mark(path()).unwrap(), disk.copy(dir()));
    assert!(disk.file_mark(path()).unwrap().is_same(mark));
    let later = disk.open(path(), OpenMode::ReadWrite).unwrap();
    later.write_all_at(&[3; 600], 0).unwrap();
    drop(later);
    drop(disk.open(&dir().join("g"), OpenMode::CreateNew).unwrap());
    disk.put_back(dir(), copy);
    assert_eq!(disk.list(dir()).unwrap(), ["f"]);
    disk.crash();
    assert_eq!(bytes_of(&disk, path()), read, "all of it is durable");
    assert!(!disk.file_mark(path()).unwrap().is_same(mark));
}

#[tokio::test(start_paused = true)]
async fn the_tap_sees_each_step_in_order() {
    let disk = healthy();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&seen);
    disk.set_tap(move |operation, path, offset, bytes| {
        let line = format!("{operation} {} {offset} {bytes}", path.display());
        log.lock().unwrap().push(line);
    });
    let before = disk.stats();
    let file = disk.open(path(), OpenMode::CreateNew).unwrap();
    file.write_all_at(b"123", 5).unwrap();
    disk.rename(path(), Path::new("/d/g")).unwrap();
    file.sync_data().await.unwrap();
    disk.sync_dir(dir()).await.unwrap();
    let expected = [
        "create /d/f 0 0",
        "write /d/f 5 3",
        "rename /d/g 0 0",
        "sync /d/g 0 512",
        "synced /d/g 0 512",
        "sync_dir /d 0 0",
        "synced_dir /d 0 0",
    ];
    assert_eq!(*seen.lock().unwrap(), expected);
    let stats = disk.stats();
    assert_eq!(stats.steps - before.steps, 7);
    assert_eq!((stats.syncs, stats.bytes_written), (2, 3));
}

#[tokio::test(start_paused = true)]
async fn the_same_seed_has_the_same_history() {
    async fn history(seed: u64) -> (Vec<(PathBuf, Vec<u8>)>, Duration, String) {
        let faults = DiskFaults {
            slow_sync: 200_000,
            fail_sync: 200_000,
            fail_write: 200_000,
            torn_bytes: true,
            ..DiskFaults::default()
        };
        let disk = disk_of(seed, faults);
        let start = Instant::now();
        for round in 0..20_u8 {
            let name = PathBuf::from(format!("/d/{}", round % 3));
            let file = disk
                .open(&name, OpenMode::ReadWrite)
                .or_else(|_| disk.open(&name, OpenMode::CreateNew))
                .unwrap();
            file.write_all_at(&[round; 3000], u64::from(round) * 100)
                .ok();
            file.sync_data().await.ok();
            disk.sync_dir(dir()).await.ok();
            file.write_all_at(&[round; 3000], u64::from(round) * 300)
                .ok();
            if round % 4 == 3 {
                disk.crash();
            }
        }
        let counts = format!("{:?}", disk.counts());
        (disk.durable_files(), start.elapsed(), counts)
    }
    assert_eq!(history(5).await, history(5).await);
    assert_ne!(history(5).await, history(6).await);
}

#[tokio::test(start_paused = true)]
async fn files_that_nothing_leads_to_are_freed() {
    let disk = healthy();
    for _ in 0..10 {
        let file = durable_file(&disk, path(), b"1").await;
        disk.remove(path()).unwrap();
        disk.sync_dir(dir()).await.unwrap();
        assert_eq!(file.len().unwrap(), 1, "an open file is not freed");
    }
    assert!(disk.model().files.is_empty());
}
