//! What a log refuses: callers' mistakes, and files that are not what they should be.

use super::super::format::{
    Head, Link, Place, RECORDS_START, Record, SegmentHeader, encode_record, record_bytes,
};
use super::super::{Damage, Disk, OpenMode};
use super::*;

#[tokio::test]
#[should_panic(expected = "entries follow on each other")]
async fn a_gap_is_a_mistake_of_the_caller() {
    let node = Node::open(&MemoryDisk::new(), TINY).await.unwrap();
    append(&node.log, vec![entry(0, 5, b"a")]).await.unwrap();
    append(&node.log, vec![entry(0, 7, b"b")]).await.unwrap();
}

#[tokio::test]
async fn entries_without_their_vote_are_told() {
    let disk = MemoryDisk::new();
    let node = Node::open(&disk, TINY).await.unwrap();
    node.log.save_vote(vote(2)).await.unwrap();
    append(&node.log, vec![entry(3, 0, b"a")]).await.unwrap();
    node.close().await;
    match Node::open(&disk, TINY).await.err().unwrap() {
        LogError::VoteMissing { last, vote: found } => {
            assert_eq!((last, found), (id(3, 0), Some(vote(2))));
        }
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn a_log_of_another_node_is_refused() {
    let disk = MemoryDisk::new();
    Node::open(&disk, TINY).await.unwrap().close().await;
    for identity in [
        LogIdentity {
            group: GroupUuid(uuid::Uuid::from_u128(8)),
            ..IDENTITY
        },
        LogIdentity {
            node: NodeId(2),
            ..IDENTITY
        },
        LogIdentity {
            incarnation: Incarnation(2),
            ..IDENTITY
        },
    ] {
        let error = Node::open_as(&disk, TINY, identity).await.err().unwrap();
        assert!(matches!(error, LogError::Foreign { .. }), "{error}");
    }
}

#[tokio::test]
async fn a_newer_format_is_named() {
    let disk = MemoryDisk::new();
    let node = Node::open(&disk, TINY).await.unwrap();
    append(&node.log, vec![entry(0, 0, b"a")]).await.unwrap();
    node.close().await;
    let whole = disk.bytes(&segment_path(1)).unwrap();

    let mut header = whole.clone();
    header[12] = 2;
    let seed = crc32c::crc32c(&header[..8]);
    let checksum = crc32c::crc32c_append(seed, &header[12..128]);
    header[8..12].copy_from_slice(&checksum.to_le_bytes());
    let mut record = whole;
    let start = RECORDS_START as usize;
    record[start + 8] = 2;
    let checksum = crc32c::crc32c(&record[start + 4..start + record_bytes(1)]);
    record[start..start + 4].copy_from_slice(&checksum.to_le_bytes());
    for newer in [header, record] {
        disk.plant(&segment_path(1), &newer);
        let error = Node::open(&disk, TINY).await.err().unwrap();
        assert!(
            matches!(error, LogError::NewerVersion { version: 2, .. }),
            "{error}"
        );
    }
}

#[tokio::test]
async fn a_missing_segment_is_corruption() {
    let disk = MemoryDisk::new();
    let node = Node::open(&disk, TINY).await.unwrap();
    for position in 0..30 {
        append(&node.log, vec![entry(0, position, &[1; 500])])
            .await
            .unwrap();
    }
    node.close().await;
    for missing in 1..=3 {
        let path = segment_path(missing);
        let bytes = disk.bytes(&path).unwrap();
        disk.remove(&path).unwrap();
        let error = Node::open(&disk, TINY).await.err().unwrap();
        assert!(
            matches!(
                error,
                LogError::Corrupt {
                    damage: Damage::Sequence,
                    ..
                }
            ),
            "without segment {missing}: {error}"
        );
        drop(disk.open(&path, OpenMode::CreateNew).unwrap());
        disk.plant(&path, &bytes);
    }
    Node::open(&disk, TINY).await.unwrap();
}

/// The first place of a record.
const FIRST: Place = Place {
    segment: 1,
    offset: RECORDS_START,
};

/// What a log says whose only segment has this header and this record, both intact.
async fn opened_with(head: Head, record: &Record, synced_below: Place) -> LogError {
    let header = SegmentHeader {
        identity: IDENTITY,
        sequence: 1,
        bytes: TINY.segment_bytes,
        previous_end: 0,
        previous_checksum: 0,
        head,
    };
    let link = Link {
        place: FIRST,
        previous: 0,
        synced_below,
    };
    let mut bytes = header.encode().to_vec();
    bytes.resize(RECORDS_START as usize, 0);
    encode_record(&mut bytes, &link, record, &[]);
    bytes.resize(TINY.segment_bytes as usize, 0);
    let disk = MemoryDisk::new();
    disk.create_dir_all(&dir()).unwrap();
    disk.plant(&segment_path(1), &bytes);
    Node::open(&disk, TINY).await.err().unwrap()
}

#[tokio::test]
async fn intact_bytes_of_a_state_that_no_log_is_in_are_corruption() {
    let blank = Record::Entry(EntryKind::Blank, id(0, 0));
    let purged_ahead = Head {
        purged: Some(id(0, 7)),
        ..Head::default()
    };
    let error = opened_with(purged_ahead, &blank, FIRST).await;
    assert!(is(&error, Damage::Header), "{error}");
    for record in [
        Record::Entry(EntryKind::Blank, id(0, u64::MAX)),
        Record::Mark(Some(id(u64::MAX, 0))),
        Record::Truncation(Some(id(0, u64::MAX))),
        Record::Purge(id(0, u64::MAX)),
        Record::Vote(vote(u64::MAX)),
    ] {
        let error = opened_with(Head::default(), &record, FIRST).await;
        assert!(is(&error, Damage::Order), "{record:?}: {error}");
    }
}

#[tokio::test]
async fn a_record_that_vouches_for_itself_is_corruption() {
    let blank = Record::Entry(EntryKind::Blank, id(0, 0));
    let behind = Place {
        offset: FIRST.offset + 8,
        ..FIRST
    };
    let error = opened_with(Head::default(), &blank, behind).await;
    assert!(is(&error, Damage::Order), "{error}");
}

fn is(error: &LogError, expected: Damage) -> bool {
    matches!(error, LogError::Corrupt { damage, .. } if *damage == expected)
}
