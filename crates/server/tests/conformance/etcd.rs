//! Real etcd servers, each in a process of its own that ends with the test.

use std::env;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use crate::http;
use crate::target::{Size, Version};

/// How long a server may take to be healthy. Only a failure takes that long.
const START_MAX: Duration = Duration::from_secs(10);

/// How often new ports are chosen when servers did not come up with theirs.
const STARTS_MAX: usize = 3;

/// Runs the program until the pipe on standard input ends, also when the test is killed.
const KEEPER: &str = r#""$@" & child=$!; read _; kill -9 $child; wait $child 2>/dev/null"#;

/// The program to compare with, and its version.
pub(crate) struct Program {
    pub(crate) path: PathBuf,
    pub(crate) version: Version,
}

/// What `STEADFAST_ETCD` names, or else the `etcd` in `PATH`.
pub(crate) fn program() -> Option<&'static Program> {
    static FOUND: OnceLock<Option<Program>> = OnceLock::new();
    FOUND.get_or_init(find).as_ref()
}

fn find() -> Option<Program> {
    let path = env::var_os("STEADFAST_ETCD").map_or_else(|| PathBuf::from("etcd"), PathBuf::from);
    let output = Command::new(&path).arg("--version").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let version = text
        .lines()
        .find_map(|line| line.strip_prefix("etcd Version: "))?;
    Some(Program {
        path,
        version: Version::parse(version),
    })
}

/// One member of a cluster of real servers.
pub(crate) struct Member {
    pub(crate) address: SocketAddr,
    keeper: Child,
}

impl Member {
    /// Ends the server at once, as a crash does.
    pub(crate) fn kill(&mut self) {
        drop(self.keeper.stdin.take());
        let ended = self.keeper.wait();
        assert!(ended.is_ok(), "{ended:?}");
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A healthy new cluster of as many members. One alone has short ticks, so that it starts in a few
/// hundredths of a second.
pub(crate) async fn start(program: &Program, size: Size) -> (TempDir, Vec<Member>) {
    for _ in 0..STARTS_MAX {
        let home = tempfile::tempdir().unwrap();
        let members = spawn(program, size, home.path());
        if healthy(&members).await {
            return (home, members);
        }
    }
    panic!("{} did not come up", program.path.display());
}

async fn healthy(members: &[Member]) -> bool {
    let deadline = Instant::now() + START_MAX;
    for member in members {
        loop {
            match http::request(member.address, "GET", "/health", &[], b"").await {
                Ok(answer) if answer.status == 200 => break,
                _ if Instant::now() >= deadline => return false,
                _ => sleep(Duration::from_millis(5)).await,
            }
        }
    }
    true
}

fn spawn(program: &Program, size: Size, home: &Path) -> Vec<Member> {
    let count = if size == Size::Three { 3 } else { 1 };
    let ports = free_ports(2 * count);
    let peers: Vec<_> = ports[count..]
        .iter()
        .map(|at| format!("http://{at}"))
        .collect();
    let cluster: Vec<_> = peers
        .iter()
        .enumerate()
        .map(|(n, url)| format!("m{n}={url}"))
        .collect();
    let start = |n: usize| {
        let url = format!("http://{}", ports[n]);
        let mut command = Command::new("sh");
        command.args(["-c", KEEPER, "sh"]).arg(&program.path);
        command
            .args(["--name", &format!("m{n}"), "--data-dir"])
            .arg(home.join(format!("m{n}")));
        command.args([
            "--listen-client-urls",
            &url,
            "--advertise-client-urls",
            &url,
        ]);
        command.args([
            "--listen-peer-urls",
            &peers[n],
            "--initial-advertise-peer-urls",
            &peers[n],
        ]);
        command.args(["--initial-cluster", &cluster.join(","), "--unsafe-no-fsync"]);
        if count == 1 {
            command.args(["--heartbeat-interval", "10", "--election-timeout", "100"]);
        }
        if size == Size::Progress {
            command.args(["--experimental-watch-progress-notify-interval", "1s"]);
        }
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        Member {
            address: ports[n],
            keeper: command.spawn().unwrap(),
        }
    };
    (0..count).map(start).collect()
}

/// Addresses that nobody listened on a moment ago.
fn free_ports(count: usize) -> Vec<SocketAddr> {
    let listeners: Vec<_> = (0..count)
        .map(|_| TcpListener::bind("127.0.0.1:0").unwrap())
        .collect();
    listeners
        .iter()
        .map(|listener| listener.local_addr().unwrap())
        .collect()
}
