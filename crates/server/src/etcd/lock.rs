//! Locks with names. Who holds one has the first key of its queue.
//!
//! A lock that is held by a lease can be lost without its holder noticing: the lease ends while the
//! holder sleeps. What it guards should refuse stale holders, by the **fencing token**: the create
//! revision of the key in the answer, which is higher for each next holder. Keys of this server can
//! be guarded by it directly, with a transaction that compares `CREATE` of the lock's key with the
//! token.

use bytes::Bytes;
use tonic::{Request, Response, Status};

use crate::auth::Caller;
use crate::etcd::Services;
use crate::etcd::session::{prefix, refused};
use crate::proto::etcdserverpb::{DeleteRangeRequest, RangeRequest};
use crate::proto::v3lockpb::lock_server::Lock;
use crate::proto::v3lockpb::{LockRequest, LockResponse, UnlockRequest, UnlockResponse};

#[tonic::async_trait]
impl Lock for Services {
    async fn lock(&self, request: Request<LockRequest>) -> Result<Response<LockResponse>, Status> {
        let caller = Caller::of(&request);
        let LockRequest { name, lease } = request.into_inner();
        let (node, prefix) = (&self.0, prefix(&name));
        let claim = node
            .stand_in_line(&caller, &prefix, lease, Bytes::new())
            .await;
        let claim = claim.map_err(refused)?;
        let turn = node
            .wait_for_turn(&caller, &prefix, claim.place().revision)
            .await;
        turn.map_err(refused)?;
        // The lease may have ended meanwhile.
        let own = RangeRequest {
            key: claim.place().key.clone(),
            ..RangeRequest::default()
        };
        let own = node.range(&caller, own).await.map_err(refused)?;
        let is_held = |made: i64| own.kvs.iter().any(|kv| kv.create_revision == made);
        if !is_held(claim.place().revision) {
            return Err(Status::unknown("mutex: session is expired"));
        }
        let key = claim.keep().key;
        let header = own.header;
        Ok(Response::new(LockResponse { header, key }))
    }

    async fn unlock(
        &self,
        request: Request<UnlockRequest>,
    ) -> Result<Response<UnlockResponse>, Status> {
        let caller = Caller::of(&request);
        let delete = DeleteRangeRequest {
            key: request.into_inner().key,
            ..DeleteRangeRequest::default()
        };
        let deleted = self
            .0
            .delete_range(&caller, delete)
            .await
            .map_err(refused)?;
        let header = deleted.header;
        Ok(Response::new(UnlockResponse { header }))
    }
}
