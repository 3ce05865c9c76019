//! Reading back a whole backup.

use std::path::Path;

use steadfast::plural;

use crate::backup::format::{BackedUp, BackupError, Digest, Manifest, Record, read_chunk};
use crate::progress::Progress;

/// Reads all of it, and checks order, numbers, checksums and digest.
///
/// # Errors
/// What is wrong, and where.
pub(super) fn verify(dir: &Path) -> Result<Manifest, BackupError> {
    let manifest = Manifest::read(dir)?;
    let mut progress = Progress::new("verified", manifest.bytes);
    let mut seen = Seen::default();
    for (number, chunk) in (1..).zip(&manifest.chunks) {
        // Each chunk names its databases anew.
        seen.is_within = false;
        read_chunk(dir, number, chunk, |record| seen.take(&record))?;
        progress.update(seen.bytes);
    }
    seen.check(&manifest)?;
    Ok(manifest)
}

/// What was read so far.
#[derive(Default)]
struct Seen {
    databases: Vec<BackedUp>,
    last_key: Option<Vec<u8>>,
    /// Whether the chunk has named the database of its rows.
    is_within: bool,
    /// Whether a time to live waits for its row.
    has_time_to_live: bool,
    digest: Digest,
    rows: u64,
    bytes: u64,
}

impl Seen {
    fn take(&mut self, record: &Record<'_>) -> Result<(), BackupError> {
        let wrong = |what: &str| Err(BackupError::Mismatch(what.to_owned()));
        if std::mem::take(&mut self.has_time_to_live) && !matches!(record, Record::Row(..)) {
            return wrong("a time to live belongs to no row");
        }
        match record {
            Record::TimeToLive(_) => self.has_time_to_live = true,
            Record::Database(name) => {
                self.is_within = true;
                match self.databases.last().map(|last| last.name.as_str()) {
                    Some(last) if last == *name => return Ok(()),
                    Some(last) if last > *name => return wrong("databases are out of order"),
                    _ => {}
                }
                self.digest.add(name.as_bytes());
                self.last_key = None;
                self.databases.push(BackedUp {
                    name: (*name).to_owned(),
                    rows: 0,
                });
            }
            Record::Row(key, value) => {
                let database = self.databases.last_mut().filter(|_| self.is_within);
                let Some(database) = database else {
                    return wrong("a row belongs to no database");
                };
                if self.last_key.as_deref().is_some_and(|last| last >= *key) {
                    return wrong("keys are out of order");
                }
                database.rows += 1;
                self.last_key = Some(key.to_vec());
                self.digest.add(key);
                self.digest.add(value);
                self.rows += 1;
                self.bytes += (key.len() + value.len()) as u64;
            }
        }
        Ok(())
    }

    fn check(&self, manifest: &Manifest) -> Result<(), BackupError> {
        let is_same = self.databases == manifest.databases
            && self.rows == manifest.rows
            && self.bytes == manifest.bytes;
        if !is_same {
            let noun = plural(manifest.rows, "row", "rows");
            let what = format!("it holds {} of {} {noun}", self.rows, manifest.rows);
            return Err(BackupError::Mismatch(what));
        }
        if self.has_time_to_live {
            let what = "a time to live belongs to no row".to_owned();
            return Err(BackupError::Mismatch(what));
        }
        if self.digest.hex() != manifest.digest {
            return Err(BackupError::Mismatch("its digest differs".to_owned()));
        }
        Ok(())
    }
}
