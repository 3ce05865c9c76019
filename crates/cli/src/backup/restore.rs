//! A new group of one node from a backup.
//!
//! It is made within the requested directory, compared with the backup's digest, and moved into
//! place last (`place.rs`): a crash leaves no valid node directory.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::Duration;

use steadfast::limits::TTL_MAX;
use steadfast::{Bootstrap, RepConfig, ReplicatedEnvironment, WriteBatch, WriteError};

use crate::backup::format::{BackupError, Chunk, Manifest, Record, read_chunk};
use crate::backup::place::Place;
use crate::backup::verify;
use crate::failure::{Failure, is_full, with_sources};
use crate::progress::Progress;
use crate::status::Output;

/// How long a new node may take to become ready.
const READY_MAX: Duration = Duration::from_mins(1);

const NO_GROUP: &str = "the backup is as it was; there is no new group";
const AGAIN: &str = "fix the cause, then restore again";
const NO_ROOM: &str = "make room on the volume of the data directory, or name a directory on a larger one; \
                       then restore again";

/// Approximate bytes and rows of one transaction.
const TRANSACTION_BYTES: usize = 4 * 1024 * 1024;
const TRANSACTION_ROWS: usize = 10_000;

/// Restore a backup as a new group of one node
#[derive(clap::Args)]
pub(super) struct Arguments {
    /// Directory of the backup
    directory: PathBuf,
    /// Data directory of the new node: empty, or not there yet. It may be the root of a volume, and may
    /// have an empty directory `log` in it, where another volume is mounted
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
    /// Name of the new node
    #[arg(long)]
    node: String,
    /// Address at which the new node is reached
    #[arg(long, value_name = "HOST:PORT")]
    listen: String,
    /// Name of the new group [default: the old name]
    #[arg(long)]
    group: Option<String>,
    /// Output format
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

/// # Errors
/// When the backup is damaged, or the node cannot be made. The data directory then holds nothing.
pub(super) async fn restore(arguments: Arguments) -> Result<(Output, Manifest), Failure> {
    // All possible objections come before any work.
    let place = Place::look(&arguments.data_dir)?;
    let manifest = Manifest::read(&arguments.directory)?;
    let group = arguments.group.as_deref().unwrap_or(&manifest.group_name);
    configure(group, &arguments, &arguments.data_dir)?;
    check_room(&place, &manifest)?;
    let manifest = verify::verify(&arguments.directory)?;
    let stage = place.begin()?;
    let made = make(configure(group, &arguments, &stage)?, &arguments, &manifest).await;
    if made.is_err() {
        place.clear()?;
    }
    made?;
    place.finish()?;
    if arguments.output == Output::Table {
        println!(
            "start it:  steadfast start --group {group} --node {} --data-dir {} --listen {}",
            arguments.node,
            arguments.data_dir.display(),
            arguments.listen
        );
        println!(
            "where other machines reach it, with credentials for node 1 of group {group} \
             (steadfast certs issue --role node --name 1)"
        );
    }
    Ok((arguments.output, manifest))
}

fn configure(group: &str, arguments: &Arguments, dir: &Path) -> Result<RepConfig, Failure> {
    let config = RepConfig::builder(group, &arguments.node)
        .data_dir(dir)
        // Nobody may reach it before it is complete.
        .listen("127.0.0.1:0")
        .advertise(&arguments.listen)
        .insecure_plaintext()
        .bootstrap(Bootstrap::single())
        .build()?;
    Ok(config)
}

/// Makes the whole node.
async fn make(
    config: RepConfig,
    arguments: &Arguments,
    manifest: &Manifest,
) -> Result<(), Failure> {
    let env = ReplicatedEnvironment::open_async(config).await;
    let env = env.map_err(|error| {
        let remedy = if is_full(&error) { NO_ROOM } else { AGAIN };
        Failure::from(error).with(NO_GROUP, remedy)
    })?;
    let filled = fill(&env, &arguments.directory, manifest).await;
    let has_no_room = env.status().read_only.is_some();
    let closed = env.close_async().await;
    match filled {
        Err(failure) if has_no_room => Err(failure.with(NO_GROUP, NO_ROOM)),
        filled => {
            filled?;
            closed.map_err(|error| Failure::from(error).with(NO_GROUP, AGAIN))
        }
    }
}

/// # Errors
/// When the volume has not even room for the contents of the backup.
fn check_room(place: &Place, manifest: &Manifest) -> Result<(), Failure> {
    let free_bytes = place.free_bytes()?;
    if free_bytes >= manifest.bytes {
        return Ok(());
    }
    Err(Failure::new(
        format!(
            "the backup holds {} bytes, but only {free_bytes} bytes are free in the data directory",
            manifest.bytes
        ),
        "nothing was changed",
        "make room there, or name a directory on a larger volume",
    ))
}

async fn fill(env: &ReplicatedEnvironment, dir: &Path, manifest: &Manifest) -> Result<(), Failure> {
    let ready = env.wait_ready_async(READY_MAX).await;
    ready.map_err(|error| failed(&error))?;
    let mut progress = Progress::new("restored", manifest.bytes);
    let mut bytes = 0;
    for of in manifest.databases.iter().filter(|of| of.rows == 0) {
        create_empty(env, &of.name)
            .await
            .map_err(|error| failed(&error))?;
    }
    for (number, chunk) in (1..).zip(&manifest.chunks) {
        for batch in batches(dir, number, chunk, Pass::Rows)? {
            let written = env.write_batch_async(&batch.writes).await;
            let _token = written.map_err(|error| failed(&error))?;
            bytes += batch.bytes as u64;
            progress.update(bytes);
        }
    }
    let digest = env.digest().map_err(|error| failed(&error))?;
    if format!("{:032x}", digest.1) != manifest.digest {
        let what = "the restored data is not what the backup holds".to_owned();
        return Err(BackupError::Mismatch(what).into());
    }
    for (number, chunk) in (1..).zip(&manifest.chunks) {
        for batch in batches(dir, number, chunk, Pass::TimesToLive)? {
            // The first batch may have nothing in it.
            if batch.rows > 0 {
                let written = env.write_batch_async(&batch.writes).await;
                let _token = written.map_err(|error| failed(&error))?;
            }
        }
    }
    Ok(())
}

/// Keys begin to end only after everything was compared with the digest of the backup.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pass {
    Rows,
    TimesToLive,
}

/// Writes of one transaction.
#[derive(Default)]
struct Batch {
    writes: WriteBatch,
    rows: usize,
    bytes: usize,
}

/// The rows of a chunk as transactions.
fn batches(
    dir: &Path,
    number: usize,
    chunk: &Chunk,
    pass: Pass,
) -> Result<Vec<Batch>, BackupError> {
    let (mut batches, mut database) = (vec![Batch::default()], String::new());
    let mut left = None;
    read_chunk(dir, number, chunk, |record| {
        match record {
            Record::Database(name) => name.clone_into(&mut database),
            // One that was due when the backup was made ends at once.
            Record::TimeToLive(of_next) => {
                left = Some(of_next.clamp(Duration::from_millis(1), TTL_MAX));
            }
            Record::Row(key, value) => {
                let left = left.take().filter(|_| pass == Pass::TimesToLive);
                if left.is_none() && pass == Pass::TimesToLive {
                    return Ok(());
                }
                let size = key.len() + value.len();
                let last = &batches[batches.len() - 1];
                let is_full = last.rows >= TRANSACTION_ROWS
                    || (last.rows > 0 && last.bytes + size > TRANSACTION_BYTES);
                if is_full {
                    batches.push(Batch::default());
                }
                let at = batches.len() - 1;
                let batch = &mut batches[at];
                match left {
                    Some(left) => batch.writes.put_with_ttl(&database, key, value, left),
                    None => batch.writes.put(&database, key, value),
                };
                batch.rows += 1;
                batch.bytes += size;
            }
        }
        Ok(())
    })?;
    Ok(batches)
}

/// Creates an empty database by writing a row and deleting it.
async fn create_empty(env: &ReplicatedEnvironment, name: &str) -> Result<(), WriteError> {
    let made = env.write_async(|txn| txn.database(name)?.put("", ""));
    let _token = made.await?;
    let emptied = env.write_async(|txn| txn.database(name)?.delete(""));
    let _token = emptied.await?;
    Ok(())
}

fn failed(error: &dyn Error) -> Failure {
    Failure::new(with_sources(error), NO_GROUP, AGAIN)
}
