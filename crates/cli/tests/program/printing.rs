//! Output that nobody reads neither ends the program nor blocks it.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Instant;

use super::{Group, PATIENCE, free_port, node_arguments, run, run_to, steadfast};
use tempfile::TempDir;

/// A device that accepts no writes.
fn full() -> Stdio {
    let device = OpenOptions::new().write(true).open("/dev/full");
    device.expect("a device").into()
}

/// A node whose output reaches nobody; dropping it kills it.
struct Mute(Child);

impl Mute {
    fn start(arguments: &[String], out: Stdio, errors: Stdio) -> Self {
        let child = steadfast()
            .arg("start")
            .args(arguments)
            .env("STEADFAST_LOG", "debug")
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(errors)
            .spawn();
        Self(child.expect("the program starts"))
    }

    fn interrupt(&mut self) -> ExitStatus {
        let pid = self.0.id().to_string();
        let sent = Command::new("kill").args(["-INT", &pid]).status();
        assert!(sent.expect("kill runs").success());
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.0.try_wait().expect("a child") {
                return status;
            }
            assert!(Instant::now() < deadline, "it does not end");
            std::thread::yield_now();
        }
    }
}

impl Drop for Mute {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[test]
fn three_nodes_whose_output_goes_to_a_full_device_lose_one_and_go_on() {
    let group = Group::unstarted();
    let mut nodes: Vec<_> = (0..3)
        .map(|at| Mute::start(&group.arguments(at), full(), full()))
        .collect();
    group.status_until(0);
    let ask = format!("127.0.0.1:{}", group.ports[0]);
    let (master, _) = run_to(0, &["master", "show", &ask]);
    let at: usize = master.trim()[1..].parse().expect("a number");
    drop(nodes.remove(at - 1));
    let other = format!("127.0.0.1:{}", group.ports[at % 3]);
    let deadline = Instant::now() + PATIENCE;
    loop {
        let output = run(&["master", "show", &other]);
        if output.status.success() && output.stdout != master.as_bytes() {
            break;
        }
        assert!(Instant::now() < deadline, "nobody takes over: {output:?}");
    }
    for node in &mut nodes {
        let status = node.interrupt();
        assert!(status.success(), "{status}");
    }
}

#[test]
fn a_node_whose_output_nobody_reads_works_and_ends() {
    let dir = TempDir::new().expect("a directory");
    let port = free_port();
    let arguments = node_arguments("g", "n1", &dir.path().join("data"), port);
    // Both pipes are full after 64 KiB, which its log alone fills in no time.
    let mut node = Mute::start(&arguments, Stdio::piped(), Stdio::piped());
    let address = format!("127.0.0.1:{port}");
    let deadline = Instant::now() + PATIENCE;
    while run(&["status", &address]).status.code() != Some(0) {
        assert!(Instant::now() < deadline, "it does not come to work");
    }
    for _ in 0..50 {
        run_to(0, &["status", &address]);
    }
    let status = node.interrupt();
    assert!(status.success(), "{status}");
    let mut errors = Vec::new();
    let stderr = node.0.stderr.take();
    stderr
        .expect("piped")
        .read_to_end(&mut errors)
        .expect("read");
    assert!(errors.len() >= 60 << 10, "{} bytes of log", errors.len());
}

#[test]
fn an_answer_that_cannot_be_written_fails_the_verb_and_panics_nowhere() {
    let output = steadfast()
        .args(["config", "explain"])
        .stdout(full())
        .output();
    let output = output.expect("the program runs");
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{errors}");
    for word in ["could not be written to stdout", "No space left", "to do: "] {
        assert!(errors.contains(word), "{word:?} is not in: {errors}");
    }
    let output = steadfast()
        .args(["config", "explain", "nothing"])
        .stderr(full())
        .status();
    assert_eq!(output.expect("the program runs").code(), Some(2));
}

#[test]
fn a_reader_that_goes_away_ends_a_verb_quietly() {
    let dir = TempDir::new().expect("a directory");
    let port = free_port();
    let arguments = node_arguments("g", "n1", &dir.path().join("data"), port);
    let _node = Mute::start(&arguments, Stdio::null(), Stdio::null());
    let address = format!("127.0.0.1:{port}");
    let deadline = Instant::now() + PATIENCE;
    while run(&["status", &address]).status.code() != Some(0) {
        assert!(Instant::now() < deadline, "it does not come to work");
    }
    for verb in [
        &["config", "explain"][..],
        &["status", &address],
        &["doctor", &address],
        &["events", &address],
    ] {
        let mut child = steadfast()
            .args(verb)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        // The reader is gone before the first word.
        drop(child.stdout.take());
        let output = child.wait_with_output().expect("it ends");
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!((output.status.code(), &*errors), (Some(0), ""), "{verb:?}");
    }
}

#[test]
fn a_demo_whose_output_goes_nowhere_ends_with_its_verdict() {
    let temporary = TempDir::new().expect("a directory");
    let errors = temporary.path().join("errors");
    let demo = steadfast()
        .args(["demo", "--seconds", "5", "--kills", "1"])
        .env("TMPDIR", temporary.path())
        .stdin(Stdio::null())
        .stdout(full())
        .stderr(File::create(&errors).expect("a file"))
        .status();
    let errors = BufReader::new(File::open(errors).expect("a file"));
    let errors: Vec<_> = errors.lines().map_while(Result::ok).collect();
    assert_eq!(demo.expect("it ends").code(), Some(1), "{errors:#?}");
    let last = errors.iter().rev().take(3).cloned().collect::<String>();
    assert!(
        last.contains("could not be written to stdout"),
        "{errors:#?}"
    );
}
