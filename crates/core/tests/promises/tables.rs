//! Typed tables and their indexes.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::ops::Bound::{self, Excluded, Included, Unbounded};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use steadfast::table::{
    Codec, CodecError, Counters, EncodeKey, Finding, Index, Postcard, Raw, Report, Rows, Source,
    State, Table, TableError,
};
use steadfast::{
    Change, ConsistencyPolicy, CounterError, FeedEvent, ReadError, Snapshot, StartAt,
    SubscribeOptions, Transaction, WriteError,
};

use crate::support::{Env, Group, Release, STEADY};

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
fn the_databases_of_indexes_hold_what_is_documented() {
    let group = Group::in_memory(1, STEADY);
    let (node, users) = (group.master(), users());
    put(node, &users, 258, &user("ada", &[7, 9])).expect("committed");
    let entry =
        |key: &[u8], value: &[u8]| (Bytes::copy_from_slice(key), Bytes::copy_from_slice(value));
    assert_eq!(raw(node, "users/by/email"), [entry(b"ada\0\0", &[1, 2])]);
    let tags = [entry(&[7, 1, 2], b""), entry(&[9, 1, 2], b"")];
    assert_eq!(raw(node, "users/by/tag"), tags);
    assert_eq!(users.by_tag.database(), "users/by/tag");
}

/// Whatever is put, replaced and deleted, the indexes lead to the rows that there are, and no others.
#[test]
fn indexes_follow_every_change_of_the_rows() {
    let group = Group::in_memory(1, STEADY);
    let (node, users) = (group.master(), users());
    let mut chance = StdRng::seed_from_u64(7);
    let mut model = BTreeMap::<u16, User>::new();
    for _ in 0..60 {
        let before = model.clone();
        let changes = chance.random_range(1..5);
        let changes: Vec<_> = (0..changes)
            .map(|_| {
                let key = chance.random_range(0..8);
                let tags: Vec<_> = (0..3).map(|_| chance.random_range(250..=255)).collect();
                let row = user(&format!("{}", chance.random_range(0..12)), &tags);
                (key, chance.random_bool(0.8).then_some(row))
            })
            .collect();
        let written = write(node, |txn| {
            model.clone_from(&before);
            let rows = users.table.of(txn)?;
            for (key, row) in &changes {
                let is_free = |user: &User| {
                    let mut others = model.iter().filter(|(other, _)| *other != key);
                    others.all(|(_, other)| other.email != user.email)
                };
                match row {
                    None => {
                        rows.delete(key)?;
                        model.remove(key);
                    }
                    Some(user) if is_free(user) => {
                        rows.put(key, user)?;
                        model.insert(*key, user.clone());
                    }
                    Some(user) => {
                        let refused = rows.put(key, user).expect_err("it is taken");
                        assert!(
                            matches!(refused, TableError::NotUnique { .. }),
                            "{refused:?}"
                        );
                    }
                }
            }
            agrees(&users, txn, &model)
        });
        written.expect("committed");
        read(node, |snapshot| agrees(&users, snapshot, &model)).expect("read");
        clean(node, &users);
    }
    assert!(!model.is_empty());
}

fn agrees(users: &Users, at: &impl Source, model: &BTreeMap<u16, User>) -> Result<(), TableError> {
    let rows = users.table.of(at)?;
    let all: BTreeMap<_, _> = rows.iter().collect::<Result<_, _>>()?;
    assert_eq!(all, *model);
    let by_email = rows.by(&users.by_email)?;
    let emails = by_email
        .iter()
        .map(|row| row.map(|(email, key, _)| (email, key)));
    let expected: BTreeMap<_, _> = model
        .iter()
        .map(|(key, user)| (user.email.clone(), *key))
        .collect();
    assert_eq!(emails.collect::<Result<BTreeMap<_, _>, _>>()?, expected);
    for (key, user) in model {
        assert_eq!(
            by_email.get(user.email.as_str())?,
            Some((*key, user.clone()))
        );
    }
    let tagged: BTreeSet<(u8, u16)> = model
        .iter()
        .flat_map(|(key, user)| user.tags.iter().map(|tag| (*tag, *key)))
        .collect();
    check_tags(users, &rows, &tagged)
}

fn check_tags<S: State>(
    users: &Users,
    rows: &Rows<'_, u16, User, Postcard, S>,
    tagged: &BTreeSet<(u8, u16)>,
) -> Result<(), TableError> {
    let by_tag = rows.by(&users.by_tag)?;
    for tag in [250, 252, 254, 255] {
        let bounds: [(Bound<u8>, Bound<u8>); 7] = [
            (Included(tag), Included(tag)),
            (Excluded(tag), Unbounded),
            (Included(tag), Unbounded),
            (Unbounded, Excluded(tag)),
            (Unbounded, Included(tag)),
            (Excluded(tag), Included(255)),
            (Unbounded, Unbounded),
        ];
        for range in bounds {
            let contains = |of: u8| std::ops::RangeBounds::contains(&range, &of);
            let expected: Vec<_> = tagged
                .iter()
                .copied()
                .filter(|(of, _)| contains(*of))
                .collect();
            let found = by_tag
                .range(range)
                .map(|row| row.map(|(tag, key, _)| (tag, key)));
            assert_eq!(found.collect::<Result<Vec<_>, _>>()?, expected, "{range:?}");
            let found = by_tag.range(range).reverse().limit(2);
            let found = found.map(|row| row.map(|(tag, key, _)| (tag, key)));
            let last: Vec<_> = expected.into_iter().rev().take(2).collect();
            assert_eq!(found.collect::<Result<Vec<_>, _>>()?, last, "{range:?}");
        }
        let first = tagged
            .iter()
            .find(|(of, _)| *of == tag)
            .map(|(_, key)| *key);
        assert_eq!(by_tag.get(&tag)?.map(|(key, _)| key), first);
        assert_eq!(
            by_tag.equal(&tag).count(),
            tagged.iter().filter(|(of, _)| *of == tag).count()
        );
    }
    Ok(())
}

#[test]
fn a_range_of_a_unique_index_begins_and_ends_where_it_says() {
    let group = Group::in_memory(1, STEADY);
    let node = group.master();
    let mut table = Table::<u8, u8>::new("numbers");
    let by_value = table.unique_index("value", |_, value| [*value]);
    let found = |range: (Bound<u8>, Bound<u8>)| {
        let read = read(node, |snapshot| {
            let rows = table.of(snapshot)?.by(&by_value)?.range(range);
            rows.map(|row| row.map(|(value, ..)| value))
                .collect::<Result<Vec<_>, _>>()
        });
        read.expect("read")
    };
    let written = write(node, |txn| {
        let rows = table.of(txn)?;
        [0, 1, 2, 254, 255]
            .into_iter()
            .try_for_each(|n| rows.put(&n, &n))
    });
    written.expect("committed");
    assert_eq!(found((Excluded(0), Excluded(2))), [1]);
    assert_eq!(found((Included(1), Included(2))), [1, 2]);
    assert_eq!(found((Excluded(2), Included(255))), [254, 255]);
    assert_eq!(found((Excluded(254), Unbounded)), [255]);
    assert_eq!(found((Excluded(255), Unbounded)), [0; 0]);
    assert_eq!(found((Unbounded, Excluded(0))), [0; 0]);
}

#[test]
fn of_many_who_want_one_unique_key_one_gets_it() {
    let group = Group::in_memory(3, STEADY);
    let (node, users) = (group.master(), users());
    put(node, &users, 0, &user("first", &[])).expect("committed");
    for round in 0..10_u16 {
        let email = format!("round {round}");
        let taken = std::thread::scope(|scope| {
            let put_one = |n: u16| put(node, &users, 10 * round + n + 1, &user(&email, &[]));
            let threads: Vec<_> = (0..8).map(|n| scope.spawn(move || put_one(n))).collect();
            let ends = threads
                .into_iter()
                .map(|thread| thread.join().expect("no panic"));
            let taken = ends.filter_map(Result::err).inspect(|error| {
                assert!(matches!(error, TableError::NotUnique { .. }), "{error}");
            });
            taken.count()
        });
        assert_eq!(taken, 7);
    }
    assert_eq!(clean(node, &users).rows, 11);
}

#[test]
fn indexes_agree_with_the_rows_on_every_node_when_the_master_changes() {
    let mut group = Group::in_memory(3, STEADY);
    let users = users();
    for round in 0..3_u16 {
        for n in 0..20_u16 {
            let row = user(
                &format!("{}", n + round),
                &[u8::try_from(n % 4).expect("small")],
            );
            // Whoever has the address gives it up.
            let written = write(group.master(), |txn| {
                let rows = users.table.of(txn)?;
                if let Some((other, _)) = rows.by(&users.by_email)?.get(&row.email)? {
                    rows.delete(&other)?;
                }
                rows.put(&n, &row)
            });
            written.expect("committed");
        }
        let master = group.master_except(None);
        group.close(master);
        group.reopen(master).expect("opened");
        group.wait_ready();
    }
    let rows = clean(group.master(), &users).rows;
    for node in group.open_nodes() {
        assert_eq!(clean(node, &users).rows, rows);
    }
    group.digest();
}

fn findings(node: &Env, users: &Users) -> Vec<String> {
    let report = users.table.verify(node, LINEARIZABLE).expect("verified");
    let in_one = read(node, |snapshot| users.table.verify_in(snapshot)).expect("verified");
    assert_eq!(report, in_one);
    assert_eq!(report.found, report.findings.len() as u64);
    report.findings.iter().map(Finding::to_string).collect()
}

#[test]
fn what_was_written_past_the_indexes_is_found_and_put_right() {
    let group = Group::in_memory(1, STEADY);
    let (node, users) = (group.master(), users());
    for (key, email) in [(1, "a"), (2, "b"), (3, "c"), (4, "d")] {
        put(node, &users, key, &user(email, &[9])).expect("committed");
    }
    assert_eq!(findings(node, &users), <[&str; 0]>::default());
    let past = Table::<u16, User>::new("users");
    let written = write(node, |txn| {
        let rows = past.of(txn)?;
        rows.delete(&1_u16)?;
        rows.put(&2_u16, &user("b2", &[9, 8]))?;
        rows.put(&5_u16, &user("e", &[]))?;
        txn.database("users/by/tag")?.put("x", "y")?;
        txn.database("users/by/tag")?.delete([9, 0, 4])?;
        Ok(())
    });
    written.expect("committed");
    let found = [
        r"users/by/email has a\x00\x00, for the row \x00\x01, which does not exist",
        r"users/by/email has b\x00\x00, which the row \x00\x02 does not have",
        r"users/by/tag has \t\x00\x01, for the row \x00\x01, which does not exist",
        r"users/by/tag has x: the key goes on for 1 byte after its end",
        r"users/by/email lacks b2\x00\x00, for the row \x00\x02",
        r"users/by/tag lacks \x08\x00\x02, for the row \x00\x02",
        r"users/by/tag lacks \t\x00\x04, for the row \x00\x04",
        r"users/by/email lacks e\x00\x00, for the row \x00\x05",
    ];
    assert_eq!(findings(node, &users), found);
    let looked_up = read(node, |snapshot| {
        users.table.of(snapshot)?.by(&users.by_email)?.get("a")
    });
    assert!(
        matches!(looked_up, Err(TableError::Dangling { .. })),
        "{looked_up:?}"
    );
    let rebuilt = users.table.rebuild(node).expect("rebuilt");
    assert_eq!((rebuilt.rows, rebuilt.added, rebuilt.removed), (4, 4, 4));
    let report = clean(node, &users);
    assert_eq!((report.rows, report.index_rows), (4, 4 + 4));
}

#[test]
fn rows_that_share_a_unique_key_are_found_and_stop_a_rebuild() {
    let group = Group::in_memory(1, STEADY);
    let (node, users) = (group.master(), users());
    let past = Table::<u16, User>::new("users");
    let written = write(node, |txn| {
        let rows = past.of(txn)?;
        rows.put(&1_u16, &user("a", &[]))?;
        rows.put(&2_u16, &user("a", &[]))
    });
    written.expect("committed");
    let stopped = users.table.rebuild(node).expect_err("two have it");
    assert!(
        matches!(&stopped, TableError::NotUnique { row, .. } if row[..] == [0, 1]),
        "{stopped:?}"
    );
    write(node, |txn| past.of(txn)?.delete(&1_u16)).expect("committed");
    users.table.rebuild(node).expect("rebuilt");
    write(node, |txn| past.of(txn)?.put(&3_u16, &user("a", &[]))).expect("committed");
    let report = users.table.verify(node, LINEARIZABLE).expect("verified");
    let expected = Finding::NotUnique {
        index: "users/by/email".to_owned(),
        key: "a".key_bytes().into(),
        row: Bytes::from_static(&[0, 3]),
        holder: Bytes::from_static(&[0, 2]),
    };
    assert_eq!(report.findings, [expected]);
}

#[test]
fn an_index_is_built_on_many_rows_while_others_write() {
    let group = Group::in_memory(1, STEADY);
    let (node, users) = (group.master(), users());
    let past = Table::<u16, User>::new("users");
    for part in 0..5_u16 {
        let written = write(node, |txn| {
            let rows = past.of(txn)?;
            (part * 1_000..(part + 1) * 1_000)
                .try_for_each(|key| rows.put(&key, &user(&format!("{key}"), &[1, 2])))
        });
        written.expect("committed");
    }
    let is_over = AtomicBool::new(false);
    let changes = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let _release = Release(&is_over);
        scope.spawn(|| {
            let mut key = 0;
            while !is_over.load(Ordering::Relaxed) {
                key = (key + 377) % 5_000;
                put(node, &users, key, &user(&format!("new {key}"), &[3])).expect("committed");
                changes.fetch_add(1, Ordering::Relaxed);
            }
        });
        crate::support::eventually("changes", || changes.load(Ordering::Relaxed) > 10);
        let rebuilt = users.table.rebuild(node).expect("rebuilt");
        assert_eq!(rebuilt.rows, 5_000);
        assert!(rebuilt.added > 5_000, "{rebuilt:?}");
    });
    let report = clean(node, &users);
    assert_eq!(report.rows, 5_000);
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
