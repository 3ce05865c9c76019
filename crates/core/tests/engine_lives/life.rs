//! One life of an engine, and what it must hold when it begins.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use steadfast::engine::{Direction, KeyRange, ScanLimit, StorageEngine};
use steadfast::ids::DatabaseId;

use crate::plan::{Life, Plan, Step};
use crate::world::{Rows, Value, World};

/// Keys per scan; most databases take several scans.
const SCAN_KEYS: usize = 700;

/// What an engine has reported, and must not take back.
#[derive(Clone, Default)]
pub(crate) struct Known {
    /// The last batch that was synced.
    pub(crate) synced: u64,
    /// Databases reclaimed, and synced since.
    pub(crate) gone: BTreeSet<DatabaseId>,
}

impl Known {
    pub(crate) fn learn(&mut self, event: Event) {
        match event {
            Event::Synced(number) => self.synced = self.synced.max(number),
            Event::Gone(database) => drop(self.gone.insert(database)),
            Event::Opening | Event::Applied(_) | Event::Done | Event::Ended => {}
        }
    }
}

#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Event {
    Opening,
    Applied(u64),
    Synced(u64),
    Gone(DatabaseId),
    /// All steps are done; the end begins.
    Done,
    Ended,
}

impl fmt::Display for Event {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Opening => write!(to, "event opening"),
            Self::Applied(number) => write!(to, "event applied {number}"),
            Self::Synced(number) => write!(to, "event synced {number}"),
            Self::Gone(database) => write!(to, "event gone {}", database.0),
            Self::Done => write!(to, "event done"),
            Self::Ended => write!(to, "event ended"),
        }
    }
}

impl Event {
    pub(crate) fn parse(line: &str) -> Option<Self> {
        let mut words = line.strip_prefix("event ")?.split(' ');
        let (kind, number) = (words.next()?, words.next());
        let number = number.map(|number| number.parse::<u64>().unwrap());
        Some(match (kind, number) {
            ("opening", None) => Self::Opening,
            ("applied", Some(number)) => Self::Applied(number),
            ("synced", Some(number)) => Self::Synced(number),
            ("gone", Some(number)) => Self::Gone(DatabaseId(u32::try_from(number).unwrap())),
            ("done", None) => Self::Done,
            ("ended", None) => Self::Ended,
            _ => panic!("{line:?} is no event"),
        })
    }
}

/// A newly opened engine.
pub(crate) struct Living<'a> {
    engine: &'a dyn StorageEngine,
    plan: &'a Plan,
    world: World<'a>,
    known: &'a mut Known,
    tell: &'a mut dyn FnMut(Event),
}

impl<'a> Living<'a> {
    /// Checks everything in the engine against what it must hold.
    pub(crate) fn begin(
        engine: &'a dyn StorageEngine,
        plan: &'a Plan,
        known: &'a mut Known,
        tell: &'a mut dyn FnMut(Event),
    ) -> Self {
        let applied = engine.applied().unwrap();
        let count = applied.as_ref().map_or(0, |applied| applied.vlsn.0);
        let synced = known.synced;
        assert!(
            count >= synced,
            "batch {synced} was synced, {count} are left"
        );
        let world = World::after(plan, count);
        assert_eq!(applied, world.applied());
        assert_eq!(engine.durable(), applied);
        let mut living = Self {
            engine,
            plan,
            world,
            known,
            tell,
        };
        living.read();
        living.report(Event::Synced(count));
        living
    }

    pub(crate) fn live(&mut self, life: &Life, steps_max: usize) {
        for step in life.steps.iter().take(steps_max) {
            match *step {
                Step::Apply { batches } => {
                    for _ in 0..batches {
                        self.engine.apply(&self.world.next_batch()).unwrap();
                        self.report(Event::Applied(self.world.number));
                    }
                }
                Step::Sync => self.sync(),
                Step::Reclaim { keys, rounds } => self.reclaim(keys, rounds),
                Step::Check => drop(self.engine.check().unwrap()),
                Step::Read => self.read(),
                Step::Idle { ms } => {
                    std::thread::sleep(Duration::from_millis(ms));
                }
            }
        }
    }

    /// The last batch that was applied.
    pub(crate) fn number(&self) -> u64 {
        self.world.number
    }

    fn report(&mut self, event: Event) {
        self.known.learn(event);
        (self.tell)(event);
    }

    fn sync(&mut self) {
        self.engine.sync().unwrap();
        self.report(Event::Synced(self.world.number));
    }

    fn reclaim(&mut self, keys: usize, rounds: usize) {
        let durable = self.engine.durable().map_or(0, |applied| applied.vlsn.0);
        let dead = self.world.dead.iter();
        let dead = dead.filter(|(_, (since, _))| *since <= durable);
        let dead: Vec<_> = dead.map(|(database, _)| *database).collect();
        for database in dead {
            if self.known.gone.contains(&database) {
                continue;
            }
            let reclaim = |_| self.engine.reclaim(database, keys).unwrap();
            if (0..rounds).any(reclaim) {
                self.sync();
                self.report(Event::Gone(database));
            }
        }
    }

    /// Checks every row of every database against what it must be.
    fn read(&self) {
        let databases = self.engine.databases().unwrap();
        for (database, rows) in &self.world.live {
            assert!(databases.contains(database), "{database} is not listed");
            self.read_database(*database, rows);
        }
        for (database, (since, rows)) in &self.world.dead {
            let is_gone = self.known.gone.contains(database);
            let left = self.scan(*database, Direction::Forward);
            assert!(
                !is_gone || (left.is_empty() && !databases.contains(database)),
                "{database} is back, with {} rows",
                left.len()
            );
            let back = count(&left, |key, _| !rows.contains_key(key));
            let wrong = count(&left, |key, value| {
                rows.get(key).is_some_and(|row| !row.is(value))
            });
            assert!(
                back + wrong == 0,
                "database {database}, not used since batch {since}, after batch {}: of {} rows {} are \
                 left; {wrong} are wrong and {back} were deleted before",
                self.world.number,
                rows.len(),
                left.len()
            );
            let reversed = self.scan(*database, Direction::Reverse);
            assert!(left.iter().eq(reversed.iter().rev()), "{database} reversed");
        }
        for database in databases {
            let is_known =
                self.world.live.contains_key(&database) || self.world.dead.contains_key(&database);
            // A crash may undo its first batch and leave the database.
            let is_empty = || self.scan(database, Direction::Forward).is_empty();
            assert!(is_known || is_empty(), "{database} has rows and never had");
        }
    }

    fn read_database(&self, database: DatabaseId, rows: &Rows) {
        let forward = self.scan(database, Direction::Forward);
        self.compare(database, "a scan", rows, &forward);
        let mut reversed = self.scan(database, Direction::Reverse);
        reversed.reverse();
        self.compare(database, "a scan in reverse", rows, &reversed);
        let mut got = Vec::new();
        for key in &self.plan.keys {
            let value = self.engine.get(database, key).unwrap();
            got.extend(value.map(|value| (key.clone(), value)));
        }
        got.sort_unstable();
        self.compare(database, "gets", rows, &got);
    }

    fn scan(&self, database: DatabaseId, direction: Direction) -> Vec<(Bytes, Bytes)> {
        let (mut all, mut range) = (Vec::new(), KeyRange::all());
        let limit = ScanLimit::keys(SCAN_KEYS);
        loop {
            let found = self.engine.scan(database, range.clone(), direction, limit);
            let found = found.unwrap();
            let is_last = !limit.is_reached(&found);
            if let Some((last, _)) = found.last() {
                range = range.after(last.clone(), direction);
            }
            all.extend(found);
            if is_last {
                return all;
            }
        }
    }

    fn compare(&self, database: DatabaseId, by: &str, rows: &Rows, found: &[(Bytes, Bytes)]) {
        let agrees = |((key, row), (found, value)): ((&Bytes, &Value), &(Bytes, Bytes))| {
            key == found && row.is(value)
        };
        if rows.len() == found.len() && rows.iter().zip(found).all(agrees) {
            return;
        }
        let present: BTreeSet<_> = found.iter().map(|(key, _)| key).collect();
        let lost = rows.keys().filter(|key| !present.contains(key)).count();
        let back = count(found, |key, _| !rows.contains_key(key));
        let wrong = count(found, |key, value| {
            rows.get(key).is_some_and(|row| !row.is(value))
        });
        panic!(
            "database {database} by {by} after batch {}: of {} rows {lost} are lost and {wrong} wrong; \
             {back} others are there; {} were read",
            self.world.number,
            rows.len(),
            found.len()
        );
    }
}

fn count(pairs: &[(Bytes, Bytes)], what: impl Fn(&Bytes, &Bytes) -> bool) -> usize {
    pairs.iter().filter(|(key, value)| what(key, value)).count()
}
