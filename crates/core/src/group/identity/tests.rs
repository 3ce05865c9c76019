//! Directories that were copied, moved, cut off by a power loss, or written by an earlier version.

use super::*;
use crate::log::{MemoryDisk, RealDisk};

const ORIGIN: FileMark = FileMark {
    number: 12,
    born_ns: Some(34),
};

fn identity(group: Option<u128>) -> Identity {
    Identity {
        joins: true,
        group_name: "orders".to_owned(),
        node_name: "n1".to_owned(),
        incarnation: Incarnation(77),
        group: group.map(|uuid| GroupUuid(uuid::Uuid::from_u128(uuid))),
        node_id: NodeId(u64::from(group.is_some())),
        founders: vec![],
        epoch: GroupEpoch(3),
        superseded_by: None,
        recovery: None,
        copy: 2,
        log_begins_after: None,
        log: 1,
        damaged: None,
        earlier: vec![Incarnation(75), Incarnation(76)],
    }
}

#[test]
fn a_directory_that_begins_again_remembers_its_latest_lives() {
    let mut identity = identity(Some(5));
    for life in 78..178 {
        identity.begin_again(Incarnation(life));
    }
    assert_eq!(identity.incarnation, Incarnation(177));
    assert_eq!(identity.damaged, Some(Incarnation(176)));
    let latest: Vec<_> = (113..177).map(Incarnation).collect();
    assert_eq!(identity.earlier, latest);
}

#[tokio::test]
async fn an_identity_that_was_found_survives_a_power_cut_after_that() {
    let disk = MemoryDisk::new();
    let dir = DataDir::open(&disk, Path::new("/data")).unwrap();
    dir.write_identity(&disk, &identity(None)).await.unwrap();
    // As if a process ended between the rename and the sync of the names.
    let formed = identity(Some(5));
    let (new, path) = (dir.dir.join(NEW_FILE), dir.dir.join(FILE));
    let file = disk.open(&new, OpenMode::CreateNew).unwrap();
    let origin = dir.origin(&disk).await.unwrap();
    file.write_all_at(&encode(&formed, origin), 0).unwrap();
    file.sync_data().await.unwrap();
    disk.rename(&new, &path).unwrap();
    drop(dir);

    let dir = DataDir::open(&disk, Path::new("/data")).unwrap();
    let found = dir.find_identity(&disk).await.unwrap();
    assert_eq!(found.as_ref(), Some(&formed));
    disk.crash();
    let dir = DataDir::open(&disk, Path::new("/data")).unwrap();
    assert_eq!(dir.find_identity(&disk).await.unwrap(), found);
}

#[tokio::test]
async fn an_identity_survives_a_power_cut() {
    let disk = MemoryDisk::new();
    let dir = DataDir::open(&disk, Path::new("/data")).unwrap();
    assert!(dir.find_identity(&disk).await.unwrap().is_none());
    for written in [identity(None), identity(Some(5))] {
        dir.write_identity(&disk, &written).await.unwrap();
        let after = disk.clone();
        after.crash();
        let dir = DataDir::open(&after, Path::new("/data")).unwrap();
        assert_eq!(dir.find_identity(&after).await.unwrap(), Some(written));
        drop(dir);
    }
}

async fn found(disk: &dyn Disk, dir: &Path) -> Result<Option<Identity>, OpenError> {
    let dir = DataDir::open(disk, dir)?;
    dir.find_identity(disk).await
}

fn copy_files(from: &Path, to: &Path) {
    RealDisk.create_dir_all(to).unwrap();
    for name in RealDisk.list(from).unwrap() {
        std::fs::copy(from.join(&name), to.join(&name)).unwrap();
    }
}

#[tokio::test]
async fn a_directory_that_was_moved_is_the_original_and_a_copy_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let place = |name: &str| root.path().join(name);
    let (home, moved, copy) = (place("home"), place("moved"), place("copy"));
    let written = identity(Some(5));
    let dir = DataDir::open(&RealDisk, &home).unwrap();
    dir.write_identity(&RealDisk, &written).await.unwrap();
    drop(dir);
    copy_files(&home, &copy);
    RealDisk.rename(&home, &moved).unwrap();
    assert_eq!(found(&RealDisk, &moved).await.unwrap(), Some(written));
    let refused = found(&RealDisk, &copy).await;
    assert!(matches!(refused, Err(OpenError::Copied { dir }) if dir == copy));
    // Even in the original's place it is not the original.
    RealDisk.rename(&copy, &home).unwrap();
    let refused = found(&RealDisk, &home).await;
    assert!(matches!(refused, Err(OpenError::Copied { .. })));
    // Nor is one without its `origin`.
    RealDisk.remove(&home.join(ORIGIN_FILE)).unwrap();
    let refused = found(&RealDisk, &home).await;
    assert!(matches!(refused, Err(OpenError::Copied { .. })));
}

#[test]
fn a_time_of_birth_counts_where_both_sides_know_it() {
    let mark = |number, born_ns| FileMark { number, born_ns };
    assert!(!ORIGIN.is_same(mark(12, Some(35))), "a number given again");
    assert!(ORIGIN.is_same(mark(12, None)) && mark(12, None).is_same(ORIGIN));
    assert!(!ORIGIN.is_same(mark(13, None)));
}

#[tokio::test]
async fn a_directory_of_the_earliest_format_gets_its_origin_when_it_is_opened() {
    let disk = MemoryDisk::new();
    let (root, written) = (Path::new("/data"), identity(Some(5)));
    disk.create_dir_all(root).unwrap();
    let file = disk.open(&root.join(FILE), OpenMode::CreateNew).unwrap();
    let bytes = frame(MAGIC, FORMAT_WITHOUT_ORIGIN, &record(&written, None));
    file.write_all_at(&bytes, 0).unwrap();
    file.sync_data().await.unwrap();
    disk.sync_dir(root).await.unwrap();
    for steps in 0.. {
        disk.fail_after(steps);
        let opened = found(&disk, root).await;
        disk.crash();
        if let Ok(identity) = opened {
            assert_eq!(identity, Some(written.clone()));
            break;
        }
    }
    let dir = DataDir::open(&disk, root).unwrap();
    let (identity, origin) = dir.read_identity(&disk).unwrap().unwrap();
    assert_eq!((identity, origin.is_some()), (written, true));
    drop(dir);
    disk.remove(&root.join(ORIGIN_FILE)).unwrap();
    let refused = found(&disk, root).await;
    assert!(matches!(refused, Err(OpenError::Copied { .. })));
}

#[test]
fn a_changed_byte_anywhere_is_named() {
    let bytes = encode(&identity(Some(5)), ORIGIN);
    for at in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[at] ^= 0x10;
        assert!(
            decode(Path::new("identity"), &changed).is_err(),
            "byte {at}"
        );
    }
}

#[test]
fn a_newer_format_is_refused_by_its_version() {
    let mut bytes = encode(&identity(None), ORIGIN);
    bytes[8] = 9;
    let error = decode(Path::new("identity"), &bytes).unwrap_err();
    assert!(matches!(
        error,
        OpenError::NewerFormat {
            found: 9,
            known: 2,
            ..
        }
    ));
}
