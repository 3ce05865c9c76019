//! Times to live, as a transaction and a snapshot see them.

use std::ops::Bound;
use std::time::Duration;

use bytes::Bytes;

use super::journal::{Lifetime, check_size};
use super::{SnapshotDatabase, Transaction, TransactionDatabase};
use crate::engine::{Direction, KeyRange};
use crate::error::{ReadError, WriteError};
use crate::ids::DatabaseId;
use crate::limits::TTL_MAX;
use crate::txn::catalog::{self, CATALOG, Expiry, Named};
use crate::txn::lifetimes::{
    Deadline, LIFETIMES, TTL_KEY_BYTES_MAX, current_key, decode_time, left, time_key,
};

/// What a transaction found to have ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ended {
    /// Keys that it deletes.
    pub(crate) keys: u64,
    /// How long ago the first of them was due, in ms of group time.
    pub(crate) late_ms: u64,
    /// Where the index begins after it, if more may be due.
    pub(crate) rest: Option<Bytes>,
}

/// When there is something to do for the times to live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NextDeadline {
    /// Group time, in ms.
    pub(crate) now_ms: u64,
    /// The first deadline in the index.
    pub(crate) at_ms: u64,
}

impl SnapshotDatabase<'_> {
    /// How long `key` has still to live, as far as this node knows: up to a second more than the
    /// master would say, and more by what this node is behind. `None` without a time to live, and
    /// without a key. Zero means that it ends at any moment.
    ///
    /// # Errors
    /// The errors of a read.
    pub fn expires_in(&self, key: impl AsRef<[u8]>) -> Result<Option<Duration>, ReadError> {
        let view = &self.snapshot.view;
        let rows = self.snapshot.look_up(Bytes::from_static(LIFETIMES))?;
        let (Some(id), Some(rows)) = (self.id, rows) else {
            return Ok(None);
        };
        let Some(at) = view.get(rows, &current_key(id, key.as_ref()))? else {
            return Ok(None);
        };
        let now_ms = view.get(rows, &time_key())?.map(|now| decode_time(&now));
        let now_ms = now_ms.transpose().map_err(ReadError::Engine)?;
        let at_ms = decode_time(&at).map_err(ReadError::Engine)?;
        Ok(Some(left(at_ms, now_ms.unwrap_or_default())))
    }
}

impl TransactionDatabase<'_> {
    /// Sets `key` to `value`, and lets the key end when `ttl` has passed: then the master deletes
    /// it, as a transaction of its own. It never ends early; see the guide for how late it may be.
    /// The time begins when the transaction commits. A later `put` or `delete` of the key ends the
    /// time to live, and a later `put_with_ttl` replaces it.
    ///
    /// It counts as up to four keys among those that the transaction writes; in a database in which
    /// any key has had a time to live, each `put` and `delete` counts as up to three.
    ///
    /// # Errors
    /// [`WriteError::TimeToLive`] for a `ttl` under 1 ms or over [`TTL_MAX`], and as
    /// [`TransactionDatabase::put`]; the longest key is 13 bytes shorter than without a time to
    /// live.
    pub fn put_with_ttl(
        &self,
        key: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
        ttl: Duration,
    ) -> Result<(), WriteError> {
        self.set_with_ttl(
            Bytes::copy_from_slice(key.as_ref()),
            Bytes::copy_from_slice(value.as_ref()),
            ttl,
        )
    }

    /// As [`TransactionDatabase::put_with_ttl`], without a copy.
    pub(crate) fn set_with_ttl(
        &self,
        key: Bytes,
        value: Bytes,
        ttl: Duration,
    ) -> Result<(), WriteError> {
        if ttl < Duration::from_millis(1) || ttl > TTL_MAX {
            return Err(WriteError::TimeToLive { ttl });
        }
        // Up: never early.
        let ttl_ms = u64::try_from(ttl.as_micros().div_ceil(1_000)).unwrap_or(u64::MAX);
        self.transaction
            .set(&self.name, key, Some(value), Some(ttl_ms))
    }

    /// How long `key` has still to live, the whole time for a key to which this transaction gives
    /// it. `None` without a time to live, and without a key. Zero means that it ends at any moment.
    ///
    /// # Errors
    /// The errors of a read.
    pub fn expires_in(&self, key: impl AsRef<[u8]>) -> Result<Option<Duration>, WriteError> {
        let transaction = self.transaction;
        let named = transaction.lock().named(&self.name);
        let Some(Named { id, expiry }) = named else {
            return Ok(None);
        };
        let place = (id, Bytes::copy_from_slice(key.as_ref()));
        let own = transaction.lock().lifetimes.get(&place).copied();
        if let Some(own) = own {
            return Ok(own.ttl_ms.map(Duration::from_millis));
        }
        let rows = transaction.lifetimes()?;
        let Some(rows) = rows.filter(|_| expiry != Expiry::Never) else {
            return Ok(None);
        };
        let Some(at) = transaction.get(rows, &current_key(id, &place.1))? else {
            return Ok(None);
        };
        let at_ms = decode_time(&at).map_err(ReadError::Engine)?;
        Ok(Some(left(at_ms, transaction.group_time(rows)?)))
    }
}

impl Transaction {
    /// What a write of a key does to its time to live; `None` if it cannot have one.
    ///
    /// The deadline that the key has is read without being noted as read: if it is outdated by the
    /// time of the commit, an entry of the index is left over, and goes when it is due.
    ///
    /// # Errors
    /// Those of a read and of a write.
    pub(super) fn lifetime(
        &self,
        named: Option<Named>,
        key: &Bytes,
        ttl_ms: Option<u64>,
    ) -> Result<Option<Lifetime>, WriteError> {
        let expiring = named.filter(|named| named.expiry != Expiry::Never);
        let rows = if ttl_ms.is_some() {
            check_size("a key with a time to live", key.len(), TTL_KEY_BYTES_MAX)?;
            self.create_lifetimes()?
        } else if expiring.is_some() && key.len() <= TTL_KEY_BYTES_MAX {
            match self.lifetimes()? {
                Some(rows) => rows,
                None => return Ok(None),
            }
        } else {
            return Ok(None);
        };
        self.group_time(rows)?;
        let mut replaced_ms = None;
        if let Some(Named { id, .. }) = expiring {
            let current = self.view.get(rows, &current_key(id, key));
            let current = current.map_err(ReadError::from)?;
            let current = current.map(|at| decode_time(&at)).transpose();
            replaced_ms = current.map_err(ReadError::Engine)?;
        }
        Ok(Some(Lifetime {
            ttl_ms,
            replaced_ms,
        }))
    }

    /// The database of the rows about times to live, if there is one.
    fn lifetimes(&self) -> Result<Option<DatabaseId>, ReadError> {
        let name = Bytes::from_static(LIFETIMES);
        self.find(&name)?;
        Ok(self.lock().named(&name).map(|named| named.id))
    }

    fn create_lifetimes(&self) -> Result<DatabaseId, WriteError> {
        if let Some(rows) = self.lifetimes()? {
            return Ok(rows);
        }
        let (name, next) = (Bytes::from_static(LIFETIMES), self.next_id()?);
        let mut journal = self.lock();
        // Another thread of this transaction may have created it since.
        let named = match journal.named(&name) {
            Some(named) => named,
            None => journal.create(&name, next, self.bytes_max)?,
        };
        Ok(named.id)
    }

    /// Group time, in ms.
    fn group_time(&self, rows: DatabaseId) -> Result<u64, ReadError> {
        if let Some(now_ms) = self.session.and_then(|session| self.time.now(session)) {
            return Ok(now_ms);
        }
        let noted = self.view.get(rows, &time_key())?;
        let noted_ms = noted.map(|noted| decode_time(&noted)).transpose();
        let noted_ms = noted_ms.map_err(ReadError::Engine)?;
        let noted_ms = noted_ms.unwrap_or_default();
        // Only a master lets it go on.
        let session = self.session;
        Ok(session.map_or(noted_ms, |session| self.time.go_on(session, noted_ms)))
    }

    /// The first deadline in the index from this entry on. `None` while no key has a time to live.
    /// Notes no read.
    ///
    /// # Errors
    /// Those of a read.
    pub(crate) fn next_deadline(&self, from: &Bytes) -> Result<Option<NextDeadline>, ReadError> {
        let Some(rows) = self.lifetimes()? else {
            return Ok(None);
        };
        let now_ms = self.group_time(rows)?;
        let (entries, _) = self.entries(rows, Deadline::range(from, None))?;
        Ok(entries.first().map(|first| NextDeadline {
            now_ms,
            at_ms: first.at_ms,
        }))
    }

    /// Makes sure that group time goes on in this session.
    ///
    /// # Errors
    /// Those of a read.
    pub(crate) fn begin_time(&self) -> Result<(), ReadError> {
        match (self.lifetimes()?, self.session) {
            (Some(rows), _) => {
                self.group_time(rows)?;
            }
            // The first key of the group that has a time to live.
            (None, Some(session)) => {
                self.time.go_on(session, 0);
            }
            (None, None) => {}
        }
        Ok(())
    }

    /// Notes the group time.
    ///
    /// # Errors
    /// Those of a read.
    pub(crate) fn note_time(&self) -> Result<(), ReadError> {
        if let Some(rows) = self.lifetimes()? {
            self.group_time(rows)?;
            self.lock().notes_time = true;
        }
        Ok(())
    }

    /// Deletes keys whose time to live has passed, as many as a chunk of a scan has of the index from
    /// this entry on, and what is left over between them. A put that comes at the same time
    /// conflicts with it.
    ///
    /// # Errors
    /// Those of a read and of a write.
    pub(crate) fn end_lifetimes(&self, from: &Bytes) -> Result<Ended, WriteError> {
        let mut ended = Ended::default();
        let Some(rows) = self.lifetimes()? else {
            return Ok(ended);
        };
        let now_ms = self.group_time(rows)?;
        {
            let mut journal = self.lock();
            (journal.is_expiry, journal.notes_time) = (true, true);
        }
        let (entries, rest) = self.entries(rows, Deadline::range(from, Some(now_ms)))?;
        let first_ms = entries.first().map_or(now_ms, |first| first.at_ms);
        ended.late_ms = now_ms.saturating_sub(first_ms);
        ended.rest = rest;
        for entry in entries {
            // Half of what a transaction may write: the rest is for the rows of one more key.
            if self.lock().written.bytes > self.bytes_max / 2 {
                ended.rest = Some(entry.index_key());
                break;
            }
            ended.keys += u64::from(self.end_lifetime(rows, &entry)?);
        }
        Ok(ended)
    }

    /// Deletes the key if it is due by this entry of the index, and the entry. Returns whether the
    /// key was.
    fn end_lifetime(&self, rows: DatabaseId, entry: &Deadline) -> Result<bool, WriteError> {
        let current_key = current_key(entry.database, &entry.key);
        let current = self.get(rows, &current_key)?;
        let current = current.map(|at| decode_time(&at)).transpose();
        let current_ms = current.map_err(ReadError::Engine)?;
        let is_due = current_ms == Some(entry.at_ms);
        let is_there = is_due && self.has_name(entry.database)?;
        let mut journal = self.lock();
        if is_there {
            let key = entry.key.clone();
            journal.write(entry.database, key, None, self.bytes_max)?;
        }
        if is_due {
            journal.write(rows, current_key, None, self.bytes_max)?;
        }
        journal.write(rows, entry.index_key(), None, self.bytes_max)?;
        Ok(is_there)
    }

    /// Whether a database has not been dropped or truncated.
    fn has_name(&self, database: DatabaseId) -> Result<bool, ReadError> {
        // It is written once, so it need not be noted as read.
        let name = self.view.get(CATALOG, &catalog::id_key(database))?;
        let Some(name) = name else {
            return Ok(false);
        };
        self.find(&name)?;
        let named = self.lock().named(&name);
        Ok(named.is_some_and(|named| named.id == database))
    }

    /// The first entries of a part of the index, and where the rest begins, if there may be more.
    /// They are not noted as read: each is compared with its key's own row before it counts.
    fn entries(
        &self,
        rows: DatabaseId,
        range: KeyRange,
    ) -> Result<(Vec<Deadline>, Option<Bytes>), ReadError> {
        let mut rest = Some(range);
        while let Some(range) = rest {
            let chunk = self.view.chunk(rows, &range, Direction::Forward)?;
            if !chunk.rows.is_empty() {
                let entries = chunk.rows.iter().map(|(row, _)| Deadline::parse(row));
                let entries: Result<Vec<_>, _> = entries.collect();
                let rest = chunk.rest.map(|rest| rest.start);
                return Ok((entries.map_err(ReadError::Engine)?, rest.map(after)));
            }
            rest = chunk.rest;
        }
        Ok((Vec::new(), None))
    }
}

/// The first key behind a bound at which a range starts.
fn after(start: Bound<Bytes>) -> Bytes {
    match start {
        Bound::Included(key) => key,
        Bound::Excluded(key) => [&key[..], &[0]].concat().into(),
        Bound::Unbounded => Bytes::new(),
    }
}
