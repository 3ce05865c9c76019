//! The edge: the files of credentials. They are read before a node, and so its disk, exists.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

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

/// Mode of a directory that is made: only its owner may look inside.
const DIRECTORY_MODE: u32 = 0o700;
/// Mode of a file that is made.
const FILE_MODE: u32 = 0o600;
/// The bits of a mode that are about others than the owner.
const OTHERS: u32 = 0o077;

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
    // It has mode 0600, and is removed if anything fails.
    let beside = tempfile::Builder::new().prefix(".new.").tempfile_in(dir);
    let written = beside.and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.as_file().sync_all()?;
        file.persist(&path).map_err(|error| error.error)
    });
    written.map_err(failed("write", &path))?;
    sync(dir)
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

/// The whole of a file.
///
/// # Errors
/// [`CredentialsError::Missing`]; [`CredentialsError::Io`]; [`CredentialsError::Malformed`] when it
/// is too long.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, CredentialsError> {
    read_open(&open(path)?, path)
}

/// The same for a private key, which nobody but its owner may use.
///
/// # Errors
/// As [`read`]; [`CredentialsError::OpenKey`].
pub(super) fn read_key(path: &Path) -> Result<Vec<u8>, CredentialsError> {
    let file = open(path)?;
    // Of the open file: its name could stand for another one by then.
    let metadata = file.metadata().map_err(failed("read", path))?;
    if metadata.mode() & OTHERS != 0 {
        return Err(CredentialsError::OpenKey {
            path: path.to_owned(),
            mode: metadata.mode() & 0o7777,
        });
    }
    read_open(&file, path)
}

/// Whether there is a file or directory of this name.
///
/// # Errors
/// [`CredentialsError::Io`].
pub(super) fn exists(path: &Path) -> Result<bool, CredentialsError> {
    path.try_exists().map_err(failed("read", path))
}

#[expect(clippy::disallowed_methods, reason = "the edge of these files")]
fn open(path: &Path) -> Result<File, CredentialsError> {
    File::open(path).map_err(|error| match error.kind() {
        ErrorKind::NotFound => CredentialsError::Missing {
            path: path.to_owned(),
        },
        _ => failed("read", path)(error),
    })
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
