//! The JSON form: what goes in and what comes out.

use serde_json::{Value, json};

use crate::support::{Connection, Servers, base64, http};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn numbers_are_texts_names_are_those_of_the_messages_and_defaults_are_left_out() {
    let servers = Servers::start(1).await;
    let put = json!({"key": base64("foo"), "value": base64("bar")});
    let (status, answer) = servers.post("/v3/kv/put", &put.to_string()).await;
    assert_eq!(status, 200);
    assert!(answer["header"]["revision"].is_string(), "{answer}");
    assert!(answer.get("prev_kv").is_none());

    let (_, answer) = servers
        .post("/v3/kv/range", &json!({"key": base64("foo")}).to_string())
        .await;
    let revision = &answer["header"]["revision"];
    let expected = json!({
        "key": base64("foo"), "create_revision": revision, "mod_revision": revision,
        "version": "1", "value": base64("bar"),
    });
    assert_eq!(answer["kvs"], json!([expected]));
    assert_eq!(answer["count"], "1");
    assert!(answer.get("more").is_none(), "false is left out");

    let (_, answer) = servers
        .post("/v3/kv/range", &json!({"key": base64("none")}).to_string())
        .await;
    assert_eq!(
        answer.as_object().expect("an object").len(),
        1,
        "the header alone: {answer}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_read_may_be_written_in_many_ways() {
    let servers = Servers::start(1).await;
    for (key, value) in [("a1", "x"), ("a2", "z"), ("a3", "y")] {
        let put = json!({"key": base64(key), "value": base64(value)});
        servers.post("/v3/kv/put", &put.to_string()).await;
    }
    let range = json!({"key": base64("a"), "range_end": base64("b")});
    let ways = [
        json!({"sort_order": "DESCEND", "sort_target": "VALUE", "limit": "1"}),
        json!({"sort_order": 2, "sort_target": 4, "limit": 1}),
        json!({"sortOrder": "DESCEND", "sortTarget": "VALUE", "limit": 1, "revision": null}),
        json!({"sort_order": 2, "sort_target": 4, "limit": 1, "nobody": {"knows": ["this"]}}),
    ];
    for way in ways {
        let mut request = range.as_object().expect("an object").clone();
        request.extend(way.as_object().expect("an object").clone());
        let text = format!("{} and what follows", Value::Object(request));
        let headers = "Content-Type: text/html\r\n";
        let answer = http(servers.address(0), "POST", "/v3/kv/range", headers, &text).await;
        let answer = answer.json();
        assert_eq!(answer["kvs"][0]["key"], base64("a2"), "{text}: {answer}");
        assert_eq!(answer["more"], true);
    }
    let answer = http(
        servers.address(0),
        "POST",
        "/v3/cluster/member/list",
        "",
        "",
    )
    .await;
    assert_eq!(answer.status, 200, "an empty body is the empty request");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ids_above_two_to_the_53_are_exact() {
    let servers = Servers::start(1).await;
    let id = 9_007_199_254_740_993_i64;
    for text in [
        format!(r#"{{"TTL":60,"ID":{id}}}"#),
        format!(r#"{{"TTL":"60","ID":"{}"}}"#, id + 2),
    ] {
        let (status, answer) = servers.post("/v3/lease/grant", &text).await;
        assert_eq!(status, 200, "{answer}");
        let granted: i64 = answer["ID"]
            .as_str()
            .expect("a text")
            .parse()
            .expect("a number");
        assert!([id, id + 2].contains(&granted), "{granted}");
    }
    let left = format!(r#"{{"ID":{id}}}"#);
    for path in ["/v3/kv/lease/timetolive", "/v3/lease/timetolive"] {
        let (_, answer) = servers.post(path, &left).await;
        assert_eq!(answer["grantedTTL"], "60", "{path}: {answer}");
    }
    let (status, _) = servers.post("/v3/kv/lease/revoke", &left).await;
    assert_eq!(status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_have_a_status_and_all_three_names() {
    let servers = Servers::start(1).await;
    let text = "etcdserver: requested lease not found";
    let (status, answer) = servers.post("/v3/lease/revoke", r#"{"ID":"17"}"#).await;
    assert_eq!(
        (status, answer),
        (404, json!({"error": text, "code": 5, "message": text}))
    );
    let future = json!({"key": base64("a"), "revision": "9999"});
    let (status, answer) = servers.post("/v3/kv/range", &future.to_string()).await;
    assert_eq!((status, &answer["code"]), (400, &json!(11)));
    let (status, answer) = servers.post("/v3/kv/put", "{\"key\":").await;
    assert_eq!((status, &answer["code"]), (400, &json!(3)));
    let (status, answer) = servers
        .post("/v3/auth/authenticate", r#"{"name":"a"}"#)
        .await;
    assert_eq!((status, &answer["code"]), (400, &json!(9)));
    let (status, answer) = servers.post("/v3/cluster/member/add", "{}").await;
    assert_eq!((status, &answer["code"]), (501, &json!(12)));
    assert!(
        answer["error"]
            .as_str()
            .is_some_and(|text| text.contains("steadfast token create"))
    );
    let (status, answer) = servers.post("/v3/maintenance/snapshot", "{}").await;
    assert_eq!((status, &answer["error"]["grpc_code"]), (501, &json!(12)));
    assert_eq!(answer["error"]["http_status"], "Not Implemented");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keeping_a_lease_alive_that_is_not_there_is_no_error() {
    let servers = Servers::start(1).await;
    let (status, answer) = servers.post("/v3/lease/keepalive", r#"{"ID":"17"}"#).await;
    assert_eq!(status, 200);
    assert_eq!(answer["result"]["ID"], "17");
    assert!(answer["result"].get("TTL").is_none(), "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_takes_requests_one_after_the_other_and_answers_in_lines() {
    let servers = Servers::start(1).await;
    let create = |key: &str| json!({"create_request": {"key": base64(key)}}).to_string();
    let body = format!(
        "{}\n{}{}",
        create("a"),
        create("b"),
        r#"{"progress_request":{}}"#
    );
    let (first, rest) = body.split_at(30);
    let mut connection = Connection::to(servers.address(0)).await;
    connection
        .send_head("POST", "/v3/watch", "", body.len())
        .await;
    connection.send(first).await;
    connection.send(rest).await;
    assert_eq!(connection.head().await.0, 200);
    let mut ids = Vec::new();
    while ids.len() < 2 {
        let line = connection.chunk().await.expect("a line");
        assert!(line.ends_with('\n'));
        let answer: Value = serde_json::from_str(&line).expect("JSON");
        if answer["result"]["created"] == true {
            ids.push(answer["result"].get("watch_id").cloned());
        }
    }
    assert_eq!(ids, [None, Some(json!("1"))], "0 is left out");
    for key in ["a", "b"] {
        let put = json!({"key": base64(key), "value": base64("v")});
        servers.post("/v3/kv/put", &put.to_string()).await;
    }
    let mut seen = Vec::new();
    while seen.len() < 2 {
        let line = connection.chunk().await.expect("a line");
        let answer: Value = serde_json::from_str(&line).expect("JSON");
        for event in answer["result"]["events"].as_array().into_iter().flatten() {
            assert!(event.get("type").is_none(), "PUT is left out");
            seen.push(event["kv"]["key"].clone());
        }
    }
    seen.sort_by_key(ToString::to_string);
    assert_eq!(seen, [json!(base64("a")), json!(base64("b"))]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_that_sends_nonsense_ends_with_an_error_that_says_so() {
    let servers = Servers::start(1).await;
    let answer = http(
        servers.address(0),
        "POST",
        "/v3/watch",
        "",
        "{\"create_request\":[}",
    )
    .await;
    let error = &answer.json()["error"];
    assert_eq!(error["grpc_code"], 3);
    assert_eq!(error["http_code"], 400);
    assert_eq!(error["http_status"], "Bad Request");
}
