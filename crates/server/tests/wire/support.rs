//! A group with servers, and clients of it.

use std::net::SocketAddr;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use steadfast::InMemoryGroup;
use steadfast_server::proto::etcdserverpb::kv_client::KvClient;
use steadfast_server::{Server, ServerConfig, serve};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tonic::transport::{Channel, Endpoint};

/// How long anything may take that a test waits for.
pub(crate) const PATIENCE: Duration = Duration::from_secs(40);

/// Nodes in this process, each with a server.
pub(crate) struct Servers {
    pub(crate) servers: Vec<Server>,
    pub(crate) group: InMemoryGroup,
}

impl Servers {
    pub(crate) async fn start(nodes: usize) -> Self {
        Self::configured(nodes, |_| {}).await
    }

    pub(crate) async fn configured(nodes: usize, configure: impl Fn(&mut ServerConfig)) -> Self {
        let group = InMemoryGroup::new_async(nodes).await.expect("a group");
        let mut servers = Vec::new();
        for env in group.nodes() {
            let mut config = ServerConfig::new("127.0.0.1:0");
            configure(&mut config);
            let server = serve(env.clone(), config).await.expect("a server");
            servers.push(server);
        }
        Self { servers, group }
    }

    pub(crate) fn address(&self, index: usize) -> SocketAddr {
        self.servers[index].local_address()
    }

    /// A connection to a node, for the clients of gRPC.
    pub(crate) async fn channel(&self, index: usize) -> Channel {
        let address = format!("http://{}", self.address(index));
        let endpoint = Endpoint::from_shared(address).expect("an address");
        endpoint.connect().await.expect("a connection")
    }

    pub(crate) async fn kv(&self) -> KvClient<Channel> {
        KvClient::new(self.channel(0).await).max_decoding_message_size(usize::MAX)
    }

    /// A call of the JSON form.
    pub(crate) async fn post(&self, path: &str, body: &str) -> (u16, Value) {
        let answer = http(self.address(0), "POST", path, "", body).await;
        (answer.status, answer.json())
    }
}

/// An answer of HTTP/1.1.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        let read = serde_json::from_str(&self.body);
        read.unwrap_or_else(|error| panic!("{error} in {:?}", self.body))
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(": "));
        let mut found = lines.filter(|(known, _)| known.eq_ignore_ascii_case(name));
        found.next().map(|(_, value)| value)
    }
}

/// One request on a connection of its own. `headers` are whole lines.
pub(crate) async fn http(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &str,
    body: &str,
) -> Answer {
    let mut connection = Connection::to(address).await;
    connection
        .send_head(method, path, headers, body.len())
        .await;
    connection.send(body).await;
    connection.answer(method == "HEAD").await
}

/// A connection of HTTP/1.1.
pub(crate) struct Connection(BufReader<TcpStream>);

impl Connection {
    pub(crate) async fn to(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.expect("a connection");
        stream.set_nodelay(true).expect("a socket");
        Self(BufReader::new(stream))
    }

    pub(crate) async fn send_head(&mut self, method: &str, path: &str, headers: &str, len: usize) {
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: node\r\nContent-Length: {len}\r\n{headers}\r\n"
        );
        self.send(&head).await;
    }

    pub(crate) async fn send(&mut self, text: &str) {
        self.0.write_all(text.as_bytes()).await.expect("sent");
        self.0.flush().await.expect("sent");
    }

    async fn line(&mut self) -> String {
        let mut line = String::new();
        let read = tokio::time::timeout(PATIENCE, self.0.read_line(&mut line)).await;
        read.expect("in time").expect("a line");
        line
    }

    pub(crate) async fn head(&mut self) -> (u16, String) {
        let status = self.line().await;
        let code = status.split(' ').nth(1).expect("a status line");
        let code = code.parse().expect("a status");
        let mut head = String::new();
        loop {
            let line = self.line().await;
            if line.trim().is_empty() {
                return (code, head);
            }
            head.push_str(&line.to_lowercase());
        }
    }

    /// The next chunk of a body in chunks; `None` at its end.
    pub(crate) async fn chunk(&mut self) -> Option<String> {
        let size = self.line().await;
        let size = usize::from_str_radix(size.trim(), 16).expect("a size");
        let mut chunk = vec![0; size + 2];
        let read = tokio::time::timeout(PATIENCE, self.0.read_exact(&mut chunk)).await;
        read.expect("in time").expect("a chunk");
        chunk.truncate(size);
        (size > 0).then(|| String::from_utf8(chunk).expect("text"))
    }

    pub(crate) async fn answer(&mut self, has_no_body: bool) -> Answer {
        let (status, head) = self.head().await;
        let mut answer = Answer {
            status,
            head,
            body: String::new(),
        };
        let length = answer.header("content-length").map(str::parse);
        match length {
            _ if has_no_body => {}
            Some(length) => {
                let mut body = vec![0; length.expect("a length")];
                self.0.read_exact(&mut body).await.expect("a body");
                answer.body = String::from_utf8(body).expect("text");
            }
            None => {
                while let Some(chunk) = self.chunk().await {
                    answer.body.push_str(&chunk);
                }
            }
        }
        answer
    }
}

pub(crate) fn base64(text: &str) -> String {
    STANDARD.encode(text)
}

/// A request with a token of a user.
pub(crate) fn with_token<T>(token: &str, message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    let token = token.parse().expect("a token is text");
    request.metadata_mut().insert("token", token);
    request
}
