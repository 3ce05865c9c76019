//! The JSON form of streams: watches and keep-alives, one message a line.

use std::collections::BTreeSet;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use crate::http::{self, Connection};
use crate::target::{Target, rows};

rows! {
    One:
    each_message_of_a_watch_is_a_line_and_a_chunk,
    one_body_may_hold_several_requests,
    a_watch_of_the_compacted_past_is_cancelled_and_stays_open,
    a_range_that_ends_before_it_begins_cannot_be_watched,
    a_body_may_come_after_its_head;
}

fn b64(text: &str) -> String {
    STANDARD.encode(text)
}

async fn each_message_of_a_watch_is_a_line_and_a_chunk(target: Target) {
    let first = target.put("a1", "x").await;
    let create = json!({"create_request": {"key": b64("a"), "range_end": b64("b"),
        "start_revision": first.to_string(), "filters": []}});
    let mut lines = target.lines("/v3/watch", &create.to_string()).await;
    let created = lines.next().await;
    assert_eq!(created["result"]["created"], true);
    assert!(
        created["result"]["watch_id"].is_null(),
        "0 is not shown: {created}"
    );
    let message = lines.next().await;
    let event = &message["result"]["events"][0];
    assert!(event["type"].is_null(), "a put is the default: {message}");
    assert_eq!(
        event["kv"]["mod_revision"],
        first.to_string(),
        "the start is included"
    );
    target.delete(crate::ask::delete("a1")).await.unwrap();
    let message = lines.next().await;
    let event = &message["result"]["events"][0];
    let expected = json!({"key": b64("a1"), "mod_revision": (first + 1).to_string()});
    assert_eq!(
        (&event["type"], &event["kv"]),
        (&json!("DELETE"), &expected)
    );
    assert_eq!(
        message["result"]["header"]["revision"],
        (first + 1).to_string()
    );
}

async fn one_body_may_hold_several_requests(target: Target) {
    let body = format!(
        "{}{}\n{}",
        json!({"create_request": {"key": b64("a")}}),
        json!({"create_request": {"key": b64("b"), "watch_id": "7"}}),
        json!({"progress_request": {}}),
    );
    let mut lines = target.lines("/v3/watch", &body).await;
    let mut seen = BTreeSet::new();
    for _ in 0..3 {
        let message = lines.next().await["result"].clone();
        seen.insert((message["created"] == true, message["watch_id"].to_string()));
    }
    let expected = [(true, "null"), (true, "\"7\""), (false, "\"-1\"")];
    assert_eq!(
        seen,
        expected
            .map(|(created, id)| (created, id.to_owned()))
            .into()
    );
    let at = target.put("b", "v").await;
    let message = lines.next().await;
    assert_eq!(message["result"]["watch_id"], "7");
    assert_eq!(
        message["result"]["events"][0]["kv"]["mod_revision"],
        at.to_string()
    );
}

async fn a_watch_of_the_compacted_past_is_cancelled_and_stays_open(target: Target) {
    let first = target.put("a", "1").await;
    let last = target.put("a", "2").await;
    target.compact(last).await.unwrap();
    let create = json!({"create_request": {"key": b64("a"), "start_revision": first}});
    let mut lines = target.lines("/v3/watch", &create.to_string()).await;
    let created = lines.next().await;
    assert!(created["result"]["canceled"].is_null(), "{created}");
    let message = lines.next().await["result"].clone();
    assert_eq!(
        (&message["canceled"], &message["compact_revision"]),
        (&json!(true), &json!(last.to_string()))
    );
    assert!(message["header"]["revision"].is_null() && message["cancel_reason"].is_null());
}

async fn a_range_that_ends_before_it_begins_cannot_be_watched(target: Target) {
    let create = json!({"create_request": {"key": b64("z"), "range_end": b64("a")}});
    let mut lines = target.lines("/v3/watch", &create.to_string()).await;
    let message = lines.next().await["result"].clone();
    assert_eq!(
        (&message["created"], &message["canceled"]),
        (&json!(true), &json!(true))
    );
    assert_eq!(message["watch_id"], "-1");
    assert_eq!(message["cancel_reason"], "mvcc: watcher range is empty");
}

/// As Patroni's library sends it: head and body are two segments, the connection is kept.
async fn a_body_may_come_after_its_head(target: Target) {
    let body = json!({"key": b64("a"), "value": b64("v")}).to_string();
    let request = http::bytes("POST", "/v3/kv/put", &[], body.as_bytes());
    let (head, body) = request.split_at(request.len() - body.len());
    let mut connection = Connection::open(target.addresses[0]).await.unwrap();
    for _ in 0..3 {
        connection.send(head).await.unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(40)).await;
        connection.send(body).await.unwrap();
        assert_eq!(connection.answer("POST").await.unwrap().status, 200);
    }
    assert_eq!(target.get("a").await.unwrap().version, 3);
}
