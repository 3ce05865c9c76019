//! Streaming scans of a snapshot or a transaction, in chunks of bounded size.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::engine::{Direction, KeyRange};
use crate::error::ReadError;
use crate::ids::DatabaseId;
use crate::txn::transaction::Transaction;
use crate::txn::view::View;

/// What is scanned.
#[derive(Clone, Copy)]
pub(crate) enum Source<'a> {
    Snapshot(&'a View),
    Transaction(&'a Transaction),
}

/// An iterator over keys and values that fetches them in chunks: however large the range, it keeps
/// a few megabytes in memory.
///
/// Call [`Scan::reverse`] and [`Scan::limit`] before taking the first item. A scan may or may not
/// see writes that its transaction makes while it runs.
pub struct Scan<'a> {
    source: Source<'a>,
    database: Option<DatabaseId>,
    rest: Option<KeyRange>,
    direction: Direction,
    left: usize,
    fetched: VecDeque<(Bytes, Bytes)>,
}

impl<'a> Scan<'a> {
    pub(crate) fn new(source: Source<'a>, database: Option<DatabaseId>, range: KeyRange) -> Self {
        let rest = database.map(|_| range).filter(|range| !range.is_empty());
        let fetched = VecDeque::new();
        Self {
            source,
            database,
            rest,
            direction: Direction::Forward,
            left: usize::MAX,
            fetched,
        }
    }

    /// Yields the range from its last key to its first.
    #[must_use]
    pub fn reverse(mut self) -> Self {
        self.direction = Direction::Reverse;
        self
    }

    /// Yields at most `count` keys.
    #[must_use]
    pub fn limit(mut self, count: usize) -> Self {
        self.left = count;
        self
    }

    fn fetch(&mut self, database: DatabaseId, range: &KeyRange) -> Result<(), ReadError> {
        let chunk = match self.source {
            Source::Snapshot(view) => view.chunk(database, range, self.direction)?,
            Source::Transaction(transaction) => {
                transaction.chunk(database, range, self.direction)?
            }
        };
        self.fetched.extend(chunk.rows);
        self.rest = chunk.rest;
        Ok(())
    }
}

impl Iterator for Scan<'_> {
    type Item = Result<(Bytes, Bytes), ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        loop {
            if let Some(row) = self.fetched.pop_front() {
                return Some(Ok(row));
            }
            let range = self.rest.take()?;
            if let Err(error) = self.fetch(self.database?, &range) {
                return Some(Err(error));
            }
        }
    }
}
