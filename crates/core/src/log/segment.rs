//! The files of the log: their names, how one is created, and how an old one is reused.
//!
//! A segment gets its name last. It is first filled with zeros under a spare's name, so that a
//! later fdatasync has no metadata to write (fallocate alone is not enough: the first write to a
//! reserved block changes the file's block map); then its header is written and synced; then it is
//! renamed. So a file with a segment's name always has a complete header, and everything in the
//! segment before it is synced.
//!
//! A segment whose entries are all purged becomes a spare with its old bytes in place. They are
//! never mistaken for records of the new segment, because each record names the segment it was
//! written to.
//!
//! Spares are useless after a restart; opening the log removes them.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use steadfast_net::Descriptors;

use crate::ids::LogPosition;
use crate::planted::{self, Bug};

use super::disk::{Disk, DiskFile, OpenMode};
use super::format::{RECORDS_START, SegmentHeader};
use super::scarce::{Patience, Unopened};
use super::{LogError, LogIdentity};

/// Files kept for reuse: the one needed next, and one from a purge while that one waits.
const SPARES_MAX: usize = 2;
/// Bytes of zeros per write.
const ZEROS_BYTES: u32 = 256 << 10;
/// A spare being filled is synced each time it has grown by this much, so that the sync before its
/// first use is short.
const SPARE_SYNC_BYTES: u32 = 4 << 20;

const SEGMENT_SUFFIX: &str = ".log";
const SPARE_PREFIX: &str = "spare-";

/// One open segment. Readers hold it during a read, even past its removal.
pub(super) struct Segment {
    pub(super) sequence: u32,
    pub(super) path: PathBuf,
    pub(super) file: Box<dyn DiskFile>,
    /// Length of the file.
    pub(super) bytes: u32,
    /// The last entry before it. Once that one is purged, the segments before this one are not
    /// needed.
    pub(super) starts_after: Option<LogPosition>,
}

/// The directory of the log, for its single writer.
pub(super) struct Files {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) dir: PathBuf,
    pub(super) identity: LogIdentity,
    /// Length of new segments.
    segment_bytes: u32,
    spares: Vec<Spare>,
    /// Spares made so far; gives each its name.
    spares_made: u64,
    zeros: Vec<u8>,
}

impl Files {
    pub(super) fn new(
        disk: Arc<dyn Disk>,
        dir: PathBuf,
        identity: LogIdentity,
        segment_bytes: u32,
    ) -> Self {
        let zeros = vec![0; ZEROS_BYTES.min(segment_bytes) as usize];
        Self {
            disk,
            dir,
            identity,
            segment_bytes,
            spares: Vec::new(),
            spares_made: 0,
            zeros,
        }
    }

    /// Creates the segment with this header (whose length is set here), durable under its name.
    pub(super) async fn create(&mut self, header: SegmentHeader) -> Result<Segment, LogError> {
        let header = SegmentHeader {
            bytes: self.segment_bytes,
            ..header
        };
        let path = self.dir.join(segment_name(header.sequence));
        let spare = self.write_spare(&header).await?;
        self.disk
            .rename(&spare.path, &path)
            .map_err(|error| failed(&path, error))?;
        if !planted::is(Bug::SegmentNameNotSynced) {
            self.sync_names().await?;
        }
        Ok(Segment {
            sequence: header.sequence,
            path,
            file: spare.file,
            bytes: header.bytes,
            starts_after: header.head.last.map(|id| id.position),
        })
    }

    /// Turns a segment that is no longer needed into a spare, or removes it; durable on return.
    pub(super) async fn retire(&mut self, segment: &Segment) -> Result<(), LogError> {
        let failed = |error| failed(&segment.path, error);
        if self.spares.len() < SPARES_MAX && segment.bytes == self.segment_bytes {
            let path = self.spare_path();
            self.disk.rename(&segment.path, &path).map_err(failed)?;
            match self.disk.open(&path, OpenMode::ReadWrite) {
                Ok(file) => self.spares.push(Spare {
                    path,
                    file,
                    filled: segment.bytes,
                }),
                // This costs only the spare.
                Err(error) if Descriptors::are_wanting(&error) => {
                    self.disk.remove(&path).map_err(failed)?;
                }
                Err(error) => return Err(failed(error)),
            }
        } else {
            self.disk.remove(&segment.path).map_err(failed)?;
        }
        // One by one, oldest first: a crash must never leave a gap between segments.
        self.sync_names().await
    }

    /// Fills a spare with about `budget` bytes of zeros, unless a whole one is waiting.
    ///
    /// A failure here costs only the spare: nothing depends on it yet, and a full disk may have
    /// space again when the next segment is needed.
    pub(super) async fn prepare(&mut self, budget: u32) {
        let Some(mut spare) = self.spares.pop().or_else(|| self.spare().ok()) else {
            return;
        };
        if spare.filled == self.segment_bytes || self.fill(&mut spare, budget).await.is_ok() {
            self.spares.push(spare);
        } else {
            // Opening the log removes what is left behind here.
            self.disk.remove(&spare.path).ok();
        }
    }

    /// Makes the creation, renaming and removal of files durable.
    pub(super) async fn sync_names(&self) -> Result<(), LogError> {
        let mut patience = Patience::default();
        loop {
            match self.disk.sync_dir(&self.dir).await {
                Ok(()) => return Ok(()),
                Err(error) if patience.allows(&error).await => {}
                Err(error) => return Err(failed(&self.dir, error)),
            }
        }
    }

    /// The same segment, for reading only from now on.
    pub(super) fn close(&self, segment: &Segment) -> Segment {
        let file = Unopened::new(Arc::clone(&self.disk), segment.path.clone());
        Segment {
            sequence: segment.sequence,
            path: segment.path.clone(),
            file: Box::new(file),
            bytes: segment.bytes,
            starts_after: segment.starts_after,
        }
    }

    async fn write_spare(&mut self, header: &SegmentHeader) -> Result<Spare, LogError> {
        // A recycled spare is full; one that is being filled may not be, so it is taken last.
        let whole = self
            .spares
            .iter()
            .position(|spare| spare.filled == self.segment_bytes);
        let ready = match whole {
            Some(index) => Some(self.spares.swap_remove(index)),
            None => self.spares.pop(),
        };
        let mut spare = match ready {
            Some(spare) => spare,
            None => self.new_spare().await?,
        };
        let mut block = vec![0; RECORDS_START as usize];
        let bytes = header.encode();
        block[..bytes.len()].copy_from_slice(&bytes);
        let written = async {
            self.fill(&mut spare, self.segment_bytes).await?;
            spare.file.write_all_at(&block, 0)?;
            spare.file.sync_data().await
        };
        written.await.map_err(|error| failed(&spare.path, error))?;
        Ok(spare)
    }

    async fn new_spare(&mut self) -> Result<Spare, LogError> {
        let mut patience = Patience::default();
        loop {
            match self.spare() {
                Ok(spare) => return Ok(spare),
                Err(error) if patience.allows(&error).await => {}
                Err(error) => return Err(failed(&self.dir, error)),
            }
        }
    }

    fn spare(&mut self) -> io::Result<Spare> {
        let path = self.spare_path();
        let file = self.disk.open(&path, OpenMode::CreateNew)?;
        match file.allocate(u64::from(self.segment_bytes)) {
            Ok(()) => Ok(Spare {
                path,
                file,
                filled: 0,
            }),
            Err(error) => {
                self.disk.remove(&path)?;
                Err(error)
            }
        }
    }

    fn spare_path(&mut self) -> PathBuf {
        self.spares_made += 1;
        self.dir
            .join(format!("{SPARE_PREFIX}{:010}", self.spares_made))
    }

    async fn fill(&self, spare: &mut Spare, budget: u32) -> io::Result<()> {
        let end = self.segment_bytes.min(spare.filled.saturating_add(budget));
        while spare.filled < end {
            let bytes = (end - spare.filled).min(ZEROS_BYTES);
            spare
                .file
                .write_all_at(&self.zeros[..bytes as usize], spare.filled.into())?;
            let before = spare.filled / SPARE_SYNC_BYTES;
            spare.filled += bytes;
            if spare.filled / SPARE_SYNC_BYTES > before {
                spare.file.sync_data().await?;
            }
        }
        Ok(())
    }
}

/// A file that will be a segment.
struct Spare {
    path: PathBuf,
    file: Box<dyn DiskFile>,
    /// Bytes written so far, from the start.
    filled: u32,
}

/// The sequence numbers of the segments. Changes nothing: an open log has spares that its writer
/// needs.
pub(super) fn segments_in(disk: &dyn Disk, dir: &Path) -> io::Result<Vec<u32>> {
    let names = disk.list(dir)?;
    Ok(names.iter().filter_map(|name| sequence_of(name)).collect())
}

/// Removes what earlier lives left for reuse. The caller holds the log's lock and has no spares of
/// its own yet.
pub(super) fn remove_spares(disk: &dyn Disk, dir: &Path) -> io::Result<()> {
    for name in disk.list(dir)? {
        if name.starts_with(SPARE_PREFIX) {
            disk.remove(&dir.join(&name))?;
        }
    }
    Ok(())
}

pub(super) fn segment_name(sequence: u32) -> String {
    format!("{sequence:010}{SEGMENT_SUFFIX}")
}

pub(super) fn sequence_of(name: &str) -> Option<u32> {
    let sequence = name.strip_suffix(SEGMENT_SUFFIX)?.parse().ok()?;
    (segment_name(sequence) == name).then_some(sequence)
}

pub(super) fn failed(path: &Path, error: io::Error) -> LogError {
    LogError::Failed {
        path: path.to_owned(),
        source: Arc::new(error),
    }
}
