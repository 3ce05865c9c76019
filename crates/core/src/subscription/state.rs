//! The state with which a subscription begins: one snapshot, in parts.
//!
//! Each part is read on a thread of its own, since it may wait for the engine's disk. The snapshot is
//! held meanwhile, and ends as any other does when it gets too old.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::oneshot;

use crate::engine::{Direction, KeyRange};
use crate::error::FeedError;
use crate::ids::{DatabaseId, Vlsn};
use crate::node::Node;
use crate::subscription::names::Names;
use crate::subscription::{FeedEvent, Filter, StatePart, stopped};
use crate::txn::view::View;

/// Bytes of keys and values in one part, unless one row is larger.
const PART_BYTES_MAX: usize = 1024 * 1024;

/// See the module.
pub(super) struct StateScan {
    view: View,
    names: Names,
    /// What is left, the present range first.
    ranges: VecDeque<StateRange>,
    /// Rows of the present range that have been read.
    rows: VecDeque<(Bytes, Bytes)>,
}

struct StateRange {
    database: Arc<str>,
    id: DatabaseId,
    /// `None` when everything in it has been read.
    rest: Option<KeyRange>,
}

impl StateScan {
    /// # Errors
    /// Those of a read.
    pub(super) fn begin(node: &Node, filter: &Filter) -> Result<Self, FeedError> {
        let view = node.view();
        let names = Names::read(&view)?;
        let ranges = names.present().iter().flat_map(|(database, id)| {
            let ranges = filter.ranges(database).into_iter();
            ranges.map(move |range| StateRange {
                database: Arc::clone(database),
                id: *id,
                rest: Some(range),
            })
        });
        Ok(Self {
            ranges: ranges.collect(),
            rows: VecDeque::new(),
            view,
            names,
        })
    }

    /// Begins to read the next part.
    ///
    /// # Errors
    /// When there is no thread for it.
    pub(super) fn step(
        mut self,
        node: &Node,
    ) -> Result<oneshot::Receiver<(Self, StatePart)>, FeedError> {
        let work = async move {
            let part = self.next();
            (self, part)
        };
        let running = node.machine.run("steadfast-state", work);
        running.map_err(|error| stopped(&error.to_string()))
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
                    return Ok(Some(state(range, part)));
                }
                part.extend(self.rows.pop_front());
            }
            let Some(rest) = range.rest.take() else {
                let part = state(range, part);
                self.ranges.pop_front();
                return Ok(Some(part));
            };
            let chunk = self.view.chunk(range.id, &rest, Direction::Forward)?;
            self.rows.extend(chunk.rows);
            range.rest = chunk.rest;
        }
    }
}

fn state(range: &StateRange, rows: Vec<(Bytes, Bytes)>) -> FeedEvent {
    FeedEvent::State {
        database: Arc::clone(&range.database),
        rows,
    }
}
