//! The services of the etcd v3 API over the store: who may call them, and what is answered.

mod auth;
mod calls;
mod cluster;
mod election;
mod kv;
mod lease;
mod lock;
mod maintenance;
mod session;
mod streams;
mod watch;

use std::path::PathBuf;
use std::sync::Arc;

use steadfast::ReplicatedEnvironment;
use steadfast::ids::NodeId;
use tokio::sync::watch as tokio_watch;
use tonic::service::Routes;
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::{HealthReporter, HealthService};

use crate::auth::Auth;
use crate::config::Limits;
use crate::error::Error;
use crate::proto::etcdserverpb::auth_server::AuthServer;
use crate::proto::etcdserverpb::cluster_server::ClusterServer;
use crate::proto::etcdserverpb::kv_server::KvServer;
use crate::proto::etcdserverpb::lease_server::LeaseServer;
use crate::proto::etcdserverpb::maintenance_server::MaintenanceServer;
use crate::proto::etcdserverpb::watch_server::WatchServer;
use crate::proto::etcdserverpb::{RangeRequest, ResponseHeader};
use crate::proto::v3electionpb::election_server::ElectionServer;
use crate::proto::v3lockpb::lock_server::LockServer;
use crate::stop::stopped;
use crate::store::Store;

/// The version of etcd that clients go by: they read digits and dots.
pub(crate) const VERSION: &str = "3.5.30";
/// The version that every member has at least.
pub(crate) const CLUSTER_VERSION: &str = "3.5.0";

/// What all services work on.
pub(crate) struct Node {
    pub(crate) env: ReplicatedEnvironment,
    pub(crate) store: Store,
    pub(crate) auth: Auth,
    pub(crate) limits: Limits,
    pub(crate) data_dir: Option<PathBuf>,
    /// Whether the server is closing.
    pub(crate) stopping: tokio_watch::Receiver<bool>,
}

/// The services of a node; each of those that [`routes`] makes is this.
#[derive(Clone)]
struct Services(Arc<Node>);

impl Node {
    /// The node that leads, if one is known here.
    pub(crate) fn leader(&self) -> Option<NodeId> {
        let state = self.env.state();
        let master = state.master.filter(|_| state.role.is_known());
        master.map(|master| master.id)
    }

    pub(crate) fn is_leader(&self) -> bool {
        self.env.state().role == steadfast::Role::Master
    }

    pub(crate) fn header(&self) -> ResponseHeader {
        self.store.header()
    }

    /// Returns when the server closes.
    pub(crate) async fn stopped(&self) {
        stopped(&mut self.stopping.clone()).await;
    }

    /// Whether this node has no room for more writes.
    pub(crate) fn has_no_space(&self) -> bool {
        self.env.status().read_only.is_some()
    }

    /// Reads a key that nobody has, as those who ask for health do.
    pub(crate) async fn probe(&self, serializable: bool) -> Result<(), Error> {
        let request = RangeRequest {
            key: "health".into(),
            serializable,
            count_only: true,
            ..RangeRequest::default()
        };
        self.store.range(request).await.map(|_| ())
    }
}

/// All services, by the paths of gRPC.
pub(crate) fn routes(node: &Arc<Node>) -> Routes {
    let services = || Services(Arc::clone(node));
    let max = node.limits.message_bytes_max();
    let reporter = HealthReporter::new();
    let health = HealthService::from_health_reporter(reporter);
    Routes::new(KvServer::new(services()).max_decoding_message_size(max))
        .add_service(WatchServer::new(services()).max_decoding_message_size(max))
        .add_service(LeaseServer::new(services()).max_decoding_message_size(max))
        .add_service(ClusterServer::new(services()).max_decoding_message_size(max))
        .add_service(MaintenanceServer::new(services()).max_decoding_message_size(max))
        .add_service(AuthServer::new(services()).max_decoding_message_size(max))
        .add_service(LockServer::new(services()).max_decoding_message_size(max))
        .add_service(ElectionServer::new(services()).max_decoding_message_size(max))
        .add_service(HealthServer::new(health))
        .prepare()
}
