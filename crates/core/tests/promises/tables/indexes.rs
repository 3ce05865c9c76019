//! Indexes of typed tables: they agree with the rows, and what does not is found.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound::{self, Excluded, Included, Unbounded};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use steadfast::table::{EncodeKey, Finding, Postcard, Rows, Source, State, Table, TableError};

use super::{LINEARIZABLE, User, Users, clean, put, raw, read, user, users, write};
use crate::support::{Env, Group, Release, STEADY, eventually};

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
            // On the master, and on the others.
            let (group, users, email) = (&group, &users, &email);
            let put_one = move |n: u16| {
                let at = group.node(usize::from(n % 3));
                put(at, users, 10 * round + n + 1, &user(email, &[]))
            };
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
        eventually("changes", || changes.load(Ordering::Relaxed) > 10);
        let rebuilt = users.table.rebuild(node).expect("rebuilt");
        assert_eq!(rebuilt.rows, 5_000);
        assert!(rebuilt.added > 5_000, "{rebuilt:?}");
    });
    let report = clean(node, &users);
    assert_eq!(report.rows, 5_000);
}
