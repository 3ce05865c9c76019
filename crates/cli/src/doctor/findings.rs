//! From the nodes' answers to the findings. Nothing in here sends a request.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::Serialize;
use steadfast::config::is_unspecified;
use steadfast::{NodeStatus, NodeType, Role, Unreachable, plural};

use crate::status::{
    Cause, Health, IF_ALL_MOVED, OTHER_CREDENTIALS, Survey, SurveyedNode, UnseenKind,
    damage_in_words, grouped, remedy_of_damage, remedy_of_hang, remedy_of_stop,
};

/// A disk whose syncs take longer, in microseconds, is slow: an SSD takes 0.1 to 5 ms.
const SYNC_SLOW_US: u64 = 100_000;

/// A median heartbeat round trip above this, the default interval, is slow; in microseconds.
const ROUND_TRIP_SLOW_US: u64 = 50_000;

/// Silence towards its master, in milliseconds, after which a node that answers here is reported.
const UNHEARD_MS: u64 = 3_000;

/// Lag, in milliseconds, that is no longer accidental.
const LAG_MAX_MS: u64 = 5_000;

/// Clock offset, in milliseconds, that people notice.
const CLOCK_OFF_MS: i64 = 1_000;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Severity {
    /// No writes are possible, or data is wrong.
    Critical,
    /// It works, but not for long, or not well.
    Warning,
    /// Good to know.
    Information,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Critical => "CRITICAL",
            Self::Warning => "WARNING",
            Self::Information => "note",
        })
    }
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    pub(super) severity: Severity,
    /// One word for programs.
    pub(super) kind: &'static str,
    pub(super) what: String,
    /// What it means for the data.
    pub(super) data: String,
    pub(super) to_do: String,
}

impl Finding {
    fn new(
        severity: Severity,
        kind: &'static str,
        what: impl Into<String>,
        data: impl Into<String>,
        to_do: impl Into<String>,
    ) -> Self {
        Self {
            severity,
            kind,
            what: what.into(),
            data: data.into(),
            to_do: to_do.into(),
        }
    }
}

/// Everything that is wrong, worst first.
pub(super) fn diagnose(survey: &Survey) -> Vec<Finding> {
    let mut findings = Vec::new();
    findings.extend(no_master(survey));
    findings.extend(unseen(survey));
    findings.extend(not_working(survey));
    findings.extend(bad_data(survey));
    findings.extend(hangs(survey));
    findings.extend(room(survey));
    findings.extend(descriptors(survey));
    findings.extend(security::unprotected(survey));
    findings.extend(security::certificates(survey));
    findings.extend(addresses(survey));
    findings.extend(one_copy(survey));
    findings.extend(slow_disks(survey));
    findings.extend(from_the_master(survey));
    findings.extend(even(survey));
    findings.extend(versions(survey));
    findings.extend(clocks(survey));
    findings.sort_by_key(|finding| finding.severity);
    findings
}

fn no_master(survey: &Survey) -> Option<Finding> {
    if survey.health != Health::NoQuorum {
        return None;
    }
    let Cause { what, to_do } = Cause::of(survey);
    let data = "no write is possible; nothing acknowledged is lost; reads with Eventual still work";
    let critical = Severity::Critical;
    Some(Finding::new(critical, "no_master", what, data, to_do))
}

fn unseen(survey: &Survey) -> Vec<Finding> {
    let mut findings = Vec::new();
    for node in &survey.nodes {
        let Err(unseen) = &node.status else { continue };
        let (name, address) = (&node.member.node.name, &node.member.node.address);
        let (kind, what, to_do) = match unseen.kind {
            UnseenKind::Unreachable(Unreachable::Refused) => (
                "refused",
                format!("{name} refuses connections at {address}: no process listens there"),
                format!("start {name} with its own data directory; {}", moved(survey, name)),
            ),
            UnseenKind::Unreachable(Unreachable::NotResolved) => (
                "not_resolved",
                format!("the name in {address}, the address of {name}, cannot be resolved here"),
                format!("fix the name service; {}", moved(survey, name)),
            ),
            UnseenKind::Unreachable(Unreachable::Silent) => (
                "silent",
                format!(
                    "{name} does not answer at {address} in time: its machine is off or \
                     overloaded, its process is suspended, or a firewall drops the packets"
                ),
                format!(
                    "check its machine, and the network to {address}; {}",
                    moved(survey, name)
                ),
            ),
            UnseenKind::Unreachable(Unreachable::Denied) => (
                "denied",
                format!("{name} is up, and may well work, but cannot be asked: {unseen}"),
                OTHER_CREDENTIALS.to_owned(),
            ),
            UnseenKind::Unreachable(Unreachable::Nonsense) => (
                "nonsense",
                format!("what answers at {address} is not a node like {name}: {unseen}"),
                format!("find out what listens at {address}; run one version everywhere"),
            ),
            UnseenKind::WrongGroup => (
                "wrong_group",
                format!("a node of another group is at {address}, the address of {name}: {unseen}"),
                "correct the address: `steadfast node address`; groups never merge, so if both were \
                 started from one list, give the new one a list and empty directories of its own"
                    .to_owned(),
            ),
            UnseenKind::WrongNode => (
                "wrong_node",
                format!("another node is at {address}, the address of {name}: {unseen}"),
                "correct the address: `steadfast node address`".to_owned(),
            ),
            UnseenKind::Unreachable(_) => (
                "unreachable",
                format!("{name} cannot be asked: {unseen}"),
                format!("check the network to {address}"),
            ),
        };
        let (warning, data) = (Severity::Warning, survives(survey));
        findings.push(Finding::new(warning, kind, what, data, to_do));
    }
    findings
}

/// What to do if a node's address is not the one that the group knows.
fn moved(survey: &Survey, name: &str) -> String {
    if survey.health == Health::NoQuorum {
        return IF_ALL_MOVED.to_owned();
    }
    format!("if it runs elsewhere, `steadfast node address {name} HOST:PORT`")
}

/// What the loss of a node means.
fn survives(survey: &Survey) -> String {
    match survey.health {
        Health::NoQuorum | Health::Forming => {
            "it is one of the nodes that are missing for a majority".to_owned()
        }
        Health::ReadOnly => {
            "nothing is lost; no write is possible until the master has room".to_owned()
        }
        _ if survey.survives == 0 => {
            "nothing is lost; with one more failure no writes are possible".to_owned()
        }
        _ => format!(
            "nothing is lost; writes survive {} more {}",
            survey.survives,
            plural(survey.survives, "failure", "failures")
        ),
    }
}

fn not_working(survey: &Survey) -> Vec<Finding> {
    let warning = Severity::Warning;
    let mut findings = Vec::new();
    for node in &survey.nodes {
        let Ok(status) = &node.status else { continue };
        let name = &node.member.node.name;
        let why = &status.waiting_for;
        if status.group.is_none() && survey.health != Health::Forming {
            let what = format!("{name} is not let in: {why}");
            let to_do = format!(
                "give {name} its old data directory back, or replace it: `steadfast node replace \
                 {name}`"
            );
            let data = survives(survey);
            findings.push(Finding::new(warning, "not_let_in", what, data, to_do));
        } else if status.role == Role::Detached {
            let what = format!("{name} has stopped: {why}");
            let to_do = remedy_of_stop(status);
            let data = survives(survey);
            findings.push(Finding::new(warning, "stopped", what, data, to_do));
        } else if status.role == Role::Unknown && survey.health != Health::NoQuorum {
            let what = format!("{name} works but knows no master: it waits for {why}");
            let to_do = format!("check the network between {name} and the master");
            let data = survives(survey);
            findings.push(Finding::new(warning, "masterless", what, data, to_do));
        } else if node.member.node_type.votes() && !node.member.votes {
            let what = format!("{name} has no vote yet: it is being brought up");
            let to_do = "nothing: it gets its vote once it has caught up";
            findings.push(Finding::new(
                Severity::Information,
                "no_vote_yet",
                what,
                "it counts for no commit yet",
                to_do,
            ));
        }
    }
    findings
}

fn bad_data(survey: &Survey) -> Vec<Finding> {
    let mut findings = Vec::new();
    for node in &survey.nodes {
        let Ok(status) = &node.status else { continue };
        let name = &status.node.name;
        if let Some(damage) = &status.damage {
            let data = if status.role == Role::Detached || !node.persists() {
                "this node serves nothing; nothing that the others hold is lost"
            } else {
                "nothing that the others hold is lost; what this node serves may be wrong"
            };
            findings.push(Finding::new(
                Severity::Critical,
                "damage",
                damage_in_words(status, damage),
                data,
                remedy_of_damage(status),
            ));
        }
        if status.put_right > 0 {
            findings.push(Finding::new(
                Severity::Warning,
                "put_right",
                format!(
                    "when {name} was opened, {} {} of its engine {} not as the log has it",
                    grouped(status.put_right),
                    plural(status.put_right, "row", "rows"),
                    plural(status.put_right, "was", "were")
                ),
                "nothing is lost: it was put right from the log before anybody read it",
                "check the disk of that machine; docs/engines.md says what is known about the engine",
            ));
        }
    }
    for divergence in survey.master.iter().flat_map(|master| &master.divergences) {
        findings.push(Finding::new(
            Severity::Critical,
            "divergence",
            format!(
                "{} holds different data from the others: {divergence}",
                divergence.nodes.join(" or ")
            ),
            "nothing that the others hold is lost; what that node serves may be wrong",
            "run `steadfast verify --deep`, then replace the node that it names",
        ));
    }
    findings
}

/// Disks that do not finish what they are given.
fn hangs(survey: &Survey) -> Vec<Finding> {
    let find = |status: &NodeStatus| {
        let seconds = status.disk_hangs_ms? / 1_000;
        let name = &status.node.name;
        Some(Finding::new(
            Severity::Critical,
            "disk_hangs",
            format!("the disk of {name} has not finished a write for {seconds} s"),
            "nothing acknowledged is lost; meanwhile the node does not count: the group survives one failure \
             fewer, and a master hands over",
            remedy_of_hang(),
        ))
    };
    survey.working().filter_map(find).collect()
}

fn room(survey: &Survey) -> Vec<Finding> {
    let find = |status: &NodeStatus| {
        let name = &status.node.name;
        let to_do = "make room on the volume of its data directory, or enlarge it";
        if let Some(reason) = &status.read_only {
            let data = if status.role == Role::Master {
                "no write is possible until there is room; nothing acknowledged is lost, reads go on"
            } else {
                "nothing is lost; the node is not made master until it has room"
            };
            let severity = if status.role == Role::Master {
                Severity::Critical
            } else {
                Severity::Warning
            };
            let what = format!("{name} is read-only: {reason}");
            return Some(Finding::new(severity, "read_only", what, data, to_do));
        }
        status.disk_is_low.then(|| {
            let free = status.disk_free_bytes >> 20;
            let what = format!("{name} has {free} MiB of disk left");
            let data = "nothing is lost; below disk_free_read_only_bytes it takes no writes";
            Finding::new(Severity::Warning, "low_disk", what, data, to_do)
        })
    };
    survey.working().filter_map(find).collect()
}

/// Nodes that have few descriptors left: they need one for each connection and each file.
fn descriptors(survey: &Survey) -> Vec<Finding> {
    let find = |status: &NodeStatus| {
        let few = status
            .descriptors_left
            .filter(|_| status.descriptors_are_few)?;
        let name = &status.node.name;
        let max = status.descriptors_max.unwrap_or_default();
        Some(Finding::new(
            Severity::Warning,
            "descriptors",
            format!(
                "{name} can open {few} more {}, of {} at a time",
                plural(few, "file or connection", "files and connections"),
                grouped(max)
            ),
            "nothing is lost: the node keeps these for its own files and its peers, and turns others away",
            "see who holds connections to it (ss -tnp); raise the hard limit of open files of its process \
             (ulimit -n, LimitNOFILE=)",
        ))
    };
    let answering = survey.nodes.iter();
    let answering = answering.filter_map(|node| node.status.as_ref().ok());
    answering.filter_map(find).collect()
}

/// Members with an address that no other machine can reach.
fn addresses(survey: &Survey) -> Vec<Finding> {
    let find = |node: &SurveyedNode| {
        let (name, address) = (&node.member.node.name, &node.member.node.address);
        is_unspecified(address).then(|| {
            Finding::new(
                Severity::Warning,
                "address",
                format!(
                    "{name} is known to the group as {address}, which means every address of a \
                     machine: no other node can reach it"
                ),
                "nothing is lost; no node can join or follow it",
                format!("give the address at which the others reach it: steadfast node address {name} HOST:PORT"),
            )
        })
    };
    survey.nodes.iter().filter_map(find).collect()
}

/// A group in which an arbiter stands in for a copy of the data.
fn one_copy(survey: &Survey) -> Option<Finding> {
    let voters = survey.nodes.iter().filter(|node| node.member.votes);
    let (arbiters, data): (Vec<_>, Vec<_>) =
        voters.partition(|node| node.member.node_type == NodeType::Arbiter);
    let working: Vec<_> = data.iter().filter(|node| node.is_working()).collect();
    let is_one = !arbiters.is_empty() && survey.master.is_some() && working.len() == 1;
    (is_one && data.len() > 1).then(|| {
        let name = &working[0].member.node.name;
        let what = format!("DEGRADED: {name} alone has the data; an arbiter stands in for the other");
        let data = format!(
            "new writes are on one disk only; if {name} is lost before another data node is back, so \
             are they"
        );
        let to_do = "bring another data node back, or replace it";
        Finding::new(Severity::Warning, "one_copy", what, data, to_do)
    })
}

fn slow_disks(survey: &Survey) -> Vec<Finding> {
    let find = |status: &NodeStatus| {
        let took = status.sync_p99_us.filter(|took| *took > SYNC_SLOW_US)?;
        let name = &status.node.name;
        let what = format!(
            "the disk of {name} is slow: 1 sync in 100 takes {} ms or more",
            took / 1000
        );
        let data = if status.role == Role::Master {
            "nothing is lost; writes wait for it as soon as a replica is slow too"
        } else {
            "nothing is lost; writes wait for it when they need its copy"
        };
        let to_do = if status.role == Role::Master {
            format!(
                "find out what else uses its disk; `steadfast master transfer` away from {name}"
            )
        } else {
            "find out what else uses its disk, or give the node a faster one".to_owned()
        };
        let warning = Severity::Warning;
        Some(Finding::new(warning, "slow_disk", what, data, to_do))
    };
    survey.working().filter_map(find).collect()
}

/// The replicas as seen by the master.
fn from_the_master(survey: &Survey) -> Vec<Finding> {
    let Some(master) = &survey.master else {
        return Vec::new();
    };
    let mut findings = Vec::new();
    let from = &master.node.name;
    for node in survey.nodes.iter().filter(|node| node.is_working()) {
        let Ok(status) = &node.status else { continue };
        let (id, name) = (node.member.node.id, &node.member.node.name);
        let Some(replica) = master.replicas.iter().find(|replica| replica.node == id) else {
            continue;
        };
        let warning = Severity::Warning;
        if replica.heard_ms_ago.is_none_or(|ago| ago > UNHEARD_MS) {
            let what = format!(
                "{name} answers here, but its master {from} does not hear it: something is wrong \
                 between the two"
            );
            let to_do = format!(
                "check the network between {from} and {}",
                node.member.node.address
            );
            findings.push(Finding::new(
                warning,
                "unheard",
                what,
                survives(survey),
                to_do,
            ));
        } else if let Some(took) = replica
            .round_trip_p50_us
            .filter(|us| *us > ROUND_TRIP_SLOW_US)
        {
            let what = format!(
                "the network between {from} and {name} is slow: half of the heartbeats take {} ms or more",
                took / 1000
            );
            let data =
                "nothing is lost; writes wait for it, and a master may be replaced needlessly";
            let to_do = "check the network and the load of both machines; or raise \
                         election_timeout_min_ms and election_timeout_max_ms on all nodes";
            findings.push(Finding::new(warning, "slow_network", what, data, to_do));
        }
        if replica.behind_ms.is_none_or(|ms| ms > LAG_MAX_MS) {
            let since = replica.behind_ms.map_or_else(
                || "was written before its master was started".to_owned(),
                |ms| format!("was written {} s ago", ms / 1_000),
            );
            let transactions = master.vlsn.0.saturating_sub(status.vlsn.0);
            let what = format!(
                "{name} lags: it lacks what {since} and later, {} {} and {} MiB",
                grouped(transactions),
                plural(transactions, "transaction", "transactions"),
                replica.behind_bytes >> 20
            );
            let data = "nothing is lost; its copy does not count for new writes, and its reads are stale \
                        or wait";
            let to_do = format!(
                "see whether it catches up (`steadfast status`); if not, find out what slows {name} \
                 down: its disk, its processor, the network to {from}"
            );
            findings.push(Finding::new(warning, "lag", what, data, to_do));
        }
    }
    findings
}

fn even(survey: &Survey) -> Option<Finding> {
    let voters = survey.nodes.iter().filter(|node| node.member.votes).count();
    let is_even = survey.health != Health::Forming && voters > 0 && voters.is_multiple_of(2);
    is_even.then(|| {
        let survived = (voters - 1) / 2;
        let what = format!(
            "the group has an even number of voting nodes, {voters}: it survives {survived} {}, no \
             more than {} would",
            plural(survived, "failure", "failures"),
            voters - 1
        );
        let to_do = "add an electable node or an arbiter, or make one a secondary";
        let data = "nothing is lost";
        Finding::new(Severity::Information, "even", what, data, to_do)
    })
}

fn versions(survey: &Survey) -> Option<Finding> {
    let mut by_version: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for status in survey.working() {
        let names = by_version.entry(&status.version).or_default();
        names.insert(&status.node.name);
    }
    (by_version.len() > 1).then(|| {
        let of = |(version, names): (&&str, &BTreeSet<&str>)| {
            let names: Vec<_> = names.iter().copied().collect();
            format!("{version} on {}", names.join(", "))
        };
        let all: Vec<_> = by_version.iter().map(of).collect();
        let what = format!("the nodes run different versions: {}", all.join("; "));
        let data = "nothing is lost: neighbouring versions understand each other";
        let to_do = "finish the upgrade";
        Finding::new(Severity::Information, "versions", what, data, to_do)
    })
}

fn clocks(survey: &Survey) -> Vec<Finding> {
    let find = |node: &SurveyedNode| {
        let clock = node.clock?;
        let off = clock.ahead_ms.abs() - clock.error_ms;
        (off > CLOCK_OFF_MS).then(|| {
            let name = &node.member.node.name;
            let way = if clock.ahead_ms > 0 {
                "ahead of"
            } else {
                "behind"
            };
            let seconds = clock.ahead_ms.abs() / 1000;
            let what = format!("the clock of {name} is {seconds} s {way} this machine's");
            let data = "nothing depends on clocks; only the times in the change feed are off";
            let to_do = "check its time service";
            Finding::new(Severity::Information, "clock", what, data, to_do)
        })
    };
    survey.nodes.iter().filter_map(find).collect()
}

mod security;
#[cfg(test)]
mod tests;
