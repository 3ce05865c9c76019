//! Whole revisions, out of what a watch tells.
//!
//! A revision may come in several messages, of which all but the last say that more follows. A message
//! that says no such thing ends what it holds: servers keep a revision in one message otherwise.

use steadfast_server::proto::etcdserverpb::WatchResponse;
use steadfast_server::proto::mvccpb::event::EventType;

use crate::etcd::target::Changes;

/// Bytes of one revision. One that is larger is not kept here, and fits into no transaction either.
const REVISION_BYTES_MAX: usize = 64 * 1024 * 1024;

/// What one revision of the source changed, with the leases that it named.
#[derive(Debug, Default)]
pub(super) struct Revision {
    pub(super) number: i64,
    pub(super) changes: Changes,
    /// Of keys and values.
    pub(super) bytes: usize,
    pub(super) events: u64,
}

/// Why messages are no revisions.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unusable {
    /// An event of a revision that was over.
    OutOfOrder,
    TooLarge,
}

/// Puts revisions together.
#[derive(Debug)]
pub(super) struct Revisions {
    /// The last that is whole.
    last: i64,
    open: Option<Revision>,
}

impl Revisions {
    /// For a watch that begins after this revision.
    pub(super) fn after(last: i64) -> Self {
        Self { last, open: None }
    }

    /// Takes a message; returns the revisions that are whole with it.
    ///
    /// # Errors
    /// See [`Unusable`].
    pub(super) fn push(&mut self, message: WatchResponse) -> Result<Vec<Revision>, Unusable> {
        let mut whole = Vec::new();
        for event in message.events {
            let is_delete = event.r#type() == EventType::Delete;
            let Some(kv) = event.kv else { continue };
            let open = self.open.get_or_insert_default();
            if open.events > 0 && kv.mod_revision > open.number {
                self.last = open.number;
                whole.push(std::mem::take(open));
            }
            if kv.mod_revision <= self.last || kv.mod_revision < open.number {
                return Err(Unusable::OutOfOrder);
            }
            open.number = kv.mod_revision;
            open.events += 1;
            open.bytes += kv.key.len() + kv.value.len();
            if open.bytes > REVISION_BYTES_MAX {
                return Err(Unusable::TooLarge);
            }
            let change = (!is_delete).then_some((kv.value, kv.lease));
            open.changes.insert(kv.key, change);
        }
        if !message.fragment
            && let Some(open) = self.open.take()
        {
            self.last = open.number;
            whole.push(open);
        }
        Ok(whole)
    }
}

#[cfg(test)]
mod tests {
    use steadfast_server::proto::mvccpb::{Event, KeyValue};

    use super::*;

    fn message(revisions: &[i64], fragment: bool) -> WatchResponse {
        let event = |&mod_revision: &i64| Event {
            kv: Some(KeyValue {
                key: format!("k{mod_revision}").into(),
                mod_revision,
                ..KeyValue::default()
            }),
            ..Event::default()
        };
        WatchResponse {
            events: revisions.iter().map(event).collect(),
            fragment,
            ..WatchResponse::default()
        }
    }

    fn numbers(whole: Result<Vec<Revision>, Unusable>) -> Vec<(i64, u64)> {
        let whole = whole.expect("in order");
        whole
            .iter()
            .map(|revision| (revision.number, revision.events))
            .collect()
    }

    #[test]
    fn a_revision_is_given_out_once_it_is_whole() {
        let mut revisions = Revisions::after(4);
        assert_eq!(numbers(revisions.push(message(&[5, 5, 6], true))), [(5, 2)]);
        assert_eq!(numbers(revisions.push(message(&[6], true))), []);
        assert_eq!(
            numbers(revisions.push(message(&[6, 7], false))),
            [(6, 3), (7, 1)]
        );
        assert_eq!(numbers(revisions.push(message(&[], false))), []);
    }

    #[test]
    fn what_belongs_to_a_revision_that_was_over_is_refused() {
        for late in [4, 5] {
            let mut revisions = Revisions::after(4);
            assert_eq!(numbers(revisions.push(message(&[5], false))), [(5, 1)]);
            let refused = revisions.push(message(&[late], false));
            assert_eq!(refused.map(|_| ()), Err(Unusable::OutOfOrder));
        }
    }
}
