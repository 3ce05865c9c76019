//! The protocol by hand, from docs/protocol.md, for callers that do not keep to it.

use std::fs;
use std::io::{Read, Write};
use std::path::Path;

use super::hands::Secure;

const HELLO: u8 = 1;

/// A hello, true or not.
#[derive(Clone, Debug)]
pub(in super::super) struct Hello {
    versions: (u64, u64),
    group: Vec<u8>,
    sender: u64,
    incarnation: u64,
    receiver: u64,
    purpose: Option<String>,
}

/// How a hello was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    None,
    WrongGroup,
    WrongNode,
    NotAMember,
    FencedIncarnation,
    NoCommonVersion,
    NotAllowed,
    /// Another one, or no answer.
    Other,
}

impl Hello {
    /// What the owner of this directory says to a node.
    pub(in super::super) fn of_directory(dir: &Path, receiver: u64) -> Self {
        let identity = fs::read(dir.join("identity")).expect("an identity");
        let fields = fields(&identity[20..]);
        let find = |wanted: u64| {
            let found = fields.iter().find(|(tag, _)| *tag == wanted);
            &found.expect("it has formed").1
        };
        Self {
            versions: (1, 1),
            group: find(4).bytes().to_vec(),
            sender: find(5).number(),
            incarnation: find(3).number(),
            receiver,
            purpose: None,
        }
    }

    pub(super) fn versions(self, min: u64, max: u64) -> Self {
        let versions = (min, max);
        Self { versions, ..self }
    }

    pub(super) fn group(self, group: [u8; 16]) -> Self {
        let group = group.to_vec();
        Self { group, ..self }
    }

    pub(super) fn sender(self, sender: u64) -> Self {
        Self { sender, ..self }
    }

    pub(super) fn incarnation(self, incarnation: u64) -> Self {
        Self {
            incarnation,
            ..self
        }
    }

    pub(super) fn receiver(self, receiver: u64) -> Self {
        Self { receiver, ..self }
    }

    /// Another service than the one that is opened.
    pub(super) fn purpose(self, purpose: &str) -> Self {
        let purpose = Some(purpose.to_owned());
        Self { purpose, ..self }
    }

    fn encode(&self, service: &str) -> Vec<u8> {
        let purpose = self.purpose.as_deref().unwrap_or(service);
        [
            number(1, self.versions.0),
            number(2, self.versions.1),
            bytes(3, &self.group),
            number(4, self.sender),
            fixed(5, self.incarnation),
            number(6, self.receiver),
            bytes(7, purpose.as_bytes()),
        ]
        .concat()
    }
}

/// A connection to a service of a node.
pub(super) struct Peer(Secure);

impl Peer {
    /// Opens a service with this hello; returns how it was answered.
    pub(super) fn open(stream: Secure, hello: &Hello, service: &str) -> (Self, Refusal) {
        let mut peer = Self(stream);
        let name_len = u32::try_from(service.len()).expect("short");
        peer.write(&[&name_len.to_le_bytes()[..], service.as_bytes()].concat());
        peer.send(HELLO, &hello.encode(service));
        let reply = peer.receive().map(|(_, body)| fields(&body));
        let refusal = reply.map(|fields| {
            let found = fields.iter().find(|(tag, _)| *tag == 2);
            found.map_or(0, |(_, value)| value.number())
        });
        let refusal = match refusal {
            Some(0) => Refusal::None,
            Some(1) => Refusal::WrongGroup,
            Some(2) => Refusal::WrongNode,
            Some(3) => Refusal::NotAMember,
            Some(4) => Refusal::FencedIncarnation,
            Some(5) => Refusal::NoCommonVersion,
            Some(6) => Refusal::NotAllowed,
            _ => Refusal::Other,
        };
        (peer, refusal)
    }

    pub(super) fn send(&mut self, kind: u8, body: &[u8]) {
        self.write(&frame(kind, body));
    }

    /// Sends bytes; the node may have closed already.
    pub(super) fn write(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).ok();
        self.0.flush().ok();
    }

    /// Ends what this side sends.
    pub(super) fn end(&mut self) {
        self.0.conn.send_close_notify();
        self.0.flush().ok();
    }

    /// Kind and body of the next frame; `None` when the node has closed.
    pub(super) fn receive(&mut self) -> Option<(u8, Vec<u8>)> {
        let mut length = [0; 4];
        self.0.read_exact(&mut length).ok()?;
        let length = usize::try_from(u32::from_le_bytes(length)).expect("a length");
        let mut payload = vec![0; length];
        self.0.read_exact(&mut payload).ok()?;
        Some((payload[0], payload.split_off(8)))
    }
}

/// A frame with an envelope.
pub(super) fn frame(kind: u8, body: &[u8]) -> Vec<u8> {
    let head = [kind, 0, 0, 0];
    let checksum = crc32c::crc32c(&[&head, body].concat());
    let length = u32::try_from(8 + body.len()).expect("short");
    [&length.to_le_bytes(), &head, &checksum.to_le_bytes(), body].concat()
}

/// An `ElectionRequest` for a vote.
pub(super) fn vote_request(id: u64, term: u64, node: u64) -> Vec<u8> {
    let last = [number(1, term), number(2, 1_000_000)].concat();
    let request = [bytes(1, &vote(term, node)), bytes(2, &last), number(3, 1)].concat();
    [number(1, id), bytes(2, &request)].concat()
}

/// An `Append` with one blank entry, which follows on nothing.
pub(super) fn append(term: u64, node: u64, position: u64) -> Vec<u8> {
    let entry = [number(1, term), number(2, position)].concat();
    [bytes(1, &vote(term, node)), bytes(4, &entry)].concat()
}

/// An unknown group in a group in a group, as deep as that.
pub(super) fn nested(depth: usize) -> Vec<u8> {
    vec![0x7b; depth]
}

/// Whether an `ElectionReply` grants a vote.
pub(super) fn is_granted(reply: &[u8]) -> bool {
    let find = |of: &[u8], wanted: u64| {
        let found = fields(of).into_iter().find(|(tag, _)| *tag == wanted);
        found.map(|(_, value)| value)
    };
    let vote = find(reply, 2).expect("an answer to a request for a vote");
    find(vote.bytes(), 2).is_some_and(|granted| granted.number() == 1)
}

fn vote(term: u64, node: u64) -> Vec<u8> {
    [number(1, term), number(2, node), number(3, 1)].concat()
}

fn varint(mut number: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number >= 0x80 {
        bytes.push(u8::try_from(number & 0x7f).expect("7 bits") | 0x80);
        number >>= 7;
    }
    bytes.push(u8::try_from(number).expect("7 bits"));
    bytes
}

fn number(tag: u64, value: u64) -> Vec<u8> {
    [varint(tag << 3), varint(value)].concat()
}

fn fixed(tag: u64, value: u64) -> Vec<u8> {
    [varint(tag << 3 | 1), value.to_le_bytes().to_vec()].concat()
}

fn bytes(tag: u64, value: &[u8]) -> Vec<u8> {
    let length = varint(value.len() as u64);
    [varint(tag << 3 | 2), length, value.to_vec()].concat()
}

/// The value of a field.
enum Field {
    Number(u64),
    Bytes(Vec<u8>),
}

impl Field {
    fn number(&self) -> u64 {
        match self {
            Self::Number(number) => *number,
            Self::Bytes(bytes) => panic!("{bytes:?} is no number"),
        }
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Number(number) => panic!("{number} is no text"),
        }
    }
}

/// The fields of a message, by tag.
fn fields(mut message: &[u8]) -> Vec<(u64, Field)> {
    let mut fields = Vec::new();
    while !message.is_empty() {
        let key = take_varint(&mut message);
        let field = match key & 7 {
            0 => Field::Number(take_varint(&mut message)),
            1 => {
                let (value, rest) = message.split_at(8);
                message = rest;
                Field::Number(u64::from_le_bytes(value.try_into().expect("8 bytes")))
            }
            2 => {
                let length = take_varint(&mut message);
                let (value, rest) = message.split_at(usize::try_from(length).expect("short"));
                message = rest;
                Field::Bytes(value.to_vec())
            }
            other => panic!("no field of ours has the form {other}"),
        };
        fields.push((key >> 3, field));
    }
    fields
}

fn take_varint(message: &mut &[u8]) -> u64 {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = message.split_first().expect("whole");
        *message = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            break;
        }
    }
    number
}
