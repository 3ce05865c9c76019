//! The catalog: maps names to databases.
//!
//! The catalog is itself a database, so creating, truncating and dropping a database is replicated,
//! ordered and conflict-checked like any other write. A transaction that uses a database by name
//! has read the name's entry, and conflicts with a transaction that changes it.
//!
//! | key | value |
//! | --- | --- |
//! | name of a database | its id, `u32` little-endian, and its [`Expiry`], `u8`, unless that is `Never` |
//! | `"\0next"`, which is not a name | the next free id, `u32` little-endian |
//! | `"\0node"`, which is not a name | the newest id given to a node, `u64` little-endian |
//! | `"\0await"`, which is not a name | the nodes with new ids that may ask to be let in (`group/awaited.rs`) |
//! | `"\0id"` and an id, `u32` big-endian | the name to which the id was given; never removed |
//!
//! An id is never reused. A dropped database loses its entry, a truncated one gets a new id: the
//! data under the old id no longer has a name, and each node's engine reclaims it in its own time
//! (`txn/reclaim.rs`).

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use crate::engine::{Direction, EngineError, KeyRange, ScanLimit, StorageEngine};
use crate::error::ReadError;
use crate::ids::{DatabaseId, NodeId};
use crate::limits::DATABASE_NAME_BYTES_MAX;

/// The catalog itself.
pub(crate) const CATALOG: DatabaseId = DatabaseId(0);

/// In each node's engine: the expected digests of its databases (`txn/audit/digest.rs`). Not
/// replicated.
pub(crate) const DIGESTS: DatabaseId = DatabaseId(u32::MAX);

/// Key of the next free id.
pub(crate) const NEXT_ID_KEY: &[u8] = b"\0next";

/// Key of the newest node id given out after the founding of the group.
pub(crate) const NODE_ID_KEY: &[u8] = b"\0node";

/// Key of the nodes with new ids that may ask to be let in.
pub(crate) const AWAITED_KEY: &[u8] = b"\0await";

/// The id stored under [`NODE_ID_KEY`]: 0 while only founders have one.
///
/// # Errors
/// [`EngineError::Corrupt`] when the value is not an id: an id might be given out twice.
pub(crate) fn decode_node_id(value: Option<&Bytes>) -> Result<NodeId, EngineError> {
    let Some(value) = value else {
        return Ok(NodeId(0));
    };
    let bytes = value[..].try_into().map_err(|_| EngineError::Corrupt {
        what: "the catalog's entry of the newest id of a node".to_owned(),
    })?;
    Ok(NodeId(u64::from_le_bytes(bytes)))
}

/// Prefix of the keys that map an id to the name it was given to.
const ID_PREFIX: &[u8] = b"\0id";

/// The id of the first database.
pub(crate) const FIRST_ID: DatabaseId = DatabaseId(CATALOG.0 + 1);

/// Entries of the engine's catalog read in one step.
const STEP: ScanLimit = ScanLimit::keys(256);

/// Turns a name into its catalog key.
///
/// # Errors
/// [`ReadError::DatabaseName`] when no database can have it.
pub(crate) fn check_name(name: &str) -> Result<Bytes, ReadError> {
    let reason = match name {
        "" => "it is empty",
        _ if name.len() > DATABASE_NAME_BYTES_MAX => "it is longer than 255 bytes",
        _ if name.chars().any(char::is_control) => "it contains a control character",
        _ => return Ok(Bytes::copy_from_slice(name.as_bytes())),
    };
    Err(refuse(name, reason))
}

/// The id after `id`.
///
/// # Errors
/// [`ReadError::DatabaseName`] when `name` asks for an id and none is left.
pub(crate) fn id_after(id: DatabaseId, name: &Bytes) -> Result<DatabaseId, ReadError> {
    let next = id.0.checked_add(1).map(DatabaseId);
    let next = next.filter(|next| *next < DIGESTS);
    next.ok_or_else(|| refuse(&text(name), "all database ids have been used"))
}

pub(crate) fn encode_id(id: DatabaseId) -> Bytes {
    Bytes::copy_from_slice(&id.0.to_le_bytes())
}

/// Whether keys of a database may have a time to live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expiry {
    /// None ever had one.
    Never,
    /// Since the transaction that gave the name its id.
    SinceCreated,
    /// Since a later one, which did not create the database.
    SinceLater,
}

/// What the catalog says of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Named {
    pub(crate) id: DatabaseId,
    pub(crate) expiry: Expiry,
}

impl Named {
    /// A database in which no key has had a time to live.
    pub(crate) fn new(id: DatabaseId) -> Self {
        Self {
            id,
            expiry: Expiry::Never,
        }
    }

    pub(crate) fn encode(self) -> Bytes {
        let [a, b, c, d] = self.id.0.to_le_bytes();
        match self.expiry {
            Expiry::Never => encode_id(self.id),
            Expiry::SinceCreated => Bytes::copy_from_slice(&[a, b, c, d, 1]),
            Expiry::SinceLater => Bytes::copy_from_slice(&[a, b, c, d, 2]),
        }
    }

    /// `None` for anything else.
    pub(crate) fn decode(value: &[u8]) -> Option<Self> {
        let (id, rest) = value.split_first_chunk()?;
        let expiry = match rest {
            [] => Expiry::Never,
            [1] => Expiry::SinceCreated,
            [2] => Expiry::SinceLater,
            _ => return None,
        };
        let id = DatabaseId(u32::from_le_bytes(*id));
        Some(Self { id, expiry })
    }
}

/// Key of the name that `id` was given to. The log has changes to databases that were dropped
/// later: readers of the log look up their names here.
pub(crate) fn id_key(id: DatabaseId) -> Bytes {
    Bytes::from([ID_PREFIX, &id.0.to_be_bytes()].concat())
}

/// The id whose name is stored under `key`; `None` for any other key.
pub(crate) fn parse_id_key(key: &[u8]) -> Option<DatabaseId> {
    let id = key.strip_prefix(ID_PREFIX)?.try_into().ok()?;
    Some(DatabaseId(u32::from_be_bytes(id)))
}

/// Whether this key of the catalog is a name.
pub(crate) fn is_name(key: &[u8]) -> bool {
    key.first() != Some(&0)
}

/// Whether this key of the catalog is a name that a user gave, and not that of the group's own
/// rows, which begins with a control character.
pub(crate) fn is_users_name(key: &[u8]) -> bool {
    key.first().is_none_or(|first| !first.is_ascii_control())
}

/// The names among the entries of the catalog that this is true of.
///
/// # Errors
/// The first error among the entries.
pub(crate) fn names(
    entries: impl Iterator<Item = Result<(Bytes, Bytes), ReadError>>,
    counts: impl Fn(&[u8]) -> bool,
) -> Result<Vec<String>, ReadError> {
    let counts =
        |entry: &Result<(Bytes, _), _>| entry.as_ref().map_or(true, |(key, _)| counts(key));
    entries
        .filter(counts)
        .map(|entry| Ok(text(&entry?.0)))
        .collect()
}

/// Calls `visit` for each entry of the engine's catalog, in ascending order of keys.
///
/// # Errors
/// When the engine cannot be read, and the errors of `visit`.
fn visit_entries(
    engine: &dyn StorageEngine,
    mut visit: impl FnMut(&Bytes, &Bytes) -> Result<(), EngineError>,
) -> Result<(), EngineError> {
    let mut rest = KeyRange::all();
    loop {
        let entries = engine.scan(CATALOG, rest.clone(), Direction::Forward, STEP)?;
        entries
            .iter()
            .try_for_each(|(key, value)| visit(key, value))?;
        match entries.last() {
            Some((last, _)) if STEP.is_reached(&entries) => {
                rest = rest.after(last.clone(), Direction::Forward);
            }
            _ => return Ok(()),
        }
    }
}

/// The id in the value of a catalog entry.
///
/// # Errors
/// [`EngineError::Corrupt`] when it is not an id.
pub(crate) fn id_in_entry(key: &[u8], value: &[u8]) -> Result<DatabaseId, EngineError> {
    entry(key, value).map(|entry| entry.id)
}

/// The value of a catalog entry.
///
/// # Errors
/// As [`id_in_entry`].
pub(crate) fn entry(key: &[u8], value: &[u8]) -> Result<Named, EngineError> {
    Named::decode(value).ok_or_else(|| EngineError::Corrupt {
        what: format!("the catalog's entry of {:?}", text(key)),
    })
}

/// The names in the engine's catalog, with their databases.
///
/// # Errors
/// When the engine cannot be read, or its catalog holds anything other than ids.
pub(crate) fn named(
    engine: &dyn StorageEngine,
) -> Result<BTreeMap<Bytes, DatabaseId>, EngineError> {
    let mut named = BTreeMap::new();
    visit_entries(engine, |key, value| {
        if is_name(key) {
            named.insert(key.clone(), id_in_entry(key, value)?);
        }
        Ok(())
    })?;
    Ok(named)
}

/// The databases in the engine that have no name and never will: their id has been given and is not
/// in the engine's catalog. Between two batches the engine holds the state at one VLSN.
///
/// # Errors
/// When the engine cannot be read, or its catalog holds anything other than ids.
pub(crate) fn nameless(engine: &dyn StorageEngine) -> Result<Vec<DatabaseId>, EngineError> {
    let (mut named, mut next) = (BTreeSet::from([CATALOG]), FIRST_ID);
    visit_entries(engine, |key, value| {
        if key == NEXT_ID_KEY {
            next = id_in_entry(key, value)?;
        } else if is_name(key) {
            named.insert(id_in_entry(key, value)?);
        }
        Ok(())
    })?;
    let mut databases = engine.databases()?;
    // An engine may create a database before the batch that puts its first key into it.
    databases.retain(|id| *id < next && !named.contains(id));
    Ok(databases)
}

fn refuse(name: &str, reason: &'static str) -> ReadError {
    ReadError::DatabaseName {
        name: name.to_owned(),
        reason,
    }
}

fn text(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::engine::{Applied, Change, EngineBatch, EngineFactory, MemoryStore};
    use crate::ids::{LogPosition, Term, Vlsn};

    #[test]
    fn a_damaged_entry_is_damage_and_neither_a_bad_name_nor_a_beginning() {
        let damaged = Bytes::from("\x07");
        for (is_damage, what) in [
            (id_in_entry(b"orders", &damaged).map(drop), "orders"),
            (decode_node_id(Some(&damaged)).map(drop), "node"),
        ] {
            let error = is_damage.expect_err("no id has one byte");
            assert!(
                error.is_damage() && error.to_string().contains(what),
                "{error}"
            );
        }
        assert_eq!(decode_node_id(None).expect("none was given"), NodeId(0));
    }

    /// Also covers a database that an engine has created before its creation was applied there.
    #[test]
    fn what_has_an_entry_or_an_id_that_has_not_been_given_is_not_nameless() {
        let engine = MemoryStore::new()
            .open(Path::new("/engine"))
            .expect("opened");
        let put = |database, key: Bytes, value| (database, key, Change::Put(value));
        let (named, next) = (1..=600, DatabaseId(603));
        let mut changes = vec![put(CATALOG, Bytes::from(NEXT_ID_KEY), encode_id(next))];
        changes.extend(named.clone().map(|id| {
            let name = Bytes::from(format!("database {id:03}"));
            put(CATALOG, name, encode_id(DatabaseId(id)))
        }));
        for id in named.chain([601, 602, 603, 700]) {
            changes.push(put(DatabaseId(id), Bytes::from("k"), Bytes::from("v")));
        }
        let applied = Applied {
            term: Term(1),
            position: LogPosition(1),
            vlsn: Vlsn(1),
            membership: Bytes::new(),
        };
        engine
            .apply(&EngineBatch { applied, changes })
            .expect("applied");
        let found = nameless(&*engine).expect("an engine in memory");
        assert_eq!(found, [601, 602].map(DatabaseId));
    }
}
