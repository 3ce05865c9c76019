//! `steadfast certs renew` and `rotate-ca`: certificates again, and the change of the authority.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use steadfast::credentials::{
    Authority, Rotation, date, describe, is_current, renew, rotate, rotation,
};

use super::issue::Validity;
use crate::failure::Failure;
use crate::network::now_ms;

/// Renew certificates: the same holders and keys, valid from now on
#[derive(clap::Args)]
#[command(after_help = "\
Also brings what each directory believes up to date with the authority. Nodes that run read their
directory again by themselves. Where a node has authority-key.pem, or its master has, it renews its own
certificate in time, and nobody needs this.

Example:
  steadfast certs renew --authority secrets/authority secrets/admin secrets/grafana --days 90")]
pub(super) struct Arguments {
    #[command(flatten)]
    whose: Whose,
}

/// Change the authority of a group to a new key, in three steps, without an interruption
#[derive(clap::Args)]
#[command(after_help = "\
Each call takes the next step, and renews the credentials in the directories that are given:
  1  everybody believes the new authority beside the old one
  2  certificates are signed by the new one
  3  nobody believes the old one any more

Give all directories of the group each time, nodes, operators and clients, and before the next step see
that they are in use where they belong: copied there, and `steadfast certs show` has the same in BELIEVES.
If some of them are behind, since a call was interrupted, it only brings those up to date.
Nodes that got their credentials with a join token follow within a day, or when they start again.

Example:
  steadfast certs rotate-ca --authority secrets/authority secrets/n1 secrets/n2 secrets/n3 secrets/admin")]
pub(super) struct RotateArguments {
    #[command(flatten)]
    whose: Whose,
}

/// Whose certificates are renewed, by whom, for how long.
#[derive(clap::Args)]
struct Whose {
    /// Directory of the authority
    #[arg(long, value_name = "DIR")]
    authority: PathBuf,
    /// Directories of credentials
    #[arg(required = true, value_name = "DIR")]
    directories: Vec<PathBuf>,
    #[command(flatten)]
    validity: Validity,
}

/// Renews all.
///
/// # Errors
/// At the first that cannot be renewed: those before it are.
pub(super) fn run(arguments: &Arguments) -> Result<ExitCode, Failure> {
    arguments.whose.renew()?;
    Ok(ExitCode::SUCCESS)
}

/// Takes the next step, or finishes the last one, if some of the directories have not come that far:
/// it may have been interrupted.
///
/// # Errors
/// When the authority cannot be read or written, or a directory cannot be renewed.
pub(super) fn run_rotation(arguments: &RotateArguments) -> Result<ExitCode, Failure> {
    let whose = &arguments.whose;
    let authority = Authority::read(&whose.authority)?;
    let mut behind = Vec::new();
    for dir in &whose.directories {
        // What cannot be renewed is found before anything is changed.
        describe(dir)?;
        if !is_current(dir, &authority)? {
            behind.push(dir.display().to_string());
        }
    }
    let step = if behind.is_empty() {
        Some(rotate(&whose.authority, now_ms())?)
    } else {
        println!(
            "first these, which are behind: {}; call again for the next step",
            behind.join(", ")
        );
        rotation(&whose.authority)?
    };
    whose.renew()?;
    println!("{}", step.map_or(UP_TO_DATE, next));
    Ok(ExitCode::SUCCESS)
}

const PARTLY: &str = "those above were renewed, and the rest were not";
const AGAIN: &str = "fix the cause, then call it again with all of them";
const UP_TO_DATE: &str = "these are up to date with the authority";

impl Whose {
    fn renew(&self) -> Result<(), Failure> {
        let authority = Authority::read(&self.authority)?;
        let valid_for = self.validity.duration();
        for dir in &self.directories {
            renew_one(&authority, dir, valid_for).map_err(|failure| {
                let what = format!("{}: {}", dir.display(), failure.what());
                Failure::new(what, PARTLY, AGAIN)
            })?;
        }
        Ok(())
    }
}

fn renew_one(authority: &Authority, dir: &Path, valid_for: Duration) -> Result<(), Failure> {
    let now_ms = now_ms();
    let holder = renew(dir, authority, valid_for, now_ms)?;
    let end_ms = describe(dir)?.not_after_ms;
    println!(
        "{} has the credentials of {holder}, valid until {}",
        dir.display(),
        date(end_ms)
    );
    Ok(())
}

fn next(step: Rotation) -> &'static str {
    match step {
        Rotation::Announced => {
            "step 1 of 3: these believe the new authority beside the old one. When all of the group's \
             nodes and clients do, take the next step"
        }
        Rotation::Switched => {
            "step 2 of 3: these have certificates of the new authority. When all of the group's nodes \
             and clients have, take the last step"
        }
        Rotation::Finished => {
            "step 3 of 3: these no longer believe the old authority. Start the nodes again one by one \
             to be rid of connections that it vouched for"
        }
    }
}
