//! Groups whose nodes prove who they are: who belongs to them, and who gets nothing.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use steadfast::config::ConfigError;
use steadfast::credentials::{Authority, Issued, VALID_FOR};
use steadfast::ids::NodeId;
use steadfast::machine::Machine;
use steadfast::{
    Access, AdminCommand, Bootstrap, ConsistencyPolicy, FeedError, Holder, JoinToken, NodeStatus,
    NodeType, OpenError, RepConfig, RepConfigBuilder, StartAt, SubscribeOptions, Subscription,
    TlsCredentials, TlsTransport, Transport,
};
use steadfast_net::{BoxFuture, ByteStream, Connected, Listener, MemoryNetwork};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::runtime::Runtime;

use crate::support::{Env, PATIENCE, STEADY, eventually, get, put, runtime};

pub(crate) const GROUP: &str = "orders";

/// The network of a group, and the authority that its nodes believe.
pub(crate) struct World {
    pub(crate) network: MemoryNetwork,
    pub(crate) authority: Authority,
    pub(crate) runtime: Runtime,
}

impl World {
    pub(crate) fn new() -> Self {
        Self {
            network: MemoryNetwork::new(),
            authority: Authority::create(GROUP, now_ms()).expect("an authority"),
            runtime: runtime(),
        }
    }

    pub(crate) fn node(&self, id: u64) -> TlsCredentials {
        issued(&self.authority, Access::Node, &id.to_string())
    }

    /// The network as a client with these credentials sees it.
    pub(crate) fn seen_by(&self, credentials: &TlsCredentials) -> TlsTransport {
        let transport = self.network.host("client");
        TlsTransport::new(transport, credentials).expect("they belong together")
    }

    fn config(&self, id: u64, bootstrap: Bootstrap) -> RepConfigBuilder {
        let config = RepConfig::builder(GROUP, format!("n{id}"))
            .data_dir("/data")
            .listen(format!("n{id}:7400"))
            .bootstrap(bootstrap)
            .runtime(self.runtime.handle().clone());
        STEADY
            .iter()
            .fold(config, |config, (key, value)| config.set(*key, *value))
    }

    fn open(&self, id: u64, config: RepConfigBuilder) -> Result<Env, OpenError> {
        let machine = Machine::in_memory(&self.network, &format!("n{id}")).expect("entropy");
        let config = config.build()?;
        self.runtime.block_on(Env::open_on(config, machine))
    }

    pub(crate) fn open_three(&self) -> Vec<Env> {
        let list = || Bootstrap::expect((1..=3).map(|n| format!("n{n}=n{n}:7400")));
        let open = |id: u64| {
            let config = self.config(id, list().expect("well-formed"));
            self.open(id, config.credentials(self.node(id)))
                .expect("opened")
        };
        let group: Vec<Env> = (1..=3).map(open).collect();
        for node in &group {
            node.wait_ready(PATIENCE).expect("the group forms");
        }
        group
    }

    pub(crate) fn join(&self, id: u64, token: &JoinToken, credentials: TlsCredentials) -> Env {
        let config = self.config(id, Bootstrap::join(token.clone()));
        let node = self.open(id, config.credentials(credentials));
        node.expect("it listens, and asks")
    }

    pub(crate) fn ask(&self, credentials: &TlsCredentials, digest: bool) -> Option<NodeStatus> {
        let network = self.seen_by(credentials);
        let asked = NodeStatus::ask_on(&network, "n1:7400", digest, PATIENCE);
        self.runtime.block_on(asked).ok()
    }

    pub(crate) fn subscribe(
        &self,
        credentials: &TlsCredentials,
    ) -> Result<Subscription, FeedError> {
        let network: Arc<dyn Transport> = Arc::new(self.seen_by(credentials));
        let addresses = vec!["n1:7400".to_owned()];
        // A client may hear of its refusal as a connection that closed, and tries again.
        let options = SubscribeOptions::new(StartAt::Now).patience(Duration::from_secs(3));
        let connecting = Subscription::connect_on(network, addresses, GROUP, options);
        self.runtime.block_on(connecting)
    }

    pub(crate) fn set_priority(&self, credentials: &TlsCredentials) -> bool {
        let command = AdminCommand::SetPriority {
            node: "n2".to_owned(),
            priority: 1,
        };
        let network = self.seen_by(credentials);
        let addresses = [1, 2, 3].map(|n| format!("n{n}:7400"));
        let sent = command.send(&network, &addresses, Duration::from_secs(5));
        self.runtime.block_on(sent).is_ok()
    }
}

pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(since.expect("after 1970").as_millis()).expect("before the year 500 million")
}

pub(crate) fn issued(authority: &Authority, access: Access, name: &str) -> TlsCredentials {
    issued_by(authority, authority, access, name)
}

/// Credentials of one authority for somebody who believes another one.
fn issued_by(
    authority: &Authority,
    believed: &Authority,
    access: Access,
    name: &str,
) -> TlsCredentials {
    let holder = Holder::new(authority.group(), access, name).expect("a holder");
    let issue = |by: &Authority| by.issue(&holder, VALID_FOR, now_ms()).expect("signed");
    let Issued {
        certificate, key, ..
    } = issue(authority);
    let authority = issue(believed).authority;
    let read =
        TlsCredentials::from_pem(certificate.as_bytes(), key.as_bytes(), authority.as_bytes());
    read.expect("just made")
}

fn read(node: &Env, key: &str) -> Option<Vec<u8>> {
    get(node, ConsistencyPolicy::Linearizable, key).expect("it answers")
}

pub(crate) fn master(group: &[Env]) -> &Env {
    let is_master = |node: &&Env| node.state().role == steadfast::Role::Master;
    group.iter().find(is_master).expect("a master")
}

#[test]
fn a_group_forms_replicates_and_lets_a_new_node_in_over_tls() {
    let world = World::new();
    let mut group = world.open_three();
    let _token = put(master(&group), "k", "v").expect("written");
    for node in &group {
        assert_eq!(read(node, "k").as_deref(), Some(&b"v"[..]));
    }
    let token = group[0].join_token(NodeType::Electable).expect("a member");
    let taken = world.join(4, &token, world.node(2));
    eventually("an id that was given is refused", || {
        let status = taken.status();
        status
            .waiting_for
            .contains("issue it a certificate for node 4")
    });
    taken.close().expect("closed");

    let fourth = world.join(4, &token, world.node(4));
    fourth.wait_ready(PATIENCE).expect("let in");
    assert_eq!(fourth.status().node.id, NodeId(4));
    assert_eq!(read(&fourth, "k").as_deref(), Some(&b"v"[..]));
    group.push(fourth);
    eventually("it votes", || {
        let members = master(&group).status().members;
        members.iter().filter(|member| member.votes).count() == 4
    });
}

#[test]
fn each_role_gets_what_it_may_and_a_stranger_gets_nothing() {
    let world = World::new();
    let group = world.open_three();
    let _token = put(master(&group), "k", "v").expect("written");
    let by = |access| issued(&world.authority, access, "someone");
    let other = Authority::create(GROUP, now_ms()).expect("an authority");
    let strangers = [
        // It believes the nodes, and they do not believe it.
        issued_by(&other, &world.authority, Access::Admin, "someone"),
        // Neither believes the other.
        issued(&other, Access::Admin, "someone"),
    ];
    let not_let_in = world.node(9);
    assert!(world.ask(&not_let_in, false).is_some(), "it may be new");
    assert!(world.subscribe(&not_let_in).is_err());
    assert!(!world.set_priority(&not_let_in));
    let before = group[0].status();
    for stranger in &strangers {
        assert!(world.ask(stranger, false).is_none());
        assert!(world.subscribe(stranger).is_err());
        assert!(!world.set_priority(stranger));
    }
    for access in [
        Access::Client,
        Access::Monitor,
        Access::Subscriber,
        Access::Admin,
    ] {
        let holder = by(access);
        let status = world.ask(&holder, true).expect("everybody may ask");
        assert_eq!(status.digest.is_some(), access >= Access::Admin, "{access}");
        let subscribed = world.subscribe(&holder).is_ok();
        assert_eq!(subscribed, access >= Access::Subscriber, "{access}");
        if access < Access::Admin {
            assert!(!world.set_priority(&holder), "{access}");
        }
    }
    let after = group[0].status();
    assert_eq!(before.members, after.members, "nothing was changed");
    assert_eq!(before.term, after.term);
    assert!(world.set_priority(&by(Access::Admin)));
}

#[test]
fn the_certificate_of_a_removed_node_opens_nothing() {
    let world = World::new();
    let group = world.open_three();
    let gone = world.node(3);
    assert!(world.ask(&gone, false).is_some());
    let removing = AdminCommand::Remove {
        node: "n3".to_owned(),
        force: false,
    };
    master(&group[..2]).administer(&removing).expect("removed");
    eventually("n1 knows", || world.ask(&gone, false).is_none());
    assert!(world.subscribe(&gone).is_err());
    assert!(!world.set_priority(&gone));
}

#[test]
fn a_node_opens_with_its_own_credentials_only() {
    let world = World::new();
    let list = || Bootstrap::expect(["n1=n1:7400", "n2=n2:7400"]).expect("well-formed");
    let refused =
        |credentials| match world.open(1, world.config(1, list()).credentials(credentials)) {
            Err(OpenError::Config(ConfigError { key, problem })) => {
                assert_eq!(key, "credentials");
                problem
            }
            other => panic!("{:?}", other.map(drop)),
        };
    let admin = issued(&world.authority, Access::Admin, "someone");
    assert!(refused(admin).contains("no node"));
    assert!(refused(world.node(2)).contains("n1 is node 1 of this list"));
    let other = Authority::create("other", now_ms()).expect("an authority");
    assert!(refused(issued(&other, Access::Node, "1")).contains("another group"));
}

#[test]
fn credentials_are_replaced_on_all_nodes_under_load_without_a_failed_write() {
    let world = World::new();
    let group = world.open_three();
    let (stop, written) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let number = written.load(Ordering::Relaxed).to_string();
                let _token = put(master(&group), "k", &number).expect("no write fails");
                written.fetch_add(1, Ordering::Relaxed);
            }
        });
        for _ in 0..3 {
            for (id, node) in (1..).zip(&group) {
                let at = written.load(Ordering::Relaxed);
                node.replace_credentials(&world.node(id)).expect("its own");
                eventually("writes go on", || written.load(Ordering::Relaxed) > at + 5);
            }
        }
        let refused = group[0].replace_credentials(&world.node(2));
        assert!(refused.is_err(), "they are of another node");
        stop.store(true, Ordering::Relaxed);
    });
}

/// A network that keeps all bytes that go over it.
struct Recorder {
    network: Arc<dyn Transport>,
    bytes: Arc<Mutex<Vec<u8>>>,
}

impl Recorder {
    fn record(&self, stream: Box<dyn ByteStream>) -> Box<dyn ByteStream> {
        let bytes = Arc::clone(&self.bytes);
        Box::new(Recorded { stream, bytes })
    }
}

impl Transport for Recorder {
    fn connect<'a>(&'a self, address: &'a str) -> BoxFuture<'a, steadfast_net::Result<Connected>> {
        Box::pin(async move {
            let connected = self.network.connect(address).await?;
            Ok(Connected {
                stream: self.record(connected.stream),
                ..connected
            })
        })
    }

    fn bind<'a>(
        &'a self,
        address: &'a str,
    ) -> BoxFuture<'a, steadfast_net::Result<Box<dyn Listener>>> {
        self.network.bind(address)
    }
}

/// The dialling end of a stream, both directions of which are kept.
struct Recorded {
    stream: Box<dyn ByteStream>,
    bytes: Arc<Mutex<Vec<u8>>>,
}

impl AsyncRead for Recorded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buffer);
        let mut bytes = self.bytes.lock().expect("no test has panicked");
        bytes.extend_from_slice(&buffer.filled()[before..]);
        polled
    }
}

impl AsyncWrite for Recorded {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, bytes);
        if let Poll::Ready(Ok(written)) = &polled {
            let mut kept = self.bytes.lock().expect("no test has panicked");
            kept.extend_from_slice(&bytes[..*written]);
        }
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// With credentials, or without, to see that the recorder would find it.
fn is_seen_on_the_wire(secured: bool) -> bool {
    const SECRET: &[u8] = b"what nobody else may read";
    let world = World::new();
    let bytes = Arc::new(Mutex::new(Vec::new()));
    let list = || Bootstrap::expect((1..=3).map(|n| format!("n{n}=n{n}:7400")));
    let open = |id: u64| {
        let name = format!("n{id}");
        let machine = Machine::in_memory(&world.network, &name).expect("entropy");
        let recorder = Recorder {
            network: machine.transport,
            bytes: Arc::clone(&bytes),
        };
        let machine = Machine {
            transport: Arc::new(recorder),
            ..machine
        };
        let config = world.config(id, list().expect("well-formed"));
        let config = if secured {
            config.credentials(world.node(id))
        } else {
            config
        };
        let opening = Env::open_on(config.build().expect("valid"), machine);
        world.runtime.block_on(opening).expect("opened")
    };
    let group: Vec<Env> = (1..=3).map(open).collect();
    for node in &group {
        node.wait_ready(PATIENCE).expect("the group forms");
    }
    let secret = std::str::from_utf8(SECRET).expect("text");
    let _token = put(master(&group), "k", secret).expect("written");
    for node in &group {
        assert_eq!(read(node, "k").as_deref(), Some(SECRET));
    }
    let bytes = bytes.lock().expect("no test has panicked");
    assert!(bytes.len() > 1_000, "something was recorded");
    bytes.windows(SECRET.len()).any(|seen| seen == SECRET)
}

#[test]
fn nothing_of_users_goes_over_the_wire_in_clear() {
    assert!(is_seen_on_the_wire(false), "the recorder sees what is sent");
    assert!(!is_seen_on_the_wire(true));
}
