//! The names of databases, as the catalog has them on the way through the log.
//!
//! An id is given to one name and never again, so the present catalog names every id of the past but
//! those of databases that have been dropped since.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::engine::{Direction, KeyRange};
use crate::error::FeedError;
use crate::ids::DatabaseId;
use crate::subscription::Change;
use crate::txn::batch::Operation;
use crate::txn::catalog::CATALOG;
use crate::txn::view::{View, ViewError};

/// See the module.
#[derive(Clone, Debug, Default)]
pub(super) struct Names {
    by_id: BTreeMap<DatabaseId, Arc<str>>,
}

impl Names {
    /// The catalog as `view` sees it.
    ///
    /// # Errors
    /// Those of a read.
    pub(super) fn read(view: &View) -> Result<Self, FeedError> {
        let mut names = Self::default();
        let mut rest = Some(KeyRange::all());
        while let Some(range) = rest {
            let chunk = view.chunk(CATALOG, &range, Direction::Forward)?;
            let rows = chunk.rows.iter();
            let named = rows.filter_map(|(key, value)| Some((parse_id(value)?, parse_name(key)?)));
            names.by_id.extend(named);
            rest = chunk.rest;
        }
        Ok(names)
    }

    /// All databases, by name.
    pub(super) fn sorted(&self) -> BTreeMap<Arc<str>, DatabaseId> {
        let pairs = self.by_id.iter();
        pairs.map(|(id, name)| (Arc::clone(name), *id)).collect()
    }

    pub(super) fn of(&self, id: DatabaseId) -> Option<&Arc<str>> {
        self.by_id.get(&id)
    }

    /// Takes over a change of the catalog, and tells what it means for its database. `None` for what
    /// the catalog keeps for itself.
    pub(super) fn follow(&mut self, operation: &Operation) -> Option<Change> {
        let database = parse_name(&operation.key)?;
        self.by_id.retain(|_, name| *name != database);
        let Some(value) = &operation.value else {
            return Some(Change::Dropped { database });
        };
        self.by_id.insert(parse_id(value)?, Arc::clone(&database));
        Some(Change::Created { database })
    }
}

impl From<ViewError> for FeedError {
    fn from(error: ViewError) -> Self {
        match error {
            ViewError::TooOld { .. } => Self::SnapshotTooOld,
            ViewError::Engine(error) => Self::Engine(error),
        }
    }
}

/// The name in a key of the catalog. What begins with a zero byte is none.
fn parse_name(key: &[u8]) -> Option<Arc<str>> {
    let name = std::str::from_utf8(key).ok()?;
    (!name.starts_with('\0')).then(|| name.into())
}

fn parse_id(value: &[u8]) -> Option<DatabaseId> {
    let id = value.try_into().ok().map(u32::from_le_bytes)?;
    Some(DatabaseId(id))
}
