//! The decoders of this crate as functions of bytes: what the targets in `fuzz/` call, and what a test
//! calls with the corpora there. Not part of the interface.
//!
//! Each function decodes as the crate does, and panics where bytes lead to something that must not
//! be. Blocking channels have no framing of their own: they are connections too.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::FutureExt;
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::runtime::{Builder, Runtime};

use crate::connection::Connection;
use crate::lock::lock;
use crate::service::{MAX_SERVICE_NAME_LEN, read_service_name};
use crate::tcp::TcpTransport;
use crate::tls::{TlsCredentials, TlsTransport, identity_of};

/// A decoder, and the name of its target and of its corpus.
pub type Target = (&'static str, fn(&[u8]));

/// Every target of this crate.
pub const TARGETS: &[Target] = &[
    ("net_frame", net_frame),
    ("net_identity", net_identity),
    ("net_pem", net_pem),
    ("net_service_open", net_service_open),
];

/// Memory that a connection may hold for a peer that has sent less than this.
const HELD_BYTES_MAX: usize = 64 * 1024;

/// Frames, in reads of as many bytes as the first byte says.
pub fn net_frame(input: &[u8]) {
    let Some((&step, bytes)) = input.split_first() else {
        return;
    };
    let (frames, end) = received(bytes, usize::from(step) + 1);
    let whole = received(bytes, usize::MAX);
    assert_eq!(
        (&frames, &end),
        (&whole.0, &whole.1),
        "how bytes come in does not matter"
    );
    let again = sent(&frames);
    assert!(
        bytes.starts_with(&again),
        "frames are sent as they were received"
    );
    assert_eq!(
        end.is_none(),
        again.len() == bytes.len(),
        "what is left over is told"
    );
}

/// The name of the service that a client asks for.
pub fn net_service_open(input: &[u8]) {
    let mut rest = input;
    let Ok(name) = now(read_service_name(&mut rest)) else {
        return;
    };
    assert!((1..=MAX_SERVICE_NAME_LEN).contains(&name.len()));
    assert_eq!(
        input.len() - rest.len(),
        4 + name.len(),
        "nothing more is read"
    );
}

/// A certificate in DER, and whom it names.
pub fn net_identity(input: &[u8]) {
    if let Ok(identity) = identity_of(&CertificateDer::from(input)) {
        assert!(!identity.is_empty() && identity.len() <= input.len());
    }
}

/// A PEM text with all that credentials consist of.
pub fn net_pem(input: &[u8]) {
    if let Ok(credentials) = TlsCredentials::from_pem(input, input, input) {
        assert!(!credentials.certificate().is_empty());
        drop(TlsTransport::new(Arc::new(TcpTransport), &credentials));
    }
}

/// The frames in `bytes`, which arrive in reads of at most `step`, and the error at their end.
fn received(bytes: &[u8], step: usize) -> (Vec<Bytes>, Option<String>) {
    let stream = Script {
        incoming: bytes.to_vec(),
        at: 0,
        step,
        outgoing: Arc::default(),
    };
    let (_sender, mut receiver) = Connection::new(Box::new(stream), String::new()).split();
    let mut frames = Vec::new();
    let end = loop {
        match now(receiver.receive()) {
            Ok(Some(frame)) => frames.push(frame),
            Ok(None) => break None,
            Err(error) => break Some(error.to_string()),
        }
        let held = receiver.held_bytes();
        assert!(
            held <= HELD_BYTES_MAX + bytes.len(),
            "{held} bytes are held"
        );
    };
    (frames, end)
}

/// What sending these frames writes.
fn sent(frames: &[Bytes]) -> Vec<u8> {
    let outgoing = Arc::<Mutex<Vec<u8>>>::default();
    let stream = Script {
        incoming: Vec::new(),
        at: 0,
        step: usize::MAX,
        outgoing: Arc::clone(&outgoing),
    };
    let (mut sender, _receiver) = Connection::new(Box::new(stream), String::new()).split();
    let sending = async {
        for frame in frames {
            sender.feed(frame.clone()).await?;
        }
        sender.flush().await
    };
    now(sending).expect("memory takes everything");
    std::mem::take(&mut *lock(&outgoing))
}

/// The output of work on a stream that never waits. Deadlines need a runtime.
fn now<T>(work: impl Future<Output = T>) -> T {
    thread_local! {
        static RUNTIME: Runtime = {
            let built = Builder::new_current_thread().enable_time().build();
            built.expect("a runtime without threads and sockets")
        };
    }
    RUNTIME.with(|runtime| {
        let _context = runtime.enter();
        work.now_or_never().expect("nothing waits")
    })
}

/// A stream that gives these bytes, a few at a time, and keeps what it is given.
struct Script {
    incoming: Vec<u8>,
    at: usize,
    step: usize,
    outgoing: Arc<Mutex<Vec<u8>>>,
}

impl AsyncRead for Script {
    fn poll_read(
        self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let script = self.get_mut();
        let left = &script.incoming[script.at..];
        let count = left.len().min(script.step).min(buffer.remaining());
        buffer.put_slice(&left[..count]);
        script.at += count;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Script {
    fn poll_write(
        self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        lock(&self.outgoing).extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests;
