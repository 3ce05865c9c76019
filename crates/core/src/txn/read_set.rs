//! What a transaction has read, for its validation.

use std::collections::BTreeSet;
use std::ops::Bound;

use bytes::Bytes;

use crate::engine::KeyRange;
use crate::ids::DatabaseId;

/// What a transaction read. A commit is valid while none of it has a newer version.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ReadSet {
    pub(crate) keys: BTreeSet<(DatabaseId, Bytes)>,
    pub(crate) ranges: Vec<(DatabaseId, KeyRange)>,
}

impl ReadSet {
    /// Adds a part of a scan, merging it with the last one if the two adjoin.
    pub(crate) fn add_range(&mut self, database: DatabaseId, range: KeyRange) {
        if let Some((last_database, last)) = self.ranges.last_mut()
            && *last_database == database
        {
            match (&last.start, &last.end, &range.start, &range.end) {
                (_, Bound::Included(end), Bound::Excluded(start), _) if end == start => {
                    last.end = range.end;
                    return;
                }
                (Bound::Included(start), _, _, Bound::Excluded(end)) if start == end => {
                    last.start = range.start;
                    return;
                }
                _ => {}
            }
        }
        self.ranges.push((database, range));
    }

    /// Number of keys and ranges.
    pub(crate) fn len(&self) -> usize {
        self.keys.len() + self.ranges.len()
    }
}
