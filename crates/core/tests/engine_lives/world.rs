//! What an engine must hold after any number of batches, recomputed entirely from the seed.

use std::collections::BTreeMap;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use steadfast::engine::{Applied, Change, EngineBatch};
use steadfast::ids::{DatabaseId, LogPosition, Term, Vlsn};

use crate::plan::{Plan, one_of};

/// On average, one in this many batches takes a database out of use.
const BATCHES_PER_DROP: f64 = 25.0;
/// One in this many values is large.
const VALUES_PER_LARGE: f64 = 1_500.0;
const LARGE_BYTES_MAX: u32 = 100_000;

pub(crate) type Rows = BTreeMap<Bytes, Value>;

/// A value that records which batch put it there, and for which key.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Value {
    number: u64,
    key: u32,
    bytes: u32,
}

impl Value {
    pub(crate) fn bytes(self) -> Bytes {
        let mut bytes = self.head().to_vec();
        bytes.resize(self.bytes as usize, b'v');
        bytes.into()
    }

    pub(crate) fn is(self, bytes: &[u8]) -> bool {
        let head = self.head();
        let (found, rest) = bytes.split_at(bytes.len().min(head.len()));
        bytes.len() == self.bytes as usize
            && found == &head[..found.len()]
            && rest.iter().all(|byte| *byte == b'v')
    }

    fn head(self) -> [u8; 12] {
        let mut head = [0; 12];
        head[..8].copy_from_slice(&self.number.to_be_bytes());
        head[8..].copy_from_slice(&self.key.to_be_bytes());
        head
    }
}

/// The state after a number of batches.
pub(crate) struct World<'a> {
    plan: &'a Plan,
    pub(crate) number: u64,
    slots: Vec<DatabaseId>,
    /// Databases in use that have received a put.
    pub(crate) live: BTreeMap<DatabaseId, Rows>,
    /// Databases no longer in use, with the number of the batch that ended their use.
    pub(crate) dead: BTreeMap<DatabaseId, (u64, Rows)>,
}

impl<'a> World<'a> {
    pub(crate) fn after(plan: &'a Plan, count: u64) -> Self {
        let mut world = Self {
            plan,
            number: 0,
            slots: (0..plan.slots).map(DatabaseId).collect(),
            live: BTreeMap::new(),
            dead: BTreeMap::new(),
        };
        while world.number < count {
            world.advance();
        }
        world
    }

    /// What the previous batch records about itself.
    pub(crate) fn applied(&self) -> Option<Applied> {
        (self.number > 0).then(|| Applied {
            term: Term(self.plan.seed),
            position: LogPosition(self.number),
            vlsn: Vlsn(self.number),
            membership: Bytes::from(self.number.to_string()),
        })
    }

    /// Advances by one batch, which depends only on the seed and its number.
    pub(crate) fn advance(&mut self) -> BTreeMap<(DatabaseId, Bytes), Option<Value>> {
        self.number += 1;
        let mut chance = StdRng::seed_from_u64(self.plan.seed << 32 | self.number);
        if chance.random_bool(1.0 / BATCHES_PER_DROP) {
            let slot = chance.random_range(0..self.slots.len());
            let dropped = self.slots[slot];
            if let Some(rows) = self.live.remove(&dropped) {
                self.dead.insert(dropped, (self.number, rows));
                self.slots[slot].0 += self.plan.slots;
            }
        }
        let changes = self.changes(&mut chance);
        for ((database, key), value) in &changes {
            if let Some(value) = value {
                let rows = self.live.entry(*database).or_default();
                rows.insert(key.clone(), *value);
            } else if let Some(rows) = self.live.get_mut(database) {
                rows.remove(key);
            }
        }
        changes
    }

    fn changes(&self, chance: &mut StdRng) -> BTreeMap<(DatabaseId, Bytes), Option<Value>> {
        let keys = &self.plan.keys;
        let size = one_of(chance, &[1, 10, self.plan.batch_max, self.plan.batch_max]);
        let size = chance.random_range(0..=size);
        let puts = one_of(chance, &[1.0, 1.0, 0.75, 0.5, 0.0]);
        // Neighbours in one database, or any keys.
        let run = chance.random_bool(0.5).then(|| {
            let slot = chance.random_range(0..self.slots.len());
            (slot, chance.random_range(0..keys.len()))
        });
        let mut changes = BTreeMap::new();
        for nth in 0..size {
            let (slot, key) = match run {
                Some((slot, first)) => (slot, (first + nth) % keys.len()),
                None => (
                    chance.random_range(0..self.slots.len()),
                    chance.random_range(0..keys.len()),
                ),
            };
            let value = chance.random_bool(puts).then(|| Value {
                number: self.number,
                key: u32::try_from(key).unwrap(),
                bytes: self.value_bytes(chance),
            });
            changes.insert((self.slots[slot], keys[key].clone()), value);
        }
        changes
    }

    fn value_bytes(&self, chance: &mut StdRng) -> u32 {
        let is_large = chance.random_bool(1.0 / VALUES_PER_LARGE);
        chance.random_range(
            0..=if is_large {
                LARGE_BYTES_MAX
            } else {
                self.plan.value_max
            },
        )
    }

    /// The next batch.
    pub(crate) fn next_batch(&mut self) -> EngineBatch {
        let changes = self.advance().into_iter();
        let changes = changes.map(|((database, key), value)| {
            let change = value.map_or(Change::Delete, |value| Change::Put(value.bytes()));
            (database, key, change)
        });
        EngineBatch {
            changes: changes.collect(),
            applied: self.applied().unwrap(),
        }
    }
}
