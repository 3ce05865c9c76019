//! The bytes of the log: segment headers and records. `docs/format.md` has the diagrams.
//!
//! Everything is little-endian at fixed offsets, each computed from the one before. A record states
//! its own place ([`Place`]) and the checksum of the record before it, so bytes written elsewhere,
//! or in a former life of the file, are never valid here.
//!
//! Decoding is total: any bytes yield a record or an [`Invalid`], never a panic.

use std::ops::Range;

use crate::ids::{GroupUuid, Incarnation, LogPosition, NodeId, Term};
use crate::planted::{self, Bug};

use super::{EntryKind, LogId, LogIdentity, Vote};

/// The version that this code writes, for segments and records alike.
pub(super) const VERSION: u16 = 1;
/// Bytes before the first record. A header has its own block: writing records never rewrites it.
pub(super) const RECORDS_START: u32 = 4096;
/// Records start at multiples of this, so that a search for them has few places to try.
pub(super) const RECORD_ALIGNMENT: usize = 8;

const MAGIC: [u8; 8] = *b"STDFSTLG";

/// No term and no position comes near this.
const NUMBER_MAX: u64 = u64::MAX / 2;

// Segment header.
const SEGMENT_CHECKSUM: usize = 8;
const SEGMENT_VERSION: usize = SEGMENT_CHECKSUM + 4;
const SEGMENT_FLAGS: usize = SEGMENT_VERSION + 2;
const SEGMENT_SEQUENCE: usize = SEGMENT_FLAGS + 2;
const SEGMENT_PREVIOUS_END: usize = SEGMENT_SEQUENCE + 4;
const SEGMENT_PREVIOUS_CHECKSUM: usize = SEGMENT_PREVIOUS_END + 4;
const SEGMENT_BYTES: usize = SEGMENT_PREVIOUS_CHECKSUM + 4;
const SEGMENT_GROUP: usize = SEGMENT_BYTES + 4;
const SEGMENT_NODE: usize = SEGMENT_GROUP + 16;
const SEGMENT_INCARNATION: usize = SEGMENT_NODE + 8;
const SEGMENT_PURGED: usize = SEGMENT_INCARNATION + 8;
const SEGMENT_LAST: usize = SEGMENT_PURGED + 16;
const SEGMENT_COMMITTED: usize = SEGMENT_LAST + 16;
const SEGMENT_VOTE: usize = SEGMENT_COMMITTED + 16;
/// Bytes of a segment header, in front of zeros up to [`RECORDS_START`].
pub(super) const SEGMENT_HEADER_BYTES: usize = SEGMENT_VOTE + 16;

const HAS_PURGED: u16 = 1;
const HAS_LAST: u16 = 2;
const HAS_COMMITTED: u16 = 4;
const HAS_VOTE: u16 = 8;
const VOTE_COMMITTED: u16 = 16;

// Record header.
const RECORD_CHECKSUM: usize = 0;
const RECORD_LENGTH: usize = RECORD_CHECKSUM + 4;
const RECORD_VERSION: usize = RECORD_LENGTH + 4;
const RECORD_KIND: usize = RECORD_VERSION + 2;
const RECORD_FLAG: usize = RECORD_KIND + 1;
const RECORD_PREVIOUS: usize = RECORD_FLAG + 1;
const RECORD_PLACE: usize = RECORD_PREVIOUS + 4;
const RECORD_SYNCED_BELOW: usize = RECORD_PLACE + 8;
const RECORD_TERM: usize = RECORD_SYNCED_BELOW + 8;
const RECORD_NUMBER: usize = RECORD_TERM + 8;
/// Bytes of a record before its payload.
pub(super) const RECORD_HEADER_BYTES: usize = RECORD_NUMBER + 8;

const KIND_BLANK: u8 = 1;
const KIND_TRANSACTIONS: u8 = 2;
const KIND_MEMBERSHIP: u8 = 3;
const KIND_VOTE: u8 = 4;
const KIND_MARK: u8 = 5;
const KIND_TRUNCATION: u8 = 6;
const KIND_PURGE: u8 = 7;

/// A point in the log's bytes. Points are in the order in which the bytes were written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    /// Sequence number of the segment.
    pub(super) segment: u32,
    /// Bytes from the start of its file.
    pub(super) offset: u32,
}

impl Place {
    fn to_number(self) -> u64 {
        u64::from(self.segment) << 32 | u64::from(self.offset)
    }

    fn from_number(number: u64) -> Self {
        let [low, high] = [number & u64::from(u32::MAX), number >> 32];
        let half = |half| u32::try_from(half).expect("half of 64 bits");
        Self {
            segment: half(high),
            offset: half(low),
        }
    }
}

/// The state of the log after some record, apart from its entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) purged: Option<LogId>,
    /// The last entry, or `purged` when there is none above it.
    pub(super) last: Option<LogId>,
    pub(super) committed: Option<LogId>,
    pub(super) vote: Option<Vote>,
}

impl Head {
    /// Applies one more record.
    pub(super) fn apply(&mut self, record: &Record) {
        match *record {
            Record::Entry(_, id) => self.last = Some(id),
            Record::Vote(vote) => self.vote = Some(vote),
            Record::Mark(committed) => self.committed = committed.or(self.committed),
            Record::Truncation(last) => self.last = later(last, self.purged),
            Record::Purge(upto) => {
                self.purged = Some(upto);
                self.last = later(self.last, self.purged);
            }
        }
    }
}

impl Head {
    /// Whether a log can be in this state. Bytes that are intact may still be of no log: numbers near
    /// the end of their range would overflow in additions.
    pub(super) fn is_possible(&self) -> bool {
        let ids = [self.purged, self.last, self.committed];
        let ids = ids.into_iter().flatten();
        let mut numbers = ids.flat_map(|id| [id.term.0, id.position.0]);
        let term = self.vote.map_or(0, |vote| vote.term.0);
        let position = |id: Option<LogId>| id.map(|id| id.position);
        position(self.last) >= position(self.purged)
            && numbers.all(|number| number < NUMBER_MAX)
            && term < NUMBER_MAX
    }
}

/// The one at the higher position; the second one if they are equal.
fn later(one: Option<LogId>, other: Option<LogId>) -> Option<LogId> {
    let position = |id: Option<LogId>| id.map(|id| id.position);
    if position(one) > position(other) {
        one
    } else {
        other
    }
}

/// The first bytes of a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    pub(super) identity: LogIdentity,
    pub(super) sequence: u32,
    /// Length of the file.
    pub(super) bytes: u32,
    /// Where the previous segment ends; all of it was synced before this one was created.
    pub(super) previous_end: u32,
    /// Checksum of the last record before this segment: the start of the chain.
    pub(super) previous_checksum: u32,
    /// The log's state at the end of the previous segment, so that older ones are not needed for
    /// it.
    pub(super) head: Head,
}

impl SegmentHeader {
    pub(super) fn encode(&self) -> [u8; SEGMENT_HEADER_BYTES] {
        let mut bytes = [0; SEGMENT_HEADER_BYTES];
        let Head {
            purged,
            last,
            committed,
            vote,
        } = self.head;
        let flag = |present: bool, flag: u16| if present { flag } else { 0 };
        let flags = flag(purged.is_some(), HAS_PURGED)
            | flag(last.is_some(), HAS_LAST)
            | flag(committed.is_some(), HAS_COMMITTED)
            | flag(vote.is_some(), HAS_VOTE)
            | flag(vote.is_some_and(|vote| vote.committed), VOTE_COMMITTED);
        let vote = vote.map(|vote| (vote.term.0, vote.node.0));
        let pair = |id: Option<LogId>| id.map(|id| (id.term.0, id.position.0));
        put(&mut bytes, 0, MAGIC);
        put(&mut bytes, SEGMENT_VERSION, VERSION.to_le_bytes());
        put(&mut bytes, SEGMENT_FLAGS, flags.to_le_bytes());
        put(&mut bytes, SEGMENT_SEQUENCE, self.sequence.to_le_bytes());
        put(
            &mut bytes,
            SEGMENT_PREVIOUS_END,
            self.previous_end.to_le_bytes(),
        );
        put(
            &mut bytes,
            SEGMENT_PREVIOUS_CHECKSUM,
            self.previous_checksum.to_le_bytes(),
        );
        put(&mut bytes, SEGMENT_BYTES, self.bytes.to_le_bytes());
        put(
            &mut bytes,
            SEGMENT_GROUP,
            self.identity.group.0.into_bytes(),
        );
        put(&mut bytes, SEGMENT_NODE, self.identity.node.0.to_le_bytes());
        put(
            &mut bytes,
            SEGMENT_INCARNATION,
            self.identity.incarnation.0.to_le_bytes(),
        );
        for (at, pair) in [
            (SEGMENT_PURGED, pair(purged)),
            (SEGMENT_LAST, pair(last)),
            (SEGMENT_COMMITTED, pair(committed)),
            (SEGMENT_VOTE, vote),
        ] {
            let (first, second) = pair.unwrap_or_default();
            put(&mut bytes, at, first.to_le_bytes());
            put(&mut bytes, at + 8, second.to_le_bytes());
        }
        let checksum = segment_checksum(&bytes);
        put(&mut bytes, SEGMENT_CHECKSUM, checksum.to_le_bytes());
        bytes
    }

    /// Reads a header from the first bytes of a file.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Invalid> {
        let bytes = bytes.get(..SEGMENT_HEADER_BYTES).ok_or(Invalid::Length)?;
        if bytes[..MAGIC.len()] != MAGIC {
            return Err(Invalid::Magic);
        }
        if u32_at(bytes, SEGMENT_CHECKSUM) != segment_checksum(bytes) {
            return Err(Invalid::Checksum);
        }
        let version = u16_at(bytes, SEGMENT_VERSION);
        if version != VERSION {
            return Err(Invalid::Version(version));
        }
        let flags = u16_at(bytes, SEGMENT_FLAGS);
        let pair =
            |flag, at| (flags & flag != 0).then(|| (u64_at(bytes, at), u64_at(bytes, at + 8)));
        let id = |flag, at| pair(flag, at).map(|(term, position)| log_id(term, position));
        let vote = pair(HAS_VOTE, SEGMENT_VOTE).map(|(term, node)| Vote {
            term: Term(term),
            node: NodeId(node),
            committed: flags & VOTE_COMMITTED != 0,
        });
        Ok(Self {
            identity: LogIdentity {
                group: GroupUuid(uuid::Uuid::from_bytes(array_at(bytes, SEGMENT_GROUP))),
                node: NodeId(u64_at(bytes, SEGMENT_NODE)),
                incarnation: Incarnation(u64_at(bytes, SEGMENT_INCARNATION)),
            },
            sequence: u32_at(bytes, SEGMENT_SEQUENCE),
            bytes: u32_at(bytes, SEGMENT_BYTES),
            previous_end: u32_at(bytes, SEGMENT_PREVIOUS_END),
            previous_checksum: u32_at(bytes, SEGMENT_PREVIOUS_CHECKSUM),
            head: Head {
                purged: id(HAS_PURGED, SEGMENT_PURGED),
                last: id(HAS_LAST, SEGMENT_LAST),
                committed: id(HAS_COMMITTED, SEGMENT_COMMITTED),
                vote,
            },
        })
    }
}

/// The content of one record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Record {
    /// An entry; its payload follows the header.
    Entry(EntryKind, LogId),
    /// The vote in force from here on.
    Vote(Vote),
    /// Nothing, or the newest entry known to be committed. Its `synced_below` vouches for what
    /// comes before it.
    Mark(Option<LogId>),
    /// Entries after this one are dropped; all of them, for `None`.
    Truncation(Option<LogId>),
    /// Entries up to this one are no longer needed; the log continues after it.
    Purge(LogId),
}

/// A record's place, and what it says about the records before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) place: Place,
    /// Checksum of the record before this one.
    pub(super) previous: u32,
    /// Everything below this was synced when the record was written.
    pub(super) synced_below: Place,
}

/// A record whose checksum and place have been verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Parsed {
    pub(super) record: Record,
    pub(super) link: Link,
    pub(super) checksum: u32,
    /// Where its payload lies in the bytes it was read from.
    pub(super) payload: Range<usize>,
    /// Bytes up to the next record.
    pub(super) size: u32,
}

/// Why bytes are not a segment header or a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Invalid {
    /// Not the first bytes of a segment.
    Magic,
    /// Longer than the available bytes.
    Length,
    /// Not the bytes that were written.
    Checksum,
    /// Written for another place, or for a former life of the file.
    Place,
    /// Intact, but of a version or kind unknown to this code.
    Version(u16),
}

/// Bytes that a record with this payload takes in a segment.
pub(super) fn record_bytes(payload_bytes: usize) -> usize {
    (RECORD_HEADER_BYTES + payload_bytes).next_multiple_of(RECORD_ALIGNMENT)
}

/// Appends a record to `out` and returns its checksum, to which the next one links.
///
/// # Panics
/// When the payload has 2^32 bytes or more; the log refuses one that does not fit into a segment.
pub(super) fn encode_record(
    out: &mut Vec<u8>,
    link: &Link,
    record: &Record,
    payload: &[u8],
) -> u32 {
    let pair = |id: LogId| (id.term.0, id.position.0);
    let optional = |id: Option<LogId>| (u8::from(id.is_some()), id.map_or((0, 0), pair));
    let (kind, (flag, (term, number))) = match *record {
        Record::Entry(EntryKind::Blank, id) => (KIND_BLANK, (0, pair(id))),
        Record::Entry(EntryKind::Transactions, id) => (KIND_TRANSACTIONS, (0, pair(id))),
        Record::Entry(EntryKind::Membership, id) => (KIND_MEMBERSHIP, (0, pair(id))),
        Record::Vote(vote) => (
            KIND_VOTE,
            (u8::from(vote.committed), (vote.term.0, vote.node.0)),
        ),
        Record::Mark(id) => (KIND_MARK, optional(id)),
        Record::Truncation(id) => (KIND_TRUNCATION, optional(id)),
        Record::Purge(id) => (KIND_PURGE, (0, pair(id))),
    };
    let length = u32::try_from(payload.len()).expect("a payload fits into a segment");
    let mut header = [0; RECORD_HEADER_BYTES];
    put(&mut header, RECORD_LENGTH, length.to_le_bytes());
    put(&mut header, RECORD_VERSION, VERSION.to_le_bytes());
    put(&mut header, RECORD_KIND, [kind]);
    put(&mut header, RECORD_FLAG, [flag]);
    put(&mut header, RECORD_PREVIOUS, link.previous.to_le_bytes());
    put(
        &mut header,
        RECORD_PLACE,
        link.place.to_number().to_le_bytes(),
    );
    put(
        &mut header,
        RECORD_SYNCED_BELOW,
        link.synced_below.to_number().to_le_bytes(),
    );
    put(&mut header, RECORD_TERM, term.to_le_bytes());
    put(&mut header, RECORD_NUMBER, number.to_le_bytes());

    let start = out.len();
    out.extend_from_slice(&header);
    out.extend_from_slice(payload);
    out.resize(start + record_bytes(payload.len()), 0);
    let checksum = crc32c::crc32c(&out[start + RECORD_LENGTH..]);
    put(&mut out[start..], RECORD_CHECKSUM, checksum.to_le_bytes());
    checksum
}

/// Decodes the record at offset `at` of `bytes`; `place` is that point in the log.
///
/// The caller checks the chain: a record found by a search has no known predecessor.
pub(super) fn decode_record(bytes: &[u8], at: usize, place: Place) -> Result<Parsed, Invalid> {
    let all = bytes.get(at..).ok_or(Invalid::Length)?;
    let header = all.get(..RECORD_HEADER_BYTES).ok_or(Invalid::Length)?;
    // The cheapest test first: a search for records tries every eighth byte.
    if !claims_place(header, place) {
        return Err(Invalid::Place);
    }
    let length = u32_at(header, RECORD_LENGTH) as usize;
    let size = record_bytes(length);
    let whole = all.get(..size).ok_or(Invalid::Length)?;
    let checksum = u32_at(header, RECORD_CHECKSUM);
    let is_whole = checksum == crc32c::crc32c(&whole[RECORD_LENGTH..]);
    if !is_whole && !planted::is(Bug::SkipRecordChecksum) {
        return Err(Invalid::Checksum);
    }
    let version = u16_at(header, RECORD_VERSION);
    if version != VERSION {
        return Err(Invalid::Version(version));
    }
    let flag = header[RECORD_FLAG] != 0;
    let (term, number) = (u64_at(header, RECORD_TERM), u64_at(header, RECORD_NUMBER));
    let id = log_id(term, number);
    let record = match header[RECORD_KIND] {
        KIND_BLANK => Record::Entry(EntryKind::Blank, id),
        KIND_TRANSACTIONS => Record::Entry(EntryKind::Transactions, id),
        KIND_MEMBERSHIP => Record::Entry(EntryKind::Membership, id),
        KIND_VOTE => Record::Vote(Vote {
            term: Term(term),
            node: NodeId(number),
            committed: flag,
        }),
        KIND_MARK => Record::Mark(flag.then_some(id)),
        KIND_TRUNCATION => Record::Truncation(flag.then_some(id)),
        KIND_PURGE => Record::Purge(id),
        // A new kind comes with a new version; without one, the bytes are not ours.
        _ => return Err(Invalid::Version(version)),
    };
    let payload = at + RECORD_HEADER_BYTES;
    Ok(Parsed {
        record,
        link: Link {
            place,
            previous: u32_at(header, RECORD_PREVIOUS),
            synced_below: Place::from_number(u64_at(header, RECORD_SYNCED_BELOW)),
        },
        checksum,
        payload: payload..payload + length,
        size: u32::try_from(size).map_err(|_| Invalid::Length)?,
    })
}

/// Makes the bytes of a record those of `place`, after the record with the checksum `previous`.
/// Returns its own checksum and its size; `None` when it is longer than the bytes.
#[cfg(any(test, feature = "fuzzing"))]
pub(super) fn seal_record(bytes: &mut [u8], place: Place, previous: u32) -> Option<(u32, u32)> {
    let header = bytes.get_mut(..RECORD_HEADER_BYTES)?;
    put(header, RECORD_PLACE, place.to_number().to_le_bytes());
    put(header, RECORD_PREVIOUS, previous.to_le_bytes());
    let size = record_bytes(u32_at(header, RECORD_LENGTH) as usize);
    let checksum = crc32c::crc32c(bytes.get(RECORD_LENGTH..size)?);
    put(bytes, RECORD_CHECKSUM, checksum.to_le_bytes());
    Some((checksum, u32::try_from(size).ok()?))
}

/// Makes the bytes of a segment those of the whole file with this number, of this log. Returns the
/// checksum of the last record before it.
#[cfg(any(test, feature = "fuzzing"))]
pub(super) fn seal_segment(bytes: &mut [u8], identity: LogIdentity, sequence: u32) -> u32 {
    let length = u32::try_from(bytes.len()).expect("a segment is shorter than 4 GiB");
    put(bytes, 0, MAGIC);
    put(bytes, SEGMENT_SEQUENCE, sequence.to_le_bytes());
    put(bytes, SEGMENT_BYTES, length.to_le_bytes());
    put(bytes, SEGMENT_GROUP, identity.group.0.into_bytes());
    put(bytes, SEGMENT_NODE, identity.node.0.to_le_bytes());
    put(
        bytes,
        SEGMENT_INCARNATION,
        identity.incarnation.0.to_le_bytes(),
    );
    let checksum = segment_checksum(bytes);
    put(bytes, SEGMENT_CHECKSUM, checksum.to_le_bytes());
    u32_at(bytes, SEGMENT_PREVIOUS_CHECKSUM)
}

/// Whether a record header claims this place, intact or not.
fn claims_place(header: &[u8], place: Place) -> bool {
    u64_at(header, RECORD_PLACE) == place.to_number()
}

fn segment_checksum(bytes: &[u8]) -> u32 {
    let seed = crc32c::crc32c(&bytes[..SEGMENT_CHECKSUM]);
    crc32c::crc32c_append(seed, &bytes[SEGMENT_VERSION..SEGMENT_HEADER_BYTES])
}

fn log_id(term: u64, position: u64) -> LogId {
    LogId {
        term: Term(term),
        position: LogPosition(position),
    }
}

fn put<const N: usize>(bytes: &mut [u8], at: usize, value: [u8; N]) {
    bytes[at..at + N].copy_from_slice(&value);
}

fn array_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("a slice of N bytes")
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(array_at(bytes, at))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array_at(bytes, at))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array_at(bytes, at))
}
