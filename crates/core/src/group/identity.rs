//! The identity of a data directory: written once when the directory is created, completed once
//! when the node's group has formed, checked at every open.
//!
//! ```text
//! identity   | "SFIDENT\0" | format version: u32 LE = 2 | length: u32 LE | crc32c of the body: u32 LE |
//!            | body (protobuf: IdentityRecord) |
//! ```
//!
//! New content is written beside the old file, synced, renamed over it, and the directory synced: a
//! crash leaves one of the two. The incarnation is on disk before anybody is told of it, so a wiped
//! directory can never come back as the one that was admitted to the group.
//!
//! The identity records the file `origin` beside it by the properties that tell a file from its
//! copies ([`FileMark`]). `origin` is created once and never written again, so a directory that was
//! copied, or restored from a backup, has another one and is refused: it may lack votes and writes
//! that the original has acknowledged, and the original may still run. A renamed directory is still
//! the original.

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use prost::Message;

use crate::error::OpenError;
use crate::group::{LogIdRecord, Member, MemberRecord};
use crate::ids::{GroupEpoch, GroupUuid, Incarnation, NodeId};
use crate::log::{self, Disk, DiskLock, FileMark, LogId, OpenMode};
use crate::planted::{self, Bug};

const MAGIC: &[u8; 8] = b"SFIDENT\0";
const FORMAT_VERSION: u32 = 2;
/// Directories of this version have no `origin` yet; they get one when opened.
const FORMAT_WITHOUT_ORIGIN: u32 = 1;
const HEADER_BYTES: usize = 20;
const FILE: &str = "identity";
const NEW_FILE: &str = "identity.new";
const LOCK_FILE: &str = "lock";
const ORIGIN_FILE: &str = "origin";
/// Present in a directory to which a group is being restored, until the restore is complete.
pub const UNFINISHED_RESTORE: &str = ".restoring";
/// Kept by file systems in the root of a volume, which may be a directory of ours.
const VOLUME_ROOT_FILE: &str = "lost+found";

/// The body of the identity file.
#[derive(Clone, PartialEq, Eq, Message)]
struct IdentityRecord {
    #[prost(string, tag = "1")]
    group_name: String,
    #[prost(string, tag = "2")]
    node_name: String,
    #[prost(fixed64, tag = "3")]
    incarnation: u64,
    /// Absent until the group has formed.
    #[prost(bytes = "bytes", optional, tag = "4")]
    group: Option<Bytes>,
    #[prost(uint64, tag = "5")]
    node_id: u64,
    #[prost(message, repeated, tag = "6")]
    founders: Vec<MemberRecord>,
    /// The file `origin` of this directory.
    #[prost(message, optional, tag = "7")]
    origin: Option<OriginRecord>,
    /// 0 for the first.
    #[prost(uint64, tag = "8")]
    epoch: u64,
    /// 0 when none is known.
    #[prost(uint64, tag = "9")]
    superseded_by: u64,
    #[prost(message, optional, tag = "10")]
    recovery: Option<LogIdRecord>,
    #[prost(uint64, tag = "11")]
    copy: u64,
    #[prost(message, optional, tag = "12")]
    log_begins_after: Option<LogIdRecord>,
    #[prost(uint64, tag = "13")]
    log: u64,
    #[prost(fixed64, optional, tag = "14")]
    damaged: Option<u64>,
    #[prost(fixed64, repeated, tag = "15")]
    earlier: Vec<u64>,
    #[prost(bool, tag = "16")]
    joins: bool,
}

/// A [`FileMark`].
#[derive(Clone, Copy, PartialEq, Eq, Message)]
struct OriginRecord {
    #[prost(fixed64, tag = "1")]
    number: u64,
    #[prost(fixed64, optional, tag = "2")]
    born_ns: Option<u64>,
}

/// Whose directory this is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) group_name: String,
    pub(crate) node_name: String,
    pub(crate) incarnation: Incarnation,
    /// `None` until the group has formed.
    pub(crate) group: Option<GroupUuid>,
    /// 0 until the group has formed.
    pub(crate) node_id: NodeId,
    /// The members with which the group was formed, or with which its epoch began.
    pub(crate) founders: Vec<(NodeId, Member)>,
    /// The group epoch of which this node is a member.
    pub(crate) epoch: GroupEpoch,
    /// A later epoch that this node has heard of: it no longer takes part.
    pub(crate) superseded_by: Option<GroupEpoch>,
    /// The entry that begins the epoch, until it is in the log: the epoch's founders are its
    /// members.
    pub(crate) recovery: Option<LogId>,
    /// Number of times the state was copied from a peer: it names the node's engine.
    pub(crate) copy: u64,
    /// After a copy: the last entry in it, until the log continues after that.
    pub(crate) log_begins_after: Option<LogId>,
    /// Number of times the log was given up as damaged: it names the node's log.
    pub(crate) log: u64,
    /// Set while the directory still holds damaged data, of this earlier incarnation.
    pub(crate) damaged: Option<Incarnation>,
    /// The incarnations before this one, oldest first: a member that has been away since before a
    /// repair knows one of them.
    pub(crate) earlier: Vec<Incarnation>,
    /// Whether it was begun with a join token: it founds no group.
    pub(crate) joins: bool,
}

/// Maximum number of earlier incarnations that a directory remembers.
const EARLIER_MAX: usize = 64;

impl Identity {
    /// The identity of a new directory that belongs to no group yet.
    pub(crate) fn fresh(group_name: &str, node_name: &str, incarnation: Incarnation) -> Self {
        Self {
            group_name: group_name.to_owned(),
            node_name: node_name.to_owned(),
            incarnation,
            group: None,
            node_id: NodeId(0),
            founders: Vec::new(),
            epoch: GroupEpoch::FIRST,
            superseded_by: None,
            recovery: None,
            copy: 0,
            log_begins_after: None,
            log: 0,
            damaged: None,
            earlier: Vec::new(),
            joins: false,
        }
    }

    /// Begins another life of the directory, whose data is damaged.
    pub(crate) fn begin_again(&mut self, incarnation: Incarnation) {
        self.damaged = Some(self.incarnation);
        self.earlier.push(self.incarnation);
        let forgotten = self.earlier.len().saturating_sub(EARLIER_MAX);
        self.earlier.drain(..forgotten);
        self.incarnation = incarnation;
    }
}

/// A data directory, locked against any other process.
pub(crate) struct DataDir {
    dir: PathBuf,
    _lock: Box<dyn DiskLock>,
}

impl DataDir {
    /// Creates the directory if it is missing, and locks it.
    ///
    /// # Errors
    /// [`OpenError::InUse`] when a process holds it, [`OpenError::Io`] when it cannot be written.
    pub(crate) fn open(disk: &dyn Disk, dir: &Path) -> Result<Self, OpenError> {
        disk.create_dir_all(dir).map_err(io_error("create", dir))?;
        let lock_path = dir.join(LOCK_FILE);
        let lock = disk.lock(&lock_path).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => OpenError::InUse {
                dir: dir.to_owned(),
            },
            _ => io_error("lock", &lock_path)(error),
        })?;
        Ok(Self {
            dir: dir.to_owned(),
            _lock: lock,
        })
    }

    /// Whether this is a data directory.
    ///
    /// # Errors
    /// [`OpenError::Io`].
    pub(crate) fn is_one(disk: &dyn Disk, dir: &Path) -> Result<bool, OpenError> {
        let path = dir.join(FILE);
        disk.exists(&path).map_err(io_error("look for", &path))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.dir
    }

    /// The directory of the log, after `log` earlier ones were given up as damaged.
    pub(crate) fn log_dir(&self, log: u64) -> PathBuf {
        log_dir(&self.dir, log)
    }

    /// The directory of the engine, after the state was copied from peers `copy` times.
    pub(crate) fn engine_dir(&self, copy: u64) -> PathBuf {
        engine_dir(&self.dir, copy)
    }

    /// The file that records what that engine should hold.
    pub(crate) fn digest_path(&self, copy: u64) -> PathBuf {
        self.dir.join(match copy {
            0 => "digest".to_owned(),
            copy => format!("digest-{copy}"),
        })
    }

    /// Removes the digest file of an engine that no longer exists.
    ///
    /// # Errors
    /// [`OpenError::Io`].
    pub(crate) fn remove_digest(&self, disk: &dyn Disk, copy: u64) -> Result<(), OpenError> {
        let path = self.digest_path(copy);
        if disk.exists(&path).map_err(io_error("look for", &path))? {
            disk.remove(&path).map_err(io_error("remove", &path))?;
        }
        Ok(())
    }

    /// Whether there is a log.
    ///
    /// # Errors
    /// [`OpenError::Io`].
    pub(crate) fn has_log(&self, disk: &dyn Disk, log: u64) -> Result<bool, OpenError> {
        let dir = self.log_dir(log);
        if !disk.exists(&dir).map_err(io_error("look for", &dir))? {
            return Ok(false);
        }
        let names = disk.list(&dir).map_err(io_error("list", &dir))?;
        Ok(names.iter().any(|name| log::is_segment(name)))
    }

    /// Removes the files of a log that is void: of a node that crashed before its identity said
    /// that the group has formed, or of one that was given up as damaged.
    ///
    /// # Errors
    /// [`OpenError::Io`].
    pub(crate) fn remove_log(&self, disk: &dyn Disk, log: u64) -> Result<(), OpenError> {
        let dir = self.log_dir(log);
        if !disk.exists(&dir).map_err(io_error("look for", &dir))? {
            return Ok(());
        }
        let names = disk.list(&dir).map_err(io_error("list", &dir))?;
        for name in names.into_iter().filter(|name| name != VOLUME_ROOT_FILE) {
            let path = dir.join(name);
            disk.remove(&path).map_err(io_error("remove", &path))?;
        }
        Ok(())
    }

    /// The identity in the directory, made durable; `None` if there is none yet.
    ///
    /// If a process died between the rename and the following sync, or that sync failed, a power
    /// cut could undo the rename. The content was synced before it was renamed.
    ///
    /// # Errors
    /// [`OpenError::NewerFormat`], [`OpenError::Corrupt`], [`OpenError::Copied`],
    /// [`OpenError::Superseded`], [`OpenError::Io`]; and [`OpenError::Corrupt`] where there is a log without an identity.
    pub(crate) async fn find_identity(
        &self,
        disk: &dyn Disk,
    ) -> Result<Option<Identity>, OpenError> {
        let Some((identity, origin)) = self.read_identity(disk)? else {
            return Ok(None);
        };
        match origin {
            Some(origin) if !self.is_original(disk, origin)? && !planted::is(Bug::AcceptCopy) => {
                let dir = self.dir.clone();
                return Err(OpenError::Copied { dir });
            }
            Some(_) => self.sync_names(disk).await?,
            None => self.write_identity(disk, &identity).await?,
        }
        if let Some(later) = identity.superseded_by {
            let reason = superseded(identity.epoch, later);
            return Err(OpenError::Superseded { reason });
        }
        Ok(Some(identity))
    }

    /// The identity as it is, even that of a copy, and whether the directory is the original.
    /// Changes nothing.
    ///
    /// # Errors
    /// As [`Self::find_identity`].
    pub(crate) fn examine_identity(
        &self,
        disk: &dyn Disk,
    ) -> Result<Option<(Identity, bool)>, OpenError> {
        let Some((identity, origin)) = self.read_identity(disk)? else {
            return Ok(None);
        };
        let is_original = match origin {
            Some(origin) => self.is_original(disk, origin)?,
            None => true,
        };
        Ok(Some((identity, is_original)))
    }

    /// Whether this is the directory whose `origin` was recorded.
    fn is_original(&self, disk: &dyn Disk, origin: FileMark) -> Result<bool, OpenError> {
        let path = self.dir.join(ORIGIN_FILE);
        match disk.file_mark(&path) {
            Ok(mark) => Ok(mark.is_same(origin)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(io_error("look at", &path)(error)),
        }
    }

    /// The file that tells this directory from its copies, durably created if missing.
    async fn origin(&self, disk: &dyn Disk) -> Result<FileMark, OpenError> {
        let path = self.dir.join(ORIGIN_FILE);
        if !disk.exists(&path).map_err(io_error("look for", &path))? {
            let file = disk
                .open(&path, OpenMode::CreateNew)
                .map_err(io_error("create", &path))?;
            file.sync_data().await.map_err(io_error("sync", &path))?;
        }
        // The process that created it may have ended before it was durable.
        self.sync_names(disk).await?;
        disk.file_mark(&path).map_err(io_error("look at", &path))
    }

    /// The identity, and its record of the file `origin`, which the earliest format lacks.
    fn read_identity(
        &self,
        disk: &dyn Disk,
    ) -> Result<Option<(Identity, Option<FileMark>)>, OpenError> {
        let path = self.dir.join(FILE);
        if !disk.exists(&path).map_err(io_error("look for", &path))? {
            let unfinished = self.dir.join(UNFINISHED_RESTORE);
            if disk
                .exists(&unfinished)
                .map_err(io_error("look for", &unfinished))?
            {
                let dir = self.dir.clone();
                return Err(OpenError::UnfinishedRestore { dir });
            }
            // An empty log directory is no log: a volume may be mounted there.
            if self.has_log(disk, 0)? {
                let what = "the file is missing, although there is a log".to_owned();
                return Err(OpenError::Corrupt {
                    path,
                    offset: 0,
                    what,
                });
            }
            return Ok(None);
        }
        let bytes = read_file(disk, &path).map_err(io_error("read", &path))?;
        decode(&path, &bytes).map(Some)
    }

    /// Replaces the identity, durably.
    ///
    /// # Errors
    /// [`OpenError::Io`]; the old identity may still be in place.
    pub(crate) async fn write_identity(
        &self,
        disk: &dyn Disk,
        identity: &Identity,
    ) -> Result<(), OpenError> {
        let origin = self.origin(disk).await?;
        let bytes = encode(identity, origin);
        replace_file(disk, &self.dir, FILE, NEW_FILE, &bytes).await
    }

    async fn sync_names(&self, disk: &dyn Disk) -> Result<(), OpenError> {
        disk.sync_dir(&self.dir)
            .await
            .map_err(io_error("sync", &self.dir))
    }
}

fn log_dir(dir: &Path, log: u64) -> PathBuf {
    dir.join(match log {
        0 => "log".to_owned(),
        log => format!("log-{log}"),
    })
}

fn engine_dir(dir: &Path, copy: u64) -> PathBuf {
    dir.join(match copy {
        0 => "engine".to_owned(),
        copy => format!("engine-{copy}"),
    })
}

/// The directories in which this node keeps growing data: each may be on its own volume.
pub(crate) fn growing_dirs(dir: &Path, identity: &Identity) -> [PathBuf; 3] {
    let (log, engine) = (log_dir(dir, identity.log), engine_dir(dir, identity.copy));
    [dir.to_owned(), log, engine]
}

/// Why a node of epoch `own` may not take part, and what to do.
pub(crate) fn superseded(own: GroupEpoch, later: GroupEpoch) -> String {
    format!(
        "the group lost its quorum and was recovered without this node: the group is in epoch \
         {later}, this node in epoch {own}. The directory may hold writes that the group no longer \
         has: keep it aside, and add the node again with an empty directory and a token (steadfast \
         token create)"
    )
}

pub(super) fn io_error(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> OpenError {
    let path = path.to_owned();
    move |source| OpenError::Io {
        doing,
        path,
        source,
    }
}

pub(super) fn read_file(disk: &dyn Disk, path: &Path) -> io::Result<Vec<u8>> {
    let file = disk.open(path, OpenMode::Read)?;
    let length = usize::try_from(file.len()?).map_err(io::Error::other)?;
    // An identity has some hundred bytes; anything over this limit is not one.
    let mut bytes = vec![0; length.min(1024 * 1024)];
    let mut read = 0;
    while read < bytes.len() {
        match file.read_at(&mut bytes[read..], read as u64)? {
            0 => break,
            count => read += count,
        }
    }
    bytes.truncate(read);
    Ok(bytes)
}

/// Durably replaces the content of a file: written as `new` beside it, synced, and renamed over it.
///
/// # Errors
/// [`OpenError::Io`]; the old content may still be in place.
pub(super) async fn replace_file(
    disk: &dyn Disk,
    dir: &Path,
    name: &str,
    new: &str,
    bytes: &[u8],
) -> Result<(), OpenError> {
    let (new, path) = (dir.join(new), dir.join(name));
    if disk.exists(&new).map_err(io_error("look for", &new))? {
        disk.remove(&new).map_err(io_error("remove", &new))?;
    }
    let file = disk
        .open(&new, OpenMode::CreateNew)
        .map_err(io_error("create", &new))?;
    file.write_all_at(bytes, 0)
        .map_err(io_error("write", &new))?;
    file.sync_data().await.map_err(io_error("sync", &new))?;
    disk.rename(&new, &path).map_err(io_error("rename", &new))?;
    disk.sync_dir(dir).await.map_err(io_error("sync", dir))
}

fn encode(identity: &Identity, origin: FileMark) -> Vec<u8> {
    frame(MAGIC, FORMAT_VERSION, &record(identity, Some(origin)))
}

fn record(identity: &Identity, origin: Option<FileMark>) -> IdentityRecord {
    let founders = identity.founders.iter();
    IdentityRecord {
        group_name: identity.group_name.clone(),
        node_name: identity.node_name.clone(),
        incarnation: identity.incarnation.0,
        group: identity.group.map(GroupUuid::to_bytes),
        node_id: identity.node_id.0,
        founders: founders
            .map(|(id, member)| MemberRecord::new(*id, member))
            .collect(),
        origin: origin.map(|origin| OriginRecord {
            number: origin.number,
            born_ns: origin.born_ns,
        }),
        epoch: identity.epoch.0,
        superseded_by: identity.superseded_by.map_or(0, |epoch| epoch.0),
        recovery: identity.recovery.map(Into::into),
        copy: identity.copy,
        log_begins_after: identity.log_begins_after.map(Into::into),
        log: identity.log,
        damaged: identity.damaged.map(|before| before.0),
        earlier: identity.earlier.iter().map(|earlier| earlier.0).collect(),
        joins: identity.joins,
    }
}

/// A file of one record: magic, version, length, checksum, record.
pub(super) fn frame(magic: &[u8], version: u32, record: &impl Message) -> Vec<u8> {
    let body = record.encode_to_vec();
    let length = u32::try_from(body.len()).expect("a member list is far below 4 GiB");
    let mut bytes = magic.to_vec();
    bytes.extend(version.to_le_bytes());
    bytes.extend(length.to_le_bytes());
    bytes.extend(crc32c::crc32c(&body).to_le_bytes());
    bytes.extend(body);
    bytes
}

/// The record in a file made by [`frame`], if it is intact.
pub(super) fn unframe<'a>(magic: &[u8], version: u32, bytes: &'a [u8]) -> Option<&'a [u8]> {
    let (header, body) = bytes.split_at_checked(HEADER_BYTES)?;
    let field = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("four bytes"));
    let is_whole = &header[..8] == magic
        && field(8) == version
        && field(12) as usize == body.len()
        && field(16) == crc32c::crc32c(body);
    is_whole.then_some(body)
}

fn decode(path: &Path, bytes: &[u8]) -> Result<(Identity, Option<FileMark>), OpenError> {
    let corrupt = |offset: usize, what: &str| OpenError::Corrupt {
        path: path.to_owned(),
        offset: offset as u64,
        what: what.to_owned(),
    };
    let Some((header, body)) = bytes.split_at_checked(HEADER_BYTES) else {
        return Err(corrupt(bytes.len(), "the file ends inside its header"));
    };
    if &header[..8] != MAGIC {
        return Err(corrupt(0, "the file does not begin like an identity"));
    }
    let field = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("four bytes"));
    let version = field(8);
    if version > FORMAT_VERSION {
        let path = path.to_owned();
        return Err(OpenError::NewerFormat {
            path,
            found: version,
            known: FORMAT_VERSION,
        });
    }
    if field(12) as usize != body.len() {
        return Err(corrupt(12, "the length does not match the file"));
    }
    if field(16) != crc32c::crc32c(body) {
        return Err(corrupt(16, "the checksum does not match the bytes"));
    }
    let record =
        IdentityRecord::decode(body).map_err(|error| corrupt(HEADER_BYTES, &error.to_string()))?;
    let origin = record.origin.map(|origin| FileMark {
        number: origin.number,
        born_ns: origin.born_ns,
    });
    if origin.is_none() && version > FORMAT_WITHOUT_ORIGIN {
        return Err(corrupt(HEADER_BYTES, "it does not name the file `origin`"));
    }
    let recovery = record.recovery.map(LogId::try_from).transpose();
    let log_begins_after = record.log_begins_after.map(LogId::try_from).transpose();
    let group = record
        .group
        .map(|group| GroupUuid::from_bytes(&group))
        .transpose();
    let identity = Identity {
        group_name: record.group_name,
        node_name: record.node_name,
        incarnation: Incarnation(record.incarnation),
        group: group.map_err(|error| corrupt(HEADER_BYTES, &error.to_string()))?,
        node_id: NodeId(record.node_id),
        founders: record
            .founders
            .into_iter()
            .map(MemberRecord::into_member)
            .collect(),
        epoch: GroupEpoch::from_number(record.epoch),
        superseded_by: Some(GroupEpoch(record.superseded_by)).filter(|epoch| epoch.0 > 0),
        recovery: recovery.map_err(|error| corrupt(HEADER_BYTES, &error.to_string()))?,
        copy: record.copy,
        log_begins_after: log_begins_after
            .map_err(|error| corrupt(HEADER_BYTES, &error.to_string()))?,
        log: record.log,
        damaged: record.damaged.map(Incarnation),
        earlier: record.earlier.into_iter().map(Incarnation).collect(),
        joins: record.joins,
    };
    Ok((identity, origin))
}

#[cfg(test)]
mod tests;
