//! Keeps Noxu from giving the id of one tree node to another.
//!
//! Noxu numbers the nodes of all its trees with one counter per process. It raises the counter past
//! the ids in a log only after recovery, and so after the splits that recovery makes while redoing
//! changes: their nodes get ids from 1 on, which older nodes have. The next checkpoint mistakes two
//! such nodes for one, and what lies below the other is lost.
//!
//! So the counter is raised before Noxu opens the files. The ids are read from the files at each
//! open: a remembered value would be too low once another engine had raised the counter.

use bytes::Buf;
use noxu_log::LogEntryType;
use noxu_recovery::CheckpointEnd;

use super::log_file::Entry;

/// Offset of the id in a node's entry: after the database, the places of earlier versions, and the
/// length.
const ID_OFFSET: usize = 28;
/// Ids skipped above the highest one in the log, for nodes that were cut off its end.
const GAP: u64 = 1 << 20;

/// The highest node id in the entries noted so far.
#[derive(Debug, Default)]
pub(super) struct NodeIds {
    highest: u64,
}

impl NodeIds {
    /// Whether entries of this kind have node ids. No others do.
    pub(super) fn are_in(kind: LogEntryType) -> bool {
        kind.is_in_type() || kind == LogEntryType::CkptEnd
    }

    pub(super) fn note(&mut self, entry: &Entry<'_>) {
        let id = id_in(entry.kind, entry.body());
        self.highest = self.highest.max(id.unwrap_or(0));
    }

    /// Makes Noxu assign only higher ids.
    pub(super) fn rule_out(&self) {
        if self.highest > 0 {
            noxu_tree::seed_node_id_counter(self.highest.saturating_add(GAP));
        }
    }
}

/// The id of the node in an entry, or the highest one assigned before a checkpoint, which may be
/// that of a node whose file was cleaned away.
fn id_in(kind: LogEntryType, body: &[u8]) -> Option<u64> {
    if kind == LogEntryType::CkptEnd {
        let end = CheckpointEnd::read_from_log(body).ok()?;
        return Some(end.get_last_local_node_id());
    }
    let mut id = body.get(ID_OFFSET..ID_OFFSET + size_of::<u64>())?;
    kind.is_in_type().then(|| id.get_u64())
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use noxu_log::entry::{BinDeltaLogEntry, InLogEntry};
    use noxu_util::{Lsn, NULL_LSN};

    use super::*;

    #[test]
    fn the_id_is_found_where_noxu_writes_it() {
        let node = [&77_u64.to_be_bytes()[..], b"records"].concat();
        let (mut whole, mut delta) = (BytesMut::new(), BytesMut::new());
        InLogEntry::new(1, NULL_LSN, NULL_LSN, node.clone()).write_to_log(&mut whole);
        BinDeltaLogEntry::new(1, Lsn::new(2, 3), NULL_LSN, node).write_to_log(&mut delta);
        assert_eq!(id_in(LogEntryType::IN, &whole), Some(77));
        assert_eq!(id_in(LogEntryType::BIN, &whole), Some(77));
        assert_eq!(id_in(LogEntryType::BINDelta, &delta), Some(77));
        assert_eq!(id_in(LogEntryType::InsertLNTxn, &whole), None);
        assert_eq!(id_in(LogEntryType::BIN, &whole[..ID_OFFSET + 7]), None);

        let mut end = Vec::new();
        CheckpointEnd::new(1, "us", NULL_LSN, None, NULL_LSN, 78, 0, 0, 0, 0, 0, false)
            .write_to_log(&mut end)
            .expect("written");
        assert_eq!(id_in(LogEntryType::CkptEnd, &end), Some(78));
    }
}
