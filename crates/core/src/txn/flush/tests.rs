//! What a flush brings into the engine, when, and in which order.

use proptest::prelude::*;
use std::collections::BTreeMap;
use std::ops::Bound;

use super::*;
use crate::engine::{Direction, KeyRange};
use crate::ids::{LogPosition, Term};
use crate::txn::audit::testing::World;
use crate::txn::batch::{BatchBuilder, Operation};
use crate::txn::catalog::{self, DIGESTS};
use crate::txn::view::View;

const TERM: Term = Term(1);
/// As in the catalog. Tests refer to them by index.
const NAMES: [&str; 2] = ["a", "b"];
/// Few, so that every key is overwritten, deleted and flushed again and again.
const KEYS: u8 = 8;

type Model = BTreeMap<(usize, Bytes), Bytes>;

/// A step's change to a key, in the database whose name has this index in [`NAMES`].
type Write = (usize, Bytes, Option<Bytes>);

/// Everything between the log and a reader, with the flush driven by the test.
struct Rig {
    window: Arc<Window>,
    readers: Arc<Readers>,
    sequencer: Arc<Sequencer>,
    engine: Arc<dyn StorageEngine>,
    flush: Flush,
    auditor: Auditor,
    runtime: tokio::runtime::Runtime,
    model: Model,
    /// The id of each of [`NAMES`], and the next one.
    ids: [DatabaseId; 2],
    next: DatabaseId,
    persisted: watch::Sender<Option<LogId>>,
}

impl Rig {
    fn new() -> Self {
        let window = Arc::new(Window::default());
        let readers = Arc::new(Readers::default());
        let sequencer = Arc::new(Sequencer::new(Arc::clone(&window), Vlsn(0), 1 << 20));
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        let runtime = runtime.expect("a runtime");
        let world = runtime.block_on(World::new());
        let engine = Arc::clone(&world.engine);
        let limits = FlushLimits {
            window_bytes_max: 1 << 20,
            flush_bytes: 1 << 10,
            flush_interval: Duration::from_secs(1),
            snapshot_age_max: Duration::from_mins(1),
        };
        let flush = Flush::new(
            Arc::clone(&window),
            Arc::clone(&readers),
            Arc::clone(&sequencer),
            Arc::clone(&engine),
            limits,
        );
        let audit = Arc::default();
        let audited = runtime.block_on(world.audit(false, &audit));
        let mut rig = Self {
            runtime,
            auditor: audited.expect("an empty engine"),
            window,
            readers,
            sequencer,
            engine,
            flush: flush.expect("an empty engine"),
            model: Model::new(),
            ids: [CATALOG; 2],
            next: catalog::FIRST_ID,
            persisted: watch::Sender::new(None),
        };
        for name in 0..NAMES.len() {
            rig.truncate(name, true);
        }
        rig
    }

    fn apply(&mut self, writes: &[Write], is_persisted: bool) {
        let operation = |(name, key, value): &Write| Operation {
            database: self.ids[*name],
            key: key.clone(),
            value: value.clone(),
            expires: false,
        };
        let operations: Vec<_> = writes.iter().map(operation).collect();
        self.commit(&operations, is_persisted);
        for (name, key, value) in writes.iter().cloned() {
            match value {
                Some(value) => self.model.insert((name, key), value),
                None => self.model.remove(&(name, key)),
            };
        }
    }

    /// Gives a name another id, as truncating a database does.
    fn truncate(&mut self, name: usize, is_persisted: bool) {
        self.ids[name] = self.next;
        self.next = DatabaseId(self.next.0 + 1);
        let entry = |key: &'static [u8], id| Operation {
            database: CATALOG,
            key: Bytes::from_static(key),
            value: Some(catalog::encode_id(id)),
            expires: false,
        };
        let next = entry(catalog::NEXT_ID_KEY, self.next);
        let name_entry = entry(NAMES[name].as_bytes(), self.ids[name]);
        self.commit(&[next, name_entry], is_persisted);
        self.model.retain(|(of, _), _| *of != name);
    }

    /// Applies one transaction as a log entry, which is on disk already if `is_persisted`.
    fn commit(&mut self, operations: &[Operation], is_persisted: bool) {
        let first = self.sequencer.visible().next();
        let mut builder = BatchBuilder::new(first);
        builder.push(operations);
        let batch = builder.finish(0);
        let log_id = LogId {
            term: TERM,
            position: LogPosition(first.0),
        };
        self.sequencer.apply(log_id, &batch);
        let versions = operations.iter().cloned();
        let versions = versions.map(|operation| Written::of(first, operation));
        self.flush.note(Mark {
            log_id,
            vlsn: first,
            membership: None,
            versions: versions.collect(),
            bytes: batch.bytes().len(),
        });
        if is_persisted {
            self.persisted.send_replace(Some(log_id));
        }
    }

    fn flush(&mut self) {
        let persisted = self.persisted.subscribe();
        let flushed = self.flush.flush_all(&mut self.auditor, &persisted, || true);
        let flushed = self.runtime.block_on(flushed);
        flushed.expect("an engine in memory");
    }

    fn reader(&self) -> Held {
        let reader = self.readers.begin(|| self.sequencer.visible());
        let view = View::new(Arc::clone(&self.window), Arc::clone(&self.engine), reader);
        Held {
            view,
            model: self.model.clone(),
        }
    }

    fn engine_vlsn(&self) -> Vlsn {
        let applied = self.engine.applied().expect("an engine in memory");
        applied.map(|applied| applied.vlsn).unwrap_or_default()
    }
}

#[test]
fn a_batch_of_large_values_ends_at_its_bytes() {
    let mut rig = Rig::new();
    rig.flush();
    let value = Bytes::from(vec![1; BATCH_BYTES_BEST / 2]);
    for key in 0..5 {
        let key = Bytes::copy_from_slice(&[key]);
        rig.apply(&[(0, key, Some(value.clone()))], true);
    }
    let batches = std::iter::from_fn(|| {
        let limit = rig.sequencer.visible();
        let taken = rig.flush.take_marks(limit, *rig.persisted.borrow());
        (!taken.is_empty()).then_some(taken.len())
    });
    assert_eq!(batches.collect::<Vec<_>>(), [2, 2, 1]);
}

/// A reader, and what it must see for as long as it lives.
struct Held {
    view: View,
    model: Model,
}

impl Held {
    fn check(&self) -> Result<(), TestCaseError> {
        for (name, text) in NAMES.into_iter().enumerate() {
            let entry = self.view.get(CATALOG, &Bytes::from(text)).expect("a value");
            let entry = entry.expect("a name");
            let database = catalog::id_in_entry(text.as_bytes(), &entry).expect("an id");
            for key in 0..KEYS {
                let key = Bytes::copy_from_slice(&[key]);
                let seen = self.view.get(database, &key).expect("a value");
                prop_assert_eq!(seen, self.model.get(&(name, key)).cloned());
            }
            let range = KeyRange {
                start: Bound::Included(Bytes::from_static(&[1])),
                end: Bound::Excluded(Bytes::from_static(&[KEYS - 1])),
            };
            for range in [KeyRange::all(), range] {
                let inside = |key: &&(usize, Bytes)| key.0 == name && range.contains(&key.1);
                let expected = self.model.keys().filter(inside);
                let mut expected: Vec<_> = expected
                    .map(|key| (key.1.clone(), self.model[key].clone()))
                    .collect();
                for direction in [Direction::Forward, Direction::Reverse] {
                    let chunk = self.view.chunk(database, &range, direction);
                    prop_assert_eq!(&chunk.expect("a chunk").rows, &expected);
                    expected.reverse();
                }
            }
        }
        Ok(())
    }
}

#[derive(Clone, Debug)]
enum Step {
    Apply(Vec<Write>, bool),
    Truncate(usize, bool),
    Reclaim,
    Count,
    Begin,
    End(usize),
    Flush,
    Evict,
}

fn writes() -> impl Strategy<Value = Vec<Write>> {
    let place = (0..NAMES.len(), 0..KEYS);
    let value = proptest::option::of(any::<u8>());
    proptest::collection::btree_map(place, value, 1..5).prop_map(|changes| {
        let write = |((name, key), value): ((usize, u8), Option<u8>)| {
            let value = value.map(|value| Bytes::copy_from_slice(&[value]));
            (name, Bytes::copy_from_slice(&[key]), value)
        };
        changes.into_iter().map(write).collect()
    })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (writes(), proptest::bool::weighted(0.8)).prop_map(|(w, p)| Step::Apply(w, p)),
        1 => (0..NAMES.len(), proptest::bool::weighted(0.8)).prop_map(|(n, p)| Step::Truncate(n, p)),
        2 => Just(Step::Reclaim),
        2 => Just(Step::Count),
        2 => Just(Step::Begin),
        2 => (0..8_usize).prop_map(Step::End),
        2 => Just(Step::Flush),
        1 => Just(Step::Evict),
    ]
}

proptest! {
    #[test]
    fn no_reader_sees_a_flush_or_an_eviction(steps in proptest::collection::vec(step(), 1..40)) {
        let mut rig = Rig::new();
        let mut held: Vec<Held> = Vec::new();
        for step in steps {
            match step {
                Step::Apply(writes, is_persisted) => rig.apply(&writes, is_persisted),
                Step::Truncate(name, is_persisted) => rig.truncate(name, is_persisted),
                Step::Reclaim => rig.flush.reclaim.step().expect("an engine in memory"),
                Step::Count => rig.auditor.step().expect("an engine in memory"),
                Step::Begin => held.push(rig.reader()),
                Step::End(at) if at < held.len() => drop(held.remove(at)),
                Step::End(_) => {}
                Step::Flush => rig.flush(),
                Step::Evict => rig.flush.evict(),
            }
            let persisted = rig.persisted.borrow().map_or(0, |id| id.position.0);
            prop_assert!(rig.engine_vlsn().0 <= persisted);
            rig.reader().check()?;
            held.iter().try_for_each(Held::check)?;
        }
        held.clear();
        // Everything left unpersisted becomes persisted, and nothing stays in the window.
        rig.apply(&[], true);
        rig.flush();
        rig.flush.evict();
        prop_assert_eq!(rig.window.bytes(), 0);
        while rig.flush.reclaim.has_work() {
            rig.flush.reclaim.step().expect("an engine in memory");
        }
        // Nothing without a name is left.
        let held = rig.engine.databases().expect("an engine in memory");
        let named = |id: &DatabaseId| [CATALOG, DIGESTS].contains(id) || rig.ids.contains(id);
        prop_assert!(held.iter().all(named), "{held:?}");
        rig.reader().check()?;
    }
}

#[test]
fn scans_go_on_past_a_chunk_that_the_window_has_deleted_whole() {
    let mut rig = Rig::new();
    let key = |n: u16| Bytes::copy_from_slice(&n.to_be_bytes());
    let all = |value: Option<&'static [u8]>, keys: std::ops::Range<u16>| -> Vec<Write> {
        keys.map(|n| (0, key(n), value.map(Bytes::from_static)))
            .collect()
    };
    rig.apply(&all(Some(b"v"), 0..600), true);
    rig.flush();
    rig.flush.evict();
    rig.apply(&all(None, 10..590), true);
    let held = rig.reader();
    for direction in [Direction::Forward, Direction::Reverse] {
        let (mut rest, mut keys, mut chunks) = (Some(KeyRange::all()), Vec::new(), 0);
        while let Some(range) = rest {
            let chunk = held.view.chunk(rig.ids[0], &range, direction);
            let chunk = chunk.expect("a chunk");
            keys.extend(chunk.rows.into_iter().map(|(key, _)| key));
            (rest, chunks) = (chunk.rest, chunks + 1);
        }
        if direction == Direction::Reverse {
            keys.reverse();
        }
        let expected: Vec<_> = (0..10).chain(590..600).map(key).collect();
        assert_eq!(keys, expected);
        assert!(chunks > 2);
    }
}
