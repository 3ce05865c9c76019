//! What a power cut leaves.

use super::*;

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
