//! The window: versions newer than what the engine holds.
//!
//! An ordered concurrent map from (database, key, VLSN descending) to a value or a tombstone
//! (`None`). A read at a snapshot takes the newest version at or below it, from here or else from
//! the engine. In this order, reading one key and flushing everything are each a single walk.
//!
//! Entries come from the sequencer (pending, on the master) and from the log (committed). They
//! leave when the flush has moved them into the engine and no reader can miss them, or when the
//! node loses mastership and drops what was pending. The window does not know which of its versions
//! are committed: each reader supplies the VLSN up to which it may see.

use std::cmp::Reverse;
use std::ops::{Bound, RangeBounds};
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use crossbeam_skiplist::SkipMap;
use crossbeam_skiplist::map::Entry;

use crate::engine::{Direction, KeyRange};
use crate::ids::{DatabaseId, Vlsn};
use crate::txn::batch::Operation;

/// Memory that one version takes besides its key and value: map node, tower and handles.
const VERSION_OVERHEAD_BYTES: usize = 160;

/// Key of one version. The order of the fields is the order of the map.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct VersionKey {
    pub(crate) database: DatabaseId,
    pub(crate) key: Bytes,
    pub(crate) vlsn: Reverse<Vlsn>,
}

impl VersionKey {
    /// The key of the version that `operation` of transaction `vlsn` writes.
    pub(crate) fn of(vlsn: Vlsn, operation: &Operation) -> Self {
        Self {
            database: operation.database,
            key: operation.key.clone(),
            vlsn: Reverse(vlsn),
        }
    }
}

/// What a transaction left at a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    Value(Bytes),
    Deleted,
}

/// One key as a scan of the window sees it: `value` is `None` where the key was deleted.
pub(crate) type WindowRow = (Bytes, Option<Bytes>);

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Window {
    versions: SkipMap<VersionKey, Option<Bytes>>,
    bytes: AtomicUsize,
}

impl Window {
    /// Adds the change that transaction `vlsn` makes to one key.
    pub(crate) fn insert(&self, vlsn: Vlsn, operation: Operation) {
        let Operation {
            database,
            key,
            value,
            ..
        } = operation;
        let bytes = version_bytes(&key, value.as_ref());
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.versions.insert(
            VersionKey {
                database,
                key,
                vlsn: Reverse(vlsn),
            },
            value,
        );
    }

    /// Removes one version and returns the memory that it held, in bytes; 0 when it was not there.
    pub(crate) fn remove(&self, version: &VersionKey) -> usize {
        let removed = self.versions.remove(version);
        let bytes = removed.map_or(0, |entry| {
            version_bytes(&entry.key().key, entry.value().as_ref())
        });
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        bytes
    }

    /// Memory that this version holds, in bytes; 0 when it is not there.
    pub(crate) fn version_bytes(&self, version: &VersionKey) -> usize {
        let entry = self.versions.get(version);
        entry.map_or(0, |entry| {
            version_bytes(&entry.key().key, entry.value().as_ref())
        })
    }

    /// The newest version of `key` at or below `at`. `None` means that the window has none and the
    /// engine must be asked.
    pub(crate) fn newest(&self, database: DatabaseId, key: &Bytes, at: Vlsn) -> Option<Version> {
        let from = VersionKey {
            database,
            key: key.clone(),
            vlsn: Reverse(at),
        };
        loop {
            let entry = self.versions.lower_bound(Bound::Included(&from))?;
            // The search may return an entry that is being removed. Newer versions of the key are
            // removed later, so an entry still there now is the newest; otherwise search again.
            if entry.is_removed() {
                continue;
            }
            let found = entry.key();
            if found.database != database || found.key != *key {
                return None;
            }
            let value = entry.value().clone();
            return Some(value.map_or(Version::Deleted, Version::Value));
        }
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
        let from = VersionKey {
            database,
            key: key.clone(),
            vlsn: Reverse(Vlsn(u64::MAX)),
        };
        let entry = self.versions.lower_bound(Bound::Included(&from))?;
        let found = entry.key();
        if found.database != database || found.key != *key || found.vlsn.0 <= at {
            return None;
        }
        let value = entry.value().clone();
        Some(value.map_or(Version::Deleted, Version::Value))
    }

    /// Whether any key of `range` has a version newer than `at`.
    pub(crate) fn range_changed(&self, database: DatabaseId, range: &KeyRange, at: Vlsn) -> bool {
        self.walk(database, range, Direction::Forward)
            .any(|entry| entry.key().vlsn.0 > at)
    }

    /// The keys of `range` with their newest version at or below `at`, in the order of `direction`.
    pub(crate) fn scan(
        &self,
        database: DatabaseId,
        range: &KeyRange,
        direction: Direction,
        at: Vlsn,
    ) -> impl Iterator<Item = WindowRow> {
        let mut last_seen: Option<Bytes> = None;
        let row = move |entry: Entry<'_, VersionKey, Option<Bytes>>| {
            let key = &entry.key().key;
            if last_seen.as_ref() == Some(key) {
                return None;
            }
            last_seen = Some(key.clone());
            // Versions are evicted during the walk, older ones first, so the version it meets need
            // not be the newest of its key. Only the key is taken from it.
            let value = match self.newest(database, key, at) {
                Some(Version::Value(value)) => Some(value),
                Some(Version::Deleted) => None,
                None => return None,
            };
            Some((key.clone(), value))
        };
        self.walk(database, range, direction).filter_map(row)
    }

    /// Every version of every key of `range`, in the order of `direction`.
    ///
    /// Avoids the map's own `range`, which never frees what it has passed (crossbeam-skiplist
    /// 0.1.3).
    fn walk(
        &self,
        database: DatabaseId,
        range: &KeyRange,
        direction: Direction,
    ) -> impl Iterator<Item = Entry<'_, VersionKey, Option<Bytes>>> {
        let bounds = version_bounds(database, range);
        let first = match direction {
            Direction::Forward => self.versions.lower_bound(bounds.0.as_ref()),
            Direction::Reverse => self.versions.upper_bound(bounds.1.as_ref()),
        };
        std::iter::successors(first, move |entry| match direction {
            Direction::Forward => entry.next(),
            Direction::Reverse => entry.prev(),
        })
        .take_while(move |entry| bounds.contains(entry.key()))
    }

    /// The content of exactly this version; the outer `None` means that it is not in the window.
    pub(crate) fn version(&self, version: &VersionKey) -> Option<Version> {
        let entry = self.versions.get(version)?;
        let value = entry.value().clone();
        Some(value.map_or(Version::Deleted, Version::Value))
    }

    /// Estimated memory held, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }
}

/// Estimated memory that one version of this size takes.
fn version_bytes(key: &Bytes, value: Option<&Bytes>) -> usize {
    key.len() + value.map_or(0, Bytes::len) + VERSION_OVERHEAD_BYTES
}

/// The map bounds that enclose every version of every key of `range`.
fn version_bounds(
    database: DatabaseId,
    range: &KeyRange,
) -> (Bound<VersionKey>, Bound<VersionKey>) {
    let newest = |key: &Bytes| VersionKey {
        database,
        key: key.clone(),
        vlsn: Reverse(Vlsn(u64::MAX)),
    };
    let oldest = |key: &Bytes| VersionKey {
        database,
        key: key.clone(),
        vlsn: Reverse(Vlsn(0)),
    };
    let start = match &range.start {
        Bound::Included(key) => Bound::Included(newest(key)),
        Bound::Excluded(key) => Bound::Excluded(oldest(key)),
        Bound::Unbounded => Bound::Included(newest(&Bytes::new())),
    };
    let end = match &range.end {
        Bound::Included(key) => Bound::Included(oldest(key)),
        Bound::Excluded(key) => Bound::Excluded(newest(key)),
        Bound::Unbounded => match database.0.checked_add(1) {
            Some(next) => Bound::Excluded(VersionKey {
                database: DatabaseId(next),
                key: Bytes::new(),
                vlsn: Reverse(Vlsn(u64::MAX)),
            }),
            None => Bound::Unbounded,
        },
    };
    (start, end)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicU64};

    use super::*;

    const DB: DatabaseId = DatabaseId(1);

    fn operation(key: u8, value: Option<&'static str>) -> Operation {
        Operation {
            database: DB,
            key: Bytes::copy_from_slice(&[key]),
            value: value.map(Into::into),
            expires: false,
        }
    }

    /// A value that is counted as long as it is in memory.
    struct Counted(Arc<AtomicUsize>);

    impl AsRef<[u8]> for Counted {
        fn as_ref(&self) -> &[u8] {
            b"value"
        }
    }

    impl Drop for Counted {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn what_was_scanned_is_freed_when_it_leaves() {
        let (window, in_memory) = (Window::default(), Arc::new(AtomicUsize::new(0)));
        let come_and_go = || {
            let versions = (1..=100).map(|n| {
                in_memory.fetch_add(1, Ordering::Relaxed);
                let value = Bytes::from_owner(Counted(Arc::clone(&in_memory)));
                let operation = Operation {
                    value: Some(value),
                    ..operation(n, None)
                };
                let version = VersionKey::of(Vlsn(n.into()), &operation);
                window.insert(Vlsn(n.into()), operation);
                version
            });
            let versions: Vec<_> = versions.collect();
            for direction in [Direction::Forward, Direction::Reverse] {
                for keys in [1000, 10] {
                    let (all, at) = (KeyRange::all(), Vlsn(100));
                    let rows = window.scan(DB, &all, direction, at).take(keys);
                    assert_eq!(rows.count(), keys.min(100));
                }
            }
            assert!(!window.range_changed(DB, &KeyRange::all(), Vlsn(100)));
            for version in &versions {
                assert_ne!(window.remove(version), 0);
            }
        };
        // The map frees with a delay: after a thread ends, others free what it removed.
        std::thread::scope(|scope| scope.spawn(come_and_go).join()).expect("scanned");
        for _ in 0..100_000 {
            if in_memory.load(Ordering::Relaxed) == 0 {
                return;
            }
            let _none = window.newest(DB, &Bytes::new(), Vlsn(0));
        }
        panic!("{} are in memory", in_memory.load(Ordering::Relaxed));
    }

    /// Each key is put and then deleted, and its versions leave in that order.
    #[test]
    fn a_scan_beside_an_eviction_never_shows_what_was_deleted() {
        let (window, visible) = (Window::default(), AtomicU64::new(0));
        let done = AtomicBool::new(false);
        let scan = |direction| {
            while !done.load(Ordering::Relaxed) {
                let at = Vlsn(visible.load(Ordering::Acquire));
                let all = KeyRange::all();
                let rows: Vec<_> = window.scan(DB, &all, direction, at).take(256).collect();
                assert!(rows.iter().all(|(_, value)| value.is_none()), "{rows:?}");
            }
        };
        std::thread::scope(|scope| {
            scope.spawn(|| scan(Direction::Forward));
            scope.spawn(|| scan(Direction::Reverse));
            for put in (1..6_000).step_by(2).map(Vlsn) {
                for key in 0..32 {
                    window.insert(put, operation(key, Some("old")));
                    window.insert(put.next(), operation(key, None));
                }
                visible.store(put.next().0, Ordering::Release);
                for key in 0..32 {
                    for vlsn in [put, put.next()] {
                        window.remove(&VersionKey::of(vlsn, &operation(key, None)));
                    }
                }
            }
            done.store(true, Ordering::Relaxed);
        });
        assert_eq!(window.bytes(), 0);
    }
}
