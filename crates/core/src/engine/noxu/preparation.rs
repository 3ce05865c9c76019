//! Prepares the files of an environment, and Noxu, before Noxu opens them. Every file is read once.
//!
//! Whatever cannot be read, such as the end that a crash has left, is skipped with the rest of its
//! file. Reporting it is left to Noxu.

use std::path::Path;

use noxu_log::FileManager;

use super::begun_file;
use super::errors::io_error;
use super::log_file::{Entries, header};
use super::lost_commits::LostCommits;
use super::node_ids::NodeIds;
use crate::engine::error::Result;

/// Prepares `directory`, and returns how many commits were put back. Files that Noxu will not open
/// are left for it to report.
///
/// # Errors
/// [`EngineError::Io`](crate::engine::EngineError::Io) when a commit could not be written, or the
/// directory could not be read.
pub(super) fn prepare(directory: &Path) -> Result<usize> {
    begun_file::remove(directory)
        .map_err(|error| io_error("remove a file that was begun", error))?;
    // Holds Noxu's lock on the directory.
    let Ok(files) = FileManager::new(directory, false, u64::from(u32::MAX), 1) else {
        return Ok(0);
    };
    let Ok(numbers) = files.list_file_numbers() else {
        return Ok(0);
    };
    let mut ids = NodeIds::default();
    let mut commits = LostCommits::new(&numbers);
    for number in numbers {
        let path = files.full_file_name(number);
        #[expect(clippy::disallowed_methods, reason = "Noxu keeps its files itself")]
        let bytes = std::fs::read(&path).unwrap_or_default();
        let Ok(header) = header(&path, &bytes) else {
            continue;
        };
        let mut entries = Entries::new(&header, &bytes);
        while let Ok(Some(entry)) = entries.skim() {
            if !NodeIds::are_in(entry.kind) && !commits.are_told_by(entry.kind, number) {
                continue;
            }
            if !entry.is_intact() {
                break;
            }
            ids.note(&entry);
            commits.note(&entry, number);
        }
    }
    ids.rule_out();
    commits.put_back(&files)
}
