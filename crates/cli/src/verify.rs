//! `steadfast verify`: whether a group's nodes hold the same data, and their files are intact.

use std::process::ExitCode;

use serde_json::json;
use steadfast::{Comparison, NodeAddress, NodeStatus, Role, Transport, plural};

use crate::failure::{FAILED, Failure, with_sources};
use crate::output;
use crate::status::{ANSWER_TIMEOUT, Ask, At, ONLY_NODE, Output, Survey, aligned, grouped, push};

/// Compare the data of all nodes with the master's, range by range
#[derive(clap::Args)]
#[command(after_help = "\
Each range is compared at one VLSN, while writes continue. --deep also names the keys that differ, and
has each node read all of its files and verify their checksums.

Examples:
  steadfast verify 10.0.0.1:7400
  steadfast verify --deep
  steadfast verify -o json | jq .divergences

Exit codes: 0 all nodes agree, 1 something differs or is damaged, or a node could not be compared.")]
pub(crate) struct Arguments {
    /// Also name the keys that differ, and check all files
    #[arg(long)]
    deep: bool,
    #[command(flatten)]
    at: At,
    #[command(flatten)]
    ask: Ask,
}

/// Compares, and prints the result.
///
/// # Errors
/// When no node can be read.
pub(crate) async fn run(Arguments { deep, at, mut ask }: Arguments) -> Result<ExitCode, Failure> {
    let survey = ask.at(at).survey().await?;
    let (reference, others) = whom(&survey)?;
    let is_shown = output::is_watched();
    let progress = |database: &str, rows: u64| {
        if is_shown {
            let noun = plural(rows, "row", "rows");
            eprint!("\r\x1b[2K{} {noun} compared; now {database}", grouped(rows));
        }
    };
    let network = ask.network()?;
    let compared = Comparison::run_on(&*network, &reference, &others, deep, progress).await;
    if is_shown {
        eprint!("\r\x1b[2K");
    }
    let mut compared = compared.map_err(|why| {
        Failure::new(
            why,
            "nothing was changed; whether the nodes hold the same data is not known",
            "see `steadfast status`, then verify again",
        )
    })?;
    compared.left_out.extend(not_working(&survey));
    let asked = [vec![reference], others].concat();
    leave_out_lost(&*network, &mut compared, &asked).await;
    match ask.output() {
        Output::Table => print!("{}", render(&survey, &compared)),
        Output::Json => println!("{}", to_json(&survey.group_name, &compared)),
    }
    let is_fine = compared.is_clean() && compared.left_out.is_empty();
    Ok(if is_fine {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(FAILED)
    })
}

/// The reference node, and the others.
fn whom(survey: &Survey) -> Result<(NodeAddress, Vec<NodeAddress>), Failure> {
    let with_data = survey.nodes.iter().filter(|node| node.has_data());
    let working = with_data.filter(|node| node.is_working());
    let mut nodes: Vec<_> = working.map(|node| node.member.node.clone()).collect();
    let master = survey.master.as_ref().map(|master| master.node.id);
    let at = nodes.iter().position(|node| Some(node.id) == master);
    if nodes.is_empty() {
        return Err(Failure::new(
            "no node with data works",
            "nothing was changed",
            "start the nodes that are down",
        ));
    }
    let reference = nodes.remove(at.unwrap_or(0));
    Ok((reference, nodes))
}

/// The nodes with data that cannot be compared, and why.
fn not_working(survey: &Survey) -> Vec<(String, String)> {
    let with_data = survey.nodes.iter().filter(|node| node.has_data());
    let idle = with_data.filter(|node| !node.is_working());
    idle.map(|node| {
        let why = match &node.status {
            Err(why) => why.to_string(),
            Ok(status) => match &status.damage {
                Some(damage) => format!("it serves nothing: {damage}"),
                None if status.restore.is_some() || status.role != Role::Detached => {
                    format!("it waits for {}", status.waiting_for)
                }
                None => format!("it has stopped: {}", status.waiting_for),
            },
        };
        (node.member.node.name.clone(), why)
    })
    .collect()
}

/// A node that was lost meanwhile has not checked its files: that is no damage.
async fn leave_out_lost(network: &dyn Transport, compared: &mut Comparison, nodes: &[NodeAddress]) {
    let checked = std::mem::take(&mut compared.checked);
    for node in checked {
        let of = nodes.iter().find(|of| of.name == node.name);
        if let (Some(of), Some(_)) = (of, &node.problem)
            && let Err(error) =
                NodeStatus::ask_on(network, &of.address, false, ANSWER_TIMEOUT).await
        {
            let why = format!("it could not be reached: {}", with_sources(&error));
            compared.left_out.retain(|(name, _)| *name != node.name);
            compared.left_out.push((node.name, why));
        } else {
            compared.checked.push(node);
        }
    }
}

fn render(survey: &Survey, compared: &Comparison) -> String {
    let group = &survey.group_name;
    let remedy = if survey.nodes.len() == 1 {
        ONLY_NODE
    } else {
        REPLACE
    };
    let is_alone = compared.nodes.len() == 1;
    let verdict = verdict(survey, compared);
    let mut text = format!(
        "group {group}  {verdict}    vlsn {}\n",
        grouped(compared.vlsn.0)
    );
    let mut rows = vec![["DATABASE", "ROWS", "RESULT"].map(str::to_owned)];
    rows.extend(compared.databases.iter().map(|database| {
        let result = match database.divergent {
            0 if is_alone => "not compared".to_owned(),
            0 => "the same".to_owned(),
            divergent => format!(
                "DIFFERS in {divergent} {}",
                plural(divergent, "range", "ranges")
            ),
        };
        [database.name.clone(), grouped(database.rows), result]
    }));
    text.push_str(&aligned(&rows));
    for node in compared
        .checked
        .iter()
        .filter(|node| node.problem.is_none())
    {
        push(
            &mut text,
            format_args!(
                "{}: {} bytes of log and {} bytes of engine are intact\n",
                node.name,
                grouped(node.log_bytes),
                grouped(node.engine_bytes)
            ),
        );
    }
    for divergence in &compared.divergences {
        push(
            &mut text,
            format_args!(
                "! {} differs: {divergence}\n  {remedy}\n",
                divergence.nodes.join(" or ")
            ),
        );
    }
    for node in &compared.checked {
        if let Some(problem) = &node.problem {
            push(
                &mut text,
                format_args!("! {} is damaged: {problem}\n  {remedy}\n", node.name),
            );
        }
    }
    for (name, why) in &compared.left_out {
        push(
            &mut text,
            format_args!("! {name} was not compared: {why}\n  fix that, then verify again\n"),
        );
    }
    text
}

fn verdict(survey: &Survey, compared: &Comparison) -> String {
    if compared.divergent > 0 {
        let ranges = plural(compared.divergent, "range", "ranges");
        format!("DIVERGED in {} {ranges}", compared.divergent)
    } else if !compared.is_clean() {
        "DAMAGED".to_owned()
    } else if compared.nodes.len() == 1 {
        alone(survey, compared)
    } else {
        format!("{} hold the same data", compared.nodes.join(", "))
    }
}

/// What was checked of a node that could be compared with no other.
fn alone(survey: &Survey, compared: &Comparison) -> String {
    let name = &compared.nodes[0];
    let with_data = survey.nodes.iter().filter(|node| node.has_data()).count();
    let why = match (survey.nodes.len(), with_data) {
        (1, _) => "is the only node",
        (_, 1) => "is the only node with data",
        _ => "alone could be read",
    };
    let checked = if compared.checked.is_empty() {
        "its rows were not counted, nor its files read (--deep does both)"
    } else {
        "its files were read, and its rows counted"
    };
    format!("{name} {why}, with nothing to compare with; {checked}")
}

const REPLACE: &str = "nothing that the others hold is lost: the node repairs itself if the others \
                       are a majority (repair = \"auto\"); if it does not, replace it (steadfast \
                       node replace)";

fn to_json(group: &str, compared: &Comparison) -> serde_json::Value {
    let mut json = json!(compared);
    json["group"] = json!(group);
    json["is_clean"] = json!(compared.is_clean());
    json
}

#[cfg(test)]
mod tests {
    use steadfast::CheckedNode;
    use steadfast::ids::NodeId;

    use super::*;
    use std::collections::BTreeMap;

    use crate::ports::free_addresses;

    #[test]
    fn a_node_that_is_gone_was_not_reached_and_is_not_damaged() {
        let address = free_addresses(1).expect("a free port").remove(0);
        let gone = NodeAddress {
            id: NodeId(3),
            name: "n3".to_owned(),
            address,
            metadata: BTreeMap::new(),
        };
        let mut compared = Comparison {
            checked: vec![CheckedNode {
                name: "n3".to_owned(),
                problem: Some("it closed the connection".to_owned()),
                log_bytes: 0,
                engine_bytes: 0,
            }],
            ..Comparison::default()
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        let nodes = [gone];
        let left_out = leave_out_lost(&steadfast::TcpTransport, &mut compared, &nodes);
        runtime.expect("a runtime").block_on(left_out);
        assert!(compared.is_clean(), "{compared:?}");
        let (name, why) = &compared.left_out[0];
        assert_eq!(name, "n3");
        assert!(why.contains("could not be reached"), "{why}");
    }
}
