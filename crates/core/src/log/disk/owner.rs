//! File ownership: a file belongs to the owner of its directory.
//!
//! A data directory belongs to the user that the node runs as. A command run on it as root, or a
//! node started as root by mistake, must not leave files in it that the node cannot open.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, lchown};
use std::path::Path;

/// Gives a file or directory the owner and the group of its parent directory, where this process
/// may.
///
/// # Errors
/// As the disk reports them.
pub(crate) fn inherit(path: &Path) -> io::Result<()> {
    let parent = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    let of = fs::metadata(parent.unwrap_or(Path::new(".")))?;
    let own = fs::symlink_metadata(path)?;
    if (own.uid(), own.gid()) == (of.uid(), of.gid()) {
        return Ok(());
    }
    match lchown(path, Some(of.uid()), Some(of.gid())) {
        // A process that may not change owners keeps what it creates, as usual.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        given => given,
    }
}

/// The same for everything in a directory.
///
/// # Errors
/// As the disk reports them.
#[expect(
    clippy::disallowed_methods,
    reason = "files that are not behind the disk trait"
)]
pub(crate) fn inherit_within(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        match inherit(&entry?.path()) {
            // It was removed meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            given => given?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::{Disk, OpenMode, RealDisk};

    /// A user and a group that own nothing else.
    const SERVICE: (u32, u32) = (12_345, 23_456);

    #[test]
    #[expect(clippy::print_stderr, reason = "a test that is skipped says so")]
    fn what_is_made_in_a_directory_of_another_user_is_his() {
        let dir = tempfile::tempdir().expect("a directory");
        let given = lchown(dir.path(), Some(SERVICE.0), Some(SERVICE.1));
        if given.is_err() {
            eprintln!("skipped: this user may not give a directory away");
            return;
        }
        let (deep, file) = (dir.path().join("a/b"), dir.path().join("a/b/file"));
        RealDisk.create_dir_all(&deep).expect("made");
        let opened = RealDisk.open(&file, OpenMode::CreateNew);
        drop(opened.expect("made"));
        let lock = dir.path().join("lock");
        drop(RealDisk.lock(&lock).expect("made"));
        for path in [&dir.path().join("a"), &deep, &file, &lock] {
            let of = fs::metadata(path).expect("it is there");
            assert_eq!((of.uid(), of.gid()), SERVICE, "{}", path.display());
        }
    }
}
