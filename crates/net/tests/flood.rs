//! Under a flood of connections, a server keeps serving, in bounded memory and with few
//! descriptors.
//!
//! Server and flood run in separate processes, so that each has its own descriptor limit and the
//! server's memory can be told from the flood's. The processes are this test binary, started again
//! with a role in its environment.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![expect(
    clippy::disallowed_methods,
    reason = "tests are at the edge: processes, bare sockets"
)]

use std::env;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use socket2::{Domain, Socket, Type};
use steadfast_net::{
    AsyncServiceHandler, BoxFuture, Channel, Connection, Dispatcher, DispatcherOptions, Result,
    TcpTransport, connect_to_service,
};
use tokio::time::Instant;

/// Longer than any successful wait in these tests.
const LONG: Duration = Duration::from_secs(25);

/// At full scale: connections that never name a service, and ones that send a large frame byte by
/// byte.
const HALF_OPEN: usize = 10_000;
const SLOW: usize = 1_000;

/// Descriptors that each process needs besides those of the flood.
const OTHER_DESCRIPTORS: usize = 100;

const ROLE: &str = "STEADFAST_FLOOD_ROLE";

#[test]
fn half_open_and_slow_connections_neither_stop_the_service_nor_fill_memory() {
    let scale = descriptors_possible().saturating_sub(OTHER_DESCRIPTORS);
    let part = scale.min(HALF_OPEN + SLOW) / (HALF_OPEN + SLOW).div_ceil(100);
    if part < 100 {
        println!("only {part} % of the flood: the descriptor limit is {scale}");
    }
    let (half_open, slow) = (HALF_OPEN * part / 100, SLOW * part / 100);

    let mut server = Role::start("server", "ulimit -n $(ulimit -Hn)");
    let address = server.read_line().parse().unwrap();
    let client = connect_to_service(address, "ECHO").unwrap();
    assert_echoes(&client, 100);
    let before_bytes = server.resident_bytes();

    let mut flood = Role::start("flood", "ulimit -n $(ulimit -Hn)");
    flood.write_line(&format!("{address} {half_open} {slow}"));
    let until_flooded = thread::scope(|scope| {
        let flooded = scope.spawn(|| flood.read_line());
        let mut rounds = 0;
        while !flooded.is_finished() {
            assert_echoes(&client, 1);
            rounds += 1;
        }
        assert_eq!(flooded.join().unwrap(), "flooded");
        rounds
    });
    assert!(until_flooded > 0);
    wait_until("the server holds the whole flood", || {
        server.descriptors() > half_open + slow
    });

    assert_echoes(&client, 1000);
    assert_echoes(&connect_to_service(address, "ECHO").unwrap(), 100);
    assert!(
        server.descriptors() > half_open + slow,
        "the flood ebbed before it was measured"
    );
    let grown_bytes = server.resident_bytes().saturating_sub(before_bytes);
    println!("{half_open} half-open and {slow} slow connections cost {grown_bytes} bytes");
    assert!(grown_bytes < 64 << 20, "memory grew by {grown_bytes} bytes");
}

#[test]
fn accepting_survives_running_out_of_descriptors() {
    const DESCRIPTORS: usize = 64;
    let mut server = Role::start("server", &format!("ulimit -n {DESCRIPTORS}"));
    let address: SocketAddr = server.read_line().parse().unwrap();
    let client = connect_to_service(address, "ECHO").unwrap();
    assert_echoes(&client, 1);
    let flood: Vec<Socket> = (0..4 * DESCRIPTORS)
        .map(|at| connect_from(at, address))
        .collect();
    wait_until("the server is out of descriptors", || {
        server.descriptors() + 1 >= DESCRIPTORS
    });
    assert_echoes(&client, 10);
    // The half-open ones make room, here and at the latest at their deadline.
    assert_echoes(&connect_to_service(address, "ECHO").unwrap(), 10);
    drop(flood);
    assert_echoes(&connect_to_service(address, "ECHO").unwrap(), 10);
    assert_echoes(&client, 10);
}

#[test]
fn strangers_leave_the_process_the_descriptors_that_it_needs_itself() {
    const DESCRIPTORS: usize = 400;
    // Half of them.
    const KEPT: usize = 200;
    let mut server = Role::start("frugal server", &format!("ulimit -n {DESCRIPTORS}"));
    let address: SocketAddr = server.read_line().parse().unwrap();
    let served = || {
        let client = connect_to_service(address, "ECHO").unwrap();
        let sent = client.send(b"ping");
        let answered = sent.is_ok() && matches!(client.receive(LONG), Ok(Some(_)));
        answered.then_some(client)
    };
    // Served and idle: never evicted.
    let mut idle = Vec::new();
    while let Some(client) = served() {
        idle.push(client);
        assert!(idle.len() < DESCRIPTORS, "they take all");
    }
    assert!(idle.len() > DESCRIPTORS - KEPT - 50, "{}", idle.len());
    let silent: Vec<Socket> = (0..DESCRIPTORS)
        .map(|at| connect_from(at, address))
        .collect();
    wait_until("a peer is served, after what came in one rush", || {
        let client = connect_to_service(address, "PEERS").unwrap();
        client.send(b"ping").is_ok() && matches!(client.receive(LONG), Ok(Some(_)))
    });
    for _ in 0..10 {
        assert_echoes(&connect_to_service(address, "PEERS").unwrap(), 10);
        assert!(server.descriptors() <= DESCRIPTORS - KEPT / 2);
        assert!(served().is_none());
    }
    assert_echoes(&idle[0], 1);
    drop((idle, silent));
    wait_until("strangers are served again", || served().is_some());
}

/// Not a test: what the child processes run. Does nothing without a role.
#[test]
fn role() {
    match env::var(ROLE).as_deref() {
        Ok("server") => serve_until_told_to_stop(0),
        Ok("frugal server") => serve_until_told_to_stop(usize::MAX),
        Ok("flood") => flood_until_told_to_stop(),
        _ => {}
    }
}

fn serve_until_told_to_stop(descriptors_kept: usize) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let options = DispatcherOptions {
            // The whole flood has to be connected at once for its memory to be measured.
            handshake_timeout: LONG,
            connections_max: 2 * (HALF_OPEN + SLOW),
            descriptors_kept,
            ..DispatcherOptions::default()
        };
        let dispatcher = Dispatcher::new(options);
        dispatcher.register_async(Arc::new(Echo("ECHO")));
        dispatcher.register_async(Arc::new(Echo("PEERS")));
        let bound = dispatcher
            .start(Arc::new(TcpTransport), "127.0.0.1:0")
            .await
            .unwrap();
        println!("\nsay: {bound}");
        tokio::task::spawn_blocking(|| io::stdin().read_to_end(&mut Vec::new()).unwrap())
            .await
            .unwrap();
        dispatcher.stop().await;
    });
}

fn flood_until_told_to_stop() {
    let mut order = String::new();
    io::stdin().read_line(&mut order).unwrap();
    let mut words = order.split_whitespace();
    let address: SocketAddr = words.next().unwrap().parse().unwrap();
    let [half_open, slow] = [(); 2].map(|()| words.next().unwrap().parse::<usize>().unwrap());

    let held: Vec<Socket> = (0..half_open)
        .map(|at| {
            let mut socket = connect_from(at, address);
            // Some send nothing, some stop inside their service open.
            socket.write_all(&b"\x04\0\0\0EC"[..at % 7]).unwrap();
            socket
        })
        .collect();
    let mut slow: Vec<Socket> = (0..slow)
        .map(|at| {
            let mut socket = connect_from(at, address);
            socket.write_all(b"\x04\0\0\0ECHO").unwrap();
            socket.write_all(&(64_u32 << 20).to_le_bytes()).unwrap();
            socket
        })
        .collect();
    println!("\nsay: flooded");

    let (told_to_stop, stop) = mpsc::channel();
    thread::spawn(move || told_to_stop.send(io::stdin().read_to_end(&mut Vec::new()).unwrap()));
    // Sends a byte on each slow connection, then pauses.
    while stop.recv_timeout(Duration::from_millis(100)).is_err() {
        for socket in &mut slow {
            socket.write_all(&[1]).unwrap();
        }
    }
    drop(held);
}

/// Connects from one of many loopback addresses, as a flood has many sources.
fn connect_from(at: usize, address: SocketAddr) -> Socket {
    let host = u8::try_from(1 + at % 200).unwrap();
    let source = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, 0, 1, host)), 0);
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&source.into()).unwrap();
    socket.connect(&address.into()).unwrap();
    socket
}

struct Echo(&'static str);

impl AsyncServiceHandler for Echo {
    fn service_name(&self) -> &str {
        self.0
    }

    fn is_for_peers(&self) -> bool {
        self.0 == "PEERS"
    }

    fn serve(&self, connection: Connection) -> BoxFuture<'static, Result<()>> {
        Box::pin(async move {
            let (mut sender, mut receiver) = connection.split();
            while let Some(frame) = receiver.receive().await? {
                sender.send(frame).await?;
            }
            Ok(())
        })
    }
}

/// A child process with a role. Dropping it ends its input, and so the process.
struct Role {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Role {
    /// Starts this binary again in the given role, under the shell's `limit`.
    fn start(role: &str, limit: &str) -> Self {
        let mut child = Command::new("sh")
            .arg("-c")
            .arg(format!(
                "{limit} && exec \"$0\" --exact role --nocapture --test-threads 1"
            ))
            .arg(env::current_exe().unwrap())
            .env(ROLE, role)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().unwrap());
        Self {
            child,
            input,
            output,
        }
    }

    fn write_line(&mut self, line: &str) {
        writeln!(self.input.as_mut().unwrap(), "{line}").unwrap();
    }

    /// The next line printed by the role, skipping those of the test runner.
    fn read_line(&mut self) -> String {
        loop {
            let mut line = String::new();
            assert_ne!(
                self.output.read_line(&mut line).unwrap(),
                0,
                "the role ended"
            );
            if let Some(said) = line.strip_prefix("say: ") {
                return said.trim_end().to_owned();
            }
        }
    }

    fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.child.id()))
            .unwrap()
            .count()
    }

    fn resident_bytes(&self) -> usize {
        let pages = fs::read_to_string(format!("/proc/{}/statm", self.child.id())).unwrap();
        pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        drop(self.input.take());
        let ended = self.child.wait();
        if !thread::panicking() {
            assert!(ended.unwrap().success(), "the role failed");
        }
    }
}

fn assert_echoes(client: &dyn Channel, rounds: u32) {
    for round in 0..rounds {
        client.send(&round.to_le_bytes()).unwrap();
        assert_eq!(
            client.receive(LONG).unwrap(),
            Some(round.to_le_bytes().to_vec())
        );
    }
}

/// Descriptors a child process may have.
fn descriptors_possible() -> usize {
    let hard = Command::new("sh")
        .arg("-c")
        .arg("ulimit -Hn")
        .output()
        .unwrap();
    // "unlimited" is more than enough.
    String::from_utf8(hard.stdout)
        .unwrap()
        .trim()
        .parse()
        .unwrap_or(usize::MAX)
}

fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + LONG;
    while !holds() {
        assert!(Instant::now() < deadline, "it never came true that {what}");
        thread::yield_now();
    }
}
