//! Reads entries by position, from memory or from their segments.
//!
//! Neighbours in a segment are read with one call, and the payloads share its buffer. Each record
//! is verified and must be the entry that was asked for.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use crate::ids::LogPosition;

use super::format::{Place, Record, decode_record};
use super::index::Slot;
use super::segment::Segment;
use super::state::{Located, Shared};
use super::{Damage, Entry, LogError};

/// Largest gap between two entries, in bytes, that is read through rather than skipped.
const GAP_BYTES_MAX: u32 = 4096;
/// Bytes read in one call, unless one entry is larger.
const READ_BYTES_MAX: u32 = 1 << 20;

type OnDisk = (LogPosition, Slot, Arc<Segment>);

pub(super) fn read(
    shared: &Shared,
    range: Range<LogPosition>,
    bytes_max: usize,
) -> Result<Vec<Entry>, LogError> {
    loop {
        let located = shared.locate(range.clone(), bytes_max)?;
        if let Some(entries) = read_located(shared, located)? {
            return Ok(entries);
        }
    }
}

/// The entries, or `None` if they have moved since they were located.
pub(super) fn read_located(
    shared: &Shared,
    located: Located,
) -> Result<Option<Vec<Entry>>, LogError> {
    let mut entries = Vec::with_capacity(located.on_disk.len() + located.cached.len());
    for run in located
        .on_disk
        .chunk_by(|(_, one, _), (_, other, _)| adjoin(*one, *other))
    {
        if let Err(error) = read_run(run, &mut entries) {
            // Once an entry is purged, or truncated and rewritten, its file may be reused for other
            // entries.
            let moved = run
                .iter()
                .any(|(position, slot, _)| !shared.is_at(*position, *slot));
            return if moved { Ok(None) } else { Err(error) };
        }
    }
    entries.extend(located.cached);
    Ok(Some(entries))
}

/// Whether one call should read both. Runs end at multiples of the read size, so that a long range
/// does not take one huge buffer.
fn adjoin(one: Slot, other: Slot) -> bool {
    let end = one.place.offset + one.bytes;
    one.place.segment == other.place.segment
        && (end..=end + GAP_BYTES_MAX).contains(&other.place.offset)
        && one.place.offset / READ_BYTES_MAX == other.place.offset / READ_BYTES_MAX
}

fn read_run(run: &[OnDisk], entries: &mut Vec<Entry>) -> Result<(), LogError> {
    let (_, first, segment) = &run[0];
    let (_, last, _) = &run[run.len() - 1];
    let start = first.place.offset;
    let mut buffer = vec![0; (last.place.offset + last.bytes - start) as usize];
    let read = segment
        .file
        .read_at(&mut buffer, start.into())
        .map_err(|source| LogError::Io {
            path: segment.path.clone(),
            source: Arc::new(source),
        })?;
    buffer.truncate(read);
    let buffer = Bytes::from(buffer);
    for (position, slot, _) in run {
        let at = (slot.place.offset - start) as usize;
        let entry = entry_at(&buffer, at, slot.place, *position);
        entries.push(entry.ok_or_else(|| LogError::Corrupt {
            file: segment.path.clone(),
            offset: slot.place.offset.into(),
            damage: Damage::Record,
        })?);
    }
    Ok(())
}

fn entry_at(buffer: &Bytes, at: usize, place: Place, position: LogPosition) -> Option<Entry> {
    let parsed = decode_record(buffer, at, place).ok()?;
    match parsed.record {
        Record::Entry(kind, id) if id.position == position => Some(Entry {
            term: id.term,
            position,
            kind,
            payload: buffer.slice(parsed.payload),
        }),
        _ => None,
    }
}
