//! Damaged and foreign frames, and numbers near the end of their range.

use super::*;

#[test]
fn a_flipped_bit_anywhere_in_a_frame_is_refused() {
    let message = LogIdRecord {
        term: 3,
        position: 77,
    };
    let frame = encode(Kind::Append, &message);
    let read: LogIdRecord = decode(Kind::Append, frame.clone()).unwrap();
    assert_eq!(read, message);
    for bit in 0..frame.len() * 8 {
        let mut flipped = BytesMut::from(&frame[..]);
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(
            decode::<LogIdRecord>(Kind::Append, flipped.freeze()).is_err(),
            "bit {bit}"
        );
    }
}

#[test]
fn a_frame_of_another_kind_is_refused() {
    let frame = encode(Kind::Append, &BarrierRequest {});
    assert!(matches!(
        decode::<BarrierRequest>(Kind::Hello, frame),
        Err(WireError::Kind {
            expected: Kind::Hello,
            found: 3
        })
    ));
}

#[test]
fn terms_and_positions_near_the_end_of_their_range_are_refused() {
    for (term, position) in [(u64::MAX, 0), (0, u64::MAX), (1 << 63, 1 << 63)] {
        assert!(LogId::try_from(LogIdRecord { term, position }).is_err());
    }
}
