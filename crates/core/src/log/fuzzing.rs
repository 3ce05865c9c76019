//! Records and segments of the log as functions of bytes. See `crate::fuzzing`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::FutureExt;
use uuid::Uuid;

use super::format::{
    Parsed, Place, RECORDS_START, SEGMENT_HEADER_BYTES, decode_record, encode_record, seal_record,
    seal_segment,
};
use super::segment::segment_name;
use super::{Disk, Entry, Log, LogConfig, LogError, LogId, LogIdentity, LogState, MemoryDisk};
use crate::ids::{GroupUuid, Incarnation, LogPosition, NodeId};

const DIR: &str = "/log";
const IDENTITY: LogIdentity = LogIdentity {
    group: GroupUuid(Uuid::from_u128(9)),
    node: NodeId(1),
    incarnation: Incarnation(7),
};
/// The first place of a record.
const START: Place = Place {
    segment: 1,
    offset: RECORDS_START,
};

/// One record, which is the same after being written and read again.
pub(crate) fn record(input: &[u8]) {
    let mut bytes = input.to_vec();
    seal_record(&mut bytes, START, 0);
    let Ok(parsed) = decode_record(&bytes, 0, START) else {
        return;
    };
    let payload = bytes.get(parsed.payload.clone());
    let payload = payload.expect("a payload is within the bytes");
    assert!(parsed.size as usize <= bytes.len());
    let mut written = Vec::new();
    let checksum = encode_record(&mut written, &parsed.link, &parsed.record, payload);
    let again = decode_record(&written, 0, START);
    assert_eq!(again, Ok(Parsed { checksum, ..parsed }));
}

/// A log of one segment: how many of its records are made whole, its header, its records. Opening it
/// makes it such that opening it again changes nothing.
pub(crate) fn segment(input: &[u8]) {
    let Some((&whole, rest)) = input.split_first() else {
        return;
    };
    let Some((header, records)) = rest.split_at_checked(SEGMENT_HEADER_BYTES) else {
        return;
    };
    let disk = MemoryDisk::new();
    disk.create_dir_all(Path::new(DIR))
        .expect("memory takes everything");
    let path = Path::new(DIR).join(segment_name(START.segment));
    disk.plant(&path, &file(header, records, whole));
    let Ok(opened) = open(&disk) else { return };
    let again = open(&disk).expect("it was opened before");
    assert_eq!(opened, again);
}

/// The file of a segment, with the checksums of its header and of its first `whole` records.
fn file(header: &[u8], records: &[u8], whole: u8) -> Vec<u8> {
    let mut bytes = header.to_vec();
    bytes.resize(RECORDS_START as usize, 0);
    bytes.extend(records);
    let length = bytes.len().next_multiple_of(4096);
    bytes.resize(length, 0);
    let mut chain = seal_segment(&mut bytes, IDENTITY, START.segment);
    let mut place = START;
    for _ in 0..whole {
        let Some(left) = bytes.get_mut(place.offset as usize..) else {
            break;
        };
        let Some((checksum, size)) = seal_record(left, place, chain) else {
            break;
        };
        (chain, place.offset) = (checksum, place.offset + size);
    }
    bytes
}

/// What a log holds, all of it read, by a process that is then killed.
fn open(disk: &MemoryDisk) -> Result<(LogState, Vec<Entry>), LogError> {
    let disk = Arc::new(disk.clone());
    let config = LogConfig {
        segment_bytes: 8192,
        ..LogConfig::default()
    };
    let opening = Log::open(disk, PathBuf::from(DIR), IDENTITY, config);
    let (log, _writer) = opening.now_or_never().expect("memory never waits")?;
    let state = log.state();
    let first = state.purged.map_or(0, |purged| purged.position.0 + 1);
    let reading = log.read(LogPosition(first)..LogPosition(u64::MAX), usize::MAX);
    let entries = reading.now_or_never().expect("memory never waits")?;
    let position = |id: Option<LogId>| id.map(|id| id.position);
    let last = entries.last().map(Entry::id).or(state.purged);
    assert_eq!(position(last), position(state.last), "every entry is read");
    Ok((state, entries))
}
