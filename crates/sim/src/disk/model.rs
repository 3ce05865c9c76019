//! What one simulated disk holds, and the chance that decides when it fails.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::file::{File, SECTOR_BYTES, Snapshot, Stamp};
use super::names::{FileId, Names};
use super::{DiskFaults, DiskStats, Tap};

/// Extra latency of a slow sync. The upper end is typical of a failing disk; beyond it a disk is
/// stuck, and there is a switch for that.
const SLOW_SYNC_MS: Range<u64> = 5..301;
/// The unit of rates.
const PER_MILLION: u32 = 1_000_000;

/// One disk.
pub(super) struct Model {
    pub(super) names: Names,
    pub(super) files: BTreeMap<FileId, File>,
    next_file: FileId,
    stamp: Stamp,
    pub(super) open: Open,
    pub(super) power: Power,
    pub(super) chance: Chance,
    pub(super) full: bool,
    pub(super) stats: DiskStats,
    pub(super) trace: Trace,
}

/// What the process on the host has open.
#[derive(Default)]
pub(super) struct Open {
    /// Open handles per file; a file without any is not listed.
    handles: BTreeMap<FileId, u32>,
    pub(super) locks: BTreeSet<PathBuf>,
}

/// A planned power cut.
#[derive(Default)]
pub(super) struct Power {
    pub(super) off: bool,
    pub(super) steps_left: Option<u64>,
    pub(super) on_trip: Option<Box<dyn FnOnce() + Send>>,
}

impl Power {
    /// Drops the plan; the power is on.
    pub(super) fn restore(&mut self) {
        *self = Self::default();
    }
}

/// Draws faults and counts those that fired.
pub(super) struct Chance {
    pub(super) rng: StdRng,
    pub(super) faults: DiskFaults,
    pub(super) counts: BTreeMap<&'static str, u64>,
}

impl Chance {
    /// Counts something that happened, by its kind.
    pub(super) fn count(&mut self, kind: &'static str, times: u64) {
        if times > 0 {
            *self.counts.entry(kind).or_default() += times;
        }
    }

    /// Draws whether a fault of this rate fires, and counts it if so.
    fn fires(&mut self, kind: &'static str, rate: impl Fn(&DiskFaults) -> u32) -> bool {
        let rate = rate(&self.faults);
        let fires = rate > 0 && self.rng.random_range(0..PER_MILLION) < rate;
        self.count(kind, u64::from(fires));
        fires
    }

    /// A time in the configured range. The timer counts milliseconds, so the time is rounded at
    /// random to one of the two nearest, which keeps the mean.
    fn latency(&mut self) -> Duration {
        let range = self.faults.sync_latency.clone();
        let micros = micros(range.start)..micros(range.end);
        if micros.is_empty() {
            return range.start;
        }
        let drawn = self.rng.random_range(micros);
        let up = self.rng.random_range(0..1000) < drawn % 1000;
        Duration::from_millis(drawn / 1000 + u64::from(up))
    }

    fn sync(&mut self) -> (Duration, Outcome) {
        let mut delay = self.latency();
        if self.fires("fsync_slow", |faults| faults.slow_sync) {
            delay += Duration::from_millis(self.rng.random_range(SLOW_SYNC_MS));
        }
        if self.fires("fsync_failed", |faults| faults.fail_sync) {
            return (delay, Outcome::Failed);
        }
        if self.faults.lying_sync {
            return (delay, Outcome::Lied);
        }
        (delay, Outcome::Done)
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// Operations for observers.
#[derive(Default)]
pub(super) struct Trace {
    pub(super) tap: Option<Tap>,
    pub(super) events: Vec<Event>,
}

/// One operation.
pub(super) struct Event {
    pub(super) operation: &'static str,
    pub(super) path: Arc<Path>,
    pub(super) offset: u64,
    pub(super) bytes: u64,
}

/// A sync under way.
pub(super) struct Sync<T> {
    pub(super) delay: Duration,
    outcome: Outcome,
    covered: T,
}

enum Outcome {
    Done,
    Failed,
    Lied,
}

impl Model {
    /// An empty disk.
    pub(super) fn new(seed: u64, faults: DiskFaults) -> Self {
        Self {
            names: Names::default(),
            files: BTreeMap::new(),
            next_file: 0,
            stamp: 0,
            open: Open::default(),
            power: Power::default(),
            chance: Chance {
                rng: StdRng::seed_from_u64(seed),
                faults,
                counts: BTreeMap::new(),
            },
            full: false,
            stats: DiskStats::default(),
            trace: Trace::default(),
        }
    }

    /// Counts one change of the disk, records it for observers, and turns the power off if it was
    /// the last one: this one still takes effect.
    pub(super) fn step(
        &mut self,
        operation: &'static str,
        path: &Path,
        range: Range<usize>,
    ) -> Stamp {
        self.stamp += 1;
        self.stats.steps += 1;
        if self.trace.tap.is_some() {
            self.trace.events.push(Event {
                operation,
                path: Arc::from(path),
                offset: range.start as u64,
                bytes: range.len() as u64,
            });
        }
        if let Some(left) = &mut self.power.steps_left {
            *left = left.saturating_sub(1);
            self.power.off |= *left == 0;
        }
        self.stamp
    }

    fn file(&mut self, id: FileId) -> io::Result<&mut File> {
        // An open handle keeps its file.
        self.files
            .get_mut(&id)
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn path(&mut self, id: FileId) -> io::Result<Arc<Path>> {
        Ok(Arc::clone(&self.file(id)?.path))
    }

    fn grow(&mut self) -> io::Result<()> {
        if self.full {
            self.chance.count("disk_full", 1);
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }

    pub(super) fn create_dir_all(&mut self, path: &Path) {
        self.names.create_dir_all(path);
        self.step("create_dir", path, 0..0);
    }

    pub(super) fn create(&mut self, path: &Path) -> io::Result<FileId> {
        if !self.names.has_parent(path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        self.grow()?;
        let stamp = self.step("create", path, 0..0);
        let id = self.new_file(File::new(path));
        self.names.add(path, id, stamp);
        Ok(id)
    }

    /// Adds a file under a number never used before.
    pub(super) fn new_file(&mut self, file: File) -> FileId {
        self.next_file += 1;
        self.files.insert(self.next_file, file);
        self.next_file
    }

    pub(super) fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let id = self.names.find(from).ok_or(io::ErrorKind::NotFound)?;
        if from.parent() != to.parent() {
            return Err(io::ErrorKind::CrossesDevices.into());
        }
        let stamp = self.step("rename", to, 0..0);
        self.names.rename(from, to, id, stamp);
        self.file(id)?.path = Arc::from(to);
        Ok(())
    }

    pub(super) fn remove(&mut self, path: &Path) -> io::Result<()> {
        if self.names.find(path).is_none() {
            return Err(io::ErrorKind::NotFound.into());
        }
        let stamp = self.step("remove", path, 0..0);
        self.names.remove(path, stamp);
        Ok(())
    }

    pub(super) fn begin_sync_dir(&mut self, dir: &Path) -> io::Result<Sync<Stamp>> {
        if !self.names.is_dir(dir) {
            return Err(io::ErrorKind::NotFound.into());
        }
        self.stats.syncs += 1;
        let covered = self.step("sync_dir", dir, 0..0);
        let (delay, outcome) = self.chance.sync();
        Ok(Sync {
            delay,
            outcome,
            covered,
        })
    }

    pub(super) fn finish_sync_dir(&mut self, dir: &Path, sync: &Sync<Stamp>) -> io::Result<()> {
        self.step("synced_dir", dir, 0..0);
        match sync.outcome {
            // The journal keeps the changes for its next commit.
            Outcome::Failed => return Err(sync_failed()),
            Outcome::Lied => self.chance.count("fsync_lied", 1),
            Outcome::Done => {
                self.names.sync(dir, sync.covered);
                self.sweep();
            }
        }
        Ok(())
    }

    pub(super) fn read(&mut self, id: FileId, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        let bytes = self.file(id)?.read(buffer, offset);
        self.stats.bytes_read += bytes as u64;
        if bytes > 0 && self.chance.fires("read_flipped", |faults| faults.read_flip) {
            let at = self.chance.rng.random_range(0..bytes);
            buffer[at] ^= 1 << self.chance.rng.random_range(0..8);
        }
        Ok(bytes)
    }

    pub(super) fn write(&mut self, id: FileId, bytes: &[u8], offset: u64) -> io::Result<()> {
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        let end = start
            .checked_add(bytes.len())
            .ok_or(io::ErrorKind::InvalidInput)?;
        if end > self.file(id)?.len() {
            self.grow()?;
        }
        let fails = !bytes.is_empty()
            && self
                .chance
                .fires("write_failed", |faults| faults.fail_write);
        let written = if fails {
            self.chance.rng.random_range(0..bytes.len())
        } else {
            bytes.len()
        };
        let path = self.path(id)?;
        let stamp = self.step("write", &path, start..start + written);
        self.stats.bytes_written += written as u64;
        self.file(id)?.write(&bytes[..written], start, stamp);
        if fails {
            return Err(io::Error::other("simulated write failure (EIO)"));
        }
        Ok(())
    }

    pub(super) fn set_len(&mut self, id: FileId, bytes: u64) -> io::Result<()> {
        let bytes = usize::try_from(bytes).map_err(io::Error::other)?;
        let len = self.file(id)?.len();
        if bytes > len {
            self.grow()?;
        }
        let path = self.path(id)?;
        let stamp = self.step("set_len", &path, bytes..bytes);
        if bytes != len {
            self.file(id)?.set_len(bytes, stamp);
        }
        Ok(())
    }

    pub(super) fn len(&mut self, id: FileId) -> io::Result<u64> {
        Ok(self.file(id)?.len() as u64)
    }

    pub(super) fn begin_sync(&mut self, id: FileId) -> io::Result<Sync<Snapshot>> {
        let path = self.path(id)?;
        let (delay, outcome) = self.chance.sync();
        // A lying disk accumulates what it never syncs: do not scan all of it again each time.
        let covered = match outcome {
            Outcome::Lied => Snapshot::default(),
            Outcome::Done | Outcome::Failed => self.file(id)?.begin_sync(),
        };
        self.stats.syncs += 1;
        self.step("sync", &path, 0..covered.sectors() * SECTOR_BYTES);
        Ok(Sync {
            delay,
            outcome,
            covered,
        })
    }

    pub(super) fn finish_sync(&mut self, id: FileId, sync: Sync<Snapshot>) -> io::Result<()> {
        let path = self.path(id)?;
        self.step("synced", &path, 0..sync.covered.sectors() * SECTOR_BYTES);
        let keep_previous = self.chance.faults.keep_versions;
        match sync.outcome {
            Outcome::Failed => {
                self.file(id)?.fail_sync(&sync.covered);
                return Err(sync_failed());
            }
            Outcome::Lied => self.chance.count("fsync_lied", 1),
            Outcome::Done => self.file(id)?.finish_sync(sync.covered, keep_previous),
        }
        Ok(())
    }

    /// Records a new handle on a file.
    pub(super) fn opened(&mut self, id: FileId) {
        *self.open.handles.entry(id).or_default() += 1;
    }

    /// Records that a handle is gone.
    pub(super) fn closed(&mut self, id: FileId) {
        let left = self.open.handles.get_mut(&id).map_or(0, |handles| {
            *handles -= 1;
            *handles
        });
        if left == 0 {
            self.open.handles.remove(&id);
            self.sweep();
        }
    }

    /// Frees files that neither a name nor a handle refers to.
    pub(super) fn sweep(&mut self) {
        let named = self.names.live();
        let handles = &self.open.handles;
        self.files
            .retain(|id, _| named.contains(id) || handles.contains_key(id));
    }
}

fn sync_failed() -> io::Error {
    io::Error::other("simulated sync failure (EIO)")
}
