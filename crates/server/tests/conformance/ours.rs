//! Our own server: nodes in this process, each with a server.

use std::net::SocketAddr;
use std::time::Duration;

use steadfast::InMemoryGroup;
use steadfast_server::proto::etcdserverpb::MemberListRequest;
use steadfast_server::proto::etcdserverpb::cluster_client::ClusterClient;
use steadfast_server::{Server, ServerConfig, serve};
use tokio::time::{Instant, sleep};
use tonic::transport::Endpoint;

use crate::target::{PATIENCE, Size};

/// How many nodes a group has whose replicas matter.
const NODES: usize = 3;

/// The nodes and servers of a row, in the order of its addresses.
pub(crate) struct Group {
    names: Vec<String>,
    servers: Vec<Option<Server>>,
    nodes: InMemoryGroup,
}

impl Group {
    /// A new group. The master comes first, alone where a row needs no more, or last.
    pub(crate) async fn start(master_first: bool, size: Size) -> (Self, Vec<SocketAddr>) {
        let is_alone = master_first && size != Size::Three;
        let count = if is_alone { 1 } else { NODES };
        let nodes = InMemoryGroup::new_async(count).await.unwrap();
        let master = nodes
            .wait_master_async(PATIENCE)
            .await
            .unwrap()
            .status()
            .node
            .name;
        let mut names: Vec<_> = nodes.nodes().map(|env| env.status().node.name).collect();
        names.sort_by_key(|name| (*name == master) != master_first);
        let mut servers = Vec::new();
        let mut addresses = Vec::new();
        for name in &names {
            let env = nodes.node(name).unwrap().clone();
            let mut config = ServerConfig::new("127.0.0.1:0");
            if size == Size::Progress {
                config.store.progress_interval = Duration::from_secs(1);
            }
            let server = serve(env, config).await.unwrap();
            addresses.push(server.local_address());
            servers.push(Some(server));
        }
        for address in &addresses {
            knows_all(*address, count).await;
        }
        (
            Self {
                names,
                servers,
                nodes,
            },
            addresses,
        )
    }

    /// Ends a node and its server at once.
    pub(crate) async fn kill(&mut self, member: usize) {
        drop(self.servers[member].take());
        self.nodes.crash_async(&self.names[member]).await.unwrap();
    }
}

/// Waits until a server can tell the addresses of all: each is published once it listens.
async fn knows_all(address: SocketAddr, count: usize) {
    let deadline = Instant::now() + PATIENCE;
    let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
    let mut client = ClusterClient::new(endpoint.connect_lazy());
    loop {
        let request = MemberListRequest { linearizable: true };
        let members = client
            .member_list(request)
            .await
            .unwrap()
            .into_inner()
            .members;
        if members
            .iter()
            .filter(|member| !member.client_ur_ls.is_empty())
            .count()
            == count
        {
            return;
        }
        assert!(Instant::now() < deadline, "not in time: {members:?}");
        sleep(Duration::from_millis(5)).await;
    }
}
