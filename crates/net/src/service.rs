//! Services by name: their async handlers, and the service open as the server reads it.

use tokio::io::{AsyncRead, AsyncReadExt};

use crate::connection::Connection;
use crate::error::{NetError, Result};
use crate::places::Refusal;
use crate::transport::BoxFuture;

/// Maximum length of a service name, in bytes.
pub const MAX_SERVICE_NAME_LEN: usize = 256;

/// Serves the connections that ask for one service, without blocking.
pub trait AsyncServiceHandler: Send + Sync + 'static {
    /// The name that clients ask for.
    fn service_name(&self) -> &str;

    /// Whether callers of this service take precedence over strangers: the dispatcher gives them
    /// places and descriptors that it keeps from others. It does so for anyone who asks for the
    /// service, so the handler must turn unknown callers away at once.
    fn is_for_peers(&self) -> bool {
        false
    }

    /// Serves one connection to its end. It should return when the connection closes: when the
    /// dispatcher stops, its halves report [`NetError::ChannelClosed`], and after the stop's
    /// deadline the future is dropped. An error is logged and counted; a panic is contained.
    fn serve(&self, connection: Connection) -> BoxFuture<'static, Result<()>>;
}

/// Refuses a name that does not fit into a service open.
pub(crate) fn check_service_name(name: &str) -> Result<()> {
    if (1..=MAX_SERVICE_NAME_LEN).contains(&name.len()) {
        return Ok(());
    }
    Err(NetError::Configuration {
        reason: format!(
            "a service name has 1 to {MAX_SERVICE_NAME_LEN} bytes, but this one has {}",
            name.len()
        ),
    })
}

/// The name in a service open, `name_len: u32 LE | name`. Reads not a byte beyond it, and buffers
/// at most [`MAX_SERVICE_NAME_LEN`] bytes whatever the peer claims.
pub(crate) async fn read_service_name<R>(stream: &mut R) -> std::result::Result<String, Refusal>
where
    R: AsyncRead + Unpin,
{
    let name_len = stream
        .read_u32_le()
        .await
        .map_err(|_| Refusal::HandshakeFailed)?;
    let name_len = usize::try_from(name_len).map_err(|_| Refusal::NameLength)?;
    if !(1..=MAX_SERVICE_NAME_LEN).contains(&name_len) {
        return Err(Refusal::NameLength);
    }
    let mut name = vec![0; name_len];
    stream
        .read_exact(&mut name)
        .await
        .map_err(|_| Refusal::HandshakeFailed)?;
    String::from_utf8(name).map_err(|_| Refusal::NameNotUtf8)
}
