//! Takes clients that name the server with its scheme.
//!
//! HTTP/2 has `host:port` in a header of each request. The Go client of etcd 3.4, and so `etcdctl`,
//! sends `http://host:port` there when it asks one endpoint for its status, its hash or to
//! defragment. A server in Go takes that; ours resets the stream before any of our code sees it. So
//! the first header block of a connection is looked at on its way in, and `://` after the scheme
//! becomes `B--`, which a host may be called. Nothing reads the name.
//!
//! Both ends keep a table of header values, by their length, which later requests refer to. The new
//! characters have codes of the same length (RFC 7541, appendix B), so the tables stay alike, and
//! the block as long as it was.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What an HTTP/2 client sends first.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Bytes of the head of a frame: three of length, one of kind, one of flags, four of stream.
const FRAME_HEAD: usize = 9;
/// The kind of a frame with a header block.
const HEADERS: u8 = 1;
/// A header that is added to the table: the name is the first of the static table, `:authority`.
const AUTHORITY: u8 = 0x41;
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
}

/// Where in what a client sends the next byte belongs.
enum Place {
    /// After so many bytes of the preface.
    Preface(usize),
    /// In the head of a frame, of which so many bytes are there.
    Head([u8; FRAME_HEAD], usize),
    /// In a frame of which so many bytes are to come.
    Frame(usize),
    /// The first header block is through, or there is none.
    Through,
}

impl<S> SchemeTaken<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self {
            stream,
            place: Place::Preface(0),
        }
    }
}

impl Place {
    /// Goes on by these bytes.
    fn pass(&mut self, mut bytes: &mut [u8]) {
        while !bytes.is_empty() {
            let passed = match self {
                Self::Through => return,
                Self::Preface(at) => {
                    if bytes[0] != PREFACE[*at] {
                        *self = Self::Through;
                        return;
                    }
                    *at += 1;
                    if *at == PREFACE.len() {
                        *self = Self::Head([0; FRAME_HEAD], 0);
                    }
                    1
                }
                Self::Head(head, filled) => {
                    head[*filled] = bytes[0];
                    *filled += 1;
                    if *filled == FRAME_HEAD {
                        let [a, b, c, kind, ..] = *head;
                        if kind == HEADERS {
                            // A client sends a block at once. One that does not is told of its mistake.
                            take_scheme(&mut bytes[1..]);
                            *self = Self::Through;
                            return;
                        }
                        *self = Self::Frame(
                            usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c),
                        );
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
            };
            bytes = &mut bytes[passed..];
        }
    }
}

/// Overwrites what follows the scheme in the name of the server, if there is one.
fn take_scheme(block: &mut [u8]) {
    const LENGTH: usize = size_of::<u64>();
    for at in 0..block.len().saturating_sub(1 + LENGTH) {
        if block[at] != AUTHORITY || block[at + 1] & HUFFMAN == 0 {
            continue;
        }
        let text = &mut block[at + 2..at + 2 + LENGTH];
        let mut word = [0; LENGTH];
        word.copy_from_slice(text);
        let word = u64::from_be_bytes(word);
        for (from, to) in RULES {
            if word & from.mask == from.bits {
                text.copy_from_slice(&(word & !to.mask | to.bits).to_be_bytes());
                return;
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for SchemeTaken<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if let Poll::Ready(Ok(())) = read {
            self.place.pass(&mut buffer.filled_mut()[before..]);
        }
        read
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
    use super::*;

    /// `http://127.0.0.1:2379` in Huffman's code, as Go sends it.
    const NAMED: [u8; 15] = [
        0x9d, 0x29, 0xae, 0xe3, 0x0c, 0x04, 0x4e, 0xae, 0x05, 0xc0, 0xb8, 0x6e, 0x09, 0x97, 0x5f,
    ];

    fn sent(frames: &[(u8, &[u8])]) -> Vec<u8> {
        let mut bytes = PREFACE.to_vec();
        for (kind, payload) in frames {
            let length = u8::try_from(payload.len()).expect("a short block");
            bytes.extend([0, 0, length, *kind, 0, 0, 0, 0, 1]);
            bytes.extend_from_slice(payload);
        }
        bytes
    }

    fn block() -> Vec<u8> {
        let length = u8::try_from(NAMED.len()).expect("a short name");
        [&[0x83, 0x86, AUTHORITY, HUFFMAN | length][..], &NAMED].concat()
    }

    #[test]
    fn the_first_block_alone_is_changed_however_what_comes_before_is_cut() {
        let bytes = sent(&[(4, &[0; 6]), (HEADERS, &block()), (HEADERS, &block())]);
        let first = PREFACE.len() + FRAME_HEAD + 6 + FRAME_HEAD + 4;
        for cut in 0..first - 4 {
            let mut passed = bytes.clone();
            let mut place = Place::Preface(0);
            place.pass(&mut passed[..cut]);
            place.pass(&mut passed[cut..]);
            let changed: Vec<_> = (0..bytes.len())
                .filter(|&at| bytes[at] != passed[at])
                .collect();
            assert!(
                !changed.is_empty() && changed.iter().all(|at| (first + 2..first + 6).contains(at))
            );
            assert_eq!(passed[first..first + 2], bytes[first..first + 2], "http");
        }
    }

    #[test]
    fn what_is_no_http_2_passes_as_it_is() {
        for bytes in [
            sent(&[(0, &block())]),
            [b"POST / HTTP/1.1\r\n", &block()[..]].concat(),
        ] {
            let mut passed = bytes.clone();
            Place::Preface(0).pass(&mut passed);
            assert_eq!(bytes, passed);
        }
    }
}
