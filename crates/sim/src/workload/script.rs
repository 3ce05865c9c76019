//! What one transaction of a client does.

use bytes::Bytes;
use rand::RngExt;
use rand::rngs::StdRng;
use steadfast::{ReadError, SnapshotDatabase, Transaction as Txn, TransactionDatabase, WriteError};

use crate::check::marker;
use crate::history::{Change, DATABASES, MARKERS, Read, Write};
use crate::world::World;

/// What a transaction does, drawn before it runs, because it may run several times.
pub(super) struct Script {
    pub(super) lists: bool,
    pub(super) gets: Vec<(&'static str, Bytes)>,
    pub(super) ranges: Vec<RangeScript>,
    pub(super) changes: Vec<Change>,
    pub(super) writes: Vec<Write>,
}

#[derive(Clone)]
pub(super) struct RangeScript {
    pub(super) database: &'static str,
    pub(super) from: Bytes,
    pub(super) to: Bytes,
    pub(super) reverse: bool,
    pub(super) limit: usize,
}

impl Script {
    pub(super) fn draw(world: &World, rng: &mut StdRng, id: Option<usize>) -> Self {
        let key = |rng: &mut StdRng| key(world, rng);
        let gets = (0..rng.random_range(0..3)).map(|_| (database(rng), key(rng)));
        let gets = gets.collect();
        let ranges = (0..rng.random_range(0..10) / 8)
            .map(|_| {
                let (one, other) = (key(rng), key(rng));
                RangeScript {
                    database: database(rng),
                    from: one.clone().min(other.clone()),
                    to: one.max(other),
                    reverse: rng.random(),
                    limit: rng.random_range(1..20),
                }
            })
            .collect();
        let (mut changes, mut writes) = (Vec::new(), Vec::new());
        if let Some(id) = id {
            for _ in 0..rng.random_range(0..14) / 12 {
                changes.push(Change {
                    database: database(rng),
                    drops: rng.random(),
                });
            }
            for nth in 0..rng.random_range(1..4) {
                let is_put = rng.random_range(0..5) > 0;
                let value = is_put.then(|| value(rng, world.plan.value_max, id, nth));
                writes.push((database(rng), key(rng), value));
            }
            writes.push((MARKERS, marker(id), Some(Bytes::new())));
        }
        Self {
            lists: rng.random_range(0..6) == 0,
            gets,
            ranges,
            changes,
            writes,
        }
    }

    /// Reads, changes and writes as scripted, and records it.
    pub(super) fn run(
        &self,
        world: &World,
        id: usize,
        txn: &Txn,
        between: impl Fn(),
    ) -> Result<(), WriteError> {
        let reads = self.read(|| txn.list_databases(), |name| txn.database(name))?;
        between();
        self.write(world, id, txn, reads)
    }

    pub(super) fn write(
        &self,
        world: &World,
        id: usize,
        txn: &Txn,
        reads: Vec<Read>,
    ) -> Result<(), WriteError> {
        for change in &self.changes {
            if change.drops {
                txn.drop_database(change.database)?;
            } else {
                txn.truncate_database(change.database)?;
            }
        }
        for (database, key, value) in &self.writes {
            let database = txn.database(database)?;
            match value {
                Some(value) => database.put(key, value)?,
                None => database.delete(key)?,
            }
        }
        let mut history = world.history();
        let record = &mut history.transactions[id];
        record.reads = reads;
        record.changes.clone_from(&self.changes);
        record.writes.clone_from(&self.writes);
        Ok(())
    }

    pub(super) fn read<D: Readable>(
        &self,
        list: impl Fn() -> Result<Vec<String>, D::Error>,
        open: impl Fn(&'static str) -> Result<D, D::Error>,
    ) -> Result<Vec<Read>, D::Error> {
        let mut reads = Vec::new();
        if self.lists {
            reads.push(Read::Databases { names: list()? });
        }
        for (database, key) in &self.gets {
            reads.push(Read::Get {
                database,
                key: key.clone(),
                value: open(database)?.get(key)?,
            });
        }
        for range in &self.ranges {
            let pairs = open(range.database)?.range(range)?;
            let RangeScript {
                database,
                from,
                to,
                reverse,
                limit,
            } = range.clone();
            reads.push(Read::Range {
                database,
                from,
                to,
                reverse,
                limit,
                pairs,
            });
        }
        Ok(reads)
    }
}

pub(super) fn database(rng: &mut StdRng) -> &'static str {
    DATABASES[rng.random_range(0..DATABASES.len())]
}

pub(super) fn key(world: &World, rng: &mut StdRng) -> Bytes {
    Bytes::from(format!("k{:03}", rng.random_range(0..world.plan.keys)))
}

/// A unique value, of at most `max` bytes.
pub(super) fn value(rng: &mut StdRng, max: usize, id: usize, nth: usize) -> Bytes {
    let mut value = format!("{id}.{nth}.").into_bytes();
    // Most values are small: large ones test limits, not ordering.
    let max = if rng.random_range(0..4) == 0 {
        max
    } else {
        max.min(40)
    };
    value.resize(value.len() + rng.random_range(0..=max), b'x');
    Bytes::from(value)
}

/// A database as seen by either kind of transaction.
pub(super) trait Readable {
    type Error;
    fn get(&self, key: &Bytes) -> Result<Option<Bytes>, Self::Error>;
    fn range(&self, range: &RangeScript) -> Result<Vec<(Bytes, Bytes)>, Self::Error>;
}

macro_rules! readable {
    ($database:ident, $error:ident) => {
        impl Readable for $database<'_> {
            type Error = $error;

            fn get(&self, key: &Bytes) -> Result<Option<Bytes>, $error> {
                $database::get(self, key)
            }

            fn range(&self, range: &RangeScript) -> Result<Vec<(Bytes, Bytes)>, $error> {
                let scan = $database::range(self, range.from.clone()..range.to.clone());
                let scan = scan.limit(range.limit);
                let scan = if range.reverse { scan.reverse() } else { scan };
                scan.collect::<Result<_, _>>().map_err(Into::into)
            }
        }
    };
}

readable!(SnapshotDatabase, ReadError);
readable!(TransactionDatabase, WriteError);
