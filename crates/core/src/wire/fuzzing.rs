//! Hellos as functions of bytes. See `crate::fuzzing`.

use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use tokio::sync::watch;
use uuid::Uuid;

use crate::group::identity::Identity;
use crate::group::{Member, Members};
use crate::ids::{GroupUuid, Incarnation, NodeId};
use crate::wire::gate::{Gate, GivenIds};
use crate::wire::messages::{Hello, Kind, Refusal, decode};
use crate::wire::{
    ADMIN, CALLS, DATA, ELECTION, EVENTS, FEEDER, NODE_STATE, RESTORE, SUBSCRIPTION, WRITES,
};

/// What only nodes ask of each other, then what others may ask too.
const SERVICES: [&str; 10] = [
    FEEDER,
    ELECTION,
    RESTORE,
    CALLS,
    WRITES,
    ADMIN,
    SUBSCRIPTION,
    EVENTS,
    NODE_STATE,
    DATA,
];
const OF_NODES: usize = 5;
const HOLDERS: [&str; 3] = [
    "steadfast://orders/node/2",
    "steadfast://orders/admin/a",
    "steadfast://others/node/2",
];

/// The body of a hello, met by node 1 of a group whose other member is node 2.
pub(crate) fn hello(input: &[u8]) {
    let Ok(hello) = decode::<Hello>(Kind::Hello, framed(Kind::Hello, input)) else {
        return;
    };
    let gate = gate();
    for (place, service) in SERVICES.into_iter().enumerate() {
        let checked = gate.check(&hello, service);
        if let (Ok(caller), true) = (checked, place < OF_NODES) {
            let lives = &hello.earlier_incarnations;
            assert!(
                hello.sender_incarnation == 2 || lives.contains(&2) || caller > Some(NodeId(5))
            );
            assert_eq!(hello.group, group().to_bytes(), "of no other group");
        }
        for (at, holder) in HOLDERS.into_iter().enumerate() {
            let holder = holder.parse().expect("an identity");
            let checked = gate.check_holder(&hello, &holder, service);
            let is_foreign = at == HOLDERS.len() - 1;
            let refusal = checked.err().map(|(refusal, _)| refusal);
            assert!(!is_foreign || refusal == Some(Refusal::WrongGroup));
        }
    }
}

/// The frame of a message whose body this is, with its checksum.
pub(crate) fn framed(kind: Kind, body: &[u8]) -> Bytes {
    let mut frame = BytesMut::from(&[kind as u8, 0, 0, 0][..]);
    let checksum = crc32c::crc32c_append(crc32c::crc32c(&frame), body);
    frame.put_u32_le(checksum);
    frame.put_slice(body);
    frame.freeze()
}

fn gate() -> Gate {
    let identity = Identity {
        group: Some(group()),
        node_id: NodeId(1),
        ..Identity::fresh("orders", "n1", Incarnation(7))
    };
    let member = Member {
        incarnation: Incarnation(2),
        ..Member::default()
    };
    let members: Members = Arc::new([(NodeId(2), member)].into());
    Gate::new(
        watch::Sender::new(Arc::new(identity)).subscribe(),
        watch::Sender::new(members).subscribe(),
        Duration::ZERO,
        Arc::new(|own, later| assert!(later > own, "nobody ends for an earlier epoch")),
        Arc::new(UpToFive),
    )
}

/// Ids up to 5 were given out.
struct UpToFive;

impl GivenIds for UpToFive {
    fn newest(&self) -> NodeId {
        NodeId(5)
    }

    fn may_come(&self, id: NodeId) -> bool {
        id == NodeId(4)
    }
}

fn group() -> GroupUuid {
    GroupUuid(Uuid::from_u128(9))
}
