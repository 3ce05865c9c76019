//! The parts of a simulated machine: its disk, its engine's storage, its clock, and an archive of
//! what its log has purged.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::RngExt;
use rand::rngs::StdRng;
use steadfast::engine::MemoryStore;
use steadfast::log::{Disk, OpenMode};
use steadfast::machine::Clock;
use steadfast_net::lock;
use tokio::time::Instant;

use crate::disk::SimDisk;
use crate::faults;
use crate::logfile;
use crate::plan::Plan;
use crate::story::Story;

/// Where each node keeps its data on its own disk.
pub const DATA_DIR: &str = "/data";

#[derive(Clone)]
pub(crate) struct Hardware {
    pub(crate) disk: SimDisk,
    pub(crate) store: MemoryStore,
    pub(crate) archive: Archive,
}

/// Completed log segments, by path, as they were when completed. The node purges them; the checkers
/// need the whole log.
pub(crate) type Archive = Arc<Mutex<BTreeMap<PathBuf, Vec<u8>>>>;

/// Archives the segments before `newest`, which has just been given its name.
fn archive_segments(disk: &SimDisk, archive: &Archive, newest: &Path) {
    let (Some(dir), Some(newest)) = (newest.parent(), file_name(newest)) else {
        return;
    };
    if logfile::sequence_of(newest).is_none() {
        return;
    }
    for name in disk.list(dir).unwrap_or_default() {
        let is_older = logfile::sequence_of(&name).is_some() && *name < *newest;
        let path = dir.join(&name);
        if is_older
            && !lock(archive).contains_key(&path)
            && let Ok(bytes) = read_file(disk, &path)
        {
            lock(archive).insert(path, bytes);
        }
    }
}

/// Adjusts the archive to what a power cut has left: the newest segment is written further, even if
/// it was archived and its successor's name was lost; the ones before it are not. If the power
/// failed while a segment was being named, none of them had been archived.
pub(crate) fn settle_archive(disk: &SimDisk, archive: &Archive) {
    let dir = newest_log(disk);
    let mut names = disk.list(&dir).unwrap_or_default();
    names.retain(|name| logfile::sequence_of(name).is_some());
    if let Some(newest) = names.iter().max() {
        let newest = dir.join(newest);
        lock(archive).remove(&newest);
        archive_segments(disk, archive, &newest);
    }
}

/// Where the node's current log is: each log given up as damaged has used up a number.
pub(crate) fn newest_log(disk: &SimDisk) -> PathBuf {
    let dir = |number| match number {
        0 => Path::new(DATA_DIR).join("log"),
        number => Path::new(DATA_DIR).join(format!("log-{number}")),
    };
    let has_log = |dir: &PathBuf| {
        let names = disk.list(dir).unwrap_or_default();
        names
            .iter()
            .any(|name| logfile::sequence_of(name).is_some())
    };
    let mut dirs = (0..64).rev().map(dir);
    dirs.find(has_log).unwrap_or_else(|| dir(0))
}

pub(crate) fn file_name(path: &Path) -> Option<&str> {
    path.file_name()?.to_str()
}

pub(crate) fn read_file(disk: &SimDisk, path: &Path) -> io::Result<Vec<u8>> {
    let file = disk.open(path, OpenMode::Read)?;
    let length = usize::try_from(file.len()?).map_err(io::Error::other)?;
    let mut bytes = vec![0; length];
    let read = file.read_at(&mut bytes, 0)?;
    bytes.truncate(read);
    Ok(bytes)
}

impl Hardware {
    pub(crate) fn new(plan: &Plan, at: usize, rng: &mut StdRng, story: &Story) -> Self {
        let disk = SimDisk::new(rng.random(), faults::disk_faults(plan, at));
        let (tapped, name) = (story.clone(), Plan::host(at));
        let archive = Archive::default();
        let (own, kept) = (disk.clone(), Arc::clone(&archive));
        disk.set_tap(Box::new(
            move |op: &str, path: &Path, offset: u64, len: u64| {
                if op == "rename" {
                    archive_segments(&own, &kept, path);
                }
                tapped.trace(&[
                    op.as_bytes(),
                    name.as_bytes(),
                    path.as_os_str().as_encoded_bytes(),
                    &offset.to_le_bytes(),
                    &len.to_le_bytes(),
                ]);
            },
        ));
        Self {
            disk,
            store: MemoryStore::new(),
            archive,
        }
    }
}

/// The clocks of one machine: the wall clock may be wrong and run at another speed.
pub struct SimClock {
    started: Instant,
    offset_ms: AtomicI64,
    /// Speed, in thousandths of the true one.
    speed: AtomicU64,
    /// What the monotonic clock gains, in millionths.
    gains_ppm: AtomicI64,
}

impl SimClock {
    pub(crate) fn new(drift: Option<&mut StdRng>) -> Self {
        let speed = drift.map_or(1000, |rng| rng.random_range(500..=2000));
        Self {
            started: Instant::now(),
            offset_ms: AtomicI64::new(1_800_000_000_000),
            speed: AtomicU64::new(speed),
            gains_ppm: AtomicI64::new(0),
        }
    }

    /// Sets the clock forward or back.
    pub fn jump(&self, ms: i64) {
        self.offset_ms.fetch_add(ms, Ordering::Relaxed);
    }

    /// Lets the monotonic clock gain this, in millionths of the true time.
    pub(crate) fn gain(&self, gains_ppm: i64) {
        self.gains_ppm.store(gains_ppm, Ordering::Relaxed);
    }

    /// How long a timer of `ms` on this machine really takes.
    pub(crate) fn timer_ms(&self, ms: u64) -> u64 {
        ms * 1000 / self.speed.load(Ordering::Relaxed)
    }
}

impl Clock for SimClock {
    fn now_ms(&self) -> u64 {
        let elapsed = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let shown = elapsed * self.speed.load(Ordering::Relaxed) / 1000;
        let offset = self.offset_ms.load(Ordering::Relaxed);
        shown.saturating_add_signed(offset)
    }

    fn passed_since(&self, then: Instant) -> Duration {
        let true_us = u64::try_from(then.elapsed().as_micros()).unwrap_or(u64::MAX);
        let speed = 1_000_000_u64.saturating_add_signed(self.gains_ppm.load(Ordering::Relaxed));
        Duration::from_micros(true_us.saturating_mul(speed) / 1_000_000)
    }
}
