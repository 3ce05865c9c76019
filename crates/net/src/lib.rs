//! Moves frames between named services. Knows nothing of replication messages or databases.
//!
//! ```text
//!   client                                        server, one port
//!   ------                                        ----------------
//!   open_service / connect_to_service ──bytes──►  Dispatcher: limits, service open, deadlines
//!        │                                             │ by service name
//!        ▼                                             ▼
//!   Connection ◄──────────── frames ──────────►  Connection ─► AsyncServiceHandler
//!   (or a Channel over it)                       (or a Channel over it ─► ServiceHandler)
//! ```
//!
//! There is one implementation, and it is async: a [`Connection`] frames one [`ByteStream`],
//! whatever carries it, and a [`Dispatcher`] gives accepted connections to services. A
//! [`Transport`] dials and listens; TCP ([`TcpTransport`]), memory ([`MemoryNetwork`]) and TLS over
//! another one ([`TlsTransport`]) are built in; fault injection comes as other implementations.
//!
//! ```
//! use std::sync::Arc;
//! use bytes::Bytes;
//! use steadfast_net::{
//!     AsyncServiceHandler, BoxFuture, Connection, Dispatcher, DispatcherOptions, MemoryNetwork,
//!     Result, open_service,
//! };
//!
//! struct Echo;
//!
//! impl AsyncServiceHandler for Echo {
//!     fn service_name(&self) -> &str {
//!         "ECHO"
//!     }
//!
//!     fn serve(&self, connection: Connection) -> BoxFuture<'static, Result<()>> {
//!         Box::pin(async move {
//!             let (mut sender, mut receiver) = connection.split();
//!             while let Some(frame) = receiver.receive().await? {
//!                 sender.send(frame).await?;
//!             }
//!             Ok(())
//!         })
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<()> {
//! let network = MemoryNetwork::new();
//! let dispatcher = Dispatcher::new(DispatcherOptions::default());
//! dispatcher.register_async(Arc::new(Echo));
//! let address = dispatcher.start(network.host("n1"), "n1:0").await?;
//!
//! let connection = open_service(&*network.host("n2"), &address, "ECHO").await?;
//! let (mut sender, mut receiver) = connection.split();
//! sender.send(Bytes::from_static(b"hello")).await?;
//! assert_eq!(receiver.receive().await?.as_deref(), Some(&b"hello"[..]));
//! # dispatcher.stop().await;
//! # Ok(())
//! # }
//! ```
//!
//! This crate does not retry, reconnect, or look inside frames.
//! `docs/protocol.md` describes the bytes.
//!
//! | module | holds |
//! | --- | --- |
//! | `connection` | frames over a byte stream: the send half and the receive half |
//! | `transport` | the traits that dial and listen, and the service open as the client sends it |
//! | `tcp`, `memory` | the two transports |
//! | `tls` | TLS over either, with a certificate at both ends |
//! | `service` | async handlers, the service open as the server reads it |
//! | `dispatcher`, `places`, `refusals` | the accept loop, the limits on what it lets in, and what its log says of the rest |
//! | `background` | threads that give way to others |
//! | `descriptors` | how many more files and connections this process may open |
//! | `blocking` | the blocking API, for programs without an async runtime |

#![deny(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "the application's output is its own"
)]

pub mod background;
mod blocking;
mod connection;
mod descriptors;
mod dispatcher;
mod error;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod lock;
mod memory;
mod migrating;
mod places;
pub mod process;
mod refusals;
mod service;
mod tcp;
mod tls;
mod transport;

pub use blocking::channel::{
    Channel, LocalChannel, LocalChannelPair, TcpChannel, TcpChannelListener,
};
pub use blocking::service::{ServiceDispatcher, ServiceHandler};
pub use blocking::tcp_dispatcher::{TcpServiceDispatcher, connect_to_service};
pub use connection::{ByteStream, Connection, FrameReceiver, FrameSender, MAX_FRAME_PAYLOAD};
pub use descriptors::Descriptors;
pub use dispatcher::{Dispatcher, DispatcherOptions};
pub use error::{NetError, Result};
pub use lock::lock;
pub use memory::MemoryNetwork;
pub use migrating::MigratingTransport;
pub use refusals::Refusals;
pub use service::{AsyncServiceHandler, MAX_SERVICE_NAME_LEN};
pub use tcp::TcpTransport;
pub use tls::{TlsCredentials, TlsTransport};
pub use transport::{Authenticated, BoxFuture, Connected, Listener, Transport, open_service};
