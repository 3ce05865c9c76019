//! The edge: the files of credentials. They are read before a node, and so its disk, exists.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::Path;
use std::time::Duration;

use rustix::fs::OFlags;

use super::error::CredentialsError;

/// The file with the certificate of a holder.
pub const CERTIFICATE_FILE: &str = "certificate.pem";
/// The file with the private key of a holder.
pub const KEY_FILE: &str = "key.pem";
/// The file with the certificates of the authorities that are believed.
pub const AUTHORITY_FILE: &str = "authority.pem";
/// The file with the private key of an authority.
pub const AUTHORITY_KEY_FILE: &str = "authority-key.pem";

/// The largest file that is read: enough for hundreds of certificates.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// How a file is named that is about to take another one's place.
const NEW: &str = ".new.";
/// How old such a file is that was left there.
const LEFT_AFTER: Duration = Duration::from_mins(1);

/// Mode of a directory that is made: only its owner may look inside.
const DIRECTORY_MODE: u32 = 0o700;
/// Mode of a file that is made.
const FILE_MODE: u32 = 0o600;
/// The bits of a mode that are about others than the owner.
const OTHERS: u32 = 0o077;
/// Of these, the ones that let them write.
const OTHERS_WRITE: u32 = 0o022;

/// Makes a directory: `fill` gets an empty one beside it, which takes its name once that has
/// succeeded. So the directory is there whole or not at all.
///
/// # Errors
/// [`CredentialsError::NotEmpty`] when there is a directory with something in it;
/// [`CredentialsError::Io`]; what `fill` returns.
pub fn make_directory(
    dir: &Path,
    fill: impl FnOnce(&Path) -> Result<(), CredentialsError>,
) -> Result<(), CredentialsError> {
    check_empty(dir)?;
    let name = dir.file_name().ok_or_else(|| {
        let no_name = io::Error::new(ErrorKind::InvalidInput, "it has no name of its own");
        failed("make", dir)(no_name)
    })?;
    let parent = dir.parent().filter(|dir| !dir.as_os_str().is_empty());
    let parent = parent.unwrap_or(Path::new("."));
    let mut directories = DirBuilder::new();
    directories.recursive(true).mode(DIRECTORY_MODE);
    directories.create(parent).map_err(failed("make", parent))?;
    // Removed when it is dropped, if anything fails.
    let beside = tempfile::Builder::new()
        .permissions(Permissions::from_mode(DIRECTORY_MODE))
        .prefix(&format!(".{}.", name.to_string_lossy()))
        .tempdir_in(parent)
        .map_err(failed("make a directory in", parent))?;
    fill(beside.path())?;
    sync(beside.path())?;
    rename(beside.path(), dir).map_err(failed("make", dir))?;
    // It has another name by now.
    let _path = beside.keep();
    sync(parent)
}

/// Writes a file that is not there yet, durably once its directory is synced.
///
/// # Errors
/// [`CredentialsError::Io`].
#[expect(clippy::disallowed_methods, reason = "the edge of these files")]
pub(super) fn write(path: &Path, text: &str) -> Result<(), CredentialsError> {
    let mut options = OpenOptions::new();
    let file = options.write(true).create_new(true).mode(FILE_MODE);
    let written = file.open(path).and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.sync_all()
    });
    written.map_err(failed("write", path))
}

/// Writes a file in the place of the one of this name, if any, durably: at every moment there is
/// either the earlier one or the new one.
///
/// # Errors
/// [`CredentialsError::Io`].
pub(super) fn replace(dir: &Path, name: &str, text: &str) -> Result<(), CredentialsError> {
    let path = dir.join(name);
    remove_left(dir);
    // It has mode 0600, and is removed if anything fails.
    let beside = tempfile::Builder::new().prefix(NEW).tempfile_in(dir);
    let written = beside.and_then(|mut file| {
        keep_owner(dir, file.as_file())?;
        file.write_all(text.as_bytes())?;
        file.as_file().sync_all()?;
        file.persist(&path).map_err(|error| error.error)
    });
    written.map_err(failed("write", &path))?;
    sync(dir)
}

/// Gives a new file to the owner of its directory: another user, root perhaps, may write it for the
/// one that runs the node.
fn keep_owner(dir: &Path, file: &File) -> io::Result<()> {
    let (of_dir, own) = (fs::metadata(dir)?, file.metadata()?);
    if own.uid() == of_dir.uid() {
        return Ok(());
    }
    fchown(file, Some(of_dir.uid()), Some(of_dir.gid()))
}

/// Removes files that an interrupted [`replace`] has left; they may hold keys. One that is being
/// written is younger.
#[expect(clippy::disallowed_methods, reason = "the edge of these files")]
fn remove_left(dir: &Path) {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    for entry in entries {
        let is_new = entry.file_name().to_string_lossy().starts_with(NEW);
        let written = entry.metadata().and_then(|of| of.modified()).ok();
        let age = written.and_then(|at| at.elapsed().ok());
        if is_new && age.is_some_and(|age| age > LEFT_AFTER) {
            // It is in nobody's way, and the next one may remove it.
            fs::remove_file(entry.path()).ok();
        }
    }
}

/// Removes a file, durably.
///
/// # Errors
/// [`CredentialsError::Io`].
#[expect(clippy::disallowed_methods, reason = "the edge of these files")]
pub(super) fn remove(path: &Path) -> Result<(), CredentialsError> {
    fs::remove_file(path).map_err(failed("remove", path))?;
    path.parent().map_or(Ok(()), sync)
}

/// The whole of a file that decides who is believed, which nobody but its owner may write.
///
/// # Errors
/// [`CredentialsError::Missing`]; [`CredentialsError::Io`]; [`CredentialsError::OpenToWriters`];
/// [`CredentialsError::Malformed`] when it is no file, or too long.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, CredentialsError> {
    let (file, mode) = open(path)?;
    if mode & OTHERS_WRITE != 0 {
        return Err(CredentialsError::OpenToWriters {
            path: path.to_owned(),
            mode,
        });
    }
    read_open(&file, path)
}

/// The same for a private key, which nobody but its owner may use.
///
/// # Errors
/// As [`read`]; [`CredentialsError::OpenKey`].
pub(super) fn read_key(path: &Path) -> Result<Vec<u8>, CredentialsError> {
    let (file, mode) = open(path)?;
    if mode & OTHERS != 0 {
        return Err(CredentialsError::OpenKey {
            path: path.to_owned(),
            mode,
        });
    }
    read_open(&file, path)
}

/// The same for a file that is only looked at, whoever may write it.
///
/// # Errors
/// As [`read`], but for the mode.
pub(super) fn look(path: &Path) -> Result<Vec<u8>, CredentialsError> {
    read_open(&open(path)?.0, path)
}

/// Whether nobody but its owner can put other files into a directory.
///
/// # Errors
/// [`CredentialsError::OpenToWriters`]; [`CredentialsError::Io`].
pub(super) fn check_directory(dir: &Path) -> Result<(), CredentialsError> {
    let metadata = match fs::metadata(dir) {
        // Its files are missing then.
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        metadata => metadata.map_err(failed("read", dir))?,
    };
    let mode = metadata.mode() & 0o7777;
    if metadata.is_dir() && mode & OTHERS_WRITE != 0 {
        let path = dir.to_owned();
        return Err(CredentialsError::OpenToWriters { path, mode });
    }
    Ok(())
}

/// Whether there is a file or directory of this name.
///
/// # Errors
/// [`CredentialsError::Io`].
pub(super) fn exists(path: &Path) -> Result<bool, CredentialsError> {
    path.try_exists().map_err(failed("read", path))
}

/// A regular file, and its mode. Anything else could have no end, or none to write into it: a pipe
/// would be waited for at the open already, but for `NONBLOCK`.
#[expect(clippy::disallowed_methods, reason = "the edge of these files")]
fn open(path: &Path) -> Result<(File, u32), CredentialsError> {
    let without_waiting = i32::try_from(OFlags::NONBLOCK.bits()).expect("a flag of the system");
    let mut options = OpenOptions::new();
    let opened = options.read(true).custom_flags(without_waiting).open(path);
    let file = opened.map_err(|error| match error.kind() {
        ErrorKind::NotFound => CredentialsError::Missing {
            path: path.to_owned(),
        },
        _ => failed("read", path)(error),
    })?;
    // Of the open file: its name could stand for another one by then.
    let metadata = file.metadata().map_err(failed("read", path))?;
    if !metadata.is_file() {
        return Err(CredentialsError::malformed(path, &"it is no regular file"));
    }
    Ok((file, metadata.mode() & 0o7777))
}

fn read_open(file: &File, path: &Path) -> Result<Vec<u8>, CredentialsError> {
    let mut bytes = Vec::new();
    let read = file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes);
    read.map_err(failed("read", path))?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        let too_long = format!("it is longer than {FILE_BYTES_MAX} bytes");
        return Err(CredentialsError::malformed(path, &too_long));
    }
    Ok(bytes)
}

#[expect(clippy::disallowed_methods, reason = "the edge of these files")]
fn check_empty(dir: &Path) -> Result<(), CredentialsError> {
    match fs::read_dir(dir).map(|mut entries| entries.next().is_none()) {
        Ok(true) => Ok(()),
        Ok(false) => Err(CredentialsError::NotEmpty {
            path: dir.to_owned(),
        }),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed("make", dir)(error)),
    }
}

/// An empty directory gives way; anything else is refused by the system.
#[expect(clippy::disallowed_methods, reason = "the edge of these files")]
fn rename(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)
}

#[expect(clippy::disallowed_methods, reason = "the edge of these files")]
fn sync(dir: &Path) -> Result<(), CredentialsError> {
    let synced = File::open(dir).and_then(|dir| dir.sync_all());
    synced.map_err(failed("sync", dir))
}

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CredentialsError {
    move |source| CredentialsError::Io {
        doing,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::disallowed_methods, reason = "tests look at files")]

    use std::path::PathBuf;

    use rustix::fs::{CWD, FileType, Mode, mknodat};
    use tempfile::TempDir;

    use super::super::{
        AUTHORITY_FILE, AUTHORITY_KEY_FILE, Authority, CERTIFICATE_FILE, KEY_FILE, VALID_FOR,
        describe, read,
    };
    use super::*;
    use crate::config::access::Holder;
    use crate::ids::NodeId;

    const NOW_MS: u64 = 1_800_000_000_000;

    /// A directory for tests with an authority, and the credentials of node 1.
    fn written() -> (TempDir, PathBuf, PathBuf) {
        let root = TempDir::new().expect("a directory");
        let (of_authority, of_node) = (root.path().join("authority"), root.path().join("n1"));
        let authority = Authority::create("orders", NOW_MS).expect("made");
        authority.write(&of_authority).expect("written");
        let node = Holder::node("orders", NodeId(1)).expect("valid");
        let issued = authority.issue(&node, VALID_FOR, NOW_MS).expect("issued");
        issued.write(&of_node).expect("written");
        (root, of_authority, of_node)
    }

    /// Reads what the file belongs to, of a node or of an authority.
    fn read_again(dir: &Path) -> Result<(), CredentialsError> {
        if dir.ends_with("authority") {
            Authority::read(dir).map(drop)
        } else {
            read(dir, NOW_MS).map(drop)
        }
    }

    #[test]
    fn what_is_no_regular_file_is_refused_and_not_waited_for() {
        let (_root, of_authority, of_node) = written();
        let is_refused = |path: &Path, refused: Option<CredentialsError>| match refused {
            Some(CredentialsError::Malformed { path: of, reason }) => {
                assert_eq!(of, path);
                assert!(reason.contains("regular file"), "{reason}");
            }
            other => panic!("{}: {other:?}", path.display()),
        };
        for (dir, name) in [
            (&of_node, CERTIFICATE_FILE),
            (&of_node, KEY_FILE),
            (&of_node, AUTHORITY_FILE),
            (&of_authority, AUTHORITY_FILE),
            (&of_authority, AUTHORITY_KEY_FILE),
        ] {
            let (path, aside) = (dir.join(name), dir.join("aside"));
            let refused = || read_again(dir).err();
            rename(&path, &aside).expect("renamed");
            mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).expect("made");
            is_refused(&path, refused());
            fs::remove_file(&path).expect("removed");
            DirBuilder::new().mode(0o700).create(&path).expect("made");
            is_refused(&path, refused());
            fs::remove_dir(&path).expect("removed");
            std::os::unix::fs::symlink("/dev/zero", &path).expect("linked");
            is_refused(&path, refused());
            fs::remove_file(&path).expect("removed");
            rename(&aside, &path).expect("renamed");
        }
        read_again(&of_node).expect("usable");
        read_again(&of_authority).expect("usable");
    }

    #[test]
    fn who_is_believed_is_not_read_from_a_file_that_others_may_write_but_is_shown() {
        let (_root, of_authority, of_node) = written();
        for (dir, name) in [
            (&of_node, CERTIFICATE_FILE),
            (&of_node, AUTHORITY_FILE),
            (&of_authority, AUTHORITY_FILE),
        ] {
            let path = dir.join(name);
            let set = |mode| fs::set_permissions(&path, Permissions::from_mode(mode));
            for open in [0o620, 0o602, 0o664, 0o666] {
                set(open).expect("set");
                match read_again(dir) {
                    Err(error @ CredentialsError::OpenToWriters { mode, .. }) => {
                        assert_eq!(mode, open);
                        let remedy = format!("chmod go-w {}", path.display());
                        assert!(error.to_string().contains(&remedy), "{error}");
                    }
                    other => panic!("{name} {open:o}: {other:?}"),
                }
                describe(dir).expect("it is only looked at");
            }
            // All may know whom a node believes.
            set(0o644).expect("set");
        }
        // Nor from a directory into which they may put another file.
        let set = |mode| fs::set_permissions(&of_node, Permissions::from_mode(mode));
        set(0o777).expect("set");
        let refused = read_again(&of_node);
        let is_open = matches!(
            refused,
            Err(CredentialsError::OpenToWriters { mode: 0o777, .. })
        );
        assert!(is_open, "{refused:?}");
        set(0o755).expect("set");
        read_again(&of_node).expect("usable");
        read_again(&of_authority).expect("usable");
    }
}
