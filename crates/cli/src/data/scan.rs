//! `steadfast scan` and `export`: all rows of databases, as of one transaction.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use bytes::Bytes;
use serde_json::json;
use steadfast::{
    CommitToken, FeedError, FeedEvent, NodeStatus, StartAt, SubscribeOptions, Subscription, plural,
};

use crate::data::format::JsonRow;
use crate::data::{CALL_MAX, Formats, Freshness, client, failed, is_reserved, parsed, print_row};
use crate::failure::{Failure, with_sources};
use crate::output;
use crate::progress::Progress;
use crate::status::{ANSWER_TIMEOUT, Ask, Output, grouped};

/// Print the rows of a database in the order of their keys
#[derive(clap::Args)]
#[command(after_help = "\
A line has the key and the value with a tab between them; what is no character to print is escaped
(\\n, \\t, \\\\, \\xNN). With -o json each row is a line of JSON, as `import` reads it. All rows are as of
one transaction.

Examples:
  steadfast scan stock
  steadfast scan stock --prefix ch --limit 10
  steadfast scan stock --keys-only
  steadfast scan stock -o json | jq .value")]
pub(crate) struct ScanArguments {
    /// Name of the database
    database: String,
    /// Only keys that begin with this
    #[arg(long, value_name = "PREFIX", default_value = "")]
    prefix: String,
    /// At most this many rows [default: all]
    #[arg(long, value_name = "ROWS")]
    limit: Option<u64>,
    /// Print keys without their values
    #[arg(long)]
    keys_only: bool,
    #[command(flatten)]
    formats: Formats,
    #[command(flatten)]
    freshness: Freshness,
    #[command(flatten)]
    ask: Ask,
}

/// Write the rows of databases to a file, as lines of JSON
#[derive(clap::Args)]
#[command(after_help = "\
Each row is a line of JSON with database, key and value; keys and values that are no text are in
base64, under key_base64 and value_base64. `steadfast import` reads it, in this group or another. All
rows are as of one transaction. Databases of the etcd API are written if they are named, for reading:
they cannot be imported. For safety rather than exchange, take a backup: see steadfast backup.

Examples:
  steadfast export all.jsonl
  steadfast export stock.jsonl --database stock
  steadfast export - | gzip > all.jsonl.gz")]
pub(crate) struct ExportArguments {
    /// The file, which must not exist; - for standard output
    file: PathBuf,
    /// Only this database; may be repeated [default: all but those of the etcd API]
    #[arg(long = "database", value_name = "NAME")]
    databases: Vec<String>,
    #[command(flatten)]
    freshness: Freshness,
    #[command(flatten)]
    ask: Ask,
}

/// A row, and what its key has still to live.
struct Row<'a> {
    database: &'a str,
    key: &'a Bytes,
    value: &'a Bytes,
    left: Option<Duration>,
}

/// # Errors
/// When no node answers, or there is no such database.
pub(crate) async fn run(arguments: ScanArguments) -> Result<ExitCode, Failure> {
    let ScanArguments {
        database,
        formats,
        ask,
        ..
    } = &arguments;
    let prefix = parsed(formats.key_format, &arguments.prefix)?;
    let mut left = arguments.limit.unwrap_or(u64::MAX);
    let print = |row: &Row<'_>| {
        let key = formats.key_format.field(row.key);
        match (ask.output(), arguments.keys_only) {
            (Output::Json, keys_only) => {
                let value = Some(&row.value[..]).filter(|_| !keys_only);
                print_row(&JsonRow::new(row.database, row.key, value, row.left));
            }
            (Output::Table, true) => println!("{key}"),
            (Output::Table, false) => {
                println!("{key}\t{}", formats.value_format.field(row.value));
            }
        }
    };
    if left > 0 {
        let wanted = [(database.clone(), prefix)];
        let scan = Scan::begin(ask, &arguments.freshness, &wanted).await?;
        let every = |row: &Row<'_>| {
            print(row);
            left -= 1;
            Ok(left > 0 && !output::is_lost())
        };
        let _read = scan.rows(every).await?;
    }
    Ok(ExitCode::SUCCESS)
}

/// # Errors
/// When no node answers, there is no such database, or the file cannot be written.
pub(crate) async fn export(arguments: ExportArguments) -> Result<ExitCode, Failure> {
    let ask = &arguments.ask;
    let wanted = arguments.databases.iter();
    let wanted: Vec<_> = wanted.map(|name| (name.clone(), Bytes::new())).collect();
    let scan = Scan::begin(ask, &arguments.freshness, &wanted).await?;
    let to_stdout = arguments.file == Path::new("-");
    let path = arguments.file.display().to_string();
    let broken = |error: io::Error| Failure::system(&format!("cannot write {path}"), &error);
    let mut file = if to_stdout {
        None
    } else {
        Some(create(&arguments.file).map_err(broken)?)
    };
    let mut progress = Progress::new("exported", 0);
    let (mut rows, mut bytes) = (0_u64, 0_u64);
    let every = |row: &Row<'_>| {
        if wanted.is_empty() && is_reserved(row.database) {
            return Ok(true);
        }
        let json = JsonRow::new(row.database, row.key, Some(row.value), row.left);
        match &mut file {
            None => print_row(&json),
            Some(file) => writeln!(file, "{}", json!(json)).map_err(broken)?,
        }
        rows += 1;
        bytes += (row.key.len() + row.value.len()) as u64;
        progress.update(bytes);
        Ok(!(to_stdout && output::is_lost()))
    };
    let token = scan.rows(every).await?;
    drop(progress);
    if let Some(file) = file {
        let whole = file.into_inner().map_err(io::IntoInnerError::into_error);
        whole.and_then(|file| file.sync_all()).map_err(broken)?;
    }
    if let Some(token) = token {
        let noun = plural(rows, "row", "rows");
        eprintln!("exported {} {noun} as of {token}", grouped(rows));
    }
    Ok(ExitCode::SUCCESS)
}

#[expect(
    clippy::disallowed_methods,
    reason = "a program writes the file that its user names"
)]
fn create(path: &Path) -> io::Result<BufWriter<File>> {
    Ok(BufWriter::new(File::create_new(path)?))
}

/// The state of a node that is as fresh as was asked for.
struct Scan(Subscription);

impl Scan {
    /// # Errors
    /// When no node answers, or a database is not there.
    async fn begin(
        ask: &Ask,
        freshness: &Freshness,
        wanted: &[(String, Bytes)],
    ) -> Result<Self, Failure> {
        let client = client(ask)?;
        let call = client.databases_async(freshness.policy());
        let (names, address) = ask.wait_for(CALL_MAX, call).await.map_err(failed)?;
        if let Some((missing, _)) = wanted.iter().find(|(name, _)| !names.contains(name)) {
            return Err(Failure::new(
                format!("there is no database {missing:?}"),
                "nothing was changed",
                format!("name one that is there: {}", names.join(", ")),
            ));
        }
        let network = ask.network()?;
        let status = NodeStatus::ask_on(&*network, &address, false, ANSWER_TIMEOUT).await;
        let status = status.map_err(|error| lost(&error))?;
        let options = wanted.iter().fold(
            SubscribeOptions::new(StartAt::Start),
            |options, (name, prefix)| options.prefix(name.clone(), prefix.clone()),
        );
        // The same node, which has everything that is wanted.
        let addresses = vec![address];
        let connecting = Subscription::connect_on(network, addresses, &status.group_name, options);
        let connected = connecting.await;
        Ok(Self(connected.map_err(|error| lost(&error))?))
    }

    /// Gives every row to `each` until it says that it has enough. Returns the transaction as of
    /// which they are, if it got all of them.
    ///
    /// # Errors
    /// When the node is lost, and those of `each`.
    async fn rows(
        mut self,
        mut each: impl FnMut(&Row<'_>) -> Result<bool, Failure>,
    ) -> Result<Option<CommitToken>, Failure> {
        while let Some(event) = self.0.next_async().await {
            match event.map_err(|error| lost_midway(&error))? {
                FeedEvent::State {
                    database,
                    rows,
                    expiring,
                } => {
                    let mut expiring = expiring.into_iter().peekable();
                    for (index, (key, value)) in rows.iter().enumerate() {
                        let left = expiring.next_if(|(of, _)| *of == index);
                        let row = Row {
                            database: &database,
                            key,
                            value,
                            left: left.map(|(_, left)| left),
                        };
                        if !each(&row)? {
                            self.0.close_async().await;
                            return Ok(None);
                        }
                    }
                }
                FeedEvent::StateComplete { token, .. } => {
                    self.0.close_async().await;
                    return Ok(Some(token));
                }
                _ => break,
            }
        }
        Ok(None)
    }
}

fn lost(error: &dyn std::error::Error) -> Failure {
    Failure::new(
        with_sources(error),
        "nothing was changed",
        "give --ask the addresses of running nodes of the group",
    )
}

fn lost_midway(error: &FeedError) -> Failure {
    Failure::new(
        with_sources(error),
        "what was printed is not all of it; nothing in the group was changed",
        "try again; see steadfast status",
    )
}
