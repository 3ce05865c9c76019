//! Reads Noxu's log files, all of its data, and holds the checksum of each entry against it.
//!
//! Noxu verifies an entry when it fetches it, and so not what its cache holds, nor what nobody asks for.
//! A file is a header and then entries without a gap; each begins with the CRC-32 of the rest of it.

use std::io;
use std::path::{Path, PathBuf};

use noxu_log::entry_header::CHECKSUM_BYTES;
use noxu_log::{ChecksumValidator, FileHeader, LogEntryHeader, LogError};
use noxu_util::Lsn;

use super::errors::io_error;
use crate::engine::{EngineError, Result};

const EXTENSION: &str = "ndb";

/// Versions of files that Noxu may yet come to.
const VERSION_MAX: u32 = 255;

/// Offset of the flags in an entry, and the one among them that may be set in place, after the
/// checksum was made.
const FLAGS_OFFSET: usize = 5;
const INVISIBLE: u8 = 0x10;

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

/// The header of a file. One that a newer version has written is not damaged.
fn header(path: &Path, bytes: &[u8]) -> Result<FileHeader> {
    FileHeader::read_from(&mut &*bytes).map_err(|error| match error {
        LogError::VersionMismatch { found, .. } if found <= VERSION_MAX => {
            io_error("read a file of a newer version", error)
        }
        error => EngineError::Corrupt {
            what: format!("{} at byte 0: {error}", path.display()),
        },
    })
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
    let mut at = FileHeader::on_disk_size(header.log_version);
    while at < bytes.len() {
        let size = entry(&bytes[at..]).map_err(|what| corrupt(at, &what))?;
        if size == 0 {
            break;
        }
        at += size;
    }
    Ok(at as u64)
}

/// The size of the entry that stands first; 0 where nothing was written yet.
fn entry(bytes: &[u8]) -> std::result::Result<usize, String> {
    if bytes.iter().take(1024).all(|byte| *byte == 0) {
        if bytes.iter().any(|byte| *byte != 0) {
            return Err("a hole".to_owned());
        }
        return Ok(0);
    }
    let header = LogEntryHeader::read_from_log(bytes, Lsn::new(0, 0));
    let header = header.map_err(|error| error.to_string())?;
    let size = header.size() + header.item_size() as usize;
    let Some(whole) = bytes.get(..size) else {
        return Err("an entry that ends behind its file".to_owned());
    };
    let mut whole = whole.to_vec();
    whole[FLAGS_OFFSET] &= !INVISIBLE;
    if ChecksumValidator::compute(&whole[CHECKSUM_BYTES..]) == header.checksum() {
        Ok(size)
    } else {
        Err("an entry whose checksum does not match".to_owned())
    }
}
