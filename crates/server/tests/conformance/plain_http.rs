//! What the port answers beside the API.

use serde_json::json;
use steadfast_server::proto::etcdserverpb::PutRequest;

use crate::ask::put;
use crate::http::Connection;
use crate::target::{Target, Version, rows};

rows! {
    One:
    version_and_health_are_as_clients_read_them,
    other_methods_of_version_and_health_are_refused,
    live_and_ready_are_told,
    metrics_are_on_the_same_port,
    metrics_count_calls_by_their_code,
    a_page_of_another_site_may_ask,
    the_health_service_knows_the_server_alone,
    a_client_may_name_the_server_with_its_scheme;
}

async fn version_and_health_are_as_clients_read_them(target: Target) {
    let answer = target.http("GET", "/version", &[], "").await;
    assert_eq!(
        (answer.status, answer.header("Content-Type")),
        (200, Some("application/json"))
    );
    let version = answer.json();
    assert_eq!(version.as_object().unwrap().len(), 2, "{version}");
    for field in ["etcdserver", "etcdcluster"] {
        // Clients make a number of each part.
        let version = Version::parse(version[field].as_str().unwrap());
        assert!(version >= Version(3, 4, 0), "{version}");
    }
    assert_eq!(version["etcdserver"], target.version.to_string());

    let answer = target.http("GET", "/health", &[], "").await;
    assert_eq!(answer.status, 200);
    assert_eq!(
        answer.header("Content-Type"),
        Some("text/plain; charset=utf-8")
    );
    assert_eq!(answer.json()["health"], "true", "a string");
}

async fn other_methods_of_version_and_health_are_refused(target: Target) {
    for path in ["/version", "/health"] {
        for method in ["HEAD", "POST"] {
            let answer = target.http(method, path, &[], "").await;
            assert_eq!(answer.status, 405, "{method} {path}");
        }
    }
    assert_eq!(target.http("GET", "/nothing", &[], "").await.status, 404);
    let answer = target.http("GET", "/v3/kv/range", &[], "").await;
    assert!([405, 501].contains(&answer.status), "{}", answer.status);
}

async fn live_and_ready_are_told(target: Target) {
    for path in ["/livez", "/readyz"] {
        let answer = target.http("GET", path, &[], "").await;
        if target.version < Version(3, 5, 16) {
            assert_eq!(answer.status, 404);
        } else {
            assert_eq!((answer.status, answer.text().trim()), (200, "ok"));
        }
    }
}

async fn metrics_are_on_the_same_port(target: Target) {
    let answer = target.http("GET", "/metrics", &[], "").await;
    assert_eq!(answer.status, 200);
    let text = answer.text();
    for name in ["process_resident_memory_bytes", "etcd_server_has_leader"] {
        let line = text
            .lines()
            .find(|line| line.starts_with(&format!("{name} ")));
        let value = line.and_then(|line| line.split(' ').nth(1)).expect(name);
        assert!(value.parse::<f64>().unwrap() >= 1.0, "{name} {value}");
    }
}

async fn metrics_count_calls_by_their_code(target: Target) {
    target.put("a", "1").await;
    target.put("a", "2").await;
    let json = json!({"key": "YQ==", "value": "Mw=="});
    target.json("/v3/kv/put", json).await;
    let lost = PutRequest {
        lease: 4711,
        ..put("a", "4")
    };
    target.try_put(lost).await.unwrap_err();
    let text = target.http("GET", "/metrics", &[], "").await.text();
    for (code, count) in [("OK", 3), ("NotFound", 1)] {
        let labels = format!(
            "grpc_code=\"{code}\",grpc_method=\"Put\",grpc_service=\"etcdserverpb.KV\",grpc_type=\"unary\""
        );
        let name = format!("grpc_server_handled_total{{{labels}}} ");
        let value = text.lines().find_map(|line| line.strip_prefix(&name));
        assert_eq!(value.unwrap().parse::<u64>().unwrap(), count, "{name}");
    }
}

async fn a_page_of_another_site_may_ask(target: Target) {
    let head = [
        ("Origin", "http://page.test"),
        ("Access-Control-Request-Method", "POST"),
    ];
    let answer = target.http("OPTIONS", "/v3/kv/range", &head, "").await;
    assert_eq!(answer.status, 200);
    let head = [("Origin", "http://page.test")];
    let asked = target
        .http("POST", "/v3/kv/range", &head, r#"{"key":"YQ=="}"#)
        .await;
    for answer in [answer, asked] {
        assert_eq!(answer.header("Access-Control-Allow-Origin"), Some("*"));
        let headers = answer
            .header("Access-Control-Allow-Headers")
            .unwrap()
            .to_lowercase();
        assert!(headers.contains("authorization") && headers.contains("content-type"));
    }
}

/// The messages of grpc.health.v1 are one field each: the name, and the state (1 is SERVING).
async fn the_health_service_knows_the_server_alone(target: Target) {
    assert_eq!(check(&target, "").await.unwrap(), 1);
    assert_eq!(
        check(&target, "nothing").await.unwrap_err().code(),
        tonic::Code::NotFound
    );
}

#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

async fn check(target: &Target, service: &str) -> Result<i32, tonic::Status> {
    let mut client = tonic::client::Grpc::new(target.channel());
    client.ready().await.unwrap();
    let request = tonic::Request::new(HealthCheckRequest {
        service: service.to_owned(),
    });
    let path = "/grpc.health.v1.Health/Check".parse().unwrap();
    let codec = tonic_prost::ProstCodec::<HealthCheckRequest, HealthCheckResponse>::default();
    Ok(client
        .unary(request, path, codec)
        .await?
        .into_inner()
        .status)
}

/// As the Go client of 3.4 asks an endpoint that was given as a URL for its status.
async fn a_client_may_name_the_server_with_its_scheme(target: Target) {
    // http://127.0.0.1:2379 in the code of header compression.
    const NAME: [u8; 15] = [
        0x9d, 0x29, 0xae, 0xe3, 0x0c, 0x04, 0x4e, 0xae, 0x05, 0xc0, 0xb8, 0x6e, 0x09, 0x97, 0x5f,
    ];
    const SETTINGS: u8 = 4;
    const HEADERS: u8 = 1;
    const DATA: u8 = 0;
    let literal = |name: &[u8], value: &[u8]| {
        let length = u8::try_from(value.len()).unwrap();
        [name, &[length], value].concat()
    };
    let first = [
        &[0x83, 0x86][..], // POST, http
        &literal(&[0x44], b"/etcdserverpb.Maintenance/Status"),
        &[0x41, 0x8f],
        &NAME,
        &literal(&[0x5f], b"application/grpc"),
        &literal(b"\x40\x02te", b"trailers"),
    ];
    // The second request refers to what the first has put into the table.
    let second = [0x83, 0x86, 0xc1, 0xc0, 0xbf, 0xbe];
    let frame = |kind: u8, flags: u8, stream: u8, payload: &[u8]| {
        let length = u8::try_from(payload.len()).unwrap();
        [&[0, 0, length, kind, flags, 0, 0, 0, stream][..], payload].concat()
    };
    let mut connection = Connection::open(target.addresses[0]).await.unwrap();
    let start = [
        &b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..],
        &frame(SETTINGS, 0, 0, &[]),
    ]
    .concat();
    connection.send(&start).await.unwrap();
    for (stream, block) in [(1, first.concat()), (3, second.to_vec())] {
        let request = [
            frame(HEADERS, 4, stream, &block),
            frame(DATA, 1, stream, &[0; 5]),
        ]
        .concat();
        connection.send(&request).await.unwrap();
        let (kind, payload) = loop {
            let (head, payload) = connection.frame().await.unwrap();
            if head[8] == stream {
                break (head[3], payload);
            }
        };
        assert_eq!(kind, HEADERS, "stream {stream}: {payload:?}");
    }
}
