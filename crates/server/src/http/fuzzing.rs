//! What arrives on a connection as functions of bytes: see [`crate::fuzzing`].

use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, ReadBuf};

use super::scheme::SchemeTaken;

/// Bytes that come a few at a time, and never wait.
struct Steps<'a> {
    bytes: &'a [u8],
    step: usize,
}

impl AsyncRead for Steps<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let count = self.bytes.len().min(self.step).min(buffer.remaining());
        let (now, later) = self.bytes.split_at(count);
        buffer.put_slice(now);
        self.bytes = later;
        Poll::Ready(Ok(()))
    }
}

/// A connection whose client sends these bytes, as many at a time as the first says.
pub(crate) fn scheme(input: &[u8]) {
    let Some((&step, bytes)) = input.split_first() else {
        return;
    };
    let whole = read(bytes, usize::MAX);
    assert_eq!(whole.len(), bytes.len(), "nothing is added or lost");
    let changed = bytes.iter().zip(&whole).filter(|(sent, got)| sent != got);
    assert!(changed.count() <= 4, "a colon and two slashes");
    let pieces = read(bytes, usize::from(step) + 1);
    assert_eq!(pieces, whole, "how bytes come in does not matter");
}

/// What a reader gets.
fn read(bytes: &[u8], step: usize) -> Vec<u8> {
    let mut stream = SchemeTaken::new(Steps { bytes, step });
    let (mut all, mut room) = (Vec::new(), [0; 100]);
    let cx = &mut Context::from_waker(Waker::noop());
    loop {
        let mut buffer = ReadBuf::new(&mut room);
        let Poll::Ready(Ok(())) = Pin::new(&mut stream).poll_read(cx, &mut buffer) else {
            panic!("it waits for what is there");
        };
        if buffer.filled().is_empty() {
            return all;
        }
        all.extend_from_slice(buffer.filled());
    }
}
