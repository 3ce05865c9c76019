//! Transactions: what may stand in one, what each part sees, what is compared with what.

use steadfast_server::proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use steadfast_server::proto::etcdserverpb::response_op::Response;
use steadfast_server::proto::etcdserverpb::{
    Compare, PutRequest, RequestOp, ResponseOp, TxnRequest, TxnResponse,
};
use tonic::Code;

use crate::ask::{
    Operation, bytes, compare, delete, delete_prefix, end_of, guards, one, prefix, put, refused,
    revision, text, txn,
};
use crate::target::{Target, rows};

rows! {
    One:
    two_puts_of_one_key_are_refused,
    a_put_and_a_delete_of_one_key_are_refused,
    nested_transactions_may_delete_after_a_put_but_not_before,
    overlapping_deletes_are_accepted,
    each_part_sees_what_came_before_it,
    all_writes_of_a_transaction_have_one_revision,
    what_changes_nothing_makes_no_revision,
    each_part_has_a_header_with_a_revision_alone,
    a_missing_key_compares_as_zero_and_has_no_value,
    the_target_decides_what_is_compared,
    a_comparison_of_a_range_holds_for_every_key,
    operations_are_counted_in_the_longest_list,
    nested_transactions_share_what_their_parent_leaves,
    an_unknown_lease_hurts_in_the_branch_that_is_taken,
    keys_of_comparisons_and_parts_are_not_empty;
}

const DUPLICATE: &str = "etcdserver: duplicate key given in txn request";
const TOO_MANY: &str = "etcdserver: too many operations in txn request";

/// A nested transaction.
fn nested(success: impl IntoIterator<Item = RequestOp>) -> RequestOp {
    txn(success).op()
}

/// A nested transaction with both branches.
fn branches(success: Vec<RequestOp>, failure: Vec<RequestOp>) -> RequestOp {
    TxnRequest {
        success,
        failure,
        ..TxnRequest::default()
    }
    .op()
}

fn some_put(key: &str) -> RequestOp {
    put(key, "v").op()
}

async fn two_puts_of_one_key_are_refused(target: Target) {
    let before = target.revision().await;
    let twice = || vec![some_put("a"), some_put("a")];
    let refusals = [
        txn(twice()),
        TxnRequest {
            failure: twice(),
            ..TxnRequest::default()
        },
        txn([nested([some_put("a")]), nested([some_put("a")])]),
        txn([
            nested([some_put("a")]),
            branches(vec![], vec![some_put("a")]),
        ]),
        txn([some_put("a"), nested([some_put("a")])]),
        txn([nested([some_put("a")]), some_put("a")]),
    ];
    for refusal in refusals {
        refused(target.txn(refusal).await, Code::InvalidArgument, DUPLICATE);
    }
    assert_eq!(target.revision().await, before);

    let in_both = TxnRequest {
        success: vec![some_put("a")],
        failure: vec![some_put("a")],
        ..TxnRequest::default()
    };
    assert_eq!(
        revision(target.txn(in_both).await.unwrap().header),
        before + 1
    );
    let in_both = txn([branches(vec![some_put("a")], vec![some_put("a")])]);
    assert_eq!(
        revision(target.txn(in_both).await.unwrap().header),
        before + 2
    );
}

async fn a_put_and_a_delete_of_one_key_are_refused(target: Target) {
    let before = target.revision().await;
    let refusals = [
        txn([some_put("a"), delete("a").op()]),
        txn([delete("a").op(), some_put("a")]),
        txn([delete_prefix("a").op(), some_put("ab")]),
        txn([some_put("ab"), delete_prefix("a").op()]),
    ];
    for refusal in refusals {
        refused(target.txn(refusal).await, Code::InvalidArgument, DUPLICATE);
    }
    assert_eq!(target.revision().await, before);
    let beside = txn([some_put("b"), delete_prefix("a").op()]);
    assert!(target.txn(beside).await.unwrap().succeeded);
}

async fn nested_transactions_may_delete_after_a_put_but_not_before(target: Target) {
    let refusals = [
        txn([nested([delete("a").op()]), nested([some_put("a")])]),
        txn([delete("a").op(), nested([some_put("a")])]),
        txn([nested([some_put("a")]), delete("a").op()]),
    ];
    for refusal in refusals {
        refused(target.txn(refusal).await, Code::InvalidArgument, DUPLICATE);
    }
    let answer = target
        .txn(txn([nested([some_put("a")]), nested([delete("a").op()])]))
        .await;
    let answer = answer.unwrap();
    assert_eq!(deleted(inner(&answer, 1), 0), 1);
    assert!(target.get("a").await.is_none());
}

async fn overlapping_deletes_are_accepted(target: Target) {
    target.put("a1", "v").await;
    target.put("a2", "v").await;
    let request = txn([
        delete("a1").op(),
        delete_prefix("a").op(),
        delete_prefix("a").op(),
    ]);
    let answer = target.txn(request).await.unwrap();
    assert_eq!(
        [
            deleted(&answer, 0),
            deleted(&answer, 1),
            deleted(&answer, 2)
        ],
        [1, 1, 0]
    );
}

async fn each_part_sees_what_came_before_it(target: Target) {
    target.put("a", "old").await;
    let answer = target
        .txn(txn([one("a").op(), put("a", "new").op(), one("a").op()]))
        .await;
    let answer = answer.unwrap();
    assert_eq!([value(&answer, 0), value(&answer, 2)], ["old", "new"]);
    let is_new = compare(
        "a",
        CompareResult::Equal,
        TargetUnion::Value(bytes("newer")),
    );
    let guarded = TxnRequest {
        compare: vec![is_new],
        ..txn([one("a").op()])
    };
    let answer = target
        .txn(txn([put("a", "newer").op(), guarded.op()]))
        .await
        .unwrap();
    let ResponseOp {
        response: Some(Response::ResponseTxn(inner)),
    } = &answer.responses[1]
    else {
        panic!("{answer:?}");
    };
    assert!(
        !inner.succeeded,
        "guards, nested ones too, are decided before the first write"
    );
}

async fn all_writes_of_a_transaction_have_one_revision(target: Target) {
    let first = target.put("b", "v").await;
    let answer = target
        .txn(txn([some_put("a"), some_put("b"), delete("c").op()]))
        .await
        .unwrap();
    assert_eq!(revision(answer.header), first + 1);
    let (a, b) = (
        target.get("a").await.unwrap(),
        target.get("b").await.unwrap(),
    );
    assert_eq!(
        (a.create_revision, a.mod_revision, a.version),
        (first + 1, first + 1, 1)
    );
    assert_eq!(
        (b.create_revision, b.mod_revision, b.version),
        (first, first + 1, 2)
    );

    target.delete(delete("b")).await.unwrap();
    let again = target.put("b", "v").await;
    let b = target.get("b").await.unwrap();
    assert_eq!(
        (b.create_revision, b.mod_revision, b.version),
        (again, again, 1)
    );
}

async fn what_changes_nothing_makes_no_revision(target: Target) {
    let before = target.put("a", "v").await;
    let never = compare("a", CompareResult::Equal, TargetUnion::Version(7));
    let guarded = TxnRequest {
        compare: vec![never],
        ..txn([some_put("a")])
    };
    let answer = target.txn(guarded).await.unwrap();
    assert!(!answer.succeeded && answer.responses.is_empty());
    assert_eq!(revision(answer.header), before);

    for request in [txn([one("a").op()]), txn([delete("none").op()]), txn([])] {
        let answer = target.txn(request).await.unwrap();
        assert!(answer.succeeded);
        assert_eq!(revision(answer.header), before);
    }
    let answer = target.delete(delete("none")).await.unwrap();
    assert_eq!((answer.deleted, revision(answer.header)), (0, before));

    let nothing = txn([RequestOp { request: None }]);
    let text = "etcdserver: key not found";
    refused(target.txn(nothing).await, Code::InvalidArgument, text);
    assert_eq!(target.revision().await, before);
}

async fn each_part_has_a_header_with_a_revision_alone(target: Target) {
    let before = target.revision().await;
    let parts = [
        one("a").op(),
        some_put("a"),
        one("a").op(),
        delete("b").op(),
    ];
    let answer = target.txn(txn(parts)).await.unwrap();
    let headers = answer
        .responses
        .iter()
        .map(|part| match part.response.as_ref().unwrap() {
            Response::ResponseRange(range) => range.header.unwrap(),
            Response::ResponsePut(put) => put.header.unwrap(),
            Response::ResponseDeleteRange(delete) => delete.header.unwrap(),
            Response::ResponseTxn(txn) => txn.header.unwrap(),
        });
    let headers: Vec<_> = headers.collect();
    let revisions: Vec<_> = headers.iter().map(|header| header.revision).collect();
    assert_eq!(revisions, [before, before + 1, before + 1, before + 1]);
    for header in headers {
        assert_eq!(
            (header.cluster_id, header.member_id, header.raft_term),
            (0, 0, 0)
        );
    }
    let header = answer.header.unwrap();
    assert!(header.cluster_id != 0 && header.member_id != 0 && header.raft_term != 0);

    let answer = target.txn(txn([nested([some_put("a")])])).await.unwrap();
    let inner = inner(&answer, 0).header.unwrap_or_default();
    assert_eq!(
        (inner.revision, inner.cluster_id, inner.raft_term),
        (0, 0, 0)
    );
}

async fn a_missing_key_compares_as_zero_and_has_no_value(target: Target) {
    use CompareResult::{Equal, Greater, Less, NotEqual};
    use TargetUnion::{CreateRevision, Lease, ModRevision, Value, Version};
    let zeros = [Version(0), CreateRevision(0), ModRevision(0), Lease(0)];
    for zero in zeros {
        assert!(
            holds(&target, compare("none", Equal, zero.clone())).await,
            "{zero:?}"
        );
        assert!(
            !holds(&target, compare("none", NotEqual, zero.clone())).await,
            "{zero:?}"
        );
        assert!(
            !holds(&target, compare("none", Greater, zero.clone())).await,
            "{zero:?}"
        );
        assert!(
            !holds(&target, compare("none", Less, zero.clone())).await,
            "{zero:?}"
        );
    }
    for result in [Equal, NotEqual, Greater, Less] {
        assert!(!holds(&target, compare("none", result, Value(bytes("")))).await);
        assert!(!holds(&target, compare("none", result, Value(bytes("v")))).await);
    }
}

async fn the_target_decides_what_is_compared(target: Target) {
    target.put("a", "v").await;
    let versioned = |target: CompareTarget, union| Compare {
        target: target.into(),
        key: bytes("a"),
        target_union: Some(union),
        ..Compare::default()
    };
    // The version is compared with 0, whatever value or revision stands beside.
    let by_value = versioned(CompareTarget::Version, TargetUnion::Value(bytes("v")));
    assert!(!holds(&target, by_value).await);
    let by_mod = versioned(CompareTarget::Version, TargetUnion::ModRevision(2));
    assert!(!holds(&target, by_mod).await);
    let right = versioned(CompareTarget::Version, TargetUnion::Version(1));
    assert!(holds(&target, right).await);
    target.delete(delete("a")).await.unwrap();
    let by_mod = versioned(CompareTarget::Version, TargetUnion::ModRevision(7));
    assert!(holds(&target, by_mod).await, "no version is version 0");
}

async fn a_comparison_of_a_range_holds_for_every_key(target: Target) {
    use CompareResult::{Equal, Greater};
    let over = |compare: Compare| Compare {
        range_end: end_of("a"),
        ..compare
    };
    let versions = || over(compare("a", Greater, TargetUnion::Version(0)));
    let values = || over(compare("a", Equal, TargetUnion::Value(bytes("v"))));
    assert!(
        !holds(&target, versions()).await,
        "no key, which has version 0"
    );
    assert!(!holds(&target, values()).await);
    let none = over(compare("a", Equal, TargetUnion::CreateRevision(0)));
    assert!(holds(&target, none).await);
    target.put("a1", "v").await;
    target.put("a2", "v").await;
    assert!(holds(&target, versions()).await);
    assert!(holds(&target, values()).await);
    target.put("a2", "other").await;
    assert!(holds(&target, versions()).await);
    assert!(!holds(&target, values()).await);
}

async fn operations_are_counted_in_the_longest_list(target: Target) {
    let puts = |name: &str, count| {
        (0..count)
            .map(|n| some_put(&format!("{name}{n}")))
            .collect()
    };
    let compares = |count| {
        let never = || compare("none", CompareResult::Equal, TargetUnion::Version(0));
        (0..count).map(|_| never()).collect::<Vec<_>>()
    };
    let request = |compare, success, failure| TxnRequest {
        compare: compares(compare),
        success: puts("s", success),
        failure: puts("f", failure),
    };
    assert!(target.txn(request(128, 128, 128)).await.unwrap().succeeded);
    for too_many in [request(129, 0, 0), request(0, 129, 0), request(0, 0, 129)] {
        refused(target.txn(too_many).await, Code::InvalidArgument, TOO_MANY);
    }
}

async fn nested_transactions_share_what_their_parent_leaves(target: Target) {
    let puts = |name: &str, count: usize| -> Vec<RequestOp> {
        (0..count)
            .map(|n| some_put(&format!("{name}{n}")))
            .collect()
    };
    let mut parent = puts("p", 9);
    parent.push(nested(puts("n", 118)));
    assert!(
        target.txn(txn(parent)).await.unwrap().succeeded,
        "10 and 118"
    );
    let mut parent = puts("p", 9);
    parent.push(nested(puts("n", 119)));
    refused(
        target.txn(txn(parent)).await,
        Code::InvalidArgument,
        TOO_MANY,
    );
    let siblings = txn([nested(puts("a", 100)), nested(puts("b", 100))]);
    assert!(target.txn(siblings).await.unwrap().succeeded);
}

async fn an_unknown_lease_hurts_in_the_branch_that_is_taken(target: Target) {
    let leased = || {
        PutRequest {
            lease: 7,
            ..put("a", "v")
        }
        .op()
    };
    let not_taken = TxnRequest {
        failure: vec![leased()],
        ..txn([some_put("b")])
    };
    let before = revision(target.txn(not_taken).await.unwrap().header);
    let taken = txn([some_put("b"), leased()]);
    refused(
        target.txn(taken).await,
        Code::NotFound,
        "etcdserver: requested lease not found",
    );
    assert_eq!(
        target.get("b").await.unwrap().mod_revision,
        before,
        "nothing was written"
    );
    assert_eq!(target.revision().await, before);

    let keeps = PutRequest {
        ignore_value: true,
        key: bytes("none"),
        ..PutRequest::default()
    };
    let taken = txn([some_put("b"), keeps.op()]);
    refused(
        target.txn(taken).await,
        Code::InvalidArgument,
        "etcdserver: key not found",
    );
    assert_eq!(target.revision().await, before);
}

async fn keys_of_comparisons_and_parts_are_not_empty(target: Target) {
    let empty = "etcdserver: key is not provided";
    let requests = [
        guards([compare("", CompareResult::Equal, TargetUnion::Version(0))]),
        txn([one("").op()]),
        txn([some_put("")]),
        txn([delete("").op()]),
        txn([nested([some_put("")])]),
    ];
    for request in requests {
        refused(target.txn(request).await, Code::InvalidArgument, empty);
    }
    let mut reversed = prefix("z");
    reversed.range_end = bytes("a");
    let answer = target.txn(txn([reversed.op()])).await.unwrap();
    assert!(
        answer.succeeded,
        "a range that ends before it begins is just empty"
    );
}

async fn holds(target: &Target, guard: Compare) -> bool {
    target.txn(guards([guard])).await.unwrap().succeeded
}

fn inner(answer: &TxnResponse, part: usize) -> &TxnResponse {
    match &answer.responses[part].response {
        Some(Response::ResponseTxn(inner)) => inner,
        other => panic!("{other:?}"),
    }
}

fn deleted(answer: &TxnResponse, part: usize) -> i64 {
    match &answer.responses[part].response {
        Some(Response::ResponseDeleteRange(delete)) => delete.deleted,
        other => panic!("{other:?}"),
    }
}

fn value(answer: &TxnResponse, part: usize) -> String {
    match &answer.responses[part].response {
        Some(Response::ResponseRange(range)) => text(&range.kvs[0].value),
        other => panic!("{other:?}"),
    }
}
