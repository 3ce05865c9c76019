//! Reads Noxu's log files, which are all of its data, and verifies the checksum of each entry.
//!
//! Noxu verifies an entry only when it fetches it: not what its cache holds, nor what nobody asks
//! for.

use std::io;
use std::path::{Path, PathBuf};

use super::errors::io_error;
use super::log_file::{Entries, header};
use crate::engine::error::{EngineError, Result};

const EXTENSION: &str = "ndb";

/// Verifies every file in `directory`, whose environment may be open and has been synced. Returns
/// how many bytes are valid.
///
/// # Errors
/// [`EngineError::Corrupt`] with the file and the offset; [`EngineError::Io`]; those of `sync`.
pub(super) fn files(directory: &Path, sync: impl Fn() -> Result<()>) -> Result<u64> {
    let mut bytes = 0;
    for path in log_files(directory).map_err(|error| io_error("list its files", error))? {
        bytes += match beside_writes(&path, &sync) {
            // Cleaned away meanwhile.
            Err(EngineError::Io { .. }) if !path.exists() => 0,
            checked => checked?,
        };
    }
    Ok(bytes)
}

/// Verifies a file that may be written meanwhile: a sync completes what was being written.
fn beside_writes(path: &Path, sync: impl Fn() -> Result<()>) -> Result<u64> {
    let first = entries(path)?;
    if first.wrong.is_none() {
        return Ok(first.bytes);
    }
    sync()?;
    let second = entries(path)?;
    if second.bytes > first.bytes {
        return Ok(second.bytes);
    }
    second.or_corrupt(path)
}

/// Classifies `error`, with which Noxu failed to open the files in `directory`:
/// [`EngineError::Corrupt`] where they prove it. Noxu has one kind of error for most failures to
/// open.
///
/// Beyond its header, the last file proves nothing: a crash may have cut off an entry.
pub(super) fn why_not_open(directory: &Path, error: EngineError) -> EngineError {
    if !matches!(error, EngineError::Io { .. }) {
        return error;
    }
    let Ok(paths) = log_files(directory) else {
        return error;
    };
    let last = paths.last();
    let found = paths.iter().find_map(|path| {
        let checked = if Some(path) == last {
            header_of(path)
        } else {
            entries(path)
                .and_then(|checked| checked.or_corrupt(path))
                .map(drop)
        };
        checked.err().filter(EngineError::is_damage)
    });
    found.unwrap_or(error)
}

#[expect(clippy::disallowed_methods, reason = "Noxu keeps its files itself")]
fn header_of(path: &Path) -> Result<()> {
    let bytes = std::fs::read(path).map_err(|error| io_error("read a file", error))?;
    header(path, &bytes).map(drop)
}

/// The files of the log, in log order.
#[expect(clippy::disallowed_methods, reason = "Noxu keeps its files itself")]
pub(super) fn log_files(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if path.extension().is_some_and(|own| own == EXTENSION) {
            paths.push(path);
        }
    }
    paths.sort_unstable();
    Ok(paths)
}

/// How far the entries of a file are valid, and what is wrong with the next one.
struct Checked {
    bytes: u64,
    wrong: Option<String>,
}

impl Checked {
    fn or_corrupt(self, path: &Path) -> Result<u64> {
        match self.wrong {
            None => Ok(self.bytes),
            Some(what) => Err(EngineError::Corrupt {
                what: format!("{} at byte {}: {what}", path.display(), self.bytes),
            }),
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "Noxu keeps its files itself")]
fn entries(path: &Path) -> Result<Checked> {
    let bytes = std::fs::read(path).map_err(|error| io_error("read a file", error))?;
    let header = match header(path, &bytes) {
        // It may be that of a file only just begun.
        Err(EngineError::Corrupt { .. }) => {
            let wrong = Some("its header".to_owned());
            return Ok(Checked { bytes: 0, wrong });
        }
        header => header?,
    };
    let mut entries = Entries::new(&header, &bytes);
    let wrong = loop {
        match entries.read() {
            Ok(Some(_)) => {}
            Ok(None) => break None,
            Err(what) => break Some(what),
        }
    };
    Ok(Checked {
        bytes: entries.at() as u64,
        wrong,
    })
}
