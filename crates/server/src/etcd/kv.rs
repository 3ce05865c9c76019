//! Keys and values.

use std::pin::Pin;

use futures_util::{Stream, StreamExt};
use tonic::{Request, Response, Status};

use crate::auth::Caller;
use crate::etcd::Services;
use crate::proto::etcdserverpb::kv_server::Kv;
use crate::proto::etcdserverpb::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, PutRequest,
    PutResponse, RangeRequest, RangeResponse, RangeStreamResponse, TxnRequest, TxnResponse,
};

/// Answers of a call that has many.
pub(super) type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Kv for Services {
    async fn range(
        &self,
        request: Request<RangeRequest>,
    ) -> Result<Response<RangeResponse>, Status> {
        let caller = Caller::of(&request);
        let answer = self.0.range(&caller, request.into_inner()).await?;
        Ok(Response::new(answer))
    }

    type RangeStreamStream = Answers<RangeStreamResponse>;

    async fn range_stream(
        &self,
        request: Request<RangeRequest>,
    ) -> Result<Response<Self::RangeStreamStream>, Status> {
        let caller = Caller::of(&request);
        let request = request.into_inner();
        let access = self.0.access(&caller).await?;
        access.read(&request.key, &request.range_end)?;
        let pages = self.0.store.range_stream(request).map(|page| {
            let range_response = Some(page?);
            Ok(RangeStreamResponse { range_response })
        });
        Ok(Response::new(self.0.answers(&caller, pages)))
    }

    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        let caller = Caller::of(&request);
        let answer = self.0.put(&caller, request.into_inner()).await?;
        Ok(Response::new(answer))
    }

    async fn delete_range(
        &self,
        request: Request<DeleteRangeRequest>,
    ) -> Result<Response<DeleteRangeResponse>, Status> {
        let caller = Caller::of(&request);
        let answer = self.0.delete_range(&caller, request.into_inner()).await?;
        Ok(Response::new(answer))
    }

    async fn txn(&self, request: Request<TxnRequest>) -> Result<Response<TxnResponse>, Status> {
        let caller = Caller::of(&request);
        let answer = self.0.txn(&caller, request.into_inner()).await?;
        Ok(Response::new(answer))
    }

    async fn compact(
        &self,
        request: Request<CompactionRequest>,
    ) -> Result<Response<CompactionResponse>, Status> {
        let access = self.0.access(&Caller::of(&request)).await?;
        access.admin()?;
        let answer = self.0.store.compact(request.into_inner()).await?;
        Ok(Response::new(answer))
    }
}
