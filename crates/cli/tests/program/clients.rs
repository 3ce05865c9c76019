//! What speaks the etcd v3 API: a group of ours, a real etcd, `etcdctl`, and a client of our own for
//! machines that have neither.

use std::env;
use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use steadfast_server::proto::authpb::Permission;
use steadfast_server::proto::etcdserverpb::auth_client::AuthClient;
use steadfast_server::proto::etcdserverpb::kv_client::KvClient;
use steadfast_server::proto::etcdserverpb::lease_client::LeaseClient;
use steadfast_server::proto::etcdserverpb::maintenance_client::MaintenanceClient;
use steadfast_server::proto::etcdserverpb::{
    AuthEnableRequest, AuthRoleAddRequest, AuthRoleGrantPermissionRequest, AuthUserAddRequest,
    AuthUserGrantRoleRequest, CompactionRequest, DeleteRangeRequest, LeaseGrantRequest,
    LeaseKeepAliveRequest, LeaseLeasesRequest, LeaseRevokeRequest, LeaseTimeToLiveRequest,
    LeaseTimeToLiveResponse, PutRequest, RangeRequest, RangeResponse, StatusRequest, TxnRequest,
    TxnResponse,
};
use steadfast_server::proto::mvccpb::KeyValue;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Response, Status};

use super::{Group, Node, PATIENCE, free_port};

/// An unmodified `etcdctl`. `STEADFAST_ETCDCTL` names another than the one in `PATH`.
pub(crate) struct Etcdctl {
    program: OsString,
    pub(crate) endpoints: String,
}

impl Etcdctl {
    /// The program, if this machine has one.
    pub(crate) fn find() -> Option<OsString> {
        let program = env::var_os("STEADFAST_ETCDCTL").unwrap_or_else(|| "etcdctl".into());
        let found = Command::new(&program).arg("version").output().is_ok();
        if !found {
            println!("skipped: no etcdctl in STEADFAST_ETCDCTL or PATH");
        }
        found.then_some(program)
    }

    /// One that asks these endpoints, if this machine has it.
    pub(crate) fn at(endpoints: &str) -> Option<Self> {
        Some(Self {
            program: Self::find()?,
            endpoints: endpoints.to_owned(),
        })
    }

    pub(crate) fn with_endpoints(&self, endpoints: &str) -> Self {
        Self {
            program: self.program.clone(),
            endpoints: endpoints.to_owned(),
        }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", &self.endpoints])
            .args(arguments);
        command
    }

    /// What it prints, and whether it succeeded.
    pub(crate) fn try_run(&self, arguments: &[&str], input: &str) -> (bool, String) {
        let mut command = self.command(arguments);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().expect("it runs");
        let mut stdin = child.stdin.take().expect("piped");
        stdin.write_all(input.as_bytes()).expect("it reads");
        drop(stdin);
        let output = child.wait_with_output().expect("it ends");
        let text = [output.stdout, output.stderr].concat();
        (
            output.status.success(),
            String::from_utf8_lossy(&text).into_owned(),
        )
    }

    /// What it prints; it has to succeed.
    pub(crate) fn run(&self, arguments: &[&str]) -> String {
        let (succeeded, text) = self.try_run(arguments, "");
        assert!(succeeded, "{arguments:?}: {text}");
        text
    }

    /// Runs it until it succeeds.
    pub(crate) fn run_at_last(&self, arguments: &[&str]) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (succeeded, text) = self.try_run(arguments, "");
            if succeeded {
                return text;
            }
            assert!(Instant::now() < deadline, "{arguments:?}: {text}");
        }
    }

    /// A subcommand that goes on.
    pub(crate) fn start(&self, arguments: &[&str]) -> Node {
        Node::spawn(&mut self.command(arguments))
    }

    pub(crate) fn field(&self, arguments: &[&str], at: usize) -> String {
        self.run(arguments)
            .split(' ')
            .nth(at)
            .expect("a field")
            .trim()
            .to_owned()
    }

    /// The id and the leader of each member, by the order of endpoints.
    pub(crate) fn leaders(&self) -> Vec<(u64, u64)> {
        let text = self.run_at_last(&["endpoint", "status", "-w", "json"]);
        // Without a leader there is no such field.
        let number = |part: &str, name: &str| {
            let (_, rest) = part.split_once(name).unwrap_or_default();
            let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
            digits.parse().unwrap_or_default()
        };
        let parts = text.split("\"Endpoint\"").skip(1);
        parts
            .map(|part| (number(part, "\"member_id\":"), number(part, "\"leader\":")))
            .collect()
    }
}

/// A group of three processes that serve clients.
pub(crate) struct Serving {
    pub(crate) group: Group,
    pub(crate) endpoints: Vec<String>,
    more: Vec<String>,
}

impl Serving {
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    /// The same, with more arguments for each node.
    pub(crate) fn start_with(more: &[String]) -> Self {
        Self::of(Group::unstarted(), more)
    }

    /// One whose nodes elect another master soon, also where they have only had no time to run.
    pub(crate) fn start_hasty() -> Self {
        let group = Group {
            numbers: &[],
            ..Group::unstarted()
        };
        Self::of(group, &[])
    }

    fn of(group: Group, more: &[String]) -> Self {
        let mut serving = Self {
            group,
            endpoints: vec!["127.0.0.1:0".to_owned(); 3],
            more: more.to_vec(),
        };
        for at in 0..3 {
            serving.restart(at);
        }
        for (node, endpoint) in serving
            .group
            .nodes
            .iter()
            .flatten()
            .zip(&mut serving.endpoints)
        {
            let line = node.wait_for(&["serves clients on"]);
            let (_, address) = line.split_once(" on ").expect("it is named");
            address.trim().clone_into(endpoint);
        }
        serving
    }

    /// Its endpoints, by commas.
    pub(crate) fn all(&self) -> String {
        self.endpoints.join(",")
    }

    pub(crate) fn kill(&mut self, at: usize) {
        self.group.nodes[at] = None;
    }

    /// Starts a node, on the address that it had.
    pub(crate) fn restart(&mut self, at: usize) {
        let mut arguments = self.group.arguments(at);
        arguments.extend(["--client-listen".to_owned(), self.endpoints[at].clone()]);
        arguments.extend(self.more.iter().cloned());
        self.group.nodes[at] = Some(Node::start(&arguments));
    }

    /// Which node is the master.
    pub(crate) fn master(&self) -> usize {
        let deadline = Instant::now() + PATIENCE;
        loop {
            for (at, endpoint) in self.endpoints.iter().enumerate() {
                if Client::to(endpoint).leads() {
                    return at;
                }
            }
            assert!(Instant::now() < deadline, "one leads");
        }
    }
}

/// A real etcd of one member, which ends with the test. `STEADFAST_ETCD` names another than the one in
/// `PATH`.
pub(crate) struct Etcd {
    keeper: Option<Child>,
    pub(crate) endpoint: String,
    dir: TempDir,
    peer: String,
}

/// Runs the program until the pipe on standard input ends, also when the test is killed.
const KEEPER: &str = r#""$@" & child=$!; read _; kill -9 $child; wait $child 2>/dev/null"#;

impl Etcd {
    /// One with more arguments; `None` if this machine has none.
    pub(crate) fn start(more: &[&str]) -> Option<Self> {
        let found = Command::new(Self::program()).arg("--version").output();
        if !found.is_ok_and(|output| output.status.success()) {
            println!("skipped: no etcd in STEADFAST_ETCD or PATH");
            return None;
        }
        let mut etcd = Self {
            keeper: None,
            endpoint: format!("127.0.0.1:{}", free_port()),
            dir: TempDir::new().expect("a directory"),
            peer: format!("http://127.0.0.1:{}", free_port()),
        };
        etcd.restart(more);
        Some(etcd)
    }

    fn program() -> PathBuf {
        env::var_os("STEADFAST_ETCD").map_or_else(|| PathBuf::from("etcd"), PathBuf::from)
    }

    pub(crate) fn kill(&mut self) {
        if let Some(mut keeper) = self.keeper.take() {
            drop(keeper.stdin.take());
            keeper.wait().expect("it ends");
        }
    }

    /// Starts it, on the address and the data that it had.
    pub(crate) fn restart(&mut self, more: &[&str]) {
        let url = format!("http://{}", self.endpoint);
        let mut command = Command::new("sh");
        command.args(["-c", KEEPER, "sh"]).arg(Self::program());
        command.arg("--data-dir").arg(self.dir.path().join("data"));
        for flag in ["--listen-client-urls", "--advertise-client-urls"] {
            command.args([flag, &url]);
        }
        for flag in ["--listen-peer-urls", "--initial-advertise-peer-urls"] {
            command.args([flag, &self.peer]);
        }
        command.args(["--initial-cluster", &format!("default={}", self.peer)]);
        command.args(["--unsafe-no-fsync", "--heartbeat-interval", "10"]);
        command.args(["--election-timeout", "100"]).args(more);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        self.keeper = Some(command.spawn().expect("it starts"));
        let client = Client::to(&self.endpoint);
        let deadline = Instant::now() + PATIENCE;
        while client
            .try_range(RangeRequest {
                key: "k".into(),
                ..Default::default()
            })
            .is_err()
        {
            assert!(Instant::now() < deadline, "etcd comes up");
        }
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A client of the API that waits for each answer.
pub(crate) struct Client {
    runtime: Runtime,
    channel: Channel,
}

impl Client {
    pub(crate) fn to(endpoint: &str) -> Self {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = builder.enable_all().build().expect("a runtime");
        let endpoint = Endpoint::from_shared(format!("http://{endpoint}")).expect("an address");
        let channel = {
            let _entered = runtime.enter();
            endpoint.timeout(PATIENCE).connect_lazy()
        };
        Self { runtime, channel }
    }

    fn kv(&self) -> KvClient<Channel> {
        KvClient::new(self.channel.clone()).max_decoding_message_size(usize::MAX)
    }

    fn leases_client(&self) -> LeaseClient<Channel> {
        LeaseClient::new(self.channel.clone())
    }

    /// Makes a call until a server takes it: on a busy machine one may find no leader in time. All
    /// that is called here may be done twice.
    fn until_taken<T, F>(&self, call: impl Fn() -> F) -> Result<T, Status>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.runtime.block_on(call()) {
                Ok(answer) => return Ok(answer.into_inner()),
                Err(status) => {
                    let passes = matches!(status.code(), Code::Unavailable | Code::Unknown);
                    if !passes || Instant::now() >= deadline {
                        return Err(status);
                    }
                }
            }
        }
    }

    fn leads(&self) -> bool {
        let mut client = MaintenanceClient::new(self.channel.clone());
        let status = self.runtime.block_on(client.status(StatusRequest {}));
        status.is_ok_and(|status| {
            let status = status.into_inner();
            status
                .header
                .is_some_and(|header| header.member_id == status.leader)
        })
    }

    pub(crate) fn try_range(&self, request: RangeRequest) -> Result<RangeResponse, Status> {
        let answer = self.runtime.block_on(self.kv().range(request))?;
        Ok(answer.into_inner())
    }

    /// All keys at one revision (0: the newest), in order.
    pub(crate) fn all(&self, revision: i64) -> Vec<KeyValue> {
        let mut all: Vec<KeyValue> = Vec::new();
        loop {
            let key = all
                .last()
                .map_or(vec![0], |kv| [&kv.key[..], b"\0"].concat());
            let request = RangeRequest {
                key: key.into(),
                range_end: vec![0].into(),
                limit: 500,
                revision,
                ..Default::default()
            };
            let page = self.try_range(request).expect("it answers");
            all.extend(page.kvs);
            if !page.more {
                return all;
            }
        }
    }

    /// The newest revision.
    pub(crate) fn revision(&self) -> i64 {
        let request = RangeRequest {
            key: "k".into(),
            ..Default::default()
        };
        let answer = self.try_range(request).expect("it answers");
        answer.header.expect("it has one").revision
    }

    pub(crate) fn get(&self, key: &[u8]) -> Option<KeyValue> {
        let request = RangeRequest {
            key: key.to_vec().into(),
            ..Default::default()
        };
        self.try_range(request).expect("it answers").kvs.pop()
    }

    pub(crate) fn try_put(&self, key: &[u8], value: &[u8], lease: i64) -> Result<i64, Status> {
        let request = PutRequest {
            key: key.to_vec().into(),
            value: value.to_vec().into(),
            lease,
            ..Default::default()
        };
        let answer = self.until_taken(|| {
            let (mut kv, request) = (self.kv(), request.clone());
            async move { kv.put(request).await }
        })?;
        Ok(answer.header.expect("it has one").revision)
    }

    pub(crate) fn put(&self, key: &[u8], value: &[u8], lease: i64) -> i64 {
        self.try_put(key, value, lease).expect("put")
    }

    pub(crate) fn delete(&self, key: &[u8], range_end: &[u8]) -> i64 {
        let request = DeleteRangeRequest {
            key: key.to_vec().into(),
            range_end: range_end.to_vec().into(),
            ..Default::default()
        };
        let answer = self.until_taken(|| {
            let (mut kv, request) = (self.kv(), request.clone());
            async move { kv.delete_range(request).await }
        });
        answer.expect("deleted").deleted
    }

    pub(crate) fn txn(&self, request: &TxnRequest) -> TxnResponse {
        let answer = self.until_taken(|| {
            let (mut kv, request) = (self.kv(), request.clone());
            async move { kv.txn(request).await }
        });
        answer.expect("done")
    }

    pub(crate) fn compact(&self, revision: i64) {
        let request = CompactionRequest {
            revision,
            physical: true,
        };
        let answer = self.runtime.block_on(self.kv().compact(request));
        answer.expect("compacted");
    }

    pub(crate) fn grant(&self, id: i64, ttl: i64) {
        let request = LeaseGrantRequest { id, ttl };
        let granted = self.until_taken(|| {
            let mut leases = self.leases_client();
            async move { leases.lease_grant(request).await }
        });
        if let Err(status) = granted {
            // An earlier attempt was taken after all.
            assert!(status.message().contains("already exists"), "{status}");
        }
    }

    pub(crate) fn revoke(&self, id: i64) {
        let request = LeaseRevokeRequest { id };
        let answer = self
            .runtime
            .block_on(self.leases_client().lease_revoke(request));
        answer.expect("revoked");
    }

    /// What is left of a lease.
    pub(crate) fn keep_alive(&self, id: i64) -> i64 {
        let request = futures_util::stream::iter([LeaseKeepAliveRequest { id }]);
        let answer = self.runtime.block_on(async {
            let mut answers = self.leases_client().lease_keep_alive(request).await?;
            answers.get_mut().message().await
        });
        answer.expect("kept").expect("an answer").ttl
    }

    pub(crate) fn time_to_live(&self, id: i64) -> LeaseTimeToLiveResponse {
        let request = LeaseTimeToLiveRequest { id, keys: true };
        let answer = self
            .runtime
            .block_on(self.leases_client().lease_time_to_live(request));
        answer.expect("told").into_inner()
    }

    /// The ids of all leases, in order.
    pub(crate) fn leases(&self) -> Vec<i64> {
        let answer = self
            .runtime
            .block_on(self.leases_client().lease_leases(LeaseLeasesRequest {}));
        let leases = answer.expect("listed").into_inner().leases;
        let mut ids: Vec<_> = leases.iter().map(|lease| lease.id).collect();
        ids.sort_unstable();
        ids
    }

    /// Enables users: root, and another who may read one key.
    pub(crate) fn enable_users(&self, password: &str, name: &str, word: &str) {
        let mut client = AuthClient::new(self.channel.clone());
        let user = |name: &str, password: &str| AuthUserAddRequest {
            name: name.to_owned(),
            password: password.to_owned(),
            ..Default::default()
        };
        let grant = |user: &str, role: &str| AuthUserGrantRoleRequest {
            user: user.to_owned(),
            role: role.to_owned(),
        };
        let enabled = self.runtime.block_on(async {
            client.user_add(user("root", password)).await?;
            client.user_add(user(name, word)).await?;
            let role = AuthRoleAddRequest {
                name: "reader".to_owned(),
            };
            client.role_add(role).await?;
            let perm = Permission {
                key: "k".into(),
                ..Default::default()
            };
            let name_of_role = "reader".to_owned();
            let permission = AuthRoleGrantPermissionRequest {
                name: name_of_role,
                perm: Some(perm),
            };
            client.role_grant_permission(permission).await?;
            client.user_grant_role(grant(name, "reader")).await?;
            client.user_grant_role(grant("root", "root")).await?;
            client.auth_enable(AuthEnableRequest {}).await
        });
        enabled.expect("enabled");
    }
}
