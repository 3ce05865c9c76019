//! HTTP/1.1 as on the wire, so that a row can say what exactly is sent and see what exactly comes.

use std::io;
use std::net::SocketAddr;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::target::PATIENCE;

/// A whole answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    head: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let named = self
            .head
            .iter()
            .find(|(key, _)| key.eq_ignore_ascii_case(name));
        named.map(|(_, value)| value.as_str())
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("not JSON: {self:?}"))
    }
}

/// A connection that is kept.
pub(crate) struct Connection {
    stream: BufReader<TcpStream>,
}

impl Connection {
    pub(crate) async fn open(to: SocketAddr) -> io::Result<Self> {
        Ok(Self {
            stream: BufReader::new(TcpStream::connect(to).await?),
        })
    }

    /// Sends bytes as they are.
    pub(crate) async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await?;
        self.stream.flush().await
    }

    /// The status and the head of the next answer.
    pub(crate) async fn head(&mut self) -> io::Result<Answer> {
        let line = self.line().await?;
        let status = line.split(' ').nth(1).and_then(|code| code.parse().ok());
        let status = status.ok_or_else(|| io::Error::other(format!("no status in {line:?}")))?;
        let mut head = Vec::new();
        loop {
            let line = self.line().await?;
            let Some((name, value)) = line.split_once(':') else {
                break;
            };
            head.push((name.to_owned(), value.trim().to_owned()));
        }
        Ok(Answer {
            status,
            head,
            body: Vec::new(),
        })
    }

    /// The next chunk of a chunked body. Empty: it was the last.
    pub(crate) async fn chunk(&mut self) -> io::Result<Vec<u8>> {
        let size = self.line().await?;
        let size = usize::from_str_radix(&size, 16).map_err(io::Error::other)?;
        let mut chunk = vec![0; size];
        self.stream.read_exact(&mut chunk).await?;
        self.line().await?;
        Ok(chunk)
    }

    /// The next frame of HTTP/2: its head and what it carries.
    pub(crate) async fn frame(&mut self) -> io::Result<([u8; 9], Vec<u8>)> {
        let mut head = [0; 9];
        timeout(PATIENCE, self.stream.read_exact(&mut head)).await??;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        timeout(PATIENCE, self.stream.read_exact(&mut payload)).await??;
        Ok((head, payload))
    }

    /// The next answer, whole.
    pub(crate) async fn answer(&mut self, method: &str) -> io::Result<Answer> {
        let mut answer = self.head().await?;
        if method == "HEAD" || answer.status == 204 {
        } else if answer.header("Transfer-Encoding") == Some("chunked") {
            loop {
                let chunk = self.chunk().await?;
                if chunk.is_empty() {
                    break;
                }
                answer.body.extend(chunk);
            }
        } else {
            let length = answer
                .header("Content-Length")
                .and_then(|text| text.parse().ok());
            answer.body = vec![0; length.unwrap_or(0)];
            self.stream.read_exact(&mut answer.body).await?;
        }
        Ok(answer)
    }

    async fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        if self.stream.read_line(&mut line).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(line.trim_end().to_owned())
    }
}

/// A request as clients send it, as bytes.
pub(crate) fn bytes(method: &str, path: &str, head: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut text = format!("{method} {path} HTTP/1.1\r\nHost: server\r\n");
    for (name, value) in head {
        text.extend([name, ": ", value, "\r\n"]);
    }
    let length = body.len().to_string();
    text.extend(["Content-Length: ", &length, "\r\n\r\n"]);
    let mut bytes = text.into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

/// Sends one request on a new connection.
pub(crate) async fn request(
    to: SocketAddr,
    method: &str,
    path: &str,
    head: &[(&str, &str)],
    body: &[u8],
) -> io::Result<Answer> {
    let exchange = async {
        let mut connection = Connection::open(to).await?;
        connection.send(&bytes(method, path, head, body)).await?;
        connection.answer(method).await
    };
    timeout(PATIENCE, exchange).await?
}

/// A POST whose answer goes on.
pub(crate) struct Lines {
    connection: Connection,
}

impl Lines {
    pub(crate) async fn open(to: SocketAddr, path: &str, body: &[u8]) -> Self {
        let mut connection = Connection::open(to).await.unwrap();
        connection
            .send(&bytes("POST", path, &[], body))
            .await
            .unwrap();
        let head = timeout(PATIENCE, connection.head())
            .await
            .expect("no answer")
            .unwrap();
        assert_eq!(head.status, 200, "{head:?}");
        assert_eq!(
            head.header("Transfer-Encoding"),
            Some("chunked"),
            "{head:?}"
        );
        Self { connection }
    }

    /// The next message, which has to be a chunk and a line of its own.
    pub(crate) async fn next(&mut self) -> Value {
        let chunk = timeout(PATIENCE, self.connection.chunk())
            .await
            .expect("no message")
            .unwrap();
        let text = String::from_utf8(chunk).unwrap();
        assert!(
            text.ends_with('\n') && text.matches('\n').count() == 1,
            "{text:?}"
        );
        serde_json::from_str(&text).unwrap()
    }
}
