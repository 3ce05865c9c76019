//! `steadfast get`, `put`, `delete` and `databases`: single keys of a running group, from any of its
//! nodes. `scan`, `export`, `import` and `watch` are in modules of their own.

mod format;
pub(crate) mod import;
pub(crate) mod scan;
pub(crate) mod watch;

use std::io::Read;
use std::process::ExitCode;
use std::time::Duration;

use bytes::Bytes;
use serde_json::json;
use steadfast::limits::{RESERVED_DATABASES_PREFIX, VALUE_BYTES_MAX};
use steadfast::{ClientError, CommitToken, ConsistencyPolicy, GroupClient, WriteBatch};

use crate::data::format::{Format, JsonRow};
use crate::failure::Failure;
use crate::status::{Ask, Output};

/// How long a call may take before it fails.
const CALL_MAX: Duration = Duration::from_secs(15);

/// How keys and values are written.
#[derive(clap::Args)]
pub(crate) struct Formats {
    /// How keys are written, in arguments and in tables
    #[arg(long, value_enum, default_value_t = Format::Text, value_name = "FORMAT")]
    key_format: Format,
    /// How values are written, in arguments and in tables
    #[arg(long, value_enum, default_value_t = Format::Text, value_name = "FORMAT")]
    value_format: Format,
}

impl Formats {
    fn key(&self, argument: &str) -> Result<Bytes, Failure> {
        parsed(self.key_format, argument)
    }
}

fn parsed(format: Format, argument: &str) -> Result<Bytes, Failure> {
    let parsed = format.parse(argument);
    parsed.map_err(|what| Failure::usage(what, "see --key-format and --value-format in --help"))
}

/// How fresh an answer is.
#[derive(clap::Args)]
pub(crate) struct Freshness {
    /// Take what the node has, however old; otherwise the answer has all that was acknowledged before
    #[arg(long)]
    stale: bool,
}

impl Freshness {
    fn policy(&self) -> ConsistencyPolicy {
        if self.stale {
            ConsistencyPolicy::Eventual
        } else {
            ConsistencyPolicy::Linearizable
        }
    }
}

/// Print the value of a key
#[derive(clap::Args)]
#[command(after_help = "\
Exits with 1 if there is no such key.

Examples:
  steadfast get stock chairs
  steadfast get stock chairs --value-format hex
  steadfast get sessions 00ff --key-format hex -o json")]
pub(crate) struct GetArguments {
    /// Name of the database
    database: String,
    /// The key
    key: String,
    #[command(flatten)]
    formats: Formats,
    #[command(flatten)]
    freshness: Freshness,
    #[command(flatten)]
    ask: Ask,
}

/// Set a key
#[derive(clap::Args)]
#[command(after_help = "\
Prints the token of the transaction once it is on the disks of a majority.

Examples:
  steadfast put stock chairs 12
  steadfast put sessions ada '{\"since\": 9}' --ttl-ms 30000
  steadfast put files logo < logo.png                        the value from standard input, as it is")]
pub(crate) struct PutArguments {
    /// Name of the database; it is made if there is none
    database: String,
    /// The key
    key: String,
    /// The value [default: all of standard input, as it is]
    value: Option<String>,
    /// Let the key end after this many milliseconds
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u64).range(1..))]
    ttl_ms: Option<u64>,
    #[command(flatten)]
    formats: Formats,
    #[command(flatten)]
    ask: Ask,
}

/// Delete keys
#[derive(clap::Args)]
#[command(after_help = "\
Deletes all of them in one transaction, and prints its token. A key that is not there is no error.

Examples:
  steadfast delete stock chairs
  steadfast delete stock chairs tables lamps")]
pub(crate) struct DeleteArguments {
    /// Name of the database
    database: String,
    /// The keys
    #[arg(required = true)]
    keys: Vec<String>,
    /// How keys are written
    #[arg(long, value_enum, default_value_t = Format::Text, value_name = "FORMAT")]
    key_format: Format,
    #[command(flatten)]
    ask: Ask,
}

/// List the databases
#[derive(clap::Args)]
#[command(after_help = "\
Those that belong to the etcd API of the group are marked: they can be read, and are written by clients
of etcd alone.")]
pub(crate) struct DatabasesArguments {
    #[command(flatten)]
    freshness: Freshness,
    #[command(flatten)]
    ask: Ask,
}

/// # Errors
/// When no node answers, or the key is not there.
pub(crate) async fn get(arguments: GetArguments) -> Result<ExitCode, Failure> {
    let GetArguments {
        database,
        formats,
        ask,
        ..
    } = &arguments;
    let key = formats.key(&arguments.key)?;
    let policy = arguments.freshness.policy();
    let client = client(ask)?;
    let call = client.get_async(database, key.clone(), policy);
    let found = ask.wait_for(CALL_MAX, call).await;
    let Some(value) = found.map_err(failed)? else {
        return Err(Failure::new(
            format!("database {database} has no key {:?}", arguments.key),
            "nothing was changed",
            format!("see what it has: steadfast scan {database}"),
        ));
    };
    match ask.output() {
        Output::Json => print_row(&JsonRow::new(database, &key, Some(&value), None)),
        Output::Table => match formats.value_format.whole(&value) {
            Some(text) => println!("{text}"),
            None => {
                return Err(Failure::new(
                    format!("the value has {} bytes, and is no text", value.len()),
                    "nothing was changed",
                    "print it with --value-format hex or base64",
                ));
            }
        },
    }
    Ok(ExitCode::SUCCESS)
}

/// # Errors
/// When the write is refused, or its outcome is not known.
pub(crate) async fn put(arguments: PutArguments) -> Result<ExitCode, Failure> {
    let PutArguments {
        database,
        formats,
        ask,
        ..
    } = &arguments;
    let key = formats.key(&arguments.key)?;
    let value = match &arguments.value {
        Some(argument) => parsed(formats.value_format, argument)?,
        None => all_of_stdin()?,
    };
    let mut batch = WriteBatch::new();
    match arguments.ttl_ms {
        None => batch.put(database, key, value),
        Some(ttl_ms) => batch.put_with_ttl(database, key, value, Duration::from_millis(ttl_ms)),
    };
    write(ask, &batch).await
}

/// # Errors
/// As [`put`].
pub(crate) async fn delete(arguments: DeleteArguments) -> Result<ExitCode, Failure> {
    let mut batch = WriteBatch::new();
    for key in &arguments.keys {
        let key = parsed(arguments.key_format, key)?;
        batch.delete(&arguments.database, key);
    }
    write(&arguments.ask, &batch).await
}

/// # Errors
/// When no node answers.
pub(crate) async fn databases(arguments: DatabasesArguments) -> Result<ExitCode, Failure> {
    let ask = &arguments.ask;
    let client = client(ask)?;
    let call = client.databases_async(arguments.freshness.policy());
    let (names, _) = ask.wait_for(CALL_MAX, call).await.map_err(failed)?;
    match ask.output() {
        Output::Json => {
            let reserved: Vec<_> = names.iter().filter(|name| is_reserved(name)).collect();
            println!("{}", json!({ "databases": names, "reserved": reserved }));
        }
        Output::Table => {
            for name in &names {
                let mark = if is_reserved(name) {
                    "\tof the etcd API"
                } else {
                    ""
                };
                println!("{name}{mark}");
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Whether a database belongs to the etcd API.
fn is_reserved(name: &str) -> bool {
    name.starts_with(RESERVED_DATABASES_PREFIX)
}

async fn write(ask: &Ask, batch: &WriteBatch) -> Result<ExitCode, Failure> {
    let client = client(ask)?;
    let call = client.write_async(batch);
    let token = ask.wait_for(CALL_MAX, call).await.map_err(failed)?;
    print_token(ask, token);
    Ok(ExitCode::SUCCESS)
}

fn print_token(ask: &Ask, token: CommitToken) {
    match ask.output() {
        Output::Json => println!("{}", json!({ "token": token.to_string() })),
        Output::Table => println!("committed as {token}"),
    }
}

fn print_row(row: &JsonRow) {
    println!("{}", json!(row));
}

fn client(ask: &Ask) -> Result<GroupClient, Failure> {
    let addresses = ask.addresses().to_vec();
    Ok(GroupClient::new(ask.network()?, addresses, "", CALL_MAX))
}

/// The value that is written to stdin, up to the longest possible one.
fn all_of_stdin() -> Result<Bytes, Failure> {
    let mut value = Vec::new();
    let most = VALUE_BYTES_MAX as u64 + 1;
    let read = std::io::stdin().lock().take(most).read_to_end(&mut value);
    read.map_err(|error| Failure::system("cannot read the value from standard input", &error))?;
    Ok(value.into())
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "it is given to `map_err` as it is"
)]
fn failed(error: ClientError) -> Failure {
    let what = match &error {
        ClientError::Unreachable { reason }
        | ClientError::Denied { reason }
        | ClientError::Refused { reason, .. }
        | ClientError::OutcomeUnknown { reason } => reason.clone(),
        other => other.to_string(),
    };
    let (data, to_do) = match error {
        ClientError::Unreachable { .. } => (
            "nothing was changed",
            "give --ask the addresses of running nodes of the group",
        ),
        ClientError::Denied { .. } => (
            "nothing was changed",
            "give --credentials a directory of the role subscriber to read, or admin to write",
        ),
        ClientError::Refused {
            is_retryable: true, ..
        } => (
            "nothing was changed",
            "see steadfast doctor; then try again",
        ),
        ClientError::OutcomeUnknown { .. } => (
            "the write may be committed, now or later",
            "read the keys again before you repeat it",
        ),
        _ => ("nothing was changed", "correct what it names"),
    };
    Failure::new(what, data, to_do)
}
