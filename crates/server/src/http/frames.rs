//! The frames of gRPC: one byte that says whether it is compressed, four of length, a message.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};
use tonic::{Code, Status};

/// Bytes before each message.
pub(crate) const HEAD: usize = 5;

/// A message in its frame.
pub(crate) fn framed(message: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(HEAD + message.len());
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    frame.put_slice(message);
    frame.freeze()
}

/// Takes the first whole message out of `buffer`.
pub(crate) fn next_message(buffer: &mut BytesMut) -> Option<Bytes> {
    let length = buffer.get(1..HEAD)?.get_u32() as usize;
    if buffer.len() < HEAD + length {
        return None;
    }
    buffer.advance(HEAD);
    Some(buffer.split_to(length).freeze())
}

/// A request whose messages are at most `max` bytes: a longer one ends it with the error that
/// clients of etcd know, before any of it is kept.
pub(crate) struct Limited<B> {
    body: B,
    max: usize,
    /// Bytes of the message that are still to come.
    rest: usize,
    head: [u8; HEAD],
    head_len: usize,
}

impl<B> Limited<B> {
    pub(crate) fn new(body: B, max: usize) -> Self {
        Self {
            body,
            max,
            rest: 0,
            head: [0; HEAD],
            head_len: 0,
        }
    }

    /// Follows the frames in `data`.
    fn check(&mut self, mut data: &[u8]) -> Result<(), Status> {
        while !data.is_empty() {
            if self.rest > 0 {
                let taken = self.rest.min(data.len());
                self.rest -= taken;
                data = &data[taken..];
                continue;
            }
            let taken = (HEAD - self.head_len).min(data.len());
            self.head[self.head_len..self.head_len + taken].copy_from_slice(&data[..taken]);
            self.head_len += taken;
            data = &data[taken..];
            if self.head_len == HEAD {
                self.head_len = 0;
                self.rest = (&self.head[1..]).get_u32() as usize;
                if self.rest > self.max {
                    return Err(too_large(self.rest, self.max));
                }
            }
        }
        Ok(())
    }
}

/// What a message of `len` bytes is answered with where `max` are allowed.
pub(crate) fn too_large(len: usize, max: usize) -> Status {
    let text = format!("grpc: received message larger than max ({len} vs. {max})");
    Status::new(Code::ResourceExhausted, text)
}

impl<B> Body for Limited<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<tonic::codegen::StdError>,
{
    type Data = Bytes;
    type Error = tonic::codegen::StdError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let frame = match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
            Some(Ok(frame)) => frame,
            Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
            None => return Poll::Ready(None),
        };
        if let Some(data) = frame.data_ref()
            && let Err(status) = self.check(data)
        {
            return Poll::Ready(Some(Err(status.into())));
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
