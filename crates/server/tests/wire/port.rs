//! One port for gRPC, JSON and the plain paths.

use std::net::SocketAddr;
use std::time::Duration;

use steadfast::InMemoryGroup;
use steadfast_server::proto::etcdserverpb::PutRequest;
use steadfast_server::{BeyondLoopback, ServeError, ServerConfig, serve};
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use tokio::time::Instant;

use crate::support::{Answer, Connection, PATIENCE, Servers, http};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_connection_takes_heads_and_bodies_apart_and_a_body_of_get() {
    let servers = Servers::start(1).await;
    let mut connection = Connection::to(servers.address(0)).await;
    for (method, path) in [
        ("GET", "/version"),
        ("POST", "/v3/cluster/member/list"),
        ("GET", "/health"),
        ("POST", "/v3/kv/range"),
    ] {
        let body = if method == "GET" {
            "{}"
        } else {
            r#"{"key":"YQ=="}"#
        };
        connection.send_head(method, path, "", body.len()).await;
        // So that they are segments of their own, as some clients send them.
        tokio::time::sleep(Duration::from_millis(40)).await;
        connection.send(body).await;
        let answer = connection.answer(false).await;
        assert_eq!(answer.status, 200, "{method} {path}: {answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_version_is_of_digits_and_that_of_the_server_is_in_its_status() {
    let servers = Servers::start(1).await;
    let version = http(servers.address(0), "GET", "/version", "", "")
        .await
        .json();
    for name in ["etcdserver", "etcdcluster"] {
        let version = version[name].as_str().expect("a version");
        let parts: Vec<u32> = version
            .split('.')
            .map(|part| part.parse().expect("a number"))
            .collect();
        assert!(parts[..2] == [3, 5], "{version}");
    }
    let (_, status) = servers.post("/v3/maintenance/status", "{}").await;
    assert_eq!(status["version"], version["etcdserver"]);
    let own = concat!("steadfast-", env!("CARGO_PKG_VERSION"));
    assert_eq!(status["storageVersion"], own);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plain_paths_take_get_alone_and_unknown_ones_are_not_found() {
    let servers = Servers::start(1).await;
    let address = servers.address(0);
    for path in ["/health", "/version"] {
        for method in ["HEAD", "POST"] {
            assert_eq!(
                http(address, method, path, "", "").await.status,
                405,
                "{method} {path}"
            );
        }
    }
    for path in ["/", "/v3alpha/kv/range", "/v3/kv/nothing", "/v2/keys"] {
        assert_eq!(
            http(address, "POST", path, "", "{}").await.status,
            404,
            "{path}"
        );
    }
    assert_eq!(
        http(address, "GET", "/v3/kv/range", "", "").await.status,
        405
    );
    assert_eq!(
        http(address, "POST", "/v3beta/kv/range", "", r#"{"key":"YQ=="}"#)
            .await
            .status,
        200
    );
    for path in ["/livez", "/readyz"] {
        assert_eq!(
            http(address, "GET", path, "", "").await.status,
            200,
            "{path}"
        );
    }
    let metrics = http(address, "GET", "/metrics", "", "").await.body;
    assert!(
        metrics
            .lines()
            .any(|line| line.starts_with("process_resident_memory_bytes "))
    );
}

/// Asks until the status is this one.
async fn health_until(address: SocketAddr, status: u16) -> Answer {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let health = http(address, "GET", "/health", "", "").await;
        if health.status == status {
            return health;
        }
        assert!(Instant::now() < deadline, "still {health:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_is_a_text_that_says_true_and_false_without_a_majority() {
    let mut servers = Servers::start(3).await;
    let address = servers.address(0);
    let health = health_until(address, 200).await;
    assert!(
        health
            .header("content-type")
            .is_some_and(|kind| kind.starts_with("text/plain"))
    );
    assert_eq!(health.json()["health"], "true");

    for node in ["n2", "n3"] {
        servers.group.cut_off(node).expect("it runs");
    }
    let health = health_until(address, 503).await;
    assert_eq!(health.json()["health"], "false");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_of_other_origins_may_call_the_json_form() {
    let servers = Servers::start(1).await;
    let address = servers.address(0);
    let asked = http(address, "OPTIONS", "/v3/kv/range", "", "").await;
    assert_eq!(asked.status, 200);
    assert_eq!(asked.header("access-control-allow-origin"), Some("*"));
    let called = http(address, "POST", "/v3/kv/range", "", r#"{"key":"YQ=="}"#).await;
    assert_eq!(called.header("access-control-allow-origin"), Some("*"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_grpc_puts_json_reads_on_the_same_port() {
    let servers = Servers::start(1).await;
    let put = PutRequest {
        key: "foo".into(),
        value: "bar".into(),
        ..PutRequest::default()
    };
    servers.kv().await.put(put).await.expect("put");
    let (status, answer) = servers.post("/v3/kv/range", r#"{"key":"Zm9v"}"#).await;
    assert_eq!(status, 200);
    assert_eq!(answer["kvs"][0]["value"], "YmFy");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_health_service_of_grpc_knows_the_whole_server_alone() {
    let servers = Servers::start(1).await;
    let mut client = HealthClient::new(servers.channel(0).await);
    let check = |service: &str| HealthCheckRequest {
        service: service.to_owned(),
    };
    let whole = client
        .check(check(""))
        .await
        .expect("an answer")
        .into_inner();
    assert_eq!(whole.status(), ServingStatus::Serving);
    let other = client
        .check(check("etcdserverpb.KV"))
        .await
        .expect_err("unknown");
    assert_eq!(other.code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_node_tells_the_addresses_for_clients_of_all() {
    let servers = Servers::start(3).await;
    let mut expected: Vec<_> = (0..3)
        .map(|index| format!("http://{}", servers.address(index)))
        .collect();
    expected.sort();
    let deadline = Instant::now() + PATIENCE;
    for index in 0..3 {
        loop {
            let path = "/v3/cluster/member/list";
            let list = http(servers.address(index), "POST", path, "", "{}")
                .await
                .json();
            assert!(list["header"].get("revision").is_none(), "{list}");
            let members = list["members"].as_array().expect("members");
            let urls = members
                .iter()
                .filter_map(|member| member["clientURLs"][0].as_str());
            let mut urls: Vec<_> = urls.map(str::to_owned).collect();
            urls.sort();
            if urls == expected {
                break;
            }
            assert!(Instant::now() < deadline, "node {index} tells {list}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_in_use_and_plaintext_to_other_machines_are_refused() {
    let group = InMemoryGroup::new_async(1).await.expect("a group");
    let env = group.node("n1").expect("it runs").clone();
    let first = serve(env.clone(), ServerConfig::new("127.0.0.1:0"))
        .await
        .expect("a server");
    let taken = first.local_address().to_string();
    let refused = serve(env.clone(), ServerConfig::new(taken.clone()))
        .await
        .err()
        .expect("in use");
    assert!(matches!(refused, ServeError::Listen { ref address, .. } if *address == taken));

    let mut everywhere = ServerConfig::new("0.0.0.0:0");
    let refused = serve(env.clone(), everywhere.clone())
        .await
        .err()
        .expect("no TLS");
    assert!(matches!(refused, ServeError::Plaintext { .. }), "{refused}");
    first.close().await;
    everywhere.beyond_loopback = BeyondLoopback::Plaintext;
    let allowed = serve(env, everywhere).await.expect("it was allowed");
    allowed.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_closes_ends_its_streams_and_takes_no_more_connections() {
    let mut servers = Servers::start(1).await;
    let address = servers.address(0);
    let mut connection = Connection::to(address).await;
    let body = r#"{"create_request":{"key":"YQ=="}}"#;
    connection
        .send_head("POST", "/v3/watch", "", body.len())
        .await;
    connection.send(body).await;
    assert_eq!(connection.head().await.0, 200);
    assert!(
        connection
            .chunk()
            .await
            .expect("created")
            .contains("created")
    );
    let closing = tokio::time::timeout(Duration::from_secs(20), servers.servers.remove(0).close());
    let (closed, last) = tokio::join!(closing, connection.chunk());
    closed.expect("it is closed in time");
    if let Some(last) = last {
        assert!(last.contains("server stopped"), "{last}");
    }
    assert!(tokio::net::TcpStream::connect(address).await.is_err());
}
