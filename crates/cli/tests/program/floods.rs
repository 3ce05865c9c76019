//! Floods of connections: nodes with few file descriptors go on working, and report the flood.

use std::collections::VecDeque;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;
use socket2::{Domain, Socket, Type};
use steadfast::Descriptors;
use tempfile::TempDir;

use super::{Group, Node, PATIENCE, free_port, node_arguments, run};

/// The default on most systems.
const DESCRIPTORS: usize = 1024;
/// Connections the flood holds to each node, as far as admitted.
const FLOOD: usize = 1100;
/// Descriptors a flooded node uses at least. It keeps the rest from strangers, and admits few more
/// of them than fit.
const STRANGERS_MIN: usize = 650;

/// Runs the program with a limit on open files.
fn limited(ulimit: &str, arguments: &[String]) -> Command {
    let mut command = Command::new("sh");
    command
        .arg("-c")
        .arg(format!("{ulimit} && exec \"$0\" \"$@\""))
        .arg(env!("CARGO_BIN_EXE_steadfast"))
        .args(arguments);
    command
}

/// A node that writes while it is master. Dropping it kills it.
struct Loaded {
    child: Child,
    stdin: ChildStdin,
    is_ready: Arc<AtomicBool>,
    appended: Arc<AtomicUsize>,
}

impl Loaded {
    fn start(at: usize, arguments: Vec<String>) -> Self {
        let mut all = vec!["demo-node".to_owned()];
        all.extend(arguments);
        let rest = [
            "--life",
            &at.to_string(),
            "--clients",
            "2",
            "--set",
            "log_segment_bytes=65536",
        ];
        all.extend(rest.map(str::to_owned));
        let mut child = limited(&format!("ulimit -n {DESCRIPTORS}"), &all)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let stdin = child.stdin.take().expect("piped");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let (is_ready, appended) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let (ready, count) = (Arc::clone(&is_ready), Arc::clone(&appended));
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if line == "\"ready\"" {
                    ready.store(true, Ordering::SeqCst);
                }
                if line.contains("\"appended\"") {
                    count.fetch_add(1, Ordering::SeqCst);
                }
            }
        });
        Self {
            child,
            stdin,
            is_ready,
            appended,
        }
    }

    fn descriptors(&self) -> usize {
        let list = fs::read_dir(format!("/proc/{}/fd", self.child.id()));
        list.expect("it runs").count()
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Connections that send nothing, or only part of what they should, from many addresses; closed
/// ones are replaced.
struct Flood {
    stop: Sender<()>,
    thread: JoinHandle<()>,
}

impl Flood {
    fn begin(port: u16) -> Self {
        let (stop, stopped) = channel();
        let thread = std::thread::spawn(move || {
            let mut held = VecDeque::new();
            let mut at = 0;
            let mut pause = Duration::ZERO;
            while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(pause) {
                at += 1;
                if let Ok(mut socket) = connect_from(at, port) {
                    // The server may have closed it already.
                    socket.write_all(&b"\x0a\0\0\0NODE_STATE"[..at % 15]).ok();
                    held.push_back(socket);
                }
                if held.len() > FLOOD {
                    pause = Duration::from_millis(1);
                    held.pop_front();
                }
            }
        });
        Self { stop, thread }
    }

    fn end(self) {
        self.stop.send(()).expect("it goes on until it is told");
        self.thread.join().expect("no panic");
    }
}

fn connect_from(at: usize, port: u16) -> std::io::Result<Socket> {
    let host = u8::try_from(1 + at % 200).expect("a byte");
    let source = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, 0, 1, host)), 0);
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&source.into())?;
    socket.connect(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)).into())?;
    Ok(socket)
}

fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "it never came true that {what}");
        std::thread::yield_now();
    }
}

/// The newest segment of a node's log.
fn newest_segment(group: &Group, at: usize) -> PathBuf {
    let files = fs::read_dir(group.data_dir(at).join("log")).expect("a log");
    let files = files.map(|entry| entry.expect("an entry").path());
    let segments = files.filter(|path| path.extension().is_some_and(|it| it == "log"));
    segments.max().expect("a segment")
}

#[test]
fn a_flood_of_connections_neither_stops_a_node_nor_its_writes_and_doctor_says_what_is_left() {
    Descriptors::raise_limit().expect("a limit");
    let group = Group::unstarted();
    let mut nodes: Vec<_> = (0..3)
        .map(|at| Loaded::start(at, group.arguments(at)))
        .collect();
    wait_until("all nodes are ready", || {
        nodes
            .iter()
            .all(|node| node.is_ready.load(Ordering::SeqCst))
    });
    for node in &mut nodes {
        writeln!(node.stdin, "\"load\"").expect("it runs");
    }
    let appended = |nodes: &[Loaded]| -> usize {
        let counts = nodes
            .iter()
            .map(|node| node.appended.load(Ordering::SeqCst));
        counts.sum()
    };
    wait_until("the load has begun", || appended(&nodes) > 10);

    let floods: Vec<_> = group.ports.iter().map(|port| Flood::begin(*port)).collect();
    for node in &nodes {
        wait_until("the flood has all that is for strangers", || {
            node.descriptors() >= STRANGERS_MIN
        });
    }
    for round in 0..3 {
        let before: Vec<_> = (0..3).map(|at| newest_segment(&group, at)).collect();
        wait_until("each node has begun another segment", || {
            (0..3).all(|at| newest_segment(&group, at) > before[at])
        });
        for node in &mut nodes {
            assert!(node.child.try_wait().expect("a child").is_none(), "{round}");
            let used = node.descriptors();
            assert!(used < DESCRIPTORS - 64, "{used} descriptors are used");
        }
    }
    let address = format!("127.0.0.1:{}", group.ports[0]);
    wait_until("doctor says how many descriptors are left", || {
        let output = run(&["doctor", &address]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        output.status.code() == Some(3) && text.contains("more files and connections, of 1,024")
    });
    floods.into_iter().for_each(Flood::end);
    group.status_until(0);
    wait_until("doctor finds nothing any more", || {
        run(&["doctor", &address]).status.success()
    });
}

#[test]
fn a_node_raises_its_own_limit_of_open_files() {
    let dir = TempDir::new().expect("a directory");
    let port = free_port();
    let mut arguments = node_arguments("g", "n1", &dir.path().join("data"), port);
    arguments.insert(0, "start".to_owned());
    let node = Node::spawn(&mut limited("ulimit -S -n 200", &arguments));
    node.wait_for(&["is master"]);
    let output = run(&["status", &format!("127.0.0.1:{port}"), "-o", "json"]);
    let status: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let max = status["nodes"][0]["status"]["descriptors_max"].as_u64();
    let hard = Command::new("sh").args(["-c", "ulimit -H -n"]).output();
    let hard = String::from_utf8(hard.expect("sh runs").stdout).expect("text");
    let hard = hard.trim().parse().unwrap_or(u64::MAX);
    assert_eq!(max, Some(hard.min(65_536)), "{status}");
}
