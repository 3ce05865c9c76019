//! What the nodes under load have answered, and what must hold of it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Number of accounts, and their total: each begins with 1000.
const ACCOUNTS: (u64, i64) = (100, 100_000);

/// Stream and number of a record: each record's number follows the last one of its stream, which
/// its transaction has read.
type Place = (u64, u64);

/// Everything that was answered.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    pub(super) nodes: Vec<Seen>,
    /// Lives that have ended: their last answers may not have been reported.
    pub(super) ended: HashSet<u64>,
    /// What must never have happened.
    pub(super) wrong: Vec<String>,
    acknowledged: HashMap<String, Place>,
    uncertain: HashSet<String>,
    refused: HashSet<String>,
    /// The last number of each stream that was acknowledged or read.
    newest: BTreeMap<u64, u64>,
    terms: BTreeMap<u64, TermSeen>,
    vlsns: HashSet<u64>,
}

/// One node, in its current life.
#[derive(Debug, Default)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a fact of its own that a node reports"
)]
pub(super) struct Seen {
    pub(super) is_ready: bool,
    pub(super) is_resting: bool,
    pub(super) has_told: bool,
    /// Set when it is about to be removed: then it may report that.
    pub(super) is_leaving: bool,
    pub(super) role: String,
    is_reading: bool,
    reads: usize,
    /// The minimum that the current read must find: what was known before it was requested.
    floor: BTreeMap<u64, u64>,
    rows: Vec<(Place, String)>,
}

/// When acknowledgements of a term came, and from which life.
#[derive(Debug)]
struct TermSeen {
    first: Instant,
    last: Instant,
    life: u64,
}

impl Ledger {
    /// Starts a life of a node.
    pub(super) fn begin(&mut self, (at, _): (usize, u64)) {
        while self.nodes.len() <= at {
            self.nodes.push(Seen::default());
        }
        let reads = self.nodes[at].reads;
        self.nodes[at] = Seen {
            reads,
            ..Seen::default()
        };
    }

    pub(super) fn begin_reads(&mut self, at: usize) {
        self.nodes[at].is_reading = true;
        self.nodes[at].floor = self.newest.clone();
    }

    pub(super) fn end_reads(&mut self, at: usize) {
        self.nodes[at].is_reading = false;
    }

    /// Number of acknowledged records, and of reads answered by each node.
    pub(super) fn counts(&self) -> (usize, Vec<usize>) {
        let reads = self.nodes.iter().map(|node| node.reads).collect();
        (self.acknowledged.len(), reads)
    }

    /// The newest term in which something was acknowledged.
    pub(super) fn term(&self) -> u64 {
        self.terms.keys().next_back().copied().unwrap_or_default()
    }

    /// Time from the last acknowledgement up to `term` to the first one after it.
    pub(super) fn gap(&self, term: u64) -> Duration {
        let before = self.terms.range(..=term).next_back().expect("acknowledged");
        let after = self.terms.range(term + 1..).next().expect("acknowledged");
        after.1.first.saturating_duration_since(before.1.last)
    }

    /// Takes a node's report; returns whether the node should read once more.
    pub(super) fn take(&mut self, (at, life): (usize, u64), report: &Value, now: Instant) -> bool {
        let (what, body) = match report {
            Value::String(what) => (what.as_str(), &Value::Null),
            Value::Object(one) => one
                .iter()
                .next()
                .map(|(k, v)| (k.as_str(), v))
                .expect("one"),
            _ => ("", report),
        };
        match what {
            "ready" => self.nodes[at].is_ready = true,
            "resting" => self.nodes[at].is_resting = true,
            "role" => self.nodes[at].role = text(&body["role"]),
            "appended" => {
                let id = text(&body["id"]);
                let (stream, number) = (stream_of(&id), whole(&body["number"]));
                self.acknowledge(life, body, now);
                let newest = self.newest.entry(stream).or_default();
                *newest = number.max(*newest);
                if self.acknowledged.insert(id, (stream, number)).is_some() {
                    self.wrong.push(format!("acknowledged twice: {body}"));
                }
            }
            "paid" => self.acknowledge(life, body, now),
            "uncertain" => drop(self.uncertain.insert(text(&body["id"]))),
            "refused" => drop(self.refused.insert(text(&body["id"]))),
            "read" => self.take_read(at, body),
            "unread" => {}
            "rows" => self.nodes[at].rows.extend(list(body).iter().map(|row| {
                let place = (whole(&row[0]), whole(&row[1]));
                (place, text(&row[2]))
            })),
            "told" => self.nodes[at].has_told = true,
            // A removed node may be asked for something before it knows.
            _ if self.nodes[at].is_leaving && body.to_string().contains("removed") => {}
            _ => self.wrong.push(format!("n{}: {report}", at + 1)),
        }
        let reads_on = matches!(what, "read" | "unread") && self.nodes[at].is_reading;
        if reads_on {
            self.begin_reads(at);
        }
        reads_on
    }

    fn acknowledge(&mut self, life: u64, body: &Value, now: Instant) {
        let (term, vlsn) = (whole(&body["term"]), whole(&body["vlsn"]));
        let (first, last) = (now, now);
        let of = self
            .terms
            .entry(term)
            .or_insert(TermSeen { first, last, life });
        of.last = now;
        if of.life != life {
            self.wrong.push(format!("two masters in term {term}"));
        }
        if !self.vlsns.insert(vlsn) {
            self.wrong.push(format!("VLSN {vlsn} was given twice"));
        }
    }

    /// A read must find everything acknowledged, or read by anyone, before it began.
    fn take_read(&mut self, at: usize, body: &Value) {
        let found = list(&body["numbers"]).iter();
        let found = found.map(|pair| (whole(&pair[0]), whole(&pair[1])));
        let found: BTreeMap<_, _> = found.collect();
        let node = &mut self.nodes[at];
        node.reads += 1;
        for (stream, floor) in &node.floor {
            if found.get(stream).is_none_or(|number| number < floor) {
                let what = format!("n{} read {found:?}, after {:?}", at + 1, node.floor);
                self.wrong.push(what);
                break;
            }
        }
        let accounts = (whole(&body["accounts"]), body["sum"].as_i64());
        if accounts != (0, Some(0)) && accounts != (ACCOUNTS.0, Some(ACCOUNTS.1)) {
            self.wrong.push(format!("n{} read {accounts:?}", at + 1));
        }
        for (stream, number) in found {
            let newest = self.newest.entry(stream).or_default();
            *newest = number.max(*newest);
        }
    }

    /// Checks everything a node has reported against what was acknowledged.
    pub(super) fn check_end(&mut self, at: usize) {
        let rows = std::mem::take(&mut self.nodes[at].rows);
        let mut held = HashMap::new();
        let mut last = BTreeMap::new();
        for ((stream, number), id) in rows {
            // No number was assigned twice or skipped.
            let before: u64 = last.insert(stream, number).unwrap_or_default();
            if number != before + 1 {
                let what = format!("stream {stream} has {number} after {before}");
                self.wrong.push(what);
            }
            let is_due = self.acknowledged.contains_key(&id) || self.uncertain.contains(&id);
            let life = id.split('-').next().and_then(|life| life.parse().ok());
            let is_untold = life.is_some_and(|life| self.ended.contains(&life));
            if self.refused.contains(&id) || !(is_due || is_untold) {
                self.wrong.push(format!("nobody has written {id}"));
            }
            if held.insert(id.clone(), (stream, number)).is_some() {
                self.wrong.push(format!("{id} is there twice"));
            }
        }
        for (id, place) in &self.acknowledged {
            if held.get(id) != Some(place) {
                let what = format!("{id} at {place:?} is lost: {:?}", held.get(id));
                self.wrong.push(what);
            }
        }
        for (stream, newest) in &self.newest {
            if last.get(stream).is_none_or(|last| last < newest) {
                self.wrong.push(format!("stream {stream} had {newest}"));
            }
        }
    }
}

/// A record's id consists of its life, its stream and its own number.
fn stream_of(id: &str) -> u64 {
    let stream = id.split('-').nth(1).and_then(|stream| stream.parse().ok());
    stream.expect("an id")
}

fn text(value: &Value) -> String {
    value.as_str().expect("a text").to_owned()
}

fn whole(value: &Value) -> u64 {
    value.as_u64().expect("a number")
}

fn list(value: &Value) -> &[Value] {
    value.as_array().expect("a list")
}
