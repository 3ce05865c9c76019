//! The latest members known to a node, in a file beside its identity: those it can ask when it can
//! read neither its log nor its engine. The identity has only the members from the beginning of the
//! group, which may all be gone.
//!
//! ```text
//! members    | "SFMEMBR\0" | format version: u32 LE = 1 | length: u32 LE | crc32c of the body: u32 LE |
//!            | body (protobuf: KnownRecord) |
//! ```
//!
//! Only a hint: it admits nobody and counts no votes. It may be out of date, and a file that is
//! missing, damaged, or of another group or epoch is ignored. It is replaced in the same way as the
//! identity, so a crash leaves either the old or the new file.

use std::path::Path;

use bytes::Bytes;
use prost::Message;

use crate::error::OpenError;
use crate::group::identity::{Identity, frame, read_file, replace_file, unframe};
use crate::group::{Member, MemberRecord, Members};
use crate::ids::{GroupUuid, NodeId};
use crate::log::Disk;

const MAGIC: &[u8; 8] = b"SFMEMBR\0";
const FORMAT_VERSION: u32 = 1;
const FILE: &str = "members";
const NEW_FILE: &str = "members.new";

#[derive(Clone, PartialEq, Eq, Message)]
struct KnownRecord {
    #[prost(bytes = "bytes", tag = "1")]
    group: Bytes,
    #[prost(uint64, tag = "2")]
    epoch: u64,
    #[prost(message, repeated, tag = "3")]
    members: Vec<MemberRecord>,
}

/// The members last written to `dir`, of the group and epoch of `identity`; none if nothing can be
/// read.
pub(crate) fn read(disk: &dyn Disk, dir: &Path, identity: &Identity) -> Vec<(NodeId, Member)> {
    let path = dir.join(FILE);
    if !disk.exists(&path).unwrap_or(false) {
        return Vec::new();
    }
    let bytes = read_file(disk, &path).unwrap_or_default();
    let Some(record) = decode(&bytes) else {
        tracing::warn!(path = %path.display(), "the list of the latest members cannot be read");
        return Vec::new();
    };
    let group = identity.group.map(GroupUuid::to_bytes);
    if Some(record.group) != group || record.epoch != identity.epoch.0 {
        return Vec::new();
    }
    let members = record.members.into_iter();
    members.map(MemberRecord::into_member).collect()
}

/// Durably replaces the members in `dir`.
///
/// # Errors
/// [`OpenError::Io`]; the previous file may still be in place.
pub(crate) async fn write(
    disk: &dyn Disk,
    dir: &Path,
    identity: &Identity,
    members: &Members,
) -> Result<(), OpenError> {
    let record = KnownRecord {
        group: identity.group.map(GroupUuid::to_bytes).unwrap_or_default(),
        epoch: identity.epoch.0,
        members: members
            .iter()
            .map(|(id, member)| MemberRecord::new(*id, member))
            .collect(),
    };
    let bytes = frame(MAGIC, FORMAT_VERSION, &record);
    replace_file(disk, dir, FILE, NEW_FILE, &bytes).await
}

fn decode(bytes: &[u8]) -> Option<KnownRecord> {
    KnownRecord::decode(unframe(MAGIC, FORMAT_VERSION, bytes)?).ok()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::ids::{GroupEpoch, Incarnation};
    use crate::log::MemoryDisk;

    fn identity(epoch: u64) -> Identity {
        Identity {
            group: Some(GroupUuid(uuid::Uuid::from_u128(9))),
            node_id: NodeId(1),
            epoch: GroupEpoch(epoch),
            ..Identity::fresh("orders", "n1", Incarnation(7))
        }
    }

    fn members(count: u64) -> Members {
        let member = |id: u64| {
            let name = format!("n{id}");
            (
                NodeId(id),
                Member {
                    address: format!("{name}:7400"),
                    name,
                    ..Member::default()
                },
            )
        };
        Arc::new((1..=count).map(member).collect())
    }

    #[tokio::test]
    async fn a_power_cut_leaves_the_members_before_or_after() {
        let dir = Path::new("/data");
        for steps in 0.. {
            let disk = MemoryDisk::new();
            disk.create_dir_all(dir).unwrap();
            disk.sync_dir(Path::new("/")).await.unwrap();
            write(&disk, dir, &identity(1), &members(1)).await.unwrap();
            disk.fail_after(steps);
            let written = write(&disk, dir, &identity(1), &members(3)).await;
            disk.crash();
            let found = read(&disk, dir, &identity(1)).len();
            assert!([1, 3].contains(&found), "{found}");
            write(&disk, dir, &identity(1), &members(2)).await.unwrap();
            assert_eq!(read(&disk, dir, &identity(1)).len(), 2);
            if written.is_ok() {
                assert_eq!(found, 3);
                return;
            }
        }
    }

    #[tokio::test]
    async fn what_is_damaged_or_of_another_epoch_says_nothing() {
        let (disk, dir) = (MemoryDisk::new(), Path::new("/data"));
        disk.create_dir_all(dir).unwrap();
        assert_eq!(read(&disk, dir, &identity(1)), []);
        write(&disk, dir, &identity(1), &members(3)).await.unwrap();
        assert_eq!(read(&disk, dir, &identity(2)), []);
        let path = dir.join(FILE);
        let whole = disk.bytes(&path).unwrap();
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            disk.plant(&path, &bytes);
            assert_eq!(read(&disk, dir, &identity(1)), [], "byte {at}");
            disk.plant(&path, &whole[..at]);
            assert_eq!(read(&disk, dir, &identity(1)), [], "cut at {at}");
        }
        disk.plant(&path, &whole);
        assert_eq!(read(&disk, dir, &identity(1)).len(), 3);
    }
}
