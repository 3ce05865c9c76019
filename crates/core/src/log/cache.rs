//! The end of the log in memory.

use std::collections::VecDeque;
use std::ops::Range;

use crate::ids::LogPosition;
use crate::planted::{self, Bug};

use super::Entry;

/// Approximate size of an entry in memory, without its payload.
const ENTRY_OVERHEAD_BYTES: usize = 160;

fn bytes_in_memory(entry: &Entry) -> usize {
    entry.payload.len() + ENTRY_OVERHEAD_BYTES
}

/// Entries at the end of the log, without gaps.
#[derive(Default)]
pub(super) struct Cache {
    entries: VecDeque<(Entry, u64)>,
    /// See [`bytes_in_memory`].
    bytes: usize,
}

impl Cache {
    pub(super) fn first(&self) -> Option<LogPosition> {
        self.entries.front().map(|(entry, _)| entry.position)
    }

    pub(super) fn push(&mut self, entry: Entry, ticket: u64) {
        self.bytes += bytes_in_memory(&entry);
        self.entries.push_back((entry, ticket));
    }

    pub(super) fn truncate(&mut self, last: Option<LogPosition>) {
        while let Some((entry, _)) = self.entries.back()
            && last.is_none_or(|last| entry.position > last)
        {
            self.bytes -= bytes_in_memory(entry);
            self.entries.pop_back();
        }
    }

    pub(super) fn purge(&mut self, upto: LogPosition) {
        self.pop_while(|_, entry, _| entry.position <= upto);
    }

    /// Drops the oldest entries until at most `bytes_max` is left, as far as they are durable.
    pub(super) fn trim(&mut self, durable: u64, bytes_max: usize) {
        let durable = if planted::is(Bug::CacheDropsUnsynced) {
            u64::MAX
        } else {
            durable
        };
        self.pop_while(|bytes, _, ticket| bytes > bytes_max && ticket <= durable);
    }

    fn pop_while(&mut self, drop: impl Fn(usize, &Entry, u64) -> bool) {
        while let Some((entry, ticket)) = self.entries.front()
            && drop(self.bytes, entry, *ticket)
        {
            self.bytes -= bytes_in_memory(entry);
            self.entries.pop_front();
        }
    }

    /// The entries at these positions, all of which are cached.
    pub(super) fn range(&self, positions: Range<u64>) -> impl Iterator<Item = &Entry> {
        let first = self.first().unwrap_or_default().0;
        let skip = usize::try_from(positions.start.saturating_sub(first)).unwrap_or(usize::MAX);
        let entries = self.entries.iter().map(|(entry, _)| entry).skip(skip);
        entries.take_while(move |entry| entry.position.0 < positions.end)
    }
}
