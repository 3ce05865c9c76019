//! What was acknowledged, recorded outside the nodes, and the properties that must hold of it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use tokio::time::Instant;

use steadfast::plural;

use super::follower::Told;
use super::protocol::{ACCOUNT_COUNT, ACCOUNT_START, Row};

/// Violations of one kind that are spelled out; the rest are counted.
const EXAMPLES_MAX: usize = 5;

/// A process of the demo: node and life.
pub(super) type Process = (usize, u64);

/// Everything that the nodes have acknowledged, refused, or left uncertain.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// Id of each acknowledged record, with its VLSN.
    appended: HashMap<String, u64>,
    uncertain: HashSet<String>,
    refused: HashSet<String>,
    /// Term and VLSN of every acknowledged transaction.
    vlsns: BTreeMap<u64, u64>,
    /// Who acknowledged in each term. A master that was killed and restarted counts as another one:
    /// it no longer knows what it sent, so it must not continue a term of its former life.
    masters: BTreeMap<u64, HashSet<Process>>,
    payments: u64,
    /// When the first and the last acknowledgement of each term arrived.
    times: BTreeMap<u64, (Instant, Instant)>,
    violations: Vec<String>,
}

/// Everything that one node holds in the end.
#[derive(Debug, Default)]
pub(super) struct Holding {
    pub(super) rows: Vec<Row>,
    pub(super) vlsn: u64,
    pub(super) accounts: u32,
    pub(super) sum: i64,
    pub(super) digest: String,
    pub(super) digest_vlsn: u64,
}

impl Ledger {
    /// Acknowledged records.
    pub(super) fn appended(&self) -> usize {
        self.appended.len()
    }

    /// Acknowledged payments.
    pub(super) fn payments(&self) -> u64 {
        self.payments
    }

    /// Records whose outcome is unknown.
    pub(super) fn uncertain(&self) -> usize {
        self.uncertain.len()
    }

    /// The newest term in which something was acknowledged.
    pub(super) fn term(&self) -> u64 {
        self.masters.keys().next_back().copied().unwrap_or(0)
    }

    /// The newest acknowledged transaction.
    pub(super) fn vlsn(&self) -> u64 {
        self.vlsns.keys().next_back().copied().unwrap_or(0)
    }

    /// Records something that must never happen.
    pub(super) fn violation(&mut self, what: String) {
        self.violations.push(what);
    }

    pub(super) fn violations(&self) -> &[String] {
        &self.violations
    }

    pub(super) fn add_record(&mut self, process: Process, id: &str, term: u64, vlsn: u64) {
        self.acknowledge(process, term, vlsn);
        if let Some(before) = self.appended.insert(id.to_owned(), vlsn) {
            let what = format!("record {id} was acknowledged as {before} and as {vlsn}");
            self.violation(what);
        }
    }

    pub(super) fn add_payment(&mut self, process: Process, term: u64, vlsn: u64) {
        self.acknowledge(process, term, vlsn);
        self.payments += 1;
    }

    pub(super) fn add_uncertain(&mut self, id: String) {
        self.uncertain.insert(id);
    }

    pub(super) fn add_refused(&mut self, id: String) {
        self.refused.insert(id);
    }

    /// Records when an acknowledgement was seen.
    pub(super) fn note_time(&mut self, term: u64, at: Instant) {
        let (_, last) = self.times.entry(term).or_insert((at, at));
        *last = at;
    }

    /// From the last acknowledgement up to `term` to the first one after it; zero if both arrived
    /// in the same moment, and `None` while there is none after it.
    pub(super) fn gap_after(&self, term: u64) -> Option<Duration> {
        let (_, (_, last)) = self.times.range(..=term).next_back()?;
        let (_, (first, _)) = self.times.range(term + 1..).next()?;
        Some(first.saturating_duration_since(*last))
    }

    fn acknowledge(&mut self, process: Process, term: u64, vlsn: u64) {
        let masters = self.masters.entry(term).or_default();
        if masters.insert(process) && masters.len() > 1 {
            let what = format!("term {term} has several masters (node, life): {masters:?}");
            self.violation(what);
        }
        if let Some(before) = self.vlsns.insert(vlsn, term) {
            let what = format!("vlsn {vlsn} was acknowledged twice, in terms {before} and {term}");
            self.violation(what);
        }
    }

    /// Checks what a node holds; returns how many acknowledged records it lacks.
    pub(super) fn check(&mut self, node: &str, holding: &Holding) -> usize {
        let mut wrong = Vec::new();
        let mut seen = HashSet::new();
        let mut next = BTreeMap::new();
        for (stream, number, id) in &holding.rows {
            let expected: &mut u64 = next.entry(*stream).or_insert(1);
            if number != expected {
                wrong.push(format!(
                    "stream {stream} has number {number} where {expected} is expected"
                ));
            }
            *expected = number + 1;
            if !seen.insert(id.as_str()) {
                wrong.push(format!("record {id} is there twice"));
            }
            if self.refused.contains(id) {
                wrong.push(format!(
                    "record {id} is there although its write was refused"
                ));
            }
            if id.split('-').nth(1) != Some(stream.to_string().as_str()) {
                wrong.push(format!(
                    "record {id:?} is in stream {stream}, where nobody wrote it"
                ));
            }
        }
        let missing: Vec<_> = self
            .appended
            .iter()
            .filter(|(id, _)| !seen.contains(id.as_str()))
            .map(|(id, vlsn)| format!("acknowledged record {id} (vlsn {vlsn}) is lost"))
            .collect();
        let lost = missing.len();
        wrong.extend(missing);
        let (accounts, sum) = (ACCOUNT_COUNT, i64::from(ACCOUNT_COUNT) * ACCOUNT_START);
        let has_accounts = holding.accounts > 0 || self.payments > 0;
        if has_accounts && (holding.accounts, holding.sum) != (accounts, sum) {
            wrong.push(format!(
                "{} {} {}, where {accounts} should hold {sum}",
                holding.accounts,
                plural(holding.accounts, "account holds", "accounts hold"),
                holding.sum
            ));
        }
        if holding.digest_vlsn != holding.vlsn {
            wrong.push("the state changed while it was reported".to_owned());
        }
        let more = wrong.len().saturating_sub(EXAMPLES_MAX);
        wrong.truncate(EXAMPLES_MAX);
        if more > 0 {
            wrong.push(format!("and {more} more like these"));
        }
        self.violations
            .extend(wrong.into_iter().map(|what| format!("{node}: {what}")));
        lost
    }

    /// Checks that a subscriber received everything that was acknowledged, as it was.
    pub(super) fn check_told(&mut self, told: &Told) {
        let mut wrong = told.violations.clone();
        for (id, vlsn) in &self.appended {
            let at = told.record(id);
            if at != Some(*vlsn) {
                wrong.push(format!("record {id} (vlsn {vlsn}) was received at {at:?}"));
            }
        }
        for (vlsn, term) in &self.vlsns {
            let of = told.term(*vlsn);
            if of != Some(*term) {
                wrong.push(format!(
                    "vlsn {vlsn} of term {term} was received with term {of:?}"
                ));
            }
        }
        self.refused.iter().for_each(|id| {
            if told.record(id).is_some() {
                wrong.push(format!(
                    "record {id} was received although its write was refused"
                ));
            }
        });
        wrong.truncate(EXAMPLES_MAX);
        let named = wrong.into_iter().map(|what| format!("subscriber: {what}"));
        self.violations.extend(named);
    }

    /// Checks that the nodes hold the same data, and that terms are ordered as VLSNs are.
    pub(super) fn check_together(&mut self, holdings: &[Holding]) {
        let states: HashSet<_> = holdings
            .iter()
            .map(|holding| (holding.vlsn, &holding.digest))
            .collect();
        if states.len() > 1 {
            self.violation(format!("the nodes differ: {states:?}"));
        }
        let pairs = self.vlsns.iter().zip(self.vlsns.iter().skip(1));
        let backwards = pairs.filter(|((_, before), (_, after))| before > after);
        let found: Vec<_> = backwards
            .map(|((a, before), (b, after))| {
                format!("vlsn {a} is of term {before}, the later {b} of the older term {after}")
            })
            .take(EXAMPLES_MAX)
            .collect();
        self.violations.extend(found);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holding(rows: &[(u32, u64, &str)]) -> Holding {
        Holding {
            rows: rows
                .iter()
                .map(|(s, n, id)| (*s, *n, (*id).to_owned()))
                .collect(),
            ..Holding::default()
        }
    }

    fn ledger() -> Ledger {
        let mut ledger = Ledger::default();
        ledger.add_record((0, 1), "1-0-1", 1, 1);
        ledger.add_record((0, 1), "1-0-2", 1, 2);
        ledger.add_refused("1-0-3".to_owned());
        ledger
    }

    #[test]
    fn a_whole_journal_with_an_uncertain_record_is_right() {
        let mut ledger = ledger();
        ledger.add_uncertain("1-0-4".to_owned());
        let rows = [(0, 1, "1-0-1"), (0, 2, "1-0-2"), (0, 3, "1-0-4")];
        assert_eq!(ledger.check("n1", &holding(&rows)), 0);
        assert_eq!(ledger.violations(), &[] as &[String]);
    }

    #[test]
    fn every_kind_of_damage_is_found() {
        for (rows, lost) in [
            (vec![(0, 1, "1-0-1")], 1),
            (vec![(0, 1, "1-0-1"), (0, 3, "1-0-2")], 0),
            (vec![(0, 1, "1-0-1"), (0, 2, "1-0-2"), (0, 3, "1-0-2")], 0),
            (vec![(0, 1, "1-0-1"), (0, 2, "1-0-2"), (0, 3, "1-0-3")], 0),
            (vec![(0, 1, "1-0-1"), (0, 2, "1-0-2"), (1, 1, "1-0-9")], 0),
        ] {
            let mut ledger = ledger();
            assert_eq!(ledger.check("n1", &holding(&rows)), lost, "{rows:?}");
            assert_eq!(ledger.violations().len(), 1, "{rows:?}");
        }
    }

    #[test]
    fn two_masters_in_one_term_and_a_vlsn_given_twice_are_found() {
        let mut ledger = ledger();
        ledger.add_payment((1, 2), 1, 3);
        assert_eq!(ledger.violations().len(), 1);
        ledger.add_payment((1, 2), 2, 2);
        assert_eq!(ledger.violations().len(), 2);
        ledger.add_payment((1, 2), 2, 4);
        ledger.add_payment((0, 1), 1, 5);
        ledger.check_together(&[
            holding(&[]),
            Holding {
                vlsn: 1,
                ..Holding::default()
            },
        ]);
        // The nodes differ, and twice a term goes back.
        assert_eq!(ledger.violations().len(), 5);
    }
}
