//! Asks every node of a group that can be found, and evaluates the answers.

use std::collections::BTreeMap;
use std::fmt;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use futures_util::future::join_all;
use serde_json::json;
use steadfast::ids::{NodeId, Term, Vlsn};
use steadfast::{
    MemberStatus, NodeAddress, NodeStatus, NodeType, PRIORITY_DEFAULT, Role, Transport,
    Unreachable, plural,
};

use crate::failure::{DEGRADED, NO_WRITES, with_sources};
use crate::status::{ANSWER_TIMEOUT, Cause, IF_ALL_MOVED};

/// The health of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Health {
    /// All nodes work, and no data is known to be wrong.
    Healthy,
    /// Writes are possible, but some node does not work, or has wrong data.
    Degraded,
    /// A majority works, but no writes are possible: the master's disk has no room.
    ReadOnly,
    /// No majority works, or no node is master: no writes are possible.
    NoQuorum,
    /// The group does not exist yet.
    Forming,
}

impl Health {
    pub(crate) fn exit_code(self) -> ExitCode {
        match self {
            Self::Healthy => ExitCode::SUCCESS,
            Self::Degraded => ExitCode::from(DEGRADED),
            Self::ReadOnly | Self::NoQuorum | Self::Forming => ExitCode::from(NO_WRITES),
        }
    }

    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Healthy => "HEALTHY",
            Self::Degraded => "DEGRADED",
            Self::ReadOnly => "READ-ONLY",
            Self::NoQuorum => "NO QUORUM",
            Self::Forming => "FORMING",
        }
    }
}

/// One node, as far as it could be observed.
#[derive(Debug)]
pub(crate) struct SurveyedNode {
    pub(crate) member: MemberStatus,
    /// Its own status, or why it gave none that counts.
    pub(crate) status: Result<NodeStatus, Unseen>,
    /// How far its clock is ahead of this machine's, and how precisely that is known.
    pub(crate) clock: Option<ClockOffset>,
}

/// Why a node gave no status that counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unseen {
    pub(crate) text: String,
    pub(crate) kind: UnseenKind,
}

/// See [`Unseen`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum UnseenKind {
    /// It cannot be asked.
    Unreachable(Unreachable),
    /// Another group answers at its address.
    WrongGroup,
    /// Another node answers at its address.
    WrongNode,
}

impl fmt::Display for Unseen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// How far a clock is ahead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ClockOffset {
    pub(crate) ahead_ms: i64,
    /// The possible error in either direction.
    pub(crate) error_ms: i64,
}

/// One node's answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: Result<NodeStatus, Unseen>,
    pub(crate) clock: Option<ClockOffset>,
}

impl SurveyedNode {
    pub(crate) fn has_data(&self) -> bool {
        self.member.node_type.has_data()
    }

    pub(crate) fn is_working(&self) -> bool {
        let works = |status: &NodeStatus| status.group.is_some() && status.role != Role::Detached;
        self.status.as_ref().is_ok_and(works)
    }

    /// Whether what it is sent reaches its disk.
    pub(crate) fn persists(&self) -> bool {
        // A node whose log is damaged waits without a log until a majority readmits it.
        let does_not = |status: &NodeStatus| {
            let is_without_log = status.persisted.is_none() && !status.waiting_for.is_empty();
            status.disk_hangs_ms.is_some() || is_without_log
        };
        self.is_working() && !self.status.as_ref().is_ok_and(does_not)
    }
}

/// The result of a survey.
#[derive(Debug)]
pub(crate) struct Survey {
    pub(crate) group_name: String,
    pub(crate) nodes: Vec<SurveyedNode>,
    pub(crate) health: Health,
    /// How many further nodes may fail with writes still possible.
    pub(crate) survives: usize,
    /// The master of the newest term that any node names, with its view of the group.
    pub(crate) master: Option<NodeStatus>,
    pub(crate) problems: Vec<Problem>,
}

/// A problem, and what to do about it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    pub(crate) what: String,
    pub(crate) remedy: String,
}

impl Survey {
    /// Asks the nodes at `addresses`, and every member that they name.
    ///
    /// # Errors
    /// When none of them answers: the reason for each.
    pub(crate) async fn take(
        network: &dyn Transport,
        addresses: &[String],
    ) -> Result<Self, Vec<Unseen>> {
        let first = ask_all(network, addresses).await;
        let newest = first
            .values()
            .filter_map(|answer| answer.status.as_ref().ok())
            .max_by_key(|status| (status.group.is_some(), status.term, status.members.len()));
        let Some(newest) = newest.cloned() else {
            let why = first.into_values().filter_map(|answer| answer.status.err());
            return Err(why.collect());
        };
        let unasked: Vec<_> = newest
            .members
            .iter()
            .map(|member| member.node.address.clone())
            .filter(|address| !first.contains_key(address))
            .collect();
        let mut answers = first;
        answers.extend(ask_all(network, &unasked).await);
        Ok(Self::judge(&newest, answers))
    }

    pub(crate) fn judge(newest: &NodeStatus, mut answers: BTreeMap<String, Answer>) -> Self {
        let mut nodes: Vec<_> = newest
            .members
            .iter()
            .map(|member| {
                // The address may have been written in another form, such as a host name.
                let key = answers
                    .iter()
                    .find(|(_, answer)| {
                        let is_of = |status| is_of(status, &member.node);
                        answer.status.as_ref().is_ok_and(is_of)
                    })
                    .map_or(member.node.address.clone(), |(key, _)| key.clone());
                let answer = answers.remove(&key).unwrap_or(Answer {
                    status: Err(Unseen {
                        text: "was not asked".to_owned(),
                        kind: UnseenKind::Unreachable(Unreachable::Other),
                    }),
                    clock: None,
                });
                let checked = |status| check(status, newest, &member.node);
                SurveyedNode {
                    member: member.clone(),
                    status: answer.status.and_then(checked),
                    clock: answer.clock,
                }
            })
            .collect();
        if newest.group.is_none() {
            nodes = answers
                .into_iter()
                .map(|(asked, answer)| SurveyedNode {
                    member: to_be(asked, &answer.status),
                    status: answer.status,
                    clock: answer.clock,
                })
                .collect();
        }
        let mut survey = Self {
            group_name: newest.group_name.clone(),
            nodes,
            health: Health::Forming,
            survives: 0,
            master: None,
            problems: Vec::new(),
        };
        survey.conclude(newest.group.is_some());
        survey
    }

    fn conclude(&mut self, is_formed: bool) {
        let all_working = self.working().count();
        let voters = self.nodes.iter().filter(|node| node.member.votes);
        let majority = voters.clone().count() / 2 + 1;
        let working = voters.filter(|node| node.persists()).count();
        if is_formed {
            let masters = self.working().filter(|status| status.role == Role::Master);
            self.master = masters.max_by_key(|status| status.term).cloned();
            self.survives = working.saturating_sub(majority);
            let limps = |status: &&NodeStatus| {
                let cannot_write = status.read_only.is_some() || status.disk_hangs_ms.is_some();
                cannot_write || status.damage.is_some()
            };
            let limping = self.working().filter(limps).count();
            let diverging = self.master.iter().map(|master| master.divergences.len());
            let troubled = limping + diverging.sum::<usize>();
            self.health = match (&self.master, self.nodes.len() - all_working + troubled) {
                (None, _) => Health::NoQuorum,
                _ if working < majority => Health::NoQuorum,
                (Some(master), _) if master.read_only.is_some() => Health::ReadOnly,
                (Some(_), 0) => Health::Healthy,
                (Some(_), _) => Health::Degraded,
            };
        }
        let mut problems: Vec<_> = self.nodes.iter().filter_map(problem_of).collect();
        if self.health == Health::NoQuorum && working >= majority {
            let Cause { what, to_do } = Cause::of(self);
            problems.push(Problem {
                what,
                remedy: to_do,
            });
        } else if self.health == Health::NoQuorum {
            problems.push(Problem {
                what: format!(
                    "{working} voting {}, and it takes {majority}",
                    plural(working, "node works", "nodes work")
                ),
                remedy: format!("start those that are down; {IF_ALL_MOVED}"),
            });
        }
        problems.extend(self.diverging());
        problems.extend(self.too_even());
        problems.extend(self.unprotected());
        self.problems = problems;
    }

    /// The nodes that answer and take part.
    pub(crate) fn working(&self) -> impl Iterator<Item = &NodeStatus> {
        let working = self.nodes.iter().filter(|node| node.is_working());
        working.filter_map(|node| node.status.as_ref().ok())
    }

    /// The working nodes that take no user writes.
    pub(crate) fn read_only(&self) -> impl Iterator<Item = &NodeStatus> {
        self.working().filter(|status| status.read_only.is_some())
    }

    /// The newest term that any node knows.
    pub(crate) fn term(&self) -> Term {
        self.working()
            .map(|status| status.term)
            .max()
            .unwrap_or_default()
    }

    /// The newest transaction that any node has.
    pub(crate) fn vlsn(&self) -> Vlsn {
        self.working()
            .map(|status| status.vlsn)
            .max()
            .unwrap_or_default()
    }

    pub(crate) fn to_json(&self) -> serde_json::Value {
        let node = |node: &SurveyedNode| {
            json!({
                "name": node.member.node.name,
                "address": node.member.node.address,
                "type": node.member.node_type,
                "priority": node.member.priority,
                "votes": node.member.votes,
                "metadata": node.member.node.metadata,
                "status": node.status.as_ref().ok(),
                "error": node.status.as_ref().err().map(|unseen| &unseen.text),
            })
        };
        let problem = |problem: &Problem| json!({"what": problem.what, "to_do": problem.remedy});
        json!({
            "group": self.group_name,
            "health": self.health.word(),
            "survives": self.survives,
            "term": self.term(),
            "vlsn": self.vlsn(),
            "master": self.master.as_ref().map(|master| &master.node.name),
            "nodes": self.nodes.iter().map(node).collect::<Vec<_>>(),
            "problems": self.problems.iter().map(problem).collect::<Vec<_>>(),
        })
    }
}

/// A node of a group that has not formed yet.
fn to_be(asked: String, answer: &Result<NodeStatus, Unseen>) -> MemberStatus {
    let unknown = |_: &Unseen| NodeAddress {
        id: NodeId(0),
        name: "?".to_owned(),
        address: asked,
        metadata: BTreeMap::new(),
    };
    MemberStatus {
        node: answer
            .as_ref()
            .map_or_else(unknown, |status| status.node.clone()),
        node_type: NodeType::Electable,
        priority: PRIORITY_DEFAULT,
        votes: true,
    }
}

async fn ask_all(network: &dyn Transport, addresses: &[String]) -> BTreeMap<String, Answer> {
    let asked = addresses.iter().map(|address| async move {
        let began_ms = now_ms();
        let answer = NodeStatus::ask_on(network, address, false, ANSWER_TIMEOUT).await;
        let ended_ms = now_ms();
        let clock = answer.as_ref().ok().filter(|status| status.clock_ms > 0);
        let clock = clock.map(|status| ClockOffset {
            ahead_ms: i64::try_from(status.clock_ms).unwrap_or(i64::MAX)
                - i64::midpoint(began_ms, ended_ms),
            error_ms: (ended_ms - began_ms) / 2,
        });
        let status = answer.map_err(|error| Unseen {
            text: with_sources(&error),
            kind: UnseenKind::Unreachable(error.reason()),
        });
        (address.clone(), Answer { status, clock })
    });
    join_all(asked).await.into_iter().collect()
}

#[expect(clippy::disallowed_methods, reason = "clocks of machines are compared")]
fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    i64::try_from(since.unwrap_or_default().as_millis()).unwrap_or(i64::MAX)
}

fn is_of(status: &NodeStatus, member: &NodeAddress) -> bool {
    status.node.name == member.name
}

/// The answer from a member's address, unless another node gave it.
fn check(
    status: NodeStatus,
    newest: &NodeStatus,
    member: &NodeAddress,
) -> Result<NodeStatus, Unseen> {
    let is_same_name = status.group_name == newest.group_name;
    if !is_same_name || !is_of(&status, member) {
        let (address, name) = (&member.address, &status.node.name);
        return Err(Unseen {
            text: format!(
                "{address} is answered by {name} of group {:?}",
                status.group_name
            ),
            kind: if is_same_name {
                UnseenKind::WrongNode
            } else {
                UnseenKind::WrongGroup
            },
        });
    }
    if status.group.is_some() && status.group != newest.group {
        return Err(Unseen {
            text: format!("{} is in another group of the same name", member.address),
            kind: UnseenKind::WrongGroup,
        });
    }
    Ok(status)
}

/// What to do about a disk that hangs.
pub(crate) fn remedy_of_hang() -> String {
    "check the volume of its data directory (dmesg, the storage behind it, a frozen file system); the node \
     resumes by itself when its disk does"
        .to_owned()
}

/// What to do about damage where no other node has the data.
pub(crate) const ONLY_NODE: &str = "it repairs itself from its log, as far as that reaches; no other node has the data: if it does not \
     repair itself, keep its data directory, and restore a backup (steadfast backup restore)";

/// What is wrong with a node's data, and what the node waits for because of that.
pub(crate) fn damage_in_words(status: &NodeStatus, damage: &str) -> String {
    let (name, waiting_for) = (&status.node.name, &status.waiting_for);
    // Where it begins with the damage, that is why it has stopped.
    if waiting_for.contains(damage) && !waiting_for.starts_with(damage) {
        return format!("{name} waits for {waiting_for}");
    }
    format!("the data of {name} is bad: {damage}")
}

/// What to do about a node whose data is bad.
pub(crate) fn remedy_of_damage(status: &NodeStatus) -> String {
    if status.restore.is_some() {
        return "it serves nothing meanwhile, and comes back by itself with the state of another node: one \
                that has counted its own rows and found them right"
            .to_owned();
    }
    if status.needs_state && status.role == Role::Detached {
        return "no node has the right data. Nothing was removed: keep the data directories, and bring back what \
                is missing from a backup (steadfast backup restore) or an older data directory of a node"
            .to_owned();
    }
    if status.members.len() == 1 {
        return ONLY_NODE.to_owned();
    }
    let name = &status.node.name;
    format!(
        "nothing that the others hold is lost: it repairs itself from its log, from a node that is right, or \
         if the others are a majority (repair = \"auto\"); if it does not, replace it (steadfast \
         node replace {name})"
    )
}

/// What to do about a node that has stopped.
pub(crate) fn remedy_of_stop(status: &NodeStatus) -> &'static str {
    if status.was_removed() {
        "nothing, if that was intended; to bring it back, start it with an empty directory and a token \
         (steadfast token create)"
    } else {
        "fix the cause, then start it again: it re-reads its disk"
    }
}

/// What to do about nodes that are up and do not talk to the caller.
pub(crate) const OTHER_CREDENTIALS: &str = "it is up: give credentials of the group that are good \
    (--credentials DIR); see them with steadfast certs show, on the node's machine too. Those of a node that \
    missed a change of the authority are renewed with steadfast certs renew";

fn problem_of_unseen(name: &str, address: &str, why: &Unseen) -> Problem {
    if why.kind == UnseenKind::Unreachable(Unreachable::Denied) {
        return Problem {
            what: format!("{name} cannot be asked: {why}"),
            remedy: OTHER_CREDENTIALS.to_owned(),
        };
    }
    Problem {
        what: format!("{name} does not work: {why}"),
        remedy: format!(
            "if its process has ended, start it again with its own data directory; if it runs, \
             check the network to {address}"
        ),
    }
}

fn problem_of(node: &SurveyedNode) -> Option<Problem> {
    let NodeAddress { name, address, .. } = &node.member.node;
    let status = match &node.status {
        Ok(status) => status,
        Err(why) => return Some(problem_of_unseen(name, address, why)),
    };
    if let Some(damage) = &status.damage {
        return Some(Problem {
            what: damage_in_words(status, damage),
            remedy: remedy_of_damage(status),
        });
    }
    // A node that copies another one's state is detached as well, and comes back.
    if status.role == Role::Detached && status.restore.is_none() && status.group.is_some() {
        return Some(Problem {
            what: format!("{name} has stopped: {}", status.waiting_for),
            remedy: remedy_of_stop(status).to_owned(),
        });
    }
    if let Some(hangs_ms) = status.disk_hangs_ms {
        return Some(Problem {
            what: format!(
                "the disk of {name} has not finished a write for {} s; meanwhile the node does not count",
                hangs_ms / 1_000
            ),
            remedy: remedy_of_hang(),
        });
    }
    if !status.waiting_for.is_empty() {
        let remedy = if status.role == Role::StandIn {
            "nothing: it hands over by itself as soon as such a node has caught up"
        } else if status.group.is_none() {
            "start the nodes that it waits for, or correct what it names"
        } else if status.restore.is_some() {
            "it comes back by itself as soon as the copy is in place"
        } else {
            "it comes back by itself as soon as it reaches a majority"
        };
        let what = format!("{name} waits for {}", status.waiting_for);
        return Some(Problem {
            what,
            remedy: remedy.to_owned(),
        });
    }
    if let Some(reason) = &status.read_only {
        let what = format!("{name} is read-only: {reason}");
        let remedy = "make room on the volume of its data directory; it then takes writes \
                      again by itself; nothing acknowledged is lost";
        return Some(Problem {
            what,
            remedy: remedy.to_owned(),
        });
    }
    status.disk_is_low.then(|| Problem {
        what: format!(
            "{name} has {} MiB of disk left",
            status.disk_free_bytes >> 20
        ),
        remedy: "make room on the volume of its data directory".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use steadfast::RestoreProgress;

    use super::*;

    /// A node with this status.
    fn node(role: &str, waiting_for: &str, restore: Option<&RestoreProgress>) -> SurveyedNode {
        let phase = match waiting_for {
            "this node was removed from the group" => "removed",
            _ => "stopped",
        };
        let status = json!({
            "group_name": "g", "group": "f9858012-f9cf-4200-91e8-8ecb6b6c023d", "epoch": 1,
            "node": {"id": 1, "name": "n1", "address": "h1:7400"}, "members": [], "role": role,
            "phase": phase, "term": 3, "vlsn": 7, "replicas": [], "disk_free_bytes": 0, "disk_total_bytes": 0,
            "disk_is_low": false, "version": "0.1.0", "window_bytes": 0, "waiting_for": waiting_for,
            "needs_state": false, "put_right": 0, "divergences": [], "clock_ms": 0,
            "restore": restore, "copies": 0,
        });
        let status: NodeStatus = serde_json::from_value(status).expect("a status");
        SurveyedNode {
            member: to_be("h1:7400".to_owned(), &Ok(status.clone())),
            status: Ok(status),
            clock: None,
        }
    }

    #[test]
    fn a_node_that_has_stopped_does_not_come_back_by_itself_and_the_others_do() {
        let remedy = |role, waiting_for, restore| {
            let problem = problem_of(&node(role, waiting_for, restore)).expect("a problem");
            format!("{}: {}", problem.what, problem.remedy)
        };
        let stopped = remedy("detached", "the log failed: writing failed", None);
        assert!(stopped.contains("has stopped: the log failed"), "{stopped}");
        assert!(stopped.contains("start it again"), "{stopped}");
        let copying = RestoreProgress {
            source: None,
            bytes: 0,
            bytes_total: 0,
            bytes_per_s: 0,
            eta_s: None,
        };
        let removed = remedy("detached", "this node was removed from the group", None);
        assert!(removed.contains("token create"), "{removed}");
        assert!(!removed.contains("start it again"), "{removed}");
        for comes_back in [
            remedy("detached", "a copy of the state of n2", Some(&copying)),
            remedy("unknown", "a master", None),
        ] {
            assert!(comes_back.contains("by itself"), "{comes_back}");
        }
    }
}
