//! `steadfast backup`: the whole state of a group as of one transaction, in a directory of files.

mod create;
mod format;
mod place;
mod progress;
mod restore;
mod verify;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Subcommand;
use serde_json::json;

use crate::backup::format::{BackupError, Manifest};
use crate::failure::{Failure, with_sources};
use crate::status::{Ask, At, Output, grouped};

/// Copy the whole state of a group to files, check such a copy, or begin a new group with it
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  steadfast backup create /backup/orders-1 --ask 10.0.0.1:7400
  steadfast backup verify /backup/orders-1
  steadfast backup restore /backup/orders-1 --data-dir /var/lib/orders --node n1 --listen 10.0.0.1:7400

A backup is taken from a running node, by default not the master, while writes go on. It is consistent:
everything as of one transaction. A node that is cut off from a majority may lack what was acknowledged since:
it is refused, unless with --stale. Restored, it is a new group of one node; let others in with tokens.")]
pub(crate) struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Copy the state of a running group into a directory
    Create {
        /// An empty directory, or one that does not exist
        directory: PathBuf,
        #[command(flatten)]
        at: At,
        /// Take it also from a node that no majority says to be current
        #[arg(long)]
        stale: bool,
        #[command(flatten)]
        ask: Ask,
    },
    /// Read a backup, all of it, and hold its checksums and its digest against it
    Verify {
        /// Its directory
        directory: PathBuf,
        /// How to print it
        #[arg(short, long, value_enum, default_value_t = Output::Table)]
        output: Output,
    },
    /// Make a new group of one node with what a backup holds
    Restore(restore::Arguments),
}

/// Runs the verb.
///
/// # Errors
/// When the group cannot be read, the backup is damaged, or a file cannot be written.
pub(crate) async fn run(arguments: Arguments) -> Result<ExitCode, Failure> {
    match arguments.verb {
        Verb::Create {
            directory,
            at,
            stale,
            mut ask,
        } => {
            let manifest = create::create(ask.at(at), &directory, stale).await?;
            print(ask.output(), "backup", &manifest);
        }
        Verb::Verify { directory, output } => {
            let manifest = verify::verify(&directory)?;
            print(output, "whole", &manifest);
        }
        Verb::Restore(arguments) => {
            let (output, manifest) = restore::restore(arguments).await?;
            print(output, "restored", &manifest);
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn print(output: Output, what: &str, manifest: &Manifest) {
    let Manifest {
        group_name,
        vlsn,
        rows,
        bytes,
        databases,
        chunks,
        digest,
        ..
    } = manifest;
    match output {
        Output::Table => println!(
            "{what}: group {group_name} at VLSN {}, {} databases, {} rows, {} bytes, in {} chunks\n\
             digest {digest}",
            grouped(*vlsn),
            databases.len(),
            grouped(*rows),
            grouped(*bytes),
            chunks.len()
        ),
        Output::Json => println!(
            "{}",
            json!({
                "done": what,
                "group": group_name,
                "vlsn": vlsn,
                "token": manifest.token,
                "databases": databases,
                "rows": rows,
                "bytes": bytes,
                "chunks": chunks.len(),
                "digest": digest,
            })
        ),
    }
}

impl From<BackupError> for Failure {
    fn from(error: BackupError) -> Self {
        let what = with_sources(&error);
        match error {
            BackupError::Io { .. } => Self::new(
                what,
                "nothing in the group was changed",
                "see to the path, its volume and its rights, then try again",
            ),
            BackupError::Unfinished(_) | BackupError::Format { .. } => Self::new(
                what,
                "nothing was changed",
                "name the directory of a backup that was finished, and use the version that wrote it",
            ),
            BackupError::Damaged { .. } | BackupError::Mismatch(_) => Self::new(
                what,
                "nothing was changed; this backup cannot be restored",
                "take another backup, or copy this one anew from where it is whole",
            ),
        }
    }
}
