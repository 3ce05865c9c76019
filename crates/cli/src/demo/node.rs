//! One node of the demo: a process that embeds the library, as an application does.

use std::io::BufRead;
use std::process::ExitCode;
use std::time::Duration;

use steadfast::{ConsistencyPolicy, ReadError, ReplicatedEnvironment, Role, Snapshot};

use super::protocol::{ACCOUNTS, COUNTERS, Command, JOURNAL, Report, Row};
use super::workload::{Switch, Worker};
use crate::failure::Failure;
use crate::output;
use crate::settings::Flags;

const READY_TIMEOUT: Duration = Duration::from_secs(30);
/// Records reported in one line.
const ROWS_PER_LINE: usize = 1000;

/// One node of the demo
#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    flags: Flags,
    /// Number of this process, that no other process of the demo has
    #[arg(long)]
    life: u64,
    #[arg(long)]
    clients: u32,
}

/// Runs the node until its stdin ends.
///
/// # Errors
/// When the node cannot be opened, or does not become ready.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode, Failure> {
    output::detach_log()?;
    let env = ReplicatedEnvironment::open(arguments.flags.load()?.config)?;
    let switch: &'static Switch = Box::leak(Box::default());
    for stream in 0..arguments.clients {
        let (env, worker) = (
            env.clone(),
            Worker {
                life: arguments.life,
                stream,
                tries: 0,
            },
        );
        start_thread("worker", move || worker.run(&env, switch, say))?;
    }
    let watched = env.clone();
    start_thread("role", move || follow_role(&watched, switch))?;
    let waiting = env.clone();
    start_thread("ready", move || say_when_ready(&waiting))?;
    for line in std::io::stdin().lock().lines() {
        let Ok(line) = line else { break };
        match serde_json::from_str(&line) {
            Ok(Command::Load) => switch.want(true),
            Ok(Command::Rest) => {
                switch.want(false);
                switch.wait_idle();
                say(&Report::Resting);
            }
            Ok(Command::Read) => {
                let answer = read(&env);
                if matches!(answer, Report::Unread(_)) {
                    switch.pause();
                }
                say(&answer);
            }
            Ok(Command::Tell) => match tell(&env) {
                Ok(told) => say(&told),
                Err(error) => say(&Report::Failed(error.to_string())),
            },
            Err(error) => say(&Report::Failed(format!("no command: {line}: {error}"))),
        }
    }
    env.close()?;
    Ok(ExitCode::SUCCESS)
}

/// Writes one line, and waits for its reader: none may be missing. If nobody reads any more, stdin
/// ends as well.
fn say(report: &Report) {
    let line = serde_json::to_string(report).expect("a report is plain data");
    println!("{line}");
}

fn follow_role(env: &ReplicatedEnvironment, switch: &Switch) {
    for state in env.state_changes() {
        switch.lead(state.role == Role::Master);
        say(&Report::Role {
            role: state.role.to_string(),
            term: state.term.0,
            master: state.master.map(|master| master.name),
        });
        if state.role == Role::Detached {
            return;
        }
    }
}

fn say_when_ready(env: &ReplicatedEnvironment) {
    match env.wait_ready(READY_TIMEOUT) {
        Ok(()) => say(&Report::Ready),
        Err(error) => say(&Report::Failed(error.to_string())),
    }
}

/// Reads what must never go back: the last number of each stream, and the sum of all accounts.
fn read(env: &ReplicatedEnvironment) -> Report {
    let found = env.read(
        ConsistencyPolicy::Linearizable,
        |snapshot| -> Result<_, ReadError> {
            let mut numbers = Vec::new();
            for row in &snapshot.database(COUNTERS)? {
                let (stream, number) = row?;
                // An invalid number is reported as the lowest, which is detected as having gone back.
                let stream = stream[..].try_into().map_or(u32::MAX, u32::from_be_bytes);
                let number = number[..].try_into().map_or(0, u64::from_be_bytes);
                numbers.push((stream, number));
            }
            let (accounts, sum) = balance(snapshot)?;
            Ok((numbers, accounts, sum))
        },
    );
    match found {
        Ok((numbers, accounts, sum)) => Report::Read {
            numbers,
            accounts,
            sum,
        },
        // A removed node, too, is asked until its removal is seen.
        Err(error) if error.is_retryable() => Report::Unread(error.to_string()),
        Err(error) => Report::Failed(error.to_string()),
    }
}

/// Reports every record; returns the rest of what the node holds.
fn tell(env: &ReplicatedEnvironment) -> Result<Report, ReadError> {
    let read = |snapshot: &Snapshot| -> Result<_, ReadError> {
        let mut rows = Vec::new();
        for row in &snapshot.database(JOURNAL)? {
            rows.push(parse_row(row?));
            if rows.len() == ROWS_PER_LINE {
                say(&Report::Rows(std::mem::take(&mut rows)));
            }
        }
        say(&Report::Rows(rows));
        let (accounts, sum) = balance(snapshot)?;
        Ok((snapshot.vlsn().0, accounts, sum))
    };
    let (vlsn, accounts, sum) = env.read(ConsistencyPolicy::Eventual, read)?;
    let (digest_vlsn, digest) = env.digest()?;
    let (digest, digest_vlsn) = (format!("{digest:032x}"), digest_vlsn.0);
    Ok(Report::Told {
        vlsn,
        accounts,
        sum,
        digest,
        digest_vlsn,
    })
}

/// A record; an invalid one is reported as it is, for the demo to complain about.
fn parse_row((key, value): (impl AsRef<[u8]>, impl AsRef<[u8]>)) -> Row {
    let id = String::from_utf8_lossy(value.as_ref()).into_owned();
    match key.as_ref().split_at_checked(4) {
        Some((stream, number)) => match (stream.try_into(), number.try_into()) {
            (Ok(stream), Ok(number)) => {
                (u32::from_be_bytes(stream), u64::from_be_bytes(number), id)
            }
            _ => (u32::MAX, 0, id),
        },
        None => (u32::MAX, 0, id),
    }
}

fn balance(snapshot: &Snapshot) -> Result<(u32, i64), ReadError> {
    let (mut count, mut sum) = (0, 0);
    for row in &snapshot.database(ACCOUNTS)? {
        let (_, value) = row?;
        // A balance of another length changes the sum, which gives it away.
        sum += value[..]
            .try_into()
            .map_or(i64::MAX / 2, i64::from_le_bytes);
        count += 1;
    }
    Ok((count, sum))
}

#[expect(clippy::disallowed_methods, reason = "the threads of an application")]
fn start_thread(name: &str, run: impl FnOnce() + Send + 'static) -> Result<(), Failure> {
    let started = std::thread::Builder::new().name(name.to_owned()).spawn(run);
    started
        .map(|_| ())
        .map_err(|error| Failure::system("cannot start a thread", &error))
}
