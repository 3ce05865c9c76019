//! What the engine should hold, derived from the log alone: the number of rows of each database,
//! and the sum of their hashes.
//!
//! Each engine batch changes them by the rows that it removes and adds. They are a function of the
//! state at one log position, so they are the same on every node there. They are stored in the
//! engine too, in a database of their own that changes in the same batch. They are vouched for by
//! the total in [`DigestFile`](super::file::DigestFile), which the engine never sees.
//!
//! ```text
//! database DIGESTS
//!   key                     value, little-endian
//!   (empty)                 | position: u64 | vlsn: u64 | rows: u64 | sum: u128 |   the total, as of then
//!   id: u32, big-endian     | rows: u64 | sum: u128 |                               one database
//! ```
//!
//! A database counts as long as it has a name. Each node reclaims the remains of a dropped database
//! in its own time.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::engine::{
    Applied, Change, Direction, EngineError, KeyRange, RowDigest, ScanLimit, StorageEngine,
};
use crate::ids::{DatabaseId, LogPosition, Vlsn};
use crate::planted::{self, Bug};
use crate::txn::catalog::{self, CATALOG, DIGESTS};

const DIGEST_BYTES: usize = 8 + 16;
const TOTAL_BYTES: usize = 8 + 8 + DIGEST_BYTES;

/// The changes of a batch, in the engine's form.
pub(crate) type Changes = Vec<(DatabaseId, Bytes, Change)>;

/// The digest of all named databases, at one log position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Point {
    pub(crate) position: LogPosition,
    pub(crate) vlsn: Vlsn,
    pub(crate) total: RowDigest,
}

impl Point {
    fn decode(mut value: Bytes) -> Option<Self> {
        if value.len() != TOTAL_BYTES {
            return None;
        }
        Some(Self {
            position: LogPosition(value.get_u64_le()),
            vlsn: Vlsn(value.get_u64_le()),
            total: decode(&value)?,
        })
    }
}

fn encode(digest: RowDigest) -> Bytes {
    let mut value = BytesMut::with_capacity(DIGEST_BYTES);
    value.put_u64_le(digest.rows);
    value.put_slice(&digest.to_bytes());
    value.freeze()
}

fn decode(value: &[u8]) -> Option<RowDigest> {
    let (rows, sum) = value.split_first_chunk()?;
    RowDigest::from_parts(u64::from_le_bytes(*rows), sum)
}

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RunningDigest {
    names: BTreeMap<Bytes, DatabaseId>,
    /// The catalog, and every database named in it.
    databases: BTreeMap<DatabaseId, RowDigest>,
}

/// A batch's effect on the digest, before the engine has applied the batch.
#[derive(Debug)]
pub(crate) struct Prepared {
    names: Option<BTreeMap<Bytes, DatabaseId>>,
    /// `None` for a database that has lost its name.
    databases: BTreeMap<DatabaseId, Option<RowDigest>>,
    /// The batch's effect on the rows counted so far, see [`Counted`].
    pub(crate) counted: RowDigest,
    pub(crate) total: RowDigest,
}

/// Progress of a count: the rows of a database up to a key.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Counted<'a> {
    pub(crate) database: DatabaseId,
    pub(crate) upto: Option<&'a Bytes>,
}

impl Counted<'_> {
    fn contains(&self, database: DatabaseId, key: &Bytes) -> bool {
        self.database == database && self.upto.is_some_and(|upto| key <= upto)
    }
}

impl RunningDigest {
    /// The digest of an engine with these names and counted databases.
    pub(crate) fn of(
        names: BTreeMap<Bytes, DatabaseId>,
        counted: &BTreeMap<DatabaseId, RowDigest>,
    ) -> Self {
        let of = |id: DatabaseId| (id, counted.get(&id).copied().unwrap_or_default());
        let databases = names.values().copied().chain([CATALOG]).map(of).collect();
        Self { names, databases }
    }

    /// The engine's own account of what it should hold, and as of when. Nothing vouches for it yet.
    ///
    /// # Errors
    /// When the engine cannot be read, or its catalog holds anything other than ids.
    pub(crate) fn read(engine: &dyn StorageEngine) -> Result<Option<(Self, Point)>, EngineError> {
        let rows = engine.scan(
            DIGESTS,
            KeyRange::all(),
            Direction::Forward,
            ScanLimit::NONE,
        )?;
        let (mut point, mut saved) = (None, BTreeMap::new());
        for (key, value) in rows {
            match key[..].try_into() {
                Ok(id) => {
                    let id = DatabaseId(u32::from_be_bytes(id));
                    saved.extend(decode(&value).map(|digest| (id, digest)));
                }
                Err(_) if key.is_empty() => point = Point::decode(value),
                Err(_) => {}
            }
        }
        let Some(point) = point else { return Ok(None) };
        let names = catalog::named(engine)?;
        // A row of a database that is gone says nothing about those that are there.
        let named: BTreeSet<_> = names.values().copied().chain([CATALOG]).collect();
        saved.retain(|id, _| named.contains(id));
        let databases = saved;
        Ok(Some((Self { names, databases }, point)))
    }

    /// Whether it covers exactly the databases that the catalog names, and has this total.
    pub(crate) fn is_of(&self, total: RowDigest) -> bool {
        let named: BTreeSet<_> = self.names.values().copied().chain([CATALOG]).collect();
        self.databases.keys().all(|id| named.contains(id))
            && named.iter().all(|id| self.databases.contains_key(id))
            && self.total() == total
    }

    pub(crate) fn total(&self) -> RowDigest {
        let mut total = RowDigest::default();
        self.databases.values().for_each(|of| total.add_all(*of));
        total
    }

    /// Its total, with the position and VLSN that it belongs to.
    pub(crate) fn point(&self, applied: &Applied) -> Point {
        Point {
            position: applied.position,
            vlsn: applied.vlsn,
            total: self.total(),
        }
    }

    /// Each database by name; the catalog comes first, with an empty name.
    pub(crate) fn by_name(&self) -> impl Iterator<Item = (String, RowDigest)> {
        let names = self.names.iter();
        let names = names.map(|(name, id)| (String::from_utf8_lossy(name).into_owned(), *id));
        let all = std::iter::once((String::new(), CATALOG)).chain(names);
        all.filter_map(|(name, id)| Some((name, self.database(id)?)))
    }

    /// What this database should hold; `None` if it has no name.
    pub(crate) fn database(&self, id: DatabaseId) -> Option<RowDigest> {
        self.databases.get(&id).copied()
    }

    /// The first database after `id`.
    pub(crate) fn next_database(&self, id: DatabaseId) -> Option<DatabaseId> {
        let after = (std::ops::Bound::Excluded(id), std::ops::Bound::Unbounded);
        self.databases.range(after).next().map(|(id, _)| *id)
    }

    /// The name of a database, for people.
    pub(crate) fn name(&self, id: DatabaseId) -> String {
        let mut names = self.names.iter();
        match names.find(|(_, named)| **named == id) {
            Some((name, _)) if !catalog::is_users_name(name) => "the times to live".to_owned(),
            Some((name, _)) => format!("database {:?}", String::from_utf8_lossy(name)),
            None if id == CATALOG => "the catalog of databases".to_owned(),
            None => format!("the database with the id {id}"),
        }
    }

    /// The effect of these changes, which `engine` has not applied yet, on the digest.
    ///
    /// # Errors
    /// When the engine cannot be read, or a catalog entry is invalid.
    pub(crate) fn prepare(
        &self,
        engine: &dyn StorageEngine,
        changes: &Changes,
        count: Option<Counted<'_>>,
    ) -> Result<Prepared, EngineError> {
        let names = self.names_after(changes)?;
        let mut prepared = Prepared {
            databases: self.databases_after(names.as_ref()),
            names,
            counted: RowDigest::default(),
            total: RowDigest::default(),
        };
        for (database, key, change) in changes {
            let digest = match prepared.databases.get_mut(database) {
                Some(digest) => digest.as_mut(),
                None => self.database(*database).map(|digest| {
                    let digest = prepared
                        .databases
                        .entry(*database)
                        .insert_entry(Some(digest));
                    digest.into_mut().as_mut().expect("just put there")
                }),
            };
            let old = engine.get(*database, key)?;
            let new = match change {
                Change::Put(value) => Some(value),
                Change::Delete if planted::is(Bug::DigestKeepsDeleted) => old.as_ref(),
                Change::Delete => None,
            };
            if let Some(digest) = digest {
                digest.change(*database, key, old.as_ref(), new);
            }
            if count.is_some_and(|count| count.contains(*database, key)) {
                prepared.counted.change(*database, key, old.as_ref(), new);
            }
        }
        prepared.total = self.total_after(&prepared.databases);
        Ok(prepared)
    }

    /// The names after the changes, if they change any.
    fn names_after(
        &self,
        changes: &Changes,
    ) -> Result<Option<BTreeMap<Bytes, DatabaseId>>, EngineError> {
        // The catalog comes first.
        let changed = changes.iter().take_while(|(id, ..)| *id == CATALOG);
        let mut names = None;
        for (_, key, change) in changed.filter(|(_, key, _)| catalog::is_name(key)) {
            let names = names.get_or_insert_with(|| self.names.clone());
            match change {
                Change::Put(value) => {
                    names.insert(key.clone(), catalog::id_in_entry(key, value)?);
                }
                Change::Delete => {
                    names.remove(key);
                }
            }
        }
        Ok(names)
    }

    /// The databases that appear or disappear with these names.
    fn databases_after(
        &self,
        names: Option<&BTreeMap<Bytes, DatabaseId>>,
    ) -> BTreeMap<DatabaseId, Option<RowDigest>> {
        let Some(names) = names else {
            return BTreeMap::new();
        };
        let named: BTreeSet<_> = names.values().copied().chain([CATALOG]).collect();
        let is_new = |id: &&DatabaseId| !self.databases.contains_key(id);
        let new = named.iter().filter(is_new);
        let new = new.map(|id| (*id, Some(RowDigest::default())));
        let gone = self.databases.keys().filter(|id| !named.contains(id));
        new.chain(gone.map(|id| (*id, None))).collect()
    }

    fn total_after(&self, changed: &BTreeMap<DatabaseId, Option<RowDigest>>) -> RowDigest {
        let mut total = RowDigest::default();
        let kept = self.databases.iter();
        let kept = kept.filter(|(id, _)| !changed.contains_key(id));
        kept.for_each(|(_, digest)| total.add_all(*digest));
        let changed = changed.values().flatten();
        changed.for_each(|digest| total.add_all(*digest));
        total
    }

    /// Moves on to the digest after a batch that the engine has applied.
    pub(crate) fn made(&mut self, prepared: Prepared) {
        for (id, digest) in prepared.databases {
            match digest {
                Some(digest) => self.databases.insert(id, digest),
                None => self.databases.remove(&id),
            };
        }
        if let Some(names) = prepared.names {
            self.names = names;
        }
    }

    /// The whole digest, as engine rows.
    pub(crate) fn rows(&self, applied: &Applied) -> Changes {
        let all = self.databases.iter().map(|(id, of)| (*id, Some(*of)));
        rows(all, applied, self.total())
    }

    /// The changes that correct the engine's own account.
    ///
    /// # Errors
    /// When the engine cannot be read.
    pub(crate) fn corrections(
        &self,
        engine: &dyn StorageEngine,
        applied: &Applied,
    ) -> Result<Changes, EngineError> {
        let there = engine.scan(
            DIGESTS,
            KeyRange::all(),
            Direction::Forward,
            ScanLimit::NONE,
        )?;
        let there: BTreeMap<_, _> = there.into_iter().collect();
        let foreign = there.keys().map(|key| (key.clone(), Change::Delete));
        let mut corrections: BTreeMap<_, _> = foreign.collect();
        for (_, key, change) in self.rows(applied) {
            let is_right = |right: &Bytes| there.get(&key) == Some(right);
            if matches!(&change, Change::Put(right) if is_right(right)) {
                corrections.remove(&key);
            } else {
                corrections.insert(key, change);
            }
        }
        let in_order = corrections.into_iter();
        let in_order = in_order.map(|(key, change)| (DIGESTS, key, change));
        Ok(in_order.collect())
    }
}

impl Prepared {
    /// The changed parts of the digest, as engine rows.
    pub(crate) fn rows(&self, applied: &Applied) -> Changes {
        let changed = self.databases.iter().map(|(id, of)| (*id, *of));
        rows(changed, applied, self.total)
    }
}

/// Empty before the first transaction: an arbiter never has one.
fn rows(
    digests: impl Iterator<Item = (DatabaseId, Option<RowDigest>)>,
    applied: &Applied,
    total: RowDigest,
) -> Changes {
    if applied.vlsn == Vlsn(0) {
        return Vec::new();
    }
    let mut point = BytesMut::with_capacity(TOTAL_BYTES);
    point.put_u64_le(applied.position.0);
    point.put_u64_le(applied.vlsn.0);
    point.put_slice(&encode(total));
    let point = (DIGESTS, Bytes::new(), Change::Put(point.freeze()));
    let row = |(id, digest): (DatabaseId, Option<RowDigest>)| {
        let change = digest.map_or(Change::Delete, |digest| Change::Put(encode(digest)));
        (DIGESTS, Bytes::copy_from_slice(&id.0.to_be_bytes()), change)
    };
    std::iter::once(point).chain(digests.map(row)).collect()
}
/// Whether the engine has an account of what it holds, or the remains of one.
///
/// # Errors
/// When it cannot be read.
pub(super) fn has_account(engine: &dyn StorageEngine) -> Result<bool, EngineError> {
    let one = ScanLimit::keys(1);
    let rows = engine.scan(DIGESTS, KeyRange::all(), Direction::Forward, one)?;
    Ok(!rows.is_empty())
}
