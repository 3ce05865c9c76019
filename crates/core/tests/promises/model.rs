//! Whatever is written, flushed and held open, reads answer like a plain ordered map.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ops::Bound;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use steadfast::ids::Vlsn;
use steadfast::{
    ConsistencyPolicy, ReadError, Scan, Snapshot, Transaction, TransactionDatabase, WriteError,
};

use crate::support::{Env, Group, Numbers, STEADY};

type Rows = Vec<(Vec<u8>, Vec<u8>)>;
type Range = (Bound<Vec<u8>>, Bound<Vec<u8>>);
/// By database and key.
type Model = BTreeMap<(u8, Vec<u8>), Vec<u8>>;

/// More than two chunks of a scan.
const KEYS: u16 = 700;
const DATABASES: u8 = 3;

#[derive(Clone, Debug)]
enum Operation {
    Put(u8, u16, u8),
    PutMany(u8, u16, u16, u8),
    Delete(u8, u16),
    DeleteMany(u8, u16, u16, u16),
    Get(u8, u16),
    Scan(u8, Query),
}

#[derive(Clone, Debug)]
struct Query {
    what: What,
    reverse: bool,
    limit: Option<usize>,
}

#[derive(Clone, Debug)]
enum What {
    All,
    Prefix(Vec<u8>),
    Range(Range),
}

#[derive(Clone, Debug)]
enum Step {
    Commit(Vec<Operation>),
    Abort(Vec<Operation>),
    /// Reads the newest state.
    Look(u8, Query),
    /// Waits until nothing is left to flush.
    Drain,
    /// Holds a snapshot open over these steps, and reads it after each.
    Hold(Vec<Step>, u8, Query),
}

fn key(number: u16) -> Vec<u8> {
    format!("k{number:03}").into_bytes()
}

fn query() -> impl Strategy<Value = Query> {
    let bound = || {
        prop_oneof![
            1 => Just(Bound::Unbounded),
            2 => (0..KEYS).prop_map(|n| Bound::Included(key(n))),
            2 => (0..KEYS).prop_map(|n| Bound::Excluded(key(n))),
        ]
    };
    let what = prop_oneof![
        2 => Just(What::All),
        1 => (0..KEYS, 0..5_usize).prop_map(|(n, cut)| What::Prefix(key(n)[..cut.min(4)].to_vec())),
        3 => (bound(), bound()).prop_map(What::Range),
    ];
    let limit = prop_oneof![3 => Just(None), 1 => (0..300_usize).prop_map(Some)];
    (what, any::<bool>(), limit).prop_map(|(what, reverse, limit)| Query {
        what,
        reverse,
        limit,
    })
}

fn operation() -> impl Strategy<Value = Operation> {
    let db = || 0..DATABASES;
    prop_oneof![
        3 => (db(), 0..KEYS, any::<u8>()).prop_map(|(d, k, v)| Operation::Put(d, k, v)),
        2 => (db(), 0..KEYS, 1..KEYS, any::<u8>())
            .prop_map(|(d, k, n, v)| Operation::PutMany(d, k, n, v)),
        2 => (db(), 0..KEYS).prop_map(|(d, k)| Operation::Delete(d, k)),
        1 => (db(), 0..KEYS, 1..KEYS, 1..4_u16)
            .prop_map(|(d, k, n, step)| Operation::DeleteMany(d, k, n, step)),
        2 => (db(), 0..KEYS).prop_map(|(d, k)| Operation::Get(d, k)),
        2 => (db(), query()).prop_map(|(d, q)| Operation::Scan(d, q)),
    ]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let operations = || proptest::collection::vec(operation(), 1..8);
    let leaf = prop_oneof![
        6 => operations().prop_map(Step::Commit),
        1 => operations().prop_map(Step::Abort),
        2 => (0..DATABASES, query()).prop_map(|(d, q)| Step::Look(d, q)),
        1 => Just(Step::Drain),
    ];
    let step = leaf.prop_recursive(2, 16, 6, |inner| {
        let held = proptest::collection::vec(inner, 1..6);
        (held, 0..DATABASES, query()).prop_map(|(steps, d, q)| Step::Hold(steps, d, q))
    });
    proptest::collection::vec(step, 1..12)
}

impl Query {
    fn of_model(&self, model: &Model, database: u8) -> Rows {
        let contains = |key: &Vec<u8>| match &self.what {
            What::All => true,
            What::Prefix(prefix) => key.starts_with(prefix),
            What::Range((start, end)) => {
                let after = match start {
                    Bound::Included(start) => key >= start,
                    Bound::Excluded(start) => key > start,
                    Bound::Unbounded => true,
                };
                let before = match end {
                    Bound::Included(end) => key <= end,
                    Bound::Excluded(end) => key < end,
                    Bound::Unbounded => true,
                };
                after && before
            }
        };
        let rows = model
            .iter()
            .filter(|((of, key), _)| *of == database && contains(key));
        let mut rows: Rows = rows.map(|((_, k), v)| (k.clone(), v.clone())).collect();
        if self.reverse {
            rows.reverse();
        }
        rows.truncate(self.limit.unwrap_or(usize::MAX));
        rows
    }

    fn take(&self, mut scan: Scan<'_>) -> Rows {
        if self.reverse {
            scan = scan.reverse();
        }
        if let Some(limit) = self.limit {
            scan = scan.limit(limit);
        }
        scan.map(|row| row.map(|(k, v)| (k.to_vec(), v.to_vec())))
            .collect::<Result<_, _>>()
            .expect("a scan")
    }

    fn of_snapshot(&self, snapshot: &Snapshot, name: &str) -> Rows {
        let db = snapshot.database(name).expect("a database");
        self.take(match &self.what {
            What::All => db.iter(),
            What::Prefix(prefix) => db.prefix(prefix),
            What::Range(range) => db.range(range.clone()),
        })
    }

    fn of_transaction(&self, db: &TransactionDatabase<'_>) -> Rows {
        self.take(match &self.what {
            What::All => db.iter(),
            What::Prefix(prefix) => db.prefix(prefix),
            What::Range(range) => db.range(range.clone()),
        })
    }
}

/// One run of steps on one node.
struct Run<'a> {
    node: &'a Env,
    /// Separates the databases of one run from those of others.
    prefix: String,
}

impl Run<'_> {
    fn name(&self, database: u8) -> String {
        format!("{}-{database}", self.prefix)
    }

    fn steps(&self, steps: &[Step], model: &mut Model) -> Result<(), TestCaseError> {
        steps.iter().try_for_each(|step| self.step(step, model))
    }

    fn step(&self, step: &Step, model: &mut Model) -> Result<(), TestCaseError> {
        match step {
            Step::Commit(operations) => {
                let written = self.transaction(operations, model, false)?;
                let vlsn = written.expect("committed");
                let visible = self.read(|s| Ok(s.vlsn()))?;
                prop_assert_eq!(visible, vlsn);
            }
            Step::Abort(operations) => {
                let mut unchanged = model.clone();
                prop_assert!(
                    self.transaction(operations, &mut unchanged, true)?
                        .is_none()
                );
            }
            Step::Look(database, query) => {
                self.read(|s| self.look(s, *database, query, model))?;
            }
            // Nothing may depend on whether it gets there: a held snapshot holds the flush back.
            Step::Drain => {
                for _ in 0..60 {
                    if self.node.status().window_bytes == 0 {
                        break;
                    }
                    std::thread::park_timeout(std::time::Duration::from_millis(2));
                }
            }
            Step::Hold(inner, database, query) => self.read(|snapshot| {
                let (held, at) = (model.clone(), snapshot.vlsn());
                for step in inner {
                    self.step(step, model)?;
                    prop_assert_eq!(snapshot.vlsn(), at);
                    self.look(snapshot, *database, query, &held)?;
                }
                let all = Query {
                    what: What::All,
                    reverse: false,
                    limit: None,
                };
                (0..DATABASES).try_for_each(|db| self.look(snapshot, db, &all, &held))
            })?,
        }
        Ok(())
    }

    fn read<T>(
        &self,
        read: impl FnOnce(&Snapshot) -> Result<T, TestCaseError>,
    ) -> Result<T, TestCaseError> {
        self.node
            .read(ConsistencyPolicy::Linearizable, |s| {
                Ok::<_, ReadError>(read(s))
            })
            .expect("a snapshot")
    }

    fn look(
        &self,
        snapshot: &Snapshot,
        database: u8,
        query: &Query,
        model: &Model,
    ) -> Result<(), TestCaseError> {
        let rows = query.of_snapshot(snapshot, &self.name(database));
        prop_assert_eq!(&rows, &query.of_model(model, database), "{:?}", query);
        let db = snapshot.database(&self.name(database)).expect("a database");
        for (key, value) in rows.iter().step_by(50) {
            let got = db.get(key).expect("a value");
            prop_assert_eq!(got.as_deref(), Some(&value[..]));
        }
        Ok(())
    }

    /// Runs operations as one transaction, on the model too. Its VLSN, or `None` if aborted.
    fn transaction(
        &self,
        operations: &[Operation],
        model: &mut Model,
        abort: bool,
    ) -> Result<Option<Vlsn>, TestCaseError> {
        let mut checked = Ok(());
        let before = model.clone();
        let written = self.node.write(|txn| {
            model.clone_from(&before);
            checked = operations
                .iter()
                .try_for_each(|operation| self.operate(txn, operation, model));
            if abort || checked.is_err() {
                Err(WriteError::abort("asked to"))
            } else {
                Ok(())
            }
        });
        checked?;
        match written {
            Ok(written) => Ok(Some(written.token.vlsn)),
            Err(WriteError::Aborted(_)) if abort => Ok(None),
            Err(error) => Err(TestCaseError::fail(error.to_string())),
        }
    }

    fn operate(
        &self,
        txn: &Transaction,
        operation: &Operation,
        model: &mut Model,
    ) -> Result<(), TestCaseError> {
        let open = |database: &u8| txn.database(&self.name(*database)).expect("a database");
        match operation {
            Operation::Put(d, k, v) => {
                open(d).put(key(*k), [*v]).expect("put");
                model.insert((*d, key(*k)), vec![*v]);
            }
            Operation::PutMany(d, first, count, v) => {
                let db = open(d);
                for k in (*first..KEYS).take(usize::from(*count)) {
                    db.put(key(k), [*v]).expect("put");
                    model.insert((*d, key(k)), vec![*v]);
                }
            }
            Operation::Delete(d, k) => {
                open(d).delete(key(*k)).expect("delete");
                model.remove(&(*d, key(*k)));
            }
            Operation::DeleteMany(d, first, count, step) => {
                let db = open(d);
                let keys = (*first..KEYS).take(usize::from(*count));
                for k in keys.step_by(usize::from(*step)) {
                    db.delete(key(k)).expect("delete");
                    model.remove(&(*d, key(k)));
                }
            }
            Operation::Get(d, k) => {
                let got = open(d).get(key(*k)).expect("get");
                let expected = model.get(&(*d, key(*k))).map(|value| &value[..]);
                prop_assert_eq!(got.as_deref(), expected);
            }
            Operation::Scan(d, query) => {
                let rows = query.of_transaction(&open(d));
                prop_assert_eq!(rows, query.of_model(model, *d), "{:?}", query);
            }
        }
        Ok(())
    }
}

/// Runs random steps on the master; afterwards every node must hold what the model holds.
fn hold_against_a_map(group: &Group, cases: u32) {
    let master = group.master();
    let number = Cell::new(0);
    let config = Config {
        failure_persistence: None,
        max_shrink_iters: 300,
        ..Config::with_cases(cases)
    };
    let result = TestRunner::new(config).run(&steps(), |steps| {
        number.set(number.get() + 1);
        let run = Run {
            node: master,
            prefix: format!("run{}", number.get()),
        };
        let mut model = Model::new();
        run.steps(&steps, &mut model)?;
        let all = Query {
            what: What::All,
            reverse: true,
            limit: None,
        };
        for node in group.open_nodes() {
            let run = Run {
                node,
                prefix: run.prefix.clone(),
            };
            run.read(|s| (0..DATABASES).try_for_each(|db| run.look(s, db, &all, &model)))?;
        }
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
}

#[test]
fn a_node_in_memory_reads_as_a_map() {
    let group = Group::in_memory(1, &[("flush_bytes", 1024), ("flush_interval_ms", 1)]);
    hold_against_a_map(&group, 32);
}

#[test]
fn a_node_on_disk_reads_as_a_map() {
    let group = Group::on_disk(1, &[("flush_bytes", 4096), ("flush_interval_ms", 1)]);
    hold_against_a_map(&group, 8);
}

#[test]
fn replicas_read_as_a_map() {
    const NUMBERS: Numbers = &[
        ("flush_bytes", 2048),
        ("flush_interval_ms", 5),
        STEADY[0],
        STEADY[1],
        STEADY[2],
    ];
    let group = Group::in_memory(3, NUMBERS);
    hold_against_a_map(&group, 12);
    group.digest();
}
