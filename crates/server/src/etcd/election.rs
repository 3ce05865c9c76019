//! Elections: the first key of a queue is the leader's, and its value what the leader says. The
//! `rev` of a leader's key is its fencing token, as that of a lock.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream;
use tonic::{Request, Response, Status};

use crate::auth::Caller;
use crate::error::Error;
use crate::etcd::kv::Answers;
use crate::etcd::session::{first_of, made_at, op, prefix, refused};
use crate::etcd::{Node, Services};
use crate::proto::etcdserverpb::request_op::Request as Op;
use crate::proto::etcdserverpb::{
    PutRequest, RangeResponse, ResponseHeader, TxnRequest, WatchCreateRequest,
};
use crate::proto::mvccpb::KeyValue;
use crate::proto::mvccpb::event::EventType;
use crate::proto::v3electionpb::election_server::Election;
use crate::proto::v3electionpb::{
    CampaignRequest, CampaignResponse, LeaderKey, LeaderRequest, LeaderResponse, ProclaimRequest,
    ProclaimResponse, ResignRequest, ResignResponse,
};

const NO_KEY: &str = "\"leader\" field must be provided";
const NOT_LEADER: &str = "election: not leader";
const NO_LEADER: &str = "election: no leader";

#[tonic::async_trait]
impl Election for Services {
    async fn campaign(
        &self,
        request: Request<CampaignRequest>,
    ) -> Result<Response<CampaignResponse>, Status> {
        let caller = Caller::of(&request);
        let CampaignRequest { name, lease, value } = request.into_inner();
        let (node, prefix) = (&self.0, prefix(&name));
        let claim = node
            .stand_in_line(&caller, &prefix, lease, value.clone())
            .await;
        let claim = claim.map_err(refused)?;
        let place = claim.place();
        let mut header = place.header;
        if place
            .found
            .as_ref()
            .is_some_and(|found| found.value != value)
        {
            let key = (&place.key, place.revision, place.lease);
            header = node.proclaim(&caller, key, value).await?;
        }
        let turn = node.wait_for_turn(&caller, &prefix, place.revision).await;
        turn.map_err(refused)?;
        let place = claim.keep();
        let leader = Some(LeaderKey {
            name,
            key: place.key,
            rev: place.revision,
            lease: place.lease,
        });
        Ok(Response::new(CampaignResponse { header, leader }))
    }

    async fn proclaim(
        &self,
        request: Request<ProclaimRequest>,
    ) -> Result<Response<ProclaimResponse>, Status> {
        let caller = Caller::of(&request);
        let ProclaimRequest { leader, value } = request.into_inner();
        let leader = leader.ok_or_else(|| Status::unknown(NO_KEY))?;
        let key = (&leader.key, leader.rev, leader.lease);
        let header = self.0.proclaim(&caller, key, value).await?;
        Ok(Response::new(ProclaimResponse { header }))
    }

    async fn leader(
        &self,
        request: Request<LeaderRequest>,
    ) -> Result<Response<LeaderResponse>, Status> {
        let caller = Caller::of(&request);
        let prefix = prefix(&request.into_inner().name);
        let first = self.0.range(&caller, first_of(&prefix)).await;
        let RangeResponse { header, kvs, .. } = first.map_err(refused)?;
        let kv = kvs.into_iter().next();
        let kv = Some(kv.ok_or_else(|| Status::unknown(NO_LEADER))?);
        Ok(Response::new(LeaderResponse { header, kv }))
    }

    type ObserveStream = Answers<LeaderResponse>;

    async fn observe(
        &self,
        request: Request<LeaderRequest>,
    ) -> Result<Response<Self::ObserveStream>, Status> {
        let caller = Caller::of(&request);
        let observer = Observer {
            node: Arc::clone(&self.0),
            caller: caller.clone(),
            prefix: prefix(&request.into_inner().name),
            shown: None,
        };
        let answers = stream::unfold(Some(observer), |observer| async {
            let mut observer = observer?;
            let next = observer.next().await.map_err(refused);
            let observer = next.is_ok().then_some(observer);
            Some((next, observer))
        });
        Ok(Response::new(self.0.answers(&caller, answers)))
    }

    async fn resign(
        &self,
        request: Request<ResignRequest>,
    ) -> Result<Response<ResignResponse>, Status> {
        let caller = Caller::of(&request);
        let leader = request.into_inner().leader;
        let leader = leader.ok_or_else(|| Status::unknown(NO_KEY))?;
        let given_up = self.0.give_up(&caller, &leader.key, leader.rev).await;
        let header = given_up.map_err(refused)?.header;
        Ok(Response::new(ResignResponse { header }))
    }
}

impl Node {
    /// Sets the value of a leader's key, given with its revision and lease.
    async fn proclaim(
        &self,
        caller: &Caller,
        (key, revision, lease): (&Bytes, i64, i64),
        value: Bytes,
    ) -> Result<Option<ResponseHeader>, Status> {
        let put = PutRequest {
            key: key.clone(),
            value,
            lease,
            ..PutRequest::default()
        };
        let request = TxnRequest {
            compare: vec![made_at(key, revision)],
            success: vec![op(Op::RequestPut(put))],
            failure: Vec::new(),
        };
        let answer = self.txn(caller, request).await.map_err(refused)?;
        if !answer.succeeded {
            return Err(Status::unknown(NOT_LEADER));
        }
        Ok(answer.header)
    }
}

/// Follows who leads, and what the leader says.
struct Observer {
    node: Arc<Node>,
    caller: Caller,
    prefix: Bytes,
    /// The leader's key as it was shown last, and the revision as of which it was.
    shown: Option<(KeyValue, i64)>,
}

impl Observer {
    async fn next(&mut self) -> Result<LeaderResponse, Error> {
        loop {
            if let Some((kv, revision)) = self.shown.take() {
                let create = WatchCreateRequest {
                    key: kv.key.clone(),
                    start_revision: revision + 1,
                    ..WatchCreateRequest::default()
                };
                let changed = self.node.changed(&self.caller, create).await?;
                if let Some((EventType::Put, changed)) = changed
                    && changed.create_revision == kv.create_revision
                {
                    let header = ResponseHeader {
                        revision: changed.mod_revision,
                        ..self.node.header()
                    };
                    return Ok(self.show(header, changed));
                }
            }
            let first = self
                .node
                .range(&self.caller, first_of(&self.prefix))
                .await?;
            let header = first.header.unwrap_or_default();
            if let Some(kv) = first.kvs.into_iter().next() {
                return Ok(self.show(header, kv));
            }
            let range = first_of(&self.prefix);
            let create = WatchCreateRequest {
                key: range.key,
                range_end: range.range_end,
                start_revision: header.revision + 1,
                ..WatchCreateRequest::default()
            };
            self.node.changed(&self.caller, create).await?;
        }
    }

    fn show(&mut self, header: ResponseHeader, kv: KeyValue) -> LeaderResponse {
        self.shown = Some((kv.clone(), header.revision));
        let header = Some(header);
        LeaderResponse {
            header,
            kv: Some(kv),
        }
    }
}
