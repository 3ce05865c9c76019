//! A disk layered over another, which it only reads: changes are kept in memory and discarded at
//! the end.
//!
//! Changes are kept by block, so that changing one block of a large file costs one block of memory.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use steadfast_net::lock;

use super::{Disk, DiskFile, DiskFuture, DiskLock, DiskSpace, FileMark, OpenMode};

const BLOCK_BYTES: usize = 4096;

/// See the module. Clones share the disk.
#[derive(Clone)]
pub(crate) struct OverlayDisk {
    below: Arc<dyn Disk>,
    changes: Arc<Mutex<Changes>>,
}

#[derive(Default)]
struct Changes {
    /// Files that were created, renamed or opened here.
    files: BTreeMap<PathBuf, Arc<Layered>>,
    /// Names that the disk below has and this one does not.
    gone: BTreeSet<PathBuf>,
    directories: BTreeSet<PathBuf>,
    /// Files created here so far.
    made: u64,
}

impl OverlayDisk {
    /// A disk with everything that `below` has. `below` is never changed.
    pub(crate) fn new(below: Arc<dyn Disk>) -> Self {
        Self {
            below,
            changes: Arc::default(),
        }
    }

    fn changes(&self) -> MutexGuard<'_, Changes> {
        // Every change of the names is one call.
        lock(&self.changes)
    }

    /// The file of this name over the one below, which is opened read-only.
    fn layered(&self, changes: &mut Changes, path: &Path) -> io::Result<Arc<Layered>> {
        if let Some(file) = changes.files.get(path) {
            return Ok(Arc::clone(file));
        }
        if changes.gone.contains(path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let below = self.below.open(path, OpenMode::Read)?;
        let mark = self.below.file_mark(path)?;
        let bytes = below.len()?;
        let file = Arc::new(Layered::new(Some((below, bytes)), mark));
        changes.files.insert(path.to_owned(), Arc::clone(&file));
        Ok(file)
    }
}

impl Disk for OverlayDisk {
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        let directories = path.ancestors().map(Path::to_path_buf);
        self.changes().directories.extend(directories);
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let changes = self.changes();
        let below = match self.below.list(dir) {
            Err(error)
                if error.kind() == io::ErrorKind::NotFound && changes.directories.contains(dir) =>
            {
                Vec::new()
            }
            listed => listed?,
        };
        let mut names: BTreeSet<String> = below.into_iter().collect();
        names.retain(|name| !changes.gone.contains(&dir.join(name)));
        let here = changes.files.keys();
        let here = here.filter(|path| path.parent() == Some(dir));
        names.extend(here.filter_map(|path| Some(path.file_name()?.to_str()?.to_owned())));
        Ok(names.into_iter().collect())
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        let changes = self.changes();
        let is_here = changes.files.contains_key(path) || changes.directories.contains(path);
        Ok(is_here || (!changes.gone.contains(path) && self.below.exists(path)?))
    }

    fn file_mark(&self, path: &Path) -> io::Result<FileMark> {
        let changes = self.changes();
        match changes.files.get(path) {
            Some(file) => Ok(file.mark),
            None if changes.gone.contains(path) => Err(io::ErrorKind::NotFound.into()),
            None => self.below.file_mark(path),
        }
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Box<dyn DiskFile>> {
        if mode != OpenMode::CreateNew {
            let file = self.layered(&mut self.changes(), path)?;
            return Ok(Box::new(file));
        }
        if self.exists(path)? {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let mut changes = self.changes();
        changes.made += 1;
        let mark = FileMark {
            number: u64::MAX - changes.made,
            born_ns: None,
        };
        let file = Arc::new(Layered::new(None, mark));
        changes.files.insert(path.to_owned(), Arc::clone(&file));
        Ok(Box::new(file))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut changes = self.changes();
        let file = self.layered(&mut changes, from)?;
        changes.files.remove(from);
        changes.files.insert(to.to_owned(), file);
        changes.gone.insert(from.to_owned());
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        if !self.exists(path)? {
            return Err(io::ErrorKind::NotFound.into());
        }
        let mut changes = self.changes();
        changes.files.remove(path);
        changes.gone.insert(path.to_owned());
        Ok(())
    }

    fn sync_dir<'a>(&'a self, _dir: &'a Path) -> DiskFuture<'a, ()> {
        Box::pin(async { Ok(()) })
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn DiskLock>> {
        if self.below.exists(path)? {
            // Locking an existing file does not change it.
            return self.below.lock(path);
        }
        // Nobody holds it: taking a lock creates its file.
        Ok(Box::new(NoLock))
    }

    fn space(&self, path: &Path) -> io::Result<DiskSpace> {
        self.below.space(path)
    }
}

struct NoLock;

impl DiskLock for NoLock {}

/// A file layered over one that is only read.
struct Layered {
    below: Option<Box<dyn DiskFile>>,
    mark: FileMark,
    content: Mutex<Content>,
}

struct Content {
    bytes: u64,
    /// Up to here, unchanged blocks come from the file below.
    below: u64,
    /// Changed blocks, by number.
    blocks: BTreeMap<u64, Box<[u8; BLOCK_BYTES]>>,
}

impl Layered {
    fn new(below: Option<(Box<dyn DiskFile>, u64)>, mark: FileMark) -> Self {
        let bytes = below.as_ref().map_or(0, |(_, bytes)| *bytes);
        Self {
            below: below.map(|(file, _)| file),
            mark,
            content: Mutex::new(Content {
                bytes,
                below: bytes,
                blocks: BTreeMap::new(),
            }),
        }
    }

    fn content(&self) -> MutexGuard<'_, Content> {
        // A block that was half written belongs to a call that failed.
        lock(&self.content)
    }

    /// What the block holds without the changes made here.
    fn block_below(&self, content: &Content, number: u64) -> io::Result<Box<[u8; BLOCK_BYTES]>> {
        let mut block = Box::new([0; BLOCK_BYTES]);
        let start = number * BLOCK_BYTES as u64;
        if let Some(file) = &self.below
            && start < content.below
        {
            let read = file.read_at(&mut block[..], start)?;
            let counts = usize::try_from(content.below - start).unwrap_or(usize::MAX);
            block[read.min(counts)..].fill(0);
        }
        Ok(block)
    }
}

/// Calls `part` for each block that `bytes` bytes at `offset` touch: its number, the offset within
/// it, and the range within the bytes.
fn by_block(
    offset: u64,
    bytes: usize,
    mut part: impl FnMut(u64, usize, std::ops::Range<usize>) -> io::Result<()>,
) -> io::Result<()> {
    let mut done = 0;
    while done < bytes {
        let at = offset + done as u64;
        let within = usize::try_from(at % BLOCK_BYTES as u64).map_err(io::Error::other)?;
        let end = bytes.min(done + BLOCK_BYTES - within);
        part(at / BLOCK_BYTES as u64, within, done..end)?;
        done = end;
    }
    Ok(())
}

impl DiskFile for Arc<Layered> {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let content = self.content();
        let left = usize::try_from(content.bytes.saturating_sub(offset)).unwrap_or(usize::MAX);
        let bytes = buffer.len().min(left);
        if let Some(below) = &self.below
            && content.blocks.is_empty()
            && content.below == content.bytes
        {
            return below.read_at(&mut buffer[..bytes], offset);
        }
        by_block(offset, bytes, |number, within, part| {
            let into = &mut buffer[part];
            let from = within..within + into.len();
            match content.blocks.get(&number) {
                Some(block) => into.copy_from_slice(&block[from]),
                None => into.copy_from_slice(&self.block_below(&content, number)?[from]),
            }
            Ok(())
        })?;
        Ok(bytes)
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut content = self.content();
        by_block(offset, bytes.len(), |number, within, part| {
            let from = &bytes[part];
            let mut block = match content.blocks.remove(&number) {
                Some(block) => block,
                None => self.block_below(&content, number)?,
            };
            block[within..within + from.len()].copy_from_slice(from);
            content.blocks.insert(number, block);
            Ok(())
        })?;
        content.bytes = content.bytes.max(offset + bytes.len() as u64);
        Ok(())
    }

    fn sync_data(&self) -> DiskFuture<'_, ()> {
        Box::pin(async { Ok(()) })
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.content().bytes)
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        let mut content = self.content();
        content.bytes = content.bytes.max(bytes);
        Ok(())
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        let mut content = self.content();
        content.bytes = bytes;
        content.below = content.below.min(bytes);
        let last = bytes / BLOCK_BYTES as u64;
        content.blocks.retain(|number, _| *number <= last);
        let within = usize::try_from(bytes % BLOCK_BYTES as u64).map_err(io::Error::other)?;
        if let Some(block) = content.blocks.get_mut(&last) {
            block[within..].fill(0);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::MemoryDisk;

    /// Random operations on the overlay give the same results as on a plain disk, and leave the one
    /// below unchanged.
    #[test]
    fn it_shows_every_change_and_makes_none_below() {
        let (below, expected) = (MemoryDisk::new(), MemoryDisk::new());
        let dir = Path::new("/data");
        let name = |number: u32| dir.join(format!("file-{}", number % 5));
        for disk in [&below, &expected] {
            disk.create_dir_all(dir).unwrap();
            for number in 0..3_u8 {
                disk.plant(&name(number.into()), &[number; 10_000]);
            }
        }
        let changes = below.steps();
        let overlay = OverlayDisk::new(Arc::new(below.clone()));
        let disks: [&dyn Disk; 2] = [&overlay, &expected];
        let mut state = 7_u32;
        let mut random = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state >> 8
        };
        for step in 0..5_000 {
            let (one, other) = (name(random()), name(random()));
            let (offset, bytes) = (u64::from(random() % 14_000), random() % 9_000);
            let written = vec![random().to_le_bytes()[0]; bytes as usize];
            let results = disks.map(|disk| {
                let mode = match step % 7 {
                    0 => OpenMode::CreateNew,
                    1 => return disk.rename(&one, &other).err().map(|error| error.kind()),
                    2 => return disk.remove(&one).err().map(|error| error.kind()),
                    _ => OpenMode::ReadWrite,
                };
                let file = match disk.open(&one, mode) {
                    Ok(file) => file,
                    Err(error) => return Some(error.kind()),
                };
                match step % 5 {
                    0 => file.set_len(offset).unwrap(),
                    1 => file.allocate(offset).unwrap(),
                    _ => file.write_all_at(&written, offset).unwrap(),
                }
                None
            });
            assert_eq!(results[0], results[1], "step {step}");
            let [names, names_expected] = disks.map(|disk| disk.list(dir).unwrap());
            assert_eq!(names, names_expected, "step {step}");
            for name in names {
                let path = dir.join(&name);
                let file = overlay.open(&path, OpenMode::Read).unwrap();
                let mut bytes = vec![9; 30_000];
                let read = file.read_at(&mut bytes, 0).unwrap();
                assert!(
                    Some(&bytes[..read]) == expected.bytes(&path).as_deref(),
                    "{name}, step {step}"
                );
                assert_eq!(file.len().unwrap(), read as u64);
            }
        }
        assert_eq!(below.steps(), changes);
    }

    #[test]
    fn a_lock_that_is_held_below_is_held() {
        let below = MemoryDisk::new();
        let overlay = OverlayDisk::new(Arc::new(below.clone()));
        let held = below.lock(Path::new("/data/lock")).unwrap();
        let refused = overlay
            .lock(Path::new("/data/lock"))
            .err()
            .map(|error| error.kind());
        assert_eq!(refused, Some(io::ErrorKind::WouldBlock));
        drop(held);
        assert!(overlay.lock(Path::new("/data/lock")).is_ok());
    }
}
