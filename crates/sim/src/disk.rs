//! An in-memory disk under virtual time that fails the way real disks do.
//!
//! ```text
//!   write ──► newest view ──sync──► durable view
//!             (a reader)            (what a power cut leaves, at least)
//! ```
//!
//! One [`SimDisk`] belongs to one host and outlives the processes on it. When a process dies
//! ([`SimDisk::process_ended`]), nothing is lost; a power cut ([`SimDisk::crash`]) loses any part
//! of what was not synced. All randomness comes from one seeded generator, so the same calls in the
//! same order give the same results.
//!
//! Time passes only in [`Disk::sync_dir`] and [`DiskFile::sync_data`]. What a sync covers is fixed
//! when it is called.
//!
//! Not modelled: lost directories (they are durable at once), renames across directories (refused),
//! space accounting (a switch makes the disk full), and pages that are evicted from the cache and
//! read back.
//!
//! | file | what |
//! | --- | --- |
//! | `disk/file.rs` | one file: both views, by sector |
//! | `disk/names.rs` | names, and changes to them that wait |
//! | `disk/model.rs` | the operations, with their faults |
//! | `disk/crash.rs` | what survives a power cut |
//! | `disk/damage.rs` | rot of durable bytes |
//! | `disk/copies.rs` | copies of a directory, and putting one back |

mod copies;
mod crash;
mod damage;
mod file;
mod model;
mod names;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use steadfast_net::lock;

use steadfast::log::{Disk, DiskFile, DiskFuture, DiskLock, DiskSpace, FileMark, OpenMode};
use tokio::sync::watch;

pub use copies::DirectoryCopy;
pub use damage::{Damage, DamageReport};

use model::Model;
use names::FileId;

/// The size the disk reports for its volume.
const VOLUME_BYTES: u64 = 1 << 40;
/// Latency of a healthy sync, as on a server disk.
const SYNC_LATENCY: Range<Duration> = Duration::from_micros(50)..Duration::from_micros(400);

/// Observes each operation: its name, its file, and the offset and number of its bytes.
type Tap = Arc<dyn Fn(&str, &Path, u64, u64) + Send + Sync>;

/// Which faults happen, and how often. Rates are per million operations; 0 means never.
#[derive(Clone, Debug)]
pub struct DiskFaults {
    /// Sync latency. The timer counts whole milliseconds: a time between two of them is rounded at
    /// random to either, which keeps the mean; with 0 a sync only yields.
    pub sync_latency: Range<Duration>,
    /// Rate of syncs that take up to 300 ms longer.
    pub slow_sync: u32,
    /// Rate of syncs that fail. As on Linux, the bytes covered by a failed file sync stay readable,
    /// are not durable, and no later sync covers them until they are written again. The length and
    /// names, in contrast, stay unsynced.
    pub fail_sync: u32,
    /// Syncs return on time but make nothing durable.
    pub lying_sync: bool,
    /// Rate of writes that fail after some of their bytes, but not all.
    pub fail_write: u32,
    /// Rate of reads that return one wrong bit. The next read of the same bytes may be right.
    pub read_flip: u32,
    /// Power cuts may tear a sector. The contract of [`Disk`] rules this out, so code that relies
    /// on it has to survive only without this fault.
    pub torn_bytes: bool,
    /// Keeps each sector's version before its newest durable one, for [`Damage::Stale`].
    pub keep_versions: bool,
}

impl Default for DiskFaults {
    /// A healthy disk.
    fn default() -> Self {
        Self {
            sync_latency: SYNC_LATENCY,
            slow_sync: 0,
            fail_sync: 0,
            lying_sync: false,
            fail_write: 0,
            read_flip: 0,
            torn_bytes: false,
            keep_versions: false,
        }
    }
}

/// Work the disk has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskStats {
    /// File and directory syncs started.
    pub syncs: u64,
    /// Bytes written to files.
    pub bytes_written: u64,
    /// Bytes read from files.
    pub bytes_read: u64,
    /// Steps, counted as in [`SimDisk::crash_after`].
    pub steps: u64,
}

/// A simulated disk. Clones refer to the same disk.
///
/// Switches ([`Self::set_faults`], [`Self::set_full`], [`Self::hold`]) survive a power cut.
#[derive(Clone)]
pub struct SimDisk {
    model: Arc<Mutex<Model>>,
    gate: watch::Sender<Gate>,
}

/// What a sync waits for.
#[derive(Clone, Copy, Default)]
struct Gate {
    held: bool,
    life: Life,
}

/// Counts the processes on the host: handles opened by an earlier one fail.
type Life = u64;

impl SimDisk {
    /// An empty disk. All randomness follows from the seed.
    pub fn new(seed: u64, faults: DiskFaults) -> Self {
        Self {
            model: Arc::new(Mutex::new(Model::new(seed, faults))),
            gate: watch::Sender::default(),
        }
    }

    /// Sets the faults from here on. A sync under way keeps the outcome already drawn for it.
    pub fn set_faults(&self, faults: DiskFaults) {
        self.model().chance.faults = faults;
    }

    /// Makes everything that needs more space fail with `StorageFull`, or work again. Writes within
    /// a file's length need none.
    pub fn set_full(&self, full: bool) {
        self.model().full = full;
    }

    /// Makes every sync wait, as on a stuck disk, or lets all of them go on.
    pub fn hold(&self, hold: bool) {
        self.gate.send_modify(|gate| gate.held = hold);
    }

    /// Cuts the power after this many more steps: every later operation fails until
    /// [`Self::crash`]. `on_trip` runs once, inside the operation that is the last step, before
    /// that operation returns; it may call this disk.
    ///
    /// A step is a change of a file or a name, the start of a sync, or its end, after which what
    /// the sync covers is durable. With 0 the power is off at once. Replaces any earlier plan.
    pub fn crash_after(&self, steps: u64, on_trip: impl FnOnce() + Send + 'static) {
        if steps == 0 {
            self.model().power.off = true;
            on_trip();
            return;
        }
        let mut model = self.model();
        model.power.steps_left = Some(steps);
        model.power.on_trip = Some(Box::new(on_trip));
    }

    /// Whether the power is off: a plan of [`Self::crash_after`] has tripped, and [`Self::crash`]
    /// has not been called yet.
    pub fn tripped(&self) -> bool {
        self.model().power.off
    }

    /// Cuts the power and turns it on again: any part of what was not synced is lost. Open handles
    /// fail from here on, and locks are free.
    pub fn crash(&self) {
        self.model().crash();
        self.end_life();
    }

    /// Ends the process on the host, not the host: nothing is lost. Open handles fail from here on,
    /// locks are free, and a sync under way has no effect.
    pub fn process_ended(&self) {
        self.model().process_ended();
        self.end_life();
    }

    /// Damages durable bytes of one file under this directory, where something other than zeros was
    /// written and nothing waits for a sync; `None` if there is no such place. Readers see the
    /// damage at once.
    pub fn damage(&self, damage: Damage, dir: &Path) -> Option<DamageReport> {
        self.model().damage(damage, dir)
    }

    /// Copies a directory in which no process has a file open.
    pub fn copy(&self, dir: &Path) -> DirectoryCopy {
        self.model().copy(dir)
    }

    /// Replaces the contents of the directory with a copy. No process has a file in it open.
    pub fn put_back(&self, dir: &Path, copy: DirectoryCopy) {
        self.model().put_back(dir, copy);
    }

    /// How often each kind of fault has happened; kinds that never happened are left out.
    pub fn counts(&self) -> BTreeMap<&'static str, u64> {
        self.model().chance.counts.clone()
    }

    /// Work the disk has done.
    pub fn stats(&self) -> DiskStats {
        self.model().stats
    }

    /// Calls `tap` for each step, in order, with the operation, the file or directory, and the
    /// offset and number of bytes. It may call this disk.
    pub fn set_tap(&self, tap: impl Fn(&str, &Path, u64, u64) + Send + Sync + 'static) {
        self.model().trace.tap = Some(Arc::new(tap));
    }

    /// Every file left by a power cut that nothing unsynced survives, in path order.
    pub fn durable_files(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let model = self.model();
        let names = model.names.durable();
        names
            .map(|(path, id)| (path.to_owned(), model.durable_bytes(id)))
            .collect()
    }

    fn model(&self) -> MutexGuard<'_, Model> {
        // A panic elsewhere ends the run and is reported there.
        lock(&self.model)
    }

    fn life(&self) -> Life {
        self.gate.borrow().life
    }

    fn end_life(&self) {
        self.gate.send_modify(|gate| gate.life += 1);
    }

    /// Runs one operation of the process of this life, then calls the observers.
    fn run<T>(
        &self,
        life: Life,
        operation: impl FnOnce(&mut Model) -> io::Result<T>,
    ) -> io::Result<T> {
        if self.life() != life {
            return Err(io::Error::other("the process that opened this has ended"));
        }
        let mut model = self.model();
        if model.power.off {
            return Err(io::Error::other("power is off"));
        }
        let result = operation(&mut model);
        let events = std::mem::take(&mut model.trace.events);
        let tap = model.trace.tap.clone();
        let off = model.power.off;
        let on_trip = model.power.on_trip.take_if(|_| off);
        drop(model);
        if let Some(tap) = tap {
            for event in events {
                tap(event.operation, &event.path, event.offset, event.bytes);
            }
        }
        if let Some(on_trip) = on_trip {
            on_trip();
        }
        result
    }

    fn run_any<T>(&self, operation: impl FnOnce(&mut Model) -> io::Result<T>) -> io::Result<T> {
        self.run(self.life(), operation)
    }

    /// Waits for the duration of one sync.
    async fn pass_time(&self, life: Life, delay: Duration) -> io::Result<()> {
        if delay.is_zero() {
            tokio::task::yield_now().await;
        } else {
            tokio::time::sleep(delay).await;
        }
        let mut gate = self.gate.subscribe();
        if gate.borrow().held {
            self.model().chance.count("fsync_held", 1);
        }
        let opened = gate.wait_for(|gate| !gate.held || gate.life != life).await;
        opened.map(|_| ()).map_err(io::Error::other)
    }
}

impl Disk for SimDisk {
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.run_any(|model| {
            model.create_dir_all(path);
            Ok(())
        })
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.run_any(|model| {
            if !model.names.is_dir(dir) {
                return Err(io::ErrorKind::NotFound.into());
            }
            let inside = model.names.under(dir);
            let inside = inside.filter(|(path, _)| path.parent() == Some(dir));
            Ok(inside
                .filter_map(|(path, _)| Some(path.file_name()?.to_str()?.to_owned()))
                .collect())
        })
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        self.run_any(|model| {
            Ok(model.names.find(path).is_some()
                || model.names.is_dir(path)
                || model.open.locks.contains(path))
        })
    }

    fn file_mark(&self, path: &Path) -> io::Result<FileMark> {
        self.run_any(|model| {
            let number = model.names.find(path).ok_or(io::ErrorKind::NotFound)?;
            Ok(FileMark {
                number,
                born_ns: None,
            })
        })
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Box<dyn DiskFile>> {
        let life = self.life();
        let id = self.run(life, |model| {
            let id = match (mode, model.names.find(path)) {
                (OpenMode::CreateNew, Some(_)) => Err(io::ErrorKind::AlreadyExists.into()),
                (OpenMode::CreateNew, None) => model.create(path),
                (_, found) => found.ok_or_else(|| io::ErrorKind::NotFound.into()),
            }?;
            model.opened(id);
            Ok(id)
        })?;
        Ok(Box::new(SimFile {
            disk: self.clone(),
            id,
            life,
            writable: mode != OpenMode::Read,
        }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.run_any(|model| model.rename(from, to))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.run_any(|model| model.remove(path))
    }

    fn sync_dir<'a>(&'a self, dir: &'a Path) -> DiskFuture<'a, ()> {
        let life = self.life();
        let begun = self.run(life, |model| model.begin_sync_dir(dir));
        Box::pin(async move {
            let sync = begun?;
            self.pass_time(life, sync.delay).await?;
            self.run(life, |model| model.finish_sync_dir(dir, &sync))
        })
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn DiskLock>> {
        let life = self.life();
        self.run(life, |model| {
            if !model.names.has_parent(path) {
                return Err(io::ErrorKind::NotFound.into());
            }
            if !model.open.locks.insert(path.to_owned()) {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            Ok(())
        })?;
        Ok(Box::new(SimLock {
            disk: self.clone(),
            path: path.to_owned(),
            life,
        }))
    }

    fn space(&self, _path: &Path) -> io::Result<DiskSpace> {
        self.run_any(|model| {
            Ok(DiskSpace {
                free_bytes: if model.full { 0 } else { VOLUME_BYTES },
                total_bytes: VOLUME_BYTES,
            })
        })
    }
}

struct SimFile {
    disk: SimDisk,
    id: FileId,
    life: Life,
    writable: bool,
}

impl SimFile {
    fn run<T>(&self, operation: impl FnOnce(&mut Model) -> io::Result<T>) -> io::Result<T> {
        self.disk.run(self.life, operation)
    }

    fn change(&self, operation: impl FnOnce(&mut Model) -> io::Result<()>) -> io::Result<()> {
        if !self.writable {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        self.run(operation)
    }
}

impl DiskFile for SimFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.run(|model| model.read(self.id, buffer, offset))
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.change(|model| model.write(self.id, bytes, offset))
    }

    fn sync_data(&self) -> DiskFuture<'_, ()> {
        let begun = self.run(|model| model.begin_sync(self.id));
        Box::pin(async move {
            let sync = begun?;
            self.disk.pass_time(self.life, sync.delay).await?;
            self.run(|model| model.finish_sync(self.id, sync))
        })
    }

    fn len(&self) -> io::Result<u64> {
        self.run(|model| model.len(self.id))
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        self.change(|model| {
            let bytes = model.len(self.id)?.max(bytes);
            model.set_len(self.id, bytes)
        })
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.change(|model| model.set_len(self.id, bytes))
    }
}

impl Drop for SimFile {
    fn drop(&mut self) {
        if self.disk.life() == self.life {
            self.disk.model().closed(self.id);
        }
    }
}

struct SimLock {
    disk: SimDisk,
    path: PathBuf,
    life: Life,
}

impl DiskLock for SimLock {}

impl Drop for SimLock {
    fn drop(&mut self) {
        // The end of its process has already released it, and another may hold it by now.
        if self.disk.life() == self.life {
            self.disk.model().open.locks.remove(&self.path);
        }
    }
}
