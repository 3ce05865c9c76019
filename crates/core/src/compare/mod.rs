//! Compares the data of nodes without stopping writes: first their running digests at one VLSN,
//! which are just numbers; if those differ, range by range, each range at one VLSN.
//!
//! ```text
//!  the reference node          the others
//!  "from this key, so many rows, as of now"
//!      ──► VLSN, digest, where the range ends
//!                              "the same range at that VLSN"
//!                                  ──► digest            wait until they are there; a flush that has
//!                                      or: gone          passed it means: again, at a newer VLSN
//! ```
//!
//! A range is short, so no snapshot holds back a flush for long. Two ranges are compared at two
//! VLSNs. The catalog is compared as a database without a name, so that a database that only one
//! node has does not go unnoticed.

pub(crate) mod digest;

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use steadfast_net::{TcpTransport, Transport};
use tokio::time::Instant;

use crate::ids::Vlsn;
use crate::member::NodeAddress;
use crate::node::status::Divergence;
use crate::txn::catalog::is_users_name;
use crate::wire::comparison::{
    CheckReply, DatabaseDigestMessage, DivergenceMessage, RangeOutcome, RangeReply, RangeRequest,
};
use crate::wire::node_state;
use crate::wire::node_state::NodeStateRequest;

/// Rows of one range: milliseconds of reading.
const ROWS_MAX: u64 = 16_384;

/// Rows of the smaller ranges into which a differing one is split, to name the keys.
const ROWS_FINE: u64 = 64;

/// How often a range is retried at newer VLSNs before a node counts as not comparable.
const ATTEMPTS_MAX: usize = 8;

/// How long a node may take for one range.
const RANGE_MAX: Duration = Duration::from_secs(30);

/// How long a node may take to read all its files.
const CHECK_MAX: Duration = Duration::from_hours(6);

/// Divergences that one comparison names; further ones are only counted.
const NAMED_MAX: usize = 16;

impl From<DivergenceMessage> for Divergence {
    fn from(message: DivergenceMessage) -> Self {
        Self {
            database: message.database,
            from: message.from.to_vec(),
            to: message.to.map(|to| to.to_vec()),
            vlsn: Vlsn(message.vlsn),
            nodes: message.nodes,
        }
    }
}

impl From<Divergence> for DivergenceMessage {
    fn from(divergence: Divergence) -> Self {
        Self {
            database: divergence.database,
            from: divergence.from.into(),
            to: divergence.to.map(Into::into),
            vlsn: divergence.vlsn.0,
            nodes: divergence.nodes,
        }
    }
}

/// One database, as far as it was compared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ComparedDatabase {
    /// Its name.
    pub name: String,
    /// Number of rows on the reference node.
    pub rows: u64,
    /// Number of ranges in which nodes differ.
    pub divergent: usize,
}

/// The result of checking all files of one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckedNode {
    /// Its name.
    pub name: String,
    /// The file, the offset and what is wrong there.
    pub problem: Option<String>,
    /// Bytes of the log that are intact.
    pub log_bytes: u64,
    /// Bytes of the engine's files that are intact.
    pub engine_bytes: u64,
}

/// The result of a comparison.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Comparison {
    /// The newest transaction at which a range was compared.
    pub vlsn: Vlsn,
    /// The databases of the reference node.
    pub databases: Vec<ComparedDatabase>,
    /// Names of the nodes that were compared to the end.
    pub nodes: Vec<String>,
    /// Nodes that could not be compared, and why.
    pub left_out: Vec<(String, String)>,
    /// Where they differ; only the first 16 such ranges.
    pub divergences: Vec<Divergence>,
    /// In how many ranges they differ.
    pub divergent: usize,
    /// The results of checking all files, if requested.
    pub checked: Vec<CheckedNode>,
}

impl Comparison {
    /// Compares the data of `others` with that of `reference`, over TCP in plaintext. With `deep`, a differing
    /// range is split to name the keys, and each node reads all of its files and verifies their
    /// checksums. `progress` is told what is compared next, and how many rows have been.
    ///
    /// # Errors
    /// Why the reference node cannot be read.
    pub async fn run(
        reference: &NodeAddress,
        others: &[NodeAddress],
        deep: bool,
        progress: impl FnMut(&str, u64),
    ) -> Result<Self, String> {
        Self::run_on(&TcpTransport, reference, others, deep, progress).await
    }

    /// As [`Comparison::run`], over the given network.
    ///
    /// # Errors
    /// As [`Comparison::run`].
    pub async fn run_on(
        transport: &dyn Transport,
        reference: &NodeAddress,
        others: &[NodeAddress],
        deep: bool,
        progress: impl FnMut(&str, u64),
    ) -> Result<Self, String> {
        let comparing = Comparing {
            transport,
            reference,
            deep,
            rest: 0,
        };
        let mut comparison = comparing.run(others, progress).await?;
        if deep {
            let all = std::iter::once(reference).chain(others);
            let checks = all.map(|node| check(transport, node));
            comparison.checked = join_all(checks).await;
        }
        Ok(comparison)
    }

    /// Whether the compared nodes have the same data, and all checked files are intact.
    pub fn is_clean(&self) -> bool {
        self.divergent == 0 && self.checked.iter().all(|node| node.problem.is_none())
    }
}

/// One comparison under way.
pub(crate) struct Comparing<'a> {
    pub(crate) transport: &'a dyn Transport,
    pub(crate) reference: &'a NodeAddress,
    pub(crate) deep: bool,
    /// Pause after each range, as a multiple of its duration.
    pub(crate) rest: u32,
}

impl Comparing<'_> {
    /// # Errors
    /// Why the reference node cannot be read.
    pub(crate) async fn run(
        &self,
        others: &[NodeAddress],
        mut progress: impl FnMut(&str, u64),
    ) -> Result<Comparison, String> {
        let mut found = Comparison::default();
        let mut others: Vec<&NodeAddress> = others.iter().collect();
        if self.running(&mut others, &mut found).await? {
            return Ok(found);
        }
        self.ranges(&mut others, &mut found, &mut progress).await?;
        self.name_nodes(&others, &mut found);
        Ok(found)
    }

    fn name_nodes(&self, others: &[&NodeAddress], found: &mut Comparison) {
        let all = std::iter::once(&self.reference).chain(others);
        found.nodes = all.map(|node| node.name.clone()).collect();
    }

    /// Compares the running digests of all nodes. Returns whether they are the same.
    async fn running(
        &self,
        others: &mut Vec<&NodeAddress>,
        found: &mut Comparison,
    ) -> Result<bool, String> {
        let request = RangeRequest {
            is_running: true,
            ..RangeRequest::default()
        };
        let (reply, divergence) = self.compare(request, others, found).await?;
        if let Some(divergence) = divergence {
            note(found, divergence);
            return Ok(false);
        }
        let named = reply.running.into_iter().filter(|of| is_users(&of.name));
        found.databases = named
            .map(|database| ComparedDatabase {
                name: database.name,
                rows: database.rows,
                divergent: 0,
            })
            .collect();
        self.name_nodes(others, found);
        Ok(true)
    }

    /// Compares all ranges, to name what differs.
    async fn ranges(
        &self,
        others: &mut Vec<&NodeAddress>,
        found: &mut Comparison,
        mut progress: impl FnMut(&str, u64),
    ) -> Result<(), String> {
        let whole = std::mem::take(&mut found.divergences);
        found.divergent = 0;
        let mut names = vec![String::new()];
        let mut at = 0;
        while let Some(name) = names.get(at).cloned() {
            let shown = if is_users(&name) { &name } else { "" };
            progress(shown, found.databases.iter().map(|of| of.rows).sum());
            let listed = self.database(&name, others, found).await?;
            names.extend(listed);
            at += 1;
        }
        if found.divergent == 0 {
            // They read the same rows, yet not what each should hold by its running digest.
            for divergence in whole {
                note(found, divergence);
            }
        }
        Ok(())
    }

    /// Compares one database. If it is the catalog, returns the names of the others.
    async fn database(
        &self,
        name: &str,
        others: &mut Vec<&NodeAddress>,
        found: &mut Comparison,
    ) -> Result<Vec<String>, String> {
        let (mut names, mut rows) = (Vec::new(), 0);
        let before = found.divergent;
        let mut from = Bytes::new();
        loop {
            let began = Instant::now();
            let range = RangeRequest {
                database: name.to_owned(),
                from: from.clone(),
                rows_max: ROWS_MAX,
                ..RangeRequest::default()
            };
            let reply = self.range(range, others, found).await?;
            rows += reply.rows;
            if names.is_empty() {
                names = reply.databases;
            }
            match reply.to {
                Some(to) => from = to,
                None => break,
            }
            tokio::time::sleep(began.elapsed() * self.rest).await;
        }
        if is_users(name) {
            found.databases.push(ComparedDatabase {
                name: name.to_owned(),
                rows,
                divergent: found.divergent - before,
            });
        }
        Ok(names)
    }

    /// Compares one range, and its parts if it differs.
    async fn range(
        &self,
        range: RangeRequest,
        others: &mut Vec<&NodeAddress>,
        found: &mut Comparison,
    ) -> Result<RangeReply, String> {
        let (reply, divergence) = self.compare(range.clone(), others, found).await?;
        let Some(divergence) = divergence else {
            return Ok(reply);
        };
        if !self.deep || range.rows_max <= ROWS_FINE {
            note(found, divergence);
            return Ok(reply);
        }
        let before = found.divergent;
        let mut part = RangeRequest {
            to: reply.to.clone(),
            rows_max: ROWS_FINE,
            ..range
        };
        loop {
            let (cut, divergence) = self.compare(part.clone(), others, found).await?;
            if let Some(divergence) = divergence {
                note(found, divergence);
            }
            match cut.to {
                Some(to) => part.from = to,
                None => break,
            }
        }
        if found.divergent == before {
            // Overwritten since. It was true when it was seen.
            note(found, divergence);
        }
        Ok(reply)
    }

    /// Asks the reference node, then all others for the same range.
    async fn compare(
        &self,
        range: RangeRequest,
        others: &mut Vec<&NodeAddress>,
        found: &mut Comparison,
    ) -> Result<(RangeReply, Option<Divergence>), String> {
        for attempt in 1.. {
            let name = &self.reference.name;
            let reply = ask(self.transport, self.reference, range.clone()).await;
            let reply = reply.and_then(digest_of);
            let reply = match reply {
                Ok(reply) => reply,
                // A new master was elected, or a flush has passed it meanwhile.
                Err(Unusable::Moved(_)) if attempt < ATTEMPTS_MAX => continue,
                Err(why) => return Err(format!("{name} cannot be compared: {why}")),
            };
            if reply.vlsn == 0 {
                // Nothing was ever written; to the others 0 would mean "as of now".
                return Ok((reply, None));
            }
            let same = RangeRequest {
                vlsn: reply.vlsn,
                to: reply.to.clone().or(range.to.clone()),
                rows_max: 0,
                ..range.clone()
            };
            let asked = others.iter().map(|node| {
                let same = same.clone();
                async move { ask(self.transport, node, same).await.and_then(digest_of) }
            });
            let answers = join_all(asked).await;
            let is_moved = |answer: &Result<_, _>| matches!(answer, Err(Unusable::Moved(_)));
            if answers.iter().any(is_moved) && attempt < ATTEMPTS_MAX {
                continue;
            }
            let mut digests = vec![(name.clone(), reply.digest.clone())];
            let (mut left, mut database) = (Vec::new(), None);
            for (node, answer) in others.iter().zip(answers) {
                match answer {
                    Ok(theirs) => {
                        database = database.or_else(|| first_difference(&reply, &theirs));
                        digests.push((node.name.clone(), theirs.digest));
                        left.push(*node);
                    }
                    Err(why) => found.left_out.push((node.name.clone(), why.to_string())),
                }
            }
            *others = left;
            found.vlsn = found.vlsn.max(Vlsn(reply.vlsn));
            let nodes = differing(&digests);
            let divergence = (!nodes.is_empty()).then(|| Divergence {
                database: database.unwrap_or(range.database.clone()),
                from: range.from.to_vec(),
                to: same.to.map(|to| to.to_vec()),
                vlsn: Vlsn(reply.vlsn),
                nodes,
            });
            return Ok((reply, divergence));
        }
        unreachable!("the last attempt returns")
    }
}

/// Whether users know of a database by this name. Those of the group are compared like any other.
fn is_users(name: &str) -> bool {
    !name.is_empty() && is_users_name(name.as_bytes())
}

fn note(found: &mut Comparison, divergence: Divergence) {
    found.divergent += 1;
    if found.divergences.len() < NAMED_MAX {
        found.divergences.push(divergence);
    }
}

/// The first database for which two running digests differ.
fn first_difference(one: &RangeReply, other: &RangeReply) -> Option<String> {
    let mut all = one.running.iter().chain(&other.running);
    let differs =
        |of: &&DatabaseDigestMessage| !one.running.contains(of) || !other.running.contains(of);
    all.find(differs).map(|database| database.name.clone())
}

/// The nodes that differ from the majority; all of them if there is none.
fn differing(digests: &[(String, String)]) -> Vec<String> {
    let mut by_digest: BTreeMap<&str, usize> = BTreeMap::new();
    for (_, digest) in digests {
        *by_digest.entry(digest).or_default() += 1;
    }
    if by_digest.len() < 2 {
        return Vec::new();
    }
    let right = by_digest
        .iter()
        .find(|(_, count)| **count * 2 > digests.len());
    let right = right.map(|(digest, _)| *digest);
    let differs = digests
        .iter()
        .filter(|(_, digest)| Some(&digest[..]) != right);
    differs.map(|(name, _)| name.clone()).collect()
}

/// Why a node gave no digest.
#[derive(Debug, thiserror::Error)]
enum Unusable {
    /// Another VLSN may do.
    #[error("{0}")]
    Moved(String),
    #[error("{0}")]
    Other(String),
}

async fn ask(
    transport: &dyn Transport,
    node: &NodeAddress,
    range: RangeRequest,
) -> Result<RangeReply, Unusable> {
    let is_running = range.is_running;
    let request = NodeStateRequest {
        range: Some(range),
        ..NodeStateRequest::default()
    };
    let asked = node_state::ask_for(transport, &node.address, &request, RANGE_MAX).await;
    let state = asked.map_err(|error| Unusable::Other(error.to_string()))?;
    let missing = || {
        Unusable::Other(
            "its version does not support this, or the credentials do not allow it".to_owned(),
        )
    };
    let reply = state.range.ok_or_else(missing)?;
    // To a version without running digests, this was a request for a range.
    let is_answer = !is_running || reply.outcome() != RangeOutcome::Done;
    (is_answer || !reply.running.is_empty())
        .then_some(reply)
        .ok_or_else(missing)
}

fn digest_of(reply: RangeReply) -> Result<RangeReply, Unusable> {
    match reply.outcome() {
        RangeOutcome::Done => Ok(reply),
        RangeOutcome::Behind | RangeOutcome::Gone => Err(Unusable::Moved(reply.text)),
        RangeOutcome::Failed => Err(Unusable::Other(reply.text)),
    }
}

async fn check(transport: &dyn Transport, node: &NodeAddress) -> CheckedNode {
    let request = NodeStateRequest {
        check: true,
        ..NodeStateRequest::default()
    };
    let asked = node_state::ask_for(transport, &node.address, &request, CHECK_MAX).await;
    let reply = match asked {
        Ok(state) => state.check.unwrap_or_else(|| CheckReply {
            problem: "its version does not support this, or the credentials do not allow it"
                .to_owned(),
            ..CheckReply::default()
        }),
        Err(error) => CheckReply {
            problem: error.to_string(),
            ..CheckReply::default()
        },
    };
    CheckedNode {
        name: node.name.clone(),
        problem: Some(reply.problem).filter(|problem| !problem.is_empty()),
        log_bytes: reply.log_bytes,
        engine_bytes: reply.engine_bytes,
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn who_differs_from_the_majority_is_named_and_all_are_where_there_is_none() {
        let differing = |digests: &[&str]| {
            let digests = digests.iter().zip(1..);
            let named = digests.map(|(digest, n)| (format!("n{n}"), (*digest).to_owned()));
            super::differing(&named.collect::<Vec<_>>())
        };
        assert!(differing(&["a"]).is_empty() && differing(&["a", "a", "a"]).is_empty());
        assert_eq!(differing(&["a", "b", "a"]), ["n2"]);
        assert_eq!(differing(&["b", "a", "a"]), ["n1"]);
        assert_eq!(differing(&["a", "b"]), ["n1", "n2"]);
        assert_eq!(differing(&["a", "b", "c"]), ["n1", "n2", "n3"]);
        assert_eq!(differing(&["a", "a", "b", "c", "a"]), ["n3", "n4"]);
    }
}
