//! The operations on keys and leases, with the checks of who may do them. Services and what is built
//! on top of them, such as locks, call these and nothing below.

use crate::auth::Caller;
use crate::error::Error;
use crate::etcd::Node;
use crate::proto::etcdserverpb::{
    DeleteRangeRequest, DeleteRangeResponse, LeaseGrantRequest, LeaseGrantResponse,
    LeaseTimeToLiveRequest, PutRequest, PutResponse, RangeRequest, RangeResponse, TxnRequest,
    TxnResponse,
};

use crate::auth::Access;

impl Node {
    /// What the caller may do, if this node has a leader or the caller does not mind.
    pub(super) async fn access(&self, caller: &Caller) -> Result<Access, Error> {
        if caller.wants_leader && self.leader().is_none() {
            return Err(Error::NoLeader);
        }
        self.auth.access(caller).await
    }

    pub(super) async fn range(
        &self,
        caller: &Caller,
        request: RangeRequest,
    ) -> Result<RangeResponse, Error> {
        let access = self.access(caller).await?;
        access.read(&request.key, &request.range_end)?;
        if !access.is_checked() {
            return self.store.range(request).await;
        }
        let (key, range_end) = (request.key.clone(), request.range_end.clone());
        let answer = self.store.range(request).await?;
        if let Some(access) = self.auth.changed(&access, caller).await? {
            access.read(&key, &range_end)?;
        }
        Ok(answer)
    }

    pub(super) async fn put(
        &self,
        caller: &Caller,
        request: PutRequest,
    ) -> Result<PutResponse, Error> {
        let access = self.access(caller).await?;
        access.put(&request)?;
        self.check_lease(&access, request.lease).await?;
        self.store.put(request).await
    }

    pub(super) async fn delete_range(
        &self,
        caller: &Caller,
        request: DeleteRangeRequest,
    ) -> Result<DeleteRangeResponse, Error> {
        let access = self.access(caller).await?;
        access.delete_range(&request)?;
        self.store.delete_range(request).await
    }

    pub(super) async fn txn(
        &self,
        caller: &Caller,
        request: TxnRequest,
    ) -> Result<TxnResponse, Error> {
        let access = self.access(caller).await?;
        let mut leases = Vec::new();
        access.txn(&request, &mut leases)?;
        leases.sort_unstable();
        leases.dedup();
        for lease in leases {
            self.check_lease(&access, lease).await?;
        }
        self.store.txn(request).await
    }

    pub(super) async fn lease_grant(
        &self,
        caller: &Caller,
        request: LeaseGrantRequest,
    ) -> Result<LeaseGrantResponse, Error> {
        let access = self.access(caller).await?;
        access.anybody()?;
        self.store.lease_grant(request).await
    }

    /// Who puts a key under a lease, or ends it, must have the right to write all keys under it.
    pub(super) async fn check_lease(&self, access: &Access, id: i64) -> Result<(), Error> {
        if id == 0 || !access.is_checked() || access.admin().is_ok() {
            return Ok(());
        }
        access.anybody()?;
        for key in self.lease_keys(id).await? {
            access.write(&key, &[])?;
        }
        Ok(())
    }

    /// The keys under a lease; none, if there is no such lease.
    pub(super) async fn lease_keys(&self, id: i64) -> Result<Vec<bytes::Bytes>, Error> {
        let request = LeaseTimeToLiveRequest { id, keys: true };
        Ok(self.store.lease_time_to_live(request).await?.keys)
    }
}
