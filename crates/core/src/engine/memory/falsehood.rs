//! Makes rows wrong behind an engine's back, as a faulty storage engine would: what it reports as
//! applied stays the same.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;

use bytes::Bytes;

use super::{Disk, Image, MemoryStore, Step};
use crate::engine::{Applied, Change, EngineBatch};
use crate::ids::DatabaseId;

/// Maximum number of former rows that are remembered.
const FORMER_ROWS_MAX: usize = 256;
/// Maximum bytes of their values.
const FORMER_BYTES_MAX: usize = 1 << 20;

/// A way in which an engine is wrong about one of its rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Falsehood {
    /// A row is gone.
    Lost,
    /// A row that was deleted is back, with the last value that it had.
    Revived,
    /// A row has a value that it had earlier.
    Old,
    /// One bit of a value is flipped.
    Flipped,
}

/// How a row was falsified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Falsified {
    /// Its database.
    pub database: DatabaseId,
    /// Its key.
    pub key: Bytes,
    /// Its value before.
    pub was: Option<Bytes>,
    /// What the engine returns since.
    pub is: Option<Bytes>,
}

impl MemoryStore {
    /// Makes one row in `dir` wrong, whether or not an engine is open there; `None` when no row
    /// that `may` be touched can be wrong in this way. It is wrong in synced and unsynced state
    /// alike, so that no crash undoes it; the next change of the row does.
    ///
    /// `chance` returns a number below its argument. The same calls with the same chance make the
    /// same row wrong. Each database is equally likely, however large it is. Former values are
    /// remembered for the rows changed last, not for all.
    pub fn falsify(
        &self,
        dir: &Path,
        falsehood: Falsehood,
        may: impl Fn(DatabaseId, &[u8]) -> bool,
        chance: &mut impl FnMut(usize) -> usize,
    ) -> Option<Falsified> {
        let mut disks = self.disks();
        let disk = disks.by_dir.get_mut(dir)?;
        let mut places = disk.places(falsehood);
        for rows in places.values_mut() {
            rows.retain(|(database, key, _)| may(*database, key));
        }
        places.retain(|_, rows| !rows.is_empty());
        let mut by_database: Vec<_> = places.into_values().collect();
        if by_database.is_empty() {
            return None;
        }
        let mut rows = by_database.swap_remove(chance(by_database.len()));
        let (database, key, former) = rows.swap_remove(chance(rows.len()));
        let was = disk.current.row(database, &key).cloned();
        let is = match falsehood {
            Falsehood::Lost => None,
            Falsehood::Revived | Falsehood::Old => former,
            Falsehood::Flipped => was.as_ref().map(|value| {
                let (byte, bit) = (chance(value.len()), chance(8));
                let mut value = value.to_vec();
                value[byte] ^= 1 << bit;
                value.into()
            }),
        };
        disk.replace(database, &key, is.as_ref());
        Some(Falsified {
            database,
            key,
            was,
            is,
        })
    }

    /// The row that an engine in `dir` has, or would have if one were open there.
    pub fn row(&self, dir: &Path, database: DatabaseId, key: &[u8]) -> Option<Bytes> {
        let disks = self.disks();
        let disk = disks.by_dir.get(dir)?;
        disk.current.row(database, key).cloned()
    }

    /// How far the engine in `dir` has got, or would report if one were open there.
    pub fn applied(&self, dir: &Path) -> Option<Applied> {
        let disks = self.disks();
        disks.by_dir.get(dir)?.current.applied.clone()
    }
}

/// Former values: the last ones of those that were replaced or deleted.
#[derive(Debug, Default)]
pub(super) struct Former {
    rows: VecDeque<Row>,
    bytes: usize,
}

/// Database, key and value.
type Row = (DatabaseId, Bytes, Bytes);

impl Former {
    /// Remembers the values that a batch is about to replace or delete in an image.
    pub(super) fn remember(&mut self, batch: &EngineBatch, before: &Image) {
        for (database, key, change) in &batch.changes {
            let Some(value) = before.row(*database, key) else {
                continue;
            };
            if matches!(change, Change::Put(new) if new == value) {
                continue;
            }
            self.bytes += value.len();
            self.rows.push_back((*database, key.clone(), value.clone()));
            while self.rows.len() > FORMER_ROWS_MAX || self.bytes > FORMER_BYTES_MAX {
                let oldest = self.rows.pop_front();
                self.bytes -= oldest.map_or(0, |(.., value)| value.len());
            }
        }
    }
}

/// Rows that can be made wrong, by database, with the former value that they would get.
type Places = BTreeMap<DatabaseId, Vec<(DatabaseId, Bytes, Option<Bytes>)>>;

impl Disk {
    fn places(&self, falsehood: Falsehood) -> Places {
        let mut places = Places::new();
        let mut add = |database, key: &Bytes, former: Option<&Bytes>| {
            let rows = places.entry(database).or_default();
            rows.push((database, key.clone(), former.cloned()));
        };
        match falsehood {
            Falsehood::Lost | Falsehood::Flipped => {
                for (database, keys) in &self.current.databases {
                    let has_bits = |value: &Bytes| !value.is_empty();
                    for (key, value) in keys {
                        if falsehood == Falsehood::Lost || has_bits(value) {
                            add(*database, key, None);
                        }
                    }
                }
            }
            Falsehood::Revived | Falsehood::Old => {
                let is_revived = falsehood == Falsehood::Revived;
                let mut last = BTreeMap::new();
                for (database, key, value) in &self.former.rows {
                    last.insert((*database, key), value);
                }
                for ((database, key), value) in last {
                    let there = self.current.row(database, key);
                    if there.is_none() == is_revived && there != Some(value) {
                        add(database, key, Some(value));
                    }
                }
            }
        }
        places
    }

    /// Sets the row to this value, in synced and unsynced state.
    fn replace(&mut self, database: DatabaseId, key: &Bytes, value: Option<&Bytes>) {
        for step in &mut self.unsynced {
            match step {
                Step::Batch(batch) => {
                    let changes = &mut batch.changes;
                    changes.retain(|change| (change.0, &change.1) != (database, key));
                }
                Step::Reclaim(reclaimed, keys) if *reclaimed == database => {
                    keys.retain(|given_up| given_up != key);
                }
                Step::Reclaim(..) => {}
            }
        }
        for image in [&mut self.synced, &mut self.current] {
            match value {
                Some(value) => {
                    let keys = image.databases.entry(database).or_default();
                    keys.insert(key.clone(), value.clone());
                }
                None => {
                    if let Some(keys) = image.databases.get_mut(&database) {
                        keys.remove(key);
                    }
                }
            }
        }
    }
}

impl Image {
    fn row(&self, database: DatabaseId, key: &[u8]) -> Option<&Bytes> {
        self.databases.get(&database)?.get(key)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use super::*;
    use crate::engine::{EngineFactory, StorageEngine};
    use crate::ids::{LogPosition, Term, Vlsn};

    const DB: DatabaseId = DatabaseId(7);
    const DIR: &str = "/engine";

    fn dir() -> &'static Path {
        Path::new(DIR)
    }

    fn open(store: &MemoryStore) -> Arc<dyn StorageEngine> {
        store.open(dir()).unwrap()
    }

    fn apply(engine: &dyn StorageEngine, number: u64, changes: &[(&'static str, Option<&str>)]) {
        let change = |(key, value): &(&'static str, Option<&str>)| {
            let copied = |value: &str| Change::Put(Bytes::copy_from_slice(value.as_bytes()));
            let key = Bytes::from_static(key.as_bytes());
            (DB, key, value.map_or(Change::Delete, copied))
        };
        let applied = Applied {
            term: Term(1),
            position: LogPosition(number),
            vlsn: Vlsn(number),
            membership: Bytes::new(),
        };
        let changes = changes.iter().map(change).collect();
        engine.apply(&EngineBatch { applied, changes }).unwrap();
    }

    fn falsify(store: &MemoryStore, falsehood: Falsehood, key: &str) -> Option<Falsified> {
        let is_this = |database, there: &[u8]| database == DB && there == key.as_bytes();
        store.falsify(dir(), falsehood, is_this, &mut |below| below - 1)
    }

    fn get(engine: &dyn StorageEngine, key: &str) -> Option<Bytes> {
        engine.get(DB, key.as_bytes()).unwrap()
    }

    #[expect(clippy::unnecessary_wraps, reason = "what a row has, or has not")]
    fn value(text: &str) -> Option<Bytes> {
        Some(Bytes::copy_from_slice(text.as_bytes()))
    }

    #[test]
    fn each_falsehood_says_what_it_made_of_the_row_and_leaves_applied() {
        let store = MemoryStore::new();
        let engine = open(&store);
        apply(&*engine, 1, &[("a", Some("1")), ("b", Some("2"))]);
        apply(&*engine, 2, &[("a", Some("3")), ("b", None)]);
        apply(
            &*engine,
            3,
            &[("c", Some("4")), ("d", Some("5")), ("e", Some(""))],
        );
        let made = [
            (Falsehood::Old, "a", value("3"), value("1")),
            (Falsehood::Revived, "b", None, value("2")),
            (Falsehood::Lost, "c", value("4"), None),
            (
                Falsehood::Flipped,
                "d",
                value("5"),
                Some(Bytes::from_static(&[0xb5])),
            ),
        ];
        for (falsehood, key, was, is) in made {
            let falsified = Falsified {
                database: DB,
                key: Bytes::copy_from_slice(key.as_bytes()),
                was,
                is: is.clone(),
            };
            assert_eq!(falsify(&store, falsehood, key), Some(falsified));
            assert_eq!(get(&*engine, key), is, "{falsehood:?}");
            assert_eq!(store.row(dir(), DB, key.as_bytes()), is);
        }
        assert_eq!(falsify(&store, Falsehood::Flipped, "e"), None);
        assert_eq!(falsify(&store, Falsehood::Revived, "d"), None);
        let applied = engine.applied().unwrap();
        assert_eq!(applied.as_ref().map(|applied| applied.vlsn), Some(Vlsn(3)));
        assert_eq!(store.applied(dir()), applied);
    }

    #[test]
    fn no_crash_takes_a_falsehood_back_and_the_next_change_of_the_row_does() {
        for kept in [0, 1, 2] {
            let store = MemoryStore::new();
            let engine = open(&store);
            apply(&*engine, 1, &[("a", Some("1"))]);
            engine.sync().unwrap();
            apply(&*engine, 2, &[("a", Some("2")), ("b", Some("x"))]);
            apply(&*engine, 3, &[("a", Some("3"))]);
            assert!(falsify(&store, Falsehood::Lost, "a").is_some());
            store.crash(kept);
            drop(engine);
            let engine = open(&store);
            assert_eq!(get(&*engine, "a"), None, "{kept} kept");
            assert_eq!(get(&*engine, "b").is_some(), kept > 0);
            apply(&*engine, 4, &[("a", Some("4"))]);
            assert_eq!(get(&*engine, "a"), value("4"));
        }
    }

    #[test]
    fn former_values_are_bounded_and_the_newest_stay() {
        let store = MemoryStore::new();
        let engine = open(&store);
        let long = "x".repeat(FORMER_BYTES_MAX / 4);
        apply(&*engine, 1, &[("a", Some("1")), ("b", Some(&long))]);
        apply(&*engine, 2, &[("a", Some("2"))]);
        for number in 3..8 {
            let next = format!("{number}{long}");
            apply(&*engine, number, &[("b", Some(&next))]);
        }
        assert_eq!(falsify(&store, Falsehood::Old, "a"), None);
        let falsified = falsify(&store, Falsehood::Old, "b");
        let is = falsified.and_then(|falsified| falsified.is);
        assert_eq!(is, value(&format!("6{long}")));
    }
}
