//! What operators ask of a node.

use std::path::Path;
use std::time::Duration;

use steadfast::{AdminCommand, AdminError, NodeStatus, NodeType};
use tonic::{Code, Request, Response, Status};

use crate::auth::Caller;
use crate::error::Error;
use crate::etcd::kv::Answers;
use crate::etcd::{Node, Services, VERSION};
use crate::proto::etcdserverpb::alarm_request::AlarmAction;
use crate::proto::etcdserverpb::maintenance_server::Maintenance;
use crate::proto::etcdserverpb::{
    AlarmMember, AlarmRequest, AlarmResponse, AlarmType, DefragmentRequest, DefragmentResponse,
    DowngradeRequest, DowngradeResponse, HashKvRequest, HashKvResponse, HashRequest, HashResponse,
    MoveLeaderRequest, MoveLeaderResponse, SnapshotRequest, SnapshotResponse, StatusRequest,
    StatusResponse,
};

/// How long a node may take to catch up before it leads.
const MOVE_WITHIN: Duration = Duration::from_secs(5);

/// Files and directories that are looked at for the size of the data.
const FILES_MAX: usize = 100_000;

#[tonic::async_trait]
impl Maintenance for Services {
    async fn alarm(
        &self,
        request: Request<AlarmRequest>,
    ) -> Result<Response<AlarmResponse>, Status> {
        let access = self.0.access(&Caller::of(&request)).await?;
        let request = request.into_inner();
        match request.action() {
            AlarmAction::Get => access.anybody()?,
            // An alarm ends by itself, with what has raised it.
            AlarmAction::Deactivate => access.admin()?,
            AlarmAction::Activate => {
                access.admin()?;
                let text = "alarms are raised by the server alone, when its disk is nearly full";
                return Err(Status::unimplemented(text));
            }
        }
        let alarms = if self.0.has_no_space() {
            vec![self.0.no_space()]
        } else {
            Vec::new()
        };
        let header = Some(self.0.header());
        Ok(Response::new(AlarmResponse { header, alarms }))
    }

    async fn status(
        &self,
        _request: Request<StatusRequest>,
    ) -> Result<Response<StatusResponse>, Status> {
        Ok(Response::new(self.0.status().await))
    }

    async fn defragment(
        &self,
        request: Request<DefragmentRequest>,
    ) -> Result<Response<DefragmentResponse>, Status> {
        // There is nothing to do: space comes back by itself.
        self.0.operator(&Caller::of(&request)).await?;
        Ok(Response::new(DefragmentResponse { header: None }))
    }

    async fn hash(&self, request: Request<HashRequest>) -> Result<Response<HashResponse>, Status> {
        self.0.operator(&Caller::of(&request)).await?;
        Ok(Response::new(self.0.store.hash().await?))
    }

    async fn hash_kv(
        &self,
        request: Request<HashKvRequest>,
    ) -> Result<Response<HashKvResponse>, Status> {
        self.0.operator(&Caller::of(&request)).await?;
        let revision = request.into_inner().revision;
        Ok(Response::new(self.0.store.hash_kv(revision).await?))
    }

    type SnapshotStream = Answers<SnapshotResponse>;

    async fn snapshot(
        &self,
        request: Request<SnapshotRequest>,
    ) -> Result<Response<Self::SnapshotStream>, Status> {
        self.0.operator(&Caller::of(&request)).await?;
        let text = "not by this API: use `steadfast backup create`, and `steadfast backup restore` for what it makes";
        Err(Status::unimplemented(text))
    }

    async fn move_leader(
        &self,
        request: Request<MoveLeaderRequest>,
    ) -> Result<Response<MoveLeaderResponse>, Status> {
        self.0.operator(&Caller::of(&request)).await?;
        self.0.move_leader(request.into_inner().target_id).await?;
        Ok(Response::new(MoveLeaderResponse { header: None }))
    }

    async fn downgrade(
        &self,
        request: Request<DowngradeRequest>,
    ) -> Result<Response<DowngradeResponse>, Status> {
        self.0.operator(&Caller::of(&request)).await?;
        let text = "there is no other version of etcd to go to: replace the program and start the node again";
        Err(Status::unimplemented(text))
    }
}

impl Node {
    /// Whether the caller is root, refused in the words that operators' tools know.
    async fn operator(&self, caller: &Caller) -> Result<(), Status> {
        let refused = |error: Error| {
            let what = match error {
                Error::PermissionDenied => "auth: permission denied",
                Error::InvalidAuthToken => "auth: invalid auth token",
                Error::UserNotFound => "auth: user not found",
                Error::UserEmpty => "auth: user name is empty",
                _ => return Status::from(error),
            };
            Status::new(Code::Unknown, what)
        };
        self.access(caller)
            .await
            .map_err(refused)?
            .admin()
            .map_err(refused)
    }

    /// The alarm of a disk that is nearly full.
    fn no_space(&self) -> AlarmMember {
        AlarmMember {
            member_id: self.header().member_id,
            alarm: AlarmType::Nospace.into(),
        }
    }

    async fn status(&self) -> StatusResponse {
        let header = self.header();
        let status = self.env.status();
        let leader = self.leader();
        let mut errors = Vec::new();
        if leader.is_none() {
            errors.push(Error::NoLeader.to_string());
        }
        if self.has_no_space() {
            errors.push(Error::NoSpace.to_string());
        }
        let own = status
            .members
            .iter()
            .find(|member| member.node.id == status.node.id);
        let bytes = self.data_bytes(&status).await;
        StatusResponse {
            version: VERSION.to_owned(),
            db_size: bytes,
            db_size_in_use: bytes,
            leader: leader.map_or(0, |leader| self.store.member_id(leader)),
            raft_index: status.persisted.map_or(0, |position| position.0),
            raft_term: header.raft_term,
            raft_applied_index: status.applied.map_or(0, |position| position.0),
            errors,
            is_learner: own.is_some_and(|own| own.node_type == NodeType::Secondary),
            // What is behind the version of etcd that clients go by.
            storage_version: concat!("steadfast-", env!("CARGO_PKG_VERSION")).to_owned(),
            header: Some(header),
            ..StatusResponse::default()
        }
    }

    /// The size of the node's files, in bytes; of all that is on its volume, where they are not
    /// known. Never 0: there are tools that divide by it.
    async fn data_bytes(&self, status: &NodeStatus) -> i64 {
        let bytes = match self.data_dir.clone() {
            Some(dir) => {
                let counted = tokio::task::spawn_blocking(move || bytes_in(&dir)).await;
                counted.unwrap_or_default()
            }
            None => status
                .disk_total_bytes
                .saturating_sub(status.disk_free_bytes),
        };
        i64::try_from(bytes).unwrap_or(i64::MAX).max(1)
    }

    async fn move_leader(&self, target: u64) -> Result<(), Status> {
        if !self.is_leader() {
            return Err(Error::NotLeader.into());
        }
        let members = self.env.status().members;
        let of = |id| {
            members
                .iter()
                .find(|member| self.store.member_id(member.node.id) == id)
        };
        let target = of(target).filter(|target| target.node_type == NodeType::Electable);
        let target = target.ok_or(Error::BadLeaderTransferee)?;
        if self.leader() == Some(target.node.id) {
            return Ok(());
        }
        let command = AdminCommand::Transfer {
            to: vec![target.node.name.clone()],
            within: MOVE_WITHIN,
        };
        match self.env.administer_async(&command).await {
            Ok(_) => Ok(()),
            Err(error @ AdminError::Refused { .. }) => {
                Err(Status::failed_precondition(format!("etcdserver: {error}")))
            }
            Err(error) => Err(Status::unavailable(format!("etcdserver: {error}"))),
        }
    }
}

/// Bytes of the files in a directory and in those below it. What vanishes meanwhile does not count.
fn bytes_in(dir: &Path) -> u64 {
    let (mut dirs, mut bytes, mut seen) = (vec![dir.to_owned()], 0, 0);
    while let Some(dir) = dirs.pop() {
        let Ok(entries) = std::fs::read_dir(dir) else {
            continue;
        };
        for entry in entries.flatten() {
            seen += 1;
            if seen > FILES_MAX {
                return bytes;
            }
            match entry.metadata() {
                Ok(found) if found.is_dir() => dirs.push(entry.path()),
                Ok(found) => bytes += found.len(),
                Err(_) => {}
            }
        }
    }
    bytes
}
