//! What the port answers beside the API.

use crate::target::{Target, Version, rows};

rows! {
    One:
    version_and_health_are_as_clients_read_them,
    other_methods_of_version_and_health_are_refused,
    live_and_ready_are_told,
    metrics_are_on_the_same_port,
    a_page_of_another_site_may_ask,
    the_health_service_knows_the_server_alone;
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
