//! Three nodes as processes, and the clients of each.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use steadfast_server::proto::etcdserverpb::StatusRequest;
use steadfast_server::proto::etcdserverpb::kv_client::KvClient;
use steadfast_server::proto::etcdserverpb::lease_client::LeaseClient;
use steadfast_server::proto::etcdserverpb::maintenance_client::MaintenanceClient;
use steadfast_server::proto::etcdserverpb::watch_client::WatchClient;
use tempfile::TempDir;
use tokio::time::{Instant, sleep};
use tonic::transport::{Channel, Endpoint};

use crate::{PATIENCE, ports};

const NODES: usize = 3;

/// How often a condition is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// One life of a node. Dropping it kills it.
struct Life(Child);

impl Drop for Life {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// The processes.
pub(crate) struct Nodes {
    dir: TempDir,
    peers: Vec<String>,
    clients: Vec<String>,
    lives: Vec<Option<Life>>,
}

impl Nodes {
    /// Starts all, and waits until they serve clients.
    pub(crate) async fn start() -> Self {
        let mut addresses = ports::free_addresses(2 * NODES).expect("free ports");
        let clients = addresses.split_off(NODES);
        let mut nodes = Self {
            dir: TempDir::new().expect("a directory"),
            peers: addresses,
            clients,
            lives: (0..NODES).map(|_| None).collect(),
        };
        (0..NODES).for_each(|at| nodes.begin(at));
        for at in 0..NODES {
            nodes.serves(at).await;
        }
        nodes
    }

    fn log(&self, at: usize) -> PathBuf {
        self.dir.path().join(format!("n{}.log", at + 1))
    }

    /// Starts a node, without waiting for it.
    pub(crate) fn begin(&mut self, at: usize) {
        let list = self.peers.iter().zip(1..);
        let list: Vec<_> = list.map(|(peer, n)| format!("n{n}={peer}")).collect();
        let name = format!("n{}", at + 1);
        let mut options = File::options();
        let log = options.create(true).append(true).open(self.log(at));
        let log = log.expect("a log");
        let child = Command::new(env!("CARGO_BIN_EXE_steadfast"))
            .args(["start", "--group", "g", "--node", &name])
            .arg("--data-dir")
            .arg(self.dir.path().join(&name))
            .args(["--listen", &self.peers[at]])
            .args(["--client-listen", &self.clients[at]])
            .args(["--bootstrap", &list.join(",")])
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log"))
            .stderr(log)
            .spawn()
            .expect("the program starts");
        self.lives[at] = Some(Life(child));
    }

    /// SIGKILL, and the end of the process.
    pub(crate) fn kill(&mut self, at: usize) {
        self.lives[at] = None;
    }

    /// Waits until a node answers clients and knows a master.
    pub(crate) async fn serves(&self, at: usize) {
        let deadline = Instant::now() + PATIENCE;
        while self.leader(at).await.is_none_or(|(_, leader)| leader == 0) {
            let is_late = Instant::now() >= deadline;
            assert!(!is_late, "n{} does not serve: {}", at + 1, self.tail(at));
            sleep(LOOK).await;
        }
    }

    /// The last lines that a node has printed.
    fn tail(&self, at: usize) -> String {
        let text = fs::read_to_string(self.log(at)).unwrap_or_default();
        let mut lines: Vec<_> = text.lines().rev().take(20).collect();
        lines.reverse();
        lines.join("\n")
    }

    /// The ids of a node and of its master, if it answers.
    async fn leader(&self, at: usize) -> Option<(u64, u64)> {
        let channel = endpoint(&self.clients[at]).connect_lazy();
        let mut client = MaintenanceClient::new(channel);
        let answer = client.status(StatusRequest {}).await.ok()?.into_inner();
        Some((answer.header?.member_id, answer.leader))
    }

    /// The node that is master.
    pub(crate) async fn master(&self) -> usize {
        let deadline = Instant::now() + PATIENCE;
        loop {
            for at in 0..NODES {
                let found = self.leader(at).await;
                if found.is_some_and(|(own, leader)| own == leader) {
                    return at;
                }
            }
            assert!(Instant::now() < deadline, "there is no master");
            sleep(LOOK).await;
        }
    }

    /// A client of all nodes, that begins with this one.
    pub(crate) fn client(&self, at: usize) -> Client {
        let channels = self.clients.iter().map(|to| endpoint(to).connect_lazy());
        Client {
            channels: channels.collect(),
            at: at % NODES,
        }
    }

    /// Resident memory of each node that runs, in MiB.
    pub(crate) fn memory(&self) -> Vec<u64> {
        let lives = self.lives.iter().flatten();
        let memory = lives.map(|life| {
            let path = format!("/proc/{}/status", life.0.id());
            let status = fs::read_to_string(path).unwrap_or_default();
            let line = status.lines().find(|line| line.starts_with("VmRSS:"));
            let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
            kib.unwrap_or_default() / 1024
        });
        memory.collect()
    }
}

fn endpoint(address: &str) -> Endpoint {
    let endpoint = Channel::from_shared(format!("http://{address}")).expect("an address");
    endpoint.connect_timeout(Duration::from_secs(2))
}

/// The connections of one resource, one to each node: a kube-apiserver has a client for each of them.
#[derive(Clone)]
pub(crate) struct Client {
    channels: Vec<Channel>,
    at: usize,
}

impl Client {
    /// The same connections, beginning with another node.
    pub(crate) fn beginning_at(&self, at: usize) -> Self {
        Self {
            at: at % self.channels.len(),
            ..self.clone()
        }
    }

    /// Goes to the next node.
    pub(crate) fn go_on(&mut self) {
        self.at = (self.at + 1) % self.channels.len();
    }

    fn channel(&self) -> Channel {
        self.channels[self.at].clone()
    }

    pub(crate) fn kv(&self) -> KvClient<Channel> {
        KvClient::new(self.channel())
    }

    pub(crate) fn watch(&self) -> WatchClient<Channel> {
        WatchClient::new(self.channel())
    }

    pub(crate) fn lease(&self) -> LeaseClient<Channel> {
        LeaseClient::new(self.channel())
    }
}
