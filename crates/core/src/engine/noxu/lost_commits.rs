//! Puts back the commits that Noxu's cleaner removed.
//!
//! Noxu's recovery reads every log file that is there, and undoes each transaction whose commit it
//! does not find. Its cleaner removes sparse files in any order: of two that a transaction spans,
//! the second one, with the commit, may go first. The next open would undo what is in the other.
//!
//! The cleaner removes no file in which a running transaction has begun, and none after it. So
//! where a file is missing after the last change of a transaction, that transaction has ended. If
//! its end is missing too, a commit is written to a small file with the missing number. A
//! transaction that was aborted, or undone by an earlier open, may get one as well. That changes
//! nothing: a file is removed only after a checkpoint, and what precedes a checkpoint is never
//! redone, at most undone.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;

use bytes::BytesMut;
use noxu_log::entry::{LnLogEntry, TxnEndEntry};
use noxu_log::{FileHeader, FileManager, LogEntryHeader, LogEntryType, Provisional};
use noxu_util::{NULL_LSN, Vlsn};

use super::directory::create_durably;
use super::errors::io_error;
use super::log_file::{Entry, checksum};
use crate::engine::error::Result;

type TransactionId = i64;

/// The transactions of a log that have changes but no end, where a file is missing after them.
pub(super) struct LostCommits {
    /// The missing numbers between the first and the last file.
    missing: BTreeSet<u32>,
    /// With the file of each one's last change.
    without_end: BTreeMap<TransactionId, u32>,
}

impl LostCommits {
    /// For a log whose files have these `numbers`, in ascending order; no entry is noted yet.
    pub(super) fn new(numbers: &[u32]) -> Self {
        let between = |pair: &[u32]| pair[0] + 1..pair[1];
        Self {
            missing: numbers.windows(2).flat_map(between).collect(),
            without_end: BTreeMap::new(),
        }
    }

    /// Whether entries of this `kind` in this `file`, after those already noted, matter.
    pub(super) fn are_told_by(&self, kind: LogEntryType, file: u32) -> bool {
        let is_missing_behind = self.missing.last().is_some_and(|last| file < *last);
        let is_of_transaction = matches!(
            kind,
            LogEntryType::InsertLNTxn
                | LogEntryType::UpdateLNTxn
                | LogEntryType::DeleteLNTxn
                | LogEntryType::NameLNTxn
                | LogEntryType::TxnCommit
                | LogEntryType::TxnAbort
        );
        is_of_transaction && (is_missing_behind || !self.without_end.is_empty())
    }

    /// Notes an entry of this `file`; entries come in log order.
    ///
    /// One that cannot be parsed is skipped: a superfluous commit changes nothing.
    pub(super) fn note(&mut self, entry: &Entry<'_>, file: u32) {
        if !self.are_told_by(entry.kind, file) {
            return;
        }
        if let LogEntryType::TxnCommit | LogEntryType::TxnAbort = entry.kind {
            if let Ok(end) = TxnEndEntry::read_from_log(entry.body()) {
                self.without_end.remove(&end.txn_id);
            }
        } else if let Ok(change) = LnLogEntry::parse_from_slice(entry.body(), true)
            && let Some(id) = change.txn_id
        {
            self.without_end.insert(id, file);
        }
    }

    /// Puts back the missing commits, and returns how many.
    ///
    /// # Errors
    /// [`EngineError::Io`](crate::engine::EngineError::Io) when a commit could not be written.
    pub(super) fn put_back(&self, files: &FileManager) -> Result<usize> {
        let mut commits: BTreeMap<u32, Vec<TransactionId>> = BTreeMap::new();
        for (transaction, last_file) in &self.without_end {
            if let Some(file) = self.missing.range(last_file..).next() {
                commits.entry(*file).or_default().push(*transaction);
            }
        }
        for (file, transactions) in &commits {
            let failed = |error| io_error("restore a commit", error);
            let bytes = file_of(*file, transactions).map_err(failed)?;
            create_durably(&files.full_file_name(*file), &bytes)
                .map_err(|error| failed(error.into()))?;
        }
        let count = commits.values().map(Vec::len).sum();
        if count > 0 {
            tracing::info!(count, "restored commits that had been cleaned away");
        }
        Ok(count)
    }
}

/// A Noxu log file with these commits and nothing else.
fn file_of(
    number: u32,
    transactions: &[TransactionId],
) -> std::result::Result<Vec<u8>, Box<dyn Error + Send + Sync>> {
    let mut file = Vec::new();
    FileHeader::new(number, 0).write_to(&mut file)?;
    let mut offset_before = 0;
    for transaction in transactions {
        let mut body = BytesMut::new();
        TxnEndEntry::new_commit(*transaction, NULL_LSN, 0, 0, Vlsn::new(0)).write_to_log(&mut body);
        let size = u32::try_from(body.len())?;
        let kind = LogEntryType::TxnCommit;
        let mut header = LogEntryHeader::new(kind, size, Provisional::No, false, None);
        let mut entry = Vec::new();
        header.write_to_log(&mut entry)?;
        entry.extend_from_slice(&body);
        // First for the offset, which the checksum covers.
        header.add_post_marshalling_info(&mut entry, offset_before, None, 0)?;
        let checksum = checksum(&entry);
        header.add_post_marshalling_info(&mut entry, offset_before, None, checksum)?;
        offset_before = u32::try_from(file.len())?;
        file.append(&mut entry);
    }
    Ok(file)
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "Noxu keeps its files itself")]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Write;
    use std::path::Path;

    use bytes::Bytes;
    use noxu_log::FileManager;

    use super::super::preparation::prepare;
    use crate::engine::values::{Applied, Change, Direction, EngineBatch, KeyRange, ScanLimit};
    use crate::engine::{NoxuEngine, NoxuSizes, StorageEngine};
    use crate::ids::{DatabaseId, LogPosition, Term, Vlsn};

    const DB: DatabaseId = DatabaseId(16);
    const VALUE_BYTES: usize = 1_024;
    const FILE_BYTES: u64 = 1024 * 1024;
    const CACHE_BYTES: u64 = 8 * 1024 * 1024;
    /// Keys in one batch: about ten batches fill a file.
    const BATCH: u64 = 100;
    /// First of the keys that are written again and again.
    const HOT: u64 = 1 << 32;

    type Model = BTreeMap<Bytes, Bytes>;

    fn open(directory: &Path) -> NoxuEngine {
        let sizes = NoxuSizes {
            file_bytes: FILE_BYTES,
            ..NoxuSizes::with_cache(CACHE_BYTES)
        };
        NoxuEngine::open_with(directory, sizes).expect("an engine")
    }

    fn key(number: u64) -> Bytes {
        Bytes::copy_from_slice(&number.to_be_bytes())
    }

    /// Batches of keys that stay alternate with batches of keys that do not. So there are files
    /// that stay, before files that are cleaned, and now and then a batch that spans both.
    fn apply(engine: &NoxuEngine, number: u64, model: &mut Model) {
        let is_hot = number % 20 >= 7;
        let first = if is_hot { HOT } else { number * BATCH };
        let value = Bytes::from(vec![number.to_le_bytes()[0]; VALUE_BYTES]);
        let keys: Vec<_> = (first..first + BATCH).map(key).collect();
        model.extend(keys.iter().map(|key| (key.clone(), value.clone())));
        let put = |key: Bytes| (DB, key, Change::Put(value.clone()));
        // Some of the keys that have stayed so far.
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

    fn assert_holds(engine: &NoxuEngine, model: &Model) {
        let rows = engine.scan(DB, KeyRange::all(), Direction::Forward, ScanLimit::NONE);
        let rows: Model = rows.expect("scanned").into_iter().collect();
        let lost = model.keys().filter(|key| !rows.contains_key(*key)).count();
        assert_eq!(lost, 0, "of {}", model.len());
        assert_eq!(rows.len(), model.len(), "deleted keys are back");
        assert!(rows == *model, "values differ");
    }

    #[test]
    fn what_was_committed_is_there_when_files_were_cleaned() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut model = Model::new();
        let mut put_back = 0;
        for round in 0..3 {
            let engine = open(dir.path());
            assert_holds(&engine, &model);
            for number in 1..=300 {
                apply(&engine, round * 300 + number, &mut model);
            }
            engine.close().expect("closed");
            put_back += prepare(dir.path()).expect("written");
        }
        assert_holds(&open(dir.path()), &model);
        assert_ne!(put_back, 0, "no commit was cleaned away");
    }

    /// A power cut can leave an empty file, only just begun, after one with half an entry.
    #[test]
    fn the_torn_end_of_the_log_hides_no_missing_commit() {
        let dir = tempfile::tempdir().expect("a directory");
        let engine = open(dir.path());
        let mut model = Model::new();
        for number in 1..=300 {
            apply(&engine, number, &mut model);
        }
        engine.close().expect("closed");
        let files = FileManager::new(dir.path(), false, FILE_BYTES, 1).expect("files");
        let last = files.get_last_file_num().expect("listed").expect("a file");
        let torn = std::fs::OpenOptions::new()
            .append(true)
            .open(files.full_file_name(last));
        torn.expect("opened").write_all(&[7; 40]).expect("written");
        std::fs::write(files.full_file_name(last + 1), []).expect("written");
        drop(files);
        assert_ne!(prepare(dir.path()).expect("written"), 0);
        assert_holds(&open(dir.path()), &model);
    }
}
