//! Checks what subscribers saw against the committed log.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::{CATALOG, Model};
use crate::history::{FeedRecord, History, SeenChange, SeenRow, SeenTransaction};
use crate::logfile::LoggedTransaction;

/// Checks each subscriber's record against `log`, the committed transactions by VLSN.
pub fn feeds(history: &History, log: &BTreeMap<u64, LoggedTransaction>) -> Vec<String> {
    let mut problems = Vec::new();
    let records = history.feeds.iter();
    let cursors = records.filter_map(|record| Cursor::new(record, history));
    let mut cursors: Vec<Cursor<'_>> = cursors.collect();
    let mut model = Model::default();
    for cursor in &mut cursors {
        problems.extend(cursor.state(0, &model));
    }
    for (vlsn, transaction) in log {
        model.apply(transaction);
        let expected = changes(transaction, &model);
        for cursor in &mut cursors {
            problems.extend(cursor.transaction(*vlsn, transaction.term, &expected));
            problems.extend(cursor.state(*vlsn, &model));
        }
    }
    for cursor in cursors {
        problems.extend(cursor.end(log.len() as u64));
    }
    problems
}

/// One record, and how much of it has been checked.
struct Cursor<'a> {
    record: &'a FeedRecord,
    began: u64,
    state: &'a [SeenRow],
    seen: std::slice::Iter<'a, SeenTransaction>,
    /// Rows of the state that the node could not know to be wrong.
    excused: Vec<(u32, &'a Bytes)>,
    has_failed: bool,
}

impl<'a> Cursor<'a> {
    /// `None` for a record without a complete state: it holds nothing else.
    fn new(record: &'a FeedRecord, history: &'a History) -> Option<Self> {
        let (began, state) = record.state.as_ref()?;
        let excused = record.span.map(|span| history.excused(span));
        Some(Self {
            record,
            began: *began,
            state,
            seen: record.seen.iter(),
            excused: excused.unwrap_or_default(),
            has_failed: false,
        })
    }

    fn complain(&mut self, problem: &str) -> Option<String> {
        // After one wrong transaction, everything that follows looks wrong.
        if std::mem::replace(&mut self.has_failed, true) {
            return None;
        }
        let who = if self.record.is_remote {
            "remote"
        } else {
            "local"
        };
        let (filter, began) = (&self.record.filter, self.began);
        Some(format!(
            "the {who} subscriber of {filter:?} since VLSN {began}: {problem}"
        ))
    }

    fn lets_through(&self, database: &str, key: Option<&Bytes>) -> bool {
        match &self.record.filter {
            None => true,
            Some((wanted, prefix)) => {
                *wanted == database && key.is_none_or(|key| key.starts_with(prefix))
            }
        }
    }

    /// Checks the state as of `vlsn`, if the record begins there.
    fn state(&mut self, vlsn: u64, model: &Model) -> Option<String> {
        if vlsn != self.began {
            return None;
        }
        let mut there = Vec::new();
        for name in model.names() {
            let keys = model.keys(&name).into_iter().flatten();
            let is_told = |key: &Bytes| !model.is_excused(&name, key, &self.excused);
            let keys = keys.filter(|(key, _)| self.lets_through(&name, Some(key)) && is_told(key));
            there.extend(keys.map(|(key, value)| (name.clone(), key.clone(), value.clone())));
        }
        let is_told = |(name, key, _): &&SeenRow| !model.is_excused(name, key, &self.excused);
        let told: Vec<_> = self.state.iter().filter(is_told).collect();
        if there.iter().eq(told.iter().copied()) {
            return None;
        }
        let problem = format!(
            "its state has {} rows, and {} were there",
            told.len(),
            there.len()
        );
        self.complain(&problem)
    }

    fn transaction(&mut self, vlsn: u64, term: u64, all: &[SeenChange]) -> Option<String> {
        if vlsn <= self.began || vlsn > self.record.passed {
            return None;
        }
        let changes = all.iter().filter(|change| match change {
            SeenChange::Key(database, key, _) => self.lets_through(database, Some(key)),
            SeenChange::Created(database) | SeenChange::Dropped(database) => {
                self.lets_through(database, None)
            }
            SeenChange::Other(_) => true,
        });
        let expected = SeenTransaction {
            vlsn,
            term,
            changes: changes.cloned().collect(),
        };
        if self.record.filter.is_some() && expected.changes.is_empty() {
            return None;
        }
        let seen = self.seen.next();
        if seen == Some(&expected) {
            return None;
        }
        let problem = format!("VLSN {vlsn} was {expected:?}, seen as {seen:?}");
        self.complain(&problem)
    }

    fn end(mut self, last: u64) -> Option<String> {
        if self.began > last || self.record.passed > last {
            let passed = self.record.passed;
            let problem = format!("it came to {passed}, and the log ends with {last}");
            return self.complain(&problem);
        }
        let more = self.seen.next()?;
        let problem = format!("it saw {more:?} once more, or out of its order");
        self.complain(&problem)
    }
}

/// What a transaction changes, under the names valid after it.
fn changes(transaction: &LoggedTransaction, after: &Model) -> Vec<SeenChange> {
    let change = |(database, key, value): &(u32, Bytes, Option<Bytes>)| {
        if *database == CATALOG {
            let name = String::from_utf8(key.to_vec()).ok()?;
            let is_name = !name.starts_with('\0');
            return is_name.then(|| match value {
                Some(_) => SeenChange::Created(name),
                None => SeenChange::Dropped(name),
            });
        }
        let name = after.name_of(*database)?;
        Some(SeenChange::Key(name, key.clone(), value.clone()))
    };
    transaction.operations.iter().filter_map(change).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn transaction(operations: &[(u32, &'static str, &'static [u8])]) -> LoggedTransaction {
        let operation = |(database, key, value): &(u32, &'static str, &'static [u8])| {
            let (key, value) = (Bytes::from_static(key.as_bytes()), *value);
            (*database, key, Some(Bytes::from_static(value)))
        };
        LoggedTransaction {
            position: 0,
            term: 1,
            operations: operations.iter().map(operation).collect(),
        }
    }

    fn log() -> BTreeMap<u64, LoggedTransaction> {
        let create = transaction(&[(0, "a", &[1, 0, 0, 0]), (1, "k", b"1")]);
        [
            (1, create),
            (2, transaction(&[(1, "k", b"2")])),
            (3, transaction(&[(1, "l", b"3")])),
        ]
        .into()
    }

    fn put(vlsn: u64, key: &'static str, value: &'static str) -> SeenTransaction {
        SeenTransaction {
            vlsn,
            term: 1,
            changes: vec![SeenChange::Key("a".into(), key.into(), Some(value.into()))],
        }
    }

    fn of(record: FeedRecord) -> History {
        let mut history = History::default();
        history.feeds.push(record);
        history
    }

    fn right() -> FeedRecord {
        FeedRecord {
            state: Some((1, vec![("a".into(), "k".into(), "1".into())])),
            seen: vec![put(2, "k", "2"), put(3, "l", "3")],
            passed: 3,
            ..FeedRecord::default()
        }
    }

    #[test]
    fn a_right_record_passes_and_each_wrong_one_is_told() {
        assert_eq!(feeds(&of(right()), &log()), Vec::<String>::new());
        let filtered = FeedRecord {
            filter: Some(("a", "l".into())),
            state: Some((1, vec![])),
            seen: vec![put(3, "l", "3")],
            ..right()
        };
        assert_eq!(feeds(&of(filtered), &log()), Vec::<String>::new());
        let wrong = |change: fn(&mut FeedRecord)| {
            let mut record = right();
            change(&mut record);
            assert_eq!(feeds(&of(record), &log()).len(), 1);
        };
        wrong(|record| drop(record.seen.remove(0)));
        wrong(|record| record.seen.push(put(3, "l", "3")));
        wrong(|record| record.seen.swap(0, 1));
        wrong(|record| record.seen[0] = put(2, "k", "9"));
        wrong(|record| record.seen[0].term = 2);
        wrong(|record| record.state = Some((1, vec![])));
        wrong(|record| record.passed = 4);
    }
}
