//! Member addresses known besides the membership, in a file beside the identity: the address at
//! which each member last proved itself, and addresses given by an operator when nobody in the
//! group can be reached any more.
//!
//! ```text
//! addresses  | "SFADDRS\0" | format version: u32 LE = 1 | length: u32 LE | crc32c of the body: u32 LE |
//!            | body (protobuf: AddressesRecord) |
//! ```
//!
//! Only a hint: the hello proves that the dialled node is the intended member, so a wrong address
//! is harmless. A file that is missing, damaged, or of another group is ignored. It is replaced in
//! the same way as the identity, so a crash leaves either the old or the new file.

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;
use prost::Message;
use tokio::sync::watch;

use crate::error::OpenError;
use crate::group::Members;
use crate::group::identity::{Identity, frame, read_file, replace_file, unframe};
use crate::ids::{GroupUuid, NodeId};
use crate::log::Disk;

const MAGIC: &[u8; 8] = b"SFADDRS\0";
const FORMAT_VERSION: u32 = 1;
const FILE: &str = "addresses";
const NEW_FILE: &str = "addresses.new";

#[derive(Clone, PartialEq, Eq, Message)]
struct AddressesRecord {
    #[prost(bytes = "bytes", tag = "1")]
    group: Bytes,
    #[prost(message, repeated, tag = "2")]
    nodes: Vec<AddressRecord>,
}

#[derive(Clone, PartialEq, Eq, Message)]
struct AddressRecord {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(string, optional, tag = "2")]
    worked: Option<String>,
    #[prost(string, optional, tag = "3")]
    said: Option<String>,
    /// The membership's address that `said` replaces.
    #[prost(string, tag = "4")]
    instead_of: String,
}

/// What is known about the addresses of one member.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Noted {
    /// The address given by an operator.
    pub(crate) said: Option<Said>,
    /// The address reached by the last dial that the member itself answered.
    worked: Option<String>,
    /// The address dialled then, if that was in this life of the process.
    dialled: Option<String>,
}

/// An address that an operator gave without a master. It holds until the membership's address
/// differs from the one at that time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Said {
    pub(crate) address: String,
    pub(crate) instead_of: String,
}

/// The notes about each member, at most one per member of the group.
pub(crate) type Book = BTreeMap<NodeId, Noted>;

/// Reads the notes in `dir` for the group of `identity`; empty if nothing can be read.
pub(crate) fn read(disk: &dyn Disk, dir: &Path, identity: &Identity) -> Book {
    let path = dir.join(FILE);
    if !disk.exists(&path).unwrap_or(false) {
        return Book::new();
    }
    let bytes = read_file(disk, &path).unwrap_or_default();
    let body = unframe(MAGIC, FORMAT_VERSION, &bytes);
    let Some(record) = body.and_then(|body| AddressesRecord::decode(body).ok()) else {
        tracing::warn!(path = %path.display(), "the noted addresses cannot be read");
        return Book::new();
    };
    if Some(record.group) != identity.group.map(GroupUuid::to_bytes) {
        return Book::new();
    }
    let nodes = record.nodes.into_iter();
    nodes
        .map(|node| {
            let instead_of = node.instead_of;
            let said = node.said.map(|address| Said {
                address,
                instead_of,
            });
            let noted = Noted {
                said,
                worked: node.worked,
                dialled: None,
            };
            (NodeId(node.id), noted)
        })
        .collect()
}

/// Durably replaces the notes in `dir`.
///
/// # Errors
/// [`OpenError::Io`]; the previous file may still be in place.
pub(crate) async fn write(
    disk: &dyn Disk,
    dir: &Path,
    identity: &Identity,
    book: &Book,
) -> Result<(), OpenError> {
    let node = |(id, noted): (&NodeId, &Noted)| AddressRecord {
        id: id.0,
        worked: noted.worked.clone(),
        said: noted.said.as_ref().map(|said| said.address.clone()),
        instead_of: noted
            .said
            .as_ref()
            .map(|said| said.instead_of.clone())
            .unwrap_or_default(),
    };
    let record = AddressesRecord {
        group: identity.group.map(GroupUuid::to_bytes).unwrap_or_default(),
        nodes: book.iter().map(node).collect(),
    };
    let bytes = frame(MAGIC, FORMAT_VERSION, &record);
    replace_file(disk, dir, FILE, NEW_FILE, &bytes).await
}

/// Whether both would be the same in the file.
pub(crate) fn is_same_on_disk(one: &Book, other: &Book) -> bool {
    let noted = |(id, noted): (&NodeId, &Noted)| (*id, noted.said.clone(), noted.worked.clone());
    one.iter().map(noted).eq(other.iter().map(noted))
}

/// The addresses of a node's peers.
#[derive(Debug, Default)]
pub(crate) struct Addresses(watch::Sender<Book>);

impl Addresses {
    pub(crate) fn new(book: Book) -> Self {
        Self(watch::Sender::new(book))
    }

    pub(crate) fn watch(&self) -> watch::Receiver<Book> {
        self.0.subscribe()
    }

    /// Where to look for a member whose address in the membership is `address`, most likely first.
    pub(crate) fn candidates(&self, id: NodeId, address: &str) -> Vec<String> {
        let book = self.0.borrow();
        let noted = book.get(&id);
        let said = noted.and_then(|noted| said_instead(noted, address));
        let worked = noted.and_then(|noted| noted.worked.as_deref());
        let mut candidates: Vec<String> = Vec::new();
        for candidate in said.into_iter().chain([address]).chain(worked) {
            if candidates.iter().all(|known| known != candidate) {
                candidates.push(candidate.to_owned());
            }
        }
        candidates
    }

    /// The candidate to use when there is no time to try several.
    pub(crate) fn best(&self, id: NodeId, address: &str) -> String {
        let book = self.0.borrow();
        let Some(noted) = book.get(&id) else {
            return address.to_owned();
        };
        if noted.dialled.as_deref() == Some(address) {
            return address.to_owned();
        }
        let worked = noted.dialled.as_ref().and(noted.worked.as_deref());
        let best = worked.or_else(|| said_instead(noted, address));
        best.unwrap_or(address).to_owned()
    }

    /// Notes that the member proved itself when `dialled` was dialled, which reached `at`.
    pub(crate) fn note(&self, id: NodeId, dialled: &str, at: &str) {
        self.0.send_if_modified(|book| {
            let noted = book.entry(id).or_default();
            let before = noted.clone();
            noted.worked = Some(at.to_owned());
            noted.dialled = Some(dialled.to_owned());
            *noted != before
        });
    }

    /// Whether a member has proved itself in this life of the process.
    pub(crate) fn has_met(&self, id: NodeId) -> bool {
        let book = self.0.borrow();
        book.get(&id).is_some_and(|noted| noted.dialled.is_some())
    }

    /// Addresses of these members that an operator gave and the membership does not have yet.
    pub(crate) fn said(&self, members: &Members) -> BTreeMap<NodeId, String> {
        let book = self.0.borrow();
        let said = members.iter().filter_map(|(id, member)| {
            let said = said_instead(book.get(id)?, &member.address)?;
            Some((*id, said.to_owned()))
        });
        said.collect()
    }

    /// Forgets notes that the membership has superseded.
    pub(crate) fn follow(&self, members: &Members) {
        self.0.send_if_modified(|book| {
            let before = book.clone();
            book.retain(|id, _| members.contains_key(id));
            for (id, noted) in book.iter_mut() {
                if noted.said.is_some() && said_instead(noted, &members[id].address).is_none() {
                    noted.said = None;
                }
            }
            *book != before
        });
    }
}

fn said_instead<'a>(noted: &'a Noted, address: &str) -> Option<&'a str> {
    let said = noted.said.as_ref();
    let holds = said.filter(|said| said.instead_of == address);
    holds.map(|said| said.address.as_str())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::group::Member;
    use crate::ids::Incarnation;
    use crate::log::MemoryDisk;

    const DIR: &str = "/data";
    const N2: NodeId = NodeId(2);

    fn identity(group: u128) -> Identity {
        Identity {
            group: Some(GroupUuid(uuid::Uuid::from_u128(group))),
            ..Identity::fresh("orders", "n1", Incarnation(7))
        }
    }

    fn said(address: &str, instead_of: &str) -> Noted {
        let said = Said {
            address: address.to_owned(),
            instead_of: instead_of.to_owned(),
        };
        Noted {
            said: Some(said),
            ..Noted::default()
        }
    }

    fn members(address: &str) -> Members {
        let member = Member {
            address: address.to_owned(),
            ..Member::default()
        };
        Arc::new([(N2, member)].into())
    }

    #[tokio::test]
    async fn a_power_cut_leaves_what_was_noted_before_or_after() {
        let dir = Path::new(DIR);
        let (before, after) = (said("new:1", "old:1"), said("newer:1", "old:1"));
        let books = [before, after].map(|noted| Book::from([(N2, noted)]));
        for steps in 0.. {
            let disk = MemoryDisk::new();
            disk.create_dir_all(dir).unwrap();
            disk.sync_dir(Path::new("/")).await.unwrap();
            write(&disk, dir, &identity(1), &books[0]).await.unwrap();
            disk.fail_after(steps);
            let written = write(&disk, dir, &identity(1), &books[1]).await;
            disk.crash();
            let found = read(&disk, dir, &identity(1));
            assert!(books.contains(&found), "{found:?}");
            if written.is_ok() {
                assert_eq!(found, books[1]);
                return;
            }
        }
    }

    #[tokio::test]
    async fn what_is_damaged_or_of_another_group_says_nothing() {
        let (disk, dir) = (MemoryDisk::new(), Path::new(DIR));
        disk.create_dir_all(dir).unwrap();
        let (book, nothing) = (Book::from([(N2, said("new:1", "old:1"))]), Book::new());
        assert_eq!(read(&disk, dir, &identity(1)), nothing);
        write(&disk, dir, &identity(1), &book).await.unwrap();
        assert_eq!(read(&disk, dir, &identity(2)), nothing);
        let path = dir.join(FILE);
        let whole = disk.bytes(&path).unwrap();
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            disk.plant(&path, &bytes);
            assert_eq!(read(&disk, dir, &identity(1)), nothing, "byte {at}");
            disk.plant(&path, &whole[..at]);
            assert_eq!(read(&disk, dir, &identity(1)), nothing, "cut at {at}");
        }
        disk.plant(&path, &whole);
        assert_eq!(read(&disk, dir, &identity(1)), book);
    }

    #[test]
    fn what_was_said_counts_until_the_membership_has_another_address() {
        let addresses = Addresses::new(Book::from([(N2, said("new:1", "old:1"))]));
        addresses.note(N2, "name:1", "10.0.0.2:1");
        let candidates = addresses.candidates(N2, "old:1");
        assert_eq!(candidates, ["new:1", "old:1", "10.0.0.2:1"]);
        addresses.follow(&members("old:1"));
        assert_eq!(addresses.said(&members("old:1"))[&N2], "new:1");
        let candidates = addresses.candidates(N2, "set:1");
        assert_eq!(candidates, ["set:1", "10.0.0.2:1"]);
        addresses.follow(&members("set:1"));
        assert!(addresses.said(&members("old:1")).is_empty(), "forgotten");
        addresses.follow(&Members::default());
        assert_eq!(addresses.candidates(N2, "old:1"), ["old:1"]);
    }

    #[test]
    fn the_best_address_is_the_one_of_the_membership_as_long_as_that_works() {
        let addresses = Addresses::new(Book::from([(N2, said("new:1", "old:1"))]));
        assert_eq!(addresses.best(N2, "old:1"), "new:1");
        assert_eq!(addresses.best(N2, "set:1"), "set:1");
        addresses.note(N2, "name:1", "10.0.0.2:1");
        assert_eq!(addresses.best(N2, "name:1"), "name:1");
        assert_eq!(addresses.best(N2, "wrong:1"), "10.0.0.2:1");
    }
}
