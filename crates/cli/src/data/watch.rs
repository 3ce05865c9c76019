//! `steadfast watch`: the changes of keys, as they are committed.

use std::process::ExitCode;

use bytes::Bytes;
use serde_json::{Value, json};
use steadfast::{
    Change, CommitToken, CommittedTransaction, FeedError, FeedEvent, StartAt, SubscribeOptions,
    Subscription,
};

use crate::data::format::JsonRow;
use crate::data::{Formats, parsed};
use crate::failure::{Failure, with_sources};
use crate::output;
use crate::status::{Ask, Output};
use crate::stop::Stop;

/// Print every change of keys until Ctrl-C
#[derive(clap::Args)]
#[command(after_help = "\
Each change is a line: put, delete or expired, the database, the key and, of a put, the value, with
tabs between them; created and dropped are about whole databases. With -o json each transaction is a
line with its token and its changes. When its node is lost, it goes on at another one, without gaps
and without doubles.

Examples:
  steadfast watch
  steadfast watch stock --prefix ch
  steadfast watch stock -o json --after TOKEN     go on after the transaction of this token")]
pub(crate) struct Arguments {
    /// Name of the database [default: all of them]
    database: Option<String>,
    /// Only keys that begin with this
    #[arg(long, value_name = "PREFIX", requires = "database")]
    prefix: Option<String>,
    /// Begin after the transaction of this token instead of now
    #[arg(long, value_name = "TOKEN")]
    after: Option<CommitToken>,
    #[command(flatten)]
    formats: Formats,
    #[command(flatten)]
    ask: Ask,
}

/// Prints changes until told to stop.
///
/// # Errors
/// When no node answers, or the history from the token on is gone.
pub(crate) async fn run(arguments: Arguments) -> Result<ExitCode, Failure> {
    let mut stop = Stop::new(false)?;
    tokio::select! {
        () = stop.wait() => Ok(ExitCode::SUCCESS),
        watched = watch(&arguments) => watched.map(|()| ExitCode::SUCCESS),
    }
}

async fn watch(arguments: &Arguments) -> Result<(), Failure> {
    let Arguments { formats, ask, .. } = arguments;
    let begin = arguments.after.map_or(StartAt::Now, StartAt::Token);
    let mut options = SubscribeOptions::new(begin);
    if let Some(database) = &arguments.database {
        let prefix = arguments.prefix.as_deref().unwrap_or_default();
        let prefix = parsed(formats.key_format, prefix)?;
        options = options.prefix(database.clone(), prefix);
    }
    let survey = ask.survey().await?;
    let members = survey
        .nodes
        .iter()
        .map(|node| node.member.node.address.clone());
    let mut addresses = ask.addresses().to_vec();
    addresses.extend(members);
    addresses.dedup();
    let connecting =
        Subscription::connect_on(ask.network()?, addresses, &survey.group_name, options);
    let mut changes = connecting.await.map_err(|error| failed(&error))?;
    eprintln!("watching group {}; Ctrl-C ends it", survey.group_name);
    while !output::is_lost() {
        match changes.next_async().await {
            Some(Ok(FeedEvent::Transaction(transaction))) => print(arguments, &transaction),
            Some(Ok(_)) => {}
            Some(Err(error)) => return Err(failed(&error)),
            None => break,
        }
    }
    Ok(())
}

fn print(arguments: &Arguments, transaction: &CommittedTransaction) {
    if transaction.changes.is_empty() {
        return;
    }
    match arguments.ask.output() {
        Output::Json => {
            let changes: Vec<_> = transaction.changes.iter().map(as_json).collect();
            println!(
                "{}",
                json!({
                    "token": transaction.token.to_string(),
                    "committed_at_ms": transaction.committed_at_ms,
                    "changes": changes,
                })
            );
        }
        Output::Table => {
            for change in &transaction.changes {
                println!("{}", line(&arguments.formats, change));
            }
        }
    }
}

/// What happens, to which key, if it is about one, and its new value.
fn parts(change: &Change) -> (&'static str, Option<&Bytes>, Option<&Bytes>) {
    match change {
        Change::Put { key, value, .. } => ("put", Some(key), Some(value)),
        Change::Delete { key, .. } => ("delete", Some(key), None),
        Change::Expired { key, .. } => ("expired", Some(key), None),
        Change::Created { .. } => ("created", None, None),
        Change::Dropped { .. } => ("dropped", None, None),
        _ => ("changed", None, None),
    }
}

fn line(formats: &Formats, change: &Change) -> String {
    let (what, key, value) = parts(change);
    let key = key.map(|key| formats.key_format.field(key));
    let value = value.map(|value| formats.value_format.field(value));
    let fields = [Some(what.to_owned()), Some(change.database().to_owned())];
    let fields = fields.into_iter().chain([key, value]).flatten();
    fields.collect::<Vec<_>>().join("\t")
}

fn as_json(change: &Change) -> Value {
    let (what, key, value) = parts(change);
    let mut json = match key {
        Some(key) => {
            let value = value.map(|value| &value[..]);
            json!(JsonRow::new(change.database(), key, value, None))
        }
        None => json!({ "database": change.database() }),
    };
    json["change"] = what.into();
    json
}

fn failed(error: &FeedError) -> Failure {
    let to_do = match error {
        FeedError::HistoryGone { .. } => {
            "begin without --after, and read with `steadfast scan` what is there"
        }
        _ => "give --ask the addresses of working nodes of the group",
    };
    Failure::new(with_sources(error), "nothing was changed", to_do)
}
