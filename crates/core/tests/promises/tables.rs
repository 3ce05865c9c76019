//! Typed tables: rows, values, errors.

mod indexes;

use std::collections::BTreeMap;
use std::fmt::Debug;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use steadfast::table::{
    Codec, CodecError, Counters, Index, Raw, Report, Source, Table, TableError,
};
use steadfast::{
    Change, ConsistencyPolicy, CounterError, FeedEvent, ReadError, Snapshot, StartAt,
    SubscribeOptions, Transaction, WriteError,
};

use crate::support::{Env, Group, STEADY};

const LINEARIZABLE: ConsistencyPolicy = ConsistencyPolicy::Linearizable;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct User {
    email: String,
    tags: Vec<u8>,
}

fn user(email: &str, tags: &[u8]) -> User {
    User {
        email: email.to_owned(),
        tags: tags.to_vec(),
    }
}

struct Users {
    table: Table<u16, User>,
    by_email: Index<u16, String>,
    by_tag: Index<u16, u8>,
}

fn users() -> Users {
    let mut table = Table::new("users");
    Users {
        by_email: table.unique_index("email", |_, user: &User| [user.email.clone()]),
        by_tag: table.index("tag", |_, user| user.tags.clone()),
        table,
    }
}

fn write<T: Debug>(
    node: &Env,
    work: impl FnMut(&Transaction) -> Result<T, TableError>,
) -> Result<T, TableError> {
    Ok(node.write(work)?.value)
}

fn read<T>(
    node: &Env,
    work: impl FnOnce(&Snapshot) -> Result<T, TableError>,
) -> Result<T, TableError> {
    node.read(LINEARIZABLE, work)
}

fn put(node: &Env, users: &Users, key: u16, user: &User) -> Result<(), TableError> {
    write(node, |txn| users.table.of(txn)?.put(&key, user))
}

fn raw(node: &Env, database: &str) -> Vec<(Bytes, Bytes)> {
    let rows = node.read(LINEARIZABLE, |snapshot| -> Result<_, ReadError> {
        snapshot.database(database)?.iter().collect()
    });
    rows.expect("read")
}

fn clean(node: &Env, users: &Users) -> Report {
    let report = users.table.verify(node, LINEARIZABLE).expect("verified");
    assert!(report.is_clean(), "{:?}", report.findings);
    report
}

#[test]
fn rows_have_their_types_in_transactions_and_snapshots() {
    static VISITS: Table<(String, u32), Option<String>> = Table::new("visits");
    fn look(at: &impl Source) -> Result<(), TableError> {
        let visits = VISITS.of(at)?;
        let key = |city: &str, day| (city.to_owned(), day);
        assert_eq!(visits.get(&key("Paris", 1))?, Some(None));
        assert_eq!(visits.get(&key("Paris", 3))?, None);
        assert!(visits.contains(&key("Paris", 300))?);
        let keys = |rows: Vec<((String, u32), _)>| -> Vec<_> {
            rows.into_iter()
                .map(|((city, day), _)| format!("{city} {day}"))
                .collect()
        };
        let in_paris = visits
            .prefix(&("Paris".to_owned(),))
            .collect::<Result<Vec<_>, _>>()?;
        assert_eq!(keys(in_paris), ["Paris 1", "Paris 300"]);
        let range = visits.range(key("Paris", 2)..key("Rome", 1));
        assert_eq!(
            keys(range.collect::<Result<_, _>>()?),
            ["Paris 300", "Paris! 2"]
        );
        let last = visits.iter().reverse().limit(1).collect::<Result<_, _>>()?;
        assert_eq!(keys(last), ["Rome 1"]);
        assert_eq!(visits.into_iter().count(), 4);
        Ok(())
    }
    let group = Group::in_memory(3, STEADY);
    let node = group.master();
    let open = node.begin_transaction().expect("begun");
    let fill = |txn: &Transaction| {
        let visits = VISITS.of(txn)?;
        for (city, day) in [("Rome", 1), ("Paris", 300), ("Paris!", 2), ("Paris", 2)] {
            visits.put(&(city.to_owned(), day), &Some(format!("to {city}")))?;
        }
        visits.delete(&("Paris".to_owned(), 2))?;
        let first = ("Paris".to_owned(), 1);
        assert!(visits.insert(&first, &None)?);
        assert!(!visits.insert(&first, &Some("again".to_owned()))?);
        look(txn)
    };
    fill(&open).expect("written");
    look(&open).expect("read");
    let _token = open.commit().expect("committed");
    for node in group.open_nodes() {
        read(node, look).expect("read");
    }
    // What docs/tables.md says about the bytes.
    let stored = raw(node, "visits");
    assert_eq!(stored[0].0[..], *b"Paris\0\0\0\0\0\x01");
    assert_eq!(stored[0].1[..], [0]);
    assert_eq!(stored[3].0[..], *b"Rome\0\0\0\0\0\x01");
    assert_eq!(stored[3].1[..], *b"\x01\x07to Rome");
}

#[test]
fn single_operations_on_a_table_are_each_a_transaction() {
    let group = Group::in_memory(1, STEADY);
    let (node, users) = (group.master(), users());
    let (ada, bob) = (user("ada", &[1]), user("bob", &[2]));
    let table = users.table.on(node);
    let first = table.put(&1, &ada).expect("committed");
    let second = table.insert(&2, &bob).expect("committed");
    assert!(second.value && second.token > first);
    assert!(!table.insert(&2, &ada).expect("committed").value);
    assert_eq!(
        table.get(LINEARIZABLE, &2).expect("read"),
        Some(bob.clone())
    );
    let taken = table.put(&1, &bob);
    assert!(
        matches!(taken, Err(TableError::NotUnique { .. })),
        "{taken:?}"
    );
    let policy = ConsistencyPolicy::AtLeast(table.delete(&1).expect("committed"));
    assert_eq!(table.get(policy, &1).expect("read"), None);
    assert_eq!(clean(node, &users).index_rows, 2);
    let counters = Counters::<String>::count("counts");
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| counters.on(node).add("n", 2).expect("committed"));
        }
    });
    let count = counters.on(node).get(LINEARIZABLE, "n").expect("read");
    assert_eq!(count, Some(16));
}

#[test]
fn a_task_can_use_a_table_on_any_thread() {
    let group = Group::in_memory(1, STEADY);
    let (node, users) = (group.master().clone(), users());
    let task = group.runtime.spawn(async move {
        let (table, ada) = (&users.table, user("ada", &[1, 2]));
        let _token = table.on(&node).put_async(&1, &ada).await?;
        let is_new = table.on(&node).insert_async(&1, &ada).await?.value;
        let found = table.on(&node).get_async(LINEARIZABLE, &1).await?;
        let added = table.rebuild_async(&node).await?.added;
        let report = table.verify_async(&node, LINEARIZABLE).await?;
        let _token = table.on(&node).delete_async(&1).await?;
        let counters = Counters::<u8>::count("counts");
        let _token = counters.on(&node).add_async(&1, 1).await?;
        Ok::<_, TableError>((is_new, found == Some(ada), added, report.index_rows))
    });
    let seen = group.runtime.block_on(task).expect("no panic");
    assert_eq!(seen.expect("done"), (false, true, 0, 3));
}

#[test]
fn the_change_feed_has_rows_that_the_table_can_decode() {
    let group = Group::in_memory(1, STEADY);
    let (node, users) = (group.master(), users());
    put(node, &users, 1, &user("a", &[])).expect("committed");
    let options = SubscribeOptions::new(StartAt::Now).database("users");
    let feed = node.subscribe(options).expect("subscribed");
    put(node, &users, 2, &user("b", &[4])).expect("committed");
    let mut transactions = feed.filter_map(|event| match event.expect("a feed") {
        FeedEvent::Transaction(transaction) => Some(transaction.changes),
        _ => None,
    });
    let changes = transactions.next().expect("a transaction");
    let [Change::Put { key, value, .. }] = &changes[..] else {
        panic!("{changes:?}");
    };
    let row = users.table.decode_row(key, value).expect("a row");
    assert_eq!(row, (2, user("b", &[4])));
}

/// Texts that are never empty.
struct Checked;

impl Codec<String> for Checked {
    fn encode(&self, value: &String) -> Result<Vec<u8>, CodecError> {
        match value.as_str() {
            "" => Err("it is empty".into()),
            text => Ok(text.as_bytes().to_vec()),
        }
    }

    fn decode(&self, bytes: &[u8]) -> Result<String, CodecError> {
        Ok(String::from_utf8(bytes.to_vec())?)
    }
}

#[test]
fn errors_come_out_of_the_functions_with_their_types_and_sources() {
    let group = Group::in_memory(1, STEADY);
    let node = group.master();
    let texts: Table<u8, String, Checked> = Table::with_codec("texts", Checked);
    let refused = write(node, |txn| texts.of(txn)?.put(&1, &String::new()));
    let source = match refused.expect_err("refused") {
        TableError::Encode { source, .. } => source.to_string(),
        other => panic!("{other:?}"),
    };
    assert_eq!(source, "it is empty");
    let _token = node.database("texts").put([1], [0xff]).expect("committed");
    let _token = node
        .database("texts")
        .put("long", "text")
        .expect("committed");
    let is_value = |error: &TableError| match error {
        TableError::Value { key, source, .. } => {
            key[..] == [1] && source.is::<std::string::FromUtf8Error>()
        }
        _ => false,
    };
    let in_write = write(node, |txn| texts.of(txn)?.get(&1)).expect_err("no text");
    assert!(is_value(&in_write), "{in_write:?}");
    let in_read = read(node, |snapshot| texts.of(snapshot)?.get(&1)).expect_err("no text");
    assert!(is_value(&in_read), "{in_read:?}");
    let rows = read(node, |snapshot| {
        Ok(texts.of(snapshot)?.iter().collect::<Vec<_>>())
    });
    let rows = rows.expect("read");
    assert!(
        matches!(&rows[0], Err(error) if is_value(error)),
        "{rows:?}"
    );
    assert!(matches!(&rows[1], Err(TableError::Key { .. })), "{rows:?}");
    let name = write(node, |txn| Table::<u8, u8>::new("").of(txn).map(|_| ()));
    let is_name = |error: &TableError| {
        matches!(
            error,
            TableError::Write(WriteError::Read(ReadError::DatabaseName { .. }))
        )
    };
    assert!(matches!(&name, Err(error) if is_name(error)), "{name:?}");
}

#[test]
fn values_are_bytes_or_whatever_a_codec_makes_of_them() {
    fn returns<V: Serialize + DeserializeOwned + PartialEq + Debug>(node: &Env, value: &V) {
        let table = Table::<bool, V>::new("values");
        write(node, |txn| table.of(txn)?.put(&true, value)).expect("committed");
        let read = read(node, |snapshot| table.of(snapshot)?.get(&true)).expect("read");
        assert_eq!(read.as_ref(), Some(value));
    }
    let group = Group::in_memory(1, STEADY);
    let node = group.master();
    returns(node, &user("ada", &[1]));
    returns(node, &BTreeMap::from([("a".to_owned(), -1.5)]));
    returns(node, &(Some('x'), [1_u64, 2]));
    let raw = Table::<u8, Bytes, Raw>::with_codec("", Raw).named("raw".to_owned());
    write(node, |txn| raw.of(txn)?.put(&1, &"as it is".into())).expect("committed");
    let seen = node.database("raw").get(LINEARIZABLE, [1]).expect("read");
    assert_eq!(seen.expect("a value"), "as it is");
    // A value that is longer than its type says is not cut.
    let _token = node.database("values").put([1], [1, 2]).expect("committed");
    let short = Table::<bool, bool>::new("values");
    let cut = read(node, |snapshot| short.of(snapshot)?.get(&true));
    assert!(matches!(cut, Err(TableError::Value { .. })), "{cut:?}");
}

#[test]
fn typed_counters_do_not_conflict_unless_they_have_an_index() {
    let group = Group::in_memory(1, STEADY);
    let node = group.master();
    let mut counters = Counters::<String>::count("counts");
    write(node, |txn| counters.of(txn)?.add("a", 5)).expect("committed");
    let open = node.begin_transaction().expect("begun");
    counters
        .of(&open)
        .and_then(|of| of.add("a", 10))
        .expect("added");
    write(node, |txn| counters.of(txn)?.add("a", 100)).expect("committed");
    let _token = open.commit().expect("no conflict");
    let value = read(node, |snapshot| counters.of(snapshot)?.get("a"));
    assert_eq!(value.expect("read"), Some(115));
    let by_count = counters.index("count", |_, count| [*count]);
    counters.rebuild(node).expect("rebuilt");
    let open = node.begin_transaction().expect("begun");
    counters
        .of(&open)
        .and_then(|of| of.add("a", 1))
        .expect("added");
    let _token = open.commit().expect("alone");
    let found = read(node, |snapshot| {
        counters.of(snapshot)?.by(&by_count)?.get(&116)
    });
    assert_eq!(found.expect("read"), Some(("a".to_owned(), 116)));
    let full = write(node, |txn| counters.of(txn)?.add("a", i64::MAX));
    let is_full = |error: &TableError| {
        matches!(
            error,
            TableError::Write(WriteError::Counter(CounterError::Overflow { .. }))
        )
    };
    assert!(matches!(&full, Err(error) if is_full(error)), "{full:?}");
    let report = counters.verify(node, LINEARIZABLE).expect("verified");
    assert!(report.is_clean(), "{report:?}");
}
