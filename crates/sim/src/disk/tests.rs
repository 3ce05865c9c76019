//! What the disk guarantees, and each way it fails.

mod crash;
mod damage;

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
