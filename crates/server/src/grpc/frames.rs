//! The frames of gRPC: one byte that says whether it is compressed, four of length, a message.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};
use tonic::{Code, Status};

use crate::error::Error;

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

/// Memory for what clients have begun to send. Who finds none left is refused: what waits would be
/// held up by those who send slowly.
#[derive(Debug)]
pub(crate) struct Budget(AtomicUsize);

/// Bytes of a [`Budget`], given back when dropped.
pub(crate) struct Taken {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Budget {
    pub(crate) fn new(bytes: usize) -> Arc<Self> {
        Arc::new(Self(AtomicUsize::new(bytes)))
    }

    /// # Errors
    /// [`Error::TooManyRequests`] when there is not that much left.
    pub(crate) fn take(self: &Arc<Self>, bytes: usize) -> Result<Taken, Error> {
        let less = |left: usize| left.checked_sub(bytes);
        let taken = self
            .0
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, less);
        taken.map_err(|_| Error::TooManyRequests)?;
        let budget = Arc::clone(self);
        Ok(Taken { budget, bytes })
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.budget.0.fetch_add(self.bytes, Ordering::AcqRel);
    }
}

/// A request whose messages are at most `max` bytes: a longer one ends it with the error that
/// clients of etcd know, before any of it is kept. While one is under way, its bytes are taken from
/// a budget.
pub(crate) struct Limited<B> {
    body: B,
    max: usize,
    budget: Arc<Budget>,
    taken: Option<Taken>,
    /// Bytes of the message that are still to come.
    rest: usize,
    head: [u8; HEAD],
    head_len: usize,
}

impl<B> Limited<B> {
    pub(crate) fn new(body: B, max: usize, budget: &Arc<Budget>) -> Self {
        Self {
            body,
            max,
            budget: Arc::clone(budget),
            taken: None,
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
                if self.rest == 0 {
                    self.taken = None;
                }
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
                self.taken = Some(self.budget.take(self.rest)?);
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

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::atomic::Ordering;

    use bytes::{Bytes, BytesMut};
    use futures_util::{FutureExt, stream};
    use http_body::Frame;
    use http_body_util::{BodyExt, StreamBody};
    use tonic::{Code, Status};

    use super::{Budget, Limited, framed, next_message};

    /// A body that comes in these pieces.
    fn body(
        pieces: Vec<Bytes>,
    ) -> StreamBody<impl futures_util::Stream<Item = Result<Frame<Bytes>, Infallible>> + Unpin>
    {
        let frames = pieces.into_iter().map(|piece| Ok(Frame::data(piece)));
        StreamBody::new(stream::iter(frames))
    }

    #[test]
    fn messages_come_out_whole_however_they_are_cut() {
        let whole = [framed(b"one"), framed(b""), framed(b"three")].concat();
        for cut in 0..whole.len() {
            let mut buffer = BytesMut::new();
            let mut messages = Vec::new();
            for piece in [&whole[..cut], &whole[cut..]] {
                buffer.extend_from_slice(piece);
                while let Some(message) = next_message(&mut buffer) {
                    messages.push(message);
                }
            }
            assert_eq!(messages, ["one", "", "three"], "cut at {cut}");
        }
    }

    #[test]
    fn what_is_not_whole_is_taken_from_the_budget_until_it_is() {
        let budget = Budget::new(10);
        let left = || budget.0.load(Ordering::Acquire);
        let whole = framed(b"12345678");
        let pieces = vec![whole.slice(..3), whole.slice(3..7), whole.slice(7..)];
        let mut first = Limited::new(body(pieces), 100, &budget);
        let next = |body: &mut Limited<_>| body.frame().now_or_never().flatten();
        assert!(next(&mut first).is_some());
        assert_eq!(left(), 10, "its length is not known yet");
        assert!(next(&mut first).is_some());
        assert_eq!(left(), 2);
        let mut second = Limited::new(body(vec![framed(b"123")]), 100, &budget);
        let refused = second.frame().now_or_never().flatten().expect("an error");
        let refused = Status::from_error(refused.expect_err("there is no room"));
        assert_eq!(refused.code(), Code::ResourceExhausted);
        assert!(next(&mut first).is_some());
        assert_eq!(left(), 10);
        let mut third = Limited::new(body(vec![whole.slice(..7)]), 100, &budget);
        assert!(third.frame().now_or_never().flatten().is_some());
        drop(third);
        assert_eq!(left(), 10, "it will never be whole");
    }
}
