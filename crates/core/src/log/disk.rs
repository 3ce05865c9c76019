//! The interface between the log and the machine's disk.
//!
//! Everything but the files of an engine goes through [`Disk`], so that a test can run the
//! same code on a disk that loses what was not synced ([`MemoryDisk`]). The points where bytes
//! become durable ([`DiskFile::sync_data`], [`Disk::sync_dir`]) are futures, because a simulator
//! spends virtual time there; all other calls return at once. [`RealDisk`] does its blocking calls
//! inside those futures, so poll them on a thread that may block.
//!
//! An implementation promises that a crash can lose bytes and names only until the sync that covers
//! them has returned `Ok`; that a sector of 512 bytes is written whole or not at all; and that
//! writing one sector leaves its neighbours alone.

mod memory;
mod overlay;
pub(crate) mod owner;

use std::fs::{self, File, OpenOptions, TryLockError};
use std::future::Future;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::pin::Pin;
use std::time::UNIX_EPOCH;

pub use memory::MemoryDisk;
pub(crate) use overlay::OverlayDisk;

/// Mode of every directory that the library creates: only its owner may look inside.
const DIRECTORY_MODE: u32 = 0o700;
/// Mode of every file that the library creates.
const FILE_MODE: u32 = 0o600;

/// The result of a call that makes something durable.
pub type DiskFuture<'a, T> = Pin<Box<dyn Future<Output = io::Result<T>> + Send + 'a>>;

/// Files and directories: the machine's, or a model of them.
pub trait Disk: Send + Sync + 'static {
    /// Creates a directory and its parents (mode 0700); an existing one is fine.
    ///
    /// # Errors
    /// As the disk reports them.
    fn create_dir_all(&self, path: &Path) -> io::Result<()>;

    /// The names of the files in a directory, sorted.
    ///
    /// # Errors
    /// `NotFound` when there is no such directory; others as the disk reports them.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;

    /// Whether a file or directory of this name exists.
    ///
    /// # Errors
    /// As the disk reports them.
    fn exists(&self, path: &Path) -> io::Result<bool>;

    /// Identifies the file of this name. A rename, of it or of a directory above it, and a crash
    /// keep the mark; a copy of the file gets another.
    ///
    /// # Errors
    /// `NotFound` for a missing file; others as the disk reports them.
    fn file_mark(&self, path: &Path) -> io::Result<FileMark>;

    /// Opens a file.
    ///
    /// # Errors
    /// `NotFound` for a missing file (`Read`, `ReadWrite`), `AlreadyExists` for an existing one
    /// (`CreateNew`).
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Box<dyn DiskFile>>;

    /// Renames a file atomically; durable after [`Disk::sync_dir`].
    ///
    /// # Errors
    /// `NotFound` for a missing file; others as the disk reports them.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file; durable after [`Disk::sync_dir`].
    ///
    /// # Errors
    /// `NotFound` for a missing file; others as the disk reports them.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Makes every name created, changed or removed in this directory durable.
    ///
    /// # Errors
    /// As the disk reports them. After one, what is durable is unknown.
    fn sync_dir<'a>(&'a self, dir: &'a Path) -> DiskFuture<'a, ()>;

    /// Locks a lock file, created if missing, for as long as the returned value lives. An existing
    /// file is not changed.
    ///
    /// # Errors
    /// `WouldBlock` while another holder, in this process or another, has it.
    fn lock(&self, path: &Path) -> io::Result<Box<dyn DiskLock>>;

    /// The size of the volume that holds this path.
    ///
    /// # Errors
    /// As the disk reports them.
    fn space(&self, path: &Path) -> io::Result<DiskSpace>;
}

/// One open file. Reads and writes state their offset, so that a handle has no position to share.
#[expect(
    clippy::len_without_is_empty,
    reason = "a file's length is a number of bytes"
)]
pub trait DiskFile: Send + Sync {
    /// Reads at most `buffer.len()` bytes; fewer, or none, at the end of the file.
    ///
    /// # Errors
    /// As the disk reports them.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Writes all bytes, or fails, possibly with some of them written.
    ///
    /// # Errors
    /// `StorageFull` when the file would grow and cannot; others as the disk reports them.
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Makes everything written to the file before this call durable, its length included.
    ///
    /// # Errors
    /// As the disk reports them. After one, what is durable is unknown and a later success says
    /// nothing about earlier bytes.
    fn sync_data(&self) -> DiskFuture<'_, ()>;

    /// The length in bytes.
    ///
    /// # Errors
    /// As the disk reports them.
    fn len(&self) -> io::Result<u64>;

    /// Reserves space for the first `bytes` bytes and makes the file at least that long.
    ///
    /// # Errors
    /// `StorageFull` when there is no room.
    fn allocate(&self, bytes: u64) -> io::Result<()>;

    /// Cuts the file to this length, or extends it with zeros.
    ///
    /// # Errors
    /// As the disk reports them.
    fn set_len(&self, bytes: u64) -> io::Result<()>;
}

/// What distinguishes a file from its copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileMark {
    /// Its number on its volume, which the volume may reuse once the file is gone.
    pub number: u64,
    /// When it was created, in nanoseconds since 1970, where the volume records that.
    pub born_ns: Option<u64>,
}

impl FileMark {
    /// Whether both are of the same file. A time that only one of them has is ignored: a system may
    /// begin to report it.
    pub fn is_same(self, other: Self) -> bool {
        let times = self.born_ns.zip(other.born_ns);
        self.number == other.number && times.is_none_or(|(one, other)| one == other)
    }
}

/// A held lock file. Dropping it releases the lock.
pub trait DiskLock: Send + Sync {}

/// How to open a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// An existing file, for reading.
    Read,
    /// A file that must not exist yet, for reading and writing.
    CreateNew,
    /// An existing file, for reading and writing.
    ReadWrite,
}

/// Space on a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskSpace {
    /// Bytes that this process may still use.
    pub free_bytes: u64,
    /// Bytes of the whole volume.
    pub total_bytes: u64,
}

/// The machine's own disk. What it creates belongs to the owner of the directory it is in, as far
/// as this process may change owners.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealDisk;

impl Disk for RealDisk {
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        let missing: Vec<_> = path
            .ancestors()
            .take_while(|dir| !dir.as_os_str().is_empty() && !dir.exists())
            .collect();
        fs::DirBuilder::new()
            .recursive(true)
            .mode(DIRECTORY_MODE)
            .create(path)?;
        missing.into_iter().rev().try_for_each(owner::inherit)
    }

    #[expect(clippy::disallowed_methods, reason = "this is the real disk")]
    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(dir)? {
            // A name that is not UTF-8 is not ours.
            names.extend(entry?.file_name().into_string());
        }
        names.sort_unstable();
        Ok(names)
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        path.try_exists()
    }

    fn file_mark(&self, path: &Path) -> io::Result<FileMark> {
        let metadata = fs::metadata(path)?;
        // An error means that the volume, or the system, does not record this time.
        let born = metadata.created().ok();
        let since = born.and_then(|born| born.duration_since(UNIX_EPOCH).ok());
        Ok(FileMark {
            number: metadata.ino(),
            born_ns: since.and_then(|since| u64::try_from(since.as_nanos()).ok()),
        })
    }

    #[expect(clippy::disallowed_methods, reason = "this is the real disk")]
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Box<dyn DiskFile>> {
        let file = OpenOptions::new()
            .read(true)
            .write(mode != OpenMode::Read)
            .create_new(mode == OpenMode::CreateNew)
            .mode(FILE_MODE)
            .open(path)?;
        if mode == OpenMode::CreateNew {
            owner::inherit(path)?;
        }
        Ok(Box::new(RealFile(file)))
    }

    #[expect(clippy::disallowed_methods, reason = "this is the real disk")]
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    #[expect(clippy::disallowed_methods, reason = "this is the real disk")]
    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    #[expect(clippy::disallowed_methods, reason = "this is the real disk")]
    fn sync_dir<'a>(&'a self, dir: &'a Path) -> DiskFuture<'a, ()> {
        Box::pin(async move { File::open(dir)?.sync_all() })
    }

    #[expect(clippy::disallowed_methods, reason = "this is the real disk")]
    fn lock(&self, path: &Path) -> io::Result<Box<dyn DiskLock>> {
        let file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let made = OpenOptions::new()
                    .write(true)
                    .create(true)
                    .truncate(false)
                    .mode(FILE_MODE)
                    .open(path)?;
                owner::inherit(path)?;
                made
            }
            opened => opened?,
        };
        match file.try_lock() {
            Ok(()) => Ok(Box::new(RealLock { _file: file })),
            Err(TryLockError::WouldBlock) => Err(io::ErrorKind::WouldBlock.into()),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    fn space(&self, path: &Path) -> io::Result<DiskSpace> {
        let volume = rustix::fs::statvfs(path)?;
        Ok(DiskSpace {
            free_bytes: volume.f_bavail.saturating_mul(volume.f_frsize),
            total_bytes: volume.f_blocks.saturating_mul(volume.f_frsize),
        })
    }
}

struct RealFile(File);

impl DiskFile for RealFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut read = 0;
        while read < buffer.len() {
            match FileExt::read_at(&self.0, &mut buffer[read..], offset + read as u64) {
                Ok(0) => break,
                Ok(bytes) => read += bytes,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(read)
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        FileExt::write_all_at(&self.0, bytes, offset)
    }

    fn sync_data(&self) -> DiskFuture<'_, ()> {
        Box::pin(async move { self.0.sync_data() })
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        match rustix::fs::fallocate(&self.0, rustix::fs::FallocateFlags::empty(), 0, bytes) {
            // Reserving is an early warning of a full disk; a file system without it gives that
            // warning when the bytes are written.
            Err(rustix::io::Errno::OPNOTSUPP) if self.len()? < bytes => self.set_len(bytes),
            Err(rustix::io::Errno::OPNOTSUPP) => Ok(()),
            result => Ok(result?),
        }
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.0.set_len(bytes)
    }
}

/// Holds the lock for as long as the file is open.
struct RealLock {
    _file: File,
}

impl DiskLock for RealLock {}
