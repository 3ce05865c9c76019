//! Reads a node's log from the bytes on its disk, following docs/format.md alone.
//!
//! It shares no code with the library, so that the same mistake in writing and in reading cannot
//! cancel out.

use std::collections::BTreeMap;

use bytes::Bytes;

const SEGMENT_HEADER_BYTES: usize = 4096;
const RECORD_HEADER_BYTES: usize = 48;

/// One entry of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEntry {
    /// The term it was written in.
    pub term: u64,
    /// 1 blank, 2 transactions, 3 membership.
    pub kind: u8,
    /// The bytes.
    pub payload: Bytes,
}

/// A transaction as the log has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoggedTransaction {
    /// Position of its entry.
    pub position: u64,
    /// Term of its entry.
    pub term: u64,
    /// Database, key, and the value or `None` for a deletion.
    pub operations: Vec<(u32, Bytes, Option<Bytes>)>,
}

/// A log, including what its node has given up of it, as far as known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Log {
    /// By position. Entries the node received by a copy of the state are not included.
    pub entries: BTreeMap<u64, LogEntry>,
    /// Up to here, what the node has is in its engine.
    pub purged: Option<u64>,
    /// Entries cut off because a copy of the state replaced them: committed or not.
    pub replaced: BTreeMap<u64, LogEntry>,
}

/// The segment number in this file name; `None` for another file.
pub fn sequence_of(name: &str) -> Option<u32> {
    name.strip_suffix(".log")?.parse().ok()
}

/// The log that these segments form; none is missing from the first one on.
///
/// # Errors
/// When the bytes do not match the format.
pub fn read(files: BTreeMap<String, Vec<u8>>) -> Result<Log, String> {
    let mut log = Log::default();
    let mut previous = None;
    for (name, bytes) in files {
        let sequence = sequence_of(&name).ok_or_else(|| format!("{name} is no segment"))?;
        let bytes = Bytes::from(bytes);
        let chain = u32_at(&bytes, 24).ok_or_else(|| format!("segment {name} is short"))?;
        if previous.is_some_and(|previous| previous != chain) {
            return Err(format!("segment {name} does not follow the one before"));
        }
        previous = Some(read_segment(&bytes, sequence, chain, &mut log));
    }
    Ok(log)
}

/// Reads records as long as each continues the checksum chain; returns the last checksum.
fn read_segment(bytes: &Bytes, sequence: u32, mut chain: u32, log: &mut Log) -> u32 {
    let mut at = SEGMENT_HEADER_BYTES;
    let mut cut = BTreeMap::new();
    while let Some(header) = bytes.get(at..at + RECORD_HEADER_BYTES) {
        let field = |offset| u32_at(header, offset).unwrap_or_default();
        let wide = |offset| u64_at(header, offset).unwrap_or_default();
        let place = (u64::from(sequence) << 32) | at as u64;
        if field(12) != chain || wide(16) != place {
            break;
        }
        let length = field(4) as usize;
        let end = (at + RECORD_HEADER_BYTES + length).next_multiple_of(8);
        if bytes.len() < end || crc32c(&bytes[at + 4..end]) != field(0) {
            break;
        }
        chain = field(0);
        let (kind, flag, term, number) = (header[10], header[11], wide(32), wide(40));
        match kind {
            1..=3 => {
                let payload = at + RECORD_HEADER_BYTES..at + RECORD_HEADER_BYTES + length;
                let payload = bytes.slice(payload);
                let entry = LogEntry {
                    term,
                    kind,
                    payload,
                };
                log.entries.insert(number, entry);
                cut.clear();
            }
            6 if flag == 0 => cut.append(&mut log.entries),
            6 => cut.append(&mut log.entries.split_off(&(number + 1))),
            7 => {
                log.purged = log.purged.max(Some(number));
                // A copy of the state has replaced them.
                let copied = std::mem::take(&mut cut).into_iter();
                log.replaced
                    .extend(copied.filter(|(position, _)| *position <= number));
            }
            _ => {}
        }
        at = end;
    }
    chain
}

/// CRC-32C computed from its polynomial, eight bytes at a time: the library uses a crate.
fn crc32c(bytes: &[u8]) -> u32 {
    static TABLES: [[u32; 256]; 8] = tables();
    let add = |zeros: usize, byte: u8| TABLES[zeros][usize::from(byte)];
    let (eights, rest) = bytes.as_chunks::<8>();
    let crc = eights.iter().fold(!0, |crc: u32, eight| {
        let word = (u64::from_le_bytes(*eight) ^ u64::from(crc)).to_le_bytes();
        (0..8).fold(0, |crc, at| crc ^ add(7 - at, word[at]))
    });
    let step = |crc: u32, byte: &u8| add(0, crc.to_le_bytes()[0] ^ byte) ^ (crc >> 8);
    !rest.iter().fold(crc, step)
}

/// What each byte adds, by the number of zero bytes that follow.
const fn tables() -> [[u32; 256]; 8] {
    let mut tables = [[0; 256]; 8];
    let mut byte = 0;
    let mut crc: u32 = 0;
    while byte < 256 {
        let mut zeros = 0;
        let mut sum = crc;
        while zeros < 8 {
            let mut bit = 0;
            while bit < 8 {
                sum = (sum >> 1) ^ if sum & 1 == 1 { 0x82f6_3b78 } else { 0 };
                bit += 1;
            }
            tables[zeros][byte] = sum;
            zeros += 1;
        }
        byte += 1;
        crc += 1;
    }
    tables
}

/// The transactions in these entries up to position `last`, by VLSN. A batch that does not continue
/// the numbering of the one before is void.
///
/// # Errors
/// When a batch does not match the format.
pub fn transactions(
    entries: &BTreeMap<u64, LogEntry>,
    last: u64,
) -> Result<BTreeMap<u64, LoggedTransaction>, String> {
    let mut transactions = BTreeMap::new();
    let mut newest = 0;
    for (position, entry) in entries.range(..=last).filter(|(_, entry)| entry.kind == 2) {
        let batch =
            batch(*position, entry).ok_or_else(|| format!("entry {position} is no batch"))?;
        if batch.first().is_some_and(|(first, _)| *first == newest + 1) {
            newest += batch.len() as u64;
            transactions.extend(batch);
        }
    }
    Ok(transactions)
}

/// Whether the entry is a batch that has the transaction of this number.
pub fn holds(entry: &LogEntry, vlsn: u64) -> bool {
    let batch = (entry.kind == 2).then(|| batch(0, entry)).flatten();
    batch.is_some_and(|batch| batch.iter().any(|(number, _)| *number == vlsn))
}

fn batch(position: u64, entry: &LogEntry) -> Option<Vec<(u64, LoggedTransaction)>> {
    let bytes = &entry.payload;
    let (count, first) = (u32_at(bytes, 4)?, u64_at(bytes, 8)?);
    let mut at = 24;
    let mut transactions = Vec::new();
    for nth in 0..u64::from(count) {
        let mut operations = Vec::new();
        let number = u32_at(bytes, at)?;
        at += 4;
        for _ in 0..number {
            let (kind, database) = (u32_at(bytes, at)?, u32_at(bytes, at + 4)?);
            let key_bytes = u32_at(bytes, at + 8)? as usize;
            let value_bytes = u32_at(bytes, at + 12)? as usize;
            let key_end = at + 16 + key_bytes;
            let value_end = key_end + value_bytes;
            if bytes.len() < value_end {
                return None;
            }
            let value = (kind == 1).then(|| bytes.slice(key_end..value_end));
            operations.push((database, bytes.slice(at + 16..key_end), value));
            at = value_end;
        }
        let transaction = LoggedTransaction {
            position,
            term: entry.term,
            operations,
        };
        transactions.push((first + nth, transaction));
    }
    (at == bytes.len()).then_some(transactions)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at + 4)?;
    bytes.try_into().ok().map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    let bytes = bytes.get(at..at + 8)?;
    bytes.try_into().ok().map(u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_the_published_one() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
    }
}
