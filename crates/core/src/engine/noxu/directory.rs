//! The files of a Noxu environment, as far as we touch them.

use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use tempfile::TempDir;

use crate::log::owner;

/// Creates the directory and makes it and its files durable as they are. Noxu treats files written,
/// but not synced, before a process crash as if they were durable.
#[expect(
    clippy::disallowed_methods,
    reason = "Noxu's files are not behind the disk trait"
)]
pub(super) fn make_directory_durable(directory: &Path) -> io::Result<()> {
    if !directory.exists() {
        // Noxu's own files are readable for everybody.
        let mut private = std::fs::DirBuilder::new();
        private.recursive(true).mode(0o700).create(directory)?;
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

/// Creates a file atomically; it is on disk on return.
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

/// Copies the files of `directory`, if it exists, into a new one in the system's directory for
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

/// Durably removes the directory, if it exists.
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

/// Makes the existence or absence of this file durable.
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

/// Size of the files of a directory. A file removed meanwhile is not counted.
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn nobody_else_reads_the_files_of_an_engine() {
        let root = TempDir::new().expect("a directory");
        let engine = root.path().join("engine");
        make_directory_durable(&engine).expect("made");
        let mode = std::fs::metadata(&engine)
            .expect("there")
            .permissions()
            .mode();
        assert_eq!(mode & 0o7777, 0o700);
    }
}
