//! Floods of connections: a loaded group with TLS goes on working, within its descriptors and memory,
//! and reports the flood.
//!
//! The flood is small by default, and the nodes have few descriptors. With `STEADFAST_FLOOD=full` it
//! is as large as what docs/architecture/bounds.md says of it, and commits are timed.

use std::collections::VecDeque;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;
use socket2::{Domain, Socket, Type};
use steadfast::Descriptors;
use tempfile::TempDir;

use super::strangers::hands::{Papers, client_hello};
use super::strangers::wire::Hello;
use super::tls::Secured;
use super::{Group, Node, PATIENCE, free_port, node_arguments, run};

/// The fewest with which a node does not complain.
const DESCRIPTORS_FEW: usize = 256;
/// Descriptors that a flooded node with these few uses at least. It keeps the rest from strangers,
/// and admits few more of them than fit.
const STRANGERS_MIN: usize = 110;

/// Pause between two bytes of a slow handshake.
const SLOW_PAUSE: Duration = Duration::from_millis(500);
/// Pause between two connections of a peer that sends garbage.
const GARBAGE_PAUSE: Duration = Duration::from_millis(100);
/// By how much a flood may make a node grow.
const GROWN_MAX: usize = 64 << 20;

/// A flood of the whole group, and how long it is watched.
struct Scale {
    half_open: usize,
    slow: usize,
    garbage: usize,
    /// How long a half-open connection is held.
    held: Duration,
    /// What each node may open.
    descriptors: String,
    watched: Duration,
}

impl Scale {
    const SMALL: (usize, usize, usize) = (900, 60, 6);
    const FULL: (usize, usize, usize) = (10_000, 1_000, 10);

    /// As asked for in the environment. The attacker needs a descriptor for each connection.
    fn asked() -> Self {
        let is_full = std::env::var("STEADFAST_FLOOD").is_ok_and(|scale| scale == "full");
        let (half_open, slow, garbage) = if is_full { Self::FULL } else { Self::SMALL };
        let limit = Descriptors::raise_limit().expect("a limit");
        let limit = limit.and_then(|limit| usize::try_from(limit).ok());
        let room = limit.unwrap_or(usize::MAX).saturating_sub(500);
        let fits = room.min(half_open);
        if fits < half_open {
            println!("{fits} of {half_open} half-open connections: more may not be opened here");
        }
        Self {
            half_open: fits,
            slow,
            garbage,
            descriptors: if is_full {
                "$(ulimit -Hn)".to_owned()
            } else {
                DESCRIPTORS_FEW.to_string()
            },
            // A node lets it be for 5 s. One with few descriptors closes it sooner for another one.
            held: Duration::from_secs(if is_full { 5 } else { 1 }),
            watched: Duration::from_secs(if is_full { 20 } else { 2 }),
        }
    }

    fn is_full(&self) -> bool {
        self.slow == Self::FULL.1
    }
}

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

/// A node that writes while it is master: one client, each write after the acknowledgement of the one
/// before. Dropping it kills it.
struct Loaded {
    child: Child,
    stdin: ChildStdin,
    is_ready: Arc<AtomicBool>,
    /// When each write was acknowledged.
    acknowledged: Arc<Mutex<Vec<Instant>>>,
}

impl Loaded {
    fn start(at: usize, arguments: Vec<String>, descriptors: &str) -> Self {
        let mut all = vec!["demo-node".to_owned()];
        all.extend(arguments);
        let rest = [
            "--life",
            &at.to_string(),
            "--clients",
            "1",
            "--set",
            "log_segment_bytes=65536",
        ];
        all.extend(rest.map(str::to_owned));
        let mut child = limited(&format!("ulimit -n {descriptors}"), &all)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the program starts");
        let stdin = child.stdin.take().expect("piped");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let is_ready = Arc::<AtomicBool>::default();
        let acknowledged = Arc::<Mutex<Vec<Instant>>>::default();
        let (ready, noted) = (Arc::clone(&is_ready), Arc::clone(&acknowledged));
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if line == "\"ready\"" {
                    ready.store(true, Ordering::SeqCst);
                }
                if line.contains("\"appended\"") || line.contains("\"paid\"") {
                    noted.lock().expect("no panic").push(Instant::now());
                }
            }
        });
        Self {
            child,
            stdin,
            is_ready,
            acknowledged,
        }
    }

    fn descriptors(&self) -> usize {
        let list = fs::read_dir(format!("/proc/{}/fd", self.child.id()));
        list.expect("it runs").count()
    }

    fn resident_bytes(&self) -> usize {
        let pages = fs::read_to_string(format!("/proc/{}/statm", self.child.id()));
        let pages = pages.expect("it runs");
        let resident = pages.split(' ').nth(1).map(str::parse::<usize>);
        resident.expect("a field").expect("a number") * 4096
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// A group with TLS under load.
struct Besieged {
    secured: Secured,
    nodes: Vec<Loaded>,
}

impl Besieged {
    fn start(scale: &Scale) -> Self {
        let secured = Secured::prepared();
        let start = |at| Loaded::start(at, secured.arguments(at), &scale.descriptors);
        let mut nodes: Vec<_> = (0..3).map(start).collect();
        let is_ready = |node: &Loaded| node.is_ready.load(Ordering::SeqCst);
        wait_until("all nodes are ready", || nodes.iter().all(is_ready));
        for node in &mut nodes {
            writeln!(node.stdin, "\"load\"").expect("it runs");
        }
        let besieged = Self { secured, nodes };
        let enough = || besieged.times().len() > 50;
        wait_until("the load has begun", enough);
        besieged
    }

    /// When writes were acknowledged, in order.
    fn times(&self) -> Vec<Instant> {
        let of = |node: &Loaded| node.acknowledged.lock().expect("no panic").clone();
        let mut times: Vec<_> = self.nodes.iter().flat_map(of).collect();
        times.sort();
        times
    }

    /// The term of the group, whatever else is said of it: among a flood, a caller that is slow for want
    /// of a processor gives way to the next, and asks again.
    fn term(&self) -> u64 {
        let (address, admin) = (self.secured.address(0), self.secured.of("admin"));
        let ask = ["status", "-o", "json", "--ask", &address];
        let mut term = None;
        wait_until("somebody tells the term", || {
            let output = run(&[&ask[..], &["--credentials", &admin]].concat());
            let status = serde_json::from_slice::<Value>(&output.stdout);
            term = status.ok().and_then(|status| status["term"].as_u64());
            term.is_some_and(|term| term > 0)
        });
        term.expect("it was told")
    }

    /// Watches the load for a while: how many writes there were, the median and the 99th percentile
    /// of the time that each took, and the most memory of each node.
    fn watch(&self, watched: Duration) -> (usize, [Duration; 2], Vec<usize>) {
        let began = Instant::now();
        let mut most = vec![0; self.nodes.len()];
        // Once in a while: looking costs the nodes time as well.
        let (_never, tick) = channel::<()>();
        while began.elapsed() < watched {
            for (most, node) in most.iter_mut().zip(&self.nodes) {
                *most = node.resident_bytes().max(*most);
            }
            // Nothing is sent: it is for its timeout.
            tick.recv_timeout(Duration::from_millis(100)).ok();
        }
        let mut times = self.times();
        times.retain(|at| *at >= began);
        let mut took: Vec<_> = times.windows(2).map(|two| two[1] - two[0]).collect();
        took.sort();
        let part = |of: usize| took.get(took.len() * of / 100).copied();
        let parts = [50, 99].map(|of| part(of).expect("writes go on"));
        (took.len(), parts, most)
    }

    /// Begins a flood of the whole group. It gives way to the nodes: attackers have processors of their
    /// own.
    fn flood(&self, scale: &Scale) -> Vec<Attacker> {
        give_way();
        let ports = &self.secured.group.ports;
        let mut all = Vec::new();
        for (port, at) in ports.iter().zip(0..) {
            let (port, half_open, slow) = (*port, scale.half_open / 3, scale.slow / 3);
            let held = scale.held;
            all.push(Attacker::begin(move |stopped| {
                hold_half_open(port, half_open, held, stopped);
            }));
            all.push(Attacker::begin(move |stopped| {
                hold_slow(port, slow, stopped);
            }));
            let (address, of) = (self.secured.address(at), self.secured.of("n3"));
            let directory = self.secured.group.data_dir(2);
            for number in 0..scale.garbage.div_ceil(3).min(scale.garbage) {
                let hello = Hello::of_directory(&directory, at as u64 + 1);
                let (address, papers) = (address.clone(), Papers::read(&of));
                all.push(Attacker::begin(move |mut stopped| {
                    let mut garbage = [0; 4096];
                    while !stopped(GARBAGE_PAUSE) {
                        rand::fill(&mut garbage);
                        if number % 2 == 0 {
                            send_garbage(port, &garbage);
                        } else {
                            papers.try_garbage(&address, &hello, &garbage);
                        }
                    }
                }));
            }
        }
        all
    }
}

/// Has this thread, and those that it starts from here on, get what others leave of the processors.
fn give_way() {
    let own = fs::read_link("/proc/thread-self").expect("Linux");
    let own = own.file_name().expect("a number").to_owned();
    let renice = Command::new("renice")
        .args(["-n", "19", "-p"])
        .arg(own)
        .output();
    // Where there is no such program, the flood weighs more.
    if let Err(error) = renice {
        println!("the flood does not give way: {error}");
    }
}

/// A thread that attacks until it is told to stop.
struct Attacker {
    stop: Sender<()>,
    thread: JoinHandle<()>,
}

/// Waits for as long; returns whether the attack is over.
type Stopped = Box<dyn FnMut(Duration) -> bool + Send>;

impl Attacker {
    fn begin(attack: impl FnOnce(Stopped) + Send + 'static) -> Self {
        let (stop, stopped) = channel();
        let thread = std::thread::spawn(move || {
            attack(Box::new(move |pause| {
                !matches!(stopped.recv_timeout(pause), Err(RecvTimeoutError::Timeout))
            }));
        });
        Self { stop, thread }
    }

    fn end(self) {
        self.stop.send(()).expect("it goes on until it is told");
        self.thread.join().expect("no panic");
    }
}

/// Holds as many connections that send nothing, or only the beginning of a handshake, each for as
/// long; the oldest is then replaced. They begin evenly over that time.
fn hold_half_open(port: u16, count: usize, held_for: Duration, mut stopped: Stopped) {
    let hello = client_hello();
    let mut held: VecDeque<Option<Socket>> = VecDeque::new();
    let began = Instant::now();
    for at in 1_u32.. {
        let next = held_for * at / u32::try_from(count).expect("a port has fewer");
        if stopped(next.saturating_sub(began.elapsed())) {
            return;
        }
        if held.len() >= count {
            held.pop_front();
        }
        let at = usize::try_from(at).expect("it fits");
        let mut socket = connect_from(at, port).ok();
        if let Some(socket) = &mut socket {
            // The node may have closed it already.
            socket.write_all(&hello[..at % hello.len()]).ok();
        }
        held.push_back(socket);
    }
}

/// Holds as many handshakes of which one byte comes at a time. Each is replaced when the node has
/// closed it.
fn hold_slow(port: u16, count: usize, mut stopped: Stopped) {
    let hello = client_hello();
    let mut held: Vec<Option<(Socket, usize)>> = (0..count).map(|_| None).collect();
    let mut at = 0;
    while !stopped(SLOW_PAUSE) {
        for slow in &mut held {
            let is_open = slow.as_mut().is_some_and(|(socket, sent)| {
                *sent += 1;
                socket.write_all(&hello[*sent - 1..*sent]).is_ok()
            });
            if !is_open {
                at += 1;
                *slow = connect_from(at, port).ok().map(|socket| (socket, 0));
            }
        }
    }
}

/// Sends garbage, and reads until it is closed.
fn send_garbage(port: u16, garbage: &[u8]) {
    let Ok(mut socket) = connect_from(7, port) else {
        return;
    };
    // It is closed in the middle, or at once.
    socket.write_all(garbage).ok();
    socket.set_read_timeout(Some(PATIENCE)).expect("set");
    socket.read_to_end(&mut Vec::new()).ok();
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

/// The nodes have opened files since, and leave the last descriptors to them.
fn assert_files_are_opened(of: &mut Besieged, since: &[PathBuf]) {
    let group = &of.secured.group;
    wait_until("each node has begun another segment", || {
        (0..3).all(|at| newest_segment(group, at) > since[at])
    });
    for node in &mut of.nodes {
        assert!(node.child.try_wait().expect("a child").is_none());
        let used = node.descriptors();
        let few = DESCRIPTORS_FEW - DESCRIPTORS_FEW / 8;
        assert!(used < few, "{used} descriptors are used");
    }
}

#[test]
fn a_flood_of_connections_neither_stops_a_node_nor_its_writes_and_doctor_says_what_is_left() {
    let scale = Scale::asked();
    let mut besieged = Besieged::start(&scale);
    let term = besieged.term();
    let (calm, [calm_median, calm_p99], before_bytes) = besieged.watch(scale.watched);
    let flood = besieged.flood(&scale);
    let strangers_min = if scale.is_full() {
        scale.half_open / 4 + scale.slow / 4
    } else {
        STRANGERS_MIN
    };
    for node in &besieged.nodes {
        wait_until("the flood has all that is for strangers", || {
            node.descriptors() >= strangers_min
        });
    }
    let group = &besieged.secured.group;
    let segments: Vec<_> = (0..3).map(|at| newest_segment(group, at)).collect();
    let (stormy, [median, p99], most) = besieged.watch(scale.watched);
    let held: Vec<_> = besieged.nodes.iter().map(Loaded::descriptors).collect();
    println!("before: {calm} writes, median {calm_median:?}, p99 {calm_p99:?}");
    println!("during: {stormy} writes, median {median:?}, p99 {p99:?}; descriptors {held:?}");
    for (most, before) in most.iter().zip(&before_bytes) {
        let grown = most.saturating_sub(*before);
        println!(
            "memory: {} KiB before, {} KiB more",
            before >> 10,
            grown >> 10
        );
        assert!(grown < GROWN_MAX, "grown by {grown} bytes");
    }
    assert_eq!(besieged.term(), term, "no election");
    let address = besieged.secured.address(0);
    let admin = besieged.secured.of("admin");
    let doctor = ["doctor", "--ask", &address, "--credentials", &admin];
    if scale.is_full() {
        assert!(
            p99 <= 2 * calm_p99,
            "{p99:?} with the flood, {calm_p99:?} before"
        );
    } else {
        assert_files_are_opened(&mut besieged, &segments);
        wait_until("doctor says how many descriptors are left", || {
            let output = run(&doctor);
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            output.status.code() == Some(3) && text.contains("more files and connections, of 256")
        });
    }
    flood.into_iter().for_each(Attacker::end);
    wait_until("doctor finds nothing any more", || {
        run(&doctor).status.success()
    });
    assert_eq!(besieged.term(), term, "no election");
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
