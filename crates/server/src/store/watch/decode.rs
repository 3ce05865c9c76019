//! What a transaction of the environment means to watches.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use steadfast::Change;

use super::super::keys::{
    AUTH, COMPACTED, COMPACTED_DONE, Failure, HISTORY, LOG, LogEvent, LogRow, META, STATE,
    StateRow, Version, decode, history_key, number,
};
use crate::proto::mvccpb::event::EventType;
use crate::proto::mvccpb::{Event, KeyValue};

/// What an event takes of a bound besides its key and value, in bytes.
const EVENT_OVERHEAD_BYTES: usize = 128;

/// One change of a key.
#[derive(Debug)]
pub(super) struct Happened {
    pub(super) revision: i64,
    pub(super) is_delete: bool,
    kv: KeyValue,
    /// The revision of the version before; 0: none.
    pub(super) previous: i64,
    /// That version, once somebody has looked it up.
    pub(super) previous_kv: OnceLock<Option<KeyValue>>,
}

impl Happened {
    /// `version` is what the history has for it; `None`: nothing, as for a deletion.
    pub(super) fn new(event: LogEvent, revision: i64, version: Option<Version>) -> Self {
        let kv = match version {
            Some(version) => {
                let meta = version.meta(revision);
                meta.key_value(event.key, version.value)
            }
            None => KeyValue {
                key: event.key,
                mod_revision: revision,
                ..KeyValue::default()
            },
        };
        Self {
            revision,
            is_delete: event.is_delete,
            kv,
            previous: event.previous,
            previous_kv: OnceLock::new(),
        }
    }

    pub(super) fn key(&self) -> &Bytes {
        &self.kv.key
    }

    pub(super) fn bytes(&self) -> usize {
        self.kv.key.len() + self.kv.value.len() + EVENT_OVERHEAD_BYTES
    }

    /// As it is told to a client.
    pub(super) fn event(&self, with_previous: bool) -> Event {
        let kind = if self.is_delete {
            EventType::Delete
        } else {
            EventType::Put
        };
        let previous = self.previous_kv.get().filter(|_| with_previous);
        Event {
            r#type: kind as i32,
            kv: Some(self.kv.clone()),
            prev_kv: previous.cloned().flatten(),
        }
    }
}

/// Some whole revisions.
#[derive(Debug)]
pub(super) struct Batch {
    /// The last of them.
    pub(super) revision: i64,
    /// In order.
    pub(super) events: Vec<Happened>,
    pub(super) bytes: usize,
}

impl Batch {
    pub(super) fn new(revision: i64, events: Vec<Happened>) -> Self {
        let bytes = events.iter().map(Happened::bytes).sum();
        Self {
            revision,
            events,
            bytes,
        }
    }
}

/// What a transaction brought.
#[derive(Default)]
pub(super) struct News {
    pub(super) state: Option<StateRow>,
    pub(super) batches: Vec<Arc<Batch>>,
    pub(super) compacted: Option<i64>,
    pub(super) compacted_done: Option<i64>,
    pub(super) is_of_auth: bool,
}

/// # Errors
/// [`Failure::Row`].
pub(super) fn news(changes: Vec<Change>) -> Result<News, Failure> {
    let (mut news, mut rows, mut versions) = (News::default(), Vec::new(), HashMap::new());
    for change in changes {
        news.is_of_auth |= change.database() == AUTH;
        let Change::Put {
            database,
            key,
            value,
        } = change
        else {
            continue;
        };
        match (&database[..], &key[..]) {
            (LOG, _) => rows.push((number(&key)?, decode::<LogRow>(value)?)),
            (HISTORY, _) => {
                versions.insert(key, value);
            }
            (META, STATE) => news.state = Some(decode(value)?),
            (META, COMPACTED) => news.compacted = Some(number(&value)?),
            (META, COMPACTED_DONE) => news.compacted_done = Some(number(&value)?),
            _ => {}
        }
    }
    for (last, row) in rows {
        let events = row.events.into_iter().map(|event| {
            let revision = last - event.back;
            let row = history_key(&event.key, revision, event.step(revision));
            let version = versions.remove(&row);
            let version = version.ok_or(Failure::Row("an event has no version"))?;
            Ok(Happened::new(event, revision, Version::of_row(version)?))
        });
        let events = events.collect::<Result<Vec<_>, Failure>>()?;
        news.batches.push(Arc::new(Batch::new(last, events)));
    }
    Ok(news)
}
