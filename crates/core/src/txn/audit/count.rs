//! Counts all rows of the engine and compares them with what it should hold, database by database.
//!
//! ```text
//!   rows a … f   counted: a change of one of them changes the count as it changes the running digest
//!   rows g … z   still to come, as they will be then
//! ```
//!
//! So no snapshot is held, and the finished count of a database is of one moment. Only the flush
//! writes the engine, and the flush itself counts, between two batches.

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;

use crate::engine::{Direction, EngineError, KeyRange, RowDigest, ScanLimit, StorageEngine};
use crate::ids::DatabaseId;
use crate::plural::plural;
use crate::txn::audit::digest::{Counted, RunningDigest};
use crate::txn::catalog::CATALOG;

/// Rows counted per step: about a millisecond of reading.
const STEP: ScanLimit = ScanLimit {
    keys: 1024,
    bytes: 1024 * 1024,
};

/// See the module.
#[derive(Debug)]
pub(super) struct Count {
    /// The database being counted; `None` at the end.
    database: Option<DatabaseId>,
    upto: Option<Bytes>,
    found: RowDigest,
    /// Results of the databases that are done.
    done: BTreeMap<DatabaseId, RowDigest>,
    /// The mismatches, described for people.
    wrong: Vec<String>,
}

impl Count {
    pub(super) fn begin() -> Self {
        Self {
            database: Some(CATALOG),
            upto: None,
            found: RowDigest::default(),
            done: BTreeMap::new(),
            wrong: Vec::new(),
        }
    }

    pub(super) fn is_done(&self) -> bool {
        self.database.is_none()
    }

    pub(super) fn counted(&self) -> Option<Counted<'_>> {
        let upto = self.upto.as_ref();
        self.database.map(|database| Counted { database, upto })
    }

    /// Accounts for a batch that the engine has applied.
    pub(super) fn made(&mut self, counted: RowDigest) {
        self.found.add_all(counted);
    }

    /// Counts some more rows.
    ///
    /// # Errors
    /// When the engine cannot be read.
    pub(super) fn step(
        &mut self,
        engine: &dyn StorageEngine,
        expected: &RunningDigest,
    ) -> Result<(), EngineError> {
        let Some(database) = self.database else {
            return Ok(());
        };
        let start = self.upto.clone().map_or(Bound::Unbounded, Bound::Excluded);
        let rest = KeyRange {
            start,
            end: Bound::Unbounded,
        };
        let rows = engine.scan(database, rest, Direction::Forward, STEP)?;
        for (key, value) in &rows {
            self.found.add(database, key, value);
        }
        if STEP.is_reached(&rows) {
            self.upto = rows.last().map(|(key, _)| key.clone());
        } else {
            self.end_database(database, expected);
        }
        Ok(())
    }

    fn end_database(&mut self, database: DatabaseId, expected: &RunningDigest) {
        let found = std::mem::take(&mut self.found);
        // Nothing is expected of a database that has lost its name meanwhile.
        if let Some(right) = expected.database(database)
            && right != found
        {
            let name = expected.name(database);
            self.wrong.push(describe(&name, found, right));
        }
        self.done.insert(database, found);
        self.upto = None;
        self.database = expected.next_database(database);
    }

    /// The mismatches, in words.
    pub(super) fn wrong(&self) -> Option<String> {
        (!self.wrong.is_empty()).then(|| self.wrong.join("; "))
    }

    /// The counted digests.
    pub(super) fn into_found(self) -> BTreeMap<DatabaseId, RowDigest> {
        self.done
    }
}

fn describe(name: &str, found: RowDigest, right: RowDigest) -> String {
    let rows = plural(found.rows, "row", "rows");
    if found.rows == right.rows {
        return format!(
            "{name} has {} {rows}, as it should, but not the keys and values that the log gave it",
            found.rows
        );
    }
    format!(
        "{name} has {} {rows}, but should have {}",
        found.rows, right.rows
    )
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::engine::{Applied, Change, EngineBatch, EngineFactory, MemoryStore};
    use crate::ids::{LogPosition, Term, Vlsn};
    use crate::txn::catalog;

    const DB: DatabaseId = DatabaseId(1);

    fn applied(number: u64) -> Applied {
        Applied {
            term: Term(1),
            position: LogPosition(number),
            vlsn: Vlsn(number),
            membership: Bytes::new(),
        }
    }

    fn key(number: u16) -> Bytes {
        Bytes::copy_from_slice(&number.to_be_bytes())
    }

    struct Rig {
        engine: Arc<dyn StorageEngine>,
        digest: RunningDigest,
        count: Count,
        batches: u64,
    }

    impl Rig {
        /// A database with enough rows for a few steps.
        fn new() -> Self {
            let engine = MemoryStore::new().open(Path::new("/engine")).unwrap();
            let mut rig = Self {
                engine,
                digest: RunningDigest::of(BTreeMap::new(), &BTreeMap::new()),
                count: Count::begin(),
                batches: 0,
            };
            let entry = (CATALOG, "name".into(), Change::Put(catalog::encode_id(DB)));
            let put = |number| (DB, key(number), Change::Put(key(number)));
            rig.apply(std::iter::once(entry).chain((0..2_500).map(put)).collect());
            rig.count = Count::begin();
            rig
        }

        fn apply(&mut self, changes: Vec<(DatabaseId, Bytes, Change)>) {
            let counted = self.count.counted();
            let prepared = self.digest.prepare(&*self.engine, &changes, counted);
            let prepared = prepared.unwrap();
            self.batches += 1;
            let applied = applied(self.batches);
            self.engine
                .apply(&EngineBatch { applied, changes })
                .unwrap();
            self.count.made(prepared.counted);
            self.digest.made(prepared);
        }

        fn step(&mut self) {
            self.count.step(&*self.engine, &self.digest).unwrap();
        }
    }

    proptest! {
        /// Holds for any writes between the steps, behind the count or ahead of it.
        #[test]
        fn a_count_beside_writes_finds_what_is_there(
            writes in proptest::collection::vec((0..3_000_u16, any::<Option<u8>>()), 1..60),
            every in 1..20_usize,
        ) {
            let mut rig = Rig::new();
            for (number, (at, value)) in writes.into_iter().enumerate() {
                let change = value.map_or(Change::Delete, |value| Change::Put(vec![value].into()));
                rig.apply(vec![(DB, key(at), change)]);
                if number % every == 0 {
                    rig.step();
                }
            }
            while !rig.count.is_done() {
                rig.step();
            }
            prop_assert_eq!(rig.count.wrong(), None);
        }
    }

    #[test]
    fn a_row_that_was_lost_altered_or_brought_back_is_counted_as_wrong() {
        for change in [Change::Delete, Change::Put("other".into())] {
            for row in [1, 1_100, 2_499, 2_600] {
                let mut rig = Rig::new();
                rig.step();
                let behind_its_back = EngineBatch {
                    applied: applied(1),
                    changes: vec![(DB, key(row), change.clone())],
                };
                rig.engine.apply(&behind_its_back).unwrap();
                while !rig.count.is_done() {
                    rig.step();
                }
                let is_right = change == Change::Delete && row == 2_600;
                assert_eq!(rig.count.wrong().is_none(), is_right, "{change:?} {row}");
            }
        }
    }

    #[test]
    fn a_database_that_comes_or_goes_during_a_count_is_counted_as_it_is() {
        let mut rig = Rig::new();
        rig.step();
        rig.step();
        let new = DatabaseId(2);
        rig.apply(vec![
            (CATALOG, "name".into(), Change::Put(catalog::encode_id(new))),
            (new, key(1), Change::Put(key(2))),
        ]);
        // The remains of the old database belong to nobody.
        rig.engine.reclaim(DB, usize::MAX).unwrap();
        while !rig.count.is_done() {
            rig.step();
        }
        assert_eq!(rig.count.wrong(), None);
        assert!(rig.digest.is_of(rig.digest.total()));
    }
}
