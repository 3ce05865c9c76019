//! What watches have missed, from the log and the history.

use std::collections::HashMap;
use std::sync::Arc;

use steadfast::{ConsistencyPolicy, ReplicatedEnvironment, SnapshotDatabase};

use super::super::inner::Inner;
use super::super::keys::{Failure, Keys, LogRow, Tables, Version, decode, history_key, number};
use super::super::view::log_bounds;
use super::decode::{Batch, Happened};
use super::index::Index;
use crate::error::Error;

/// A part that has this many bytes of events ends with its revision.
const PART_BYTES_MAX: usize = 1024 * 1024;

/// Changes after which a part ends, whether or not any of them is watched.
const PART_CHANGES_MAX: usize = 4096;

/// A watch that has missed something.
pub(super) struct Behind {
    pub(super) watch: i64,
    pub(super) keys: Keys,
    pub(super) with_previous: bool,
}

/// A part of what was missed.
pub(super) struct Part {
    /// The events at or above the revision that was asked for, up to the one in the batch.
    pub(super) batch: Arc<Batch>,
    /// Those of each watch that has any.
    pub(super) places: HashMap<i64, Arc<[u32]>>,
    /// The revision below which nothing can be read.
    pub(super) compacted: i64,
}

/// Reads what happened from a revision on, as far as a part reaches.
///
/// # Errors
/// Those of a read.
pub(super) async fn read(
    inner: &Arc<Inner>,
    from: i64,
    watches: Vec<Behind>,
) -> Result<Part, Error> {
    let reading = inner.read_blocking(move |snapshot| {
        let tables = Tables::of_snapshot(snapshot)?;
        part(&tables, from, watches)
    });
    reading.await
}

fn part(
    tables: &Tables<SnapshotDatabase<'_>>,
    from: i64,
    watches: Vec<Behind>,
) -> Result<Part, Failure> {
    let mut index = Index::default();
    for (ticket, watch) in (0..).zip(watches) {
        let keys = watch.keys.clone();
        index.add(&keys, ticket, watch);
    }
    let mut revision = tables.state()?.revision;
    let (mut events, mut places) = (Vec::new(), HashMap::<i64, Vec<u32>>::new());
    let (mut bytes, mut changes) = (0, 0);
    for row in tables.log.range(log_bounds(from)) {
        let (last, row) = row?;
        let last = number(&last)?;
        changes += decode_row(
            tables,
            from,
            (last, row),
            &mut index,
            |happened, watches| {
                let place = u32::try_from(events.len()).unwrap_or(u32::MAX);
                for watch in watches {
                    places.entry(*watch).or_default().push(place);
                }
                bytes += happened.bytes();
                events.push(happened);
            },
        )?;
        if bytes >= PART_BYTES_MAX || changes >= PART_CHANGES_MAX {
            revision = last;
            break;
        }
    }
    let places = places.into_iter();
    Ok(Part {
        batch: Arc::new(Batch::new(revision, events)),
        places: places
            .map(|(watch, places)| (watch, places.into()))
            .collect(),
        compacted: tables.compacted()?,
    })
}

/// Hands out the watched events of a row of the log, with their watches. Returns how many events the
/// row has.
fn decode_row(
    tables: &Tables<SnapshotDatabase<'_>>,
    from: i64,
    (last, row): (i64, bytes::Bytes),
    index: &mut Index<Behind>,
    mut found: impl FnMut(Happened, &[i64]),
) -> Result<usize, Failure> {
    let row: LogRow = decode(row)?;
    let count = row.events.len();
    let mut watched = vec![(Vec::new(), false); count];
    let keys = row.events.iter().map(|event| &event.key);
    index.find(keys, |watchers, places| {
        for place in places {
            let (watches, with_previous) = &mut watched[place as usize];
            watches.extend(watchers.values().map(|watch| watch.watch));
            *with_previous |= watchers.values().any(|watch| watch.with_previous);
        }
    });
    for (event, (watches, with_previous)) in row.events.into_iter().zip(watched) {
        let revision = last - event.back;
        if watches.is_empty() || revision < from {
            continue;
        }
        let version = if event.is_delete {
            None
        } else {
            let row = tables.history.get(history_key(&event.key, revision, 0))?;
            row.map(Version::of_row).transpose()?.flatten()
        };
        // Of a put that is compacted meanwhile there is nothing to tell: its watches are, too.
        if !event.is_delete && version.is_none() {
            continue;
        }
        let happened = Happened::new(event, revision, version);
        if with_previous {
            look_up_previous(tables, &happened)?;
        }
        found(happened, &watches);
    }
    Ok(count)
}

/// Looks up the versions before some events, as far as they are not compacted.
///
/// # Errors
/// Those of a read.
pub(super) fn previous(env: &ReplicatedEnvironment, events: &[&Happened]) -> Result<(), Failure> {
    env.read(ConsistencyPolicy::Eventual, |snapshot| {
        let tables = Tables::of_snapshot(snapshot)?;
        events
            .iter()
            .try_for_each(|event| look_up_previous(&tables, event))
    })
}

fn look_up_previous(
    tables: &Tables<SnapshotDatabase<'_>>,
    event: &Happened,
) -> Result<(), Failure> {
    if event.previous == 0 || event.previous_kv.get().is_some() {
        return Ok(());
    }
    let version = tables.version(event.key(), event.previous)?;
    let previous = version.map(|version| {
        let meta = version.meta(event.previous);
        meta.key_value(event.key().clone(), version.value)
    });
    // If somebody else was faster, it is the same.
    event.previous_kv.set(previous).ok();
    Ok(())
}
