//! `steadfast etcd import` and `export`: everything that clients of etcd see, copied from one cluster
//! to another while the first is in use. Each side is any cluster that serves the etcd v3 API: an etcd,
//! or a group whose nodes have `client_listen`.
//!
//! ```text
//!   leases ─► keys of one revision, compared and copied ─► watch from the next revision on ─► switch
//!     ▲                      ▲                                      │
//!     └── looked after ──────┴───── compacted, lost a lease ◄───────┘
//! ```
//!
//! `peer` is a side, `target` what is written to it, `record` how far it is.

mod copy;
mod follow;
mod leases;
mod peer;
mod record;
mod revisions;
mod target;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Subcommand;
use serde::Serialize;
use steadfast::plural;

use crate::etcd::copy::Stopped;
use crate::etcd::follow::{Switch, source_is_a_target};
use crate::etcd::leases::Leases;
use crate::etcd::peer::{Peer, Way};
use crate::etcd::record::{Counts, Record, cluster};
use crate::etcd::target::{GO_ON, Target, record_in};
use crate::failure::Failure;
use crate::network::now_ms;
use crate::status::grouped;
use crate::stop::Stop;

/// How often one run compares all keys again before it gives up.
const START_OVERS_MAX: u32 = 5;

const UNCHANGED: &str = "nothing was changed";

/// Move from etcd to a group, and back
#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    Import(ImportArguments),
    Export(ExportArguments),
}

/// Copy a live etcd into a group, and follow it until you switch
#[derive(clap::Args)]
#[command(after_help = "\
Copies all keys of one revision and the leases, then every later revision as it comes, until Ctrl-C or
SIGTERM. So the move takes as long as it takes, and the switch a moment:

  1. start a group whose nodes have --client-listen, and leave it empty
  2. run this; wait until it says `following`, 0 behind
  3. stop the writers; press Ctrl-C: it copies what is left, and prints the last revision
  4. start the writers with the endpoints of the group

Progress is in the target, under the key steadfast/copy, until the copy is complete. If this is stopped
or killed, or loses a side, run the same command again: it goes on from there. A second Ctrl-C stops it
at once. Leases keep their ids and TTLs. Revisions and versions begin anew, and users and roles are not
copied: docs/etcd.md says what that means for clients.

Examples:
  steadfast etcd import --from 10.0.0.1:2379,10.0.0.2:2379 --to 10.0.1.1:2379,10.0.1.2:2379
  steadfast etcd import --from https://10.0.0.1:2379 --from-cacert ca.pem --from-user root:secret \\
      --to 10.0.1.1:2379
  steadfast etcd import --from 10.0.0.1:2379 --to 10.0.1.1:2379 --until-caught-up --json")]
struct ImportArguments {
    #[command(flatten)]
    sides: Sides,
    /// Switch as soon as all is copied that the source has by then
    #[arg(long)]
    until_caught_up: bool,
}

/// Copy a group into an etcd
#[derive(clap::Args)]
#[command(after_help = "\
The same as `steadfast etcd import` the other way round, and complete once everything is copied that the
group has when its keys are. Stop the writers first, or follow them with --follow until Ctrl-C.

The target must be empty, or hold the record of a copy that was not completed (steadfast/copy), which
is gone on with.

Examples:
  steadfast etcd export --from 10.0.1.1:2379 --to 10.0.0.1:2379
  steadfast etcd export --from 10.0.1.1:2379,10.0.1.2:2379 --to 10.0.0.1:2379 --follow")]
struct ExportArguments {
    #[command(flatten)]
    sides: Sides,
    /// Go on with what is written to the group meanwhile, until Ctrl-C
    #[arg(long)]
    follow: bool,
}

/// Where to copy from, and where to.
#[derive(clap::Args)]
struct Sides {
    /// Endpoints of the source, separated by commas; one is enough, with all it survives more
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',', required = true)]
    from: Vec<String>,
    /// User of the source, with the role root
    #[arg(
        long,
        value_name = "NAME:PASSWORD",
        env = "STEADFAST_FROM_USER",
        hide_env_values = true
    )]
    from_user: Option<String>,
    /// Authority of the source's certificates, in PEM: it speaks TLS
    #[arg(long, value_name = "FILE")]
    from_cacert: Option<PathBuf>,
    /// Certificate to show to the source, in PEM
    #[arg(long, value_name = "FILE")]
    from_cert: Option<PathBuf>,
    /// Key of that certificate, in PEM
    #[arg(long, value_name = "FILE")]
    from_key: Option<PathBuf>,
    /// Endpoints of the target, separated by commas
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',', required = true)]
    to: Vec<String>,
    /// User of the target, with the role root
    #[arg(
        long,
        visible_alias = "user",
        value_name = "NAME:PASSWORD",
        env = "STEADFAST_TO_USER",
        hide_env_values = true
    )]
    to_user: Option<String>,
    /// Authority of the target's certificates, in PEM: it speaks TLS
    #[arg(long, value_name = "FILE")]
    to_cacert: Option<PathBuf>,
    /// Certificate to show to the target, in PEM
    #[arg(long, value_name = "FILE")]
    to_cert: Option<PathBuf>,
    /// Key of that certificate, in PEM
    #[arg(long, value_name = "FILE")]
    to_key: Option<PathBuf>,
    /// Compare all keys again, although the target has the record of a copy, of whatever source
    #[arg(long)]
    start_over: bool,
    /// Print the result as one JSON line on stdout
    #[arg(long)]
    json: bool,
}

/// What a complete copy came to.
#[derive(Serialize)]
struct Report {
    /// The last revision of the source that is in the target.
    revision: i64,
    /// The revision of the source at the end: more, if somebody still writes there.
    source_revision: i64,
    /// The revision of the target.
    target_revision: i64,
    /// Keys that the target has.
    keys: i64,
    leases: usize,
    copied: Counts,
}

/// # Errors
/// When the copy was not completed.
pub(crate) async fn run(arguments: Arguments) -> Result<ExitCode, Failure> {
    let (sides, is_at_once) = match arguments.verb {
        Verb::Import(import) => (import.sides, import.until_caught_up),
        Verb::Export(export) => (export.sides, !export.follow),
    };
    let (start_over, json) = (sides.start_over, sides.json);
    let (from, to) = sides.ways();
    let (source, target) = (Peer::new("source", &from)?, Peer::new("target", &to)?);
    let mut stop = Stop::new(false)?;
    let switch = Switch::default();
    if is_at_once {
        switch.tell();
    }
    let copying = copy_all(&source, &target, start_over, &switch);
    let report = tokio::select! {
        report = copying => report?,
        failure = stopped(&mut stop, &switch) => return Err(failure),
    };
    print(&report, json, &target);
    Ok(ExitCode::SUCCESS)
}

impl Sides {
    fn ways(self) -> (Way, Way) {
        let from = Way {
            endpoints: self.from,
            user: self.from_user,
            cacert: self.from_cacert,
            cert: self.from_cert,
            key: self.from_key,
        };
        let to = Way {
            endpoints: self.to,
            user: self.to_user,
            cacert: self.to_cacert,
            cert: self.to_cert,
            key: self.to_key,
        };
        (from, to)
    }
}

/// Waits for signals: the first tells it to switch, if it can.
async fn stopped(stop: &mut Stop, switch: &Switch) -> Failure {
    stop.wait().await;
    if switch.is_possible() {
        eprintln!("copying what the source has up to this moment");
        switch.tell();
        stop.wait().await;
    }
    let remedy = "run the same command again: it goes on from there";
    Failure::new("stopped before everything was copied", GO_ON, remedy)
}

async fn copy_all(
    source: &Peer,
    to: &Peer,
    start_over: bool,
    switch: &Switch,
) -> Result<Report, Failure> {
    let (mut target, resumed_at) = begin(source, to, start_over).await?;
    let leases = Leases::new(source, to, resumed_at);
    leases.settle().await?;
    let keys = tokio::select! {
        keys = until_complete(source, &mut target, &leases, switch) => keys?,
        kept = leases.keep() => match kept? {},
    };
    let revision = target.record().revision;
    let copied = target.record().counts;
    target.finish().await?;
    let now = source.revision().await;
    Ok(Report {
        revision,
        source_revision: now.unwrap_or(revision),
        target_revision: target.revision(),
        keys,
        leases: leases.count(),
        copied,
    })
}

/// Begins a copy, or goes on with one; returns the target, and the revision at which an earlier
/// process left off, or 0.
async fn begin<'a>(
    source: &Peer,
    to: &'a Peer,
    start_over: bool,
) -> Result<(Target<'a>, i64), Failure> {
    let there = source.count(0).await;
    let there = there.map_err(|trouble| source.failure(trouble, UNCHANGED))?;
    let here = to.count(0).await;
    let here = here.map_err(|trouble| to.failure(trouble, UNCHANGED))?;
    let (there, here) = (
        there.header.unwrap_or_default(),
        here.header.unwrap_or_default(),
    );
    if there.cluster_id == here.cluster_id {
        return Err(Failure::usage(
            format!(
                "--from and --to are one cluster, {}",
                cluster(there.cluster_id)
            ),
            "name the endpoints of two clusters",
        ));
    }
    if record_in(source).await?.is_some() {
        return Err(source_is_a_target());
    }
    let run = format!("{:x}-{:x}", now_ms(), std::process::id());
    let Some(found) = record_in(to).await? else {
        let record = Record::begin(there.cluster_id, &run, there.revision);
        eprintln!(
            "copying the keys of revision {} of the source",
            there.revision
        );
        return Ok((Target::begin(to, record).await?, 0));
    };
    let found = Record::parse(&found)?;
    if start_over {
        let record = found
            .started_over(there.cluster_id, there.revision)
            .taken_over(&run);
        eprintln!(
            "comparing all keys with those of revision {} of the source",
            there.revision
        );
        return Ok((Target::take_over(to, found, record).await?, 0));
    }
    check_source(&found, there.cluster_id, there.revision)?;
    eprintln!(
        "going on with a copy that has come to revision {}",
        found.revision
    );
    let resumed_at = found.revision;
    let record = found.taken_over(&run);
    Ok((Target::take_over(to, found, record).await?, resumed_at))
}

/// Whether the source is the one whose copy was begun.
fn check_source(found: &Record, id: u64, revision: i64) -> Result<(), Failure> {
    let what = if found.source != cluster(id) {
        format!(
            "the target holds part of a copy of another cluster, {}; the source is {}",
            found.source,
            cluster(id)
        )
    } else if revision < found.revision {
        format!(
            "the source is at revision {revision}, and the target has a copy of its revision {}: it \
             was emptied or restored since",
            found.revision
        )
    } else {
        return Ok(());
    };
    Err(Failure::new(
        what,
        UNCHANGED,
        "correct --from; or, to make the target the same as this source, give --start-over",
    ))
}

/// Copies and follows, again if it has to; returns the number of keys.
async fn until_complete(
    source: &Peer,
    target: &mut Target<'_>,
    leases: &Leases<'_>,
    switch: &Switch,
) -> Result<i64, Failure> {
    let mut start_overs = 0;
    loop {
        let why = match once(source, target, leases, switch).await {
            Ok(keys) => return Ok(keys),
            Err(Stopped::Failed(failure)) => return Err(failure),
            Err(Stopped::Outdated(why)) => why,
        };
        start_overs += 1;
        if start_overs > START_OVERS_MAX {
            return Err(Failure::new(
                format!("all keys were compared {start_overs} times, and each time {why}"),
                GO_ON,
                "let the source keep old revisions for longer than reading all keys takes (etcd: \
                 --auto-compaction-retention; who compacts, as Kubernetes does, has to pause), then run \
                 the same command again",
            ));
        }
        let revision = source.revision().await;
        let revision = revision.map_err(|trouble| source.failure(trouble, GO_ON))?;
        eprintln!("{why}: comparing all keys with those of revision {revision} of the source");
        leases.applied(0);
        let record = target.record().started_over_at(revision);
        target.advance(record).await?;
    }
}

async fn once(
    source: &Peer,
    target: &mut Target<'_>,
    leases: &Leases<'_>,
    switch: &Switch,
) -> Result<i64, Stopped> {
    copy::run(source, target, leases).await?;
    follow::run(source, target, leases, switch).await?;
    leases.settle().await?;
    if leases.have_lost_keys() {
        return Err(Stopped::Outdated("leases ended in the target meanwhile"));
    }
    Ok(check_counts(source, target).await?)
}

/// Whether both sides have the same number of keys; returns it.
async fn check_counts(source: &Peer, target: &Target<'_>) -> Result<i64, Failure> {
    let revision = target.record().revision;
    let here = target.peer.count(0).await;
    let here = here.map_err(|trouble| target.peer.failure(trouble, GO_ON))?;
    // One of them is the record.
    let here = here.count - 1;
    let there = match source.count(revision).await {
        Ok(there) => there.count,
        // It cannot be known any more.
        Err(trouble) if trouble.is_compacted() => return Ok(here),
        Err(trouble) => return Err(source.failure(trouble, GO_ON)),
    };
    if here == there {
        return Ok(here);
    }
    Err(Failure::new(
        format!("the source has {there} keys at revision {revision}, and the target {here}"),
        GO_ON,
        "stop what else writes to the target, then run the same command again with --start-over",
    ))
}

fn print(report: &Report, json: bool, target: &Peer) {
    if json {
        println!("{}", serde_json::json!(report));
        return;
    }
    let number = |count: i64| grouped(u64::try_from(count).unwrap_or_default());
    println!(
        "copied: revision {} of the source, {} {} and {} {}",
        report.revision,
        number(report.keys),
        plural(
            u64::try_from(report.keys).unwrap_or_default(),
            "key",
            "keys"
        ),
        grouped(report.leases as u64),
        plural(report.leases as u64, "lease", "leases"),
    );
    let copied = &report.copied;
    println!(
        "  {} keys were put or deleted while comparing, and {} revisions with {} events followed",
        grouped(copied.keys),
        grouped(copied.revisions),
        grouped(copied.events)
    );
    if report.source_revision > report.revision {
        println!(
            "  the source went on to revision {}: what is newer than {} is not in the target",
            report.source_revision, report.revision
        );
    }
    println!(
        "next: start the clients with the endpoints {}; they must read before they watch, as revisions \
         begin anew: the target is at {}",
        target.names(),
        report.target_revision
    );
}
