//! `steadfast recover`: what to do when a group has lost its quorum for good.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Subcommand;
use serde_json::json;
use steadfast::ids::Vlsn;
use steadfast::machine::Machine;
use steadfast::plural;
use steadfast::quorum_loss::{
    self, NextStep, Place, RecoverError, Recovered, RecoveryPlan, Standing, Survivor,
};

use crate::failure::Failure;
use crate::network::network;
use crate::status::{Output, aligned, grouped};

/// Cache of a storage engine that is opened only to read how far it has got.
const CACHE_BYTES: u64 = 16 * 1024 * 1024;

const UNCHANGED: &str = "nothing was changed";

/// Continue from one survivor when a group has lost its quorum for good
#[derive(clap::Args)]
#[command(after_help = "\
A majority that is only down is not lost: start it. Otherwise, stop the nodes that are left and make a
plan from their data directories. The plan says what may be lost and prints the command to continue with.
It changes nothing; meanwhile it copies the storage engine to the temporary directory (TMPDIR).

Examples:
  steadfast recover plan --data-dir /var/lib/orders
  steadfast recover plan --data-dir /mnt/n1 --data-dir /mnt/n4 --node 10.0.0.5:7400
  steadfast recover apply --data-dir /mnt/n1 --confirm 'recover group orders from n1 with 88 VLSNs'

Exit codes: 0 done, 1 nothing was recovered, 2 usage.")]
pub(crate) struct Arguments {
    #[command(subcommand)]
    verb: Verb,
    /// Directory of the credentials to show to running nodes; by default, `STEADFAST_CREDENTIALS`, then that of
    /// the node whose data directory is `STEADFAST_DATA_DIR`, then that of the user
    /// (~/.config/steadfast/credentials)
    #[arg(long, value_name = "DIR", global = true)]
    credentials: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Verb {
    /// Show which nodes are left, which has most, and what may be lost; change nothing
    Plan {
        /// Data directory of a node that is left and stopped; give one for each
        #[arg(long = "data-dir", value_name = "DIR", required = true)]
        directories: Vec<PathBuf>,
        /// Address of a running node; give one for each [default: the members' own addresses]
        #[arg(long = "node", value_name = "HOST:PORT")]
        nodes: Vec<String>,
        /// Output format
        #[arg(short, long, value_enum, default_value_t = Output::Table)]
        output: Output,
    },
    /// Make one node the only member of its group, in a new epoch
    Apply {
        /// Data directory of that node, which must be stopped
        #[arg(long = "data-dir", value_name = "DIR")]
        directory: PathBuf,
        /// Confirmation that the plan prints
        #[arg(long, value_name = "TEXT")]
        confirm: String,
        /// Output format
        #[arg(short, long, value_enum, default_value_t = Output::Table)]
        output: Output,
    },
}

/// Plans or recovers.
///
/// # Errors
/// When nothing can or may be recovered.
pub(crate) async fn run(arguments: Arguments) -> Result<ExitCode, Failure> {
    let machine = Machine {
        transport: network(arguments.credentials.as_deref())?,
        ..Machine::real(CACHE_BYTES)?
    };
    match arguments.verb {
        Verb::Plan {
            directories,
            nodes,
            output,
        } => {
            check_distinct(&directories)?;
            let plan = quorum_loss::plan(&machine, &directories, &nodes).await?;
            match output {
                Output::Table => print!("{}", render(&plan)),
                Output::Json => println!("{}", json!(plan)),
            }
        }
        Verb::Apply {
            directory,
            confirm,
            output,
        } => {
            let recovered = quorum_loss::apply(&machine, &directory, &confirm).await?;
            match output {
                Output::Table => print!("{}", render_recovered(&recovered)),
                Output::Json => println!("{}", json!(recovered)),
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Refuses one directory under two names, also through links, mounts, `.` and `..`.
fn check_distinct(directories: &[PathBuf]) -> Result<(), Failure> {
    let mut seen: BTreeMap<(u64, u64), &Path> = BTreeMap::new();
    for directory in directories {
        // The plan tells of a directory that cannot be read.
        let Ok(found) = directory.metadata() else {
            continue;
        };
        if let Some(one) = seen.insert((found.dev(), found.ino()), directory) {
            let (one, other) = (one.display(), directory.display());
            return Err(Failure::usage(
                format!("{one} and {other} are one and the same directory"),
                "name the directory of each node once",
            ));
        }
    }
    Ok(())
}

fn render(plan: &RecoveryPlan) -> String {
    let voters = plan.voters.len();
    let members = plan.survivors.iter();
    let there = members
        .filter(|left| left.standing == Standing::Member)
        .count();
    let columns = ["NODE", "LAST ENTRY", "VLSN", "EPOCH", "STATE", "WHERE"];
    let mut rows = vec![columns.map(str::to_owned)];
    rows.extend(plan.survivors.iter().map(row));
    rows.extend(plan.missing.iter().map(|missing| {
        let dash = || "-".to_owned();
        let (name, why) = (missing.node.name.clone(), missing.why.clone());
        [name, dash(), dash(), dash(), "MISSING".to_owned(), why]
    }));
    format!(
        "group {}  NO QUORUM: {there} of {voters} {} left    epoch {}\n{}{}\n{}",
        plan.group_name,
        plural(voters, "voter is", "voters are"),
        plan.epoch,
        aligned(&rows),
        loss(plan),
        next(plan)
    )
}

fn row(left: &Survivor) -> [String; 6] {
    let last = left.last.map(|last| last.to_string());
    let (state, place) = match (&left.place, left.standing) {
        (Place::Directory(dir), Standing::Member) => ("stopped", dir.display().to_string()),
        (Place::Directory(dir), Standing::Fenced) => ("FENCED", dir.display().to_string()),
        (Place::Address(address), _) => ("runs", address.clone()),
    };
    [
        left.node.name.clone(),
        last.unwrap_or_else(|| "-".to_owned()),
        grouped(left.vlsn.0),
        left.epoch.to_string(),
        state.to_owned(),
        place,
    ]
}

fn loss(plan: &RecoveryPlan) -> String {
    let first = &plan.survivors[0];
    let kept = format!("{} keeps {}.", first.node.name, kept(first.vlsn));
    if let Some(lost) = &plan.known_lost {
        return format!(
            "! {kept} {1} has no data, and knows the log up to {2}: up to {3} {4}\n  \
             that {0} lacks. Their transactions, acknowledged ones too, are lost for good; only a missing \
             node\n  could tell how many they are.\n",
            first.node.name,
            lost.node.name,
            lost.last,
            grouped(lost.entries_max),
            plural(lost.entries_max, "entry", "entries"),
        );
    }
    if plan.may_lose {
        format!(
            "! {kept} The missing nodes are a majority, and may have acknowledged later writes that\n  \
             no other node has. How many cannot be known; they are lost for good.\n"
        )
    } else {
        format!("! {kept} Every write that a majority has acknowledged is among them.\n")
    }
}

fn next(plan: &RecoveryPlan) -> String {
    match &plan.next {
        NextStep::Stop { node } => format!(
            "{node} has most, and is running. Stop it, then plan again with its directory:\n  \
             steadfast recover plan --data-dir DIR\n"
        ),
        NextStep::Apply { directory, confirm } => format!(
            "Only if the missing nodes will never come back, and nobody can start them:\n  \
             steadfast recover apply --data-dir {} --confirm {}\n",
            quoted(&directory.display().to_string()),
            quoted(confirm)
        ),
    }
}

fn render_recovered(recovered: &Recovered) -> String {
    let Recovered {
        group_name,
        node,
        epoch,
        vlsn,
    } = recovered;
    format!(
        "group {group_name} is recovered: {0} is its only member, in epoch {epoch}, with {1}\n\
         Start {0}, then let other nodes join with empty directories. Keep the old directories aside.\n",
        node.name,
        kept(*vlsn)
    )
}

fn kept(last: Vlsn) -> String {
    match last.0 {
        0 => "no transaction".to_owned(),
        last => format!("VLSNs 1 to {}", grouped(last)),
    }
}

/// As a single word for a shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

impl From<RecoverError> for Failure {
    fn from(error: RecoverError) -> Self {
        match error {
            RecoverError::Open(error) => error.into(),
            RecoverError::NoNode { dir } => Self::usage(
                format!(
                    "{} is not the data directory of a node that belongs to a group",
                    dir.display()
                ),
                "name the directory of a node that is left",
            ),
            RecoverError::Begun { source } => Self::new(
                format!("the recovery was begun but not finished: {source}"),
                "the directory is unchanged, or is recovered when it is next opened",
                "fix the cause, then plan again",
            ),
            RecoverError::SeveralGroups { one, other } => Self::usage(
                format!(
                    "{} and {} belong to different groups",
                    one.display(),
                    other.display()
                ),
                "name the directories of one group only",
            ),
            RecoverError::NotNeeded {
                there,
                voters,
                names,
            } => Self::new(
                format!(
                    "{there} of {voters} {} there ({}), which is a majority: no recovery is \
                     needed, and none is allowed",
                    plural(voters, "voter is", "voters are"),
                    names.join(", ")
                ),
                "nothing was changed, and nothing acknowledged is lost",
                "start them",
            ),
            RecoverError::Unasked { address, why } => unasked(&address, &why),
            RecoverError::Works { name } => Self::new(
                format!("{name} hears a master, so the group works"),
                "nothing was changed, and nothing acknowledged is lost",
                "check the network to that master, and start the nodes that are down",
            ),
            RecoverError::Superseded { address, epoch } => Self::new(
                format!(
                    "the node at {address} is in epoch {epoch} of the group: the group was \
                     recovered already"
                ),
                UNCHANGED,
                "keep this directory aside, then let its node join again, with an empty directory and a \
                 token (steadfast token create)",
            ),
            RecoverError::NoVote { name } => Self::new(
                format!("{name} has no vote or no data, so the group cannot continue from it"),
                UNCHANGED,
                "name the directory of a node that has both",
            ),
            RecoverError::Behind { name } => Self::new(
                format!("{name} is running, and has more than this directory"),
                UNCHANGED,
                format!("stop {name}, and recover from its directory"),
            ),
            RecoverError::Unconfirmed => Self::usage(
                "the confirmation does not match this group, node and state",
                "run `steadfast recover plan`, read what it says, and give the confirmation that it prints",
            ),
            other => Self::new(other.to_string(), UNCHANGED, "fix the cause, then retry"),
        }
    }
}

fn unasked(address: &str, why: &str) -> Failure {
    Failure::new(
        format!("the node at {address} is up, but does not talk to this caller: {why}"),
        "nothing was changed; whether the group works is not known",
        "give credentials of the group that are good (--credentials DIR), or stop what listens there",
    )
}
