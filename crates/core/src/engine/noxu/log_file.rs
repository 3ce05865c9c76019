//! The files of Noxu's log: a header, then entries without a gap. Each entry begins with the CRC-32
//! of the rest of it.

use std::path::Path;

use noxu_log::entry_header::CHECKSUM_BYTES;
use noxu_log::{ChecksumValidator, FileHeader, LogEntryHeader, LogEntryType, LogError};
use noxu_util::Lsn;

use super::errors::io_error;
use crate::engine::error::{EngineError, Result};

/// Highest file version that a later Noxu may use.
const VERSION_MAX: u32 = 255;

/// Offset of an entry's flags, and the one flag that may be set in place, after the checksum was
/// computed.
const FLAGS_OFFSET: usize = 5;
const INVISIBLE: u8 = 0x10;

/// The header of a file. One written by a newer version is not reported as damage.
pub(super) fn header(path: &Path, bytes: &[u8]) -> Result<FileHeader> {
    FileHeader::read_from(&mut &*bytes).map_err(|error| match error {
        LogError::VersionMismatch { found, .. } if found <= VERSION_MAX => {
            io_error("read a file of a newer version", error)
        }
        error => EngineError::Corrupt {
            what: format!("{} at byte 0: {error}", path.display()),
        },
    })
}

/// An entry of a file.
pub(super) struct Entry<'a> {
    pub(super) kind: LogEntryType,
    header_bytes: usize,
    checksum: u32,
    bytes: &'a [u8],
}

impl<'a> Entry<'a> {
    /// Its content, after its header.
    pub(super) fn body(&self) -> &'a [u8] {
        &self.bytes[self.header_bytes..]
    }

    /// Whether its checksum matches.
    pub(super) fn is_intact(&self) -> bool {
        checksum(self.bytes) == self.checksum
    }
}

/// Reads the entries of a file.
pub(super) struct Entries<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Entries<'a> {
    pub(super) fn new(header: &FileHeader, bytes: &'a [u8]) -> Self {
        let at = FileHeader::on_disk_size(header.log_version);
        Self { bytes, at }
    }

    /// Offset of the next entry, or of the end.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    /// The next entry, its checksum verified; `None` where nothing has been written yet.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn read(&mut self) -> std::result::Result<Option<Entry<'a>>, String> {
        let at = self.at;
        let entry = self.skim()?;
        if entry.as_ref().is_some_and(|entry| !entry.is_intact()) {
            self.at = at;
            return Err("an entry whose checksum does not match".to_owned());
        }
        Ok(entry)
    }

    /// The next entry, its checksum not verified; `None` where nothing has been written yet.
    ///
    /// # Errors
    /// What is wrong with its header.
    pub(super) fn skim(&mut self) -> std::result::Result<Option<Entry<'a>>, String> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        if rest.iter().take(1024).all(|byte| *byte == 0) {
            if rest.iter().any(|byte| *byte != 0) {
                return Err("a hole".to_owned());
            }
            return Ok(None);
        }
        let header = LogEntryHeader::read_from_log(rest, Lsn::new(0, 0));
        let header = header.map_err(|error| error.to_string())?;
        let Some(bytes) = rest.get(..header.entry_size()) else {
            return Err("an entry that extends past the end of its file".to_owned());
        };
        self.at += bytes.len();
        Ok(Some(Entry {
            kind: header.entry_type(),
            header_bytes: header.size(),
            checksum: header.checksum(),
            bytes,
        }))
    }
}

/// The checksum of an entry as it was written.
pub(super) fn checksum(entry: &[u8]) -> u32 {
    let mut checksum = ChecksumValidator::new();
    checksum.update_all(&entry[CHECKSUM_BYTES..FLAGS_OFFSET]);
    checksum.update_all(&[entry[FLAGS_OFFSET] & !INVISIBLE]);
    checksum.update_all(&entry[FLAGS_OFFSET + 1..]);
    checksum.value()
}
