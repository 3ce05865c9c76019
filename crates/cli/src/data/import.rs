//! `steadfast import`: puts the rows of a file.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use steadfast::limits::{KEY_BYTES_MAX, VALUE_BYTES_MAX};
use steadfast::{GroupClient, WriteBatch, plural};

use crate::data::format::JsonRow;
use crate::data::{CALL_MAX, client, failed};
use crate::failure::Failure;
use crate::progress::Progress;
use crate::status::{Ask, grouped};

/// Rows and bytes of one transaction, unless one row is larger.
const BATCH_ROWS: usize = 1_000;
const BATCH_BYTES: usize = 512 * 1024;

/// Longest line: a row whose every byte is escaped, and its names.
const LINE_BYTES_MAX: u64 = 6 * (KEY_BYTES_MAX + VALUE_BYTES_MAX) as u64 + 64 * 1024;

/// Put the rows of a file of JSON lines
#[derive(clap::Args)]
#[command(after_help = "\
Each line is a row: {\"database\": \"stock\", \"key\": \"chairs\", \"value\": \"12\"}. Bytes that are no text are
in base64, under key_base64 and value_base64; ttl_ms lets the key end. This is what `export` and
`scan -o json` print. Rows are put in transactions of up to 1,000, in the order of the file; an import
that failed can be repeated from the line that it names, or from the beginning.

Examples:
  steadfast import all.jsonl
  steadfast import rows.jsonl --database stock      for rows that name no database
  gunzip -c all.jsonl.gz | steadfast import -")]
pub(crate) struct Arguments {
    /// The file; - for standard input
    file: PathBuf,
    /// The database of rows that name none
    #[arg(long, value_name = "NAME")]
    database: Option<String>,
    #[command(flatten)]
    ask: Ask,
}

/// Rows that wait for their transaction.
#[derive(Default)]
struct Pending {
    batch: WriteBatch,
    bytes: usize,
}

/// # Errors
/// When a line is no row, the file cannot be read, or a write fails.
pub(crate) async fn run(arguments: Arguments) -> Result<ExitCode, Failure> {
    let client = client(&arguments.ask)?;
    let path = arguments.file.display().to_string();
    let broken = |error: io::Error| Failure::system(&format!("cannot read {path}"), &error);
    let mut lines = open(&arguments.file).map_err(broken)?;
    let mut progress = Progress::new("imported", length(&arguments.file));
    let (mut pending, mut done, mut rows, mut read) = (Pending::default(), 0_u64, 0_u64, 0_u64);
    let mut text = Vec::new();
    for number in 1_u64.. {
        text.clear();
        let length = lines.by_ref().take(LINE_BYTES_MAX);
        let length = { length }.read_until(b'\n', &mut text).map_err(broken)?;
        read += length as u64;
        let is_end = length == 0;
        let line = text.trim_ascii();
        if !line.is_empty() {
            let row = parse(line, length, arguments.database.as_deref());
            let row = row.map_err(|what| {
                Failure::new(
                    format!("line {number} of {path}: {what}"),
                    committed_so_far(done, rows),
                    "correct the line, then import again",
                )
            })?;
            pending.add(&row);
            rows += 1;
        }
        let is_full = pending.batch.len() >= BATCH_ROWS || pending.bytes >= BATCH_BYTES;
        if is_full || (is_end && !pending.batch.is_empty()) {
            let batch = std::mem::take(&mut pending).batch;
            let size = batch.len() as u64;
            let written = commit(&arguments.ask, &client, &batch).await;
            written.map_err(|failure| {
                let what = committed_so_far(done, rows - size);
                failure.with(
                    &what,
                    "then import again: rows that are there are put once more",
                )
            })?;
            done = number;
            progress.update(read);
        }
        if is_end {
            break;
        }
    }
    drop(progress);
    println!("imported {} {}", grouped(rows), plural(rows, "row", "rows"));
    Ok(ExitCode::SUCCESS)
}

fn committed_so_far(line: u64, rows: u64) -> String {
    match line {
        0 => "nothing was written".to_owned(),
        line => format!("lines 1 to {line} are committed ({} rows)", grouped(rows)),
    }
}

async fn commit(ask: &Ask, client: &GroupClient, batch: &WriteBatch) -> Result<(), Failure> {
    let call = client.write_async(batch);
    let _token = ask.wait_for(CALL_MAX, call).await.map_err(failed)?;
    Ok(())
}

/// A row of the file.
struct Row {
    database: String,
    key: Vec<u8>,
    value: Vec<u8>,
    ttl: Option<Duration>,
}

fn parse(line: &[u8], length: usize, database: Option<&str>) -> Result<Row, String> {
    if length as u64 >= LINE_BYTES_MAX {
        return Err("it is longer than any row".to_owned());
    }
    let mut row: JsonRow = serde_json::from_slice(line).map_err(|error| error.to_string())?;
    let named = row.database.take().or_else(|| database.map(str::to_owned));
    let ttl = row.ttl_ms.map(Duration::from_millis);
    let (key, value) = row.bytes()?;
    Ok(Row {
        database: named.ok_or("it names no database, and there is no --database")?,
        key,
        value,
        ttl,
    })
}

impl Pending {
    fn add(&mut self, row: &Row) {
        let (database, key, value) = (&row.database, &row.key, &row.value);
        match row.ttl {
            None => self.batch.put(database, key, value),
            Some(ttl) => self.batch.put_with_ttl(database, key, value, ttl),
        };
        self.bytes += key.len() + value.len();
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "a program reads the file that its user names"
)]
fn open(path: &Path) -> io::Result<Box<dyn BufRead>> {
    if path == Path::new("-") {
        return Ok(Box::new(BufReader::new(io::stdin())));
    }
    Ok(Box::new(BufReader::new(File::open(path)?)))
}

/// Bytes of the file; 0 if nobody knows.
fn length(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |about| about.len())
}
