//! Damage to a disk at rest, and copies of it.

use super::*;

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
