//! `steadfast backup`: the whole state of a group as of one transaction, in a directory of files.

mod create;
mod format;
#[cfg(test)]
mod fuzzing;
mod place;
mod restore;
mod verify;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Subcommand;
use serde_json::json;

use steadfast::plural;

use crate::backup::format::{BackupError, Manifest};
use crate::failure::{Failure, with_sources};
use crate::status::{Ask, At, Output, grouped};

/// Back up the whole state of a group to files, verify a backup, or restore one as a new group
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  steadfast backup create /backup/orders-1 --ask 10.0.0.1:7400
  steadfast backup verify /backup/orders-1
  steadfast backup restore /backup/orders-1 --data-dir /var/lib/orders --node n1 --listen 10.0.0.1:7400

A backup is taken from a running node, by default not the master, while writes continue. It is
consistent: everything as of one transaction. A node that is cut off from a majority may lack recently
acknowledged writes, so it is refused unless --stale is given. A restored backup is a new group of one
node; other nodes join it with tokens.")]
pub(crate) struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Back up a running group to a directory
    Create {
        /// Directory for the backup: empty, or not there yet
        directory: PathBuf,
        #[command(flatten)]
        at: At,
        /// Accept a node even if no majority says that it is current
        #[arg(long)]
        stale: bool,
        #[command(flatten)]
        ask: Ask,
    },
    /// Read a whole backup, and verify its checksums and its digest
    Verify {
        /// Directory of the backup
        directory: PathBuf,
        /// Output format
        #[arg(short, long, value_enum, default_value_t = Output::Table)]
        output: Output,
    },
    /// Restore a backup as a new group of one node
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
            "{what}: group {group_name} at VLSN {}, {} {}, {} {}, {} {}, in {} {}\n\
             digest {digest}",
            grouped(*vlsn),
            databases.len(),
            plural(databases.len(), "database", "databases"),
            grouped(*rows),
            plural(*rows, "row", "rows"),
            grouped(*bytes),
            plural(*bytes, "byte", "bytes"),
            chunks.len(),
            plural(chunks.len(), "chunk", "chunks")
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
                "check the path, its volume and its permissions, then try again",
            ),
            BackupError::Unfinished(_) | BackupError::Format { .. } => Self::new(
                what,
                "nothing was changed",
                "name the directory of a finished backup, and use the version that wrote it",
            ),
            BackupError::Damaged { .. } | BackupError::Mismatch(_) => Self::new(
                what,
                "nothing was changed; this backup cannot be restored",
                "take another backup, or copy this one again from an intact copy",
            ),
        }
    }
}
