//! The checkers. They take the committed log as the order of everything and check what clients saw
//! against it.

mod expected;
mod feeds;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use crate::history::{Fate, History, MARKERS, Read, SnapshotRead};
use crate::logfile::{self, Log, LogEntry, LoggedTransaction};

use expected::Expected;

pub use feeds::feeds;

/// Id of the database that maps names to ids.
pub(crate) const CATALOG: u32 = 0;

/// Catalog key that holds the next free id.
const NEXT_ID: &[u8] = b"\0next";

/// The state of all databases at one VLSN.
#[derive(Default)]
struct Model {
    databases: BTreeMap<u32, BTreeMap<Bytes, Bytes>>,
}

impl Model {
    fn apply(&mut self, transaction: &LoggedTransaction) {
        for (database, key, value) in &transaction.operations {
            let keys = self.databases.entry(*database).or_default();
            match value {
                Some(value) => keys.insert(key.clone(), value.clone()),
                None => keys.remove(key),
            };
        }
    }

    fn id(&self, name: &str) -> Option<u32> {
        parse_database_id(self.databases.get(&CATALOG)?.get(name.as_bytes())?)
    }

    /// Ids below this one have been given out.
    fn next_id(&self) -> u32 {
        let entry = |catalog: &BTreeMap<Bytes, Bytes>| parse_database_id(catalog.get(NEXT_ID)?);
        self.databases.get(&CATALOG).and_then(entry).unwrap_or(1)
    }

    /// Catalog entries as stored: names and ids.
    fn catalog(&self) -> impl Iterator<Item = (&Bytes, &Bytes)> {
        let catalog = self.databases.get(&CATALOG).into_iter().flatten();
        catalog.filter(|(key, _)| !key.starts_with(b"\0"))
    }

    fn names(&self) -> Vec<String> {
        self.catalog().map(|(key, _)| text(key)).collect()
    }

    fn name_of(&self, id: u32) -> Option<String> {
        let mut catalog = self.catalog();
        let found = catalog.find(|(_, entry)| parse_database_id(entry) == Some(id));
        found.map(|(key, _)| text(key))
    }

    fn keys(&self, name: &str) -> Option<&BTreeMap<Bytes, Bytes>> {
        self.databases.get(&self.id(name)?)
    }

    /// What the read should have seen, if it saw something else. Excused rows are ignored.
    fn contradicts(&self, read: &Read, excused: &[(u32, &Bytes)]) -> Option<String> {
        match read {
            Read::Databases { names } => {
                let there = self.names();
                (there != *names).then(|| format!("there were {there:?}, read as {names:?}"))
            }
            Read::Get {
                database,
                key,
                value,
            } => {
                let there = self.keys(database).and_then(|keys| keys.get(key));
                let is_excused = self.is_excused(database, key, excused);
                (!is_excused && there != value.as_ref()).then(|| {
                    format!(
                        "{database}/{} was {}, read as {}",
                        text(key),
                        short(there),
                        short(value.as_ref())
                    )
                })
            }
            Read::Range {
                database,
                from,
                to,
                reverse,
                limit,
                pairs,
            } => {
                let is_told = |key: &Bytes| !self.is_excused(database, key, excused);
                let pairs: Vec<_> = pairs.iter().map(|(key, value)| (key, value)).collect();
                let told = pairs.iter().filter(|(key, _)| is_told(key)).copied();
                let told: Vec<_> = told.collect();
                // An excused row may take up a place within the limit, or leave one free.
                let limit = if pairs.len() == told.len() || pairs.len() < *limit {
                    *limit
                } else {
                    told.len()
                };
                let keys = self.keys(database);
                let range = keys.map(|keys| keys.range(from.clone()..to.clone()));
                let there = range.into_iter().flatten().filter(|(key, _)| is_told(key));
                let there: Vec<_> = if *reverse {
                    there.rev().take(limit).collect()
                } else {
                    there.take(limit).collect()
                };
                (there != told).then(|| {
                    let names =
                        |pairs: &[(&Bytes, &Bytes)]| -> Vec<_> { pairs.iter().map(|(key, value)| format!("{}={}", text(key), short(Some(value)))).collect() };
                    format!(
                        "{database}/{}..{} (reverse {reverse}, limit {limit}) was {:?}, read as {:?}",
                        text(from),
                        text(to),
                        names(&there),
                        names(&pairs)
                    )
                })
            }
        }
    }
}

impl Model {
    fn is_excused(&self, name: &str, key: &Bytes, excused: &[(u32, &Bytes)]) -> bool {
        let mut excused = excused.iter();
        excused.any(|(database, row)| *row == key && self.id(name) == Some(*database))
    }
}

fn text(bytes: &Bytes) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(24)]).into_owned()
}

fn short(value: Option<&Bytes>) -> String {
    value.map_or_else(|| "nothing".into(), |value| format!("{:?}", text(value)))
}

/// A node's log, and how much of it is on disk.
pub struct NodeLog {
    /// The node's name.
    pub name: String,
    /// The log's contents.
    pub log: Log,
    /// Last entry on disk.
    pub persisted: u64,
}

/// Committed logs agree as far as both are on disk, except for entries a node received by copy.
pub fn logs_agree(logs: &[NodeLog], committed: u64) -> Vec<String> {
    let mut problems = Vec::new();
    let Some((first, others)) = logs.split_first() else {
        return problems;
    };
    for other in others {
        let committed = committed.min(first.persisted).min(other.persisted);
        let differs = (0..=committed).find(|position| {
            let of = |node: &NodeLog| {
                let is_copied = node.log.purged.is_some_and(|purged| purged >= *position);
                (node.log.entries.get(position).cloned(), is_copied)
            };
            let (ours, theirs) = (of(first), of(other));
            match (ours.0, theirs.0) {
                (Some(ours), Some(theirs)) => ours != theirs,
                (None, None) => false,
                (None, Some(_)) => !ours.1,
                (Some(_), None) => !theirs.1,
            }
        });
        if let Some(position) = differs {
            let (ours, theirs) = (&first.name, &other.name);
            problems.push(format!(
                "the committed logs of {ours} and {theirs} differ at position {position}"
            ));
        }
    }
    problems
}

/// Merges the logs of these nodes. Where they differ, the log that ends in the latest term wins: it
/// extends the log of that term's master, which held everything committed before. A single entry of
/// a later term may come from a master deposed before any node accepted it.
pub fn union<'a>(logs: impl Iterator<Item = &'a Log>) -> BTreeMap<u64, LogEntry> {
    let mut logs: Vec<_> = logs.map(|log| &log.entries).collect();
    logs.sort_by_key(|entries| Reverse(entries.values().next_back().map(|entry| entry.term)));
    let mut all: BTreeMap<u64, LogEntry> = BTreeMap::new();
    for (position, entry) in logs.into_iter().flatten() {
        all.entry(*position).or_insert_with(|| entry.clone());
    }
    all
}

/// Position of the last change of each row, by database and key, in a log up to position `last`.
///
/// # Errors
/// When a batch does not match the format.
pub fn last_changes(
    log: &BTreeMap<u64, LogEntry>,
    last: u64,
) -> Result<BTreeMap<(u32, Bytes), u64>, String> {
    let mut changes = BTreeMap::new();
    for transaction in logfile::transactions(log, last)?.into_values() {
        for (database, key, _) in transaction.operations {
            changes.insert((database, key), transaction.position);
        }
    }
    Ok(changes)
}

/// The databases that have a name as of position `last`.
///
/// # Errors
/// When a batch does not match the format.
pub fn database_ids(log: &BTreeMap<u64, LogEntry>, last: u64) -> Result<BTreeSet<u32>, String> {
    let mut model = Model::default();
    for transaction in logfile::transactions(log, last)?.values() {
        model.apply(transaction);
    }
    let catalog = model.catalog();
    Ok(catalog
        .filter_map(|(_, id)| parse_database_id(id))
        .collect())
}

/// Position of transaction `id` in a log.
pub fn position_of(log: &Log, id: usize) -> Option<u64> {
    let marker = marker(id);
    let has = |entry: &LogEntry| {
        let mut keys = entry.payload.windows(marker.len());
        entry.kind == 2 && keys.any(|key| *key == marker)
    };
    let mut entries = log.entries.iter().rev();
    entries.find_map(|(position, entry)| has(entry).then_some(*position))
}

/// Checks the whole history against `log`, the committed transactions by VLSN.
pub fn history(history: &History, log: &BTreeMap<u64, LoggedTransaction>) -> Vec<String> {
    let mut checker = Checker {
        history,
        found: BTreeMap::new(),
        began_max: (0, 0),
        node_id: 0,
        problems: Vec::new(),
    };
    let mut snapshots: Vec<&SnapshotRead> = history.snapshots.iter().collect();
    snapshots.sort_by_key(|snapshot| snapshot.vlsn);
    let mut snapshots = snapshots.into_iter().peekable();
    let mut model = Model::default();
    let mut newest = 0;
    while let Some(snapshot) = snapshots.next_if(|snapshot| snapshot.vlsn == 0) {
        checker.snapshot(snapshot, &model);
    }
    for (vlsn, transaction) in log {
        if *vlsn != newest + 1 {
            let problem = format!("VLSN {vlsn} follows {newest} in the committed log");
            checker.problems.push(problem);
        }
        newest = *vlsn;
        checker.transaction(*vlsn, transaction, &model);
        model.apply(transaction);
        while let Some(snapshot) = snapshots.next_if(|snapshot| snapshot.vlsn == *vlsn) {
            checker.snapshot(snapshot, &model);
        }
    }
    for snapshot in snapshots {
        checker.problems.push(format!(
            "node {} showed VLSN {}, which was never committed; the last one is {newest}",
            snapshot.node + 1,
            snapshot.vlsn
        ));
    }
    let newest_term = log.values().map(|transaction| transaction.term).max();
    checker.fates(newest_term.unwrap_or_default());
    checker.outcomes();
    checker.terms();
    checker.problems
}

struct Checker<'a> {
    history: &'a History,
    /// VLSN and term of each transaction in the log, by id.
    found: BTreeMap<usize, (u64, u64)>,
    /// The latest start among the transactions so far, and the id of that transaction.
    began_max: (u64, usize),
    /// The newest id given to a joining node.
    node_id: u64,
    problems: Vec<String>,
}

impl Checker<'_> {
    /// Checks one transaction of the log against the state before it.
    fn transaction(&mut self, vlsn: u64, logged: &LoggedTransaction, before: &Model) {
        let marker = before.id(MARKERS).or_else(|| created(logged, MARKERS));
        let mark = |(database, key, _): &(u32, Bytes, Option<Bytes>)| {
            (Some(*database) == marker).then(|| key.clone())
        };
        // A compare-and-set that found another value changes nothing and leaves no mark.
        if logged.operations.is_empty() {
            return;
        }
        if let Some(id) = given_node_id(logged) {
            if id <= self.node_id {
                let problem = format!(
                    "node id {id} is given at VLSN {vlsn} after {}",
                    self.node_id
                );
                self.problems.push(problem);
            }
            self.node_id = id;
            return;
        }
        let marked = logged.operations.iter().find_map(mark);
        let id = match &marked {
            Some(key) => parse_id(key),
            None => only_value(logged).and_then(|value| parse_value(&value)),
        };
        let Some(id) = id else {
            let problem = format!("nobody asked for the transaction at VLSN {vlsn}");
            self.problems.push(problem);
            return;
        };
        let Some(asked) = self.history.transactions.get(id) else {
            self.problems
                .push(format!("VLSN {vlsn} is transaction {id}, which never was"));
            return;
        };
        if let Some((first, _)) = self.found.insert(id, (vlsn, logged.term)) {
            let problem = format!("transaction {id} was committed as {first} and again as {vlsn}");
            self.problems.push(problem);
        }
        let excused = self.history.excused(asked.span());
        for read in &asked.reads {
            if let Some(problem) = before.contradicts(read, &excused) {
                self.problems
                    .push(format!("transaction {id} at VLSN {vlsn}: {problem}"));
            }
        }
        self.writes(id, vlsn, logged, before);
        // A transaction whose fate is unknown may commit at any later time.
        let is_known = matches!(asked.fate, Fate::Committed { .. });
        if is_known && asked.ended < self.began_max.0 {
            self.problems.push(format!(
                "transaction {id} at VLSN {vlsn} had ended before transaction {} began, which has a lower VLSN",
                self.began_max.1
            ));
        }
        self.began_max = self.began_max.max((asked.began, id));
    }

    fn writes(&mut self, id: usize, vlsn: u64, logged: &LoggedTransaction, before: &Model) {
        let expected = Expected::new(&self.history.transactions[id], before);
        if let Err(what) = expected.compare(logged, before) {
            let problem = format!("transaction {id} at VLSN {vlsn} {what}");
            self.problems.push(problem);
        }
    }

    fn snapshot(&mut self, snapshot: &SnapshotRead, state: &Model) {
        let node = snapshot.node + 1;
        if let Some(floor) = snapshot.floor
            && snapshot.vlsn < floor
        {
            self.problems.push(format!(
                "a read on node {node} saw VLSN {}, and by its policy had to see {floor}",
                snapshot.vlsn
            ));
        }
        let excused = self.history.excused(snapshot.span());
        for read in &snapshot.reads {
            if let Some(problem) = state.contradicts(read, &excused) {
                let at = snapshot.vlsn;
                self.problems
                    .push(format!("snapshot of node {node} at VLSN {at}: {problem}"));
            }
        }
    }

    /// Checks what clients were told against the log; `newest_term` is the last master's.
    fn fates(&mut self, newest_term: u64) {
        for (id, asked) in self.history.transactions.iter().enumerate() {
            let found = self.found.get(&id);
            let problem = match (asked.fate, found) {
                (Fate::Committed { term, vlsn } | Fate::Local { term, vlsn }, Some(found))
                    if *found != (vlsn, term) =>
                {
                    format!(
                        "was acknowledged as {term}/{vlsn} and is {}/{}",
                        found.1, found.0
                    )
                }
                (Fate::Committed { term, vlsn }, None) => {
                    format!("was acknowledged as {term}/{vlsn} and is lost")
                }
                (Fate::Local { term, vlsn }, None) if term >= newest_term => {
                    format!(
                        "was acknowledged by the master as {term}/{vlsn} and is lost without a failover"
                    )
                }
                (Fate::NotCommitted, Some((vlsn, _))) => {
                    format!("was said not to be committed and is at VLSN {vlsn}")
                }
                (Fate::UnknownAs { term, vlsn }, Some(found)) if *found != (vlsn, term) => {
                    format!(
                        "was to be {term}/{vlsn} if anything and is {}/{}",
                        found.1, found.0
                    )
                }
                _ => continue,
            };
            self.problems.push(format!("transaction {id} {problem}"));
        }
    }

    /// Checks what nodes said of tokens.
    fn outcomes(&mut self) {
        for said in &self.history.outcomes {
            let found = self.found.get(&said.id).copied();
            let token = self.history.transactions[said.id].fate.token();
            let is_committed = found.is_some() && found == token.map(|(term, vlsn)| (vlsn, term));
            if is_committed != said.is_committed {
                self.problems.push(format!(
                    "node {} said of transaction {}, {token:?}, committed: {}; the log has it as {found:?}",
                    said.node + 1,
                    said.id,
                    said.is_committed
                ));
            }
        }
    }

    /// At most one master acknowledges in a term, where clients are answered by masters alone.
    fn terms(&mut self) {
        if self.history.anywhere {
            return;
        }
        let mut masters: BTreeMap<u64, usize> = BTreeMap::new();
        for (id, asked) in self.history.transactions.iter().enumerate() {
            if let Fate::Committed { term, .. } | Fate::Local { term, .. } = asked.fate {
                let master = *masters.entry(term).or_insert(asked.node);
                if master != asked.node {
                    self.problems.push(format!(
                        "nodes {} and {} both acknowledged in term {term}, the latter transaction {id}",
                        master + 1,
                        asked.node + 1
                    ));
                }
            }
        }
    }
}

/// The id a transaction assigns to a database it creates.
fn created(logged: &LoggedTransaction, name: &str) -> Option<u32> {
    let creates = |(database, key, value): &(u32, Bytes, Option<Bytes>)| {
        let value = value
            .as_ref()
            .filter(|_| *database == CATALOG && *key == *name.as_bytes())?;
        parse_database_id(value)
    };
    logged.operations.iter().find_map(creates)
}

/// Catalog key under which the name that received an id is kept.
fn given_key(id: u32) -> Bytes {
    Bytes::from([b"\0id", &id.to_be_bytes()[..]].concat())
}

fn parse_database_id(value: &Bytes) -> Option<u32> {
    value[..].try_into().ok().map(u32::from_le_bytes)
}

/// The value a transaction puts, if it is the only one outside the catalog.
fn only_value(logged: &LoggedTransaction) -> Option<Bytes> {
    let mut rows = logged.operations.iter().filter(|(id, ..)| *id != CATALOG);
    let (row, rest) = (rows.next(), rows.next());
    row.filter(|_| rest.is_none())?.2.clone()
}

/// Id of the transaction that wrote a value.
fn parse_value(value: &Bytes) -> Option<usize> {
    let id = value.split(|byte| *byte == b'.').next()?;
    std::str::from_utf8(id).ok()?.parse().ok()
}

/// The node id that a transaction assigns, if it assigns one.
fn given_node_id(logged: &LoggedTransaction) -> Option<u64> {
    let [(0, key, Some(id))] = &logged.operations[..] else {
        return None;
    };
    let id = <[u8; 8]>::try_from(&id[..]).ok()?;
    (key[..] == *b"\0node").then(|| u64::from_le_bytes(id))
}

/// Key of a transaction's mark.
pub fn marker(id: usize) -> Bytes {
    Bytes::from(format!("{id:08}"))
}

fn parse_id(key: &Bytes) -> Option<usize> {
    std::str::from_utf8(key).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_of_a_master_that_was_deposed_takes_the_place_of_no_committed_one() {
        let log = |terms: &[u64]| {
            let entry = |(at, term): (usize, &u64)| {
                let entry = LogEntry {
                    term: *term,
                    kind: 1,
                    payload: Bytes::new(),
                };
                (at as u64, entry)
            };
            Log {
                entries: terms.iter().enumerate().map(entry).collect(),
                purged: None,
                replaced: BTreeMap::new(),
            }
        };
        let (deposed, behind, newest) = (log(&[1, 3, 4]), log(&[1, 3, 3, 3]), log(&[1, 3, 3, 5]));
        let together = union([&deposed, &behind, &newest].into_iter());
        assert_eq!(together, newest.entries);
    }
}
