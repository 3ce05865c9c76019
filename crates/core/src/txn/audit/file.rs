//! What the engine should hold, in a file of our own: the engine never sees it, and it survives the
//! loss of the engine.
//!
//! ```text
//! sector of 512 bytes     0   1   2   3   …   63
//!                        └──┬──┘ └──────┬──────┘
//!                  durable, with       before each batch of the engine, not synced:
//!                  each sync of it     what is there after a kill
//!
//! slot   | magic: u32 | crc32c of the rest: u32 | number: u64 | position: u64 | vlsn: u64 |
//!        | rows: u64 | sum: u128 | checked vlsn: u64 |                little-endian, 64 bytes
//! ```
//!
//! A slot with a bad checksum is ignored. A power cut may leave such slots; what they recorded is
//! in the engine's own account, which is then checked against all rows.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Buf, BufMut};

use crate::engine::RowDigest;
use crate::ids::{LogPosition, Vlsn};
use crate::log::{Disk, DiskFile, OpenMode};
use crate::txn::audit::digest::Point;

const MAGIC: u32 = 0x4744_4653;
const SECTOR_BYTES: usize = 512;
const SLOTS_DURABLE: usize = 2;
const SLOTS: usize = 64;
const SLOT_BYTES: usize = 64;
const CHECKED_FROM: usize = 8;
/// No slot has a higher number: it would leave none to those after it.
const NUMBER_MAX: u64 = u64::MAX / 2;
const FILE_BYTES: usize = SLOTS * SECTOR_BYTES;

/// The file could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("{} could not be {doing}", .path.display())]
pub(crate) struct FileError {
    path: PathBuf,
    /// Completes "could not be".
    doing: &'static str,
    source: io::Error,
}

/// See the module.
pub(crate) struct DigestFile {
    file: Box<dyn DiskFile>,
    path: PathBuf,
    /// Slots found when the file was opened, in the order of writing.
    found: Vec<Slot>,
    durable_found: Option<Point>,
    /// Number of the next slot.
    next: u64,
    /// Index of the durable slot to be written next.
    next_durable: usize,
    /// The newest transaction up to which everything was found correct.
    checked: Vlsn,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Slot {
    number: u64,
    point: Point,
    checked: Vlsn,
}

impl Slot {
    fn encode(&self) -> [u8; SECTOR_BYTES] {
        let mut sector = [0; SECTOR_BYTES];
        let (header, mut body) = sector.split_at_mut(CHECKED_FROM);
        body.put_u64_le(self.number);
        body.put_u64_le(self.point.position.0);
        body.put_u64_le(self.point.vlsn.0);
        body.put_u64_le(self.point.total.rows);
        body.put_slice(&self.point.total.to_bytes());
        body.put_u64_le(self.checked.0);
        header[..4].copy_from_slice(&MAGIC.to_le_bytes());
        let checksum = crc32c::crc32c(&sector[CHECKED_FROM..SLOT_BYTES]);
        sector[4..CHECKED_FROM].copy_from_slice(&checksum.to_le_bytes());
        sector
    }

    fn decode(sector: &[u8]) -> Option<Self> {
        let mut slot = sector.get(..SLOT_BYTES)?;
        let (magic, checksum) = (slot.get_u32_le(), slot.get_u32_le());
        if magic != MAGIC || checksum != crc32c::crc32c(slot) {
            return None;
        }
        let number = slot.get_u64_le();
        if number > NUMBER_MAX {
            return None;
        }
        let position = LogPosition(slot.get_u64_le());
        let vlsn = Vlsn(slot.get_u64_le());
        let rows = slot.get_u64_le();
        let (sum, mut rest) = slot.split_at(16);
        let total = RowDigest::from_parts(rows, sum)?;
        Some(Self {
            number,
            point: Point {
                position,
                vlsn,
                total,
            },
            checked: Vlsn(rest.get_u64_le()),
        })
    }
}

impl DigestFile {
    /// Opens the file at `path`, or creates it durably.
    ///
    /// # Errors
    /// See [`FileError`].
    pub(crate) async fn open(disk: &Arc<dyn Disk>, path: &Path) -> Result<Self, FileError> {
        let failed = |doing| {
            let path = path.to_owned();
            move |source| FileError {
                path,
                doing,
                source,
            }
        };
        let mode = if disk.exists(path).map_err(failed("looked for"))? {
            OpenMode::ReadWrite
        } else {
            OpenMode::CreateNew
        };
        let file = disk.open(path, mode).map_err(failed("opened"))?;
        let bytes = FILE_BYTES as u64;
        if file.len().map_err(failed("read"))? < bytes {
            file.allocate(bytes).map_err(failed("written"))?;
            file.sync_data().await.map_err(failed("synced"))?;
            let dir = path.parent().unwrap_or(Path::new(""));
            disk.sync_dir(dir).await.map_err(failed("synced"))?;
        }
        let mut bytes = vec![0; FILE_BYTES];
        let mut read = 0;
        while read < bytes.len() {
            let part = file.read_at(&mut bytes[read..], read as u64);
            match part.map_err(failed("read"))? {
                0 => break,
                count => read += count,
            }
        }
        let slots = || bytes.chunks(SECTOR_BYTES).map(Slot::decode);
        let durable = slots().take(SLOTS_DURABLE).flatten();
        let newest_durable = durable.max_by_key(|slot| slot.number);
        let mut found: Vec<_> = slots().flatten().collect();
        found.sort_unstable_by_key(|slot| slot.number);
        Ok(Self {
            file,
            path: path.to_owned(),
            next: found.last().map_or(0, |slot| slot.number + 1),
            next_durable: 0,
            durable_found: newest_durable.map(|slot| slot.point),
            checked: found
                .iter()
                .map(|slot| slot.checked)
                .max()
                .unwrap_or_default(),
            found,
        })
    }

    /// What the engine should hold at this position, if that was noted.
    pub(crate) fn found_at(&self, position: LogPosition) -> Option<Point> {
        let mut newest_first = self.found.iter().rev().map(|slot| slot.point);
        newest_first.find(|point| point.position == position)
    }

    /// The furthest point that was noted before the file was opened.
    pub(crate) fn furthest_found(&self) -> Option<Point> {
        let points = self.found.iter().map(|slot| slot.point);
        points.max_by_key(|point| point.position)
    }

    /// The point up to which the engine was synced before the file was opened.
    pub(crate) fn durable_found(&self) -> Option<Point> {
        self.durable_found
    }

    /// The newest transaction up to which everything was found correct, in any life.
    pub(crate) fn checked(&self) -> Vlsn {
        self.checked
    }

    /// Notes up to where everything was found correct. Written with the next point.
    pub(crate) fn note_checked(&mut self, checked: Vlsn) {
        self.checked = self.checked.max(checked);
    }

    /// Notes what the engine will hold after its next batch. Not synced.
    ///
    /// # Errors
    /// See [`FileError`].
    pub(crate) fn note(&mut self, point: Point) -> Result<(), FileError> {
        let slot = self.next % (SLOTS - SLOTS_DURABLE) as u64;
        self.write(SLOTS_DURABLE as u64 + slot, point)
    }

    /// Durably notes what the engine durably holds.
    ///
    /// # Errors
    /// See [`FileError`].
    pub(crate) async fn note_durable(&mut self, point: Point) -> Result<(), FileError> {
        self.write(self.next_durable as u64, point)?;
        self.next_durable = (self.next_durable + 1) % SLOTS_DURABLE;
        let synced = self.file.sync_data().await;
        synced.map_err(|source| self.failed("synced", source))
    }

    fn write(&mut self, slot: u64, point: Point) -> Result<(), FileError> {
        let content = Slot {
            number: self.next,
            point,
            checked: self.checked,
        };
        let at = slot * SECTOR_BYTES as u64;
        let written = self.file.write_all_at(&content.encode(), at);
        written.map_err(|source| self.failed("written", source))?;
        self.next += 1;
        Ok(())
    }

    fn failed(&self, doing: &'static str, source: io::Error) -> FileError {
        FileError {
            path: self.path.clone(),
            doing,
            source,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::MemoryDisk;

    fn point(position: u64) -> Point {
        let mut total = RowDigest::default();
        total.add(crate::ids::DatabaseId(1), &position.to_le_bytes(), b"v");
        Point {
            position: LogPosition(position),
            vlsn: Vlsn(position * 2),
            total,
        }
    }

    #[tokio::test]
    async fn what_is_durable_is_there_after_a_power_cut_and_what_was_noted_after_a_kill() {
        let disk = MemoryDisk::new();
        let shared: Arc<dyn Disk> = Arc::new(disk.clone());
        shared.create_dir_all(Path::new("/data")).unwrap();
        let path = Path::new("/data/digest");
        let mut file = DigestFile::open(&shared, path).await.unwrap();
        assert_eq!(file.furthest_found(), None);
        for position in 1..=200 {
            file.note(point(position)).unwrap();
            if position % 50 == 0 {
                file.note_checked(Vlsn(position));
                file.note_durable(point(position)).await.unwrap();
            }
        }
        file.note(point(201)).unwrap();
        drop(file);
        let killed = DigestFile::open(&shared, path).await.unwrap();
        for position in [150, 170, 200, 201] {
            let found = killed.found_at(LogPosition(position));
            assert_eq!(found, Some(point(position)));
        }
        drop(killed);
        disk.crash();
        let mut cut = DigestFile::open(&shared, path).await.unwrap();
        assert_eq!(cut.found_at(LogPosition(200)), Some(point(200)));
        assert_eq!(cut.found_at(LogPosition(201)), None);
        assert_eq!(cut.checked(), Vlsn(200));
        // The next slot is numbered above all that were there.
        cut.note_durable(point(7)).await.unwrap();
        drop(cut);
        let again = DigestFile::open(&shared, path).await.unwrap();
        assert_eq!(again.found_at(LogPosition(7)), Some(point(7)));
        assert_eq!(again.furthest_found(), Some(point(200)));
    }

    #[test]
    fn a_slot_that_leaves_no_number_to_the_next_is_none() {
        let of = |number| Slot {
            number,
            point: point(9),
            checked: Vlsn(4),
        };
        let decoded = |number| Slot::decode(&of(number).encode());
        assert_eq!(decoded(NUMBER_MAX), Some(of(NUMBER_MAX)));
        assert_eq!(decoded(u64::MAX), None);
    }

    #[test]
    fn a_slot_with_any_byte_changed_is_none() {
        let slot = Slot {
            number: 3,
            point: point(9),
            checked: Vlsn(4),
        };
        let sector = slot.encode();
        assert_eq!(Slot::decode(&sector), Some(slot));
        for at in 0..SLOT_BYTES {
            let mut changed = sector;
            changed[at] ^= 1;
            assert_eq!(Slot::decode(&changed), None, "byte {at}");
        }
    }
}
