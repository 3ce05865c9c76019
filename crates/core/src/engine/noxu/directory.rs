//! The files of a Noxu environment, as far as we touch them.

use std::io::{self, Write};
use std::path::Path;

use tempfile::TempDir;

use crate::log::owner;

/// Creates the directory and makes it and its files durable as they are. Noxu reads files that were
/// written before a crash of the process, but not synced, as if they were.
#[expect(
    clippy::disallowed_methods,
    reason = "Noxu's files are not behind the disk trait"
)]
pub(super) fn make_directory_durable(directory: &Path) -> io::Result<()> {
    if !directory.exists() {
        std::fs::create_dir_all(directory)?;
        owner::inherit(directory)?;
    }
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            std::fs::File::open(entry.path())?.sync_all()?;
        }
    }
    std::fs::File::open(directory)?.sync_all()?;
    sync_parent(directory)
}

/// Creates a file that is there whole or not at all, and is on disk when this returns.
#[expect(
    clippy::disallowed_methods,
    reason = "Noxu's files are not behind the disk trait"
)]
pub(super) fn create_durably(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut file = std::fs::File::create(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&new, path)?;
    sync_parent(path)
}

/// Copies the files of `directory`, if it is there, into a new one in the system's directory for
/// temporary files.
#[expect(
    clippy::disallowed_methods,
    reason = "Noxu's files are not behind the disk trait"
)]
pub(super) fn copy_files(directory: &Path) -> io::Result<TempDir> {
    let copy = TempDir::with_prefix("steadfast-")?;
    if !directory.try_exists()? {
        return Ok(copy);
    }
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            std::fs::copy(entry.path(), copy.path().join(entry.file_name()))?;
        }
    }
    Ok(copy)
}

/// Removes the directory, if it is there, durably.
#[expect(
    clippy::disallowed_methods,
    reason = "Noxu's files are not behind the disk trait"
)]
pub(super) fn remove_directory(directory: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => sync_parent(directory),
    }
}

/// Makes durable that there is such a file, or none.
#[expect(
    clippy::disallowed_methods,
    reason = "Noxu's files are not behind the disk trait"
)]
pub(super) fn sync_parent(directory: &Path) -> io::Result<()> {
    match directory
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
    {
        Some(parent) => std::fs::File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

/// Size of the files of a directory. A file that goes while this looks counts for nothing.
#[expect(
    clippy::disallowed_methods,
    reason = "Noxu's files are not behind the disk trait"
)]
pub(super) fn bytes_in(directory: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return 0;
    };
    let sizes = entries.filter_map(|entry| entry.and_then(|entry| entry.metadata()).ok());
    sizes.map(|metadata| metadata.len()).sum()
}
