//! The bytes: round trips, and what must not be taken for a record.

use proptest::prelude::*;

use super::super::format::{
    Head, Invalid, Link, Place, RECORD_HEADER_BYTES, RECORDS_START, Record, SEGMENT_HEADER_BYTES,
    SegmentHeader, decode_record, encode_record, record_bytes,
};
use super::*;

const PLACE: Place = Place {
    segment: 3,
    offset: 4096,
};

fn any_id() -> impl Strategy<Value = LogId> {
    (any::<u64>(), any::<u64>()).prop_map(|(term, position)| id(term, position))
}

fn any_vote() -> impl Strategy<Value = Vote> {
    (any::<u64>(), any::<u64>(), any::<bool>()).prop_map(|(term, node, committed)| Vote {
        term: Term(term),
        node: NodeId(node),
        committed,
    })
}

fn any_place() -> impl Strategy<Value = Place> {
    (any::<u32>(), any::<u32>()).prop_map(|(segment, offset)| Place { segment, offset })
}

fn any_record() -> impl Strategy<Value = Record> {
    let kind = prop_oneof![
        Just(EntryKind::Blank),
        Just(EntryKind::Transactions),
        Just(EntryKind::Membership)
    ];
    prop_oneof![
        (kind, any_id()).prop_map(|(kind, id)| Record::Entry(kind, id)),
        any_vote().prop_map(Record::Vote),
        proptest::option::of(any_id()).prop_map(Record::Mark),
        proptest::option::of(any_id()).prop_map(Record::Truncation),
        any_id().prop_map(Record::Purge),
    ]
}

fn any_head() -> impl Strategy<Value = Head> {
    let id = || proptest::option::of(any_id());
    (id(), id(), id(), proptest::option::of(any_vote())).prop_map(
        |(purged, last, committed, vote)| Head {
            purged,
            last,
            committed,
            vote,
        },
    )
}

fn encoded(link: Link, record: &Record, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_record(&mut bytes, &link, record, payload);
    bytes
}

proptest! {
    #[test]
    fn a_record_comes_back_as_it_was_written(
        record in any_record(),
        place in any_place(),
        synced_below in any_place(),
        previous: u32,
        payload in proptest::collection::vec(any::<u8>(), 0..100),
    ) {
        let link = Link { place, previous, synced_below };
        let mut bytes = vec![0xaa; 16];
        let checksum = encode_record(&mut bytes, &link, &record, &payload);
        let parsed = decode_record(&bytes, 16, place).unwrap();
        prop_assert_eq!(parsed.record, record);
        prop_assert_eq!(parsed.link, link);
        prop_assert_eq!(parsed.checksum, checksum);
        prop_assert_eq!(&bytes[parsed.payload], &payload[..]);
        prop_assert_eq!(parsed.size as usize, record_bytes(payload.len()));
    }

    #[test]
    fn a_segment_header_comes_back_as_it_was_written(
        head in any_head(),
        numbers: [u32; 4],
        node: u64,
        group: u128,
    ) {
        let [sequence, bytes, previous_end, previous_checksum] = numbers;
        let identity = LogIdentity {
            group: GroupUuid(uuid::Uuid::from_u128(group)),
            node: NodeId(node),
            incarnation: Incarnation(!node),
        };
        let header =
            SegmentHeader { identity, sequence, bytes, previous_end, previous_checksum, head };
        prop_assert_eq!(SegmentHeader::decode(&header.encode()).unwrap(), header);
    }

    #[test]
    fn any_bytes_are_read_without_a_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..300),
        at in 0_usize..320,
    ) {
        prop_assert!(decode_record(&bytes, at, PLACE).is_err());
        prop_assert!(SegmentHeader::decode(&bytes).is_err());
    }

    #[test]
    fn a_record_is_valid_only_where_it_was_written(place in any_place()) {
        let link = Link { place, previous: 1, synced_below: place };
        let bytes = encoded(link, &Record::Mark(None), &[]);
        let elsewhere = Place { segment: place.segment ^ 1, ..place };
        prop_assert_eq!(decode_record(&bytes, 0, elsewhere), Err(Invalid::Place));
        let elsewhere = Place { offset: place.offset ^ 8, ..place };
        prop_assert_eq!(decode_record(&bytes, 0, elsewhere), Err(Invalid::Place));
    }
}

#[test]
fn no_changed_bit_goes_unnoticed() {
    let link = Link {
        place: PLACE,
        previous: 1,
        synced_below: PLACE,
    };
    let record = encoded(
        link,
        &Record::Entry(EntryKind::Transactions, id(1, 2)),
        b"payload",
    );
    let head = Head {
        last: Some(id(1, 2)),
        ..Head::default()
    };
    let header = SegmentHeader {
        identity: IDENTITY,
        sequence: 3,
        bytes: 8192,
        previous_end: 8000,
        previous_checksum: 5,
        head,
    };
    let header = header.encode();
    for bit in 0..record.len() * 8 {
        let mut changed = record.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        assert!(
            decode_record(&changed, 0, PLACE).is_err(),
            "bit {bit} of a record"
        );
    }
    for bit in 0..header.len() * 8 {
        let mut changed = header;
        changed[bit / 8] ^= 1 << (bit % 8);
        assert!(
            SegmentHeader::decode(&changed).is_err(),
            "bit {bit} of a header"
        );
    }
}

/// The layouts of `docs/format.md`, byte by byte: a change here needs a new format version.
#[test]
fn the_layouts_are_the_documented_ones() {
    let link = Link {
        place: Place {
            segment: 0x0102_0304,
            offset: 0x0506_0708,
        },
        previous: 0x1112_1314,
        synced_below: Place {
            segment: 0x2122_2324,
            offset: 0x2526_2728,
        },
    };
    let record = Record::Entry(EntryKind::Membership, id(0x31, 0x41));
    let bytes = encoded(link, &record, b"abc");
    assert_eq!(RECORD_HEADER_BYTES, 48);
    assert_eq!(bytes.len(), 56);
    assert_eq!(
        bytes[4..16],
        [3, 0, 0, 0, 1, 0, 3, 0, 0x14, 0x13, 0x12, 0x11]
    );
    assert_eq!(bytes[16..24], [8, 7, 6, 5, 4, 3, 2, 1]);
    assert_eq!(
        bytes[24..32],
        [0x28, 0x27, 0x26, 0x25, 0x24, 0x23, 0x22, 0x21]
    );
    assert_eq!(
        bytes[32..48],
        [0x31, 0, 0, 0, 0, 0, 0, 0, 0x41, 0, 0, 0, 0, 0, 0, 0]
    );
    assert_eq!(bytes[48..], *b"abc\0\0\0\0\0");
    assert_eq!(bytes[..4], crc32c::crc32c(&bytes[4..]).to_le_bytes());

    let head = Head {
        purged: Some(id(1, 2)),
        vote: Some(vote(4)),
        ..Head::default()
    };
    let header = SegmentHeader {
        identity: IDENTITY,
        sequence: 6,
        bytes: 8192,
        previous_end: 0x7172,
        previous_checksum: 0x8182,
        head,
    };
    let bytes = header.encode();
    assert_eq!((SEGMENT_HEADER_BYTES, RECORDS_START), (128, 4096));
    assert_eq!(bytes[..8], *b"STDFSTLG");
    assert_eq!(bytes[12..20], [1, 0, 0b11001, 0, 6, 0, 0, 0]);
    assert_eq!(
        bytes[20..32],
        [0x72, 0x71, 0, 0, 0x82, 0x81, 0, 0, 0, 0x20, 0, 0]
    );
    assert_eq!(
        bytes[32..64],
        [[0; 15].as_slice(), &[7, 1], &[0; 7], &[1], &[0; 7]].concat()
    );
    assert_eq!(
        bytes[64..80],
        [1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]
    );
    assert_eq!(bytes[80..112], [0; 32]);
    assert_eq!(
        bytes[112..],
        [4, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]
    );
}
