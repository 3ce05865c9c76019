//! The inventory service as three processes, over HTTP: through the loss of its master, and with many
//! clients of its events.

use std::collections::BTreeMap;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use steadfast::CommitToken;
use steadfast::ids::Term;
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_mins(1);
/// Clients of events at once. Each takes a descriptor here and one in the service; a shell gives
/// 1,024. `INVENTORY_CLIENTS` asks for another number.
const CLIENTS: usize = 200;

struct Service {
    dir: TempDir,
    nodes: Vec<String>,
    webs: Vec<String>,
    processes: Vec<Option<Child>>,
}

impl Service {
    async fn start() -> Self {
        let mut service = Self {
            dir: TempDir::new().expect("a directory"),
            nodes: (0..3).map(|_| free_address()).collect(),
            webs: (0..3).map(|_| free_address()).collect(),
            processes: vec![None, None, None],
        };
        for at in 0..3 {
            service.open(at);
        }
        for at in 0..3 {
            service.wait_for(at, "/ready").await;
        }
        service
    }

    fn open(&mut self, at: usize) {
        let name = |at: usize| format!("n{}", at + 1);
        let mut command = Command::new(env!("CARGO_BIN_EXE_inventory"));
        command.arg(name(at)).arg(self.dir.path().join(name(at)));
        command.args([&self.nodes[at], &self.webs[at]]);
        let list = self.nodes.iter().zip(0..);
        command.args(list.map(|(address, at)| format!("{}={address}", name(at))));
        let process = command.stdout(Stdio::null()).spawn();
        self.processes[at] = Some(process.expect("started"));
    }

    async fn wait_for(&self, at: usize, path: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = self.ask(at, &format!("GET {path}"), None, "").await;
            if answer.is_ok_and(|answer| answer.status() == StatusCode::OK) {
                return;
            }
            assert!(Instant::now() < deadline, "{path} of process {at}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn ask(
        &self,
        at: usize,
        call: &str,
        token: Option<&str>,
        body: &str,
    ) -> Result<Response<Incoming>, String> {
        request(&self.webs[at], call, ("token", token), body).await
    }

    /// Asks process `at`, and then wherever it says; again while it says that it cannot now.
    async fn write(&self, at: usize, call: &str, body: &str) -> Told {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let told = self.write_once(at, call, body).await;
            match told {
                Ok(told) if told.0 != StatusCode::SERVICE_UNAVAILABLE => return told,
                _ => assert!(Instant::now() < deadline, "{told:?}"),
            }
        }
    }

    async fn write_once(&self, at: usize, call: &str, body: &str) -> Result<Told, String> {
        let first = self.ask(at, call, None, body).await?;
        if first.status() != StatusCode::TEMPORARY_REDIRECT {
            return answer(first).await;
        }
        let place = first.headers()["location"]
            .to_str()
            .expect("text")
            .to_owned();
        let place = place.strip_prefix("http://").expect("a URL");
        let (web, path) = place.split_at(place.find('/').expect("a path"));
        let (method, _) = call.split_once(' ').expect("METHOD PATH");
        let call = format!("{method} {path}");
        answer(request(web, &call, ("token", None), body).await?).await
    }

    async fn put(&self, at: usize, item: &str, count: u32) -> CommitToken {
        let call = format!("PUT /items/{item}");
        let (status, token, text) = self.write(at, &call, &count.to_string()).await;
        assert_eq!(status, StatusCode::OK, "{text}");
        token.expect("a token")
    }

    fn end(&mut self, at: usize, signal: &str) -> ExitStatus {
        let mut process = self.processes[at].take().expect("it runs");
        let id = process.id().to_string();
        let sent = Command::new("kill").args([signal, &id]).status();
        assert!(sent.expect("kill").success());
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = process.try_wait().expect("a child") {
                return status;
            }
            assert!(Instant::now() < deadline, "process {at} goes on");
            std::thread::park_timeout(Duration::from_millis(5));
        }
    }

    /// The process whose node is master: the one that takes a write itself.
    async fn master(&self) -> usize {
        let deadline = Instant::now() + PATIENCE;
        loop {
            for at in (0..3).filter(|at| self.processes[*at].is_some()) {
                let written = self.ask(at, "PUT /items/probe", None, "1").await;
                if written.is_ok_and(|answer| answer.status() == StatusCode::OK) {
                    return at;
                }
            }
            assert!(Instant::now() < deadline, "no master");
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        for mut process in self.processes.iter_mut().filter_map(Option::take) {
            process.kill().ok();
            process.wait().ok();
        }
    }
}

/// Status, token and text of an answer.
type Told = (StatusCode, Option<CommitToken>, String);

async fn answer(response: Response<Incoming>) -> Result<Told, String> {
    let status = response.status();
    let token = response.headers().get("token");
    let token = token.map(|token| token.to_str().expect("text").parse().expect("a token"));
    let body = response.into_body().collect().await;
    let body = body.map_err(|error| error.to_string())?.to_bytes();
    Ok((status, token, String::from_utf8_lossy(&body).into_owned()))
}

async fn request(
    web: &str,
    call: &str,
    (header, value): (&str, Option<&str>),
    body: &str,
) -> Result<Response<Incoming>, String> {
    let (method, path) = call.split_once(' ').expect("METHOD PATH");
    let exchange = async {
        let stream = TcpStream::connect(web)
            .await
            .map_err(|error| error.to_string())?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| error.to_string())?;
        tokio::spawn(connection);
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", web);
        request = request.header("content-type", "application/json");
        if let Some(value) = value {
            request = request.header(header, value);
        }
        let request = request.body(Full::new(Bytes::copy_from_slice(body.as_bytes())));
        let sent = sender.send_request(request.expect("a request")).await;
        sent.map_err(|error| error.to_string())
    };
    timeout(PATIENCE, exchange)
        .await
        .map_err(|_| "no answer".to_owned())?
}

fn free_address() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("bound").to_string()
}

/// A client of `/events` that comes back with the id of the last event it has seen.
struct Client {
    web: String,
    last: Option<CommitToken>,
    heard: Vec<(CommitToken, String)>,
}

impl Client {
    /// Listens until it has heard `last`, and again after each end of its connection.
    async fn listen_until(&mut self, last: CommitToken) {
        while self.last.is_none_or(|heard| heard < last) {
            let id = self.last.map(|token| token.to_string());
            let header = ("last-event-id", id.as_deref());
            let Ok(response) = request(&self.web, "GET /events", header, "").await else {
                continue;
            };
            self.read(response.into_body(), last).await;
        }
    }

    async fn read(&mut self, mut body: Incoming, last: CommitToken) {
        let mut text = String::new();
        while let Some(Ok(frame)) = body.frame().await {
            let Ok(data) = frame.into_data() else {
                continue;
            };
            text.push_str(std::str::from_utf8(&data).expect("text"));
            while let Some(end) = text.find("\n\n") {
                let event: String = text.drain(..end + 2).collect();
                let fields = event.lines().filter_map(|line| line.split_once(": "));
                let fields: BTreeMap<_, _> = fields.collect();
                let (Some(id), Some(data)) = (fields.get("id"), fields.get("data")) else {
                    continue;
                };
                let token = id.parse().expect("a token");
                self.last = Some(token);
                self.heard.push((token, (*data).to_owned()));
            }
            if self.last.is_some_and(|heard| heard >= last) {
                return;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reservations_go_through_any_process_and_are_all_or_nothing() {
    let mut service = Service::start().await;
    for (at, item) in ["tea", "scones", "jam"].iter().enumerate() {
        // Whoever shows the token sees the write, on any process.
        let token = service.put(at, item, 2).await.to_string();
        let call = format!("GET /items/{item}");
        for other in 0..3 {
            let read = service.ask(other, &call, Some(&token), "").await;
            assert_eq!(answer(read.expect("read")).await.expect("read").2, "2");
        }
    }
    for at in 0..2 {
        let taken = service
            .write(at, "POST /reservations", r#"["tea","jam"]"#)
            .await;
        assert_eq!(taken.0, StatusCode::OK);
    }
    for (wanted, status) in [
        (r#"["scones","tea"]"#, StatusCode::CONFLICT),
        (r#"["scones","cake"]"#, StatusCode::NOT_FOUND),
        (r#"["scones""#, StatusCode::BAD_REQUEST),
    ] {
        let refused = service.write(2, "POST /reservations", wanted).await;
        assert_eq!(refused.0, status, "{wanted}");
    }
    let left = service
        .ask(1, "GET /items/scones", None, "")
        .await
        .expect("asked");
    assert_eq!(answer(left).await.expect("read").2, "2");
    // A client that listens does not keep a process from ending.
    let listening = service
        .ask(0, "GET /events", None, "")
        .await
        .expect("asked");
    let begun = Instant::now();
    assert!(service.end(0, "-TERM").success());
    assert!(
        begun.elapsed() < Duration::from_secs(20),
        "{:?}",
        begun.elapsed()
    );
    drop(listening);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_client_of_one_process_hears_each_change_once_through_the_loss_of_the_master() {
    let clients = std::env::var("INVENTORY_CLIENTS").ok();
    let clients = clients.map_or(CLIENTS, |clients| clients.parse().expect("a number"));
    let mut service = Service::start().await;
    let master = service.master().await;
    let listened = (master + 1) % 3;
    let first = service.put(listened, "tea", 0).await;
    let mut acknowledged = Vec::new();
    let (end, ended) = tokio::sync::watch::channel(None);
    let listen = |_| {
        let web = service.webs[listened].clone();
        let mut ended = ended.clone();
        tokio::spawn(async move {
            let mut client = Client {
                web,
                last: Some(first),
                heard: Vec::new(),
            };
            // No token of the group is greater, so it listens until it is told the end.
            let forever = CommitToken {
                term: Term(u64::MAX),
                ..first
            };
            tokio::select! {
                () = client.listen_until(forever) => {}
                _ = ended.wait_for(Option::is_some) => {}
            }
            let last = ended.borrow().expect("told");
            client.listen_until(last).await;
            client.heard
        })
    };
    let listening: Vec<_> = (0..clients).map(listen).collect();
    for n in 1..=40 {
        if n == 20 {
            service.end(master, "-KILL");
        }
        let token = service.put(listened, "tea", n).await;
        acknowledged.push((token, format!(r#"[["tea",{n}]]"#)));
    }
    let last = service.put(listened, "tea", 99).await;
    end.send_replace(Some(last));
    let mut heard: Vec<Vec<_>> = Vec::new();
    for client in listening {
        let client = timeout(PATIENCE, client).await.expect("it hears the end");
        heard.push(client.expect("no panic"));
    }
    for client in &heard {
        assert!(
            client.is_sorted_by(|one, next| one.0 < next.0),
            "each once, in order"
        );
        assert_eq!(client, &heard[0], "all hear the same");
    }
    for event in &acknowledged {
        assert!(heard[0].contains(event), "{event:?}");
    }
}
