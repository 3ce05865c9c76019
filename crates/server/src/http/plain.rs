//! The plain paths: version, health and metrics.

use std::fmt::Write as _;

use http::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use http::request::Parts;
use http::{Method, Response, StatusCode};
use steadfast::ReplicatedEnvironment;
use tonic::body::Body;

use crate::etcd::{CLUSTER_VERSION, Node, VERSION};
use crate::grpc::calls::Calls;
use crate::http::{Front, full};

const JSON: &str = "application/json";
const TEXT: &str = "text/plain; charset=utf-8";

impl Front {
    /// Answers a request to a path that is not of the JSON form.
    pub(super) async fn plain(&self, request: &Parts) -> Response<Body> {
        let path = request.uri.path();
        let known = ["/version", "/health", "/livez", "/readyz", "/metrics"];
        if !known.contains(&path) {
            return answer(StatusCode::NOT_FOUND, TEXT, "404 page not found\n");
        }
        if request.method != Method::GET {
            let text = "Method Not Allowed\n";
            let mut response = answer(StatusCode::METHOD_NOT_ALLOWED, TEXT, text);
            let allowed = HeaderValue::from_static("GET");
            response.headers_mut().insert(ALLOW, allowed);
            return response;
        }
        let query = request.uri.query().unwrap_or_default();
        match path {
            "/version" => version(),
            "/health" => health(&self.node, query).await,
            "/livez" => ok_or(self.node.env.health().is_live(), "the node has stopped"),
            "/readyz" => ready(&self.node.env),
            _ => metrics(&self.node, &self.calls),
        }
    }
}

fn answer(
    status: StatusCode,
    content_type: &'static str,
    text: impl Into<String>,
) -> Response<Body> {
    let mut response = Response::new(full(text.into()));
    *response.status_mut() = status;
    let content_type = HeaderValue::from_static(content_type);
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}

/// The answer to a body that a plain path does not take.
pub(super) fn too_long() -> Response<Body> {
    answer(
        StatusCode::PAYLOAD_TOO_LARGE,
        TEXT,
        "the body is too long\n",
    )
}

/// The versions of etcd that clients go by. This server's own is in the status of a member.
fn version() -> Response<Body> {
    let text = serde_json::json!({
        "etcdserver": VERSION,
        "etcdcluster": CLUSTER_VERSION,
    });
    answer(StatusCode::OK, JSON, text.to_string())
}

/// Whether a client is served here: a read gets through.
async fn health(node: &Node, query: &str) -> Response<Body> {
    let serializable = query.split('&').any(|part| part == "serializable=true");
    let reason = if !serializable && node.leader().is_none() {
        Some("RAFT NO LEADER")
    } else if !query.contains("exclude=NOSPACE") && node.has_no_space() {
        Some("ALARM NOSPACE")
    } else if node.probe(serializable).await.is_err() {
        Some("RANGE ERROR")
    } else {
        None
    };
    let status = match reason {
        None => StatusCode::OK,
        Some(_) => StatusCode::SERVICE_UNAVAILABLE,
    };
    let healthy = if reason.is_none() { "true" } else { "false" };
    let reason = reason.unwrap_or_default();
    let text = format!("{{\"health\":\"{healthy}\",\"reason\":\"{reason}\"}}");
    answer(status, TEXT, text)
}

fn ready(env: &ReplicatedEnvironment) -> Response<Body> {
    let health = env.health();
    let waits = health.waiting_for.clone().unwrap_or_default();
    ok_or(health.is_ready(), &waits)
}

fn ok_or(fine: bool, otherwise: &str) -> Response<Body> {
    if fine {
        return answer(StatusCode::OK, TEXT, "ok\n");
    }
    let status = StatusCode::SERVICE_UNAVAILABLE;
    answer(status, TEXT, format!("{otherwise}\n"))
}

/// What `etcdctl check` reads, where the node stands, and how its calls have ended.
fn metrics(node: &Node, calls: &Calls) -> Response<Body> {
    let mut text = String::new();
    let status = node.env.status();
    let mut gauge = |name: &str, help: &str, value: String| {
        let kind = "gauge";
        // Writing to a string does not fail.
        let written = writeln!(
            text,
            "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}"
        );
        debug_assert!(written.is_ok());
    };
    if let Some(bytes) = resident_bytes() {
        let help = "Resident memory size in bytes.";
        gauge("process_resident_memory_bytes", help, bytes.to_string());
    }
    let flag = |value: bool| u8::from(value).to_string();
    let (has_leader, is_leader) = (node.leader().is_some(), node.is_leader());
    gauge(
        "etcd_server_has_leader",
        "Whether a leader is known.",
        flag(has_leader),
    );
    gauge(
        "etcd_server_is_leader",
        "Whether this node leads.",
        flag(is_leader),
    );
    let revision = node.header().revision;
    gauge(
        "etcd_debugging_mvcc_current_revision",
        "The newest revision.",
        revision.to_string(),
    );
    let used = status
        .disk_total_bytes
        .saturating_sub(status.disk_free_bytes);
    gauge(
        "steadfast_disk_used_bytes",
        "Bytes in use on the volume of the data.",
        used.to_string(),
    );
    let written = calls.write_metrics(&mut text);
    debug_assert!(written.is_ok());
    answer(StatusCode::OK, "text/plain; version=0.0.4", text)
}

/// The memory of this process, where the system says it.
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}
