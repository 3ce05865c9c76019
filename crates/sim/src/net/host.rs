//! What the process on a host holds: its transport, its listeners and its streams.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use steadfast_net::{BoxFuture, ByteStream, Connected, Listener, NetError, Result, Transport};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep, sleep_until, timeout_at};

use super::SimNet;
use super::connection::Step;
use super::state::{Dial, Dialled, EndId, ListenerId, Process};

/// The transport of one process.
pub(super) struct SimHost {
    pub(super) network: SimNet,
    pub(super) process: Process,
}

impl SimHost {
    async fn dial(&self, address: &str) -> io::Result<SimStream> {
        let (to, port) = parse(address)?;
        let mut dial = self
            .network
            .with(|state| state.begin_dial(self.process, to, port))?;
        let deadline = dial.deadline;
        match timeout_at(deadline, self.answer(&mut dial)).await {
            Ok(answer) => answer,
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    /// Waits for the other side's answer, once packets get through.
    async fn answer(&self, dial: &mut Dial) -> io::Result<SimStream> {
        loop {
            // Registered before the attempt, so that no later change is missed.
            let changed = self.network.changed.notified();
            match self.network.with(|state| state.dial(dial))? {
                Dialled::Connected(id) => return Ok(SimStream::new(self.network.clone(), id)),
                Dialled::Travels(delay) => sleep(delay).await,
                Dialled::Hangs => changed.await,
            }
        }
    }

    fn listen(&self, address: &str) -> io::Result<SimListener> {
        let (host, port) = parse(address)?;
        let bound = self
            .network
            .with(|state| state.bind(self.process, host, port))?;
        Ok(SimListener {
            network: self.network.clone(),
            id: bound,
            address: format!("{host}:{}", bound.port),
        })
    }
}

impl Transport for SimHost {
    fn connect<'a>(&'a self, address: &'a str) -> BoxFuture<'a, Result<Connected>> {
        Box::pin(async move {
            match self.dial(address).await {
                Ok(stream) => Ok(Connected {
                    stream: Box::new(stream),
                    address: address.to_owned(),
                    identity: None,
                }),
                Err(error) => Err(net_error(format!("connect to {address}"), error)),
            }
        })
    }

    fn bind<'a>(&'a self, address: &'a str) -> BoxFuture<'a, Result<Box<dyn Listener>>> {
        Box::pin(async move {
            match self.listen(address) {
                Ok(listener) => Ok(Box::new(listener) as Box<dyn Listener>),
                Err(error) => Err(net_error(format!("listen at {address}"), error)),
            }
        })
    }
}

struct SimListener {
    network: SimNet,
    id: ListenerId,
    address: String,
}

impl Listener for SimListener {
    fn local_address(&self) -> String {
        self.address.clone()
    }

    fn accept(&mut self) -> BoxFuture<'_, Result<(Box<dyn ByteStream>, String)>> {
        Box::pin(async move {
            let accepted =
                std::future::poll_fn(|cx| self.network.with(|state| state.accept(self.id, cx)));
            match accepted.await {
                Ok((id, peer)) => {
                    let stream = SimStream::new(self.network.clone(), id);
                    Ok((Box::new(stream) as Box<dyn ByteStream>, peer))
                }
                Err(error) => Err(net_error(format!("accept at {}", self.address), error)),
            }
        })
    }
}

impl Drop for SimListener {
    fn drop(&mut self) {
        self.network.with(|state| state.stop_listening(self.id));
    }
}

/// One end of a connection.
struct SimStream {
    network: SimNet,
    id: EndId,
    read_timer: Timer,
    write_timer: Timer,
}

impl SimStream {
    fn new(network: SimNet, id: EndId) -> Self {
        Self {
            network,
            id,
            read_timer: Timer::default(),
            write_timer: Timer::default(),
        }
    }
}

impl AsyncRead for SimStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            match this.network.with(|state| state.read(this.id, cx, buffer)) {
                Step::Done(outcome) => return Poll::Ready(outcome),
                Step::Wait(None) => return Poll::Pending,
                Step::Wait(Some(at)) => ready!(this.read_timer.poll_until(at, cx)),
            }
        }
    }
}

impl AsyncWrite for SimStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        loop {
            match this.network.with(|state| state.write(this.id, cx, slices)) {
                Step::Done(outcome) => return Poll::Ready(outcome),
                Step::Wait(None) => return Poll::Pending,
                Step::Wait(Some(at)) => ready!(this.write_timer.poll_until(at, cx)),
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.network.with(|state| state.flush(self.id)))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.network.with(|state| state.shut(self.id)))
    }
}

impl Drop for SimStream {
    fn drop(&mut self) {
        self.network.with(|state| state.close(self.id));
    }
}

/// A timer created on first use, and reset afterwards.
#[derive(Default)]
struct Timer(Option<Pin<Box<Sleep>>>);

impl Timer {
    fn poll_until(&mut self, at: Instant, cx: &mut Context<'_>) -> Poll<()> {
        let sleep = self.0.get_or_insert_with(|| Box::pin(sleep_until(at)));
        if sleep.deadline() != at {
            sleep.as_mut().reset(at);
        }
        sleep.as_mut().poll(cx)
    }
}

/// Splits an address into host and port.
fn parse(address: &str) -> io::Result<(&str, u16)> {
    let parsed = address
        .rsplit_once(':')
        .and_then(|(host, port)| Some((host, port.parse().ok()?)));
    parsed.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "not of the form host:port"))
}

/// The error of a failed call, as other transports report it.
fn net_error(doing: String, source: io::Error) -> NetError {
    match source.kind() {
        io::ErrorKind::ConnectionReset => NetError::ChannelClosed,
        _ => NetError::Io { doing, source },
    }
}
