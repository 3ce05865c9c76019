//! Removes a log file that was only just begun when the process was killed.
//!
//! Noxu writes the header of a new file in two parts, and refuses to open a directory with a file
//! that has only the first. Such a file has no entries: they follow once its header is on disk.

use std::io::{ErrorKind, Result};
use std::path::{Path, PathBuf};

use noxu_log::{FileHeader, LogError};

use super::check::log_files;
use super::directory::sync_parent;

/// The file that Noxu locks while it has the directory open.
const LOCK: &str = "noxu.lck";
/// A file's header is at most this long.
const HEADER_BYTES_MAX: u64 = 64;

/// Durably removes the last file of the log if its header is incomplete. Leaves an open directory
/// as it is.
#[expect(clippy::disallowed_methods, reason = "Noxu keeps its files itself")]
pub(super) fn remove(directory: &Path) -> Result<()> {
    let Some(last) = log_files(directory)?.pop() else {
        return Ok(());
    };
    if !is_begun(&last)? {
        return Ok(());
    }
    let lock = std::fs::File::create(directory.join(LOCK))?;
    if lock.try_lock().is_ok() && is_begun(&last)? {
        std::fs::remove_file(&last)?;
        sync_parent(&last)?;
        tracing::info!(
            file = %last.display(),
            "removed a file that a crash had left without a header"
        );
    }
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "Noxu keeps its files itself")]
fn is_begun(file: &PathBuf) -> Result<bool> {
    if std::fs::metadata(file)?.len() > HEADER_BYTES_MAX {
        return Ok(false);
    }
    let bytes = std::fs::read(file)?;
    // A power cut may leave zeros.
    let is_blank = bytes.iter().all(|byte| *byte == 0);
    let header = FileHeader::read_from(&mut &*bytes);
    let is_cut = matches!(
        header, Err(LogError::Io(error)) if error.kind() == ErrorKind::UnexpectedEof
    );
    Ok(is_blank || is_cut)
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "Noxu keeps its files itself")]
mod tests {
    use bytes::Bytes;
    use noxu_log::FileHeader;

    use super::log_files;
    use crate::engine::values::{Applied, Change, EngineBatch};
    use crate::engine::{NoxuEngine, NoxuSizes, StorageEngine};
    use crate::ids::{DatabaseId, LogPosition, Term, Vlsn};

    const DB: DatabaseId = DatabaseId(1);
    const SIZES: NoxuSizes = NoxuSizes {
        file_bytes: 1 << 20,
        ..NoxuSizes::with_cache(4 << 20)
    };

    fn apply(engine: &NoxuEngine, number: u64) {
        let (key, value) = (number.to_be_bytes(), vec![7; 300_000]);
        let put = Change::Put(value.into());
        let applied = Applied {
            term: Term(1),
            position: LogPosition(number),
            vlsn: Vlsn(number),
            membership: Bytes::new(),
        };
        let changes = vec![(DB, Bytes::copy_from_slice(&key), put)];
        let batch = EngineBatch { applied, changes };
        engine.apply(&batch).expect("applied");
    }

    #[test]
    fn an_engine_opens_with_a_file_whose_header_was_cut_off_and_writes_it_anew() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut header = Vec::new();
        let mut number = 0;
        for bytes in [0, 1, 8, 12, 31, 32, 33, 35] {
            let engine = NoxuEngine::open_with(dir.path(), SIZES).expect("opened");
            for _ in 0..5 {
                number += 1;
                apply(&engine, number);
            }
            drop(engine);
            let last = log_files(dir.path())
                .expect("listed")
                .pop()
                .expect("a file");
            let name = last.file_stem().and_then(|name| name.to_str());
            let next = u32::from_str_radix(name.expect("a name"), 16).expect("a number") + 1;
            header.clear();
            FileHeader::new(next, 0)
                .write_to(&mut header)
                .expect("written");
            let path = dir.path().join(format!("{next:08x}.ndb"));
            std::fs::write(path, &header[..bytes]).expect("written");
        }
        let engine = NoxuEngine::open_with(dir.path(), SIZES).expect("opened");
        for number in 1..=number {
            let value = engine.get(DB, &number.to_be_bytes()).expect("read");
            assert_eq!(value.map(|value| value.len()), Some(300_000), "{number}");
        }
    }
}
