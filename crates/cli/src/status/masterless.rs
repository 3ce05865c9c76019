//! Why a group takes no writes, and what to do about it.

use steadfast::ids::LogPosition;
use steadfast::{NodeStatus, NodeType, Role, plural};

use crate::status::{Survey, SurveyedNode};

/// What to do when no node reaches any other.
pub(crate) const IF_ALL_MOVED: &str = "if all addresses have changed, stop the nodes and tell each where the others are: `steadfast node \
     address --data-dir DIR NODE=HOST:PORT...`";

/// Why no write is possible.
#[derive(Debug)]
pub(crate) struct Cause {
    pub(crate) what: String,
    pub(crate) to_do: String,
}

impl Cause {
    fn new(what: impl Into<String>, to_do: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            to_do: to_do.into(),
        }
    }

    /// Why nobody in this group takes writes, as far as the nodes' answers tell.
    pub(crate) fn of(survey: &Survey) -> Self {
        let voters = survey.nodes.iter().filter(|node| node.member.votes);
        let (up, down): (Vec<_>, Vec<_>) = voters.partition(|node| node.persists());
        if up.len() * 2 <= up.len() + down.len() {
            return too_few(survey, &up, &down);
        }
        let may_lead = |node: &&&SurveyedNode| is_electable(node) && node.member.priority > 0;
        let leaders: Vec<_> = up.iter().filter(may_lead).copied().collect();
        let read_only = |node: &&SurveyedNode| says(node, |status| status.read_only.is_some());
        if leaders.is_empty() {
            return of_no_priority(&up, &down);
        }
        if leaders.iter().all(read_only) {
            return Self::new(
                format!(
                    "no node is master: {} could be, but have no room on their disks",
                    names(&leaders)
                ),
                "make room on their disks; even without it, one of them becomes master in a few seconds",
            );
        }
        if up
            .iter()
            .any(|node| says(node, |status| status.role == Role::StandIn))
        {
            return Self::new(
                format!(
                    "no node is master: {} stands in for one while {} catches up",
                    names_of(&up, |status| status.role == Role::StandIn),
                    names(&leaders)
                ),
                "nothing: it hands over as soon as one has caught up; ask again",
            );
        }
        lost_newest(&up, &down).unwrap_or_else(|| {
            Self::new(
                "no node is master at this moment, although a majority works",
                format!(
                    "an election takes less than a second: ask again; if this persists, the nodes do not \
                     reach each other: check the network between them; {IF_ALL_MOVED}"
                ),
            )
        })
    }
}

fn names(nodes: &[&SurveyedNode]) -> String {
    let names = nodes.iter().map(|node| node.member.node.name.clone());
    names.collect::<Vec<_>>().join(", ")
}

fn names_of(nodes: &[&SurveyedNode], suits: fn(&NodeStatus) -> bool) -> String {
    let suited = nodes.iter().filter(|node| says(node, suits)).copied();
    names(&suited.collect::<Vec<_>>())
}

fn says(node: &SurveyedNode, suits: fn(&NodeStatus) -> bool) -> bool {
    node.status.as_ref().is_ok_and(suits)
}

fn is_electable(node: &SurveyedNode) -> bool {
    node.member.node_type == NodeType::Electable
}

fn too_few(survey: &Survey, up: &[&SurveyedNode], down: &[&SurveyedNode]) -> Cause {
    let count = up.len() + down.len();
    // A master that has lost its majority notices within an election timeout.
    let masters = if survey.master.is_some() {
        "the master has no majority"
    } else {
        "no node is master"
    };
    Cause::new(
        format!(
            "{masters}: {} of {count} voting {}, and it takes {}; down, with damaged data, or with a disk that hangs: {}",
            up.len(),
            plural(count, "node works", "nodes work"),
            count / 2 + 1,
            names(down)
        ),
        format!(
            "start those that are down; {IF_ALL_MOVED}; only if their disks are lost for good, see \
             `steadfast recover plan`"
        ),
    )
}

/// A majority works, but consists of arbiters and nodes of priority 0.
fn of_no_priority(up: &[&SurveyedNode], down: &[&SurveyedNode]) -> Cause {
    let what = format!(
        "no node is master: a majority works ({}), but none of them may be master",
        names(up)
    );
    let to_start = |node: &&&SurveyedNode| is_electable(node) && node.member.priority > 0;
    let to_start: Vec<_> = down.iter().filter(to_start).copied().collect();
    let start = if to_start.is_empty() {
        "start an electable node with a priority above 0".to_owned()
    } else {
        format!("start {}", names(&to_start))
    };
    let electable = up.iter().find(|node| is_electable(node));
    let Some(electable) = electable else {
        return Cause::new(what, start);
    };
    let stands_in = names_of(up, |status| status.role == Role::StandIn);
    let (what, when) = if stands_in.is_empty() {
        let what = format!("{what}; one of priority 0 stands in within seconds");
        (what, "as soon as one stands in, ")
    } else {
        let what = format!("{what}; {stands_in} stands in, and takes no writes");
        (what, "")
    };
    let name = &electable.member.node.name;
    Cause::new(
        what,
        format!(
            "{start}; or, {when}make a node that is up master, which loses nothing: `steadfast node \
             priority {name} 1`"
        ),
    )
}

/// Whether nodes that are up know of entries that no node up and with data holds: an arbiter stood
/// in for a copy that is missing.
fn lost_newest(up: &[&SurveyedNode], down: &[&SurveyedNode]) -> Option<Cause> {
    let persisted = |node: &SurveyedNode| -> Option<LogPosition> {
        node.status
            .as_ref()
            .ok()
            .and_then(|status| status.persisted)
    };
    let electable = up.iter().filter(|node| is_electable(node));
    let newest = electable.max_by_key(|node| persisted(node))?;
    let would_vote = up
        .iter()
        .filter(|node| persisted(node) <= persisted(newest));
    if would_vote.count() * 2 > up.len() + down.len() {
        return None;
    }
    let knows = up.iter().filter(|node| persisted(node) > persisted(newest));
    let know: Vec<_> = knows.copied().collect();
    let name = &newest.member.node.name;
    Some(Cause::new(
        format!(
            "no node is master: {name} lacks the newest writes, of which {} knows but has no copy",
            names(&know)
        ),
        format!(
            "start {}, which has them; only if its disk is lost for good, stop {name} and run `steadfast \
             recover plan --data-dir DIR_OF_{name}`, which says what is lost",
            names(down)
        ),
    ))
}
