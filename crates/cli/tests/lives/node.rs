//! One node as a process: this test binary again, embedding the library as an application does.

use std::io::{BufRead, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use steadfast::{
    Bootstrap, CommitToken, ConsistencyPolicy, ReadError, RepConfig, ReplicatedEnvironment, Role,
    Snapshot, WriteError,
};

use crate::PATIENCE;
use crate::protocol::{Command, Found, Keys, Outcome, Report, Rows, Stream, Write};

/// Set in a node's process: its [`Settings`].
pub(crate) const SETTINGS: &str = "STEADFAST_LIVES_NODE";

/// Longest pause between two reads of a watcher.
const WATCH_PAUSE: Duration = Duration::from_millis(1);

/// What a node is told at start.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Settings {
    pub(crate) name: String,
    pub(crate) dir: PathBuf,
    pub(crate) listen: String,
    /// The nodes that form the group.
    pub(crate) list: Vec<String>,
    /// Numeric settings, by key.
    pub(crate) numbers: Vec<(String, u64)>,
    /// What a watcher reads continually.
    pub(crate) watched: Keys,
}

/// Not a test in itself: [`crate::group`] starts it in other processes.
#[test]
fn a_node() {
    let Ok(settings) = std::env::var(SETTINGS) else {
        return;
    };
    let settings: Settings = serde_json::from_str(&settings).expect("settings");
    tracing_subscriber::fmt()
        .with_env_filter("info,openraft=error")
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    // The harness has already printed this test's name on the current line.
    println!();
    let done = run(&settings);
    if let Err(error) = &done {
        say(&Report::Failed(error.clone()));
    }
    std::process::exit(i32::from(done.is_err()));
}

/// Runs the node until its stdin ends.
fn run(settings: &Settings) -> Result<(), String> {
    let set =
        |config: steadfast::RepConfigBuilder, (key, value): &(String, u64)| config.set(key, *value);
    let config = RepConfig::builder("lives", &settings.name)
        .data_dir(&settings.dir)
        .listen(&settings.listen)
        .bootstrap(Bootstrap::expect(&settings.list).expect("a list"));
    let config = settings.numbers.iter().fold(config, set).build();
    let env = ReplicatedEnvironment::open(config.expect("valid")).map_err(text)?;
    let (watching, waiting, following) = (env.clone(), env.clone(), env.clone());
    let watched = settings.watched.clone();
    if !watched.is_empty() {
        std::thread::spawn(move || watch(&watching, &watched));
    }
    std::thread::spawn(move || match waiting.wait_ready(PATIENCE) {
        Ok(()) => {
            let put_right = waiting.status().put_right;
            say(&Report::Ready { put_right });
        }
        Err(error) => say(&Report::Failed(error.to_string())),
    });
    std::thread::spawn(move || {
        for state in following.state_changes() {
            say(&Report::Role(state.role.to_string()));
            if state.role == Role::Detached {
                return;
            }
        }
    });
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        match serde_json::from_str(&line).map_err(text)? {
            Command::Write(streams) => write(&env, streams),
            Command::Read { keys, token } => say(&read(&env, &keys, token)),
        }
    }
    env.close().map_err(text)
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// Writes one line. Without a reader, this process has no purpose left.
fn say(report: &Report) {
    let mut line = serde_json::to_vec(report).expect("a report is plain data");
    line.push(b'\n');
    if std::io::stdout().lock().write_all(&line).is_err() {
        std::process::exit(1);
    }
}

/// Starts writing each stream on its own thread.
fn write(env: &ReplicatedEnvironment, streams: Vec<Stream>) {
    let left = Arc::new(AtomicUsize::new(streams.len()));
    for stream in streams {
        let (env, left) = (env.clone(), Arc::clone(&left));
        std::thread::spawn(move || {
            for write in &stream.writes {
                let outcome = write_one(&env, write);
                let goes_on = matches!(outcome, Outcome::Acknowledged(_));
                say(&Report::Wrote(stream.number, write.number, outcome));
                if !goes_on {
                    break;
                }
            }
            if left.fetch_sub(1, Ordering::SeqCst) == 1 {
                say(&Report::Rests);
            }
        });
    }
}

fn write_one(env: &ReplicatedEnvironment, write: &Write) -> Outcome {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let written = env.write(|txn| {
            write.changes.iter().try_for_each(|(database, key, value)| {
                let database = txn.database(database)?;
                match value {
                    Some(value) => database.put(key, value),
                    None => database.delete(key),
                }
            })
        });
        let error = match written {
            Ok(written) => return Outcome::Acknowledged(written.token),
            Err(error) => error,
        };
        match error.outcome() {
            steadfast::Outcome::Committed(token) => return Outcome::Acknowledged(token),
            steadfast::Outcome::Unknown(_) | steadfast::Outcome::Lost => return Outcome::Unknown,
            steadfast::Outcome::NotCommitted => {}
        }
        let is_elsewhere = matches!(
            error,
            WriteError::NotMaster { .. } | WriteError::Stopped { .. } | WriteError::Closed
        );
        let passes = error.is_retryable() && !is_elsewhere;
        if !passes || Instant::now() > deadline {
            return Outcome::Refused(error.to_string());
        }
    }
}

fn read(env: &ReplicatedEnvironment, keys: &Keys, token: Option<CommitToken>) -> Report {
    let policy = match token {
        Some(token) => ConsistencyPolicy::AtLeast(token),
        None => ConsistencyPolicy::Linearizable,
    };
    match env.read(policy, |snapshot| look(snapshot, keys)) {
        Ok(found) => Report::Read(found),
        Err(error) if error.is_retryable() => Report::Unread(error.to_string()),
        Err(error) => Report::Failed(error.to_string()),
    }
}

/// All rows of these databases by scan, and these keys of them by `get`.
fn look(snapshot: &Snapshot, keys: &Keys) -> Result<Found, ReadError> {
    let (mut scanned, mut got) = (Rows::new(), Rows::new());
    for (name, keys) in keys {
        let database = snapshot.database(name)?;
        let rows = scanned.entry(name.clone()).or_default();
        for row in &database {
            let (key, value) = row?;
            let before = rows.insert(shown(&key), shown(&value));
            assert_eq!(before, None, "a scan gives each key once");
        }
        let rows = got.entry(name.clone()).or_default();
        for key in keys {
            if let Some(value) = database.get(key)? {
                rows.insert(key.clone(), shown(&value));
            }
        }
    }
    let got = Some(got).filter(|got| *got != scanned);
    Ok(Found { scanned, got })
}

fn shown(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Reads continually, like an application that cannot wait: whatever the node has, however old.
fn watch(env: &ReplicatedEnvironment, keys: &Keys) {
    let mut last = None;
    loop {
        match env.read(ConsistencyPolicy::Eventual, |snapshot| look(snapshot, keys)) {
            Ok(found) if last.as_ref() != Some(&found) => {
                say(&Report::Watched(found.clone()));
                last = Some(found);
            }
            Err(ReadError::Closed) => return,
            Ok(_) | Err(_) => {}
        }
        std::thread::park_timeout(WATCH_PAUSE);
    }
}

/// A process of this test binary that runs a node.
pub(crate) fn process(settings: &Settings, log: std::fs::File) -> std::process::Command {
    let program: &Path = &std::env::current_exe().expect("this program");
    let mut command = std::process::Command::new(program);
    command
        .args(["--exact", "node::a_node", "--nocapture"])
        .env(
            SETTINGS,
            serde_json::to_string(settings).expect("plain data"),
        )
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(log);
    command
}
