//! Strangers and liars at real nodes that use TLS: what each gets, under which reason it is refused,
//! and that nothing has changed after it.

pub(super) mod hands;
pub(super) mod wire;

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use self::hands::{Forger, Handshake, Papers};
use self::wire::{Hello, Refusal};
use super::tls::Secured;
use super::{Node, Numbers, PATIENCE, free_port, node_arguments, volumes};

/// Small files, so that all of them can be compared, and a short patience with strangers.
const BESIEGED: Numbers = &[
    ("election_timeout_min_ms", 1_000),
    ("election_timeout_max_ms", 1_500),
    ("log_segment_bytes", 65_536),
    ("handshake_timeout_ms", HANDSHAKE_TIMEOUT_MS),
];
const HANDSHAKE_TIMEOUT_MS: u64 = 2_000;

/// The log of each refusal, and not only of the first for each reason.
const LOG: &str = "warn,openraft=error,steadfast_net=debug";

impl Secured {
    /// A group that says in its logs whom it refuses.
    fn besieged() -> Self {
        let mut secured = Self::prepared();
        secured.group.numbers = BESIEGED;
        for at in 0..3 {
            let mut start = telling("true", &secured.arguments(at));
            let start = start.env("STEADFAST_LOG", LOG);
            secured.group.nodes[at] = Some(Node::spawn(start));
        }
        for node in secured.group.nodes.iter().flatten() {
            node.wait_ready();
        }
        secured
    }

    fn node(&self, at: usize) -> &Node {
        self.group.nodes[at].as_ref().expect("it runs")
    }

    /// Everything that a stranger could want to change.
    fn standing(&self) -> Standing {
        let said = self.run_to(0, &["status", "-o", "json"]);
        let status: Value = serde_json::from_str(&said).expect("JSON");
        let of = |node: &Value| {
            let own = &node["status"];
            json!([
                node["name"],
                own["role"],
                own["term"],
                own["epoch"],
                own["members"]
            ])
        };
        let nodes = status["nodes"].as_array().expect("a list");
        let kept = ["term", "master", "vlsn", "health"].map(|key| status[key].clone());
        Standing {
            said: json!([kept, nodes.iter().map(of).collect::<Vec<_>>()]),
            files: (0..3).flat_map(|at| self.files(at)).collect(),
        }
    }

    /// The files of a node that do not change while nobody writes: its identity, whom it knows, and
    /// its log, in which its votes are.
    fn files(&self, at: usize) -> BTreeMap<PathBuf, Vec<u8>> {
        let dir = self.group.data_dir(at);
        let mut files = volumes::contents_of(&dir);
        let changes_by_itself = [dir.join("engine"), dir.join("digest")];
        files.retain(|path, _| !changes_by_itself.iter().any(|it| path.starts_with(it)));
        assert!(files.len() > 4, "{:?}", files.keys());
        files
    }

    /// Nothing has changed since then, and what may change the group does.
    fn assert_unmoved(&self, before: &Standing) {
        let after = self.standing();
        assert_eq!(after.said, before.said);
        let same = |(path, held): &(&PathBuf, &Vec<u8>)| before.files.get(*path) == Some(*held);
        let changed: Vec<_> = after.files.iter().filter(|file| !same(file)).collect();
        let names: Vec<_> = changed.iter().map(|(path, _)| path).collect();
        assert!(names.is_empty(), "changed: {names:?}");
        assert_eq!(after.files.len(), before.files.len());
        self.run_to(0, &["node", "priority", "n1", "7"]);
        assert_ne!(self.standing().said, before.said, "a change commits");
    }
}

#[derive(Debug)]
struct Standing {
    said: Value,
    files: BTreeMap<PathBuf, Vec<u8>>,
}

/// Starts a node whose log is among the lines that it prints.
fn telling(before: &str, arguments: &[String]) -> Command {
    let mut command = Command::new("sh");
    command
        .arg("-c")
        .arg(format!("{before} && exec \"$0\" start \"$@\" 2>&1"))
        .arg(env!("CARGO_BIN_EXE_steadfast"))
        .args(arguments);
    command
}

/// Sends bytes, ends, and returns all that comes back.
fn answer_to(address: &str, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).expect("it listens");
    stream.write_all(bytes).expect("sent");
    stream.shutdown(std::net::Shutdown::Write).expect("ended");
    stream.set_read_timeout(Some(PATIENCE)).expect("set");
    let mut answer = Vec::new();
    // A reset is an answer too.
    stream.read_to_end(&mut answer).ok();
    answer
}

/// What a client sends that offers no suite that the server has.
fn without_common_suite() -> Vec<u8> {
    let mut hello = hands::client_hello();
    // Record, handshake, version and random come before the session, its length first.
    let session_bytes = usize::from(hello[43]);
    let suites_at = 44 + session_bytes;
    let count = u16::from_be_bytes([hello[suites_at], hello[suites_at + 1]]) / 2;
    for suite in 0..usize::from(count) {
        // TLS_AES_128_CCM_8_SHA256.
        hello[suites_at + 2 + 2 * suite..][..2].copy_from_slice(&[0x13, 0x05]);
    }
    hello
}

#[test]
fn whoever_does_not_authenticate_is_refused_by_reason_and_changes_nothing() {
    let secured = Secured::besieged();
    let before = secured.standing();
    let expect = |reason: &str| secured.node(0).wait_for(&[&format!("reason=\"{reason}\"")]);
    let address = secured.address(0);

    for (bytes, reason) in [
        (
            b"\x08\0\0\0ELECTION\x04\0\0\0\x01\0\0\0".to_vec(),
            "not_tls",
        ),
        (b"\x05\0\0\0ADMIN\x10\0\0\0".to_vec(), "not_tls"),
        (b"GET / HTTP/1.1\r\nHost: n1\r\n\r\n".to_vec(), "not_tls"),
        (vec![0xff; 4096], "not_tls"),
        (vec![0x16, 0x03, 0x01, 0xff, 0xff, 0x01], "not_tls"),
        (without_common_suite(), "incompatible"),
    ] {
        let answer = answer_to(&address, &bytes);
        assert!(answer.len() <= 16, "an alert at most: {answer:?}");
        expect(reason);
    }

    let forger = Forger::of_group(&secured.of("authority"));
    let stranger = Forger::stranger();
    let identity = "steadfast://g/node/3";
    for (papers, version, reason) in [
        (forger.valid(identity), Handshake::Tls12, "incompatible"),
        (Papers::none(), Handshake::Tls13, "no_certificate"),
        (
            stranger.valid(identity),
            Handshake::Tls13,
            "unknown_authority",
        ),
        (forger.expired(identity), Handshake::Tls13, "expired"),
        (
            forger.not_yet_valid(identity),
            Handshake::Tls13,
            "not_yet_valid",
        ),
        (
            forger.for_servers_only(identity),
            Handshake::Tls13,
            "wrong_usage",
        ),
        (forger.of_nobody(), Handshake::Tls13, "no_identity"),
    ] {
        let said = papers.ask(&address, version, b"\x08\0\0\0ELECTION");
        assert_eq!(said, b"", "{reason}");
        expect(reason);
    }
    secured.assert_unmoved(&before);
}

#[test]
fn what_comes_too_slowly_is_closed_at_its_deadline_and_nobody_waits_for_it() {
    let secured = Secured::besieged();
    let before = secured.standing();
    let node = secured.node(0);
    let own = Hello::of_directory(&secured.group.data_dir(2), 1);
    let mut member = Papers::read(&secured.of("n3")).peer(&secured.address(0), &own, "ELECTION");
    member.write(&[&100_u32.to_le_bytes()[..], b"half"].concat());
    let hello = hands::client_hello();
    let silent = TcpStream::connect(secured.address(0)).expect("it listens");
    let began = Instant::now();
    let mut slow = TcpStream::connect(secured.address(0)).expect("it listens");
    slow.set_read_timeout(Some(Duration::from_millis(100)))
        .expect("set");
    let mut sent = 0;
    let is_waiting = |read: std::io::Result<usize>| {
        read.is_err_and(|error| {
            [ErrorKind::WouldBlock, ErrorKind::TimedOut].contains(&error.kind())
        })
    };
    // A byte for each time that nothing comes back within the timeout.
    while is_waiting(slow.read(&mut [0; 16])) {
        assert!(began.elapsed() < PATIENCE, "it is not closed");
        // It may be closed meanwhile.
        slow.write_all(&hello[sent..=sent]).ok();
        sent += 1;
    }
    assert!(began.elapsed() >= Duration::from_millis(HANDSHAKE_TIMEOUT_MS - 200));
    assert!(sent < hello.len(), "it was closed for its slowness");
    // The default is 5 s.
    assert!(began.elapsed() < Duration::from_secs(5));
    node.wait_for(&["reason=\"handshake_timeout\""]);
    drop(silent);
    // A member may be slow for longer, and is not waited for either.
    assert_eq!(member.receive(), None);
    assert!(began.elapsed() > Duration::from_secs(5), "not at once");
    secured.assert_unmoved(&before);
}

#[test]
fn a_certificate_of_the_group_speaks_for_its_holder_and_for_nothing_else_in_the_hello() {
    let secured = Secured::besieged();
    let before = secured.standing();
    let own = Hello::of_directory(&secured.group.data_dir(2), 1);
    let as_third = |hello: &Hello, service: &str| {
        let papers = Papers::read(&secured.of("n3"));
        papers.hello(&secured.address(0), hello, service)
    };
    assert_eq!(
        as_third(&own, "ELECTION"),
        Refusal::None,
        "else nothing is shown"
    );
    for (hello, refusal) in [
        (own.clone().versions(2, 9), Refusal::NoCommonVersion),
        (own.clone().group([7; 16]), Refusal::WrongGroup),
        (own.clone().receiver(2), Refusal::WrongNode),
        (own.clone().sender(2), Refusal::NotAllowed),
        (own.clone().purpose("FEEDER"), Refusal::NotAllowed),
        (own.clone().incarnation(9), Refusal::FencedIncarnation),
    ] {
        assert_eq!(as_third(&hello, "ELECTION"), refusal, "{hello:?}");
        secured
            .node(0)
            .wait_for(&[&format!("reason=\"{refusal:?}\"")]);
    }
    for service in [
        "FEEDER",
        "RESTORE",
        "CALLS",
        "DATA",
        "WRITES",
        "ADMIN",
        "SUBSCRIPTION",
        "EVENTS",
        "NODE_STATE",
    ] {
        let as_second = own.clone().sender(2).purpose(service);
        assert_eq!(
            as_third(&as_second, service),
            Refusal::NotAllowed,
            "{service}"
        );
    }

    let forger = Forger::of_group(&secured.of("authority"));
    let other_group = forger.valid("steadfast://other/node/3");
    let answer = other_group.hello(&secured.address(0), &own, "ELECTION");
    assert_eq!(answer, Refusal::WrongGroup);
    let no_member = forger.valid("steadfast://g/node/9");
    for service in ["RESTORE", "SUBSCRIPTION", "EVENTS"] {
        let as_ninth = own.clone().sender(9).purpose(service);
        let answer = no_member.hello(&secured.address(0), &as_ninth, service);
        assert_eq!(answer, Refusal::NotAMember, "{service}");
    }
    // It could be a master of which this node has not heard, and still gets no vote.
    let as_ninth = own.clone().sender(9);
    let mut peer = no_member.peer(&secured.address(0), &as_ninth, "ELECTION");
    peer.send(5, &wire::vote_request(1, 1_000_000, 9));
    assert_eq!(peer.receive(), None);
    secured.assert_unmoved(&before);
}

#[test]
fn a_member_that_sends_nonsense_loses_its_connection_and_moves_nobody() {
    let secured = Secured::besieged();
    let before = secured.standing();
    let own = Hello::of_directory(&secured.group.data_dir(2), 1);
    let papers = Papers::read(&secured.of("n3"));
    let open = |service: &str| {
        let hello = own.clone().purpose(service);
        papers.peer(&secured.address(0), &hello, service)
    };
    let near_the_end = [u64::MAX, u64::MAX - 1, (1 << 63) - 1];
    let votes = near_the_end.map(|term| wire::frame(5, &wire::vote_request(1, term, 3)));
    let appends = near_the_end.map(|term| wire::frame(3, &wire::append(term, 3, term)));
    let mut flipped = wire::frame(5, &wire::vote_request(1, 9, 3));
    flipped[13] ^= 1;
    let nonsense: Vec<(&str, Vec<u8>)> = [
        ("ELECTION", ((64 << 20) + 1_u32).to_le_bytes().to_vec()),
        ("ELECTION", u32::MAX.to_le_bytes().to_vec()),
        ("ELECTION", [&100_u32.to_le_bytes()[..], b"cut"].concat()),
        ("ELECTION", flipped),
        ("ELECTION", wire::frame(200, b"")),
        ("ELECTION", wire::frame(5, &[0xff; 64])),
        ("ELECTION", wire::frame(5, &wire::nested(100_000))),
        ("ELECTION", wire::frame(5, &wire::vote_request(1, 9, 2))),
        ("FEEDER", wire::frame(3, &wire::append(9, 2, 0))),
        ("FEEDER", wire::frame(3, &wire::append(1, 3, 1_000_000))),
        ("ADMIN", wire::frame(9, &[0xff; 64])),
        ("NODE_STATE", wire::frame(8, &[0xff; 64])),
    ]
    .into_iter()
    .chain(votes.map(|vote| ("ELECTION", vote)))
    .chain(appends.map(|append| ("FEEDER", append)))
    .collect();
    for (service, bytes) in nonsense {
        let mut peer = open(service);
        peer.write(&bytes);
        peer.end();
        assert_eq!(peer.receive(), None, "{service} {bytes:?}");
    }

    let mut peer = open("ELECTION");
    for id in 1..=2 {
        // A vote of the past, and the same again.
        peer.send(5, &wire::vote_request(id, 0, 3));
        let (_, reply) = peer.receive().expect("an answer");
        assert!(!wire::is_granted(&reply), "{reply:?}");
    }
    secured.assert_unmoved(&before);
}

#[test]
fn a_removed_node_that_goes_on_calling_gets_nothing_and_fills_no_log() {
    const CALLS: usize = 300;
    let mut secured = Secured::prepared();
    for at in 0..3 {
        let mut start = telling("true", &secured.arguments(at));
        secured.group.nodes[at] = Some(Node::spawn(&mut start));
    }
    for node in secured.group.nodes.iter().flatten() {
        node.wait_ready();
    }
    let own = Hello::of_directory(&secured.group.data_dir(2), 1);
    secured.run_to(0, &["node", "remove", "n3"]);
    let gone = secured.group.nodes[2].take();
    drop(gone);
    let before = secured.standing();
    let papers = Papers::read(&secured.of("n3"));
    let refused = || papers.hello(&secured.address(0), &own, "ELECTION");
    for _ in 0..CALLS {
        assert_eq!(refused(), Refusal::NotAMember);
    }
    for _ in 0..CALLS {
        answer_to(&secured.address(0), b"GET / HTTP/1.1\r\n\r\n");
    }
    let after = secured.standing();
    assert_eq!(after.said, before.said);

    let node = secured.group.nodes[0].take().expect("it runs");
    node.signal("-TERM");
    let mut lines = Vec::new();
    while let Ok(line) = node.lines.recv_timeout(PATIENCE) {
        lines.push(line);
    }
    let of = |word: &str| lines.iter().filter(|line| line.contains(word)).count();
    assert!(of("NotAMember") <= 3, "{lines:#?}");
    assert!(of("not_tls") <= 3, "{lines:#?}");
    // Those after the first were counted, and are told at the end of a minute, or of the node.
    let told = lines
        .iter()
        .find(|line| line.contains("refused more connections"));
    let told = told.expect("what was counted is told");
    for word in [&format!("not_tls {}", CALLS - 1)[..], "NotAMember"] {
        assert!(told.contains(word), "{told}");
    }
}

#[test]
fn a_node_that_may_open_few_files_says_so() {
    let dir = TempDir::new().expect("a directory");
    let start = |limit: usize, name: &str| {
        let data = dir.path().join(name);
        let arguments = node_arguments("g", "n1", &data, free_port());
        Node::spawn(&mut telling(&format!("ulimit -n {limit}"), &arguments))
    };
    let few = start(64, "few");
    let said = few.wait_for(&["few files"]);
    assert!(
        said.contains("max=64") && said.contains("LimitNOFILE"),
        "{said}"
    );
    few.wait_for(&["is master"]);
    let enough = start(256, "enough");
    let said = enough.wait_for(&["few files", "is master"]);
    assert!(said.contains("is master"), "{said}");
}
