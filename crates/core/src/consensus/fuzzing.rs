//! Appends, entries and memberships as functions of bytes. See `crate::fuzzing`.

use bytes::Bytes;

use super::feeder::check_append;
use super::types::{
    decode_membership, encode_membership, from_raft_entry, from_raft_log_id, to_raft_entry,
};
use crate::ids::{LogPosition, NodeId, Term};
use crate::log::{Entry, EntryKind};
use crate::wire::messages::Append;

/// An append of whoever it says that it is from.
pub(crate) fn append(append: Append) {
    let caller = append.vote.map_or(NodeId(0), |vote| NodeId(vote.node));
    let Ok(request) = check_append(caller, append) else {
        return;
    };
    let first = request.prev_log_id.map_or(0, |prev| prev.index + 1);
    for (next, entry) in (first..).zip(request.entries) {
        assert_eq!(from_raft_log_id(&entry.log_id).position.0, next);
    }
}

/// An entry: its kind, then its payload.
pub(crate) fn entry(input: &[u8]) {
    let Some((kind, payload)) = input.split_first() else {
        return;
    };
    let entry = Entry {
        term: Term(1),
        position: LogPosition(1),
        kind: match kind {
            0 => EntryKind::Blank,
            1 => EntryKind::Transactions,
            _ => EntryKind::Membership,
        },
        payload: Bytes::copy_from_slice(payload),
    };
    if entry.kind == EntryKind::Membership {
        membership(&entry.payload);
    }
    let Ok(read) = to_raft_entry(entry) else {
        return;
    };
    let written = from_raft_entry(&read);
    let again = to_raft_entry(written.clone()).expect("what is written is read");
    assert_eq!(from_raft_entry(&again), written);
    if let openraft::EntryPayload::Normal(batch) = &read.payload {
        let mut last = None;
        batch.for_each(|vlsn, _| last = Some(vlsn));
        assert!(last.is_none_or(|last| (batch.first()..=batch.last()).contains(&last)));
        assert_eq!(batch.bytes()[..], *payload);
    }
}

/// A membership, as the engine and the log have it.
pub(crate) fn membership(bytes: &Bytes) {
    let Ok(stored) = decode_membership(bytes) else {
        return;
    };
    let id = stored.log_id().as_ref().map(from_raft_log_id);
    let written = encode_membership(id, stored.membership());
    let again = decode_membership(&written).expect("what is written is read");
    assert_eq!(again, stored);
}
