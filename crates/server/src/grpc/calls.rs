//! Calls of the gRPC services, from whichever form they come, and how many have ended how.

use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::{Frame, SizeHint};
use prost_reflect::{DescriptorPool, MethodDescriptor, ServiceDescriptor};
use tonic::body::Body;
use tonic::service::Routes;
use tonic::{Code, Status};

use crate::grpc::deadline;
use crate::proto::DESCRIPTORS;

/// The codes of gRPC by their numbers, with the names that metrics of gRPC have for them.
const CODES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];

/// The services, with a count of what they have answered. Calls of methods that do not exist are not
/// counted, so there are no more counters than methods and codes.
#[derive(Clone)]
pub(crate) struct Calls {
    routes: Routes,
    methods: Arc<BTreeMap<String, Arc<Method>>>,
}

struct Method {
    /// `grpc_method="Range",grpc_service="etcdserverpb.KV",grpc_type="unary"`
    labels: String,
    /// By number of the code.
    ended: [AtomicU64; CODES.len()],
}

impl Calls {
    pub(crate) fn new(routes: Routes) -> Self {
        let pool = DescriptorPool::decode(DESCRIPTORS).expect("the descriptors were just compiled");
        let services: Vec<_> = pool.services().collect();
        let methods = services.iter().flat_map(ServiceDescriptor::methods);
        let methods = methods.map(|method| {
            let path = format!("/{}/{}", method.parent_service().full_name(), method.name());
            (path, Arc::new(Method::of(&method)))
        });
        Self {
            routes,
            methods: Arc::new(methods.collect()),
        }
    }

    /// The answer of the service whose path the request has.
    pub(crate) async fn answer<B>(&self, request: Request<B>) -> Response<Body>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<tonic::codegen::StdError>,
    {
        let method = self.methods.get(request.uri().path()).cloned();
        let mut ending = Ending(method);
        let response = deadline::call(self.routes.clone(), request).await;
        if let Some(code) = code_in(response.headers()) {
            ending.with(code);
        }
        response.map(|body| Body::new(Counted { body, ending }))
    }

    /// Writes how many calls have ended, in the form of Prometheus.
    ///
    /// # Errors
    /// Those of `text`.
    pub(crate) fn write_metrics(&self, text: &mut impl Write) -> fmt::Result {
        let name = "grpc_server_handled_total";
        writeln!(text, "# HELP {name} Calls that have ended, by their code.")?;
        writeln!(text, "# TYPE {name} counter")?;
        for Method { labels, ended } in self.methods.values().map(Arc::as_ref) {
            for (code, count) in CODES.iter().zip(ended) {
                let count = count.load(Ordering::Relaxed);
                if count > 0 {
                    writeln!(text, "{name}{{grpc_code=\"{code}\",{labels}}} {count}")?;
                }
            }
        }
        Ok(())
    }
}

impl Method {
    fn of(method: &MethodDescriptor) -> Self {
        let kind = match (method.is_client_streaming(), method.is_server_streaming()) {
            (false, false) => "unary",
            (false, true) => "server_stream",
            (true, false) => "client_stream",
            (true, true) => "bidi_stream",
        };
        let service = method.parent_service();
        Self {
            labels: format!(
                "grpc_method=\"{}\",grpc_service=\"{}\",grpc_type=\"{kind}\"",
                method.name(),
                service.full_name()
            ),
            ended: Default::default(),
        }
    }
}

/// A call that has not ended yet; it is counted once. Dropped before, its client has gone.
struct Ending(Option<Arc<Method>>);

impl Ending {
    fn with(&mut self, code: Code) {
        if let Some(method) = self.0.take() {
            method.ended[code as usize].fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        self.with(Code::Cancelled);
    }
}

fn code_in(headers: &HeaderMap) -> Option<Code> {
    let code = headers.get(Status::GRPC_STATUS)?;
    Some(Code::from_bytes(code.as_bytes()))
}

/// An answer that is counted when its last part is taken.
struct Counted {
    body: Body,
    ending: Ending,
}

impl http_body::Body for Counted {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        match &frame {
            Some(Ok(frame)) => {
                if let Some(code) = frame.trailers_ref().and_then(code_in) {
                    self.ending.with(code);
                }
            }
            Some(Err(status)) => self.ending.with(status.code()),
            None => {}
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
