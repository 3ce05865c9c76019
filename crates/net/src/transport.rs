//! Byte transport between nodes: the traits that TCP, TLS, memory and simulators implement, and the
//! service open as the client sends it.

use std::pin::Pin;
use std::time::Duration;

use bytes::{BufMut, BytesMut};
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

use crate::connection::{ByteStream, Connection};
use crate::descriptors::Descriptors;
use crate::error::{NetError, Result};
use crate::service::check_service_name;

/// How long a client waits for the network to accept its service open.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);

/// A boxed future, so that a trait object can return it.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Dials and listens. Addresses look like `host:port`; the transport decides what a host is.
pub trait Transport: Send + Sync + 'static {
    /// A stream to the listener at `address`, and where that is. Names are resolved anew in each
    /// call. Fails by itself when nobody answers.
    ///
    /// # Errors
    ///
    /// [`NetError::Io`], [`NetError::DeadlineExceeded`], [`NetError::Tls`].
    fn connect<'a>(&'a self, address: &'a str) -> BoxFuture<'a, Result<Connected>>;

    /// A listener at `address`; port 0 picks a free one. The address is free again as soon as the
    /// listener is dropped.
    ///
    /// # Errors
    ///
    /// [`NetError::Io`], for example when the address is taken.
    fn bind<'a>(&'a self, address: &'a str) -> BoxFuture<'a, Result<Box<dyn Listener>>>;

    /// Settles with the client whatever must precede its service open, such as a TLS handshake. The
    /// dispatcher calls this once per accepted stream, within its limits and its handshake
    /// deadline. The default settles and proves nothing.
    ///
    /// # Errors
    ///
    /// Any; the stream is then closed and counted.
    fn authenticate<'a>(
        &'a self,
        stream: Box<dyn ByteStream>,
        _peer: &'a str,
    ) -> BoxFuture<'a, Result<Authenticated>> {
        Box::pin(async move {
            Ok(Authenticated {
                stream,
                identity: None,
            })
        })
    }

    /// The descriptors that connections draw on; `None` where they use none, or where that is
    /// unknown.
    fn descriptors(&self) -> Option<Descriptors> {
        None
    }
}

/// A dialled stream.
pub struct Connected {
    /// The stream.
    pub stream: Box<dyn ByteStream>,
    /// Where it leads, in a form that can be dialled without resolving a name.
    pub address: String,
    /// The identity that the server proved, if it proved one.
    pub identity: Option<String>,
}

/// An accepted stream, ready for the service open.
pub struct Authenticated {
    /// The stream to use from here on.
    pub stream: Box<dyn ByteStream>,
    /// The identity that the client proved, if it proved one.
    pub identity: Option<String>,
}

/// Accepts the streams that clients open.
pub trait Listener: Send {
    /// Where clients reach this listener.
    fn local_address(&self) -> String;

    /// The next stream and the address of its client. Dropping the future and calling again loses
    /// no stream. Reads nothing from the stream.
    ///
    /// # Errors
    ///
    /// [`NetError::Io`]. The listener stays usable.
    fn accept(&mut self) -> BoxFuture<'_, Result<(Box<dyn ByteStream>, String)>>;
}

/// Dials `address` and asks for a service by name. There is no reply: a server that has no such
/// service closes the connection.
///
/// # Errors
///
/// [`NetError::Configuration`] for a name that is empty or over
/// [`MAX_SERVICE_NAME_LEN`](crate::MAX_SERVICE_NAME_LEN) bytes; the transport's own.
pub async fn open_service(
    transport: &dyn Transport,
    address: &str,
    service_name: &str,
) -> Result<Connection> {
    check_service_name(service_name)?;
    let Connected {
        mut stream,
        address,
        identity,
    } = transport.connect(address).await?;
    send_service_open(&mut stream, service_name).await?;
    Ok(Connection::new(stream, address).identified(identity))
}

/// Writes `name_len: u32 LE | name`, in one piece.
async fn send_service_open(stream: &mut Box<dyn ByteStream>, service_name: &str) -> Result<()> {
    let name_len = u32::try_from(service_name.len()).expect("a name was checked against its limit");
    let mut open = BytesMut::with_capacity(4 + service_name.len());
    open.put_u32_le(name_len);
    open.put_slice(service_name.as_bytes());
    let sending = async {
        stream.write_all(&open).await?;
        stream.flush().await
    };
    match timeout(OPEN_TIMEOUT, sending).await {
        Ok(sent) => sent.map_err(|error| NetError::io("send a service open", error)),
        Err(_) => Err(NetError::DeadlineExceeded {
            doing: "sending a service open".into(),
        }),
    }
}
