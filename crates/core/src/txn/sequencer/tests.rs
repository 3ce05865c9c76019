//! Conflicts, sessions, and the order of what is numbered.

use std::collections::BTreeSet;

use super::*;
use crate::txn::readers::Readers;
use crate::txn::window::Version;

const DB: DatabaseId = DatabaseId(1);
const TERM: Term = Term(3);

fn sequencer() -> Sequencer {
    let sequencer = Sequencer::new(Arc::new(Window::default()), Vlsn(10), 1024);
    sequencer.begin_session(TERM);
    sequencer
}

fn put(key: &'static str, value: &'static str) -> Operation {
    Operation {
        database: DB,
        key: key.into(),
        value: Some(value.into()),
        expires: false,
    }
}

fn finished(at: u64, reads: ReadSet, operations: Vec<Operation>) -> Finished {
    Finished {
        session: SessionId { term: TERM },
        reader: Arc::new(Readers::default()).begin(|| Vlsn(at)),
        reads,
        operations,
        additions: vec![],
        deadline_ms: None,
    }
}

fn entry(position: u64) -> LogId {
    LogId {
        term: TERM,
        position: LogPosition(position),
    }
}

fn read_key(key: &'static str) -> ReadSet {
    ReadSet {
        keys: BTreeSet::from([(DB, key.into())]),
        ranges: vec![],
    }
}

fn newest(sequencer: &Sequencer, key: &'static str, at: u64) -> Option<Version> {
    sequencer.window.newest(DB, &Bytes::from(key), Vlsn(at))
}

#[test]
fn a_transaction_conflicts_with_one_in_flight_that_wrote_what_it_read() {
    let sequencer = sequencer();
    let _first = sequencer
        .submit(finished(10, ReadSet::default(), vec![put("a", "1")]))
        .unwrap();
    let stale = sequencer.submit(finished(10, read_key("a"), vec![put("a", "2")]));
    assert_eq!(stale.unwrap_err(), SubmitError::Conflict);
    assert!(
        sequencer
            .submit(finished(11, read_key("a"), vec![put("a", "2")]))
            .is_ok()
    );
    assert!(
        sequencer
            .submit(finished(10, read_key("b"), vec![put("a", "3")]))
            .is_ok()
    );
}

#[test]
fn an_addition_counts_from_a_version_that_is_in_flight() {
    let sequencer = sequencer();
    let add = |at, delta: i64| {
        let operation = Operation {
            value: Some(Bytes::copy_from_slice(&delta.to_le_bytes())),
            ..put("n", "")
        };
        // As of the snapshot, the counter is at 0.
        sequencer.submit(Finished {
            additions: vec![(0, delta.into())],
            ..finished(at, ReadSet::default(), vec![operation])
        })
    };
    let value = |count: i64| Some(Version::Value(Bytes::copy_from_slice(&count.to_le_bytes())));
    let _first = add(10, 5).unwrap();
    let _second = add(10, 7).unwrap();
    assert_eq!(newest(&sequencer, "n", 12), value(12));
    assert_eq!(newest(&sequencer, "n", 11), value(5));
    // What is dropped with its session counts no more.
    sequencer.end_session();
    sequencer.begin_session(TERM);
    let _third = add(10, 1).unwrap();
    assert_eq!(newest(&sequencer, "n", 12), value(1));
    let full = add(10, i64::MAX).unwrap_err();
    assert!(matches!(full, SubmitError::Counter(_)), "{full}");
    assert_eq!(newest(&sequencer, "n", 12), value(1));
}

#[test]
fn a_key_that_appears_in_a_scanned_range_is_a_conflict() {
    let sequencer = sequencer();
    let range = KeyRange::prefix(b"a");
    let reads = || ReadSet {
        keys: BTreeSet::new(),
        ranges: vec![(DB, range.clone())],
    };
    let _first = sequencer
        .submit(finished(10, ReadSet::default(), vec![put("ab", "1")]))
        .unwrap();
    let stale = sequencer.submit(finished(10, reads(), vec![put("x", "2")]));
    assert_eq!(stale.unwrap_err(), SubmitError::Conflict);
    assert!(
        sequencer
            .submit(finished(11, reads(), vec![put("x", "2")]))
            .is_ok()
    );
}

#[test]
fn the_end_of_a_session_tells_each_waiter_what_is_known_and_drops_what_was_pending() {
    let sequencer = sequencer();
    let submit = |key| {
        sequencer
            .submit(finished(10, ReadSet::default(), vec![put(key, "1")]))
            .unwrap()
            .1
    };
    let mut committed = submit("a");
    let first = sequencer.take_batch(9, 0).unwrap();
    let mut proposed = submit("b");
    let _second = sequencer.take_batch(9, 0).unwrap();
    let mut open = submit("c");
    sequencer.apply(entry(1), &first);
    sequencer.end_session();
    assert_eq!(committed.try_recv().unwrap(), Outcome::Committed(entry(1)));
    assert_eq!(proposed.try_recv().unwrap(), Outcome::Unknown);
    assert_eq!(open.try_recv().unwrap(), Outcome::NotCommitted);
    assert_eq!(
        newest(&sequencer, "a", 99),
        Some(Version::Value("1".into()))
    );
    assert_eq!(newest(&sequencer, "b", 99), None);
    assert_eq!(newest(&sequencer, "c", 99), None);
}

#[test]
fn a_batch_of_another_master_replaces_what_was_pending_under_the_same_numbers() {
    let sequencer = sequencer();
    let mut lost = sequencer
        .submit(finished(10, ReadSet::default(), vec![put("mine", "1")]))
        .unwrap()
        .1;
    let _proposed = sequencer.take_batch(9, 0).unwrap();
    let mut other = BatchBuilder::new(Vlsn(11));
    other.push(&[put("theirs", "2")]);
    let theirs = LogId {
        term: Term(4),
        ..entry(1)
    };
    sequencer.apply(theirs, &other.finish(0));
    assert_eq!(lost.try_recv().unwrap(), Outcome::Unknown);
    assert_eq!(sequencer.visible(), Vlsn(11));
    assert_eq!(newest(&sequencer, "mine", 11), None);
    assert_eq!(
        newest(&sequencer, "theirs", 11),
        Some(Version::Value("2".into()))
    );
    assert_eq!(sequencer.newest(), None);
}

#[test]
fn a_batch_tells_its_place_in_the_log_while_it_is_not_committed() {
    let sequencer = sequencer();
    let submit = |key| {
        let transaction = finished(10, ReadSet::default(), vec![put(key, "1")]);
        sequencer.submit(transaction).unwrap().1
    };
    let place_of = |vlsn| sequencer.place_of(SessionId { term: TERM }, Vlsn(vlsn));
    let _waiters = (submit("a"), submit("b"));
    let batch = sequencer.take_batch(9, 0).unwrap();
    let _third = submit("c");
    let (mut before, mut open) = (place_of(12), place_of(13));
    sequencer.placed(entry(4), &batch);
    assert_eq!(before.try_recv().unwrap(), entry(4));
    assert_eq!(place_of(11).try_recv().unwrap(), entry(4));
    let next = sequencer.take_batch(9, 0).unwrap();
    assert!(open.try_recv().is_err());
    sequencer.placed(entry(5), &next);
    assert_eq!(open.try_recv().unwrap(), entry(5));
}

#[test]
fn a_refused_batch_is_known_not_to_be_committed_unless_it_is_proposed_again() {
    for is_refused in [true, false] {
        let sequencer = sequencer();
        let transaction = finished(10, ReadSet::default(), vec![put("a", "1")]);
        let mut outcome = sequencer.submit(transaction).unwrap().1;
        sequencer.take_batch(9, 0).unwrap();
        sequencer.note_refused(true);
        sequencer.note_refused(is_refused);
        sequencer.end_session();
        let expected = if is_refused {
            Outcome::NotCommitted
        } else {
            Outcome::Unknown
        };
        assert_eq!(outcome.try_recv().unwrap(), expected);
    }
}

#[test]
fn the_term_of_an_applied_transaction_is_remembered() {
    let sequencer = sequencer();
    let mut first = 11;
    for (term, transactions) in [(1, 2), (1, 1), (4, 3)] {
        let mut batch = BatchBuilder::new(Vlsn(first));
        for _ in 0..transactions {
            batch.push(&[]);
        }
        first += transactions;
        let id = LogId {
            term: Term(term),
            ..entry(first)
        };
        sequencer.apply(id, &batch.finish(0));
    }
    let terms = [10, 11, 13, 14, 16].map(|vlsn| sequencer.term_of(Vlsn(vlsn)));
    let expected = [None, Some(1), Some(1), Some(4), Some(4)];
    assert_eq!(terms, expected.map(|term| term.map(Term)));
}

#[test]
fn a_committed_batch_is_invisible_until_it_is_applied() {
    let sequencer = sequencer();
    let _waiter = sequencer
        .submit(finished(10, ReadSet::default(), vec![put("a", "1")]))
        .unwrap();
    let batch = sequencer.take_batch(9, 0).unwrap();
    assert_eq!(sequencer.visible(), Vlsn(10));
    sequencer.apply(entry(1), &batch);
    assert_eq!(sequencer.visible(), Vlsn(11));
}

#[test]
fn a_transaction_of_an_earlier_session_gets_no_number() {
    let sequencer = sequencer();
    let transaction = finished(10, ReadSet::default(), vec![put("a", "1")]);
    sequencer.end_session();
    sequencer.begin_session(Term(4));
    assert_eq!(
        sequencer.submit(transaction).unwrap_err(),
        SubmitError::NotMaster
    );
}

#[test]
fn a_full_pipeline_hands_out_no_further_batch() {
    let sequencer = sequencer();
    let take = || {
        let _waiter = sequencer
            .submit(finished(10, ReadSet::default(), vec![put("a", "1")]))
            .unwrap();
        sequencer.take_batch(2, 0)
    };
    assert!(take().is_some());
    let second = take();
    assert!(second.is_some() && take().is_none());
}
