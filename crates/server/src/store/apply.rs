//! What writes do: the requests of a round, one after the other, on one transaction.
//!
//! ```text
//!   Round    the transaction, the revision it has come to, the events so far
//!     └── Change    one request: keys as it has changed them, its events, its revision
//!           keep()  into the transaction, whole; or it is dropped, and nothing has happened
//! ```

use std::collections::BTreeMap;
use std::iter;

use bytes::Bytes;
use prost::Message;
use steadfast::TransactionDatabase;

use super::keys::{
    Failure, Keys, LeaseRow, LogEvent, LogRow, Meta, Rows, STATE, StateRow, Tables, Version,
    history_key, lease_bounds, lease_key,
};
use super::view::{Committed, Item, Items, View};
use super::{compare, range};
use crate::error::Error;
use crate::proto::etcdserverpb::request_op::Request;
use crate::proto::etcdserverpb::response_op::Response;
use crate::proto::etcdserverpb::{
    DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse, RequestOp, ResponseHeader,
    ResponseOp, TxnRequest, TxnResponse,
};

/// The keys of a lease that are deleted in one step have at most this many bytes, and one key more.
const LEASE_STEP_BYTES_MAX: usize = 1024 * 1024;

/// One transaction of the environment, with the requests that have been done on it.
pub(super) struct Round<'t> {
    committed: Committed<TransactionDatabase<'t>>,
    /// With the revisions in full.
    events: Vec<(i64, LogEvent)>,
    is_new_state: bool,
    /// About what the round writes, in bytes and rows.
    pub(super) bytes: usize,
    pub(super) rows: usize,
}

impl<'t> Round<'t> {
    /// # Errors
    /// Those of a read.
    pub(super) fn new(tables: Tables<TransactionDatabase<'t>>) -> Result<Self, Failure> {
        Ok(Self {
            committed: Committed::new(tables)?,
            events: Vec::new(),
            is_new_state: false,
            bytes: 0,
            rows: 0,
        })
    }

    pub(super) fn tables(&self) -> &Tables<TransactionDatabase<'t>> {
        &self.committed.tables
    }

    pub(super) fn state(&self) -> StateRow {
        self.committed.state
    }

    /// Makes another store the owner, or notes its new term.
    pub(super) fn own(&mut self, owner: u64, term: u64) {
        let state = &mut self.committed.state;
        (state.owner, state.term) = (owner, state.term.max(term));
        self.is_new_state = true;
    }

    /// Notes what is written beside changes of keys.
    pub(super) fn wrote(&mut self, rows: usize, bytes: usize) {
        self.rows += rows;
        self.bytes += bytes;
    }

    pub(super) fn change(&self) -> Change<'_, 't> {
        Change {
            round: self,
            keys: BTreeMap::new(),
            events: Vec::new(),
        }
    }

    /// Writes what a request has changed.
    ///
    /// # Errors
    /// Those of a write: then the transaction must be given up.
    pub(super) fn keep(&mut self, changed: Changed) -> Result<(), Failure> {
        if changed.events.is_empty() {
            return Ok(());
        }
        let revision = self.committed.state.revision + 1;
        let tables = &self.committed.tables;
        for event in changed.events {
            let row = history_key(&event.log.key, revision, event.log.step(revision));
            let value = event.version.map(|version| version.encode_to_vec());
            let value = value.unwrap_or_default();
            self.bytes += 2 * row.len() + value.len() + event.log.key.len();
            tables.history.put(&row, &value)?;
            self.events.push((revision, event.log));
            self.rows += 1;
        }
        for (key, entry) in changed.keys {
            let (old, new) = (entry.before, entry.now.map(|(meta, _)| meta));
            match &new {
                Some(meta) => tables.current.put(&key, meta.encode_to_vec())?,
                None => tables.current.delete(&key)?,
            }
            self.bytes += key.len() + 32;
            self.rows += 1;
            let lease = |meta: Option<Meta>| meta.map_or(0, |meta| meta.lease);
            let (old, new) = (lease(old), lease(new));
            if old != new {
                if old != 0 {
                    tables.lease_keys.delete(lease_key(old, &key))?;
                }
                if new != 0 {
                    tables.lease_keys.put(lease_key(new, &key), [])?;
                }
                self.rows += 2;
            }
        }
        self.committed.state.revision = revision;
        self.is_new_state = true;
        Ok(())
    }

    /// Writes what is common to all requests: the log and the state.
    ///
    /// # Errors
    /// Those of a write.
    pub(super) fn end(self, time_ms: u64) -> Result<StateRow, Failure> {
        let Committed { tables, state } = self.committed;
        if self.is_new_state {
            tables.meta.put(STATE, state.encode_to_vec())?;
        }
        if !self.events.is_empty() {
            let last = state.revision;
            let events = self.events.into_iter();
            let events = events.map(|(revision, event)| LogEvent {
                back: last - revision,
                ..event
            });
            let events = events.collect();
            let row = LogRow { time_ms, events };
            tables.log.put(last.to_be_bytes(), row.encode_to_vec())?;
        }
        Ok(state)
    }
}

/// A change of one key by a request.
struct Event {
    log: LogEvent,
    /// What the key is from then on; `None`: deleted.
    version: Option<Version>,
}

/// A key as a request has changed it.
struct Entry {
    /// Before the request.
    before: Option<Meta>,
    now: Option<(Meta, Bytes)>,
}

/// What one request changes, before it is kept.
pub(super) struct Change<'r, 't> {
    round: &'r Round<'t>,
    keys: BTreeMap<Bytes, Entry>,
    events: Vec<Event>,
}

/// The same, apart from the round that it was made on.
pub(super) struct Changed {
    keys: BTreeMap<Bytes, Entry>,
    events: Vec<Event>,
}

impl View for Change<'_, '_> {
    fn revision(&self) -> i64 {
        self.round.committed.state.revision + i64::from(!self.events.is_empty())
    }

    fn is_logged(&self) -> bool {
        false
    }

    fn tables(&self) -> &Tables<impl Rows> {
        &self.round.committed.tables
    }

    fn meta(&self, key: &[u8]) -> Result<Option<Meta>, Failure> {
        match self.keys.get(key) {
            Some(entry) => Ok(entry.now.as_ref().map(|(meta, _)| *meta)),
            None => self.round.committed.meta(key),
        }
    }

    fn latest(&self, keys: &Keys) -> Items<'_> {
        let mut below = self.round.committed.latest(keys).peekable();
        if self.keys.is_empty() {
            return Box::new(below);
        }
        let mut own = self.own(keys).peekable();
        Box::new(iter::from_fn(move || {
            loop {
                let own_is_first = match (own.peek(), below.peek()) {
                    (Some((key, _)), Some(Ok(item))) => **key <= item.key,
                    (own, _) => own.is_some(),
                };
                if !own_is_first {
                    return below.next();
                }
                let (key, entry) = own.next()?;
                below.next_if(|item| matches!(item, Ok(item) if item.key == *key));
                if let Some((meta, value)) = &entry.now {
                    return Some(Ok(Item {
                        key: key.clone(),
                        meta: *meta,
                        value: Some(value.clone()),
                    }));
                }
            }
        }))
    }
}

impl<'r> Change<'r, '_> {
    pub(super) fn done(self) -> Changed {
        Changed {
            keys: self.keys,
            events: self.events,
        }
    }

    /// The entries of a range, in order.
    fn own<'s>(
        &'s self,
        keys: &Keys,
    ) -> impl Iterator<Item = (&'s Bytes, &'s Entry)> + use<'s, 'r> {
        let bounds = if keys.is_empty() {
            Keys::One(Bytes::new()).bounds()
        } else {
            keys.bounds()
        };
        self.keys.range(bounds)
    }

    /// The revision that this request makes, if it changes something.
    fn next_revision(&self) -> i64 {
        self.round.committed.state.revision + 1
    }

    fn header(&self) -> ResponseHeader {
        ResponseHeader {
            revision: self.revision(),
            ..ResponseHeader::default()
        }
    }

    fn item(&self, key: &Bytes) -> Result<Option<Item>, Failure> {
        let own = self.keys.get(key);
        let (meta, value) = match own.map(|entry| &entry.now) {
            Some(now) => (
                now.as_ref().map(|now| now.0),
                now.as_ref().map(|now| now.1.clone()),
            ),
            None => (self.round.committed.meta(key)?, None),
        };
        Ok(meta.map(|meta| Item {
            key: key.clone(),
            meta,
            value,
        }))
    }

    /// # Errors
    /// [`Error::LeaseNotFound`], [`Error::KeyNotFound`], and those of a read.
    pub(super) fn put(&mut self, request: PutRequest) -> Result<PutResponse, Failure> {
        let old = self.item(&request.key)?;
        let is_kept = request.ignore_value || request.ignore_lease;
        let (value, lease) = match &old {
            None if is_kept => return Err(Error::KeyNotFound.into()),
            Some(old) => {
                let value = request.ignore_value.then(|| self.value(old)).transpose()?;
                let lease = request.ignore_lease.then_some(old.meta.lease);
                (value, lease)
            }
            None => (None, None),
        };
        let (value, lease) = (
            value.unwrap_or(request.value),
            lease.unwrap_or(request.lease),
        );
        if lease != 0 && living_lease(&self.round.committed.tables, lease)?.is_none() {
            return Err(Error::LeaseNotFound.into());
        }
        let prev_kv = match &old {
            Some(old) if request.prev_kv => {
                let value = self.value(old)?;
                Some(old.meta.key_value(request.key.clone(), value))
            }
            _ => None,
        };
        let revision = self.next_revision();
        let meta = Meta {
            create: old.as_ref().map_or(revision, |old| old.meta.create),
            modified: revision,
            version: old.as_ref().map_or(0, |old| old.meta.version) + 1,
            lease,
        };
        self.set(request.key, old.map(|old| old.meta), Some((meta, value)));
        Ok(PutResponse {
            header: Some(self.header()),
            prev_kv,
        })
    }

    /// # Errors
    /// Those of a read.
    pub(super) fn delete_range(
        &mut self,
        request: &DeleteRangeRequest,
    ) -> Result<DeleteRangeResponse, Failure> {
        let keys = Keys::of(&request.key, &request.range_end);
        let found: Vec<Item> = self.latest(&keys).collect::<Result<_, _>>()?;
        let mut prev_kvs = Vec::new();
        if request.prev_kv {
            for item in &found {
                let value = self.value(item)?;
                prev_kvs.push(item.meta.key_value(item.key.clone(), value));
            }
        }
        let deleted = i64::try_from(found.len()).unwrap_or(i64::MAX);
        for item in found {
            self.set(item.key, Some(item.meta), None);
        }
        Ok(DeleteRangeResponse {
            header: Some(self.header()),
            deleted,
            prev_kvs,
        })
    }

    /// Deletes the first keys of a lease, in order, at most `keys_max`. Returns whether these were all.
    ///
    /// # Errors
    /// Those of a read.
    pub(super) fn delete_of_lease(&mut self, id: i64, keys_max: usize) -> Result<bool, Failure> {
        let lease_keys = &self.round.committed.tables.lease_keys;
        let (mut keys, mut bytes, mut are_all) = (Vec::new(), 0, true);
        for row in lease_keys.rows(lease_bounds(id)).limit(keys_max + 1) {
            if keys.len() == keys_max || bytes >= LEASE_STEP_BYTES_MAX {
                are_all = false;
                break;
            }
            let key = row?.0.slice(8..);
            bytes += key.len();
            keys.push(key);
        }
        for key in keys {
            if let Some(meta) = self.meta(&key)? {
                self.set(key, Some(meta), None);
            }
        }
        Ok(are_all)
    }

    /// # Errors
    /// Those of the operations; then nothing of it may be kept.
    pub(super) fn txn(&mut self, request: TxnRequest) -> Result<TxnResponse, Failure> {
        let paths = compare::paths(self, &request)?;
        let newest = self.revision();
        self.branch(request, &mut paths.into_iter(), newest)
    }

    /// Does the branch that was chosen; `newest` is the revision before all of it.
    fn branch(
        &mut self,
        request: TxnRequest,
        paths: &mut impl Iterator<Item = bool>,
        newest: i64,
    ) -> Result<TxnResponse, Failure> {
        let succeeded = paths.next().unwrap_or_default();
        let ops = if succeeded {
            request.success
        } else {
            request.failure
        };
        let mut responses = Vec::with_capacity(ops.len());
        for op in ops {
            let response = self.operation(op, paths, newest)?;
            responses.push(ResponseOp {
                response: Some(response),
            });
        }
        Ok(TxnResponse {
            header: Some(ResponseHeader::default()),
            succeeded,
            responses,
        })
    }

    fn operation(
        &mut self,
        op: RequestOp,
        paths: &mut impl Iterator<Item = bool>,
        newest: i64,
    ) -> Result<Response, Failure> {
        Ok(match op.request.ok_or(Error::KeyNotFound)? {
            Request::RequestRange(request) => {
                let mut response = range::answer(self, &request, newest, None, None)?;
                response.header = Some(self.header());
                Response::ResponseRange(response)
            }
            Request::RequestPut(request) => Response::ResponsePut(self.put(request)?),
            Request::RequestDeleteRange(request) => {
                Response::ResponseDeleteRange(self.delete_range(&request)?)
            }
            Request::RequestTxn(request) => {
                // Not generic recursion: the iterator stays the same.
                Response::ResponseTxn(self.branch(request, paths, newest)?)
            }
        })
    }

    /// Sets a key, or deletes one that is there.
    fn set(&mut self, key: Bytes, old: Option<Meta>, now: Option<(Meta, Bytes)>) {
        let version = now.as_ref().map(|(meta, value)| Version {
            create: meta.create,
            number: meta.version,
            lease: meta.lease,
            value: value.clone(),
        });
        let log = LogEvent {
            back: 0,
            is_delete: now.is_none(),
            key: key.clone(),
            previous: old.map_or(0, |old| old.modified),
        };
        self.events.push(Event { log, version });
        let entry = self.keys.entry(key);
        entry
            .or_insert(Entry {
                before: old,
                now: None,
            })
            .now = now;
    }
}

/// The row of a lease that can be kept alive and have keys.
///
/// # Errors
/// Those of a read.
pub(super) fn living_lease(
    tables: &Tables<impl Rows>,
    id: i64,
) -> Result<Option<LeaseRow>, Failure> {
    Ok(lease_row(tables, id)?.filter(|row| !row.is_ending))
}

/// The row of a lease.
///
/// # Errors
/// Those of a read.
pub(super) fn lease_row(tables: &Tables<impl Rows>, id: i64) -> Result<Option<LeaseRow>, Failure> {
    let row = tables.leases.row(&id.to_be_bytes())?;
    row.map(super::keys::decode).transpose()
}
