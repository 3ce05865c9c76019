//! Databases that a transaction creates, truncates and drops.

use bytes::Bytes;

use super::{Journal, database_id, write_bytes};
use crate::error::WriteError;
use crate::ids::DatabaseId;
use crate::limits::TRANSACTION_DATABASES_MAX;
use crate::txn::catalog::{self, CATALOG};

impl Journal {
    /// Counts a database that is created, truncated or dropped.
    pub(super) fn change_database(&mut self) -> Result<(), WriteError> {
        if self.databases_changed == TRANSACTION_DATABASES_MAX {
            return Err(WriteError::TooManyDatabases {
                max: TRANSACTION_DATABASES_MAX,
            });
        }
        self.databases_changed += 1;
        Ok(())
    }

    /// Gives `name` to a new, empty database. `next` is the next free id as the transaction found
    /// it.
    pub(super) fn create(
        &mut self,
        name: &Bytes,
        next: DatabaseId,
        bytes_max: usize,
    ) -> Result<DatabaseId, WriteError> {
        let next_key = Bytes::from_static(catalog::NEXT_ID_KEY);
        // Another thread of this transaction may have created a database since.
        let own = self.writes.get(&(CATALOG, next_key.clone())).cloned();
        let id = match own.flatten() {
            Some(own) => database_id(&next_key, &own)?,
            None => next,
        };
        let after = catalog::id_after(id, name)?;
        self.change_database()?;
        // Take the id first: whatever fails from here on, nobody else gets it.
        self.write(
            CATALOG,
            next_key,
            Some(catalog::encode_id(after)),
            bytes_max,
        )?;
        let (entry, given) = (Some(catalog::encode_id(id)), Some(name.clone()));
        self.write(CATALOG, catalog::id_key(id), given, bytes_max)?;
        self.write(CATALOG, name.clone(), entry, bytes_max)?;
        self.databases.insert(name.clone(), Some(id));
        Ok(id)
    }

    /// The database to write to: it is created if it does not exist and `next` is the next free id.
    /// `None` when another thread of this transaction has just dropped it: this write comes first.
    pub(super) fn id_for_write(
        &mut self,
        name: &Bytes,
        next: Option<DatabaseId>,
        bytes_max: usize,
    ) -> Result<Option<DatabaseId>, WriteError> {
        match (self.id(name), next) {
            (None, Some(next)) => self.create(name, next, bytes_max).map(Some),
            (id, _) => Ok(id),
        }
    }

    /// Forgets what was written to a database that has lost its name.
    pub(super) fn forget(&mut self, database: DatabaseId) {
        let own = self.writes.range((database, Bytes::new())..);
        let own = own.take_while(|((of, _), _)| *of == database);
        let places: Vec<_> = own.map(|(place, _)| place.clone()).collect();
        for place in places {
            if self.additions.remove(&place).is_some() {
                self.reads.keys.insert(place.clone());
            }
            let value = self.writes.remove(&place).flatten();
            let tally = self.tally(database);
            tally.keys -= 1;
            tally.bytes -= write_bytes(&place.1, value.as_ref());
        }
    }
}
