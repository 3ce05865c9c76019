//! `steadfast certs renew` and `rotate-ca`: certificates again, and the change of the authority.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use steadfast::credentials::{
    Authority, Rotation, Subject, date, describe, is_current, renew, rotate, rotation,
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
Each step also renews the credentials in the directories that are given:
  1  everybody believes the new authority beside the old one
  2  certificates are signed by the new one
  3  nobody believes the old one any more

Give all directories of the group each time, nodes, operators and clients, and before the next step see
that they are in use where they belong: copied there, and `steadfast certs show` has the same in BELIEVES.
A step that was interrupted is taken again. A token that was made before step 1 is good until step 2.
Nodes that got their credentials with a join token follow within a day, or when they start again.

Example:
  steadfast certs rotate-ca --step 1 --authority secrets/authority secrets/n1 secrets/n2 secrets/n3 secrets/admin")]
pub(super) struct RotateArguments {
    /// Which step to take; to take it again comes to the same
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=i64::from(LAST_STEP)))]
    step: u8,
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

/// Takes a step, or finishes it: called again, it comes to the same.
///
/// # Errors
/// When an earlier step is missing, the authority cannot be read or written, or a directory cannot be
/// renewed.
pub(super) fn run_rotation(arguments: &RotateArguments) -> Result<ExitCode, Failure> {
    let whose = &arguments.whose;
    let authority = Authority::read(&whose.authority)?;
    let group = authority.group();
    let mut behind = Vec::new();
    // What cannot be renewed is found before anything is changed.
    for dir in &whose.directories {
        match describe(dir)?.subject {
            Subject::Holder(holder) if holder.group() == group => {}
            other => {
                return Err(Failure::usage(
                    format!("{} has the credentials of {other}", dir.display()),
                    format!("name directories of nodes and clients of group {group}"),
                ));
            }
        }
        if !is_current(dir, &authority)? {
            behind.push(dir.display().to_string());
        }
    }
    let done = match rotation(&whose.authority)? {
        None => 0,
        Some(Rotation::Announced) => 1,
        Some(_) => 2,
    };
    let step = arguments.step;
    let is_taken = step == done || (step == LAST_STEP && done == 0);
    if !is_taken && step != done + 1 {
        return Err(Failure::usage(
            format!("step {step} cannot be taken: the authority has taken step {done}"),
            format!("take step {} (--step)", done + 1),
        ));
    }
    if !is_taken && !behind.is_empty() {
        let remedy = match done {
            0 => "renew them first (steadfast certs renew), and put them where they belong"
                .to_owned(),
            done => {
                format!(
                    "take step {done} again with all directories, and put them where they belong"
                )
            }
        };
        return Err(Failure::new(
            format!(
                "{} have not come as far as the authority",
                behind.join(", ")
            ),
            "nothing was changed",
            remedy,
        ));
    }
    if !is_taken {
        rotate(&whose.authority, now_ms())?;
    }
    whose.renew()?;
    println!(
        "step {step} of {LAST_STEP}: {}",
        AFTER[usize::from(step) - 1]
    );
    Ok(ExitCode::SUCCESS)
}

const LAST_STEP: u8 = 3;

/// What holds after each step, and what comes next.
const AFTER: [&str; 3] = [
    "these believe the new authority beside the old one. When all of the group's nodes and clients do, \
     take step 2",
    "these have certificates of the new authority. When all of the group's nodes and clients have, take \
     step 3",
    "these believe the new authority alone. Start the nodes again one by one to be rid of connections \
     that the old one vouched for",
];

const PARTLY: &str = "what is listed above, if anything, was renewed, and the rest was not";
const AGAIN: &str = "fix the cause, then call it again with all of them";
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
