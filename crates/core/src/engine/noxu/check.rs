//! Reads Noxu's log files, all of its data, and holds the checksum of each entry against it.
//!
//! Noxu verifies an entry when it fetches it, and so not what its cache holds, nor what nobody asks for.

use std::io;
use std::path::{Path, PathBuf};

use super::errors::io_error;
use super::log_file::{Entries, header};
use crate::engine::{EngineError, Result};

const EXTENSION: &str = "ndb";

/// Verifies every file in `directory`, whose environment may be open and was synced. Returns how many
/// bytes hold.
///
/// # Errors
/// [`EngineError::Corrupt`] with the file and the offset; [`EngineError::Io`].
pub(super) fn files(directory: &Path) -> Result<u64> {
    let mut bytes = 0;
    for path in log_files(directory).map_err(|error| io_error("list its files", error))? {
        bytes += match file(&path) {
            // Cleaned away meanwhile.
            Err(EngineError::Io { .. }) if !path.exists() => 0,
            // A write may have been under way; what is wrong stays wrong.
            Err(EngineError::Corrupt { .. }) => file(&path)?,
            checked => checked?,
        };
    }
    Ok(bytes)
}

/// What `error`, with which Noxu could not open the files in `directory`, is: [`EngineError::Corrupt`]
/// where they prove it. Noxu has one kind of error for most that goes wrong then.
///
/// Behind its header the last file proves nothing: a crash may have cut an entry off.
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
            file(path).map(drop)
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

#[expect(clippy::disallowed_methods, reason = "Noxu keeps its files itself")]
fn log_files(directory: &Path) -> io::Result<Vec<PathBuf>> {
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

#[expect(clippy::disallowed_methods, reason = "Noxu keeps its files itself")]
fn file(path: &Path) -> Result<u64> {
    let bytes = std::fs::read(path).map_err(|error| io_error("read a file", error))?;
    let corrupt = |at: usize, what: &str| EngineError::Corrupt {
        what: format!("{} at byte {at}: {what}", path.display()),
    };
    let header = header(path, &bytes)?;
    let mut entries = Entries::new(&header, &bytes);
    while entries
        .read()
        .map_err(|what| corrupt(entries.at(), &what))?
        .is_some()
    {}
    Ok(entries.at() as u64)
}
