//! The contract of [`Disk`](super::super::Disk), tested on the real one and the model, and crashes,
//! which only the model can show.

use std::io::ErrorKind;
use std::path::Path;

use super::super::{Disk, MemoryDisk, OpenMode, RealDisk};

async fn keeps_the_contract(disk: &dyn Disk, root: &Path) {
    let dir = root.join("a/b");
    let (one, two) = (dir.join("one"), dir.join("two"));
    assert_eq!(disk.list(&dir).unwrap_err().kind(), ErrorKind::NotFound);
    disk.create_dir_all(&dir).unwrap();
    disk.create_dir_all(&dir).unwrap();
    assert!(disk.exists(&dir).unwrap() && !disk.exists(&one).unwrap());
    let missing = disk.open(&one, OpenMode::ReadWrite).err().unwrap();
    assert_eq!(missing.kind(), ErrorKind::NotFound);

    let file = disk.open(&one, OpenMode::CreateNew).unwrap();
    let taken = disk.open(&one, OpenMode::CreateNew).err().unwrap();
    assert_eq!(taken.kind(), ErrorKind::AlreadyExists);
    file.write_all_at(b"hello", 3).unwrap();
    file.sync_data().await.unwrap();
    let mut buffer = [9; 10];
    assert_eq!(file.read_at(&mut buffer, 1).unwrap(), 7);
    assert_eq!(&buffer[..7], b"\0\0hello");
    assert_eq!(file.read_at(&mut buffer, 8).unwrap(), 0);
    file.allocate(100).unwrap();
    assert_eq!(file.len().unwrap(), 100);
    file.allocate(50).unwrap();
    assert_eq!(file.len().unwrap(), 100);
    file.set_len(4).unwrap();
    assert_eq!(file.len().unwrap(), 4);

    let mark = disk.file_mark(&one).unwrap();
    disk.rename(&one, &two).unwrap();
    disk.sync_dir(&dir).await.unwrap();
    assert_eq!(disk.list(&dir).unwrap(), ["two"]);
    let renamed = disk.open(&two, OpenMode::Read).unwrap();
    assert!(disk.file_mark(&two).unwrap().is_same(mark));
    assert_eq!(
        disk.file_mark(&one).unwrap_err().kind(),
        ErrorKind::NotFound
    );
    drop(disk.open(&one, OpenMode::CreateNew).unwrap());
    let other = disk.file_mark(&one).unwrap();
    assert!(!other.is_same(mark), "another file has another mark");
    disk.remove(&one).unwrap();
    assert_eq!(renamed.len().unwrap(), 4);
    disk.remove(&two).unwrap();
    assert_eq!(disk.remove(&two).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(renamed.len().unwrap(), 4, "an open file outlives its name");

    let lock = disk.lock(&dir.join("lock")).unwrap();
    let held = disk.lock(&dir.join("lock")).err().unwrap();
    assert_eq!(held.kind(), ErrorKind::WouldBlock);
    drop(lock);
    drop(disk.lock(&dir.join("lock")).unwrap());
    let space = disk.space(&dir).unwrap();
    assert!(space.free_bytes <= space.total_bytes && space.total_bytes > 0);
}

#[tokio::test]
async fn both_disks_keep_the_contract() {
    let root = tempfile::tempdir().unwrap();
    keeps_the_contract(&RealDisk, root.path()).await;
    keeps_the_contract(&MemoryDisk::new(), Path::new("/")).await;
}

#[tokio::test]
async fn a_crash_keeps_what_was_synced_and_nothing_else() {
    let disk = MemoryDisk::new();
    let (dir, path) = (Path::new("/d"), Path::new("/d/f"));
    disk.create_dir_all(dir).unwrap();
    let file = disk.open(path, OpenMode::CreateNew).unwrap();
    file.write_all_at(&[1; 600], 0).unwrap();
    file.sync_data().await.unwrap();
    disk.crash();
    assert!(!disk.exists(path).unwrap(), "the name was not synced");
    assert!(file.len().is_err(), "a handle does not outlive the crash");

    let file = disk.open(path, OpenMode::CreateNew).unwrap();
    disk.sync_dir(dir).await.unwrap();
    file.write_all_at(&[1; 600], 0).unwrap();
    file.sync_data().await.unwrap();
    file.write_all_at(&[2; 1200], 0).unwrap();
    let lock = disk.lock(Path::new("/d/lock")).unwrap();
    let mark = disk.file_mark(path).unwrap();
    disk.rename(path, Path::new("/d/g")).unwrap();
    disk.crash_keeping(0, |_, offset| if offset == 512 { 20 } else { 0 });
    let left = [[1; 512].as_slice(), &[2; 20], &[1; 68]].concat();
    assert_eq!(disk.bytes(path).unwrap(), left);
    assert_eq!(disk.file_mark(path).unwrap(), mark, "the same file");
    let lock_of_this_life = disk.lock(Path::new("/d/lock")).unwrap();
    drop(lock);
    assert!(
        disk.lock(Path::new("/d/lock")).is_err(),
        "an old lock releases nothing"
    );
    drop(lock_of_this_life);
}

#[tokio::test]
async fn a_full_disk_takes_overwrites_only() {
    let disk = MemoryDisk::new();
    disk.create_dir_all(Path::new("/d")).unwrap();
    let file = disk.open(Path::new("/d/f"), OpenMode::CreateNew).unwrap();
    file.allocate(100).unwrap();
    disk.set_full(true);
    file.write_all_at(&[1; 100], 0).unwrap();
    assert_eq!(
        file.write_all_at(&[1], 100).unwrap_err().kind(),
        ErrorKind::StorageFull
    );
    assert!(disk.open(Path::new("/d/g"), OpenMode::CreateNew).is_err());
    assert_eq!(disk.space(Path::new("/d")).unwrap().free_bytes, 0);
    disk.set_full(false);
    file.write_all_at(&[1], 100).unwrap();
}
