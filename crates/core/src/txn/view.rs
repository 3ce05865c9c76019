//! One consistent view of all databases at one VLSN: the window over the engine.
//!
//! ```text
//!   get(key)    window: newest version <= at ──found──► value or deleted
//!                  └─────────none──────────► engine
//!
//!   chunk(range)   engine  a . c d . f         a chunk covers the part of the range up to the
//!                  window  . B . D̶ e .         nearer end of the two, so that both sides are
//!                  merged  a B c   e f         complete in it; the window wins
//! ```

use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::engine::{Direction, EngineError, KeyRange, ScanLimit, StorageEngine};
use crate::ids::{DatabaseId, Vlsn};
use crate::planted::{self, Bug};
use crate::txn::readers::ReaderGuard;
use crate::txn::window::{Version, Window, WindowRow};

/// Limit of one read of a range, from engine and window each: enough keys to make its cost
/// negligible, no more bytes than a scan may hold in memory beside one value.
const CHUNK: ScanLimit = ScanLimit {
    keys: 256,
    bytes: 1024 * 1024,
};

/// Why a read could not be answered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ViewError {
    #[error("the reader was ended because it was older than {age_max:?}")]
    TooOld { age_max: Duration },
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// See the module. Cheap to create; dropping it ends its reader.
pub(crate) struct View {
    window: Arc<Window>,
    engine: Arc<dyn StorageEngine>,
    reader: ReaderGuard,
}

/// A part of a scan.
pub(crate) struct Chunk {
    /// Keys and values in the order of the scan.
    pub(crate) rows: Vec<(Bytes, Bytes)>,
    /// The part of the requested range that `rows` covers completely.
    pub(crate) covered: KeyRange,
    /// The rest of the requested range; `None` when the scan is over.
    pub(crate) rest: Option<KeyRange>,
}

impl View {
    pub(crate) fn new(
        window: Arc<Window>,
        engine: Arc<dyn StorageEngine>,
        reader: ReaderGuard,
    ) -> Self {
        Self {
            window,
            engine,
            reader,
        }
    }

    /// The reader alone, still open.
    pub(crate) fn into_reader(self) -> ReaderGuard {
        self.reader
    }

    pub(crate) fn at(&self) -> Vlsn {
        self.reader.at()
    }

    /// The value of `key`, or `None`.
    ///
    /// # Errors
    /// [`ViewError::TooOld`] when the reader was ended for its age, and [`ViewError::Engine`] when the
    /// engine cannot be read.
    pub(crate) fn get(
        &self,
        database: DatabaseId,
        key: &Bytes,
    ) -> Result<Option<Bytes>, ViewError> {
        let at = if planted::is(Bug::MovingSnapshot) {
            Vlsn(u64::MAX)
        } else {
            self.at()
        };
        let found = match self.window.newest(database, key, at) {
            Some(Version::Value(value)) => Some(value),
            Some(Version::Deleted) => None,
            None => self.engine.get(database, key)?,
        };
        self.still_valid(found)
    }

    /// The first part of a scan of `range`.
    ///
    /// # Errors
    /// As [`View::get`].
    pub(crate) fn chunk(
        &self,
        database: DatabaseId,
        range: &KeyRange,
        direction: Direction,
    ) -> Result<Chunk, ViewError> {
        // The window first: a version that leaves it afterwards is already in the engine.
        let (mut window, is_whole) =
            take_chunk(self.window.scan(database, range, direction, self.at()));
        let engine = self
            .engine
            .scan(database, range.clone(), direction, CHUNK)?;
        let cut_window = window.last().filter(|_| !is_whole).map(|row| &row.0);
        let cut_engine = engine.last().filter(|_| CHUNK.is_reached(&engine));
        let end = nearer_end(direction, cut_window, cut_engine.map(|row| &row.0));
        let (covered, rest) = split(range, end, direction);
        if planted::is(Bug::DeletedShows) {
            window.retain(|(_, value)| value.is_some());
        }
        let mut rows = lay_over(engine, window, direction);
        // Only one side can extend beyond the covered range, and it is in order.
        while rows.last().is_some_and(|(key, _)| !covered.contains(key)) {
            rows.pop();
        }
        if direction == Direction::Reverse && planted::is(Bug::ReverseForward) {
            rows.reverse();
        }
        if planted::is(Bug::ChunkLosesEnd) && rest.is_some() {
            rows.pop();
        }
        self.still_valid(Chunk {
            rows,
            covered,
            rest,
        })
    }

    /// `read`, unless the reader was ended meanwhile: then the flush may have overtaken it.
    fn still_valid<T>(&self, read: T) -> Result<T, ViewError> {
        match self.reader.ended_at_age() {
            Some(age_max) => Err(ViewError::TooOld { age_max }),
            None => Ok(read),
        }
    }
}

/// Merges both, which are in the order of `direction`. `over` wins, and its deletions remove rows.
pub(crate) fn lay_over(
    rows: Vec<(Bytes, Bytes)>,
    over: impl IntoIterator<Item = WindowRow>,
    direction: Direction,
) -> Vec<(Bytes, Bytes)> {
    let mut merged = Vec::with_capacity(rows.len());
    let mut rows = rows.into_iter().peekable();
    for (key, value) in over {
        let is_before = |row: &(Bytes, Bytes)| match direction {
            Direction::Forward => row.0 < key,
            Direction::Reverse => row.0 > key,
        };
        while let Some(row) = rows.next_if(is_before) {
            merged.push(row);
        }
        rows.next_if(|row| row.0 == key);
        merged.extend(value.map(|value| (key, value)));
    }
    merged.extend(rows);
    merged
}

/// The first of these rows, up to the limit, and whether these are all.
fn take_chunk(mut rows: impl Iterator<Item = WindowRow>) -> (Vec<WindowRow>, bool) {
    let (mut taken, mut limit) = (Vec::new(), CHUNK);
    while !limit.is_used_up() {
        let Some((key, value)) = rows.next() else {
            return (taken, true);
        };
        limit.take(key.len() + value.as_ref().map_or(0, Bytes::len));
        taken.push((key, value));
    }
    (taken, false)
}

/// The end of whichever cut-off side ends first; `None` when neither was cut off.
fn nearer_end(direction: Direction, a: Option<&Bytes>, b: Option<&Bytes>) -> Option<Bytes> {
    let ends = a.into_iter().chain(b);
    match direction {
        Direction::Forward => ends.min().cloned(),
        Direction::Reverse => ends.max().cloned(),
    }
}

/// Splits `range` after the key `end`, in the order of the scan.
fn split(
    range: &KeyRange,
    end: Option<Bytes>,
    direction: Direction,
) -> (KeyRange, Option<KeyRange>) {
    let Some(end) = end else {
        return (range.clone(), None);
    };
    match direction {
        Direction::Forward => (
            KeyRange {
                start: range.start.clone(),
                end: Bound::Included(end.clone()),
            },
            Some(KeyRange {
                start: Bound::Excluded(end),
                end: range.end.clone(),
            }),
        ),
        Direction::Reverse => (
            KeyRange {
                start: Bound::Included(end.clone()),
                end: range.end.clone(),
            },
            Some(KeyRange {
                start: range.start.clone(),
                end: Bound::Excluded(end),
            }),
        ),
    }
}
