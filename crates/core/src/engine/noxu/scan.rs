//! A scan of a Noxu database with a cursor that takes no locks.

use bytes::Bytes;
use noxu::{Cursor, CursorConfig, Database, DatabaseEntry, Get, OperationStatus};

use super::errors::read_error;
use super::open::read;
use crate::engine::error::Result;
use crate::engine::values::{Direction, KeyRange, ScanLimit};

/// One pass over a range with a cursor that takes no locks.
pub(super) struct Scan<'a> {
    database: &'a Database,
    cursor: Cursor<'static>,
    range: &'a KeyRange,
    direction: Direction,
    key: DatabaseEntry,
    value: DatabaseEntry,
}

impl<'a> Scan<'a> {
    pub(super) fn new(
        database: &'a Database,
        range: &'a KeyRange,
        direction: Direction,
    ) -> Result<Self> {
        let config = CursorConfig::read_uncommitted();
        let cursor = database
            .open_cursor(Some(&config))
            .map_err(|error| read_error("scan", error))?;
        let (key, value) = (DatabaseEntry::new(), DatabaseEntry::new());
        Ok(Self {
            database,
            cursor,
            range,
            direction,
            key,
            value,
        })
    }

    pub(super) fn collect(mut self, limit: ScanLimit) -> Result<Vec<(Bytes, Bytes)>> {
        let pairs = self.pairs(limit);
        // Noxu warns of every cursor that is dropped instead.
        let closed = self.cursor.close();
        let pairs = pairs?;
        closed.map_err(|error| read_error("scan", error))?;
        Ok(pairs)
    }

    fn pairs(&mut self, mut limit: ScanLimit) -> Result<Vec<(Bytes, Bytes)>> {
        let mut pairs = Vec::new();
        let mut found = self.first()?;
        while found && !limit.is_used_up() {
            if let Some(pair) = self.pair()? {
                limit.take(pair.0.len() + pair.1.len());
                pairs.push(pair);
            } else if self.is_past_range() {
                break;
            }
            found = self.next()?;
        }
        Ok(pairs)
    }

    /// Moves to the first key of the range or near it: a bound may exclude the key found, and a
    /// batch that is being applied may move its neighbours.
    fn first(&mut self) -> Result<bool> {
        use std::ops::Bound::{Excluded, Included, Unbounded};
        let (bound, at_bound, at_end) = match self.direction {
            Direction::Forward => (&self.range.start, Get::SearchGte, Get::First),
            Direction::Reverse => (&self.range.end, Get::SearchLte, Get::Last),
        };
        match bound {
            Included(key) | Excluded(key) => {
                self.key.set_data(key);
                self.position(at_bound)
            }
            Unbounded => self.position(at_end),
        }
    }

    fn next(&mut self) -> Result<bool> {
        match self.direction {
            Direction::Forward => self.position(Get::Next),
            Direction::Reverse => self.position(Get::Prev),
        }
    }

    fn position(&mut self, get: Get) -> Result<bool> {
        self.cursor
            .get(&mut self.key, &mut self.value, get, None)
            .map(|status| status == OperationStatus::Success)
            .map_err(|error| read_error("scan", error))
    }

    fn is_past_range(&self) -> bool {
        match self.direction {
            Direction::Forward => self.range.ends_before(self.key.data()),
            Direction::Reverse => self.range.starts_after(self.key.data()),
        }
    }

    /// The pair under the cursor if it lies in the range and is still there.
    fn pair(&self) -> Result<Option<(Bytes, Bytes)>> {
        let key = self.key.data();
        if !self.range.contains(key) {
            return Ok(None);
        }
        // A cursor without locks shows an empty value for a record that is not in Noxu's cache:
        // only a lookup tells it from an empty one.
        let value = if self.value.data().is_empty() {
            read(self.database, key)?
        } else {
            Some(Bytes::copy_from_slice(self.value.data()))
        };
        Ok(value.map(|value| (Bytes::copy_from_slice(key), value)))
    }
}
