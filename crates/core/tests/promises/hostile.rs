//! A peer of bad intent who holds credentials, but not a node's: well-formed hellos with lies in them,
//! then messages of every kind, whole and mutilated, to every service of every node.

use std::fs;
use std::path::Path;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use steadfast::credentials::{INVITED_FOR, of_pass};
use steadfast::ids::GroupEpoch;
use steadfast::{Access, AdminCommand, NodeStatus, TlsCredentials, TlsTransport};
use steadfast_net::open_service;

use crate::support::{Env, eventually, put};
use crate::tls::{World, issued, master, now_ms};

const CONNECTIONS: usize = 500;

const SERVICES: [&str; 10] = [
    "FEEDER",
    "ELECTION",
    "RESTORE",
    "CALLS",
    "DATA",
    "WRITES",
    "ADMIN",
    "SUBSCRIPTION",
    "EVENTS",
    "NODE_STATE",
];

/// The kinds on the wire, in the order in which an input of the fuzzer counts them.
const KINDS: [u8; 19] = [
    1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 20, 21, 22, 30, 31, 40, 41, 42, 43,
];

/// As docs/protocol.md has it.
#[derive(Clone, PartialEq, Eq, Message)]
struct Hello {
    #[prost(uint32, tag = "1")]
    version_min: u32,
    #[prost(uint32, tag = "2")]
    version_max: u32,
    #[prost(bytes = "bytes", tag = "3")]
    group: Bytes,
    #[prost(uint64, tag = "4")]
    sender: u64,
    #[prost(fixed64, tag = "5")]
    sender_incarnation: u64,
    #[prost(uint64, tag = "6")]
    receiver: u64,
    #[prost(string, tag = "7")]
    purpose: String,
    #[prost(uint64, tag = "8")]
    epoch: u64,
}

fn frame(kind: u8, body: &[u8]) -> Bytes {
    let mut frame = BytesMut::from(&[kind, 0, 0, 0][..]);
    frame.put_u32_le(crc32c::crc32c_append(crc32c::crc32c(&frame), body));
    frame.put_slice(body);
    frame.freeze()
}

struct Hostile {
    rng: StdRng,
    group: Bytes,
    /// Messages that the fuzzer has kept, and valid ones of each kind.
    messages: Vec<Vec<u8>>,
}

impl Hostile {
    fn new(group: Bytes) -> Self {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/message");
        let mut paths: Vec<_> = fs::read_dir(corpus)
            .expect("the corpus is there")
            .map(|entry| entry.expect("read").path())
            .collect();
        paths.sort();
        let messages = paths.iter().map(|path| fs::read(path).expect("read"));
        Self {
            rng: StdRng::seed_from_u64(17),
            group,
            messages: messages.collect(),
        }
    }

    /// A hello that is right in most of what it says.
    fn hello(&mut self, service: &str) -> Bytes {
        let rng = &mut self.rng;
        let group = match rng.random_range(0..4) {
            0 => Bytes::new(),
            1 => Bytes::from(rng.random::<[u8; 16]>().to_vec()),
            _ => self.group.clone(),
        };
        let number = |rng: &mut StdRng| match rng.random_range(0..8) {
            0 => u64::MAX,
            1 => rng.random(),
            _ => rng.random_range(0..5),
        };
        let hello = Hello {
            version_min: 1,
            version_max: rng.random_range(0..3),
            group,
            sender: number(rng),
            sender_incarnation: rng.random(),
            receiver: number(rng),
            purpose: match rng.random_range(0..6) {
                0 => (*SERVICES.choose(rng).expect("some")).to_owned(),
                _ => service.to_owned(),
            },
            epoch: match rng.random_range(0..3) {
                0 => number(rng),
                _ => 1,
            },
        };
        frame(KINDS[0], &hello.encode_to_vec())
    }

    /// A message of any kind, some of them with a byte that is wrong, or cut off.
    fn message(&mut self) -> Bytes {
        let rng = &mut self.rng;
        let message = self.messages.choose(rng).expect("some");
        let (&place, body) = message.split_first().expect("a kind");
        let kind = KINDS[usize::from(place) % KINDS.len()];
        let mut body = body.to_vec();
        if rng.random_bool(0.3) && !body.is_empty() {
            let at = rng.random_range(0..body.len());
            body[at] = rng.random();
        }
        if rng.random_bool(0.1) {
            body.truncate(rng.random_range(0..=body.len()));
        }
        let mut frame = BytesMut::from(&frame(kind, &body)[..]);
        if rng.random_bool(0.05) {
            let at = rng.random_range(0..frame.len());
            frame[at] ^= 1;
        }
        frame.freeze()
    }
}

/// What may not have changed.
fn kept(statuses: &[NodeStatus]) -> String {
    let kept = statuses.iter().map(|status| {
        let members: Vec<_> = status.members.iter().collect();
        format!(
            "{:?} {:?} {:?} {members:?}\n",
            status.term, status.role, status.master
        )
    });
    kept.collect()
}

#[test]
fn a_hostile_peer_that_is_no_node_moves_nobody() {
    let world = World::new();
    let mut group = world.open_three();
    let of_removed = world.node(3);
    let command = AdminCommand::Remove {
        node: "n3".to_owned(),
        force: false,
    };
    group[0].administer(&command).expect("removed");
    group.truncate(2);
    let pass = world.authority.invite(GroupEpoch(1), INVITED_FOR, now_ms());
    let pass = of_pass(&pass.expect("a pass")).expect("usable");
    let others = [Access::Client, Access::Monitor, Access::Subscriber];
    let mut holders: Vec<TlsCredentials> = others
        .map(|access| issued(&world.authority, access, "someone"))
        .into();
    holders.extend([of_removed, pass]);
    let _token = put(master(&group), "k", "before").expect("written");
    eventually("both know", || {
        group.iter().all(|node| node.status().members.len() == 2)
    });
    let statuses = || group.iter().map(Env::status).collect::<Vec<_>>();
    let before = kept(&statuses());

    let uuid = group[0].status().group.expect("a group");
    let mut hostile = Hostile::new(Bytes::copy_from_slice(uuid.0.as_bytes()));
    let networks: Vec<TlsTransport> = holders.iter().map(|holder| world.seen_by(holder)).collect();
    let mut heard = 0;
    for at in 0..CONNECTIONS {
        let network = &networks[at % networks.len()];
        let service = *SERVICES.choose(&mut hostile.rng).expect("some");
        let address = format!("n{}:7400", hostile.rng.random_range(1..=2));
        let mut frames = vec![hostile.hello(service)];
        frames.extend((0..hostile.rng.random_range(0..4)).map(|_| hostile.message()));
        heard += world.runtime.block_on(async {
            let Ok(connection) = open_service(network, &address, service).await else {
                return 0;
            };
            let (mut sender, mut receiver) = connection.split();
            for frame in frames {
                // It may be closed already.
                sender.send(frame).await.ok();
            }
            let answer = tokio::time::timeout(Duration::from_millis(20), receiver.receive());
            usize::from(matches!(answer.await, Ok(Ok(Some(_)))))
        });
    }
    assert!(
        heard > CONNECTIONS / 4,
        "{heard} were answered: it says nothing then"
    );
    assert_eq!(kept(&statuses()), before);
    let _token = put(master(&group), "k", "after").expect("it goes on");
}
