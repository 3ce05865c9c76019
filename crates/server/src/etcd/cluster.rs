//! The members of the group. They are changed by the verbs of `steadfast`, which know what a change
//! needs; here they are shown.

use steadfast::{MemberStatus, NodeType};
use tonic::{Request, Response, Status};

use crate::auth::Caller;
use crate::config::CLIENT_URLS;
use crate::etcd::{Node, Services};
use crate::proto::etcdserverpb::cluster_server::Cluster;
use crate::proto::etcdserverpb::{
    Member, MemberAddRequest, MemberAddResponse, MemberListRequest, MemberListResponse,
    MemberPromoteRequest, MemberPromoteResponse, MemberRemoveRequest, MemberRemoveResponse,
    MemberUpdateRequest, MemberUpdateResponse, ResponseHeader,
};

#[tonic::async_trait]
impl Cluster for Services {
    async fn member_list(
        &self,
        request: Request<MemberListRequest>,
    ) -> Result<Response<MemberListResponse>, Status> {
        // Whoever may connect may know where: clients ask before they say who they are.
        if request.into_inner().linearizable {
            self.0.store.linearize().await?;
        }
        let header = ResponseHeader {
            revision: 0,
            ..self.0.header()
        };
        Ok(Response::new(MemberListResponse {
            header: Some(header),
            members: self.0.members(),
        }))
    }

    async fn member_add(
        &self,
        request: Request<MemberAddRequest>,
    ) -> Result<Response<MemberAddResponse>, Status> {
        let verb = "`steadfast token create`, and start the new node with the token";
        Err(self.0.by_verb(&Caller::of(&request), verb).await)
    }

    async fn member_remove(
        &self,
        request: Request<MemberRemoveRequest>,
    ) -> Result<Response<MemberRemoveResponse>, Status> {
        let verb = "`steadfast node remove`";
        Err(self.0.by_verb(&Caller::of(&request), verb).await)
    }

    async fn member_update(
        &self,
        request: Request<MemberUpdateRequest>,
    ) -> Result<Response<MemberUpdateResponse>, Status> {
        let verb = "`steadfast node address`";
        Err(self.0.by_verb(&Caller::of(&request), verb).await)
    }

    async fn member_promote(
        &self,
        request: Request<MemberPromoteRequest>,
    ) -> Result<Response<MemberPromoteResponse>, Status> {
        let verb = "`steadfast node promote`";
        Err(self.0.by_verb(&Caller::of(&request), verb).await)
    }
}

impl Node {
    /// The members that this node knows.
    fn members(&self) -> Vec<Member> {
        let status = self.env.status();
        let scheme = if status.certificate_ends_ms.is_some() {
            "https"
        } else {
            "http"
        };
        let member = |member: &MemberStatus| {
            let node = &member.node;
            let urls = node.metadata.get(CLIENT_URLS).map_or("", String::as_str);
            let urls = urls.split(',').filter(|url| !url.is_empty());
            Member {
                id: self.store.member_id(node.id),
                name: node.name.clone(),
                peer_ur_ls: vec![format!("{scheme}://{}", node.address)],
                client_ur_ls: urls.map(str::to_owned).collect(),
                is_learner: member.node_type == NodeType::Secondary,
            }
        };
        status.members.iter().map(member).collect()
    }

    /// The answer to what is done by a verb of the program.
    async fn by_verb(&self, caller: &Caller, verb: &str) -> Status {
        let admin = match self.access(caller).await {
            Ok(access) => access.admin(),
            Err(error) => Err(error),
        };
        match admin {
            Ok(()) => Status::unimplemented(format!("not by this API: use {verb}")),
            Err(error) => error.into(),
        }
    }
}
