//! A transport that listens in: it takes the frames out of each connection that its node dials.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use steadfast_net::{BoxFuture, ByteStream, Connected, Listener, Result, Transport};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::conversation::Conversation;
use crate::journal::Journal;

/// A frame and the service open both begin with their length, of so many bytes.
const LENGTH_BYTES: usize = 4;

/// One node's side of the network.
pub(crate) struct Tap {
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) name: String,
    pub(crate) journal: Journal,
}

impl Transport for Tap {
    fn connect<'a>(&'a self, address: &'a str) -> BoxFuture<'a, Result<Connected>> {
        Box::pin(async move {
            let Connected {
                stream,
                address,
                identity,
            } = self.transport.connect(address).await?;
            let host = address.split(':').next().unwrap_or_default();
            let tapped = Tapped {
                stream,
                sent: Frames::default(),
                received: Frames::default(),
                conversation: Conversation::new(&self.name, host, &self.journal),
            };
            Ok(Connected {
                stream: Box::new(tapped),
                address,
                identity,
            })
        })
    }

    fn bind<'a>(&'a self, address: &'a str) -> BoxFuture<'a, Result<Box<dyn Listener>>> {
        self.transport.bind(address)
    }
}

struct Tapped {
    stream: Box<dyn ByteStream>,
    sent: Frames,
    received: Frames,
    conversation: Conversation,
}

/// Cuts a stream of bytes into frames.
#[derive(Default)]
struct Frames(Vec<u8>);

impl Frames {
    fn add(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    fn next(&mut self) -> Option<Vec<u8>> {
        let length = self.0.first_chunk::<LENGTH_BYTES>()?;
        let end = LENGTH_BYTES + u32::from_le_bytes(*length) as usize;
        if self.0.len() < end {
            return None;
        }
        let rest = self.0.split_off(end);
        let frame = std::mem::replace(&mut self.0, rest);
        Some(frame[LENGTH_BYTES..].to_vec())
    }
}

impl AsyncRead for Tapped {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(cx, buffer))?;
        this.received.add(&buffer.filled()[before..]);
        while let Some(frame) = this.received.next() {
            this.conversation.receive(&frame);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tapped {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let written = ready!(Pin::new(&mut this.stream).poll_write(cx, bytes))?;
        this.sent.add(&bytes[..written]);
        while let Some(frame) = this.sent.next() {
            this.conversation.send(&frame);
        }
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
