//! The payload of one log entry: a batch of transactions, in the bytes that are logged and sent.
//!
//! ```text
//! batch        | format: u8 = 1 | 0: [u8; 3] | transactions: u32 | first VLSN: u64 | committed_at_ms: u64 |
//!              | transaction ... |
//! transaction  | operations: u32 | operation ... |
//! operation    | kind: u8 (1 put, 2 delete, 3 expire) | 0: [u8; 3] | database: u32 | key_len: u32 | value_len: u32 |
//!              | key | value |
//! ```
//!
//! All integers are little-endian. VLSNs within a batch are dense: transaction `i` has the VLSN
//! `first + i`. Operations of one transaction are sorted by (database, key), each key once.
//!
//! [`Batch::parse`] checks a whole batch before any of it takes effect. Its operations borrow the
//! entry's bytes, so a replica copies neither keys nor values.

use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};

use crate::ids::{DatabaseId, Vlsn};
use crate::limits::{KEY_BYTES_MAX, VALUE_BYTES_MAX};
use crate::plural::plural;

const FORMAT: u8 = 1;
const FORMAT_OFFSET: usize = 0;
const COUNT_OFFSET: usize = FORMAT_OFFSET + 4;
const FIRST_VLSN_OFFSET: usize = COUNT_OFFSET + 4;
const COMMITTED_AT_OFFSET: usize = FIRST_VLSN_OFFSET + 8;
const HEADER_BYTES: usize = COMMITTED_AT_OFFSET + 8;
/// Encoded size of an operation, without its key and value.
pub(crate) const OPERATION_HEADER_BYTES: usize = 16;

const KIND_PUT: u8 = 1;
const KIND_DELETE: u8 = 2;
const KIND_EXPIRE: u8 = 3;

/// A transaction's change to one key. `value` is `None` for a deletion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Operation {
    pub(crate) database: DatabaseId,
    pub(crate) key: Bytes,
    pub(crate) value: Option<Bytes>,
    /// Whether it is a deletion because the key's time to live has passed.
    pub(crate) expires: bool,
}

impl Operation {
    /// Encoded size of the operation, in bytes.
    pub(crate) fn encoded_bytes(&self) -> usize {
        OPERATION_HEADER_BYTES + self.key.len() + self.value.as_ref().map_or(0, Bytes::len)
    }
}

/// Why the payload of an entry is not a batch.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BatchError {
    #[error("batch format {0} is newer than this program reads ({FORMAT})")]
    Format(u8),
    #[error("batch ends inside {0}")]
    Short(&'static str),
    #[error("batch has {} {} after its last transaction", .0, plural(*.0, "byte", "bytes"))]
    Trailing(usize),
    #[error("batch has an operation of unknown kind {0}")]
    Kind(u8),
    #[error("batch numbers its transactions past the last VLSN")]
    VlsnOverflow,
    #[error("batch has no transaction")]
    Empty,
    #[error("batch has a key of {0} bytes or a value of {1} bytes, over the limits")]
    Limit(usize, usize),
}

/// Collects transactions into the bytes of one batch.
#[derive(Debug)]
pub(crate) struct BatchBuilder {
    bytes: BytesMut,
    first: Vlsn,
    transactions: u32,
}

impl BatchBuilder {
    /// An empty batch whose first transaction will have the VLSN `first`.
    pub(crate) fn new(first: Vlsn) -> Self {
        let mut bytes = BytesMut::with_capacity(16 * 1024);
        bytes.put_u32_le(u32::from(FORMAT));
        bytes.put_u32_le(0);
        bytes.put_u64_le(first.0);
        bytes.put_u64_le(0);
        Self {
            bytes,
            first,
            transactions: 0,
        }
    }

    /// Adds one transaction and returns its VLSN.
    pub(crate) fn push(&mut self, operations: &[Operation]) -> Vlsn {
        let vlsn = Vlsn(self.first.0 + u64::from(self.transactions));
        self.transactions += 1;
        self.bytes.reserve(
            4 + operations
                .iter()
                .map(Operation::encoded_bytes)
                .sum::<usize>(),
        );
        self.bytes.put_u32_le(length_u32(operations.len()));
        for operation in operations {
            let kind = match (&operation.value, operation.expires) {
                (Some(_), _) => KIND_PUT,
                (None, true) => KIND_EXPIRE,
                (None, false) => KIND_DELETE,
            };
            let value = operation.value.as_deref().unwrap_or_default();
            self.bytes.put_u32_le(u32::from(kind));
            self.bytes.put_u32_le(operation.database.0);
            self.bytes.put_u32_le(length_u32(operation.key.len()));
            self.bytes.put_u32_le(length_u32(value.len()));
            self.bytes.put_slice(&operation.key);
            self.bytes.put_slice(value);
        }
        vlsn
    }

    /// The VLSN of the first transaction.
    pub(crate) fn first(&self) -> Vlsn {
        self.first
    }

    pub(crate) fn transactions(&self) -> u32 {
        self.transactions
    }

    pub(crate) fn encoded_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Closes the batch. `committed_at_ms` is the master's wall clock, in milliseconds since 1970.
    ///
    /// # Panics
    /// When nothing was pushed: an empty batch is never proposed.
    pub(crate) fn finish(mut self, committed_at_ms: u64) -> Batch {
        assert!(self.transactions > 0, "an empty batch is never proposed");
        self.bytes[COUNT_OFFSET..FIRST_VLSN_OFFSET]
            .copy_from_slice(&self.transactions.to_le_bytes());
        self.bytes[COMMITTED_AT_OFFSET..HEADER_BYTES]
            .copy_from_slice(&committed_at_ms.to_le_bytes());
        let last = Vlsn(self.first.0 + u64::from(self.transactions) - 1);
        // The log keeps the last batches in memory, so drop this one's spare capacity.
        let bytes = if 2 * self.bytes.len() < self.bytes.capacity() {
            Bytes::copy_from_slice(&self.bytes)
        } else {
            self.bytes.freeze()
        };
        Batch {
            bytes,
            first: self.first,
            last,
        }
    }
}

/// Lengths have already been checked against limits far below 4 GiB.
fn length_u32(length: usize) -> u32 {
    u32::try_from(length).expect("lengths are limited before a batch is built")
}

/// One batch, checked whole. Cloning shares the bytes.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Batch {
    bytes: Bytes,
    first: Vlsn,
    last: Vlsn,
}

impl Batch {
    /// Checks every byte of `bytes`.
    ///
    /// # Errors
    /// The first reason why the bytes are not a batch of this format.
    pub(crate) fn parse(bytes: Bytes) -> Result<Self, BatchError> {
        let mut reader = Reader {
            bytes: &bytes,
            at: 0,
        };
        let format = reader.u32("header")?;
        if format != u32::from(FORMAT) {
            return Err(BatchError::Format(format.to_le_bytes()[0]));
        }
        let count = reader.u32("header")?;
        let first = Vlsn(reader.u64("header")?);
        let _committed_at_ms = reader.u64("header")?;
        for _ in 0..count {
            let operations = reader.u32("transaction")?;
            for _ in 0..operations {
                reader.operation()?;
            }
        }
        if reader.at != bytes.len() {
            return Err(BatchError::Trailing(bytes.len() - reader.at));
        }
        let after_first = u64::from(count).checked_sub(1).ok_or(BatchError::Empty)?;
        // The VLSN after the last one must exist too: the next batch starts there.
        let last = first
            .0
            .checked_add(after_first)
            .filter(|last| *last < u64::MAX);
        let last = Vlsn(last.ok_or(BatchError::VlsnOverflow)?);
        Ok(Self { bytes, first, last })
    }

    /// The bytes that are logged and sent.
    pub(crate) fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    pub(crate) fn first(&self) -> Vlsn {
        self.first
    }

    pub(crate) fn last(&self) -> Vlsn {
        self.last
    }

    /// The master's wall clock when the batch was closed, in milliseconds since 1970.
    pub(crate) fn committed_at_ms(&self) -> u64 {
        let bytes = &self.bytes[COMMITTED_AT_OFFSET..HEADER_BYTES];
        u64::from_le_bytes(bytes.try_into().expect("eight bytes"))
    }

    /// Calls `visit` for each operation, in log order, with the VLSN of its transaction.
    pub(crate) fn for_each(&self, mut visit: impl FnMut(Vlsn, Operation)) {
        let mut reader = Reader {
            bytes: &self.bytes,
            at: HEADER_BYTES,
        };
        for vlsn in self.first.0..=self.last.0 {
            let operations = reader.u32("transaction").expect("checked by parse");
            for _ in 0..operations {
                let raw = reader.operation().expect("checked by parse");
                visit(
                    Vlsn(vlsn),
                    Operation {
                        database: raw.database,
                        key: self.bytes.slice(raw.key),
                        value: raw.value.map(|range| self.bytes.slice(range)),
                        expires: raw.expires,
                    },
                );
            }
        }
    }
}

impl fmt::Display for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "vlsn {}..={} ({} bytes)",
            self.first,
            self.last,
            self.bytes.len()
        )
    }
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

struct RawOperation {
    database: DatabaseId,
    key: std::ops::Range<usize>,
    value: Option<std::ops::Range<usize>>,
    expires: bool,
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn take(&mut self, length: usize, what: &'static str) -> Result<usize, BatchError> {
        let start = self.at;
        let end = start
            .checked_add(length)
            .filter(|end| *end <= self.bytes.len());
        self.at = end.ok_or(BatchError::Short(what))?;
        Ok(start)
    }

    fn u32(&mut self, what: &'static str) -> Result<u32, BatchError> {
        let at = self.take(4, what)?;
        Ok(u32::from_le_bytes(
            self.bytes[at..at + 4].try_into().expect("four bytes"),
        ))
    }

    fn u64(&mut self, what: &'static str) -> Result<u64, BatchError> {
        let at = self.take(8, what)?;
        Ok(u64::from_le_bytes(
            self.bytes[at..at + 8].try_into().expect("eight bytes"),
        ))
    }

    fn operation(&mut self) -> Result<RawOperation, BatchError> {
        let kind = self.u32("operation")?;
        let database = DatabaseId(self.u32("operation")?);
        let key_len = self.u32("operation")? as usize;
        let value_len = self.u32("operation")? as usize;
        if key_len > KEY_BYTES_MAX || value_len > VALUE_BYTES_MAX {
            return Err(BatchError::Limit(key_len, value_len));
        }
        let key = self.take(key_len, "key")?;
        let value = self.take(value_len, "value")?;
        let value = match kind.to_le_bytes() {
            [KIND_PUT, 0, 0, 0] => Some(value..value + value_len),
            [KIND_DELETE | KIND_EXPIRE, 0, 0, 0] if value_len == 0 => None,
            [kind, ..] => return Err(BatchError::Kind(kind)),
        };
        Ok(RawOperation {
            database,
            key: key..key + key_len,
            value,
            expires: kind == u32::from(KIND_EXPIRE),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn operation() -> impl Strategy<Value = Operation> {
        let bytes = || proptest::collection::vec(any::<u8>(), 0..20).prop_map(Bytes::from);
        let value = proptest::option::of(bytes());
        (0..4_u32, bytes(), value, any::<bool>()).prop_map(|(database, key, value, ends)| {
            Operation {
                database: DatabaseId(database),
                key,
                expires: ends && value.is_none(),
                value,
            }
        })
    }

    fn transactions() -> impl Strategy<Value = Vec<Vec<Operation>>> {
        proptest::collection::vec(proptest::collection::vec(operation(), 0..5), 1..6)
    }

    fn build(first: u64, transactions: &[Vec<Operation>]) -> Bytes {
        let mut builder = BatchBuilder::new(Vlsn(first));
        for operations in transactions {
            builder.push(operations);
        }
        builder.finish(7).bytes().clone()
    }

    #[test]
    fn a_batch_keeps_no_more_memory_than_twice_its_bytes() {
        for keys in [1, 100, 1_000, 10_000] {
            let operation = |key: u32| Operation {
                database: DatabaseId(1),
                key: Bytes::copy_from_slice(&key.to_be_bytes()),
                value: None,
                expires: false,
            };
            let mut builder = BatchBuilder::new(Vlsn(1));
            builder.push(&(0..keys).map(operation).collect::<Vec<_>>());
            let Batch { bytes, .. } = builder.finish(7);
            let bytes = bytes.try_into_mut().expect("nobody else has it");
            let (len, capacity) = (bytes.len(), bytes.capacity());
            assert!(capacity <= 2 * len, "{keys} keys: {capacity} for {len}");
        }
    }

    proptest! {
        #[test]
        fn a_batch_comes_back_as_it_was_built(transactions in transactions()) {
            let batch = Batch::parse(build(41, &transactions)).unwrap();
            let mut read = vec![Vec::new(); transactions.len()];
            batch.for_each(|vlsn, operation| {
                read[usize::try_from(vlsn.0 - 41).unwrap()].push(operation);
            });
            prop_assert_eq!(read, transactions);
            prop_assert_eq!(batch.first(), Vlsn(41));
        }

        #[test]
        fn a_batch_cut_anywhere_is_refused(transactions in transactions(), cut in any::<proptest::sample::Index>()) {
            let bytes = build(1, &transactions);
            let cut = cut.index(bytes.len());
            prop_assert!(Batch::parse(bytes.slice(..cut)).is_err());
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(batch) = Batch::parse(Bytes::from(bytes)) {
                batch.for_each(|_, _| ());
            }
        }
    }

    #[test]
    fn numbers_past_the_last_vlsn_are_refused() {
        let mut bytes = BytesMut::from(&build(1, &[vec![]])[..]);
        bytes[FIRST_VLSN_OFFSET..COMMITTED_AT_OFFSET].fill(0xff);
        assert!(matches!(
            Batch::parse(bytes.freeze()),
            Err(BatchError::VlsnOverflow)
        ));
    }
}
