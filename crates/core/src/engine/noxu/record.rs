//! The record of what was applied to a Noxu environment.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::engine::error::{EngineError, Result};
use crate::engine::values::Applied;
use crate::ids::{LogPosition, Term, Vlsn};

const FORMAT: u8 = 1;

/// The record of what was applied, with little-endian integers:
///
/// ```text
/// 0       1       9           17      25
/// ┌───────┬───────┬───────────┬───────┬─────────────┬────────────────────────┐
/// │ format│ term  │ position  │ vlsn  │ membership …│ crc32c of all before it│
/// │ u8    │ u64   │ u64       │ u64   │             │ u32                    │
/// └───────┴───────┴───────────┴───────┴─────────────┴────────────────────────┘
/// ```
pub(super) fn encode(applied: &Applied) -> Bytes {
    let mut record = BytesMut::with_capacity(29 + applied.membership.len());
    record.put_u8(FORMAT);
    record.put_u64_le(applied.term.0);
    record.put_u64_le(applied.position.0);
    record.put_u64_le(applied.vlsn.0);
    record.put_slice(&applied.membership);
    record.put_u32_le(crc32c::crc32c(&record));
    record.freeze()
}

/// The inverse of [`encode`].
pub(super) fn decode(record: &Bytes) -> Result<Applied> {
    let corrupt = |what: &str| EngineError::Corrupt {
        what: format!("applied record: {what}"),
    };
    let Some(checked) = record.len().checked_sub(4).filter(|&length| length >= 25) else {
        return Err(corrupt("too short"));
    };
    if crc32c::crc32c(&record[..checked]) != (&record[checked..]).get_u32_le() {
        return Err(corrupt("checksum"));
    }
    let mut fields = record.slice(..checked);
    let format = fields.get_u8();
    if format != FORMAT {
        return Err(corrupt(&format!(
            "format {format} is unknown to this version"
        )));
    }
    Ok(Applied {
        term: Term(fields.get_u64_le()),
        position: LogPosition(fields.get_u64_le()),
        vlsn: Vlsn(fields.get_u64_le()),
        membership: fields,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_with_any_byte_changed_or_cut_off_is_corrupt() {
        let applied = Applied {
            term: Term(1),
            position: LogPosition(2),
            vlsn: Vlsn(3),
            membership: Bytes::from("members"),
        };
        let record = encode(&applied);
        assert_eq!(decode(&record).unwrap(), applied);
        for at in 0..record.len() {
            let mut changed = record.to_vec();
            changed[at] ^= 1;
            assert!(decode(&changed.into()).is_err());
            assert!(decode(&record.slice(..at)).is_err());
        }
    }
}
