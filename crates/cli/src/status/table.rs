//! A survey as a table for people.

use std::fmt::Write;
use std::time::Duration;

use steadfast::{
    MemberStatus, NodeStatus, NodeType, PRIORITY_DEFAULT, RestoreProgress, Role, plural,
};

use crate::status::survey::SurveyedNode;
use crate::status::{Health, Survey};

const COLUMNS: [&str; 7] = [
    "NODE",
    "TYPE",
    "STATE",
    "VLSN",
    "LAG",
    "DISK FREE",
    "VERSION",
];

/// The whole text, each line terminated.
pub(super) fn render(survey: &Survey) -> String {
    let mut text = headline(survey);
    let mut rows = vec![COLUMNS.map(str::to_owned)];
    rows.extend(survey.nodes.iter().map(|node| row(survey, node)));
    text.push_str(&aligned(&rows));
    for problem in &survey.problems {
        push(
            &mut text,
            format_args!("! {}\n  {}\n", problem.what, problem.remedy),
        );
    }
    text
}

/// Rows with aligned columns, each line terminated.
pub(crate) fn aligned<const COLUMNS: usize>(rows: &[[String; COLUMNS]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: [usize; COLUMNS] = std::array::from_fn(|column| width(column).unwrap_or(0));
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            push(&mut line, format_args!("{cell:width$}  "));
        }
        push(&mut text, format_args!("{}\n", line.trim_end()));
    }
    text
}

/// Appends to `text`.
pub(crate) fn push(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    text.write_fmt(arguments).expect("a string grows");
}

/// The group's health, in one line.
pub(crate) fn headline(survey: &Survey) -> String {
    let total = survey.nodes.len();
    let word = survey.health.word();
    let survives = survey.survives;
    let failures = plural(survives, "failure", "failures");
    let judgement = match survey.health {
        Health::Healthy => {
            let work = plural(total, "node works", "nodes work");
            format!("{word}: {total} of {total} {work}; survives {survives} {failures}")
        }
        Health::Degraded => {
            format!(
                "{word}: {}; survives {survives} more {failures}",
                troubles(survey)
            )
        }
        Health::ReadOnly => format!(
            "{word}: {}; no writes until the master has room, or a node with room takes over",
            troubles(survey)
        ),
        Health::NoQuorum if survey.master.is_some() => {
            format!(
                "{word}: {}; no writes until a majority works",
                troubles(survey)
            )
        }
        Health::NoQuorum => {
            format!(
                "{word}: {}, no master; no writes until there is one",
                troubles(survey)
            )
        }
        Health::Forming => format!("{word}: the group does not exist yet"),
    };
    let (term, vlsn) = (survey.term(), grouped(survey.vlsn().0));
    format!(
        "group {}  {judgement}    term {term}   vlsn {vlsn}\n",
        survey.group_name
    )
}

/// How many nodes are down or read-only, and which of the others are not whole.
fn troubles(survey: &Survey) -> String {
    let total = survey.nodes.len();
    let down = total - survey.working().count();
    let nodes = plural(total, "node", "nodes");
    let mut troubles = Vec::new();
    for (count, what) in [(down, "down"), (survey.read_only().count(), "read-only")] {
        match (count, troubles.is_empty()) {
            (0, _) => {}
            (_, true) => troubles.push(format!("{count} of {total} {nodes} {what}")),
            (_, false) => troubles.push(format!("{count} {what}")),
        }
    }
    for status in survey.working() {
        let name = &status.node.name;
        if let Some(damage) = &status.damage {
            troubles.push(format!("the data of {name} is bad: {damage}"));
        }
        if status.disk_hangs_ms.is_some() {
            troubles.push(format!("the disk of {name} hangs"));
        }
    }
    for divergence in survey.master.iter().flat_map(|master| &master.divergences) {
        let differs = format!("{} holds different data", divergence.nodes.join(" or "));
        if !troubles.contains(&differs) {
            troubles.push(differs);
        }
    }
    if troubles.is_empty() {
        troubles.push(format!("0 of {total} {nodes} down"));
    }
    troubles.join(", ")
}

fn row(survey: &Survey, node: &SurveyedNode) -> [String; 7] {
    let dash = || "-".to_owned();
    let name = node.member.node.name.clone();
    let kind = kind(&node.member);
    let Ok(status) = &node.status else {
        let silent = silence(survey, node).map_or_else(String::new, |silent| format!(" {silent}"));
        return [
            name,
            kind,
            format!("DOWN{silent}"),
            dash(),
            dash(),
            dash(),
            dash(),
        ];
    };
    // An arbiter has no transactions, and so no VLSN.
    let has_data = node.member.node_type.has_data();
    let of_data = |text: String| if has_data { text } else { dash() };
    let free = (status.disk_free_bytes * 100).checked_div(status.disk_total_bytes);
    [
        name,
        kind,
        state(survey, status),
        of_data(grouped(status.vlsn.0)),
        of_data(lag(survey, status)),
        free.map_or_else(dash, |percent| format!("{percent} %")),
        status.version.clone(),
    ]
}

/// The type, with anything unusual about it.
fn kind(member: &MemberStatus) -> String {
    let MemberStatus {
        node_type,
        priority,
        votes,
        ..
    } = member;
    let mut kind = node_type.to_string();
    if *node_type == NodeType::Electable && *priority != PRIORITY_DEFAULT {
        push(&mut kind, format_args!(" p{priority}"));
    }
    if *votes != node_type.votes() {
        kind.push_str(if *votes {
            ", votes still"
        } else {
            ", no vote yet"
        });
    }
    kind
}

fn state(survey: &Survey, status: &NodeStatus) -> String {
    let is_master = |master: &NodeStatus| master.node == status.node;
    if let Some(restore) = &status.restore {
        return copying(status, restore);
    }
    match (status.role, status.group) {
        (_, None) if survey.health == Health::Forming => "forming".to_owned(),
        (_, None) => "NOT LET IN".to_owned(),
        (Role::Master, _) if survey.health == Health::NoQuorum => "no majority".to_owned(),
        (Role::Master, _) if survey.master.as_ref().is_some_and(is_master) => "MASTER".to_owned(),
        (Role::Master, _) => "deposed".to_owned(),
        (Role::StandIn, _) => "stands in".to_owned(),
        // The master that it follows is gone; it learns of that when another is elected.
        (Role::Replica, _) if survey.master.is_none() => "no master".to_owned(),
        (Role::Replica, _) => "replica".to_owned(),
        (Role::Detached, _) => "STOPPED".to_owned(),
        _ => "no master".to_owned(),
    }
}

/// The progress of a node that copies a peer's state.
fn copying(status: &NodeStatus, restore: &RestoreProgress) -> String {
    let of_source = |member: &&MemberStatus| Some(member.node.id) == restore.source;
    let source = status.members.iter().find(of_source);
    match (
        source,
        (restore.bytes * 100).checked_div(restore.bytes_total),
    ) {
        (Some(source), Some(percent)) => format!("copies {}, {percent} %", source.node.name),
        _ => "looks for a copy".to_owned(),
    }
}

fn lag(survey: &Survey, status: &NodeStatus) -> String {
    match &survey.master {
        Some(master) if master.node != status.node => {
            grouped(master.vlsn.0.saturating_sub(status.vlsn.0))
        }
        _ => "-".to_owned(),
    }
}

/// How long the master has not heard from the node.
fn silence(survey: &Survey, node: &SurveyedNode) -> Option<String> {
    let replicas = &survey.master.as_ref()?.replicas;
    let replica = replicas
        .iter()
        .find(|replica| replica.node == node.member.node.id)?;
    let seconds = Duration::from_millis(replica.heard_ms_ago?).as_secs();
    Some(match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        _ => format!("{}h", seconds / 3600),
    })
}

/// Formats 1234567 as 1,234,567.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
