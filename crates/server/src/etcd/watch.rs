//! Watches: the store has them; here the requests are checked that make them.

use futures_util::{StreamExt, stream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status, Streaming};

use crate::auth::Caller;
use crate::error::Error;
use crate::etcd::kv::Answers;
use crate::etcd::{Node, Services};
use crate::proto::etcdserverpb::watch_request::RequestUnion;
use crate::proto::etcdserverpb::watch_server::Watch;
use crate::proto::etcdserverpb::{WatchCreateRequest, WatchRequest, WatchResponse};

/// Refusals of a stream that wait to be sent. Further requests of it wait until they are.
const REFUSALS_WAITING: usize = 16;

/// The id in the answer to a watch that was not made.
const NO_WATCH: i64 = -1;

#[tonic::async_trait]
impl Watch for Services {
    type WatchStream = Answers<WatchResponse>;

    async fn watch(
        &self,
        request: Request<Streaming<WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let caller = Caller::of(&request);
        if caller.wants_leader && self.0.leader().is_none() {
            return Err(Error::NoLeader.into());
        }
        let (requests, answers) = self.0.store.watches();
        let (refuse, refused) = mpsc::channel(REFUSALS_WAITING);
        let pass = Pass {
            node: self.clone(),
            caller: caller.clone(),
            requests,
            refuse,
        };
        tokio::spawn(pass.on(request.into_inner()));
        let answers = ReceiverStream::new(answers)
            .map(Some)
            .chain(stream::iter([None]));
        let answers = answers.map(|answer| answer.map(Ok));
        let refused = ReceiverStream::new(refused).map(Some);
        // Ends with the store's.
        let answers = stream::select(answers, refused);
        let answers = answers.take_while(|answer| std::future::ready(answer.is_some()));
        let answers = answers.filter_map(std::future::ready);
        Ok(Response::new(self.0.answers(&caller, answers)))
    }
}

/// Passes the requests of one stream on.
struct Pass {
    node: Services,
    caller: Caller,
    requests: mpsc::Sender<WatchRequest>,
    refuse: mpsc::Sender<Result<WatchResponse, Status>>,
}

impl Pass {
    /// Until the client is gone. One that sends no more requests may still read.
    async fn on(self, mut incoming: Streaming<WatchRequest>) {
        loop {
            let next = tokio::select! {
                next = incoming.message() => next,
                () = self.requests.closed() => return,
            };
            let request = match next {
                Ok(Some(request)) => request,
                Ok(None) => return self.requests.closed().await,
                Err(status) => {
                    // It may be gone, or have sent what is no request: then the stream ends with it.
                    self.refuse.send(Err(status)).await.ok();
                    return;
                }
            };
            if let Some(RequestUnion::CreateRequest(create)) = &request.request_union
                && let Err(error) = may_watch(&self.node.0, &self.caller, create).await
            {
                let refusal = refusal(&self.node.0, error);
                if self.refuse.send(Ok(refusal)).await.is_err() {
                    return;
                }
                continue;
            }
            if self.requests.send(request).await.is_err() {
                return;
            }
        }
    }
}

async fn may_watch(node: &Node, caller: &Caller, create: &WatchCreateRequest) -> Result<(), Error> {
    let access = node.auth.access(caller).await?;
    // The store's words: no key is the first one.
    let key = if create.key.is_empty() {
        &[0]
    } else {
        &*create.key
    };
    access.read(key, &create.range_end)
}

/// What a client gets that may not watch this.
fn refusal(node: &Node, error: Error) -> WatchResponse {
    let code = match error.code() {
        Code::InvalidArgument => "InvalidArgument",
        Code::Unauthenticated => "Unauthenticated",
        Code::PermissionDenied => "PermissionDenied",
        _ => "Unavailable",
    };
    WatchResponse {
        header: Some(node.header()),
        watch_id: NO_WATCH,
        created: true,
        canceled: true,
        cancel_reason: format!("rpc error: code = {code} desc = {error}"),
        ..WatchResponse::default()
    }
}
