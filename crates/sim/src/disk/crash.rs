//! Power cuts: which unsynced changes survive.

use std::collections::BTreeSet;

use rand::RngExt;

use super::file::{File, SECTOR_BYTES, Stamp};
use super::model::{Model, Open};
use super::names::FileId;

/// How much of the cache is written back before the power is gone.
enum Kept {
    Nothing,
    Everything,
    /// Everything written up to this moment.
    Until(Stamp),
    /// Each sector at random.
    Some,
    /// As `Some`, but sectors written at this moment keep only this many leading bytes.
    Torn(Stamp, usize),
}

impl Model {
    /// Cuts the power and turns it on again, with no process running.
    pub(super) fn crash(&mut self) {
        let kept = self.draw_kept();
        let chance = &mut self.chance;
        let lost = self.names.crash(|stamps| match kept {
            Kept::Nothing => 0,
            Kept::Everything => stamps.len(),
            Kept::Until(last) => stamps.partition_point(|&stamp| stamp <= last),
            Kept::Some | Kept::Torn(..) => chance.rng.random_range(0..=stamps.len()),
        });
        chance.count("crash_lost_names", lost);
        self.open = Open::default();
        self.power.restore();
        self.sweep();
        let chance = &mut self.chance;
        for (path, id) in self.names.durable() {
            if let Some(file) = self.files.get_mut(&id) {
                // A lost rename gives the file its old name back.
                file.path = path.into();
            }
        }
        let mut torn = false;
        for file in self.files.values_mut() {
            let rng = &mut chance.rng;
            let keep_len = file.unsynced_len().is_some_and(|stamp| match kept {
                Kept::Nothing => false,
                Kept::Everything => true,
                Kept::Until(last) => stamp <= last,
                Kept::Some | Kept::Torn(..) => rng.random(),
            });
            let lost = file.crash(keep_len, |stamp| match kept {
                Kept::Nothing => 0,
                Kept::Everything => SECTOR_BYTES,
                Kept::Until(last) => SECTOR_BYTES * usize::from(stamp <= last),
                Kept::Torn(at, bytes) if at == stamp && !torn => {
                    torn = true;
                    bytes
                }
                Kept::Some | Kept::Torn(..) => SECTOR_BYTES * usize::from(rng.random::<bool>()),
            });
            chance.count("crash_lost_sectors", lost);
        }
        chance.count("torn_write", u64::from(torn));
    }

    /// The process is gone; the machine goes on.
    pub(super) fn process_ended(&mut self) {
        self.open = Open::default();
        self.sweep();
    }

    fn draw_kept(&mut self) -> Kept {
        let waiting = self.unsynced_stamps();
        let rng = &mut self.chance.rng;
        let modes = if self.chance.faults.torn_bytes { 5 } else { 4 };
        let mode = rng.random_range(0..modes);
        if waiting.is_empty() {
            return Kept::Nothing;
        }
        let at = rng.random_range(0..waiting.len());
        let at = waiting.into_iter().nth(at).unwrap_or_default();
        match mode {
            0 => Kept::Nothing,
            1 => Kept::Everything,
            2 => Kept::Until(at),
            3 => Kept::Some,
            _ => Kept::Torn(at, rng.random_range(1..SECTOR_BYTES)),
        }
    }

    /// Stamps of all changes that a power cut may lose.
    fn unsynced_stamps(&self) -> BTreeSet<Stamp> {
        let names = self.names.waiting_stamps();
        let files = self.files.values().flat_map(File::unsynced_stamps);
        names.chain(files).collect()
    }

    /// The durable contents of a file.
    pub(super) fn durable_bytes(&self, id: FileId) -> Vec<u8> {
        self.files
            .get(&id)
            .map(File::durable_bytes)
            .unwrap_or_default()
    }
}
