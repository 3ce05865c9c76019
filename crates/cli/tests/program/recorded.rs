//! What somebody sees who records everything between the nodes of a group.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use steadfast::{Bootstrap, RepConfig, ReplicatedEnvironment, credentials};

use super::tls::Secured;
use super::{Group, Node, Numbers, PATIENCE, free_port, node_arguments, run_to};

/// Little log is kept, so that a new node needs a copy of the state.
const FORGETFUL: Numbers = &[
    ("election_timeout_min_ms", 1_000),
    ("election_timeout_max_ms", 1_500),
    ("log_segment_bytes", 65_536),
    ("log_keep_bytes", 0),
    ("log_retain_bytes_max", 65_536),
    ("flush_interval_ms", 50),
];

/// Recorded connections that are sent again.
const REPLAYED_MAX: usize = 30;

/// Pieces of the marker that are this long are found too.
const PIECE: usize = 8;

/// What was recorded: one entry for each direction of each connection.
#[derive(Clone, Default)]
struct Tape(Arc<Mutex<Vec<Direction>>>);

/// One direction of a connection.
#[derive(Clone)]
struct Direction {
    /// The port of the node to which it goes; `None` back to the caller.
    to: Option<u16>,
    bytes: Arc<Mutex<Vec<u8>>>,
}

impl Tape {
    /// Listens in front of this port, and records what goes through. Returns its own port.
    fn in_front_of(&self, port: u16) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let own = listener.local_addr().expect("bound").port();
        let tape = self.clone();
        std::thread::spawn(move || {
            for caller in listener.incoming().map_while(Result::ok) {
                // The node may be down.
                if let Ok(node) = TcpStream::connect(("127.0.0.1", port)) {
                    let clone = |stream: &TcpStream| stream.try_clone().expect("a descriptor");
                    tape.pass(clone(&caller), clone(&node), Some(port));
                    tape.pass(node, caller, None);
                }
            }
        });
        own
    }

    fn pass(&self, mut from: TcpStream, mut into: TcpStream, to: Option<u16>) {
        let bytes = Arc::default();
        let direction = Direction { to, bytes };
        let bytes = Arc::clone(&direction.bytes);
        self.0.lock().expect("no panic").push(direction);
        std::thread::spawn(move || {
            let mut piece = vec![0; 64 * 1024];
            while let Ok(length @ 1..) = from.read(&mut piece) {
                let read = &piece[..length];
                bytes.lock().expect("no panic").extend_from_slice(read);
                if into.write_all(read).is_err() {
                    break;
                }
            }
            // Either end may have closed already.
            into.shutdown(Shutdown::Write).ok();
        });
    }

    /// Sends again what callers have sent to nodes; returns on how many connections.
    fn replay(&self) -> usize {
        let directions = self.0.lock().expect("no panic").clone();
        let to_nodes = directions.iter().filter_map(|direction| {
            let bytes = direction.bytes.lock().expect("no panic").clone();
            Some((direction.to?, bytes)).filter(|(_, bytes)| !bytes.is_empty())
        });
        let sent = to_nodes.take(REPLAYED_MAX).map(|(port, bytes)| {
            let mut node = TcpStream::connect(("127.0.0.1", port)).expect("it listens");
            // It is closed in the middle.
            node.write_all(&bytes).ok();
            node.shutdown(Shutdown::Write).ok();
            node.set_read_timeout(Some(PATIENCE)).expect("set");
            node.read_to_end(&mut Vec::new()).ok();
        });
        sent.count()
    }

    /// How many bytes were recorded, and how many pieces of the marker are among them.
    fn find(&self, marker: &[u8]) -> (usize, usize) {
        let pieces: BTreeSet<&[u8]> = marker.windows(PIECE).collect();
        let streams = self.0.lock().expect("no panic");
        let counts = streams.iter().map(|direction| {
            let bytes = direction.bytes.lock().expect("no panic");
            let found = bytes.windows(PIECE).filter(|seen| pieces.contains(seen));
            (bytes.len(), found.count())
        });
        counts.fold((0, 0), |(bytes, found), (more, others)| {
            (bytes + more, found + others)
        })
    }
}

/// A group each of whose nodes is reached over a tape.
struct Recorded {
    secured: Secured,
    with_tls: bool,
    tape: Tape,
    /// Where each node is reached.
    ports: Vec<u16>,
}

impl Recorded {
    fn new(with_tls: bool) -> Self {
        let (mut secured, tape) = (Secured::prepared(), Tape::default());
        let in_front = secured.group.ports.iter();
        let ports: Vec<_> = in_front.map(|port| tape.in_front_of(*port)).collect();
        let list = ports.iter().zip(1..);
        let list: Vec<_> = list
            .map(|(port, n)| format!("n{n}=127.0.0.1:{port}"))
            .collect();
        secured.group.list = list.join(",");
        secured.group.numbers = FORGETFUL;
        for at in [1, 2] {
            let arguments = if with_tls {
                secured.arguments(at)
            } else {
                secured.group.arguments(at)
            };
            secured.group.nodes[at] = Some(Node::start(&arguments));
        }
        Self {
            secured,
            with_tls,
            tape,
            ports,
        }
    }

    /// The first node, in this process, as master.
    fn embed(&self) -> ReplicatedEnvironment {
        let group = &self.secured.group;
        let config = RepConfig::builder("g", "n1")
            .data_dir(group.data_dir(0))
            .listen(self.secured.address(0))
            .bootstrap(Bootstrap::expect(group.list.split(',')).expect("a list"));
        let config = FORGETFUL
            .iter()
            .fold(config, |config, (key, value)| config.set(*key, *value));
        let config = if self.with_tls {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("later");
            let now_ms = u64::try_from(now.as_millis()).expect("a number");
            let own = credentials::read(Path::new(&self.secured.of("n1")), now_ms);
            config.credentials(own.expect("usable"))
        } else {
            config
        };
        let env = ReplicatedEnvironment::open(config.build().expect("valid"));
        let env = env.expect("it opens");
        env.wait_ready(PATIENCE).expect("it comes to work");
        Group::make_master(&env);
        env
    }

    /// Runs a verb at the first node, over its tape.
    fn run(&self, verb: &[&str]) -> String {
        let (address, admin) = (
            format!("127.0.0.1:{}", self.ports[0]),
            self.secured.of("admin"),
        );
        let whom = ["--ask", &address, "--credentials", &admin];
        let whom = if self.with_tls { &whom[..] } else { &whom[..2] };
        run_to(0, &[verb, whom].concat()).0
    }

    /// Lets in a node that the log alone does not bring up to date.
    fn join_fourth(&self) -> Node {
        let token = self.run(&["token", "create", "--without-credentials"]);
        let port = free_port();
        let dir = self.secured.group.dir.path().join("n4");
        let mut arguments = node_arguments("g", "n4", &dir, port);
        let reached_at = format!("advertise=127.0.0.1:{}", self.tape.in_front_of(port));
        let mut more = vec!["--join", token.trim(), "--set", &reached_at];
        let own = self.secured.issue("node", "4");
        if self.with_tls {
            more.extend(["--credentials", &own]);
        }
        arguments.extend(more.into_iter().map(str::to_owned));
        let fourth = Node::start(&arguments);
        let deadline = Instant::now() + PATIENCE;
        // Its own state, which is empty, goes when the copy is whole.
        while dir.join("engine").exists() || !dir.join("engine-1").exists() {
            assert!(Instant::now() < deadline, "it copies no state");
            std::thread::yield_now();
        }
        fourth
    }
}

/// Writes a marker in keys and values until the beginning of the log is gone.
fn write(env: &ReplicatedEnvironment, marker: &[u8], first_segment: &Path) {
    let deadline = Instant::now() + PATIENCE;
    let mut number = 0_u32;
    while first_segment.exists() {
        let key = [marker, &number.to_be_bytes()].concat();
        let value = marker.repeat(128);
        let written = env.write(|txn| txn.database("d")?.put(&key, &value));
        let _token = written.expect("committed");
        number += 1;
        assert!(Instant::now() < deadline, "the log is not purged");
    }
}

/// Votes, appends and all else that was recorded count for nothing when they come again.
fn assert_replays_change_nothing(env: &ReplicatedEnvironment, tape: &Tape) {
    let before = env.status();
    assert!(tape.replay() >= 8, "each node calls each other one twice");
    let after = env.status();
    assert_eq!((after.term, after.applied), (before.term, before.applied));
    assert_eq!(after.members, before.members);
    let written = env.write(|txn| txn.database("d")?.put("k", "v"));
    assert_eq!(written.expect("still master").token.term, before.term);
}

/// Has a group replicate, copy its state and be backed up; returns how much was recorded of that,
/// and how many pieces of what users wrote are in it.
fn record(with_tls: bool) -> (usize, usize) {
    let marker: [u8; 32] = rand::random();
    let group = Recorded::new(with_tls);
    let env = group.embed();
    let log = group.secured.group.data_dir(0).join("log");
    write(&env, &marker, &log.join("0000000001.log"));

    let backup = group.secured.group.dir.path().join("backup");
    group.run(&["backup", "create", &backup.display().to_string()]);
    if with_tls {
        assert_replays_change_nothing(&env, &group.tape);
    }
    let fourth = group.join_fourth();
    drop(fourth);
    env.close().expect("closed");
    group.tape.find(&marker)
}

#[test]
fn nothing_of_users_is_seen_between_real_nodes_in_replication_copies_and_backups() {
    let (bytes, pieces) = record(false);
    assert!(bytes > 100_000, "{bytes} bytes were recorded");
    assert!(pieces > 1000, "{pieces} pieces are seen without TLS");
    let (bytes, pieces) = record(true);
    assert!(bytes > 100_000, "{bytes} bytes were recorded");
    assert_eq!(pieces, 0, "of what users wrote, in {bytes} bytes");
}
