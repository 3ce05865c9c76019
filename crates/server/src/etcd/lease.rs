//! Leases.

use futures_util::{StreamExt, stream};
use tonic::{Request, Response, Status, Streaming};

use crate::auth::Caller;
use crate::etcd::kv::Answers;
use crate::etcd::{Node, Services};
use crate::proto::etcdserverpb::lease_server::Lease;
use crate::proto::etcdserverpb::{
    LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse,
    LeaseLeasesRequest, LeaseLeasesResponse, LeaseRevokeRequest, LeaseRevokeResponse,
    LeaseTimeToLiveRequest, LeaseTimeToLiveResponse,
};

#[tonic::async_trait]
impl Lease for Services {
    async fn lease_grant(
        &self,
        request: Request<LeaseGrantRequest>,
    ) -> Result<Response<LeaseGrantResponse>, Status> {
        let caller = Caller::of(&request);
        let answer = self.0.lease_grant(&caller, request.into_inner()).await?;
        Ok(Response::new(answer))
    }

    async fn lease_revoke(
        &self,
        request: Request<LeaseRevokeRequest>,
    ) -> Result<Response<LeaseRevokeResponse>, Status> {
        let access = self.0.access(&Caller::of(&request)).await?;
        let id = request.into_inner().id;
        access.anybody()?;
        self.0.check_lease(&access, id).await?;
        Ok(Response::new(self.0.store.lease_revoke(id).await?))
    }

    type LeaseKeepAliveStream = Answers<LeaseKeepAliveResponse>;

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<LeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        let caller = Caller::of(&request);
        if caller.wants_leader && self.0.leader().is_none() {
            return Err(crate::error::Error::NoLeader.into());
        }
        // One at a time: a client that sends faster than it reads waits.
        let state = Some((self.clone(), caller.clone(), request.into_inner()));
        let answers = stream::unfold(state, |state| async {
            let (services, caller, mut requests) = state?;
            let answer = match requests.message().await {
                Ok(Some(request)) => keep_alive(&services.0, &caller, request.id).await,
                Ok(None) => return None,
                Err(status) => Err(status),
            };
            let next = answer.is_ok().then_some((services, caller, requests));
            Some((answer, next))
        });
        Ok(Response::new(self.0.answers(&caller, answers.boxed())))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<LeaseTimeToLiveRequest>,
    ) -> Result<Response<LeaseTimeToLiveResponse>, Status> {
        let access = self.0.access(&Caller::of(&request)).await?;
        access.anybody()?;
        let request = request.into_inner();
        if access.is_checked() && access.admin().is_err() {
            for key in self.0.lease_keys(request.id).await? {
                access.read(&key, &[])?;
            }
        }
        Ok(Response::new(
            self.0.store.lease_time_to_live(request).await?,
        ))
    }

    async fn lease_leases(
        &self,
        request: Request<LeaseLeasesRequest>,
    ) -> Result<Response<LeaseLeasesResponse>, Status> {
        let access = self.0.access(&Caller::of(&request)).await?;
        access.anybody()?;
        Ok(Response::new(self.0.store.lease_leases().await?))
    }
}

async fn keep_alive(
    node: &Node,
    caller: &Caller,
    id: i64,
) -> Result<LeaseKeepAliveResponse, Status> {
    let access = node.auth.access(caller).await?;
    access.anybody()?;
    Ok(node.store.lease_keep_alive(id).await?)
}
