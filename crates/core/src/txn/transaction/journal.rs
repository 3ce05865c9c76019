//! What a transaction has read and written so far.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::error::{ReadError, WriteError};
use crate::ids::DatabaseId;
use crate::limits::{TRANSACTION_DATABASES_MAX, TRANSACTION_KEYS_MAX, TRANSACTION_READS_MAX};
use crate::txn::batch::{OPERATION_HEADER_BYTES, Operation};
use crate::txn::catalog::{self, CATALOG, Expiry, Named};
use crate::txn::lifetimes::{
    Deadline, LIFETIMES, current_key, deadline_after, encode_time, row_bytes, time_key,
};
use crate::txn::read_set::ReadSet;

/// A transaction's catalog changes may take 1/n of its byte limit, on top of it: so a batch, the
/// transaction that overfills it and its names fit into a segment of the log.
const CATALOG_SHARE: usize = 4;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Journal {
    pub(super) reads: ReadSet,
    pub(super) writes: BTreeMap<Place, Option<Bytes>>,
    /// Those of the writes that only add to what is there: see `additions.rs`.
    pub(super) additions: Additions,
    /// What its writes do to times to live, for [`Journal::settle_lifetimes`].
    pub(super) lifetimes: BTreeMap<Place, Lifetime>,
    /// Whether it notes the group time in any case.
    pub(super) notes_time: bool,
    /// Whether what it deletes has reached the end of its time to live.
    pub(super) is_expiry: bool,
    /// What it writes to databases, and to the catalog.
    pub(super) written: Tally,
    pub(super) cataloged: Tally,
    /// Number of times it creates, truncates or drops a database.
    databases_changed: usize,
    /// Catalog entries among its reads.
    catalog_reads: usize,
    /// The databases that the transaction has looked up by name, in their current state: `None` is
    /// one that does not exist.
    pub(super) databases: BTreeMap<Bytes, Option<Named>>,
}

/// The size of a part of a transaction's writes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tally {
    keys: usize,
    /// Encoded, in a batch.
    pub(super) bytes: usize,
}

impl Tally {
    /// What a row takes.
    fn of(key: &Bytes, value: Option<&Bytes>) -> Self {
        Self {
            keys: 1,
            bytes: OPERATION_HEADER_BYTES + key.len() + value.map_or(0, Bytes::len),
        }
    }

    fn add(&mut self, other: Self) {
        self.keys += other.keys;
        self.bytes += other.bytes;
    }

    fn take(&mut self, other: Self) {
        self.keys -= other.keys;
        self.bytes -= other.bytes;
    }
}

/// What a transaction does to the time to live of a key that it puts or deletes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lifetime {
    /// The new one; `None` ends it.
    pub(super) ttl_ms: Option<u64>,
    /// The deadline that the key had in the transaction's snapshot.
    pub(super) replaced_ms: Option<u64>,
}

impl Lifetime {
    /// What its rows take.
    fn tally(self, key: &Bytes) -> Tally {
        let in_index = usize::from(self.ttl_ms.is_some()) + usize::from(self.replaced_ms.is_some());
        let keys = 1 + in_index;
        Tally {
            keys,
            bytes: keys * OPERATION_HEADER_BYTES + row_bytes(key, in_index),
        }
    }
}

/// A key of a database.
pub(super) type Place = (DatabaseId, Bytes);

/// How much is added to each key: see `additions.rs`. The sum of many `i64` fits into an `i128`.
pub(super) type Additions = BTreeMap<Place, i128>;

/// A write of one key.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) place: Place,
    pub(super) value: Option<Bytes>,
    /// `None` in a database in which no key has ever had one.
    pub(super) lifetime: Option<Lifetime>,
}

impl Journal {
    /// What is known of a name that was looked up.
    pub(super) fn named(&self, name: &Bytes) -> Option<Named> {
        self.databases.get(name).copied().flatten()
    }

    fn tally(&mut self, database: DatabaseId) -> &mut Tally {
        if database == CATALOG {
            &mut self.cataloged
        } else {
            &mut self.written
        }
    }

    /// Writes a key of the catalog or of the group's own rows, or one without a time to live.
    ///
    /// # Errors
    /// As [`Journal::write_row`].
    pub(super) fn write(
        &mut self,
        database: DatabaseId,
        key: Bytes,
        value: Option<Bytes>,
        bytes_max: usize,
    ) -> Result<(), WriteError> {
        let row = Row {
            place: (database, key),
            value,
            lifetime: None,
        };
        self.write_row(row, bytes_max)
    }

    /// Changes nothing when a limit is exceeded. `bytes_max` is the limit on user keys and values.
    pub(super) fn write_row(&mut self, row: Row, bytes_max: usize) -> Result<(), WriteError> {
        let Row {
            place,
            value,
            mut lifetime,
        } = row;
        let mut tally = *self.tally(place.0);
        if let Some(replaced) = self.writes.get(&place) {
            tally.take(Tally::of(&place.1, replaced.as_ref()));
        }
        tally.add(Tally::of(&place.1, value.as_ref()));
        if let Some(own) = self.lifetimes.get(&place) {
            tally.take(own.tally(&place.1));
            lifetime = Some(Lifetime {
                ttl_ms: lifetime.and_then(|lifetime| lifetime.ttl_ms),
                ..*own
            });
        }
        if let Some(lifetime) = &lifetime {
            tally.add(lifetime.tally(&place.1));
        }
        if place.0 == CATALOG {
            let what = "the change of the catalog";
            check_size(what, tally.bytes, bytes_max / CATALOG_SHARE)?;
        } else if tally.keys > TRANSACTION_KEYS_MAX {
            return Err(WriteError::TooManyKeys {
                max: TRANSACTION_KEYS_MAX,
            });
        } else {
            check_size("a transaction", tally.bytes, bytes_max)?;
        }
        *self.tally(place.0) = tally;
        if let Some(lifetime) = lifetime {
            self.lifetimes.insert(place.clone(), lifetime);
        }
        self.writes.insert(place, value);
        Ok(())
    }

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

    /// Notes that a key is read.
    pub(super) fn read(&mut self, place: Place) -> Result<(), ReadError> {
        let is_of_catalog = place.0 == CATALOG;
        if self.reads.keys.insert(place) && is_of_catalog {
            self.catalog_reads += 1;
        }
        self.check_reads()
    }

    /// Catalog reads are bounded separately: there is one entry for each name that is used.
    pub(super) fn check_reads(&self) -> Result<(), ReadError> {
        let max = TRANSACTION_READS_MAX;
        let of_databases = self.reads.len() - self.catalog_reads;
        if of_databases.max(self.catalog_reads) > max {
            return Err(ReadError::TooManyReads { max });
        }
        Ok(())
    }

    /// Gives `name` to a new, empty database. `next` is the next free id as the transaction found
    /// it.
    pub(super) fn create(
        &mut self,
        name: &Bytes,
        next: DatabaseId,
        bytes_max: usize,
    ) -> Result<Named, WriteError> {
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
        let named = Named::new(id);
        self.databases.insert(name.clone(), Some(named));
        Ok(named)
    }

    /// The database to write to: it is created if it does not exist and `next` is the next free id.
    /// `None` when another thread of this transaction has just dropped it: this write comes first.
    pub(super) fn named_for_write(
        &mut self,
        name: &Bytes,
        next: Option<DatabaseId>,
        bytes_max: usize,
    ) -> Result<Option<Named>, WriteError> {
        match (self.named(name), next) {
            (None, Some(next)) => self.create(name, next, bytes_max).map(Some),
            (named, _) => Ok(named),
        }
    }

    /// Notes in the catalog that keys of a database may have a time to live.
    ///
    /// # Errors
    /// [`WriteError::TooLarge`].
    pub(super) fn let_expire(
        &mut self,
        name: &Bytes,
        named: Named,
        bytes_max: usize,
    ) -> Result<(), WriteError> {
        if named.expiry != Expiry::Never {
            return Ok(());
        }
        let is_created_here = self.writes.contains_key(&(CATALOG, name.clone()));
        let named = Named {
            expiry: if is_created_here {
                Expiry::SinceCreated
            } else {
                Expiry::SinceLater
            },
            ..named
        };
        self.write(CATALOG, name.clone(), Some(named.encode()), bytes_max)?;
        self.databases.insert(name.clone(), Some(named));
        Ok(())
    }

    /// Forgets what was written to a database that has lost its name.
    pub(super) fn forget(&mut self, database: DatabaseId) {
        let from = (database, Bytes::new());
        let own = self.writes.range(from..);
        let own = own.take_while(|((of, _), _)| *of == database);
        let places: Vec<_> = own.map(|(place, _)| place.clone()).collect();
        for place in places {
            if self.additions.remove(&place).is_some() {
                self.reads.keys.insert(place.clone());
            }
            let value = self.writes.remove(&place).flatten();
            let mut taken = Tally::of(&place.1, value.as_ref());
            if let Some(lifetime) = self.lifetimes.remove(&place) {
                taken.add(lifetime.tally(&place.1));
            }
            self.tally(database).take(taken);
        }
    }

    /// Turns what happens to times to live into rows, now that the transaction asks for its number
    /// at this group time. Returns the earliest deadline that it gives.
    pub(super) fn settle_lifetimes(&mut self, now_ms: u64) -> Option<u64> {
        let rows = self.named(&Bytes::from_static(LIFETIMES))?.id;
        if self.lifetimes.is_empty() && !self.notes_time {
            return None;
        }
        let mut earliest: Option<u64> = None;
        for ((database, key), lifetime) in std::mem::take(&mut self.lifetimes) {
            let current = (rows, current_key(database, &key));
            let mut entry = Deadline {
                at_ms: lifetime.replaced_ms.unwrap_or_default(),
                database,
                key,
            };
            if lifetime.replaced_ms.is_some() {
                self.writes.insert((rows, entry.index_key()), None);
            }
            let at_ms = lifetime.ttl_ms.map(|ttl_ms| deadline_after(now_ms, ttl_ms));
            self.writes.insert(current, at_ms.map(encode_time));
            if let Some(at_ms) = at_ms {
                entry.at_ms = at_ms;
                self.writes
                    .insert((rows, entry.index_key()), Some(Bytes::new()));
                earliest = Some(earliest.map_or(at_ms, |earliest| earliest.min(at_ms)));
            }
        }
        self.writes
            .insert((rows, time_key()), Some(encode_time(now_ms)));
        earliest
    }

    /// What it read, and its writes in the order of a batch.
    pub(super) fn into_parts(self) -> (ReadSet, Vec<Operation>) {
        let is_expiry = self.is_expiry;
        let operations = self.writes.into_iter();
        let operations = operations.map(|((database, key), value)| Operation {
            expires: is_expiry && value.is_none(),
            database,
            key,
            value,
        });
        (self.reads, operations.collect())
    }
}

/// # Errors
/// [`ReadError::Engine`] when the entry of the catalog is damaged.
pub(super) fn database_id(key: &Bytes, entry: &Bytes) -> Result<DatabaseId, ReadError> {
    catalog::id_in_entry(key, entry).map_err(ReadError::Engine)
}

pub(super) fn check_size(what: &'static str, actual: usize, max: usize) -> Result<(), WriteError> {
    if actual <= max {
        Ok(())
    } else {
        Err(WriteError::TooLarge { what, actual, max })
    }
}
