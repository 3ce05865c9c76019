//! Where each entry of the log is on disk.

use std::collections::VecDeque;

use crate::ids::LogPosition;

use super::format::Place;

/// Where an entry is on disk. Costs twelve bytes for each entry that the log keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot {
    pub(super) place: Place,
    /// Bytes of its record.
    pub(super) bytes: u32,
}

/// The place of each entry on disk, by position.
#[derive(Clone, Debug, Default)]
pub(super) struct Index {
    pub(super) first: LogPosition,
    slots: VecDeque<Slot>,
}

impl Index {
    /// The position of the next entry; `None` (any) for an empty index.
    pub(super) fn next(&self) -> Option<LogPosition> {
        (!self.slots.is_empty()).then(|| LogPosition(self.first.0 + self.slots.len() as u64))
    }

    /// # Panics
    /// When the position is not the next one.
    pub(super) fn push(&mut self, position: LogPosition, slot: Slot) {
        match self.next() {
            None => self.first = position,
            Some(next) => assert_eq!(next, position, "the index has no gaps"),
        }
        self.slots.push_back(slot);
    }

    pub(super) fn truncate(&mut self, last: Option<LogPosition>) {
        let kept = last.map_or(0, |last| (last.0 + 1).saturating_sub(self.first.0));
        self.slots
            .truncate(usize::try_from(kept).unwrap_or(usize::MAX));
    }

    pub(super) fn purge(&mut self, upto: LogPosition) {
        let gone = (upto.0 + 1).saturating_sub(self.first.0);
        let gone = usize::try_from(gone)
            .unwrap_or(usize::MAX)
            .min(self.slots.len());
        self.slots.drain(..gone);
        self.first = self.first.max(next(upto));
    }

    pub(super) fn find(&self, position: LogPosition) -> Option<Slot> {
        let slot = usize::try_from(position.0.checked_sub(self.first.0)?).ok()?;
        self.slots.get(slot).copied()
    }
}

pub(super) fn next(position: LogPosition) -> LogPosition {
    LogPosition(position.0 + 1)
}
