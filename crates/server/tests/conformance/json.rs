//! The JSON form of single requests and answers.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::http::Answer;
use crate::target::{Target, rows};

rows! {
    One:
    both_base_paths_are_served_and_older_ones_are_not,
    large_numbers_are_strings_and_defaults_are_absent,
    numbers_and_names_are_read_in_every_form,
    large_lease_ids_are_exact_in_both_forms,
    errors_have_a_status_a_code_and_a_message,
    what_cannot_be_read_is_a_bad_request,
    a_comparison_without_a_target_compares_the_version,
    a_keep_alive_of_an_unknown_lease_has_no_time,
    leases_answer_under_both_names,
    answers_of_transactions_have_the_names_of_their_parts,
    what_patroni_sends_works,
    what_python_clients_send_works;
}

fn b64(text: &str) -> String {
    STANDARD.encode(text)
}

/// Holds the status, and the text and the code of the body.
#[track_caller]
fn failed(target: &Target, answer: &Answer, status: u16, code: u64, text: &str) {
    assert_eq!(answer.status, status, "{}", answer.text());
    assert_eq!(answer.header("Content-Type"), Some("application/json"));
    let body = answer.json();
    assert_eq!(body["code"], code, "{body}");
    for field in ["error", "message"] {
        // Not every real server sends both.
        if target.is_ours || !body[field].is_null() {
            assert_eq!(body[field], text, "{body}");
        }
    }
    assert!(
        !body["error"].is_null() || !body["message"].is_null(),
        "{body}"
    );
}

async fn both_base_paths_are_served_and_older_ones_are_not(target: Target) {
    let key = json!({"key": b64("a")});
    target
        .json("/v3/kv/put", json!({"key": b64("a"), "value": b64("v")}))
        .await;
    let answer = target.json("/v3beta/kv/range", key.clone()).await;
    assert_eq!(answer["kvs"][0]["value"], b64("v"));
    assert_eq!(
        target.post("/v3alpha/kv/range", key.clone()).await.status,
        404
    );
    assert_eq!(target.post("/v3/kv/nothing", key).await.status, 404);
}

async fn large_numbers_are_strings_and_defaults_are_absent(target: Target) {
    let answer = target.json("/v3/kv/range", json!({"key": b64("a")})).await;
    for field in ["cluster_id", "member_id", "revision", "raft_term"] {
        assert!(answer["header"][field].is_string(), "{answer}");
    }
    assert_eq!(
        answer.as_object().unwrap().len(),
        1,
        "the header alone: {answer}"
    );
    target
        .json("/v3/kv/put", json!({"key": b64("a"), "value": ""}))
        .await;
    let answer = target.json("/v3/kv/range", json!({"key": b64("a")})).await;
    let expected =
        json!([{"key": "YQ==", "create_revision": "2", "mod_revision": "2", "version": "1"}]);
    assert_eq!((&answer["kvs"], &answer["count"]), (&expected, &json!("1")));
    assert!(answer["more"].is_null());
    let answer = target.json("/v3/maintenance/hash", json!({})).await;
    assert!(answer["hash"].is_number(), "32 bits are a number: {answer}");
}

async fn numbers_and_names_are_read_in_every_form(target: Target) {
    for (key, value) in [("s1", "b"), ("s2", "a")] {
        target
            .json("/v3/kv/put", json!({"key": b64(key), "value": b64(value)}))
            .await;
    }
    let forms = [
        json!({"range_end": b64("t"), "sort_order": "ASCEND", "sort_target": "VALUE", "limit": "1"}),
        json!({"rangeEnd": b64("t"), "sortOrder": 1, "sortTarget": 4, "limit": 1}),
        json!({"range_end": b64("t"), "sort_order": 1, "sort_target": "VALUE", "limit": 1,
            "revision": null, "no_such_field": {"x": [1]}}),
    ];
    for mut form in forms {
        form["key"] = b64("s").into();
        let answer = target.json("/v3/kv/range", form.clone()).await;
        assert_eq!(answer["kvs"][0]["key"], b64("s2"), "{form}");
        assert_eq!(
            (&answer["more"], &answer["count"]),
            (&json!(true), &json!("2")),
            "{form}"
        );
    }
    let text = format!("{} and more", json!({"key": b64("s1")}));
    let head = [("Content-Type", "text/plain")];
    let answer = target.http("POST", "/v3/kv/range", &head, &text).await;
    assert_eq!(
        answer.json()["count"],
        "1",
        "what follows the value is not read"
    );
    let answer = target.http("POST", "/v3/lease/leases", &[], "").await;
    assert_eq!(answer.status, 200, "no body is an empty request");
}

async fn large_lease_ids_are_exact_in_both_forms(target: Target) {
    for (body, id) in [
        (r#"{"TTL": 60, "ID": 9007199254740993}"#, "9007199254740993"),
        (
            r#"{"TTL": "60", "ID": "9223372036854775807"}"#,
            "9223372036854775807",
        ),
        (
            r#"{"TTL": 60, "ID": -9223372036854775807}"#,
            "-9223372036854775807",
        ),
    ] {
        let answer = target
            .http("POST", "/v3/lease/grant", &[], body)
            .await
            .json();
        assert_eq!(
            (&answer["ID"], &answer["TTL"]),
            (&json!(id), &json!("60")),
            "{answer}"
        );
        let body = format!(r#"{{"ID": {id}}}"#);
        let answer = target
            .http("POST", "/v3/kv/lease/timetolive", &[], &body)
            .await
            .json();
        assert_eq!(
            (&answer["ID"], &answer["grantedTTL"]),
            (&json!(id), &json!("60")),
            "{answer}"
        );
        let answer = target.http("POST", "/v3/kv/lease/revoke", &[], &body).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
}

async fn errors_have_a_status_a_code_and_a_message(target: Target) {
    let answer = target.post("/v3/kv/range", json!({})).await;
    failed(&target, &answer, 400, 3, "etcdserver: key is not provided");
    let answer = target
        .post("/v3/kv/range", json!({"key": b64("a"), "revision": "99"}))
        .await;
    let future = "etcdserver: mvcc: required revision is a future revision";
    failed(&target, &answer, 400, 11, future);
    let answer = target.post("/v3/lease/revoke", json!({"ID": "5"})).await;
    failed(
        &target,
        &answer,
        404,
        5,
        "etcdserver: requested lease not found",
    );
    target
        .json("/v3/lease/grant", json!({"TTL": "60", "ID": "5"}))
        .await;
    let answer = target
        .post("/v3/lease/grant", json!({"TTL": "60", "ID": "5"}))
        .await;
    let status = target.failed_precondition_status();
    failed(
        &target,
        &answer,
        status,
        9,
        "etcdserver: lease already exists",
    );
    let answer = target
        .post("/v3/election/leader", json!({"name": b64("e")}))
        .await;
    failed(&target, &answer, 500, 2, "election: no leader");
    let answer = target
        .post("/v3/lock/lock", json!({"name": b64("l"), "lease": "77"}))
        .await;
    failed(
        &target,
        &answer,
        500,
        2,
        "etcdserver: requested lease not found",
    );
}

async fn what_cannot_be_read_is_a_bad_request(target: Target) {
    let bodies = [
        "{bad",
        r#"{"key": "***"}"#,
        r#"{"key": 5}"#,
        r#"{"key": "YQ==", "limit": "many"}"#,
        r#"{"key": "YQ==", "limit": 1.5}"#,
        r#"{"key": "YQ==", "limit": "9223372036854775808"}"#,
        "[]",
        "7",
    ];
    for body in bodies {
        let answer = target.http("POST", "/v3/kv/range", &[], body).await;
        assert_eq!(answer.status, 400, "{body}: {}", answer.text());
        assert_eq!(answer.json()["code"], 3, "{body}: {}", answer.text());
    }
}

async fn a_comparison_without_a_target_compares_the_version(target: Target) {
    target
        .json("/v3/kv/put", json!({"key": b64("a"), "value": b64("v")}))
        .await;
    for beside in [
        json!({"value": b64("v")}),
        json!({"mod_revision": "2"}),
        json!({}),
    ] {
        let mut guard = beside.clone();
        guard["key"] = b64("a").into();
        let answer = target.json("/v3/kv/txn", json!({"compare": [guard]})).await;
        assert!(
            answer["succeeded"].is_null(),
            "version 1 is not 0: {answer}"
        );
        let mut guard = beside;
        guard["key"] = b64("none").into();
        let answer = target.json("/v3/kv/txn", json!({"compare": [guard]})).await;
        assert_eq!(answer["succeeded"], true, "no version is 0: {answer}");
    }
}

async fn a_keep_alive_of_an_unknown_lease_has_no_time(target: Target) {
    let answer = target
        .json("/v3/lease/keepalive", json!({"ID": "77"}))
        .await;
    assert_eq!(answer["result"]["ID"], "77");
    assert!(answer["result"]["TTL"].is_null(), "{answer}");
    target
        .json("/v3/lease/grant", json!({"TTL": "60", "ID": "77"}))
        .await;
    let answer = target
        .json("/v3/lease/keepalive", json!({"ID": "77"}))
        .await;
    assert_eq!(answer["result"]["TTL"], "60");
}

async fn leases_answer_under_both_names(target: Target) {
    target
        .json("/v3/lease/grant", json!({"TTL": "60", "ID": "7"}))
        .await;
    for base in ["/v3/lease", "/v3/kv/lease"] {
        let answer = target.json(&format!("{base}/leases"), json!({})).await;
        assert_eq!(answer["leases"], json!([{"ID": "7"}]));
        let answer = target
            .json(&format!("{base}/timetolive"), json!({"ID": "7"}))
            .await;
        assert_eq!(answer["grantedTTL"], "60");
    }
    target.json("/v3/kv/lease/revoke", json!({"ID": "7"})).await;
    let answer = target
        .json("/v3/lease/timetolive", json!({"ID": "7"}))
        .await;
    assert_eq!(answer["TTL"], "-1");
}

async fn answers_of_transactions_have_the_names_of_their_parts(target: Target) {
    let parts = json!([
        {"request_put": {"key": b64("a"), "value": b64("v")}},
        {"requestRange": {"key": b64("a")}},
        {"request_delete_range": {"key": b64("b")}},
        {"request_txn": {"success": [{"request_range": {"key": b64("a")}}]}},
    ]);
    let answer = target.json("/v3/kv/txn", json!({"success": parts})).await;
    let responses = answer["responses"].as_array().unwrap();
    let names: Vec<_> = responses
        .iter()
        .flat_map(|part| part.as_object().unwrap().keys())
        .collect();
    let expected = [
        "response_put",
        "response_range",
        "response_delete_range",
        "response_txn",
    ];
    assert_eq!(names, expected);
    assert_eq!(responses[1]["response_range"]["kvs"][0]["value"], b64("v"));
    let header = &responses[1]["response_range"]["header"];
    assert_eq!(header, &json!({"revision": "2"}), "{answer}");
    assert_eq!(responses[3]["response_txn"]["succeeded"], true);
}

/// The life of a leader, as Patroni 3.0.2 and 4.1.5 send it.
async fn what_patroni_sends_works(target: Target) {
    let head = [("Content-Type", "application/json")];
    let answer = target.http("GET", "/version", &head, "{}").await;
    assert!(answer.json()["etcdcluster"].is_string());
    let members = target.json("/v3/cluster/member/list", json!({})).await;
    assert!(
        members["members"][0]["clientURLs"][0]
            .as_str()
            .unwrap()
            .starts_with("http://")
    );
    let all = json!({"key": b64("/service/s/"), "range_end": b64("/service/s0"),
        "serializable": true});
    assert!(target.json("/v3/kv/range", all.clone()).await["kvs"].is_null());
    let lease = target.json("/v3/lease/grant", json!({"TTL": 30})).await["ID"].clone();
    let absent = |key: &str, op: Value| {
        json!({
            "compare": [{"key": b64(key), "target": "CREATE", "create_revision": "0"}],
            "success": [{"request_put": op}],
        })
    };
    let leader = json!({"key": b64("/service/s/leader"), "value": b64("me"), "lease": lease});
    let answer = target
        .json("/v3/kv/txn", absent("/service/s/leader", leader.clone()))
        .await;
    assert_eq!(answer["succeeded"], true);
    let answer = target
        .json("/v3/kv/txn", absent("/service/s/leader", leader.clone()))
        .await;
    assert!(answer["succeeded"].is_null(), "the lock is taken");
    let answer = target
        .json("/v3/lease/keepalive", json!({"ID": lease}))
        .await;
    assert_eq!(answer["result"]["TTL"], "30");
    let nested = absent("/service/s/leader", leader.clone());
    let renew = json!({
        "compare": [{"key": b64("/service/s/leader"), "target": "VALUE", "value": b64("me")}],
        "success": [{"request_put": leader}],
        "failure": [{"request_txn": nested}],
    });
    assert_eq!(target.json("/v3/kv/txn", renew).await["succeeded"], true);
    let release = json!({
        "compare": [{"key": b64("/service/s/leader"), "target": "VALUE", "value": b64("me")}],
        "success": [{"request_delete_range": {"key": b64("/service/s/leader")}}],
    });
    let answer = target.json("/v3/kv/txn", release).await;
    assert_eq!(
        answer["responses"][0]["response_delete_range"]["deleted"],
        "1"
    );
    assert!(target.json("/v3/kv/range", all).await["kvs"].is_null());
}

/// Bodies of etcd3gw 2.7.
async fn what_python_clients_send_works(target: Target) {
    let lease = target
        .json("/v3/lease/grant", json!({"TTL": 5, "ID": 0}))
        .await["ID"]
        .clone();
    let id: i64 = lease.as_str().unwrap().parse().unwrap();
    target
        .json(
            "/v3/kv/put",
            json!({"key": b64("a"), "value": b64("v"), "lease": id}),
        )
        .await;
    let answer = target
        .json(
            "/v3/kv/range",
            json!({"key": b64("a"), "sort_order": 0, "sort_target": 0}),
        )
        .await;
    assert_eq!(answer["kvs"][0]["lease"], lease);
    let txn = json!({
        "compare": [{"key": b64("a"), "result": "EQUAL", "target": "CREATE",
            "create_revision": 0}],
        "success": [{"request_put": {"key": b64("a"), "value": b64("w"), "lease": id}}],
        "failure": [],
    });
    assert!(target.json("/v3/kv/txn", txn).await["succeeded"].is_null());
    target.json("/v3/kv/lease/revoke", json!({"ID": id})).await;
    let answer = target
        .json("/v3/kv/deleterange", json!({"key": b64("a")}))
        .await;
    assert!(
        answer["deleted"].is_null(),
        "the lease took it along: {answer}"
    );
}
