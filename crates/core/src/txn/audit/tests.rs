//! What opening finds in an engine that has lost or altered rows, or kept deleted ones.

use std::sync::Arc;

use bytes::Bytes;

use super::testing::{DB, World};
use super::{Audit, AuditError, Auditor, Checked};
use crate::ids::{DatabaseId, LogPosition, Vlsn};
use crate::txn::catalog::{CATALOG, DIGESTS};

/// A world after five transactions, the last one without a sync of the engine.
async fn written() -> World {
    let mut world = World::new().await;
    let mut auditor = open(&world).await.expect("an empty engine");
    world
        .write(
            &mut auditor,
            1,
            &[(DB, "a", Some("1")), (DB, "b", Some("1"))],
        )
        .await;
    world
        .write(
            &mut auditor,
            2,
            &[(DB, "b", Some("2")), (DB, "c", Some("2"))],
        )
        .await;
    world.write(&mut auditor, 3, &[(DB, "a", None)]).await;
    world.write(&mut auditor, 4, &[(DB, "d", Some("4"))]).await;
    world.engine.sync().expect("synced");
    auditor.synced().await.expect("noted");
    world.write(&mut auditor, 5, &[(DB, "e", Some("5"))]).await;
    world
}

async fn open(world: &World) -> Result<Auditor, AuditError> {
    world.audit(false, &Arc::default()).await
}

async fn put_right(world: &World) -> u64 {
    let audit = Arc::<Audit>::default();
    world.audit(false, &audit).await.expect("put right");
    let found = audit.findings().borrow().clone();
    let (position, vlsn) = (LogPosition(5), Vlsn(5));
    assert_eq!(found.checked, Some(Checked { position, vlsn }));
    assert_eq!(found.differs, None);
    found.put_right
}

#[tokio::test]
async fn an_engine_that_holds_what_it_should_is_left_alone() {
    let mut world = written().await;
    assert_eq!(put_right(&world).await, 0);
    world.crash();
    let audit = Arc::<Audit>::default();
    world
        .audit(false, &audit)
        .await
        .expect("right after a crash");
    let checked = audit.findings().borrow().checked;
    assert_eq!(checked.map(|checked| checked.vlsn), Some(Vlsn(4)));
}

#[tokio::test]
async fn what_the_log_still_has_is_put_right_before_anybody_reads() {
    let world = written().await;
    world.falsify("d", None);
    world.falsify("a", Some("1"));
    world.falsify("b", Some("1"));
    world.falsify("e", Some("6"));
    assert_eq!(put_right(&world).await, 4);
    assert_eq!(world.get("d"), Some(Bytes::from("4")));
    assert_eq!(world.get("a"), None);
    assert_eq!(world.get("b"), Some(Bytes::from("2")));
    assert_eq!(world.get("e"), Some(Bytes::from("5")));
}

#[tokio::test]
async fn a_name_that_was_lost_comes_back_with_its_database() {
    let world = written().await;
    world.falsify_in(CATALOG, "name", None);
    world.falsify("c", None);
    assert_eq!(put_right(&world).await, 2);
    world.falsify_in(CATALOG, "name", Some(Bytes::from("nonsense")));
    assert_eq!(put_right(&world).await, 1);
}

#[tokio::test]
async fn what_no_log_has_any_more_is_told() {
    for (key, value) in [
        ("b", None),
        ("b", Some("1")),
        ("a", Some("1")),
        ("x", Some("1")),
    ] {
        let world = written().await;
        world.purge(3).await;
        world.falsify(key, value);
        match open(&world).await {
            Err(AuditError::Differs(what)) => {
                assert!(what.contains("database \"name\""), "{what}");
            }
            Ok(_) => panic!("{key} {value:?} was not seen"),
            Err(error) => panic!("{error}"),
        }
    }
}

#[tokio::test]
async fn the_account_of_the_engine_is_not_believed() {
    // Another engine's total, another database's row, no total at all.
    for key in ["", "\0\0\0\x01"] {
        let world = written().await;
        world.falsify_in(DIGESTS, key, Some(Bytes::from(vec![1; 24])));
        put_right(&world).await;
        let world = written().await;
        world.falsify_in(DIGESTS, key, None);
        world.purge(3).await;
        world.falsify("b", None);
        assert!(matches!(open(&world).await, Err(AuditError::Differs(_))));
    }
}

#[tokio::test]
async fn a_row_of_a_database_that_is_gone_does_not_make_the_account_worthless() {
    let world = written().await;
    let value = Some(Bytes::from(vec![1; 24]));
    world.falsify_in(DIGESTS, "\0\0\0\x09", value);
    // The account alone has to do.
    crate::log::Disk::remove(&world.disk, std::path::Path::new("/data/digest")).expect("removed");
    world.purge(5).await;
    open(&world).await.expect("the other rows add up");
}

#[tokio::test]
async fn an_engine_that_has_lost_its_account_of_a_copy_is_not_taken_for_one_of_an_earlier_version()
{
    let digest = std::path::Path::new("/data/digest");
    for key in ["", "\0\0\0\x01"] {
        let world = written().await;
        // As a copy begins: with the account that came with it, and an empty file of its own.
        crate::log::Disk::remove(&world.disk, digest).expect("removed");
        put_right(&world).await;
        world.purge(5).await;
        world.falsify_in(DIGESTS, key, Some(Bytes::from(vec![1; 24])));
        world.falsify("b", Some("1"));
        assert!(matches!(open(&world).await, Err(AuditError::Differs(_))));
        // The same when the file is lost with the account.
        crate::log::Disk::remove(&world.disk, digest).expect("removed");
        assert!(matches!(open(&world).await, Err(AuditError::Differs(_))));
    }
}

#[tokio::test]
async fn a_directory_of_an_earlier_version_is_taken_over_as_the_log_leaves_it() {
    let world = written().await;
    let rows = world.engine.scan(
        DIGESTS,
        crate::engine::KeyRange::all(),
        crate::engine::Direction::Forward,
        crate::engine::ScanLimit::NONE,
    );
    for (key, _) in rows.expect("an engine in memory") {
        let key = String::from_utf8(key.to_vec()).expect("small numbers");
        world.falsify_in(DIGESTS, &key, None);
    }
    crate::log::Disk::remove(&world.disk, std::path::Path::new("/data/digest")).expect("removed");
    world.falsify("d", None);
    assert_eq!(put_right(&world).await, 1);
    // From then on it is checked against that.
    world.purge(5).await;
    world.falsify("d", None);
    assert!(matches!(open(&world).await, Err(AuditError::Differs(_))));
}

#[tokio::test]
async fn batches_that_were_numbered_in_vain_put_nothing_right() {
    let mut world = written().await;
    world.append(9, &[(DB, "d", Some("never"))]).await;
    let mut auditor = open(&world).await.expect("right");
    world.write(&mut auditor, 6, &[(DB, "f", Some("6"))]).await;
    drop(auditor);
    let audit = Arc::<Audit>::default();
    world.audit(false, &audit).await.expect("right");
    assert_eq!(audit.findings().borrow().put_right, 0);
    assert_eq!(world.get("d"), Some(Bytes::from("4")));
}

#[tokio::test]
async fn a_database_without_a_name_is_left_to_be_given_up() {
    let mut world = written().await;
    let mut auditor = open(&world).await.expect("right");
    let new = DatabaseId(2);
    world
        .write(
            &mut auditor,
            6,
            &[(CATALOG, "name", None), (new, "x", Some("1"))],
        )
        .await;
    drop(auditor);
    world.falsify("d", None);
    let audit = Arc::<Audit>::default();
    world.audit(false, &audit).await.expect("right");
    assert_eq!(audit.findings().borrow().put_right, 0);
}

#[tokio::test]
async fn what_goes_wrong_at_work_is_found_by_the_next_count() {
    let world = written().await;
    let audit = Arc::<Audit>::default();
    let mut auditor = world.audit(false, &audit).await.expect("right");
    assert!(!auditor.has_work());
    world.falsify("c", None);
    let counted = tokio::spawn({
        let audit = Arc::clone(&audit);
        async move { audit.count().await }
    });
    tokio::task::yield_now().await;
    while !auditor.found_wrong() {
        assert!(auditor.has_work());
        auditor.step().expect("an engine in memory");
    }
    let what = counted.await.expect("answered").expect("wrong");
    assert!(what.contains("has 3 rows, but should have 4"), "{what}");
}

#[tokio::test]
async fn an_account_that_goes_wrong_at_work_is_written_anew_by_the_next_count() {
    let wrong = || Some(Bytes::from(vec![1; 24]));
    for rows in [
        &[("", None)][..],
        &[("\0\0\0\x01", wrong())],
        &[("\0\0\0\x09", wrong())],
        // One of a database that is no more, before one of a database that is.
        &[("\0", wrong()), ("\0\0\0\x01", wrong())],
    ] {
        let world = written().await;
        let mut auditor = open(&world).await.expect("right");
        for (key, value) in rows {
            world.falsify_in(DIGESTS, key, value.clone());
        }
        auditor.begin_count();
        while auditor.has_work() {
            auditor.step().expect("an engine in memory");
        }
        assert!(!auditor.found_wrong());
        drop(auditor);
        // The digest file is lost with its volume: the account alone has to do.
        world.purge(5).await;
        crate::log::Disk::remove(&world.disk, std::path::Path::new("/data/digest"))
            .expect("removed");
        open(&world)
            .await
            .unwrap_or_else(|error| panic!("{rows:?}: {error}"));
    }
}
