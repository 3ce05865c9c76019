//! Reads of many keys: order, limits, filters, and reads of the past.

use steadfast_server::proto::etcdserverpb::RangeRequest;
use steadfast_server::proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use tonic::Code;

use crate::ask::{delete, keys, one, prefix, put, refused, revision, text};
use crate::target::{Target, rows};

rows! {
    One:
    a_limit_cuts_and_says_so,
    sorting_comes_before_the_limit,
    an_unknown_order_of_sorting_is_refused,
    a_target_without_an_order_sorts_what_the_limit_lets_through,
    filters_come_before_the_limit_and_after_the_count,
    counting_and_names_alone_carry_less,
    the_past_can_be_read_until_it_is_compacted,
    the_newest_of_a_line_is_found_as_clients_of_elections_ask;
}

/// s0 … s4 with the values 5 1 4 2 3.
async fn five(target: &Target) -> i64 {
    let mut last = 0;
    for (key, value) in [
        ("s0", "5"),
        ("s1", "1"),
        ("s2", "4"),
        ("s3", "2"),
        ("s4", "3"),
    ] {
        last = target.put(key, value).await;
    }
    last
}

fn values(answer: &steadfast_server::proto::etcdserverpb::RangeResponse) -> Vec<String> {
    answer.kvs.iter().map(|kv| text(&kv.value)).collect()
}

fn sorted(order: SortOrder, by: SortTarget, limit: i64) -> RangeRequest {
    RangeRequest {
        sort_order: order.into(),
        sort_target: by.into(),
        limit,
        ..prefix("s")
    }
}

async fn a_limit_cuts_and_says_so(target: Target) {
    five(&target).await;
    for (limit, found, more) in [
        (2, 2, true),
        (5, 5, false),
        (9, 5, false),
        (0, 5, false),
        (-1, 5, false),
    ] {
        let answer = target
            .range(RangeRequest {
                limit,
                ..prefix("s")
            })
            .await
            .unwrap();
        assert_eq!(
            (answer.kvs.len(), answer.more, answer.count),
            (found, more, 5),
            "limit {limit}"
        );
    }
}

async fn sorting_comes_before_the_limit(target: Target) {
    use SortOrder::{Ascend, Descend};
    use SortTarget::{Create, Key, Mod, Value, Version};
    five(&target).await;
    target.put("s1", "1").await;
    let cases = [
        (sorted(Descend, Value, 2), ["s0", "s2"]),
        (sorted(Ascend, Value, 2), ["s1", "s3"]),
        (sorted(Descend, Key, 2), ["s4", "s3"]),
        (sorted(Ascend, Key, 2), ["s0", "s1"]),
        (sorted(Descend, Mod, 2), ["s1", "s4"]),
        (sorted(Ascend, Mod, 2), ["s0", "s2"]),
        (sorted(Descend, Create, 2), ["s4", "s3"]),
        (sorted(Ascend, Create, 2), ["s0", "s1"]),
    ];
    for (request, expected) in cases {
        let answer = target.range(request.clone()).await.unwrap();
        assert_eq!(keys(&answer), expected, "{request:?}");
        assert!(answer.more && answer.count == 5);
    }
    let answer = target.range(sorted(Descend, Version, 1)).await.unwrap();
    assert_eq!(keys(&answer), ["s1"]);
    let names = RangeRequest {
        keys_only: true,
        ..sorted(Ascend, Value, 0)
    };
    let answer = target.range(names).await.unwrap();
    assert_eq!(
        keys(&answer),
        ["s1", "s3", "s4", "s2", "s0"],
        "by values that are not shown"
    );
}

/// A real etcd takes it for none.
async fn an_unknown_order_of_sorting_is_refused(target: Target) {
    five(&target).await;
    let order = RangeRequest {
        sort_order: 9,
        limit: 2,
        ..prefix("s")
    };
    if target.is_ours {
        let text = "etcdserver: invalid sort option";
        refused(target.range(order).await, Code::InvalidArgument, text);
    } else {
        assert_eq!(keys(&target.range(order).await.unwrap()), ["s0", "s1"]);
    }
}

async fn a_target_without_an_order_sorts_what_the_limit_lets_through(target: Target) {
    five(&target).await;
    let answer = target
        .range(sorted(SortOrder::None, SortTarget::Value, 2))
        .await
        .unwrap();
    assert_eq!(
        values(&answer),
        ["1", "4"],
        "the least two of the first three"
    );
    assert!(answer.more);
    let answer = target
        .range(sorted(SortOrder::None, SortTarget::Value, 0))
        .await
        .unwrap();
    assert_eq!(values(&answer), ["1", "2", "3", "4", "5"]);
}

async fn filters_come_before_the_limit_and_after_the_count(target: Target) {
    let last = five(&target).await;
    target.put("s0", "again").await;
    let request = RangeRequest {
        min_mod_revision: last,
        limit: 1,
        ..prefix("s")
    };
    let answer = target.range(request).await.unwrap();
    assert_eq!(
        (keys(&answer), answer.count, answer.more),
        (vec!["s0".into()], 5, true)
    );
    let request = RangeRequest {
        max_mod_revision: last - 1,
        ..prefix("s")
    };
    assert_eq!(
        keys(&target.range(request).await.unwrap()),
        ["s1", "s2", "s3"]
    );
    let request = RangeRequest {
        min_create_revision: last,
        ..prefix("s")
    };
    assert_eq!(keys(&target.range(request).await.unwrap()), ["s4"]);
    let request = RangeRequest {
        max_create_revision: last - 4,
        ..prefix("s")
    };
    let answer = target.range(request).await.unwrap();
    assert_eq!(
        (keys(&answer), answer.count, answer.more),
        (vec!["s0".into()], 5, false)
    );
}

async fn counting_and_names_alone_carry_less(target: Target) {
    five(&target).await;
    let request = RangeRequest {
        count_only: true,
        limit: 2,
        ..prefix("s")
    };
    let answer = target.range(request).await.unwrap();
    assert_eq!((answer.count, answer.kvs.len(), answer.more), (5, 0, false));
    let request = RangeRequest {
        keys_only: true,
        ..prefix("s")
    };
    let answer = target.range(request).await.unwrap();
    assert_eq!(values(&answer), [""; 5]);
    assert!(
        answer
            .kvs
            .iter()
            .all(|kv| kv.version == 1 && kv.mod_revision > 1)
    );
}

async fn the_past_can_be_read_until_it_is_compacted(target: Target) {
    let first = target.put("a", "x").await;
    target.put("a", "y").await;
    let last = revision(target.delete(delete("a")).await.unwrap().header);
    let at = |revision| RangeRequest {
        revision,
        ..one("a")
    };

    let answer = target.range(at(first)).await.unwrap();
    assert_eq!(
        (values(&answer), revision(answer.header)),
        (vec!["x".into()], last)
    );
    assert_eq!(values(&target.range(at(first + 1)).await.unwrap()), ["y"]);
    assert!(target.range(at(last)).await.unwrap().kvs.is_empty());
    target.put("a", "z").await;
    assert_eq!(
        values(&target.range(at(-5)).await.unwrap()),
        ["z"],
        "negative is the newest"
    );
    assert_eq!(values(&target.range(at(0)).await.unwrap()), ["z"]);
    let future = "etcdserver: mvcc: required revision is a future revision";
    refused(target.range(at(last + 2)).await, Code::OutOfRange, future);

    target.compact(first + 1).await.unwrap();
    assert_eq!(
        values(&target.range(at(first + 1)).await.unwrap()),
        ["y"],
        "at it, readable"
    );
    let compacted = "etcdserver: mvcc: required revision has been compacted";
    refused(target.range(at(first)).await, Code::OutOfRange, compacted);
    target.compact(last).await.unwrap();
    assert!(target.range(at(last)).await.unwrap().kvs.is_empty());
}

async fn the_newest_of_a_line_is_found_as_clients_of_elections_ask(target: Target) {
    let mine = target.put("e/mine", "v").await;
    let request = RangeRequest {
        limit: 1,
        sort_order: SortOrder::Descend.into(),
        sort_target: SortTarget::Create.into(),
        max_create_revision: mine - 1,
        ..prefix("e/")
    };
    let answer = target.range(request.clone()).await.unwrap();
    assert_eq!(
        (answer.kvs.len(), answer.count),
        (0, 1),
        "counted without the filter"
    );
    target.try_put(put("e/later", "v")).await.unwrap();
    let request = RangeRequest {
        max_create_revision: mine,
        ..request
    };
    let answer = target.range(request).await.unwrap();
    assert_eq!((keys(&answer), answer.count), (vec!["e/mine".into()], 2));
}
