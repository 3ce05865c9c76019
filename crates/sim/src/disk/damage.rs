//! Rot: durable bytes that are no longer what was written.

use std::ops::Range;
use std::path::{Path, PathBuf};

use rand::RngExt;

use super::file::{File, writable};
use super::model::Model;
use super::names::FileId;

/// A way in which bytes at rest go bad.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Damage {
    /// One bit of a sector is flipped.
    FlipBit,
    /// A sector is all zeros.
    ZeroSector,
    /// A sector holds the contents of another one, of the same file or another.
    Misdirected,
    /// A sector holds its content before its newest write. Needs
    /// [`DiskFaults::keep_versions`](super::DiskFaults::keep_versions) to have been on then.
    Stale,
    /// A file is cut short.
    Truncate,
}

/// Where the disk was damaged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DamageReport {
    /// The kind of damage.
    pub damage: Damage,
    /// The file.
    pub path: PathBuf,
    /// The first byte that may differ.
    pub offset: u64,
    /// How many bytes may differ, or are missing.
    pub bytes: u64,
}

/// One sector of a file.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Place {
    file: FileId,
    sector: usize,
}

impl Model {
    /// Damages one place under this directory, if there is a suitable one.
    pub(super) fn damage(&mut self, damage: Damage, dir: &Path) -> Option<DamageReport> {
        let written = self.written(dir);
        let report = match damage {
            Damage::FlipBit => self.flip_bit(&written),
            Damage::ZeroSector => self.zero_sector(&written),
            Damage::Misdirected => self.misdirect(&written),
            Damage::Stale => self.make_stale(&written),
            Damage::Truncate => self.truncate(&written),
        };
        let (file, range) = report?;
        let kind = match damage {
            Damage::FlipBit => "bit_flip",
            Damage::ZeroSector => "zeroed_sector",
            Damage::Misdirected => "misdirected_write",
            Damage::Stale => "stale_sector",
            Damage::Truncate => "truncated_file",
        };
        self.chance.count(kind, 1);
        Some(DamageReport {
            damage,
            path: self.files.get(&file)?.path.to_path_buf(),
            offset: range.start as u64,
            bytes: range.len() as u64,
        })
    }

    /// Every durable sector under this directory that holds anything.
    fn written(&self, dir: &Path) -> Vec<Place> {
        let mut places = Vec::new();
        for (_, id) in self.names.under(dir) {
            if let Some(file) = self.files.get(&id) {
                let sectors = file.written_sectors();
                places.extend(sectors.map(|sector| Place { file: id, sector }));
            }
        }
        places
    }

    fn pick<T: Copy>(&mut self, places: &[T]) -> Option<T> {
        if places.is_empty() {
            return None;
        }
        let at = self.chance.rng.random_range(0..places.len());
        places.get(at).copied()
    }

    fn flip_bit(&mut self, written: &[Place]) -> Option<(FileId, Range<usize>)> {
        let at = self.pick(written)?;
        let file = self.files.get_mut(&at.file)?;
        let range = file.sector_range(at.sector);
        let byte = self.chance.rng.random_range(0..range.len());
        let mut content = file.sector(at.sector);
        writable(&mut content)[byte] ^= 1 << self.chance.rng.random_range(0..8);
        file.rot(at.sector, content);
        let byte = range.start + byte;
        Some((at.file, byte..byte + 1))
    }

    fn zero_sector(&mut self, written: &[Place]) -> Option<(FileId, Range<usize>)> {
        let at = self.pick(written)?;
        let file = self.files.get_mut(&at.file)?;
        file.rot(at.sector, None);
        Some((at.file, file.sector_range(at.sector)))
    }

    fn misdirect(&mut self, written: &[Place]) -> Option<(FileId, Range<usize>)> {
        let from = self.pick(written)?;
        let content = self.files.get(&from.file)?.sector(from.sector);
        let others: Vec<Place> = written
            .iter()
            .copied()
            .filter(|at| {
                let file = self.files.get(&at.file);
                file.is_some_and(|file| file.sector(at.sector) != content)
            })
            .collect();
        let at = self.pick(&others)?;
        let file = self.files.get_mut(&at.file)?;
        file.rot(at.sector, content);
        Some((at.file, file.sector_range(at.sector)))
    }

    fn make_stale(&mut self, written: &[Place]) -> Option<(FileId, Range<usize>)> {
        let old: Vec<Place> = written
            .iter()
            .copied()
            .filter(|at| {
                let file = self.files.get(&at.file);
                file.is_some_and(|file| file.previous(at.sector).is_some())
            })
            .collect();
        let at = self.pick(&old)?;
        let file = self.files.get_mut(&at.file)?;
        file.rot(at.sector, file.previous(at.sector));
        Some((at.file, file.sector_range(at.sector)))
    }

    /// Cuts within what was written. A file with anything unsynced is left alone: the waiting bytes
    /// would lie past its end.
    fn truncate(&mut self, written: &[Place]) -> Option<(FileId, Range<usize>)> {
        let settled: Vec<Place> = written
            .iter()
            .copied()
            .filter(|at| {
                let file = self.files.get(&at.file);
                file.is_some_and(File::is_settled)
            })
            .collect();
        let at = self.pick(&settled)?;
        let file = self.files.get_mut(&at.file)?;
        let old = file.len();
        let sector = file.sector_range(at.sector);
        let new = self.chance.rng.random_range(sector);
        file.rot_len(new);
        Some((at.file, new..old))
    }
}
