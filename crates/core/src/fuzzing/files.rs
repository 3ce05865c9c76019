//! The files in a data directory, apart from those of the log and the engine.

use std::path::Path;
use std::sync::Arc;

use futures_util::FutureExt;
use uuid::Uuid;

use crate::group::identity::{DataDir, Identity};
use crate::group::{addresses, known};
use crate::ids::{GroupUuid, Incarnation, NodeId, Vlsn};
use crate::log::{Disk, MemoryDisk};
use crate::txn::audit::file::DigestFile;

const DIR: &str = "/d";
/// Where the length, the checksum and the body of a file of one record are.
const LENGTH: usize = 12;
const CHECKSUM: usize = 16;
const BODY: usize = 20;
/// A sector of the digest file: where its checksum is, and what that is of.
const SECTOR: usize = 512;
const SLOT: std::ops::Range<usize> = 8..64;
/// No slot of a real file is numbered higher.
const NUMBER_MAX: u64 = u64::MAX / 4;

/// The file `identity`.
pub fn identity_file(input: &[u8]) {
    let disk = planted("identity", &record(input));
    let dir = DataDir::open(&disk, Path::new(DIR)).expect("a directory");
    let Ok(Some((identity, _))) = dir.examine_identity(&disk) else {
        return;
    };
    now(dir.write_identity(&disk, &identity)).expect("memory takes everything");
    let again = dir.examine_identity(&disk).expect("it was just written");
    assert_eq!(again, Some((identity, true)));
}

/// The file `members`.
pub fn members_file(input: &[u8]) {
    let (disk, dir, own) = (planted("members", &record(input)), Path::new(DIR), own());
    let members = Arc::new(known::read(&disk, dir, &own).into_iter().collect());
    now(known::write(&disk, dir, &own, &members)).expect("memory takes everything");
    let again = known::read(&disk, dir, &own);
    assert_eq!(*members, again.into_iter().collect());
}

/// The file `addresses`.
pub fn addresses_file(input: &[u8]) {
    let (disk, dir, own) = (planted("addresses", &record(input)), Path::new(DIR), own());
    let book = addresses::read(&disk, dir, &own);
    now(addresses::write(&disk, dir, &own, &book)).expect("memory takes everything");
    let again = addresses::read(&disk, dir, &own);
    assert!(addresses::is_same_on_disk(&again, &book));
}

/// The file `digest`, of slots of 64 bytes each.
pub fn digest_file(input: &[u8]) {
    let mut bytes = Vec::new();
    for slot in input.chunks(SLOT.end) {
        let mut sector = slot.to_vec();
        sector.resize(SECTOR, 0);
        let checksum = crc32c::crc32c(&sector[SLOT]);
        seal(&mut sector, SLOT.start - 4, checksum);
        bytes.extend(sector);
    }
    let disk = planted("digest", &bytes);
    let (disk, path): (Arc<dyn Disk>, _) = (Arc::new(disk), Path::new(DIR).join("digest"));
    let mut file = now(DigestFile::open(&disk, &path)).expect("memory gives everything");
    let Some(point) = file.furthest_found() else {
        return;
    };
    assert!(file.found_at(point.position).is_some());
    // One that is numbered this high leaves no number to what is written below.
    if input.chunks(SLOT.end).any(|slot| number(slot) > NUMBER_MAX) {
        return;
    }
    file.note_checked(Vlsn(1));
    file.note(point).expect("memory takes everything");
    now(file.note_durable(point)).expect("memory takes everything");
    let again = now(DigestFile::open(&disk, &path)).expect("memory gives everything");
    assert_eq!(again.durable_found(), Some(point));
}

/// The number of a slot; 0 if it is cut off.
fn number(slot: &[u8]) -> u64 {
    let number = slot.get(SLOT.start..SLOT.start + 8);
    number.map_or(0, |number| {
        u64::from_le_bytes(number.try_into().expect("eight bytes"))
    })
}

/// A file of one record, with its length and its checksum made right.
fn record(input: &[u8]) -> Vec<u8> {
    let mut bytes = input.to_vec();
    if let Some(body) = input.get(BODY..) {
        let length = u32::try_from(body.len()).expect("an input is short");
        seal(&mut bytes, LENGTH, length);
        seal(&mut bytes, CHECKSUM, crc32c::crc32c(body));
    }
    bytes
}

/// Writes a number to its place, if there is one.
fn seal(bytes: &mut [u8], at: usize, number: u32) {
    if let Some(field) = bytes.get_mut(at..at + 4) {
        field.copy_from_slice(&number.to_le_bytes());
    }
}

fn planted(name: &str, bytes: &[u8]) -> MemoryDisk {
    let disk = MemoryDisk::new();
    disk.create_dir_all(Path::new(DIR))
        .expect("memory takes everything");
    disk.plant(&Path::new(DIR).join(name), bytes);
    disk
}

/// The node whose directory it is, of the group in the seeds.
fn own() -> Identity {
    Identity {
        group: Some(GroupUuid(Uuid::from_u128(9))),
        node_id: NodeId(1),
        ..Identity::fresh("orders", "n1", Incarnation(7))
    }
}

/// The output of work on a disk in memory.
fn now<T>(work: impl Future<Output = T>) -> T {
    work.now_or_never().expect("memory never waits")
}
