//! An in-memory disk that knows what has been synced.
//!
//! Each file has two contents: what a reader sees and what a power cut would leave. The same holds
//! for names: changes to a directory wait in order until it is synced. [`MemoryDisk::crash`] drops
//! everything unsynced; [`MemoryDisk::crash_keeping`] lets the caller keep any leading part of any
//! unsynced sector and any number of the waiting name changes, in order, as a journalling file
//! system does.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use steadfast_net::lock;

use tokio::sync::watch;

use super::{Disk, DiskFile, DiskFuture, DiskLock, DiskSpace, FileMark, OpenMode};

/// Sector size in bytes: what a disk writes whole or not at all.
const SECTOR_BYTES: usize = 512;
/// The size that the model reports for its volume.
const VOLUME_BYTES: u64 = 1 << 40;

/// A deterministic model of a disk. Clones share the disk.
#[derive(Clone)]
pub struct MemoryDisk {
    model: Arc<Mutex<Model>>,
    held: watch::Sender<bool>,
}

impl Default for MemoryDisk {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryDisk {
    /// An empty disk.
    pub fn new() -> Self {
        Self {
            model: Arc::default(),
            held: watch::Sender::new(false),
        }
    }

    /// Cuts the power: everything unsynced is gone, every open handle fails, every lock is
    /// released. Switches ([`Self::fail_syncs`] and the like) return to healthy.
    pub fn crash(&self) {
        self.crash_keeping(0, |_, _| 0);
    }

    /// As [`Self::crash`], but keeps the first `names` waiting name changes and, of each unsynced
    /// sector, as many leading bytes as `bytes` returns for its file and offset.
    pub fn crash_keeping(&self, names: usize, mut bytes: impl FnMut(&Path, u64) -> usize) {
        let mut model = self.model();
        let Model {
            files,
            waiting,
            durable_names,
            ..
        } = &mut *model;
        for change in waiting.drain(..).take(names) {
            change.apply(durable_names);
        }
        for (path, id) in &*durable_names {
            let file = &mut files[*id];
            for sector in std::mem::take(&mut file.unsynced) {
                let start = sector * SECTOR_BYTES;
                let kept = bytes(path, start as u64).min(SECTOR_BYTES);
                file.keep(start..start + kept);
            }
        }
        for file in files {
            file.unsynced.clear();
            file.current.clone_from(&file.durable);
        }
        model.names = model.durable_names.clone();
        model.locks.clear();
        model.life += 1;
        model.fail_syncs = false;
        model.full = false;
        model.steps_left = None;
        model.reads_left = None;
        drop(model);
        self.hold_syncs(false);
    }

    /// Makes every later sync fail, or work again.
    pub fn fail_syncs(&self, fail: bool) {
        self.model().fail_syncs = fail;
    }

    /// Makes everything that needs more space fail, or work again.
    pub fn set_full(&self, full: bool) {
        self.model().full = full;
    }

    /// Sets the free space that [`Disk::space`] reports. It has no other effect: see
    /// [`Self::set_full`].
    pub fn set_free_bytes(&self, bytes: u64) {
        self.model().free_bytes = bytes;
    }

    /// Makes every sync wait from its start until this is called with `false`.
    pub fn hold_syncs(&self, hold: bool) {
        self.held.send_replace(hold);
    }

    /// Lets this many more changes (writes, syncs, names) succeed; then all fail until a crash.
    pub fn fail_after(&self, steps: u64) {
        self.model().steps_left = Some(steps);
    }

    /// Makes one file read fail: the one after this many more.
    pub fn fail_read_after(&self, reads: u64) {
        self.model().reads_left = Some(reads);
    }

    /// How many syncs of files have been started.
    pub fn syncs(&self) -> u64 {
        self.model().syncs
    }

    /// How many changes (writes, syncs, names) have been tried.
    pub fn steps(&self) -> u64 {
        self.model().steps
    }

    /// The bytes of a file as a reader sees them.
    pub fn bytes(&self, path: &Path) -> Option<Vec<u8>> {
        let model = self.model();
        model
            .names
            .get(path)
            .map(|&id| model.files[id].current.clone())
    }

    /// Replaces a file's bytes, durably: how a test plants rot.
    pub fn plant(&self, path: &Path, bytes: &[u8]) {
        let mut model = self.model();
        let id = model.names.get(path).copied().unwrap_or_else(|| {
            model.files.push(Content::default());
            model.files.len() - 1
        });
        model.names.insert(path.to_owned(), id);
        model.durable_names.insert(path.to_owned(), id);
        model.files[id] = Content {
            current: bytes.to_vec(),
            durable: bytes.to_vec(),
            unsynced: BTreeSet::new(),
        };
    }

    fn model(&self) -> MutexGuard<'_, Model> {
        // A panic elsewhere leaves the model consistent: every change below is made whole or not at
        // all.
        lock(&self.model)
    }

    /// Waits while syncs are held, then says whether this one succeeds.
    async fn pass_gate(&self) -> io::Result<()> {
        let mut held = self.held.subscribe();
        held.wait_for(|held| !held)
            .await
            .map_err(io::Error::other)?;
        if self.model().fail_syncs {
            Err(io::Error::other("sync failed"))
        } else {
            Ok(())
        }
    }
}

impl Disk for MemoryDisk {
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        let mut model = self.model();
        model.step()?;
        // Directories are durable at once: losing one would lose a whole data directory, which the
        // caller creates and syncs before use.
        model
            .directories
            .extend(path.ancestors().map(Path::to_path_buf));
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let model = self.model();
        if !model.directories.contains(dir) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let inside = model.names.keys().filter(|path| path.parent() == Some(dir));
        Ok(inside
            .filter_map(|path| Some(path.file_name()?.to_str()?.to_owned()))
            .collect())
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        let model = self.model();
        Ok(model.names.contains_key(path)
            || model.directories.contains(path)
            || model.locks.contains(path))
    }

    fn file_mark(&self, path: &Path) -> io::Result<FileMark> {
        let found = self.model().names.get(path).copied();
        let number = found.ok_or(io::ErrorKind::NotFound)?;
        Ok(FileMark {
            number: number as u64,
            born_ns: None,
        })
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Box<dyn DiskFile>> {
        let mut model = self.model();
        let found = model.names.get(path).copied();
        let id = match (mode, found) {
            (OpenMode::CreateNew, Some(_)) => return Err(io::ErrorKind::AlreadyExists.into()),
            (OpenMode::CreateNew, None) => {
                if !path
                    .parent()
                    .is_some_and(|dir| model.directories.contains(dir))
                {
                    return Err(io::ErrorKind::NotFound.into());
                }
                model.step()?;
                model.grow(true)?;
                model.files.push(Content::default());
                let id = model.files.len() - 1;
                model.change(NameChange::Add(path.to_owned(), id));
                id
            }
            (_, None) => return Err(io::ErrorKind::NotFound.into()),
            (_, Some(id)) => id,
        };
        Ok(Box::new(MemoryFile {
            disk: self.clone(),
            id,
            life: model.life,
        }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut model = self.model();
        model.step()?;
        if !model.names.contains_key(from) {
            return Err(io::ErrorKind::NotFound.into());
        }
        model.change(NameChange::Rename(from.to_owned(), to.to_owned()));
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut model = self.model();
        model.step()?;
        if !model.names.contains_key(path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        model.change(NameChange::Remove(path.to_owned()));
        Ok(())
    }

    fn sync_dir<'a>(&'a self, dir: &'a Path) -> DiskFuture<'a, ()> {
        Box::pin(async move {
            self.model().step()?;
            self.pass_gate().await?;
            let model = &mut *self.model();
            let (synced, waiting) = model.waiting.drain(..).partition(|c| c.is_in(dir));
            model.waiting = waiting;
            let synced: Vec<NameChange> = synced;
            for change in synced {
                change.apply(&mut model.durable_names);
            }
            Ok(())
        })
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn DiskLock>> {
        let mut model = self.model();
        if !model.locks.insert(path.to_owned()) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let life = model.life;
        Ok(Box::new(MemoryLock {
            disk: self.clone(),
            path: path.to_owned(),
            life,
        }))
    }

    fn space(&self, _path: &Path) -> io::Result<DiskSpace> {
        let model = self.model();
        let free_bytes = if model.full { 0 } else { model.free_bytes };
        Ok(DiskSpace {
            free_bytes,
            total_bytes: VOLUME_BYTES,
        })
    }
}

struct Model {
    /// Every file that ever existed; an index is never reused.
    files: Vec<Content>,
    names: BTreeMap<PathBuf, usize>,
    durable_names: BTreeMap<PathBuf, usize>,
    /// Name changes that a crash may still lose, oldest first.
    waiting: Vec<NameChange>,
    directories: BTreeSet<PathBuf>,
    locks: BTreeSet<PathBuf>,
    /// Counts crashes: a handle of an earlier life fails.
    life: u64,
    fail_syncs: bool,
    full: bool,
    free_bytes: u64,
    steps_left: Option<u64>,
    reads_left: Option<u64>,
    steps: u64,
    syncs: u64,
}

impl Default for Model {
    fn default() -> Self {
        Self {
            files: Vec::new(),
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            waiting: Vec::new(),
            directories: BTreeSet::new(),
            locks: BTreeSet::new(),
            life: 0,
            fail_syncs: false,
            full: false,
            free_bytes: VOLUME_BYTES,
            steps_left: None,
            reads_left: None,
            steps: 0,
            syncs: 0,
        }
    }
}

impl Model {
    /// Counts one change, and refuses it when the disk has been told to stop.
    fn step(&mut self) -> io::Result<()> {
        self.steps += 1;
        match &mut self.steps_left {
            Some(0) => Err(io::Error::other("disk is gone")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn grow(&self, grows: bool) -> io::Result<()> {
        if grows && self.full {
            Err(io::ErrorKind::StorageFull.into())
        } else {
            Ok(())
        }
    }

    fn change(&mut self, change: NameChange) {
        change.apply(&mut self.names);
        self.waiting.push(change);
    }
}

#[derive(Default)]
struct Content {
    current: Vec<u8>,
    durable: Vec<u8>,
    /// Sectors in which `current` may differ from `durable`.
    unsynced: BTreeSet<usize>,
}

impl Content {
    fn resize(&mut self, bytes: usize) {
        let (old, new) = (self.current.len(), bytes);
        self.current.resize(new, 0);
        self.mark(old.min(new)..old.max(new));
    }

    fn mark(&mut self, range: std::ops::Range<usize>) {
        if !range.is_empty() {
            self.unsynced
                .extend(range.start / SECTOR_BYTES..=(range.end - 1) / SECTOR_BYTES);
        }
    }

    /// Copies these bytes, as far as they exist, to what survives.
    fn keep(&mut self, range: std::ops::Range<usize>) {
        let range = range.start..range.end.min(self.current.len());
        if range.is_empty() {
            return;
        }
        if self.durable.len() < range.end {
            self.durable.resize(range.end, 0);
        }
        self.durable[range.clone()].copy_from_slice(&self.current[range]);
    }

    fn sync(&mut self) {
        for sector in std::mem::take(&mut self.unsynced) {
            self.keep(sector * SECTOR_BYTES..(sector + 1) * SECTOR_BYTES);
        }
        self.durable.resize(self.current.len(), 0);
    }
}

enum NameChange {
    Add(PathBuf, usize),
    Rename(PathBuf, PathBuf),
    Remove(PathBuf),
}

impl NameChange {
    fn is_in(&self, dir: &Path) -> bool {
        let (Self::Add(path, _) | Self::Rename(path, _) | Self::Remove(path)) = self;
        path.parent() == Some(dir)
    }

    fn apply(&self, names: &mut BTreeMap<PathBuf, usize>) {
        match self {
            Self::Add(path, id) => {
                names.insert(path.clone(), *id);
            }
            Self::Rename(from, to) => {
                if let Some(id) = names.remove(from) {
                    names.insert(to.clone(), id);
                }
            }
            Self::Remove(path) => {
                names.remove(path);
            }
        }
    }
}

struct MemoryFile {
    disk: MemoryDisk,
    id: usize,
    life: u64,
}

impl MemoryFile {
    fn alive(&self) -> io::Result<MutexGuard<'_, Model>> {
        let model = self.disk.model();
        if model.life == self.life {
            Ok(model)
        } else {
            Err(io::Error::other("disk crashed"))
        }
    }
}

impl DiskFile for MemoryFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut model = self.alive()?;
        let left = model.reads_left.take();
        model.reads_left = match left.map(|left| left.checked_sub(1)) {
            Some(None) => return Err(io::Error::other("simulated read failure (EIO)")),
            left => left.flatten(),
        };
        let current = &model.files[self.id].current;
        let start = usize::try_from(offset).map_or(current.len(), |at| at.min(current.len()));
        let bytes = buffer.len().min(current.len() - start);
        buffer[..bytes].copy_from_slice(&current[start..start + bytes]);
        Ok(bytes)
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut model = self.alive()?;
        model.step()?;
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        let end = start + bytes.len();
        model.grow(end > model.files[self.id].current.len())?;
        let file = &mut model.files[self.id];
        if end > file.current.len() {
            file.resize(end);
        }
        file.current[start..end].copy_from_slice(bytes);
        file.mark(start..end);
        Ok(())
    }

    fn sync_data(&self) -> DiskFuture<'_, ()> {
        Box::pin(async move {
            {
                let mut model = self.alive()?;
                model.syncs += 1;
                model.step()?;
            }
            let passed = self.disk.pass_gate().await;
            let file = &mut self.alive()?.files[self.id];
            match passed {
                Ok(()) => file.sync(),
                // As on Linux: the cache keeps the bytes and considers them written.
                Err(_) => file.unsynced.clear(),
            }
            passed
        })
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.alive()?.files[self.id].current.len() as u64)
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        if bytes > self.len()? {
            self.set_len(bytes)
        } else {
            Ok(())
        }
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        let mut model = self.alive()?;
        model.step()?;
        let bytes = usize::try_from(bytes).map_err(io::Error::other)?;
        model.grow(bytes > model.files[self.id].current.len())?;
        model.files[self.id].resize(bytes);
        Ok(())
    }
}

struct MemoryLock {
    disk: MemoryDisk,
    path: PathBuf,
    life: u64,
}

impl DiskLock for MemoryLock {}

impl Drop for MemoryLock {
    fn drop(&mut self) {
        let mut model = self.disk.model();
        // A crash has already released it, and someone else may hold it by now.
        if model.life == self.life {
            model.locks.remove(&self.path);
        }
    }
}
