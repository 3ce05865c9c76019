//! The files of a backup: chunks of rows and a manifest that names and closes them.
//!
//! ```text
//! chunk-000001   | "SFBACKUP" | version: u32 LE | number: u32 LE | records … | BLAKE3 of all before: 32 bytes |
//! record         | 1: u8 | length: u32 LE | name of the database that the rows after it are of |
//!                | 2: u8 | key length: u32 LE | value length: u32 LE | key | value |
//!                | 3: u8 | what the key of the row after it has still to live, in ms: u64 LE |
//! manifest.json  written last: a directory without it is no backup
//! ```
//!
//! Databases are ordered by name, keys ascending. A chunk is self-contained, and read whole.

use std::fmt::Write;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

use crate::data_dir::names_in;

/// The format that this program writes. It reads the first one too, which has no times to live.
pub(super) const VERSION: u32 = 2;

/// Bytes of rows in one chunk, unless one row is larger.
pub(super) const CHUNK_BYTES: usize = 16 * 1024 * 1024;

/// Longest chunk that is read: one with the largest row.
const CHUNK_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Longest manifest that is read: a million chunks.
const MANIFEST_BYTES_MAX: u64 = 256 * 1024 * 1024;

const MAGIC: &[u8; 8] = b"SFBACKUP";
const HEADER_BYTES: usize = 16;
const HASH_BYTES: usize = blake3::OUT_LEN;
const DATABASE: u8 = 1;
const ROW: u8 = 2;
const TIME_TO_LIVE: u8 = 3;
const MANIFEST: &str = "manifest.json";

/// The contents of a backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Manifest {
    pub(crate) format: u32,
    pub(crate) group_name: String,
    /// UUID of the group.
    pub(crate) group: String,
    /// The last transaction in it.
    pub(crate) vlsn: u64,
    /// The same, as a commit token.
    pub(crate) token: String,
    /// When it was begun, in milliseconds since 1970.
    pub(crate) created_at_ms: u64,
    /// Version of the program that wrote it.
    pub(crate) version: String,
    pub(crate) rows: u64,
    /// Bytes of keys and values.
    pub(crate) bytes: u64,
    pub(crate) databases: Vec<BackedUp>,
    pub(crate) chunks: Vec<Chunk>,
    /// xxh3-128 of everything, as every node computes it at this VLSN, in hexadecimal.
    pub(crate) digest: String,
    /// The group's running digest as of `vlsn`, in hexadecimal, which the rows matched when they
    /// were read; absent if the node could not report it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) running_digest: Option<String>,
    /// BLAKE3 of the manifest without this field, in hexadecimal.
    #[serde(default)]
    pub(crate) checksum: String,
}

/// One database.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct BackedUp {
    pub(crate) name: String,
    pub(crate) rows: u64,
}

/// One file; its name follows from its position in the list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Chunk {
    pub(crate) bytes: u64,
    /// BLAKE3 of the whole file, in hexadecimal.
    pub(crate) checksum: String,
}

/// What is wrong with a backup, and where.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BackupError {
    #[error("{}: {source}", .path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} is damaged at byte {offset}: {what}", .path.display())]
    Damaged {
        path: PathBuf,
        offset: usize,
        what: &'static str,
    },
    #[error("{} has no {MANIFEST}: it is not a backup, or one that was not finished", .0.display())]
    Unfinished(PathBuf),
    #[error("the backup has format {found}, but this program supports 1 to {VERSION}")]
    Format { found: u32 },
    #[error("the backup does not match its manifest: {0}")]
    Mismatch(String),
}

pub(super) fn io_error(path: &Path) -> impl Fn(io::Error) -> BackupError + use<> {
    let path = path.to_owned();
    move |source| BackupError::Io {
        path: path.clone(),
        source,
    }
}

/// The path of the chunk with this number, from 1.
pub(super) fn chunk_path(dir: &Path, number: usize) -> PathBuf {
    dir.join(format!("chunk-{number:06}"))
}

/// The digest of everything, as nodes compute it.
#[derive(Default)]
pub(super) struct Digest(Xxh3);

impl Digest {
    pub(super) fn add(&mut self, bytes: &[u8]) {
        self.0.update(&(bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
    }

    pub(super) fn hex(&self) -> String {
        format!("{:032x}", self.0.digest128())
    }
}

/// Collects one chunk.
pub(super) struct ChunkBuilder {
    bytes: Vec<u8>,
}

impl ChunkBuilder {
    pub(super) fn new(number: usize) -> Self {
        let number = u32::try_from(number).expect("a backup has fewer chunks");
        let mut bytes = MAGIC.to_vec();
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend(number.to_le_bytes());
        Self { bytes }
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes.len() == HEADER_BYTES
    }

    pub(super) fn database(&mut self, name: &str) {
        self.bytes.push(DATABASE);
        self.length(name.len());
        self.bytes.extend(name.as_bytes());
    }

    pub(super) fn row(&mut self, key: &[u8], value: &[u8]) {
        self.bytes.push(ROW);
        self.length(key.len());
        self.length(value.len());
        self.bytes.extend(key);
        self.bytes.extend(value);
    }

    /// What the key of the next row has still to live.
    pub(super) fn time_to_live(&mut self, left: Duration) {
        let left_ms = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
        self.bytes.push(TIME_TO_LIVE);
        self.bytes.extend(left_ms.to_le_bytes());
    }

    fn length(&mut self, length: usize) {
        let length = u32::try_from(length).expect("keys, values and names are bounded");
        self.bytes.extend(length.to_le_bytes());
    }

    /// Writes the chunk, durably except for its name.
    pub(super) fn write(mut self, path: &Path) -> Result<Chunk, BackupError> {
        let hash = blake3::hash(&self.bytes);
        self.bytes.extend(hash.as_bytes());
        write_synced(path, &self.bytes)?;
        Ok(Chunk {
            bytes: self.bytes.len() as u64,
            checksum: hex(&self.bytes),
        })
    }
}

pub(super) fn is_readable(format: u32) -> bool {
    (1..=VERSION).contains(&format)
}

/// One part of a chunk.
pub(super) enum Record<'a> {
    Database(&'a str),
    Row(&'a [u8], &'a [u8]),
    /// What the key of the next row has still to live.
    TimeToLive(Duration),
}

/// Reads and verifies a chunk that the manifest names, and passes its records to `each`.
pub(super) fn read_chunk(
    dir: &Path,
    number: usize,
    chunk: &Chunk,
    each: impl FnMut(Record<'_>) -> Result<(), BackupError>,
) -> Result<(), BackupError> {
    let path = chunk_path(dir, number);
    let bytes = read_bounded(&path, CHUNK_BYTES_MAX)?;
    parse_chunk((&path, &bytes), number, chunk, each)
}

/// The same for the bytes of a file.
pub(super) fn parse_chunk(
    (path, bytes): (&Path, &[u8]),
    number: usize,
    chunk: &Chunk,
    mut each: impl FnMut(Record<'_>) -> Result<(), BackupError>,
) -> Result<(), BackupError> {
    let damaged = |offset, what| BackupError::Damaged {
        path: path.to_owned(),
        offset,
        what,
    };
    if bytes.len() as u64 != chunk.bytes {
        return Err(damaged(bytes.len(), "the file has the wrong length"));
    }
    if bytes.len() < HEADER_BYTES + HASH_BYTES || hex(bytes) != chunk.checksum {
        return Err(damaged(0, "the checksum does not match"));
    }
    let (body, hash) = bytes.split_at(bytes.len() - HASH_BYTES);
    if blake3::hash(body).as_bytes() != hash {
        return Err(damaged(body.len(), "the inner checksum does not match"));
    }
    let word = |at: usize| -> Option<u32> {
        let bytes = body.get(at..at + 4)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?))
    };
    let is_readable = word(8).is_some_and(is_readable);
    if body[..8] != *MAGIC || !is_readable || word(12) != u32::try_from(number).ok() {
        return Err(damaged(0, "it is not a chunk, or not this one"));
    }
    let mut at = HEADER_BYTES;
    while at < body.len() {
        let short = || damaged(at, "a record is cut off");
        let field = |start: usize, length: u32| {
            let end = start.checked_add(length as usize)?;
            Some((body.get(start..end)?, end))
        };
        let first = word(at + 1).ok_or_else(short)?;
        at = match body[at] {
            DATABASE => {
                let (name, end) = field(at + 5, first).ok_or_else(short)?;
                let name = std::str::from_utf8(name);
                each(Record::Database(
                    name.map_err(|_| damaged(at, "a name is not text"))?,
                ))?;
                end
            }
            ROW => {
                let second = word(at + 5).ok_or_else(short)?;
                let (key, end) = field(at + 9, first).ok_or_else(short)?;
                let (value, end) = field(end, second).ok_or_else(short)?;
                each(Record::Row(key, value))?;
                end
            }
            TIME_TO_LIVE => {
                let high = word(at + 5).ok_or_else(short)?;
                let left_ms = u64::from(high) << 32 | u64::from(first);
                each(Record::TimeToLive(Duration::from_millis(left_ms)))?;
                at + 9
            }
            _ => return Err(damaged(at, "a record is of an unknown kind")),
        };
    }
    Ok(())
}

impl Manifest {
    /// Writes the manifest, and makes it and every name in the directory durable.
    pub(super) fn write(mut self, dir: &Path) -> Result<Self, BackupError> {
        self.checksum = self.own_checksum();
        let (path, new) = (dir.join(MANIFEST), dir.join("manifest.new"));
        let text = serde_json::to_vec_pretty(&self).expect("text and numbers");
        write_synced(&new, &text)?;
        rename_synced(&new, &path)?;
        Ok(self)
    }

    /// Reads and verifies the manifest of a backup.
    pub(crate) fn read(dir: &Path) -> Result<Self, BackupError> {
        let path = dir.join(MANIFEST);
        let bytes = match read_bounded(&path, MANIFEST_BYTES_MAX) {
            Err(BackupError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Err(BackupError::Unfinished(dir.to_owned()));
            }
            read => read?,
        };
        Self::parse(&path, &bytes)
    }

    /// Verifies the bytes of a manifest.
    pub(super) fn parse(path: &Path, bytes: &[u8]) -> Result<Self, BackupError> {
        let damaged = |what| BackupError::Damaged {
            path: path.to_owned(),
            offset: 0,
            what,
        };
        let value: serde_json::Value =
            serde_json::from_slice(bytes).map_err(|_| damaged("it is not JSON"))?;
        let found = value.get("format").and_then(serde_json::Value::as_u64);
        let found = found.and_then(|found| u32::try_from(found).ok());
        match found {
            Some(found) if is_readable(found) => {}
            Some(found) => return Err(BackupError::Format { found }),
            None => return Err(damaged("it has no format")),
        }
        let manifest: Self =
            serde_json::from_value(value).map_err(|_| damaged("a field is missing or unknown"))?;
        if manifest.own_checksum() == manifest.checksum {
            Ok(manifest)
        } else {
            Err(damaged("the checksum does not match"))
        }
    }

    pub(super) fn own_checksum(&self) -> String {
        let bare = Self {
            checksum: String::new(),
            ..self.clone()
        };
        hex(&serde_json::to_vec(&bare).expect("text and numbers"))
    }
}

/// The BLAKE3 of bytes, in hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    let hash = blake3::hash(bytes);
    let mut text = String::new();
    for byte in hash.as_bytes() {
        write!(text, "{byte:02x}").expect("a string grows");
    }
    text
}

#[expect(
    clippy::disallowed_methods,
    reason = "a backup is files of this program"
)]
fn read_bounded(path: &Path, bytes_max: u64) -> Result<Vec<u8>, BackupError> {
    let length = fs::metadata(path).map_err(io_error(path))?.len();
    if length > bytes_max {
        return Err(BackupError::Damaged {
            path: path.to_owned(),
            offset: 0,
            what: "it is longer than any such file can be",
        });
    }
    fs::read(path).map_err(io_error(path))
}

#[expect(
    clippy::disallowed_methods,
    reason = "a backup is files of this program"
)]
fn write_synced(path: &Path, bytes: &[u8]) -> Result<(), BackupError> {
    let written = File::create_new(path).and_then(|mut file| {
        io::Write::write_all(&mut file, bytes)?;
        file.sync_all()
    });
    written.map_err(io_error(path))
}

/// Renames a file or directory, durably.
#[expect(
    clippy::disallowed_methods,
    reason = "a backup is files of this program"
)]
pub(super) fn rename_synced(from: &Path, to: &Path) -> Result<(), BackupError> {
    let parent = to.parent().filter(|parent| !parent.as_os_str().is_empty());
    let parent = parent.unwrap_or(Path::new("."));
    let renamed = fs::rename(from, to).and_then(|()| File::open(parent)?.sync_all());
    renamed.map_err(io_error(to))
}

/// Creates a directory, or accepts an empty one or the root of an empty volume.
#[expect(
    clippy::disallowed_methods,
    reason = "a backup is files of this program"
)]
pub(super) fn make_empty(dir: &Path) -> Result<(), BackupError> {
    let made = fs::create_dir_all(dir).and_then(|()| match names_in(dir)?.first() {
        None => Ok(()),
        Some(name) => Err(not_empty(name)),
    });
    made.map_err(io_error(dir))
}

/// The error for a directory that should be empty.
pub(super) fn not_empty(name: &str) -> io::Error {
    io::Error::other(format!("the directory is not empty: it holds {name}"))
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "tests damage files")]
mod tests {
    use tempfile::TempDir;

    use super::*;

    /// A chunk in a directory of its own.
    fn written() -> (TempDir, Chunk) {
        let dir = TempDir::new().expect("a directory");
        let mut builder = ChunkBuilder::new(1);
        builder.database("d");
        builder.row(b"key", b"value");
        builder.time_to_live(Duration::from_millis(u64::MAX));
        builder.row(b"", b"");
        let chunk = builder.write(&chunk_path(dir.path(), 1)).expect("written");
        (dir, chunk)
    }

    fn read(dir: &Path, chunk: &Chunk) -> Result<Vec<String>, BackupError> {
        let mut seen = Vec::new();
        read_chunk(dir, 1, chunk, |record| {
            seen.push(match record {
                Record::Database(name) => name.to_owned(),
                Record::Row(key, value) => format!("{key:?} {value:?}"),
                Record::TimeToLive(left) => format!("{left:?}"),
            });
            Ok(())
        })?;
        Ok(seen)
    }

    #[test]
    fn a_chunk_is_read_as_it_was_written_and_any_flipped_bit_in_it_is_found() {
        let (dir, chunk) = written();
        let row = format!("{:?} {:?}", b"key", b"value");
        let left = format!("{:?}", Duration::from_millis(u64::MAX));
        assert_eq!(
            read(dir.path(), &chunk).expect("whole"),
            ["d", &row, &left, "[] []"]
        );
        let path = chunk_path(dir.path(), 1);
        let whole = std::fs::read(&path).expect("read");
        for at in 0..whole.len() {
            let mut rotten = whole.clone();
            rotten[at] ^= 1;
            std::fs::write(&path, rotten).expect("written");
            let found = read(dir.path(), &chunk);
            assert!(matches!(found, Err(BackupError::Damaged { .. })), "{at}");
        }
        std::fs::write(&path, &whole[..whole.len() - 1]).expect("written");
        assert!(read(dir.path(), &chunk).is_err(), "it is cut off");
    }

    #[test]
    fn records_that_claim_more_than_there_is_are_refused_although_the_checksums_match() {
        for body in [
            &[ROW, 255, 255, 255, 255, 255, 255, 255, 255][..],
            &[DATABASE, 9],
            &[7; 9],
        ] {
            let dir = TempDir::new().expect("a directory");
            let mut builder = ChunkBuilder::new(1);
            builder.bytes.extend(body);
            let chunk = builder.write(&chunk_path(dir.path(), 1)).expect("written");
            let found = read(dir.path(), &chunk);
            assert!(
                matches!(found, Err(BackupError::Damaged { .. })),
                "{body:?}"
            );
        }
    }
}
