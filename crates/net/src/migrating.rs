//! TLS with whoever has it and plaintext with whoever has not, while a group is given credentials
//! node by node. Whoever reaches such a node needs no credentials.

use std::sync::Arc;

use tokio::io::{AsyncBufReadExt, BufReader};

use crate::connection::ByteStream;
use crate::descriptors::Descriptors;
use crate::error::{NetError, Result};
use crate::tls::TlsTransport;
use crate::transport::{Authenticated, BoxFuture, Connected, Listener, Transport};

/// How a client begins a handshake of TLS: a record of that type, of version 3.
const HANDSHAKE: [u8; 2] = [0x16, 0x03];

/// A transport that speaks TLS where the other end does.
pub struct MigratingTransport {
    tls: Arc<TlsTransport>,
    plain: Arc<dyn Transport>,
}

impl MigratingTransport {
    /// Plaintext over `plain`, on which `tls` is TLS.
    pub fn new(tls: Arc<TlsTransport>, plain: Arc<dyn Transport>) -> Self {
        Self { tls, plain }
    }
}

impl Transport for MigratingTransport {
    fn connect<'a>(&'a self, address: &'a str) -> BoxFuture<'a, Result<Connected>> {
        Box::pin(async move {
            match self.tls.try_connect(address).await? {
                Some(connected) => Ok(connected),
                None => self.plain.connect(address).await,
            }
        })
    }

    fn bind<'a>(&'a self, address: &'a str) -> BoxFuture<'a, Result<Box<dyn Listener>>> {
        self.plain.bind(address)
    }

    fn authenticate<'a>(
        &'a self,
        stream: Box<dyn ByteStream>,
        peer: &'a str,
    ) -> BoxFuture<'a, Result<Authenticated>> {
        Box::pin(async move {
            let mut stream = BufReader::new(stream);
            let begun = stream.fill_buf().await;
            let begun = begun.map_err(|error| NetError::io(format!("hear {peer}"), error))?;
            let is_tls = !begun.is_empty() && begun.iter().zip(HANDSHAKE).all(|(is, of)| *is == of);
            let stream: Box<dyn ByteStream> = Box::new(stream);
            if is_tls {
                return self.tls.authenticate(stream, peer).await;
            }
            Ok(Authenticated {
                stream,
                identity: None,
            })
        })
    }

    fn descriptors(&self) -> Option<Descriptors> {
        self.plain.descriptors()
    }
}
