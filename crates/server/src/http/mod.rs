//! One port for everything: gRPC (HTTP/2, with or without TLS), the JSON form, and the plain paths
//! that tools and orchestrators ask.

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
pub(crate) mod listen;
mod plain;
mod scheme;
pub(crate) mod tls;

use std::sync::Arc;

use bytes::Bytes;
use http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    CONTENT_TYPE, HeaderValue,
};
use http::{Request, Response};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use tonic::body::Body;
use tonic::service::Routes;

use crate::etcd::Node;
use crate::grpc::calls::Calls;
use crate::grpc::frames::{self, Budget};
use crate::json::Gateway;

/// Bytes of a body that a plain path takes and throws away, so that the connection can go on.
const IGNORED_MAX: usize = 64 * 1024;

/// Answers each request of each connection.
#[derive(Clone)]
pub(crate) struct Front {
    calls: Calls,
    gateway: Arc<Gateway>,
    budget: Arc<Budget>,
    node: Arc<Node>,
}

impl Front {
    pub(crate) fn new(routes: Routes, node: Arc<Node>) -> Self {
        let budget = Budget::new(node.limits.receiving_bytes_max);
        let max = node.limits.message_bytes_max();
        let calls = Calls::new(routes);
        let gateway = Gateway::new(calls.clone(), max, Arc::clone(&budget));
        Self {
            calls,
            budget,
            gateway: Arc::new(gateway),
            node,
        }
    }

    pub(crate) async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        if is_grpc(&request) {
            let max = self.node.limits.message_bytes_max();
            let request = request.map(|body| frames::Limited::new(body, max, &self.budget));
            return self.calls.answer(request).await;
        }
        // Apart, so that a call of gRPC does not carry the room for all of this.
        Box::pin(self.answer_plain(request)).await
    }

    /// Answers what is no call of gRPC.
    async fn answer_plain(&self, request: Request<Incoming>) -> Response<Body> {
        let path = request.uri().path();
        if path.starts_with("/v3/") || path.starts_with("/v3beta/") {
            let mut response = self.gateway.answer(request.map(Body::new)).await;
            allow_all_origins(&mut response);
            return response;
        }
        let (parts, body) = request.into_parts();
        let ignored = Limited::new(body, IGNORED_MAX).collect().await;
        if ignored.is_err() {
            return plain::too_long();
        }
        self.plain(&parts).await
    }
}

fn is_grpc(request: &Request<Incoming>) -> bool {
    let content_type = request.headers().get(CONTENT_TYPE);
    content_type.is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

/// A page of any origin may call the JSON form: there are no cookies that it could use.
fn allow_all_origins(response: &mut Response<Body>) {
    let headers = response.headers_mut();
    let text = HeaderValue::from_static;
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, text("*"));
    let methods = text("POST, GET, OPTIONS, PUT, DELETE");
    headers.insert(ACCESS_CONTROL_ALLOW_METHODS, methods);
    let allowed = text("accept, content-type, authorization");
    headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, allowed);
}

fn full(text: impl Into<Bytes>) -> Body {
    Body::new(http_body_util::Full::new(text.into()))
}
