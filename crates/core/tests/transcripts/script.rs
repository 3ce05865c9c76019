//! Runs a story: each command, and what happens after it.

use std::fmt::Write as _;
use std::time::Duration;

use steadfast::{
    AdminCommand, Committed, ConsistencyPolicy, Durability, NodeType, ReadyError,
    ReplicatedEnvironment,
};

use crate::group::Group;
use crate::journal::Journal;

const DATABASE: &str = "db";
/// Bytes of each value that `fill` writes.
const FILL_BYTES: usize = 8 * 1024;
/// How many keys `fill` writes, in turn.
const FILL_KEYS: usize = 7;
/// Longer than any command takes.
const PATIENCE: Duration = Duration::from_secs(10);

/// The story with what happens at present: its comments and commands stay as they are.
pub(crate) async fn tell(text: &str) -> String {
    let journal = Journal::default();
    let mut group = Group::new(&journal);
    let mut told = String::new();
    for line in text.lines() {
        if line.starts_with('#') {
            writeln!(told, "{line}").expect("a string takes everything");
        } else if line.starts_with('>') {
            let command = line.trim_start_matches('>');
            for command in command.split(';') {
                run(&mut group, command).await;
            }
            let happened = journal.settle().await;
            writeln!(told, "{line}").expect("a string takes everything");
            if !line.starts_with(">>") {
                for line in happened {
                    writeln!(told, "  {line}").expect("a string takes everything");
                }
                told.push('\n');
            }
        }
    }
    format!("{}\n", told.trim_end())
}

async fn run(group: &mut Group, command: &str) {
    let words: Vec<_> = command.split_whitespace().collect();
    match words[..] {
        // Settings of all nodes, before they are opened.
        ["set", ref settings @ ..] => {
            for setting in settings {
                let (key, value) = setting.split_once('=').expect("key=number");
                let value = value.parse().expect("a number");
                group.settings.insert(key.to_owned(), value);
            }
        }
        // A group forms from new nodes.
        ["form", ref names @ ..] => group.form(names).await,
        // A new node joins the group.
        ["join", name, node_type] => {
            let node_type = node_type.parse::<NodeType>().expect("a type of node");
            group.join(name, node_type).await;
        }
        ["close", name] => group.close(name).await,
        // Kills the process. The disk keeps what the process has written.
        ["kill", name] => group.kill(name),
        // Opens the node again.
        ["restart", name] => group.open(name).await,
        // Empties the directory of a node that is down.
        ["wipe", name] => group.wipe(name),
        // Cuts all connections of a node until it is healed.
        ["isolate", name] => group.network.isolate(name),
        ["heal", name] => group.network.heal(name),
        ["wait", seconds, "s"] => {
            let seconds = seconds.parse().expect("a number");
            tokio::time::sleep(Duration::from_secs(seconds)).await;
        }
        ["ready", name] => ready(group, name).await,
        _ => ask(group, &words),
    }
}

/// Commands that a client gives. The story goes on while they wait for an answer.
fn ask(group: &Group, words: &[&str]) {
    match *words {
        ["write", name, pair] => write(group, name, pair, Durability::MAJORITY),
        ["write", name, pair, durability] => {
            write(group, name, pair, durability.parse().expect("a durability"));
        }
        // So many transactions with large values.
        ["fill", name, count] => fill(group, name, count.parse().expect("a number")),
        // A linearizable read.
        ["read", name, key] => read(group, name, key),
        ["remove", node] => {
            let node = node.to_owned();
            administer(group, AdminCommand::Remove { node, force: false });
        }
        ["transfer", to] => {
            let (to, within) = (vec![to.to_owned()], PATIENCE);
            administer(group, AdminCommand::Transfer { to, within });
        }
        ["priority", node, priority] => {
            let (node, priority) = (node.to_owned(), priority.parse().expect("a number"));
            administer(group, AdminCommand::SetPriority { node, priority });
        }
        _ => panic!("no such command: {words:?}"),
    }
}

async fn ready(group: &Group, name: &str) {
    let said = match group.env(name).wait_ready_async(PATIENCE).await {
        Ok(()) => "is ready".to_owned(),
        Err(ReadyError::Refused { reason }) => format!("is refused: {}", in_short(&reason)),
        Err(error) => format!("is not ready: {error}"),
    };
    group.journal.say(name, said);
}

/// The first sentence, without UUIDs.
fn in_short(text: &str) -> String {
    let is_uuid = |word: &str| {
        let word = word.trim_matches(|mark: char| mark.is_ascii_punctuation());
        word.parse::<uuid::Uuid>().is_ok()
    };
    let sentence = text.split(". ").next().unwrap_or_default();
    let words: Vec<_> = sentence.split(' ').filter(|word| !is_uuid(word)).collect();
    words.join(" ")
}

/// Lets `work` run, and tells its answer as that of the node.
fn answer<F>(group: &Group, name: &str, work: impl FnOnce(ReplicatedEnvironment) -> F)
where
    F: Future<Output = String> + Send + 'static,
{
    let (name, journal) = (name.to_owned(), group.journal.clone());
    let answer = work(group.env(&name).clone());
    tokio::spawn(async move {
        let answer = answer.await;
        journal.say(&name, format!("answers: {answer}"));
    });
}

fn write(group: &Group, name: &str, pair: &str, durability: Durability) {
    let (key, value) = pair.split_once('=').expect("key=value");
    let (key, value) = (key.to_owned(), value.to_owned());
    answer(group, name, async move |env| {
        let put = env.write_with_async(durability, |txn| txn.database(DATABASE)?.put(&key, &value));
        match put.await {
            Ok(Committed { token, .. }) => format!(
                "{key}={value} is VLSN {} of term {}",
                token.vlsn, token.term
            ),
            Err(error) => format!("{key}={value}: {error}"),
        }
    });
}

fn fill(group: &Group, name: &str, count: usize) {
    answer(group, name, async move |env| {
        for n in 0..count {
            let (key, value) = (format!("large{}", n % FILL_KEYS), vec![b'x'; FILL_BYTES]);
            let put = env.write_async(|txn| txn.database(DATABASE)?.put(&key, &value));
            let _token = put.await.expect("written");
        }
        format!("{count} transactions are written")
    });
}

fn read(group: &Group, name: &str, key: &str) {
    let key = key.to_owned();
    answer(group, name, async move |env| {
        let policy = ConsistencyPolicy::Linearizable;
        let get = env.read_async(policy, |snapshot| snapshot.database(DATABASE)?.get(&key));
        match get.await {
            Ok(Some(value)) => format!("{key}={}", String::from_utf8_lossy(&value)),
            Ok(None) => format!("there is no {key}"),
            Err(error) => format!("{key}: {error}"),
        }
    });
}

/// Asks the master for a change of the group.
fn administer(group: &Group, command: AdminCommand) {
    let (env, journal) = (group.master().clone(), group.journal.clone());
    tokio::spawn(async move {
        let answer = match env.administer_async(&command).await {
            Ok(done) => done,
            Err(error) => error.to_string(),
        };
        journal.say("the master", format!("answers: {answer}"));
    });
}
