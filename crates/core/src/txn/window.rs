//! The window: versions newer than what the engine holds.
//!
//! An ordered map from (database, key) to the versions of the key, each a value or a tombstone
//! (`None`). A read at a snapshot takes the newest version at or below it, from here or else from
//! the engine.
//!
//! Entries come from the sequencer (pending, on the master) and from the log (committed). They
//! leave when the flush has moved them into the engine and no reader can miss them, or when the
//! node loses mastership and drops what was pending. The window does not know which of its versions
//! are committed: each reader supplies the VLSN up to which it may see.
//!
//! One lock guards the map. It is held for one key, or for one part of a scan. Only the check whether
//! a range has changed holds it for the whole range, as it does the sequencer's lock.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use bytes::Bytes;

use crate::engine::{Direction, KeyRange};
use crate::ids::{DatabaseId, Vlsn};
use crate::txn::batch::Operation;

/// Memory that one version takes besides its key and value: its place in the map, handles, and its
/// entry in what waits for the flush.
const VERSION_OVERHEAD_BYTES: usize = 160;

/// Later than every version.
const NEWEST: Vlsn = Vlsn(u64::MAX);

/// Rows that a scan takes under one lock: few at first, as most scans are short.
const SCAN_ROWS_MIN: usize = 8;
const SCAN_ROWS_MAX: usize = 128;

/// What a transaction left at a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    Value(Bytes),
    Deleted,
}

impl From<Option<Bytes>> for Version {
    fn from(value: Option<Bytes>) -> Self {
        value.map_or(Self::Deleted, Self::Value)
    }
}

/// One key as a scan of the window sees it: `value` is `None` where the key was deleted.
pub(crate) type WindowRow = (Bytes, Option<Bytes>);

/// A version that was put into the window, for whoever is to flush it and take it out again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Written {
    pub(crate) place: Place,
    pub(crate) vlsn: Vlsn,
    /// `None`: deleted.
    pub(crate) value: Option<Bytes>,
}

impl Written {
    /// What `operation` of transaction `vlsn` writes.
    pub(crate) fn of(vlsn: Vlsn, operation: Operation) -> Self {
        Self {
            place: Place::new(operation.database, operation.key),
            vlsn,
            value: operation.value,
        }
    }

    /// Estimated memory that it takes in the window.
    pub(crate) fn bytes(&self) -> usize {
        version_bytes(&self.place.key, self.value.as_ref())
    }
}

/// A key of a database. The first bytes of the key stand in place, so that most comparisons follow
/// no pointer. The order of the fields is the order of places.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) database: DatabaseId,
    first: [u64; 2],
    pub(crate) key: Bytes,
}

impl Place {
    pub(crate) fn new(database: DatabaseId, key: Bytes) -> Self {
        // Zeros after a short key: where they are all that differs, the keys themselves decide.
        let part = |from: usize| {
            let bytes = key.get(from..).unwrap_or_default();
            let mut part = [0; 8];
            let length = bytes.len().min(part.len());
            part[..length].copy_from_slice(&bytes[..length]);
            u64::from_be_bytes(part)
        };
        Self {
            database,
            first: [part(0), part(8)],
            key,
        }
    }
}

/// The versions of one key, oldest first. Nearly all keys have one.
#[derive(Debug)]
enum Versions {
    One(Vlsn, Option<Bytes>),
    Several(VecDeque<(Vlsn, Option<Bytes>)>),
}

impl Versions {
    fn newest_at(&self, at: Vlsn) -> Option<(Vlsn, &Option<Bytes>)> {
        match self {
            Self::One(vlsn, value) => (*vlsn <= at).then_some((*vlsn, value)),
            Self::Several(versions) => {
                let later = versions.partition_point(|(vlsn, _)| *vlsn <= at);
                let (vlsn, value) = versions.get(later.checked_sub(1)?)?;
                Some((*vlsn, value))
            }
        }
    }

    /// Nearly always the newest. A key has one version of each transaction.
    fn add(&mut self, vlsn: Vlsn, value: Option<Bytes>) {
        if let Self::One(only, present) = self {
            *self = Self::Several(VecDeque::from([(*only, present.take())]));
        }
        if let Self::Several(versions) = self {
            let at = versions.partition_point(|(other, _)| *other < vlsn);
            versions.insert(at, (vlsn, value));
        }
    }

    /// Takes a version away, nearly always the oldest.
    fn take(&mut self, vlsn: Vlsn) -> Option<Version> {
        match self {
            Self::One(only, _) if *only != vlsn => None,
            Self::One(_, value) => {
                let value = value.take();
                *self = Self::Several(VecDeque::new());
                Some(value.into())
            }
            Self::Several(versions) => {
                let at = versions.binary_search_by_key(&vlsn, |(other, _)| *other);
                let (_, value) = versions.remove(at.ok()?)?;
                Some(value.into())
            }
        }
    }

    fn is_empty(&self) -> bool {
        matches!(self, Self::Several(versions) if versions.is_empty())
    }
}

type Places = BTreeMap<Place, Versions>;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Window {
    places: RwLock<Places>,
    bytes: AtomicUsize,
}

impl Window {
    /// Adds the change that a transaction made to one key.
    pub(crate) fn insert(&self, written: &Written) {
        self.bytes.fetch_add(written.bytes(), Ordering::Relaxed);
        let (place, value) = (written.place.clone(), written.value.clone());
        match self.write().entry(place) {
            Entry::Vacant(entry) => {
                entry.insert(Versions::One(written.vlsn, value));
            }
            Entry::Occupied(mut entry) => entry.get_mut().add(written.vlsn, value),
        }
    }

    /// Removes one version and returns the memory that it held, in bytes; 0 when it was not there.
    pub(crate) fn remove(&self, written: &Written) -> usize {
        let removed = match self.write().entry(written.place.clone()) {
            Entry::Vacant(_) => None,
            Entry::Occupied(mut entry) => {
                let removed = entry.get_mut().take(written.vlsn);
                if entry.get().is_empty() {
                    entry.remove();
                }
                removed
            }
        };
        // What it held is freed here, not under the lock.
        let bytes = removed.map_or(0, |_| written.bytes());
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        bytes
    }

    /// The newest version of `key` at or below `at`. `None` means that the window has none and the
    /// engine must be asked.
    pub(crate) fn newest(&self, database: DatabaseId, key: &Bytes, at: Vlsn) -> Option<Version> {
        let place = Place::new(database, key.clone());
        let places = self.read();
        let (_, value) = places.get(&place)?.newest_at(at)?;
        Some(value.clone().into())
    }

    /// Whether `key` has a version newer than `at`.
    pub(crate) fn key_changed(&self, database: DatabaseId, key: &Bytes, at: Vlsn) -> bool {
        self.newest_after(database, key, at).is_some()
    }

    /// The newest version of `key`, if it is newer than `at`. The caller holds open a reader at
    /// `at`, and the lock under which versions are numbered and dropped.
    pub(crate) fn newest_after(
        &self,
        database: DatabaseId,
        key: &Bytes,
        at: Vlsn,
    ) -> Option<Version> {
        let place = Place::new(database, key.clone());
        let places = self.read();
        let (vlsn, value) = places.get(&place)?.newest_at(NEWEST)?;
        (vlsn > at).then(|| value.clone().into())
    }

    /// Whether any key of `range` has a version newer than `at`.
    pub(crate) fn range_changed(&self, database: DatabaseId, range: &KeyRange, at: Vlsn) -> bool {
        let Some(bounds) = bounds(database, range) else {
            return false;
        };
        let newer = |versions: &Versions| {
            let newest = versions.newest_at(NEWEST);
            newest.is_some_and(|(vlsn, _)| vlsn > at)
        };
        self.read()
            .range(bounds)
            .any(|(_, versions)| newer(versions))
    }

    /// The keys of `range` with their newest version at or below `at`, in the order of `direction`.
    pub(crate) fn scan(
        &self,
        database: DatabaseId,
        range: &KeyRange,
        direction: Direction,
        at: Vlsn,
    ) -> impl Iterator<Item = WindowRow> {
        let mut rest = bounds(database, range);
        let mut rows_max = SCAN_ROWS_MIN;
        let parts = std::iter::from_fn(move || {
            let part = self.scan_part(&mut rest, direction, at, rows_max)?;
            rows_max = SCAN_ROWS_MAX.min(2 * rows_max);
            Some(part)
        });
        parts.flatten()
    }

    /// The first rows of `rest`, which becomes what is left of it. `None`: there are no more.
    fn scan_part(
        &self,
        rest: &mut Option<Bounds>,
        direction: Direction,
        at: Vlsn,
        rows_max: usize,
    ) -> Option<Vec<WindowRow>> {
        let bounds = rest.take()?;
        let places = self.read();
        let mut range = places.range(bounds.clone());
        let (mut rows, mut last) = (Vec::new(), None);
        for _ in 0..rows_max {
            last = match direction {
                Direction::Forward => range.next(),
                Direction::Reverse => range.next_back(),
            };
            let Some((place, versions)) = last else {
                break;
            };
            if let Some((_, value)) = versions.newest_at(at) {
                rows.push((place.key.clone(), value.clone()));
            }
        }
        let last = last.map(|(place, _)| Bound::Excluded(place.clone()));
        let left = last.map(|last| match direction {
            Direction::Forward => (last, bounds.1),
            Direction::Reverse => (bounds.0, last),
        });
        *rest = left.filter(is_range);
        Some(rows)
    }

    /// Estimated memory held, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    // Every change under the lock is whole, also where a thread panics.
    fn read(&self) -> RwLockReadGuard<'_, Places> {
        self.places.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Places> {
        self.places.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Estimated memory that one version of this size takes.
fn version_bytes(key: &Bytes, value: Option<&Bytes>) -> usize {
    key.len() + value.map_or(0, Bytes::len) + VERSION_OVERHEAD_BYTES
}

type Bounds = (Bound<Place>, Bound<Place>);

/// The bounds of the places of `range`; `None` if it has no keys.
fn bounds(database: DatabaseId, range: &KeyRange) -> Option<Bounds> {
    let place = |key: Bytes| Place::new(database, key);
    let start = match range.start.clone() {
        Bound::Unbounded => Bound::Included(place(Bytes::new())),
        start => start.map(place),
    };
    let end = match range.end.clone() {
        Bound::Unbounded => match database.0.checked_add(1) {
            Some(next) => Bound::Excluded(Place::new(DatabaseId(next), Bytes::new())),
            None => Bound::Unbounded,
        },
        end => end.map(place),
    };
    Some((start, end)).filter(is_range)
}

/// Whether the map can be asked for these bounds.
fn is_range((start, end): &Bounds) -> bool {
    match (start, end) {
        (Bound::Unbounded, _) | (_, Bound::Unbounded) => true,
        (Bound::Included(start), Bound::Included(end)) => start <= end,
        (
            Bound::Included(start) | Bound::Excluded(start),
            Bound::Included(end) | Bound::Excluded(end),
        ) => start < end,
    }
}

#[cfg(test)]
mod tests;
