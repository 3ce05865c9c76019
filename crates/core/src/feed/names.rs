//! The names of databases, as of the current position in the log.
//!
//! An id is given to one name and never reused, and the catalog keeps the mapping: a change of a
//! database that was dropped later still has a name.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::engine::{Direction, KeyRange};
use crate::error::FeedError;
use crate::feed::Change;
use crate::ids::DatabaseId;
use crate::txn::batch::Operation;
use crate::txn::catalog::{CATALOG, Expiry, Named, is_users_name, parse_id_key};
use crate::txn::view::{View, ViewError};

/// See the module.
#[derive(Clone, Debug, Default)]
pub(super) struct Names {
    /// Every id ever given.
    by_id: BTreeMap<DatabaseId, Arc<str>>,
    present: BTreeMap<Arc<str>, DatabaseId>,
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
            for (key, value) in &chunk.rows {
                names.put(key, value);
            }
            rest = chunk.rest;
        }
        Ok(names)
    }

    /// The existing databases, by name.
    pub(super) fn present(&self) -> &BTreeMap<Arc<str>, DatabaseId> {
        &self.present
    }

    /// The name of a database, even of a dropped one.
    pub(super) fn of(&self, id: DatabaseId) -> Option<&Arc<str>> {
        self.by_id.get(&id)
    }

    /// Applies a change of the catalog, and returns what it means for its database. `None` for the
    /// catalog's internal entries.
    pub(super) fn follow(&mut self, operation: &Operation) -> Option<Change> {
        if let Some(value) = &operation.value {
            let database = self.put(&operation.key, value)?;
            return Some(Change::Created { database });
        }
        let database = parse_name(&operation.key)?;
        self.present.remove(&database);
        Some(Change::Dropped { database })
    }

    /// Applies an entry of the catalog; returns the name of the database that it creates.
    fn put(&mut self, key: &[u8], value: &[u8]) -> Option<Arc<str>> {
        if let Some(id) = parse_id_key(key) {
            self.by_id.insert(id, parse_name(value)?);
            return None;
        }
        let name = parse_name(key)?;
        let named = Named::decode(value)?;
        self.present.insert(Arc::clone(&name), named.id);
        (named.expiry != Expiry::SinceLater).then_some(name)
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

/// The name that a user gave in a key of the catalog. Subscribers see nothing of other databases.
fn parse_name(key: &[u8]) -> Option<Arc<str>> {
    let name = std::str::from_utf8(key).ok()?;
    is_users_name(key).then(|| name.into())
}
