//! The state with which a subscription begins: one snapshot, in parts.
//!
//! A digest of all rows is checked against what the node's engine must hold as of that transaction:
//! a state that contradicts it never completes.
//!
//! Each part is read on a thread of its own, since it may wait for the engine's disk. The snapshot
//! stays open meanwhile, and ends like any other when it gets too old.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::engine::{Direction, KeyRange, RowDigest};
use crate::error::FeedError;
use crate::feed::names::Names;
use crate::feed::{FeedEvent, Filter, StatePart, stopped};
use crate::ids::{DatabaseId, Vlsn};
use crate::node::Node;
use crate::plural::plural;
use crate::txn::catalog::{CATALOG, Named};
use crate::txn::lifetimes::{
    LIFETIMES, current_key, decode_time, left, parse_current_key, time_key,
};
use crate::txn::view::{View, ViewError};

/// Bytes of keys and values in one part, unless one row is larger.
const PART_BYTES_MAX: usize = 1024 * 1024;
/// How long the end of a state waits for its digest: the reader must not think the node silent.
const VOUCH_MAX: Duration = Duration::from_secs(1);

/// See the module.
pub(super) struct StateScan {
    view: View,
    names: Names,
    lifetimes: Option<Lifetimes>,
    /// The ranges left, the current one first.
    ranges: VecDeque<StateRange>,
    /// Rows read from the current range.
    rows: VecDeque<(Bytes, Bytes)>,
    /// What was read of each database, if everything is read.
    read: Option<BTreeMap<DatabaseId, RowDigest>>,
    /// The deadline for the digest at the end.
    vouched_until: Option<Instant>,
}

/// The times to live in the snapshot.
#[derive(Clone, Copy)]
struct Lifetimes {
    rows: DatabaseId,
    /// Group time, in milliseconds.
    now_ms: u64,
}

struct StateRange {
    database: Arc<str>,
    id: DatabaseId,
    /// `None` once everything in it has been read.
    rest: Option<KeyRange>,
}

impl StateScan {
    /// # Errors
    /// Those of a read.
    pub(super) fn begin(node: &Node, filter: &Filter) -> Result<Self, FeedError> {
        let view = node.view();
        // So that its digest is known by the time the last row has been read.
        node.flush.want();
        let names = Names::read(&view)?;
        let ranges = names.present().iter().flat_map(|(database, id)| {
            let ranges = filter.ranges(database).into_iter();
            ranges.map(move |range| StateRange {
                database: Arc::clone(database),
                id: *id,
                rest: Some(range),
            })
        });
        let databases = names.present().iter();
        let read = databases.map(|(_, id)| (*id, RowDigest::default()));
        let read = filter.is_all().then(|| read.collect());
        Ok(Self {
            ranges: ranges.collect(),
            read,
            vouched_until: None,
            rows: VecDeque::new(),
            lifetimes: Lifetimes::find(&view)?,
            view,
            names,
        })
    }

    /// Starts reading the next part.
    ///
    /// # Errors
    /// When no thread can be started for it.
    pub(super) fn step(
        mut self,
        node: &Node,
    ) -> Result<oneshot::Receiver<(Self, StatePart)>, FeedError> {
        let work = async move {
            let part = self.next();
            (self, part)
        };
        let running = node.machine.run_in_background("steadfast-state", work);
        running.map_err(|error| stopped(&error.to_string()))
    }

    /// The digest of the state, after checking that the rows read match it. `None` if not
    /// everything was read, or the engine does not reach this transaction in time: an older
    /// snapshot may hold it back. May be dropped and called again.
    ///
    /// # Errors
    /// When the rows read are not what the engine must hold.
    pub(super) async fn vouch(&mut self, node: &Node) -> Result<Option<u128>, FeedError> {
        let deadline = Instant::now() + VOUCH_MAX;
        let deadline = *self.vouched_until.get_or_insert(deadline);
        let Some(read) = &self.read else {
            return Ok(None);
        };
        let at = self.view.at();
        let Some(digest) = node.digest_at(at, deadline).await else {
            return Ok(None);
        };
        let wrong = read.iter().find_map(|(id, found)| {
            let right = digest.database(*id).filter(|right| right != found)?;
            Some((digest.name(*id), found.rows, right.rows))
        });
        if let Some((name, found, right)) = wrong {
            node.audit.want_count(false);
            return Err(stopped(&format!(
                "its state contradicts its log: {found} {} read of {name}, but the log gave it \
                 {right}, or other keys and values",
                plural(found, "row was", "rows were"),
            )));
        }
        Ok(Some(digest.total().sum()))
    }

    /// The last transaction of the snapshot, and the names in it.
    pub(super) fn end(self) -> (Vlsn, Names) {
        (self.view.at(), self.names)
    }

    fn next(&mut self) -> StatePart {
        let Some(range) = self.ranges.front_mut() else {
            return Ok(None);
        };
        let (mut part, mut bytes) = (Vec::new(), 0);
        loop {
            while let Some((key, value)) = self.rows.front() {
                bytes += key.len() + value.len();
                if bytes > PART_BYTES_MAX && !part.is_empty() {
                    return state(&self.view, self.lifetimes, range, part).map(Some);
                }
                part.extend(self.rows.pop_front());
            }
            let Some(rest) = range.rest.take() else {
                let part = state(&self.view, self.lifetimes, range, part)?;
                self.ranges.pop_front();
                return Ok(Some(part));
            };
            let chunk = self.view.chunk(range.id, &rest, Direction::Forward)?;
            if let Some(read) = self.read.as_mut().and_then(|read| read.get_mut(&range.id)) {
                let rows = chunk.rows.iter();
                rows.for_each(|(key, value)| read.add(range.id, key, value));
            }
            self.rows.extend(chunk.rows);
            range.rest = chunk.rest;
        }
    }
}

fn state(
    view: &View,
    lifetimes: Option<Lifetimes>,
    range: &StateRange,
    rows: Vec<(Bytes, Bytes)>,
) -> Result<FeedEvent, FeedError> {
    let expiring = match lifetimes {
        Some(lifetimes) => lifetimes.of(view, range.id, &rows)?,
        None => Vec::new(),
    };
    Ok(FeedEvent::State {
        database: Arc::clone(&range.database),
        rows,
        expiring,
    })
}

impl Lifetimes {
    /// `None` where no key ever had a time to live.
    fn find(view: &View) -> Result<Option<Self>, FeedError> {
        let named = view.get(CATALOG, &Bytes::from_static(LIFETIMES))?;
        let Some(Named { id: rows, .. }) = named.and_then(|named| Named::decode(&named)) else {
            return Ok(None);
        };
        let now = view.get(rows, &time_key())?;
        let now_ms = now.map(|now| decode_time(&now)).transpose();
        Ok(Some(Self {
            rows,
            now_ms: now_ms.map_err(ViewError::Engine)?.unwrap_or_default(),
        }))
    }

    /// Those of `rows`, which are in the order of their keys and all of `database`'s between the
    /// first and the last one: the index in `rows`, and what is left.
    fn of(
        self,
        view: &View,
        database: DatabaseId,
        rows: &[(Bytes, Bytes)],
    ) -> Result<Vec<(usize, Duration)>, FeedError> {
        let mut found = Vec::new();
        let (Some((first, _)), Some((last, _))) = (rows.first(), rows.last()) else {
            return Ok(found);
        };
        let mut rest = Some(KeyRange {
            start: Bound::Included(current_key(database, first)),
            end: Bound::Included(current_key(database, last)),
        });
        let mut keys = rows.iter().map(|(key, _)| key).enumerate().peekable();
        while let Some(range) = rest {
            let chunk = view.chunk(self.rows, &range, Direction::Forward)?;
            for (row, deadline) in &chunk.rows {
                let Some(key) = parse_current_key(row, database) else {
                    continue;
                };
                while keys.next_if(|(_, earlier)| earlier[..] < *key).is_some() {}
                if let Some((index, _)) = keys.next_if(|(_, same)| same[..] == *key) {
                    let at_ms = decode_time(deadline).map_err(ViewError::Engine)?;
                    found.push((index, left(at_ms, self.now_ms)));
                }
            }
            rest = chunk.rest;
        }
        Ok(found)
    }
}
