//! One Noxu transaction, within one file of Noxu's log.
//!
//! Noxu's recovery reads every file that is there, and undoes a transaction whose commit it does not
//! find. Its cleaner removes the sparse files, in any order. Of a transaction that lies in two files the
//! second one, with the commit, may go first: what it did in the other one is undone at the next open,
//! and is lost. So a transaction that does not fit into what is left of a file begins in the next.

use bytes::Bytes;
use noxu::{Durability, NoxuError, Transaction, TransactionConfig};

use super::Open;
use crate::engine::{Change, EngineBatch};

/// Part of a file that is left for what Noxu's own threads write beside a transaction.
const SPARE_PART: u64 = 32;
/// What a change takes in the log beside its key and value, with its share of the nodes that split.
const CHANGE_BYTES: usize = 256;
/// The most that is written at once to fill a file.
const FILL_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// The record of the engine's own database that fills files.
const FILL_KEY: &[u8] = b"fill";

/// A batch that Noxu refused.
pub(super) struct ApplyFailure {
    pub(super) error: NoxuError,
    /// Whether the databases are as they were before.
    pub(super) undone: bool,
}

/// What a batch takes in the log, at most.
pub(super) fn bytes_of(batch: &EngineBatch) -> usize {
    let changes = batch.changes.iter().map(|(_, key, change)| {
        let value = match change {
            Change::Put(value) => value.len(),
            Change::Delete => 0,
        };
        key.len() + value + CHANGE_BYTES
    });
    changes.sum::<usize>() + batch.applied.membership.len() + CHANGE_BYTES
}

/// What the removal of these pairs takes in the log, at most.
pub(super) fn bytes_of_keys(pairs: &[(Bytes, Bytes)]) -> usize {
    pairs.iter().map(|(key, _)| key.len() + CHANGE_BYTES).sum()
}

impl Open {
    /// Runs `write`, which takes so many bytes in the log, in one transaction.
    pub(super) fn commit(
        &self,
        bytes: usize,
        write: impl Fn(&Transaction) -> noxu::Result<()>,
    ) -> Result<(), ApplyFailure> {
        let undone = |error| ApplyFailure {
            error,
            undone: true,
        };
        let file = self.file_with_room(bytes as u64).map_err(undone)?;
        let config = TransactionConfig::default().with_durability(Durability::COMMIT_NO_SYNC);
        let transaction = self
            .environment
            .begin_transaction(Some(&config))
            .map_err(undone)?;
        if let Err(error) = write(&transaction) {
            let _turn = self.turn_to_write();
            let undone = transaction.abort().is_ok();
            return Err(ApplyFailure { error, undone });
        }
        // A commit that failed may have reached the log all the same.
        transaction.commit().map_err(|error| ApplyFailure {
            error,
            undone: false,
        })?;
        if self.log_end().is_ok_and(|(ends_in, _)| ends_in != file) {
            tracing::warn!(bytes, "a batch lies in two files of the engine");
        }
        Ok(())
    }

    /// The file in which Noxu's log goes on, with room for so many bytes: the rest of one that has
    /// less is filled.
    fn file_with_room(&self, bytes: u64) -> noxu::Result<u64> {
        let needed = bytes + self.file_bytes / SPARE_PART;
        let (file, mut end) = self.log_end()?;
        if end + needed <= self.file_bytes || needed > self.file_bytes {
            return Ok(file);
        }
        loop {
            let rest = self.file_bytes.saturating_sub(end).max(1);
            let fill = vec![0; usize::try_from(rest.min(FILL_BYTES_MAX)).unwrap_or(1)];
            let _turn = self.turn_to_write();
            self.engine.put(FILL_KEY, fill)?;
            self.engine.put(FILL_KEY, [])?;
            let now = self.log_end()?;
            if now.0 != file {
                return Ok(now.0);
            }
            end = now.1;
        }
    }

    /// The file in which Noxu's log ends, and where.
    fn log_end(&self) -> noxu::Result<(u64, u64)> {
        let end = self.environment.stats()?.log.end_of_log;
        Ok((end >> 32, end & u64::from(u32::MAX)))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use bytes::Bytes;

    use crate::engine::{
        Applied, Change, Direction, EngineBatch, KeyRange, NoxuEngine, ScanLimit, StorageEngine,
    };
    use crate::ids::{DatabaseId, LogPosition, Term, Vlsn};

    const DB: DatabaseId = DatabaseId(16);
    const VALUE_BYTES: usize = 1_024;
    const FILE_BYTES: u64 = 1024 * 1024;
    /// Keys in one batch: about ten batches are a file.
    const BATCH: u64 = 100;
    /// Keys that are written again and again.
    const HOT: u64 = 1 << 32;

    /// Batches of keys that stay take turns with batches of keys that do not. So there are files that
    /// stay, behind files that are cleaned; and here and there a batch that would lie in both.
    #[test]
    fn what_was_committed_is_there_when_files_were_cleaned() {
        let dir = tempfile::tempdir().expect("a directory");
        let open = || NoxuEngine::open_with(dir.path(), 32 << 20, FILE_BYTES);
        let engine = open().expect("an engine");
        let mut model = BTreeMap::new();
        for number in 1..=600_u64 {
            let is_hot = number % 20 >= 7;
            let first = if is_hot { HOT } else { number * BATCH };
            let value = Bytes::from(vec![number.to_le_bytes()[0]; VALUE_BYTES]);
            let key = |n: u64| Bytes::copy_from_slice(&n.to_be_bytes());
            let keys: Vec<_> = (first..first + BATCH).map(key).collect();
            model.extend(keys.iter().map(|key| (key.clone(), value.clone())));
            let put = |key: Bytes| (DB, key, Change::Put(value.clone()));
            // Some of those that stayed so far.
            let gone = (first - BATCH..first - BATCH + 10).map(key);
            let gone: Vec<_> = gone.filter(|key| model.remove(key).is_some()).collect();
            let delete = |key: Bytes| (DB, key, Change::Delete);
            let applied = Applied {
                term: Term(1),
                position: LogPosition(number),
                vlsn: Vlsn(number),
                membership: Bytes::new(),
            };
            let puts = keys.into_iter().map(put);
            let changes = gone.into_iter().map(delete).chain(puts).collect();
            let batch = EngineBatch { applied, changes };
            engine.apply(&batch).expect("applied");
        }
        engine.close().expect("closed");
        let engine = open().expect("an engine");
        let rows = engine.scan(DB, KeyRange::all(), Direction::Forward, ScanLimit::NONE);
        let rows: BTreeMap<_, _> = rows.expect("scanned").into_iter().collect();
        let lost = model.keys().filter(|key| !rows.contains_key(*key)).count();
        assert_eq!(lost, 0, "of {}", model.len());
        assert_eq!(rows.len(), model.len(), "deleted keys are back");
        assert!(rows == model, "values differ");
    }
}
