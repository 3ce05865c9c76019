//! A log in a process with few descriptors.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rustix::io::Errno;
use tokio::time::timeout;

use super::super::disk::{DiskFuture, DiskLock};
use super::super::scarce::WAIT_MAX;
use super::super::{Disk, DiskFile, DiskSpace, FileMark, OpenMode};
use super::*;

/// A disk whose files take descriptors from a limited supply.
#[derive(Clone)]
struct ScarceDisk {
    disk: MemoryDisk,
    left: Arc<AtomicUsize>,
    used: Arc<AtomicUsize>,
}

impl ScarceDisk {
    fn new() -> Self {
        Self {
            disk: MemoryDisk::new(),
            left: Arc::new(AtomicUsize::new(usize::MAX)),
            used: Arc::default(),
        }
    }

    /// Allows this many open files from here on.
    fn allow(&self, descriptors: usize) {
        self.left.store(descriptors, Ordering::SeqCst);
    }

    fn used(&self) -> usize {
        self.used.load(Ordering::SeqCst)
    }

    fn take(&self) -> io::Result<Descriptor> {
        if self.used() >= self.left.load(Ordering::SeqCst) {
            return Err(Errno::MFILE.into());
        }
        self.used.fetch_add(1, Ordering::SeqCst);
        Ok(Descriptor(Arc::clone(&self.used)))
    }

    async fn open(&self, config: LogConfig) -> Node {
        let disk = Arc::new(self.clone());
        let (log, writer) = Log::open(disk, dir(), IDENTITY, config).await.unwrap();
        Node {
            log,
            writer: tokio::spawn(writer.run()),
        }
    }
}

struct Descriptor(Arc<AtomicUsize>);

impl Drop for Descriptor {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Disk for ScarceDisk {
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.disk.create_dir_all(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.disk.list(dir)
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        self.disk.exists(path)
    }

    fn file_mark(&self, path: &Path) -> io::Result<FileMark> {
        self.disk.file_mark(path)
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Box<dyn DiskFile>> {
        let descriptor = self.take()?;
        let file = self.disk.open(path, mode)?;
        Ok(Box::new(ScarceFile(file, descriptor)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.disk.remove(path)
    }

    fn sync_dir<'a>(&'a self, dir: &'a Path) -> DiskFuture<'a, ()> {
        Box::pin(async move {
            let _descriptor = self.take()?;
            self.disk.sync_dir(dir).await
        })
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn DiskLock>> {
        self.disk.lock(path)
    }

    fn space(&self, path: &Path) -> io::Result<DiskSpace> {
        self.disk.space(path)
    }
}

struct ScarceFile(
    Box<dyn DiskFile>,
    #[expect(dead_code, reason = "held")] Descriptor,
);

impl DiskFile for ScarceFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.read_at(buffer, offset)
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    fn sync_data(&self) -> DiskFuture<'_, ()> {
        self.0.sync_data()
    }

    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        self.0.allocate(bytes)
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.0.set_len(bytes)
    }
}

/// Entries that fill several segments.
fn entries(from: u64) -> Vec<Entry> {
    (from..from + 40).map(|p| entry(1, p, &[7; 900])).collect()
}

async fn append_all(log: &Log, entries: Vec<Entry>) -> io::Result<()> {
    for entry in entries {
        append(log, vec![entry]).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_log_of_many_segments_has_few_files_open() {
    let disk = ScarceDisk::new();
    let node = disk.open(TINY).await;
    node.log.save_vote(vote(1)).await.unwrap();
    append_all(&node.log, entries(0)).await.unwrap();
    assert!(node.log.purge_points().len() > 8, "there are many segments");
    // The last one, and the spares prepared to follow it.
    assert!(disk.used() <= 3, "{}", disk.used());
    assert_eq!(read_all(&node.log).await.unwrap(), entries(0));
    node.close().await;

    // Opening it, or checking it beside its writer, takes no more.
    disk.allow(6);
    let node = disk.open(TINY).await;
    assert!(disk.used() <= 3, "{}", disk.used());
    let checked = node
        .log
        .check(&(Arc::new(disk.clone()) as _), &dir(), IDENTITY);
    assert!(checked.unwrap() > 8 * 8192);
    assert_eq!(read_all(&node.log).await.unwrap(), entries(0));
    node.log.purge(id(1, 20)).await.unwrap();
    append_all(&node.log, entries(40)).await.unwrap();
    assert!(disk.used() <= 3, "{}", disk.used());
    assert_eq!(read_all(&node.log).await.unwrap().len(), 80 - 21);
}

#[tokio::test(start_paused = true)]
async fn a_log_that_finds_no_descriptor_waits_and_loses_nothing() {
    let disk = ScarceDisk::new();
    let node = disk.open(TINY).await;
    node.log.save_vote(vote(1)).await.unwrap();
    append_all(&node.log, entries(0)).await.unwrap();
    disk.allow(0);
    let log = node.log.clone();
    let (more, read) = (append_all(&log, entries(40)), read_all(&log));
    let (mut more, mut read) = (std::pin::pin!(more), std::pin::pin!(read));
    let moment = WAIT_MAX / 2;
    assert!(timeout(moment, &mut more).await.is_err(), "it waits");
    assert!(timeout(Duration::from_secs(1), &mut read).await.is_err());
    disk.allow(100);
    more.await.unwrap();
    assert_eq!(read.await.unwrap()[..40], entries(0));
    // Work that nobody waits for is not affected either.
    disk.allow(0);
    node.log.purge(id(1, 60)).await.unwrap();
    disk.allow(100);
    append_all(&node.log, entries(80)).await.unwrap();
    node.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_log_that_never_gets_a_descriptor_fails_in_the_end() {
    let disk = ScarceDisk::new();
    let node = disk.open(TINY).await;
    node.log.save_vote(vote(1)).await.unwrap();
    disk.allow(0);
    let failed = append_all(&node.log, entries(0)).await.unwrap_err();
    assert!(failed.to_string().contains("writing"), "{failed}");
    let closed = node.log.close().await;
    assert!(matches!(closed, Err(LogError::Failed { .. })), "{closed:?}");
}
