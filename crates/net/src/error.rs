//! What can go wrong between two nodes, grouped by what the caller can do about it.

use std::error::Error;
use std::io;

/// The result of every fallible call of this crate.
pub type Result<T> = std::result::Result<T, NetError>;

/// Why a call of this crate failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetError {
    /// The caller asked for something that can never work, such as an empty service name.
    #[error("invalid configuration: {reason}")]
    Configuration {
        /// What is wrong, including the value.
        reason: String,
    },
    /// The operating system or the network failed. Another attempt may succeed.
    #[error("cannot {doing}")]
    Io {
        /// What was being done.
        doing: String,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// The bytes violate the protocol. If a peer sent them, the channel is closed.
    #[error("protocol violation: expected {expected}, found {found}")]
    Protocol {
        /// What the protocol allows here.
        expected: String,
        /// What arrived instead.
        found: String,
    },
    /// The channel was closed, by either side. Open another one to continue.
    #[error("the channel is closed")]
    ChannelClosed,
    /// No handler is registered under this name.
    #[error("no service is called {name:?}")]
    ServiceNotFound {
        /// The name that was asked for.
        name: String,
    },
    /// A peer or a network took too long. The channel, if there was one, is closed.
    #[error("deadline exceeded: {doing}")]
    DeadlineExceeded {
        /// What was being waited for.
        doing: String,
    },
    /// A TLS handshake or record failed: certificates or versions do not match.
    #[error("TLS: {doing}")]
    Tls {
        /// What was being done.
        doing: String,
        /// What the TLS library said.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
}

impl NetError {
    /// The error for a failed system call. A peer that disappeared is a closed channel, however the
    /// operating system reports it.
    pub(crate) fn io(doing: impl Into<String>, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::NotConnected => Self::ChannelClosed,
            _ if is_tls(&source) => Self::Tls {
                doing: doing.into(),
                source: source.into(),
            },
            _ => Self::Io {
                doing: doing.into(),
                source,
            },
        }
    }
}

/// Whether TLS failed, and not what carries it.
fn is_tls(error: &io::Error) -> bool {
    error
        .get_ref()
        .is_some_and(<dyn Error + Send + Sync>::is::<rustls::Error>)
}
