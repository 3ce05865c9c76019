//! The JSON form: a path and a JSON text become a call of the gRPC services in this process, and
//! what comes back becomes JSON. There is no second implementation of anything, so the two forms
//! cannot differ.
//!
//! A body of a call with one request is read whole. Where a call takes many (a watch), the requests
//! stand one after the other in the body and are passed on as they arrive; the answers come as one
//! line and one chunk each.

mod codec;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod paths;

use std::convert::Infallible;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderName, HeaderValue};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body::{Body as _, Frame};
use http_body_util::{BodyExt, Full, StreamBody};
use prost_reflect::MethodDescriptor;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use tonic::{Code, Status};

use crate::grpc::calls::Calls;
use crate::grpc::deadline::GRPC_TIMEOUT;
use crate::grpc::frames::{Budget, framed, next_message, too_large};
use codec::{Codec, Requests};
use paths::Paths;

/// Requests of one body that wait for their call.
const REQUESTS_WAITING: usize = 16;

/// Metadata of a call given as a header begins with this.
const METADATA: &str = "grpc-metadata-";

/// Translates between JSON over HTTP and the gRPC services.
#[derive(Clone)]
pub(crate) struct Gateway {
    calls: Calls,
    paths: Paths,
    /// Bytes of a message.
    message_max: usize,
    budget: Arc<Budget>,
}

impl Gateway {
    pub(crate) fn new(calls: Calls, message_max: usize, budget: Arc<Budget>) -> Self {
        Self {
            budget,
            calls,
            paths: Paths::new(),
            message_max,
        }
    }

    /// Answers a request to a path of the gateway.
    pub(crate) async fn answer(&self, request: Request<Body>) -> Response<Body> {
        let Some(method) = self.paths.find(request.uri().path()).cloned() else {
            return plain(StatusCode::NOT_FOUND, "Not Found\n");
        };
        if request.method() == Method::OPTIONS {
            return Response::new(Body::empty());
        }
        if request.method() != Method::POST {
            return plain(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed\n");
        }
        let codec = Codec::new(&method);
        let (parts, body) = request.into_parts();
        let body = if method.is_client_streaming() {
            requests(codec.clone(), body)
        } else {
            match self.request(&codec, body).await {
                Ok(body) => body,
                Err(status) if method.is_server_streaming() => return stream_error(&status),
                Err(status) => return error(&status),
            }
        };
        let mut call = Request::post(path_of(&method))
            .body(body)
            .expect("the name of a method is a path");
        *call.extensions_mut() = parts.extensions;
        *call.headers_mut() = metadata(&parts.headers);
        let response = self.calls.answer(call).await;
        if method.is_server_streaming() {
            answers(codec, response).await
        } else {
            answer(&codec, response).await
        }
    }

    /// The one request of a body; what follows its JSON is ignored.
    async fn request(&self, codec: &Codec, body: Body) -> Result<Body, Status> {
        let max = self.message_max.saturating_mul(2);
        let announced = body.size_hint().upper();
        let announced = announced.map_or(max, |len| usize::try_from(len).unwrap_or(max));
        let _taken = self.budget.take(announced.min(max))?;
        let text = read(body, max).await?;
        let message = codec.first_request(&text)?;
        if message.len() > self.message_max {
            return Err(too_large(message.len(), self.message_max));
        }
        Ok(Body::new(Full::new(framed(&message))))
    }
}

/// All of a body, if it is not longer than JSON of a message can be.
async fn read(body: Body, max: usize) -> Result<Bytes, Status> {
    match http_body_util::Limited::new(body, max).collect().await {
        Ok(read) => Ok(read.to_bytes()),
        Err(_) => Err(Status::new(
            Code::ResourceExhausted,
            format!("the request is longer than {max} bytes, or its end did not come"),
        )),
    }
}

/// The requests of a body, passed on one by one.
fn requests(codec: Codec, mut body: Body) -> Body {
    let (sender, receiver) = mpsc::channel::<Result<Frame<Bytes>, Status>>(REQUESTS_WAITING);
    tokio::spawn(async move {
        let mut requests = Requests::new(codec);
        loop {
            let frame = tokio::select! {
                frame = body.frame() => frame,
                () = sender.closed() => return,
            };
            let Some(Ok(frame)) = frame else { break };
            let Ok(data) = frame.into_data() else {
                continue;
            };
            requests.add(&data);
            while let Some(next) = requests.next() {
                let failed = next.is_err();
                let next = next.map(|message| Frame::data(framed(&message)));
                if sender.send(next).await.is_err() || failed {
                    return;
                }
            }
        }
    });
    Body::new(StreamBody::new(ReceiverStream::new(receiver)))
}

fn path_of(method: &MethodDescriptor) -> String {
    format!("/{}/{}", method.parent_service().full_name(), method.name())
}

/// The headers that a call has as metadata: who calls, its time, and those meant for it.
fn metadata(headers: &HeaderMap) -> HeaderMap {
    let mut metadata = HeaderMap::new();
    metadata.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    for (name, value) in headers {
        let name = match name.as_str().strip_prefix(METADATA) {
            Some(name) => HeaderName::from_bytes(name.as_bytes()).ok(),
            None => Some(name.clone()).filter(|name| name == AUTHORIZATION || name == GRPC_TIMEOUT),
        };
        if let Some(name) = name {
            metadata.insert(name, value.clone());
        }
    }
    metadata
}

/// The one answer of a call.
async fn answer(codec: &Codec, response: Response<Body>) -> Response<Body> {
    let (parts, body) = response.into_parts();
    if let Some(status) = Status::from_header_map(&parts.headers)
        && status.code() != Code::Ok
    {
        return error(&status);
    }
    let collected = match body.collect().await {
        Ok(collected) => collected,
        Err(failed) => return error(&failed),
    };
    let status = collected.trailers().and_then(Status::from_header_map);
    if let Some(status) = status
        && status.code() != Code::Ok
    {
        return error(&status);
    }
    let mut buffer = BytesMut::from(collected.to_bytes());
    let text = next_message(&mut buffer)
        .ok_or_else(|| Status::internal("the call has ended without an answer"))
        .and_then(|message| codec.answer(&message));
    match text {
        Ok(text) => json(StatusCode::OK, text),
        Err(status) => error(&status),
    }
}

/// The answers of a call that has many, as lines. An error before the first is the status of HTTP
/// too.
async fn answers(codec: Codec, response: Response<Body>) -> Response<Body> {
    let (parts, body) = response.into_parts();
    if let Some(status) = Status::from_header_map(&parts.headers)
        && status.code() != Code::Ok
    {
        return stream_error(&status);
    }
    let lines = Lines {
        codec,
        body: Some(body),
        buffer: BytesMut::new(),
    };
    let mut lines = Box::pin(futures_util::stream::unfold(lines, |mut lines| async {
        Some((lines.next().await?, lines))
    }));
    let first = match lines.next().await {
        Some(Err(status)) => return stream_error(&status),
        first => first,
    };
    let lines = futures_util::stream::iter(first).chain(lines).map(|line| {
        let line = line.unwrap_or_else(|status| stream_error_text(&status));
        Ok::<_, Infallible>(Frame::data(line))
    });
    json_of(StatusCode::OK, Body::new(StreamBody::new(lines)))
}

/// The answers of a call as they come.
struct Lines {
    codec: Codec,
    /// `None` when the call has ended.
    body: Option<Body>,
    buffer: BytesMut,
}

impl Lines {
    async fn next(&mut self) -> Option<Result<Bytes, Status>> {
        loop {
            if let Some(message) = next_message(&mut self.buffer) {
                let line = self.codec.answer(&message);
                return Some(line.map(|text| codec::result_line(&text)));
            }
            let frame = match self.body.as_mut()?.frame().await {
                Some(Ok(frame)) => frame,
                Some(Err(status)) => {
                    self.body = None;
                    return Some(Err(status));
                }
                None => {
                    self.body = None;
                    return None;
                }
            };
            match frame.into_data() {
                Ok(data) => self.buffer.extend_from_slice(&data),
                Err(frame) => {
                    self.body = None;
                    let trailers = frame.into_trailers().unwrap_or_default();
                    let status = Status::from_header_map(&trailers)?;
                    return (status.code() != Code::Ok).then_some(Err(status));
                }
            }
        }
    }
}

fn json(status: StatusCode, text: impl Into<Bytes>) -> Response<Body> {
    json_of(status, Body::new(Full::new(text.into())))
}

fn json_of(status: StatusCode, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    response
}

fn plain(status: StatusCode, text: &'static str) -> Response<Body> {
    let mut response = Response::new(Body::new(Full::new(Bytes::from_static(text.as_bytes()))));
    *response.status_mut() = status;
    let text = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, text);
    response
}

/// The body of a refused call, with all three names that the versions of etcd have given its parts.
fn error(status: &Status) -> Response<Body> {
    let text = serde_json::json!({
        "error": status.message(),
        "code": status.code() as i32,
        "message": status.message(),
    });
    json(http_status(status.code()), text.to_string())
}

fn stream_error(status: &Status) -> Response<Body> {
    json(http_status(status.code()), stream_error_text(status))
}

/// What a call with many answers ends with.
fn stream_error_text(status: &Status) -> Bytes {
    let http = http_status(status.code());
    let text = serde_json::json!({"error": {
        "grpc_code": status.code() as i32,
        "http_code": http.as_u16(),
        "message": status.message(),
        "http_status": http.canonical_reason().unwrap_or_default(),
    }});
    Bytes::from(format!("{text}\n"))
}

/// The status of HTTP that stands for a code, as in the gateway of etcd 3.5.
fn http_status(code: Code) -> StatusCode {
    match code {
        Code::Ok => StatusCode::OK,
        Code::Cancelled => StatusCode::REQUEST_TIMEOUT,
        Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => {
            StatusCode::BAD_REQUEST
        }
        Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::AlreadyExists | Code::Aborted => StatusCode::CONFLICT,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::Unknown | Code::Internal | Code::DataLoss => StatusCode::INTERNAL_SERVER_ERROR,
    }
}
