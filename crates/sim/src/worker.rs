//! A process that runs seeds, each in its own fork.
//!
//! Some of the randomness below us has per-process state, so each seed needs its own process.
//! Starting one from the program costs more than a fifth of a short run: its dependencies fill
//! tables of many megabytes on first use. A worker does that once, before the first seed. A run
//! with `--seed` starts the same way, so that it has the same trace.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, setrlimit};

use crate::plan::{Cuts, Fault, Plan};
use crate::run::{self, Report};
use crate::story::Story;

/// Prefix of the line that says how a seed's process ended.
pub const ENDED: &str = "ended ";

/// Transparent huge pages, taken and returned many at a time.
const MALLOC: &str = "glibc.malloc.hugetlb=1:glibc.malloc.trim_threshold=1073741824:\
    glibc.malloc.top_pad=33554432:glibc.malloc.mmap_threshold=1073741824";

/// A process that runs seeds, one after another.
pub struct Worker {
    process: Child,
    requests: ChildStdin,
    reports: BufReader<ChildStdout>,
}

impl Worker {
    /// Starts a worker of `program`, the simulator, with this bug.
    ///
    /// # Errors
    /// When the program does not start.
    pub fn start(program: &Path, planted: Option<&str>) -> io::Result<Self> {
        let mut command = Command::new(program);
        command
            // Each seed begins with an empty heap, and page faults are a tenth of its time.
            .env("GLIBC_TUNABLES", MALLOC)
            .arg("--worker")
            .args(planted.map(|bug| format!("--planted={bug}")))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit());
        let mut process = command.spawn()?;
        let (Some(requests), Some(reports)) = (process.stdin.take(), process.stdout.take()) else {
            return Err(io::Error::other("a worker has no pipes"));
        };
        Ok(Self {
            process,
            requests,
            reports: BufReader::new(reports),
        })
    }

    /// Runs a seed in its own process. An inner error is the seed's failure.
    ///
    /// # Errors
    /// When the worker is gone.
    pub fn run(&mut self, seed: u64, cuts: &Cuts) -> io::Result<Result<Report, String>> {
        let arguments = cuts.arguments().join(" ");
        writeln!(self.requests, "--seed {seed} {arguments}")?;
        let mut report = Err("no report".to_owned());
        let mut line = String::new();
        loop {
            line.clear();
            if self.reports.read_line(&mut line)? == 0 {
                return Err(io::Error::other("a worker has ended"));
            }
            let Some(status) = line.strip_prefix(ENDED) else {
                report = serde_json::from_str(&line).map_err(|error| format!("no report: {error}"));
                continue;
            };
            let status = status.trim().parse().map_err(io::Error::other)?;
            let status = ExitStatus::from_raw(status);
            return Ok(if status.success() {
                report
            } else {
                Err(format!("its process ended with {status}"))
            });
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It is waiting for a seed and runs none.
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

/// CPU time that a seed may use, in seconds: some hundred times what it needs. A seed that uses
/// more is looping at one virtual moment, and has failed.
const CPU_SECONDS_MAX: u64 = 60;

/// Makes this process end when it uses more CPU time than any seed needs.
///
/// # Errors
/// When the limit cannot be set.
pub fn limit_cpu_time() -> io::Result<()> {
    let limit = Rlimit {
        current: Some(CPU_SECONDS_MAX),
        maximum: Some(CPU_SECONDS_MAX + 1),
    };
    Ok(setrlimit(Resource::Cpu, limit)?)
}

/// Runs almost nothing, to initialize what a process creates once.
///
/// # Errors
/// When no runtime can be created.
pub fn warm_up() -> io::Result<()> {
    let cuts = Cuts {
        nodes: Some(1),
        safety: Some(Duration::from_millis(1)),
        without: Fault::ALL.iter().copied().collect(),
        ..Cuts::default()
    };
    run::run(Plan::new(0, &cuts), || Story::new(false, false))?;
    Ok(())
}
