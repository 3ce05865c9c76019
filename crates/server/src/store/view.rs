//! What requests read from: a snapshot, or a transaction with what a request has changed so far.
//!
//! At an older revision, a key is what its newest version up to there is. The versions of a range are
//! one scan of the history; but where little has changed since, most keys still are as they were,
//! and only the changed ones are looked up:
//!
//! ```text
//!   current   a@7  c@40  d@9        revision 20, now 40
//!   log 21..  c, b (deleted)        changed since: b, c
//!   answer    a@7  b@12  c@15  d@9  b and c from the history, the others as they are
//! ```

use std::collections::BTreeSet;
use std::iter::Peekable;
use std::ops::Bound;

use bytes::Bytes;
use steadfast::Scan;

use super::keys::{
    Bounds, Failure, Keys, LogRow, Meta, Rows, StateRow, Tables, Version, decode, history_key,
    history_parts, number,
};
use crate::error::Error;

/// Most changes that are looked through before a range is read from the history alone.
const CHANGES_MAX: usize = 4096;

/// A key of a range, with its value if that was at hand.
#[derive(Clone, Debug)]
pub(super) struct Item {
    pub(super) key: Bytes,
    pub(super) meta: Meta,
    pub(super) value: Option<Bytes>,
}

pub(super) type Items<'v> = Box<dyn Iterator<Item = Result<Item, Failure>> + 'v>;

/// A state of the keys.
pub(super) trait View {
    /// The revision of the state.
    fn revision(&self) -> i64;

    /// Whether the log has everything that led to it.
    fn is_logged(&self) -> bool;

    /// The rows below it.
    fn tables(&self) -> &Tables<impl Rows>;

    /// What a key is like.
    ///
    /// # Errors
    /// Those of a read.
    fn meta(&self, key: &[u8]) -> Result<Option<Meta>, Failure>;

    /// The keys of a range as they are, in order.
    fn latest(&self, keys: &Keys) -> Items<'_>;

    /// The value of a key that this state has.
    ///
    /// # Errors
    /// Those of a read.
    fn value(&self, item: &Item) -> Result<Bytes, Failure> {
        if let Some(value) = &item.value {
            return Ok(value.clone());
        }
        let version = self.tables().version(&item.key, item.meta.modified)?;
        let version = version.ok_or(Failure::Row("a key has no version in the history"))?;
        Ok(version.value)
    }
}

/// A state as it was committed.
pub(super) struct Committed<D> {
    pub(super) tables: Tables<D>,
    pub(super) state: StateRow,
}

impl<D: Rows> Committed<D> {
    /// # Errors
    /// Those of a read.
    pub(super) fn new(tables: Tables<D>) -> Result<Self, Failure> {
        let state = tables.state()?;
        Ok(Self { tables, state })
    }
}

impl<D: Rows> View for Committed<D> {
    fn revision(&self) -> i64 {
        self.state.revision
    }

    fn is_logged(&self) -> bool {
        true
    }

    fn tables(&self) -> &Tables<impl Rows> {
        &self.tables
    }

    fn meta(&self, key: &[u8]) -> Result<Option<Meta>, Failure> {
        self.tables.current.row(key)?.map(decode).transpose()
    }

    fn latest(&self, keys: &Keys) -> Items<'_> {
        match keys {
            // A scan would look further than this key.
            Keys::One(key) => {
                let meta = self.meta(key);
                let item = |meta| Item {
                    key: key.clone(),
                    meta,
                    value: None,
                };
                Box::new(meta.map(|meta| meta.map(item)).transpose().into_iter())
            }
            Keys::Range(..) if keys.is_empty() => Box::new(std::iter::empty()),
            Keys::Range(..) => Box::new(self.tables.current.rows(keys.bounds()).map(|row| {
                let (key, meta) = row?;
                let meta = decode(meta)?;
                Ok(Item {
                    key,
                    meta,
                    value: None,
                })
            })),
        }
    }
}

/// The keys of a range as of a revision, in order. The revision is not above that of the state, and
/// not compacted.
///
/// # Errors
/// Those of a read.
pub(super) fn as_of<'v>(
    view: &'v impl View,
    keys: &Keys,
    revision: i64,
) -> Result<Items<'v>, Failure> {
    if keys.is_empty() {
        return Ok(Box::new(std::iter::empty()));
    }
    if revision == view.revision() {
        return Ok(view.latest(keys));
    }
    let tables = view.tables();
    if let Keys::One(key) = keys {
        let item = version_at(tables, key, revision);
        return Ok(Box::new(item.transpose().into_iter()));
    }
    let changed = if view.is_logged() {
        changed_since(tables, keys, revision)?
    } else {
        None
    };
    let Some(changed) = changed else {
        let rows = tables.history.rows(keys.history_bounds());
        return Ok(Box::new(Versions::new(rows, revision)));
    };
    let unchanged = {
        let changed = changed.clone();
        let is_unchanged = move |item: &Result<Item, Failure>| !matches!(item, Ok(item) if changed.contains(&item.key));
        view.latest(keys).filter(is_unchanged)
    };
    let changed = changed.into_iter();
    let changed = changed.filter_map(move |key| version_at(tables, &key, revision).transpose());
    Ok(Box::new(Merged {
        a: unchanged.peekable(),
        b: changed.peekable(),
    }))
}

/// The keys of a range that have changed after a revision; `None` if too much has.
fn changed_since(
    tables: &Tables<impl Rows>,
    keys: &Keys,
    revision: i64,
) -> Result<Option<BTreeSet<Bytes>>, Failure> {
    let mut changed = BTreeSet::new();
    let mut looked_through = 0;
    for row in tables.log.rows(log_bounds(revision + 1)) {
        let (last, row) = row?;
        let (last, row) = (number(&last)?, decode::<LogRow>(row)?);
        looked_through += row.events.len();
        if looked_through > CHANGES_MAX {
            return Ok(None);
        }
        let later = row.events.into_iter();
        let later = later.filter(|event| last - event.back > revision && keys.contains(&event.key));
        changed.extend(later.map(|event| event.key));
    }
    Ok(Some(changed))
}

/// The rows of the log that have revisions from this one on.
pub(super) fn log_bounds(from: i64) -> Bounds {
    let from = Bytes::copy_from_slice(&from.to_be_bytes());
    (Bound::Included(from), Bound::Unbounded)
}

/// A key as of a revision.
fn version_at(
    tables: &Tables<impl Rows>,
    key: &Bytes,
    revision: i64,
) -> Result<Option<Item>, Failure> {
    let bounds = (
        Bound::Included(history_key(key, 0, 0)),
        Bound::Included(history_key(key, revision, u8::MAX)),
    );
    let newest = tables.history.rows(bounds).reverse().limit(1).next();
    let Some((row, version)) = newest.transpose()? else {
        return Ok(None);
    };
    let (_, modified, _) = history_parts(&row)?;
    item_of(key.clone(), modified, version)
}

fn item_of(key: Bytes, modified: i64, version: Bytes) -> Result<Option<Item>, Failure> {
    Ok(Version::of_row(version)?.map(|version| Item {
        key,
        meta: version.meta(modified),
        value: Some(version.value),
    }))
}

/// The newest version up to a revision of each key, from a scan of the history.
pub(super) struct Versions<'v> {
    rows: Peekable<Scan<'v>>,
    revision: i64,
}

impl<'v> Versions<'v> {
    pub(super) fn new(rows: Scan<'v>, revision: i64) -> Self {
        Self {
            rows: rows.peekable(),
            revision,
        }
    }

    /// The next key that exists at the revision.
    fn step(&mut self) -> Result<Option<Item>, Failure> {
        while let Some((row, version)) = self.rows.next().transpose()? {
            let (key, modified, _) = history_parts(&row)?;
            let mut newest = (modified <= self.revision).then_some((modified, version));
            while let Some(Ok((row, _))) = self.rows.peek() {
                let (next, modified, _) = history_parts(row)?;
                if next != key {
                    break;
                }
                let version = self.rows.next().transpose()?;
                if modified <= self.revision {
                    newest = version.map(|(_, version)| (modified, version));
                }
            }
            let Some((modified, version)) = newest else {
                continue;
            };
            if let Some(item) = item_of(key, modified, version)? {
                return Ok(Some(item));
            }
        }
        Ok(None)
    }
}

impl Iterator for Versions<'_> {
    type Item = Result<Item, Failure>;

    fn next(&mut self) -> Option<Self::Item> {
        self.step().transpose()
    }
}

/// Two sequences of different keys as one, in order.
struct Merged<A: Iterator, B: Iterator> {
    a: Peekable<A>,
    b: Peekable<B>,
}

impl<A, B> Iterator for Merged<A, B>
where
    A: Iterator<Item = Result<Item, Failure>>,
    B: Iterator<Item = Result<Item, Failure>>,
{
    type Item = Result<Item, Failure>;

    fn next(&mut self) -> Option<Self::Item> {
        let b_is_first = match (self.a.peek(), self.b.peek()) {
            (Some(Ok(a)), Some(Ok(b))) => b.key < a.key,
            // An error first.
            (Some(Ok(_)), Some(Err(_))) | (None, _) => true,
            _ => false,
        };
        if b_is_first {
            self.b.next()
        } else {
            self.a.next()
        }
    }
}

/// The revision that a request means.
///
/// # Errors
/// [`Error::FutureRevision`], [`Error::Compacted`].
pub(super) fn wanted_revision(view: &impl View, wanted: i64, newest: i64) -> Result<i64, Failure> {
    if wanted > newest {
        return Err(Error::FutureRevision.into());
    }
    if wanted <= 0 {
        return Ok(view.revision());
    }
    if wanted < view.tables().compacted()? {
        return Err(Error::Compacted.into());
    }
    Ok(wanted)
}
