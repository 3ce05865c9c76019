//! Takes clients that name the server with its scheme.
//!
//! HTTP/2 has `host:port` in a header of each request. The Go client of etcd 3.4, and so `etcdctl`,
//! sends `http://host:port` there when it asks one endpoint for its status, its hash or to
//! defragment. A server in Go takes that; ours resets the stream before any of our code sees it. So
//! the first frame with a header block of a connection is looked at on its way in, once all of it is
//! there, and `://` after the scheme becomes `B--`, which a host may be called. Nothing reads the name.
//!
//! Both ends keep a table of header values, by their length, which later requests refer to. The new
//! characters have codes of the same length (RFC 7541, appendix B), so the tables stay alike, and
//! the block as long as it was. Nothing else is ever changed: of a block that goes on in further
//! frames only the first is looked at, where the name of the server is.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What an HTTP/2 client sends first.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Bytes of the head of a frame: three of length, one of kind, one of flags, four of stream.
const FRAME_HEAD: usize = 9;
/// The kind of a frame with a header block, and of its flags: it begins with the length of what
/// pads it; with a priority.
const HEADERS: u8 = 1;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
/// Bytes of a priority.
const PRIORITY_BYTES: usize = 5;
/// The longest frame that the server takes. A longer one ends the connection.
const FRAME_BYTES_MAX: usize = 16 * 1024;
/// The place of `:authority` in the static table of names.
const AUTHORITY: usize = 1;
/// Of the byte of a text's length: the text is in Huffman's code.
const HUFFMAN: u8 = 0x80;

/// Codes: their bits, and how many.
type Codes<const N: usize> = [(u64, u32); N];

const H: (u64, u32) = (0b10_0111, 6);
const T: (u64, u32) = (0b0_1001, 5);
const P: (u64, u32) = (0b10_1011, 6);
const S: (u64, u32) = (0b0_1000, 5);
const COLON: (u64, u32) = (0b101_1100, 7);
const SLASH: (u64, u32) = (0b01_1000, 6);
const B: (u64, u32) = (0b101_1101, 7);
const DASH: (u64, u32) = (0b01_0110, 6);

/// What a text begins with, and what it is to begin with.
const RULES: [(Bits, Bits); 2] = [
    (
        Bits::of([H, T, T, P, COLON, SLASH, SLASH]),
        Bits::of([H, T, T, P, B, DASH, DASH]),
    ),
    (
        Bits::of([H, T, T, P, S, COLON, SLASH, SLASH]),
        Bits::of([H, T, T, P, S, B, DASH, DASH]),
    ),
];

/// What a text that is not in Huffman's code begins with.
const PLAIN_RULES: [&[u8]; 2] = [b"http://", b"https://"];

/// The first bits of a text, from the highest on.
#[derive(Clone, Copy)]
struct Bits {
    bits: u64,
    mask: u64,
}

impl Bits {
    const fn of<const N: usize>(codes: Codes<N>) -> Self {
        let (mut bits, mut length, mut at) = (0, 0, 0);
        while at < N {
            bits = (bits << codes[at].1) | codes[at].0;
            length += codes[at].1;
            at += 1;
        }
        Self {
            bits: bits << (u64::BITS - length),
            mask: u64::MAX << (u64::BITS - length),
        }
    }
}

/// A connection whose first header block is looked at.
pub(crate) struct SchemeTaken<S> {
    stream: S,
    place: Place,
    /// The first block and what came with its end, until the reader has taken it.
    ready: Bytes,
}

/// Where in what a client sends the next byte belongs.
enum Place {
    /// After so many bytes of the preface.
    Preface(usize),
    /// In the head of a frame, of which so many bytes are there.
    Head([u8; FRAME_HEAD], usize),
    /// In a frame of which so many bytes are to come.
    Frame(usize),
    /// In the first frame with a header block: its flags, what is there, and how many bytes are to
    /// come.
    Block(u8, Vec<u8>, usize),
    /// The first header block is through, or there is none.
    Through,
}

/// What becomes of bytes that have arrived.
enum Passed {
    /// All of them go on.
    All,
    /// The first so many go on. The others are kept.
    First(usize),
    /// These take their place.
    Instead(Vec<u8>),
}

impl<S> SchemeTaken<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self {
            stream,
            place: Place::Preface(0),
            ready: Bytes::new(),
        }
    }
}

impl Place {
    /// Goes on by these bytes.
    fn pass(&mut self, all: &mut [u8]) -> Passed {
        let mut at = 0;
        while at < all.len() {
            let bytes = &mut all[at..];
            at += match self {
                Self::Through => return Passed::All,
                Self::Preface(known) => {
                    if bytes[0] != PREFACE[*known] {
                        *self = Self::Through;
                        return Passed::All;
                    }
                    *known += 1;
                    if *known == PREFACE.len() {
                        *self = Self::Head([0; FRAME_HEAD], 0);
                    }
                    1
                }
                Self::Head(head, filled) => {
                    head[*filled] = bytes[0];
                    *filled += 1;
                    if *filled == FRAME_HEAD {
                        *self = Self::behind(*head);
                    }
                    1
                }
                Self::Frame(left) => {
                    let passed = bytes.len().min(*left);
                    *left -= passed;
                    if *left == 0 {
                        *self = Self::Head([0; FRAME_HEAD], 0);
                    }
                    passed
                }
                Self::Block(flags, block, left) => {
                    if block.is_empty() && bytes.len() >= *left {
                        take_scheme(*flags, &mut bytes[..*left]);
                        *self = Self::Through;
                        return Passed::All;
                    }
                    let here = bytes.len().min(*left);
                    block.extend_from_slice(&bytes[..here]);
                    *left -= here;
                    if *left > 0 {
                        return Passed::First(at);
                    }
                    // It began in an earlier read, so nothing in this one is before it.
                    take_scheme(*flags, block);
                    let mut instead = std::mem::take(block);
                    instead.extend_from_slice(&bytes[here..]);
                    *self = Self::Through;
                    return Passed::Instead(instead);
                }
            };
        }
        Passed::All
    }

    /// The place behind the head of a frame.
    fn behind([a, b, c, kind, flags, ..]: [u8; FRAME_HEAD]) -> Self {
        let length = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        match kind {
            HEADERS if length > FRAME_BYTES_MAX => Self::Through,
            HEADERS => Self::Block(flags, Vec::new(), length),
            _ => Self::Frame(length),
        }
    }

    /// Nothing more arrives: what was kept.
    fn end(&mut self) -> Vec<u8> {
        match std::mem::replace(self, Self::Through) {
            Self::Block(_, block, _) => block,
            _ => Vec::new(),
        }
    }
}

/// Overwrites what follows the scheme in the name of the server, if there is one, in the payload of
/// a frame with a header block.
fn take_scheme(flags: u8, payload: &mut [u8]) {
    let mut at = usize::from(flags & PADDED != 0);
    if flags & PRIORITY != 0 {
        at += PRIORITY_BYTES;
    }
    // What is no block is for the server to refuse.
    if let Some((start, is_coded, end)) = authority(payload, at) {
        let text = &mut payload[start..end];
        if is_coded {
            take_coded_scheme(text);
        } else if let Some(scheme) = PLAIN_RULES.iter().find(|rule| text.starts_with(rule)) {
            text[scheme.len() - 3..scheme.len()].copy_from_slice(b"B--");
        }
    }
}

/// Where the name of the server is in a header block that begins at `at`, and whether it is in
/// Huffman's code (RFC 7541, section 6).
fn authority(block: &[u8], mut at: usize) -> Option<(usize, bool, usize)> {
    loop {
        let first = *block.get(at)?;
        let prefix_bits = match first {
            // A whole header out of the table.
            0x80.. => 7,
            // One that is added to the table.
            0x40.. => 6,
            // The size of the table.
            0x20.. => 5,
            // One that is not added.
            _ => 4,
        };
        let (name, behind) = integer(block, at, prefix_bits)?;
        at = behind;
        if matches!(first, 0x80.. | 0x20..0x40) {
            continue;
        }
        if name == 0 {
            (_, _, at) = text(block, at)?;
        }
        let value = text(block, at)?;
        if name == AUTHORITY {
            return Some(value);
        }
        at = value.2;
    }
}

/// Where the text at `at` begins, whether it is in Huffman's code, and where it ends.
fn text(block: &[u8], at: usize) -> Option<(usize, bool, usize)> {
    let is_coded = block.get(at)? & HUFFMAN != 0;
    let (length, start) = integer(block, at, 7)?;
    let end = start.checked_add(length)?;
    (end <= block.len()).then_some((start, is_coded, end))
}

/// The number at `at`, in the low bits of its first byte and the bytes behind it, and where it ends.
/// None is longer than a frame.
fn integer(block: &[u8], mut at: usize, prefix_bits: u32) -> Option<(usize, usize)> {
    let mask = (1 << prefix_bits) - 1;
    let mut number = usize::from(*block.get(at)? & mask);
    at += 1;
    if number < usize::from(mask) {
        return Some((number, at));
    }
    for shift in [0, 7, 14] {
        let byte = *block.get(at)?;
        at += 1;
        number += usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some((number, at));
        }
    }
    None
}

fn take_coded_scheme(text: &mut [u8]) {
    let mut word = [0; size_of::<u64>()];
    let length = text.len().min(word.len());
    word[..length].copy_from_slice(&text[..length]);
    let word = u64::from_be_bytes(word);
    let rule = RULES.iter().find(|(from, _)| word & from.mask == from.bits);
    if let Some((_, to)) = rule {
        let changed = (word & !to.mask | to.bits).to_be_bytes();
        text[..length].copy_from_slice(&changed[..length]);
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for SchemeTaken<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        loop {
            if !self.ready.is_empty() {
                let taken = self.ready.len().min(buffer.remaining());
                buffer.put_slice(&self.ready.split_to(taken));
                return Poll::Ready(Ok(()));
            }
            let has_room = buffer.remaining() > 0;
            ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
            if matches!(self.place, Place::Through) || !has_room {
                return Poll::Ready(Ok(()));
            }
            if buffer.filled().len() == before {
                self.ready = self.place.end().into();
                if self.ready.is_empty() {
                    return Poll::Ready(Ok(()));
                }
                continue;
            }
            match self.place.pass(&mut buffer.filled_mut()[before..]) {
                Passed::All => return Poll::Ready(Ok(())),
                Passed::First(count) => {
                    buffer.set_filled(before + count);
                    if count > 0 {
                        return Poll::Ready(Ok(()));
                    }
                }
                Passed::Instead(bytes) => {
                    buffer.set_filled(before);
                    self.ready = bytes.into();
                }
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for SchemeTaken<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    /// `http://127.0.0.1:2379` in Huffman's code, as Go sends it.
    const CODED: [u8; 15] = [
        0x9d, 0x29, 0xae, 0xe3, 0x0c, 0x04, 0x4e, 0xae, 0x05, 0xc0, 0xb8, 0x6e, 0x09, 0x97, 0x5f,
    ];
    /// The bytes of it that change.
    const CHANGED: std::ops::Range<usize> = 3..6;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let [a, b] = u16::try_from(payload.len()).expect("short").to_be_bytes();
        [&[0, a, b, kind, flags, 0, 0, 0, 1][..], payload].concat()
    }

    fn sent(frames: &[Vec<u8>]) -> Vec<u8> {
        [PREFACE, &frames.concat()].concat()
    }

    fn name(first: u8, flag: u8, text: &[u8]) -> Vec<u8> {
        let length = u8::try_from(text.len()).expect("short");
        [&[first, flag | length][..], text].concat()
    }

    /// A method, a scheme, a path and the name of the server.
    fn block(name: &[u8]) -> Vec<u8> {
        [&[0x83, 0x86, 0x44, 3][..], b"/a/", name].concat()
    }

    fn coded() -> Vec<u8> {
        name(0x41, HUFFMAN, &CODED)
    }

    /// What a reader gets of bytes that come in these pieces, into room for `room` bytes at a time.
    async fn read(pieces: &[&[u8]], room: usize) -> Vec<u8> {
        let mut stream = taken(pieces);
        let mut all = Vec::new();
        loop {
            let mut buffer = vec![0; room];
            let read = stream.read(&mut buffer).await.expect("no error");
            if read == 0 {
                return all;
            }
            all.extend_from_slice(&buffer[..read]);
        }
    }

    /// Gives one piece for each read, as far as there is room.
    struct Pieces(std::collections::VecDeque<Bytes>);

    impl AsyncRead for Pieces {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buffer: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            let Some(mut piece) = self.0.pop_front() else {
                return Poll::Ready(Ok(()));
            };
            let taken = piece.len().min(buffer.remaining());
            buffer.put_slice(&piece.split_to(taken));
            if !piece.is_empty() {
                self.0.push_front(piece);
            }
            Poll::Ready(Ok(()))
        }
    }

    fn taken(pieces: &[&[u8]]) -> SchemeTaken<Pieces> {
        let pieces = pieces.iter().filter(|piece| !piece.is_empty());
        let pieces = pieces.map(|piece| Bytes::copy_from_slice(piece));
        SchemeTaken::new(Pieces(pieces.collect()))
    }

    /// Where a reader gets something else than was sent.
    async fn changed(bytes: &[u8]) -> Vec<usize> {
        let whole = read(&[bytes], bytes.len() + 1).await;
        assert_eq!(whole.len(), bytes.len());
        for cut in 1..bytes.len() {
            for room in [7, bytes.len()] {
                let got = read(&[&bytes[..cut], &bytes[cut..]], room).await;
                assert_eq!(got, whole, "cut at {cut}, room for {room}");
            }
        }
        let single: Vec<&[u8]> = bytes.chunks(1).collect();
        assert_eq!(read(&single, 100).await, whole, "byte by byte");
        let differ = |at: &usize| bytes[*at] != whole[*at];
        (0..bytes.len()).filter(differ).collect()
    }

    #[tokio::test]
    async fn the_first_block_alone_is_changed_however_it_is_cut() {
        let settings = frame(4, 0, &[0; 6]);
        let before = PREFACE.len() + settings.len() + FRAME_HEAD;
        let block = block(&coded());
        let text = before + block.len() - CODED.len();
        for flags in [0x4, 0x5, 0x0] {
            let bytes = sent(&[
                settings.clone(),
                frame(HEADERS, flags, &block),
                frame(HEADERS, 0x4, &block),
                frame(0, 0, &block),
            ]);
            let changed = changed(&bytes).await;
            assert!(!changed.is_empty());
            assert!(changed.iter().all(|at| CHANGED.contains(&(at - text))));
        }
    }

    #[tokio::test]
    async fn padding_priority_and_every_form_of_the_header_are_known() {
        let long = [b"https://[fe80::1]:2379", &[b'x'; 200][..]].concat();
        // 127 and 95 more, in two bytes.
        let long = [&[0x41, 0x7f, 0xdf, 0][..], &long].concat();
        let names = [
            coded(),
            name(0x01, HUFFMAN, &CODED),
            name(0x11, HUFFMAN, &CODED),
            name(0x41, 0, b"http://[::1]:2379"),
            name(0x41, 0, b"https://[::1]:2379"),
            long,
        ];
        for name in names {
            let block = block(&name);
            let padded = [&[2][..], &block, &[0, 0]].concat();
            let with_priority = [&[0; 5][..], &block].concat();
            for (flags, payload) in [(0, &block), (PADDED, &padded), (PRIORITY, &with_priority)] {
                let bytes = sent(&[frame(HEADERS, flags | 0x4, payload)]);
                let got = read(&[&bytes], bytes.len()).await;
                assert_ne!(got, bytes, "{name:?} with {flags}");
            }
        }
    }

    #[tokio::test]
    async fn what_is_no_name_with_a_scheme_passes_as_it_is() {
        let plain = block(&name(0x41, 0, b"127.0.0.1:2379"));
        let looks_alike = block(&name(0x41, 0, b"http:8080"));
        // The same bytes in the value of another header, and in data behind the block.
        let inside = [&[0x83, 0x86][..], &name(0x44, 0, &coded())].concat();
        for bytes in [
            sent(&[frame(HEADERS, 0x4, &plain), frame(0, 1, &coded())]),
            sent(&[frame(HEADERS, 0x4, &looks_alike)]),
            sent(&[frame(HEADERS, 0x4, &inside), frame(0, 1, &coded())]),
            sent(&[frame(HEADERS, 0x4, &[]), frame(0, 1, &coded())]),
            // No block: numbers and texts without an end.
            sent(&[frame(
                HEADERS,
                0x4,
                &[0x41, 0xff, 0xff, 0xff, 0xff, 0xff, 1],
            )]),
            sent(&[frame(HEADERS, 0x4, &[0x40, 0xff])]),
            sent(&[frame(0, 0, &coded())]),
            [b"POST / HTTP/1.1\r\n", &coded()[..]].concat(),
        ] {
            assert_eq!(changed(&bytes).await, [0; 0], "{bytes:?}");
        }
    }

    #[tokio::test]
    async fn a_block_that_does_not_end_is_passed_on_at_the_end_and_a_longer_one_at_once() {
        let bytes = sent(&[frame(HEADERS, 0x4, &block(&coded()))]);
        let cut = &bytes[..bytes.len() - 1];
        assert_eq!(read(&[cut], 10).await, cut);
        let mut head = [0, 0x40, 0x01, HEADERS, 0x4, 0, 0, 0, 1];
        let mut place = Place::Head([0; FRAME_HEAD], 0);
        assert!(matches!(place.pass(&mut head), Passed::All));
        assert!(matches!(place, Place::Through), "nothing of it is kept");
    }

    #[test]
    fn what_the_name_becomes_is_one() {
        for name in [
            "httpB--[::1]:2379",
            "httpsB--[fe80::1]:2379",
            "httpB--127.0.0.1:2379",
        ] {
            name.parse::<http::uri::Authority>().expect(name);
        }
        let mut text = *b"http://[::1]:2379";
        let mut block = block(&super::tests::name(0x41, 0, &text));
        take_scheme(0, &mut block);
        text[4..7].copy_from_slice(b"B--");
        assert!(block.ends_with(&text));
    }
}
