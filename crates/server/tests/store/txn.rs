//! Transactions: comparisons, branches, operations on each other, and what is refused.

use bytes::Bytes;
use steadfast_server::error::Error;
use steadfast_server::proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use steadfast_server::proto::etcdserverpb::response_op::Response;
use steadfast_server::proto::etcdserverpb::*;
use steadfast_server::store::Store;

use crate::group::*;

fn compare(key: &str, target: CompareTarget, result: CompareResult, union: TargetUnion) -> Compare {
    Compare {
        key: bytes(key),
        target: target as i32,
        result: result as i32,
        target_union: Some(union),
        range_end: Bytes::new(),
    }
}

async fn holds(store: &Store, compare: Compare) -> bool {
    let request = TxnRequest {
        compare: vec![compare],
        ..TxnRequest::default()
    };
    store.txn(request).await.expect("a transaction").succeeded
}

/// What an operation answered: the values of a range, how many keys were deleted, or the headers of
/// all with their kinds.
fn told(response: &ResponseOp) -> String {
    let header = |header: &Option<ResponseHeader>| {
        let header = header.as_ref().expect("a header");
        assert_eq!(
            (header.cluster_id, header.member_id, header.raft_term),
            (0, 0, 0)
        );
        header.revision
    };
    match response.response.as_ref().expect("a response") {
        Response::ResponseRange(range) => {
            let values: Vec<_> = values(range)
                .into_iter()
                .map(|(key, value)| key + "=" + &value)
                .collect();
            format!("range {} @{}", values.join(" "), header(&range.header))
        }
        Response::ResponsePut(put) => format!("put @{}", header(&put.header)),
        Response::ResponseDeleteRange(delete) => {
            format!("deleted {} @{}", delete.deleted, header(&delete.header))
        }
        Response::ResponseTxn(txn) => {
            assert_eq!(txn.header, Some(ResponseHeader::default()));
            let inner: Vec<_> = txn.responses.iter().map(told).collect();
            format!("{} [{}]", txn.succeeded, inner.join(", "))
        }
    }
}

async fn done(store: &Store, request: TxnRequest) -> (Vec<String>, i64) {
    let answer = store.txn(request).await.expect("a transaction");
    (
        answer.responses.iter().map(told).collect(),
        revision(answer.header.as_ref()),
    )
}

#[tokio::test(start_paused = true)]
async fn comparisons_follow_the_target_and_missing_keys_count_as_nothing() {
    use CompareResult::{Equal, Greater, Less, NotEqual};
    let group = Group::new(1).await;
    let store = group.master().await;
    set(&store, "k", "v").await; // 2
    set(&store, "k", "w").await; // 3
    let lease = store
        .lease_grant(LeaseGrantRequest { ttl: 60, id: 5 })
        .await;
    lease.expect("granted");
    let right = [
        compare("k", CompareTarget::Version, Equal, TargetUnion::Version(2)),
        compare(
            "k",
            CompareTarget::Create,
            Less,
            TargetUnion::CreateRevision(3),
        ),
        compare(
            "k",
            CompareTarget::Mod,
            Greater,
            TargetUnion::ModRevision(2),
        ),
        compare(
            "k",
            CompareTarget::Value,
            Equal,
            TargetUnion::Value(bytes("w")),
        ),
        compare(
            "k",
            CompareTarget::Value,
            NotEqual,
            TargetUnion::Value(bytes("v")),
        ),
        compare("k", CompareTarget::Lease, Equal, TargetUnion::Lease(0)),
        compare(
            "none",
            CompareTarget::Version,
            Equal,
            TargetUnion::Version(0),
        ),
        compare(
            "none",
            CompareTarget::Create,
            Equal,
            TargetUnion::CreateRevision(0),
        ),
        compare(
            "none",
            CompareTarget::Mod,
            Less,
            TargetUnion::ModRevision(1),
        ),
        compare("none", CompareTarget::Lease, Equal, TargetUnion::Lease(0)),
        // A wanted number of another kind counts as 0.
        compare(
            "none",
            CompareTarget::Version,
            Equal,
            TargetUnion::ModRevision(9),
        ),
        compare(
            "k",
            CompareTarget::Version,
            Greater,
            TargetUnion::Value(bytes("w")),
        ),
    ];
    for compare in right {
        assert!(holds(&store, compare.clone()).await, "{compare:?}");
    }
    let wrong = [
        compare(
            "none",
            CompareTarget::Value,
            Equal,
            TargetUnion::Value(Bytes::new()),
        ),
        compare(
            "none",
            CompareTarget::Value,
            NotEqual,
            TargetUnion::Value(bytes("x")),
        ),
        compare(
            "none",
            CompareTarget::Version,
            Greater,
            TargetUnion::Version(0),
        ),
        compare(
            "k",
            CompareTarget::Version,
            Equal,
            TargetUnion::ModRevision(2),
        ),
    ];
    for compare in wrong {
        assert!(!holds(&store, compare.clone()).await, "{compare:?}");
    }
    set(&store, "k2", "w").await;
    let range = |compare: Compare| Compare {
        range_end: end_of(&text(&compare.key)),
        ..compare
    };
    let all = compare(
        "k",
        CompareTarget::Value,
        Equal,
        TargetUnion::Value(bytes("w")),
    );
    assert!(holds(&store, range(all)).await);
    let not_all = compare("k", CompareTarget::Version, Equal, TargetUnion::Version(2));
    assert!(!holds(&store, range(not_all)).await);
    let none = compare(
        "none",
        CompareTarget::Version,
        Greater,
        TargetUnion::Version(0),
    );
    assert!(!holds(&store, range(none)).await);
    let none = compare(
        "none",
        CompareTarget::Value,
        NotEqual,
        TargetUnion::Value(bytes("w")),
    );
    assert!(!holds(&store, range(none)).await);
    let empty = compare("", CompareTarget::Version, Equal, TargetUnion::Version(0));
    let request = TxnRequest {
        compare: vec![empty],
        ..TxnRequest::default()
    };
    assert_eq!(refused(store.txn(request).await), Error::EmptyKey);
    group.close().await;
}

#[tokio::test(start_paused = true)]
async fn operations_see_what_was_done_before_them_at_one_revision() {
    let group = Group::new(1).await;
    let store = group.master().await;
    set(&store, "a", "0").await; // 2
    let ops = vec![
        op(get("a")),
        op(put("a", "1")),
        op(prefix("a")),
        op(txn(vec![op(put("ab", "2")), op(prefix("a"))])),
        op(RangeRequest {
            revision: 2,
            ..prefix("a")
        }),
    ];
    let (told, at) = done(&store, txn(ops)).await;
    assert_eq!(at, 3);
    assert_eq!(
        told,
        [
            "range a=0 @2",
            "put @3",
            "range a=1 @3",
            "true [put @3, range a=1 ab=2 @3]",
            "range a=0 @3",
        ]
    );
    let a = store.range(prefix("a")).await.expect("a range");
    let numbers: Vec<_> = a
        .kvs
        .iter()
        .map(|kv| (kv.create_revision, kv.mod_revision, kv.version))
        .collect();
    assert_eq!(numbers, [(2, 3, 2), (3, 3, 1)]);
    // Overlapping deletions: the second has nothing left.
    let ops = vec![op(delete_prefix("a")), op(delete("a")), op(prefix("a"))];
    let (told, at) = done(&store, txn(ops)).await;
    assert_eq!(
        (told, at),
        (
            ["deleted 2 @4", "deleted 0 @4", "range  @4"]
                .map(String::from)
                .to_vec(),
            4
        )
    );
    let new = RangeRequest {
        revision: 6,
        ..get("a")
    };
    let future = txn(vec![op(put("a", "1")), op(new)]);
    assert_eq!(refused(store.txn(future).await), Error::FutureRevision);
    assert_eq!(
        store.range(get("a")).await.expect("a range").count,
        0,
        "nothing of it is done"
    );
    group.close().await;
}

#[tokio::test(start_paused = true)]
async fn what_changes_nothing_takes_no_revision() {
    let group = Group::new(1).await;
    let store = group.master().await;
    set(&store, "a", "0").await; // 2
    let empty = store
        .txn(TxnRequest::default())
        .await
        .expect("a transaction");
    assert!(empty.succeeded);
    assert_eq!(revision(empty.header.as_ref()), 2);
    let guard = compare(
        "a",
        CompareTarget::Version,
        CompareResult::Equal,
        TargetUnion::Version(9),
    );
    let failed = TxnRequest {
        compare: vec![guard],
        ..txn(vec![op(put("a", "1"))])
    };
    let failed = store.txn(failed).await.expect("a transaction");
    assert_eq!(
        (failed.succeeded, revision(failed.header.as_ref())),
        (false, 2)
    );
    assert_eq!(done(&store, txn(vec![op(get("a"))])).await.1, 2);
    assert_eq!(done(&store, txn(vec![op(delete("b"))])).await.1, 2);
    assert_eq!(set(&store, "a", "1").await, 3);
    group.close().await;
}

#[tokio::test(start_paused = true)]
async fn keys_that_are_put_twice_or_put_and_deleted_are_refused() {
    let group = Group::new(1).await;
    let store = group.master().await;
    let (p, d, dp) = (
        || op(put("k", "1")),
        || op(delete("k")),
        || op(delete_prefix("k")),
    );
    let inner = |op: RequestOp| self::op(txn(vec![op]));
    let else_ = |op: RequestOp| {
        self::op(TxnRequest {
            failure: vec![op],
            ..TxnRequest::default()
        })
    };
    let both = |then: RequestOp, or: RequestOp| {
        self::op(TxnRequest {
            success: vec![then],
            failure: vec![or],
            ..TxnRequest::default()
        })
    };
    let bad = [
        vec![p(), p()],
        vec![p(), d()],
        vec![d(), p()],
        vec![dp(), p()],
        vec![inner(d()), inner(p())],
        vec![inner(p()), inner(p())],
        vec![inner(p()), else_(p())],
        vec![p(), inner(p())],
        vec![d(), inner(p())],
        vec![inner(p()), d()],
    ];
    for ops in bad {
        assert_eq!(
            refused(store.txn(txn(ops.clone())).await),
            Error::DuplicateKey,
            "{ops:?}"
        );
        let failure = TxnRequest {
            failure: ops,
            ..TxnRequest::default()
        };
        assert_eq!(refused(store.txn(failure).await), Error::DuplicateKey);
    }
    assert_eq!(store.header().revision, 1);
    let good = [
        (vec![inner(p()), inner(d())], 2),
        (vec![both(p(), p())], 3),
        (vec![d(), d()], 4),
        (vec![dp(), d()], 4),
    ];
    for (ops, at) in good {
        assert_eq!(done(&store, txn(ops.clone())).await.1, at, "{ops:?}");
    }
    let both = TxnRequest {
        failure: vec![p()],
        ..txn(vec![p()])
    };
    assert_eq!(done(&store, both).await.1, 5);
    let nothing = txn(vec![RequestOp { request: None }]);
    assert_eq!(refused(store.txn(nothing).await), Error::KeyNotFound);
    group.close().await;
}

#[tokio::test(start_paused = true)]
async fn the_longest_list_counts_and_nested_ones_share_what_is_left() {
    let group = Group::new(1).await;
    let store = group.master().await;
    let gets = |count: usize| vec![op(get("k")); count];
    let guard = compare(
        "k",
        CompareTarget::Version,
        CompareResult::Equal,
        TargetUnion::Version(0),
    );
    let all = TxnRequest {
        compare: vec![guard; 128],
        success: gets(128),
        failure: gets(128),
    };
    store.txn(all).await.expect("as many as allowed");
    assert_eq!(refused(store.txn(txn(gets(129))).await), Error::TooManyOps);
    let nested = |inner: usize| {
        let mut ops = gets(27);
        ops.push(op(txn(gets(inner))));
        txn(ops)
    };
    store.txn(nested(100)).await.expect("28 and 100");
    assert_eq!(refused(store.txn(nested(101)).await), Error::TooManyOps);
    let siblings = vec![op(txn(gets(100))), op(txn(gets(100)))];
    store.txn(txn(siblings)).await.expect("each by itself");
    group.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_transaction_that_fails_leaves_nothing_and_its_neighbours_alone() {
    let group = Group::new(1).await;
    let store = group.master().await;
    let unknown = |key: &str| {
        op(PutRequest {
            lease: 99,
            ..put(key, "1")
        })
    };
    let other_branch = TxnRequest {
        failure: vec![unknown("a")],
        ..txn(vec![op(put("a", "1"))])
    };
    assert_eq!(done(&store, other_branch).await.1, 2);
    // All of these wait together, and go into one round.
    let requests = (0..20).map(|n| {
        let store = store.clone();
        async move {
            let key = format!("k{n:02}");
            let ops = if n % 2 == 0 {
                vec![op(put(&key, "1"))]
            } else {
                vec![op(put(&key, "1")), unknown("z")]
            };
            store
                .txn(txn(ops))
                .await
                .map(|answer| revision(answer.header.as_ref()))
        }
    });
    let answers = futures_util::future::join_all(requests).await;
    let (good, bad): (Vec<_>, Vec<_>) = answers.into_iter().partition(Result::is_ok);
    let good: Vec<_> = good.into_iter().map(|at| at.expect("done")).collect();
    assert_eq!(good, (3..13).collect::<Vec<_>>(), "without a gap");
    assert!(
        bad.into_iter()
            .all(|error| error == Err(Error::LeaseNotFound))
    );
    let right: Vec<_> = (0..20).step_by(2).map(|n| format!("k{n:02}")).collect();
    assert_eq!(keys(&store, prefix("k")).await, right);
    group.close().await;
}
