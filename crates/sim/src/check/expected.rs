//! What the log should hold for a transaction, from what a client asked for.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::{CATALOG, Model, NEXT_ID, given_key, parse_database_id};
use crate::history::{Change, Transaction};
use crate::logfile::LoggedTransaction;

/// What a transaction makes of a database it uses.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Becomes {
    /// It does not exist afterwards.
    Gone,
    /// It exists, under an id that was never used before.
    New,
    /// It exists, unchanged.
    Same,
}

/// What the log should hold for a transaction.
pub(super) struct Expected {
    names: BTreeMap<&'static str, Becomes>,
    rows: BTreeMap<(&'static str, Bytes), Option<Bytes>>,
}

impl Expected {
    /// Applies what was asked for, in order.
    pub(super) fn new(asked: &Transaction, before: &Model) -> Self {
        let mut names = BTreeMap::new();
        let met = |name: &str| {
            let is_there = before.id(name).is_some();
            if is_there {
                Becomes::Same
            } else {
                Becomes::Gone
            }
        };
        for Change { database, drops } in asked.changes.iter().copied() {
            let becomes = names.entry(database).or_insert_with(|| met(database));
            if *becomes != Becomes::Gone {
                *becomes = if drops { Becomes::Gone } else { Becomes::New };
            }
        }
        let mut rows = BTreeMap::new();
        for (database, key, value) in &asked.writes {
            let becomes = names.entry(*database).or_insert_with(|| met(database));
            if value.is_some() && *becomes == Becomes::Gone {
                *becomes = Becomes::New;
            }
            // A delete from a database that does not exist leaves nothing in the log.
            if *becomes != Becomes::Gone {
                rows.insert((*database, key.clone()), value.clone());
            }
        }
        Self { names, rows }
    }

    pub(super) fn compare(&self, logged: &LoggedTransaction, before: &Model) -> Result<(), String> {
        let (mut catalog, mut rows) = (BTreeMap::new(), BTreeMap::new());
        for (database, key, value) in logged.operations.iter().cloned() {
            if database == CATALOG {
                catalog.insert(key, value);
            } else {
                rows.insert((database, key), value);
            }
        }
        let next = catalog.remove(NEXT_ID).flatten();
        let next = next.and_then(|value| parse_database_id(&value));
        let new_ids = before.next_id()..next.unwrap_or(0);
        let mut ids = BTreeMap::new();
        for (name, becomes) in &self.names {
            let (entry, old) = (catalog.remove(name.as_bytes()), before.id(name));
            let new = entry.clone().flatten();
            let new = new.and_then(|value| parse_database_id(&value));
            let is_right = match becomes {
                Becomes::Gone => entry == old.map(|_| None),
                Becomes::New => new.is_some_and(|id| {
                    let given = catalog.remove(&given_key(id)).flatten();
                    new_ids.contains(&id) && given.as_deref() == Some(name.as_bytes())
                }),
                Becomes::Same => entry.is_none(),
            };
            if !is_right {
                return Err(format!("left {name:?} otherwise than it was asked to"));
            }
            ids.insert(*name, new.or(old));
        }
        let given: BTreeSet<_> = ids.values().flatten().collect();
        if given.len() != ids.values().flatten().count() || !catalog.is_empty() {
            return Err("changed names that it was not asked to".into());
        }
        let place = |((name, key), value): (&(&'static str, Bytes), &Option<Bytes>)| {
            let id = ids.get(name).copied().flatten()?;
            Some(((id, key.clone()), value.clone()))
        };
        let expected: BTreeMap<_, _> = self.rows.iter().filter_map(place).collect();
        if rows != expected {
            return Err("wrote other things than it was asked to".into());
        }
        Ok(())
    }
}
