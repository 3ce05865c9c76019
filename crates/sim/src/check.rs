//! The checkers. They take the committed log for the order of everything and hold what clients
//! saw against it.

mod feeds;

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::history::{Fate, History, MARKERS, Read, SnapshotRead};
use crate::logfile::{LogEntry, LoggedTransaction};

pub use feeds::feeds;

/// Id of the database that maps names to ids.
const CATALOG: u32 = 0;

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
        let id = self.databases.get(&CATALOG)?.get(name.as_bytes())?;
        id[..].try_into().ok().map(u32::from_le_bytes)
    }

    /// Names of all databases, sorted.
    fn names(&self) -> Vec<String> {
        let catalog = self.databases.get(&CATALOG).into_iter().flatten();
        let names = catalog.filter_map(|(key, _)| String::from_utf8(key.to_vec()).ok());
        names.filter(|name| !name.starts_with('\0')).collect()
    }

    fn keys(&self, name: &str) -> Option<&BTreeMap<Bytes, Bytes>> {
        self.databases.get(&self.id(name)?)
    }

    /// What the read should have seen, when it saw something else.
    fn contradicts(&self, read: &Read) -> Option<String> {
        match read {
            Read::Get {
                database,
                key,
                value,
            } => {
                let there = self.keys(database).and_then(|keys| keys.get(key));
                (there != value.as_ref()).then(|| {
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
                let pair = |(key, value): (&Bytes, &Bytes)| (key.clone(), value.clone());
                let there: Vec<_> = match self.keys(database) {
                    None => Vec::new(),
                    Some(keys) => {
                        let range = keys.range(from.clone()..to.clone());
                        if *reverse {
                            range.rev().take(*limit).map(pair).collect()
                        } else {
                            range.take(*limit).map(pair).collect()
                        }
                    }
                };
                (there != *pairs).then(|| {
                    let names =
                        |pairs: &[(Bytes, Bytes)]| -> Vec<_> { pairs.iter().map(|(key, value)| format!("{}={}", text(key), short(Some(value)))).collect() };
                    format!(
                        "{database}/{}..{} (reverse {reverse}, limit {limit}) was {:?}, read as {:?}",
                        text(from),
                        text(to),
                        names(&there),
                        names(pairs)
                    )
                })
            }
        }
    }
}

fn text(bytes: &Bytes) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(24)]).into_owned()
}

fn short(value: Option<&Bytes>) -> String {
    value.map_or_else(|| "nothing".into(), |value| format!("{:?}", text(value)))
}

/// Committed logs are equal as far as both go.
pub fn logs_agree(logs: &[(String, BTreeMap<u64, LogEntry>)], committed: u64) -> Vec<String> {
    let mut problems = Vec::new();
    let Some((first_name, first)) = logs.first() else {
        return problems;
    };
    for (name, log) in &logs[1..] {
        let ours = first.range(..=committed);
        let theirs = log.range(..=committed);
        if ours.clone().eq(theirs.clone()) {
            continue;
        }
        let differs = ours
            .clone()
            .map(|(position, _)| *position)
            .chain(theirs.map(|(position, _)| *position))
            .filter(|position| first.get(position) != log.get(position))
            .min();
        problems.push(format!(
            "the committed logs of {first_name} and {name} differ at position {differs:?}"
        ));
    }
    problems
}

/// Holds the whole history against the committed transactions, which are `log`, by VLSN.
pub fn history(history: &History, log: &BTreeMap<u64, LoggedTransaction>) -> Vec<String> {
    let mut checker = Checker {
        history,
        found: BTreeMap::new(),
        began_max: (0, 0),
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
    checker.fates();
    checker.terms();
    checker.problems
}

struct Checker<'a> {
    history: &'a History,
    /// VLSN and term of each transaction that the log has, by id.
    found: BTreeMap<usize, (u64, u64)>,
    /// The latest beginning among the transactions so far, and whose it is.
    began_max: (u64, usize),
    problems: Vec<String>,
}

impl Checker<'_> {
    /// One transaction of the log, on the state before it.
    fn transaction(&mut self, vlsn: u64, logged: &LoggedTransaction, before: &Model) {
        let marker = before.id(MARKERS).or_else(|| created(logged, MARKERS));
        let mark = |(database, key, _): &(u32, Bytes, Option<Bytes>)| {
            (Some(*database) == marker).then(|| key.clone())
        };
        let Some(id) = logged
            .operations
            .iter()
            .find_map(mark)
            .and_then(|key| parse_id(&key))
        else {
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
        for read in &asked.reads {
            if let Some(problem) = before.contradicts(read) {
                self.problems
                    .push(format!("transaction {id} at VLSN {vlsn}: {problem}"));
            }
        }
        self.writes(id, vlsn, logged, before);
        // One whose fate is unknown may be committed at any later time.
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
        let asked = &self.history.transactions[id];
        // What is deleted from a database that is not there yet leaves nothing in the log.
        let is_idle = |database: &str, value: &Option<Bytes>| {
            before.id(database).is_none() && value.is_none()
        };
        let id_of = |database: &str| before.id(database).or_else(|| created(logged, database));
        let mut expected = BTreeMap::new();
        for (database, key, value) in &asked.writes {
            if !is_idle(database, value) {
                expected.insert((id_of(database), key.clone()), value.clone());
            }
        }
        let idle: Vec<_> = asked
            .writes
            .iter()
            .filter(|(database, _, value)| is_idle(database, value))
            .map(|(database, key, _)| (id_of(database), key.clone()))
            .collect();
        let mut logged: BTreeMap<_, _> = logged
            .operations
            .iter()
            .filter(|(database, ..)| *database != CATALOG)
            .map(|(database, key, value)| ((Some(*database), key.clone()), value.clone()))
            .collect();
        for place in idle {
            for side in [&mut expected, &mut logged] {
                // Also where a put of the same key came before or after it.
                side.remove(&place);
            }
        }
        if logged != expected {
            let problem =
                format!("transaction {id} at VLSN {vlsn} wrote other things than it was asked to");
            self.problems.push(problem);
        }
    }

    fn snapshot(&mut self, snapshot: &SnapshotRead, state: &Model) {
        let node = snapshot.node + 1;
        if let Some(floor) = snapshot.floor
            && snapshot.vlsn < floor
        {
            self.problems.push(format!(
                "a linearizable read on node {node} saw VLSN {}, and {floor} had been acknowledged before it began",
                snapshot.vlsn
            ));
        }
        for read in &snapshot.reads {
            if let Some(problem) = state.contradicts(read) {
                let at = snapshot.vlsn;
                self.problems
                    .push(format!("snapshot of node {node} at VLSN {at}: {problem}"));
            }
        }
    }

    /// What clients were told, against what there is.
    fn fates(&mut self) {
        for (id, asked) in self.history.transactions.iter().enumerate() {
            let found = self.found.get(&id);
            let problem = match (asked.fate, found) {
                (Fate::Committed { term, vlsn }, Some(found)) if *found != (vlsn, term) => {
                    format!(
                        "was acknowledged as {term}/{vlsn} and is {}/{}",
                        found.1, found.0
                    )
                }
                (Fate::Committed { term, vlsn }, None) => {
                    format!("was acknowledged as {term}/{vlsn} and is lost")
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

    /// One master acknowledges in a term.
    fn terms(&mut self) {
        let mut masters: BTreeMap<u64, usize> = BTreeMap::new();
        for (id, asked) in self.history.transactions.iter().enumerate() {
            if let Fate::Committed { term, .. } = asked.fate {
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

/// The id that a transaction gives to a database which it creates.
fn created(logged: &LoggedTransaction, name: &str) -> Option<u32> {
    let creates = |(database, key, value): &(u32, Bytes, Option<Bytes>)| {
        let value = value
            .as_ref()
            .filter(|_| *database == CATALOG && *key == *name.as_bytes())?;
        value[..].try_into().ok().map(u32::from_le_bytes)
    };
    logged.operations.iter().find_map(creates)
}

/// Key of a transaction's mark.
pub fn marker(id: usize) -> Bytes {
    Bytes::from(format!("{id:08}"))
}

fn parse_id(key: &Bytes) -> Option<usize> {
    std::str::from_utf8(key).ok()?.parse().ok()
}
