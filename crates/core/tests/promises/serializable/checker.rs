//! Strict serializability of a whole history. Shares no code with the library.
//!
//! Every value is written once, so a read identifies the transaction it saw. The versions of a key
//! are ordered by their writers' VLSNs. The required order is then a graph:
//!
//! ```text
//!   writer ──ww──► writer of the next version      a writer ──wr──► reader of its version
//!   reader of a version ──rw──► writer of the next version
//!   ended ──► moment ──► moment ──► begun          one ended before another began
//! ```
//!
//! The history is strictly serializable if the graph has no cycle. Each key is also checked on its
//! own as a register, which shows more plainly what went wrong.

use std::collections::BTreeMap;

/// A key and its unique value; `None` means that nobody has written the key yet.
pub(crate) type Read = (u8, Option<u64>);

/// One transaction or snapshot that took effect, or whose outcome is unknown.
#[derive(Clone, Debug)]
pub(crate) struct Operation {
    /// Times from a clock that never shows the same time twice. `ended` is `None` if no client
    /// learned the outcome.
    pub(crate) begun: u64,
    pub(crate) ended: Option<u64>,
    pub(crate) reads: Vec<Read>,
    pub(crate) writes: Vec<(u8, u64)>,
    /// Set for one that writes.
    pub(crate) vlsn: Option<u64>,
}

/// Contradictions of strict serializability; empty if there are none.
pub(crate) fn check(history: &[Operation]) -> Vec<String> {
    let operations = took_effect(history);
    let versions = match Versions::of(&operations) {
        Ok(versions) => versions,
        Err(problems) => return problems,
    };
    let mut problems = registers(&operations, &versions);
    problems.extend(Graph::of(&operations, &versions).cycle());
    problems
}

/// The operations that happened: those whose end a client learned, and whatever these have seen.
/// Any other one may read what never came to be, and be lost along with it.
fn took_effect(history: &[Operation]) -> Vec<&Operation> {
    let mut happened: Vec<bool> = history.iter().map(|of| of.ended.is_some()).collect();
    let writers = history.iter().enumerate().flat_map(|(at, operation)| {
        let values = operation.writes.iter();
        values.map(move |(_, value)| (*value, at))
    });
    let writers: BTreeMap<u64, usize> = writers.collect();
    let mut todo: Vec<usize> = (0..history.len()).filter(|at| happened[*at]).collect();
    while let Some(at) = todo.pop() {
        let seen = history[at].reads.iter();
        for writer in seen.filter_map(|(_, value)| writers.get(value.as_ref()?)) {
            if !std::mem::replace(&mut happened[*writer], true) {
                todo.push(*writer);
            }
        }
    }
    let all = history.iter().zip(happened);
    all.filter_map(|(operation, happened)| happened.then_some(operation))
        .collect()
}

/// The writers of each key in VLSN order, by operation index.
struct Versions {
    writers: BTreeMap<u8, Vec<usize>>,
    /// Which version of its key a value is.
    by_value: BTreeMap<u64, (u8, usize)>,
}

impl Versions {
    fn of(operations: &[&Operation]) -> Result<Self, Vec<String>> {
        let mut ordered = BTreeMap::new();
        let mut problems = Vec::new();
        for (at, operation) in operations.iter().enumerate() {
            for (key, value) in &operation.writes {
                let place = (*key, operation.vlsn);
                if let Some((other, _)) = ordered.insert(place, (at, *value)) {
                    problems.push(format!("operations {other} and {at} both wrote {place:?}"));
                }
            }
        }
        let mut versions = Self {
            writers: BTreeMap::new(),
            by_value: BTreeMap::new(),
        };
        for ((key, _), (writer, value)) in ordered {
            let writers = versions.writers.entry(key).or_default();
            versions.by_value.insert(value, (key, writers.len()));
            writers.push(writer);
        }
        for (at, operation) in operations.iter().enumerate() {
            for (key, value) in &operation.reads {
                let is_known = |value| versions.by_value.get(value).is_some_and(|of| of.0 == *key);
                if value.as_ref().is_some_and(|value| !is_known(value)) {
                    problems.push(format!("operation {at} read {value:?}, which nobody wrote"));
                }
            }
        }
        if problems.is_empty() {
            Ok(versions)
        } else {
            Err(problems)
        }
    }

    /// How many versions the key had when this one was the newest.
    fn number(&self, value: Option<u64>) -> usize {
        value.map_or(0, |value| self.by_value[&value].1 + 1)
    }

    fn writer(&self, key: u8, number: usize) -> Option<usize> {
        let writers = self.writers.get(&key)?;
        writers.get(number.checked_sub(1)?).copied()
    }
}

/// Begin, end, version number, and index of the reading operation.
type ReadOfKey = (u64, Option<u64>, usize, usize);

/// Checks each key as a register: no read returns what was overwritten before it began, what was
/// written after it ended, or an older version than one read before it began.
fn registers(operations: &[&Operation], versions: &Versions) -> Vec<String> {
    let mut problems = Vec::new();
    let mut reads: BTreeMap<u8, Vec<ReadOfKey>> = BTreeMap::new();
    for (at, operation) in operations.iter().enumerate() {
        for (key, value) in &operation.reads {
            let number = versions.number(*value);
            let next = versions.writer(*key, number + 1);
            let overwritten = next.and_then(|writer| operations[writer].ended);
            if next != Some(at) && overwritten.is_some_and(|ended| ended < operation.begun) {
                problems.push(format!(
                    "operation {at} read version {number} of key {key}, overwritten before it began"
                ));
            }
            let written = versions.writer(*key, number);
            let begun = written.map_or(0, |writer| operations[writer].begun);
            if operation.ended.is_some_and(|ended| ended < begun) {
                problems.push(format!(
                    "operation {at} read version {number} of key {key} before it was written"
                ));
            }
            let of_key = reads.entry(*key).or_default();
            of_key.push((operation.begun, operation.ended, number, at));
        }
    }
    for (key, mut reads) in reads {
        reads.sort_unstable();
        let mut ended: Vec<_> = reads
            .iter()
            .filter_map(|read| Some((read.1?, read.2)))
            .collect();
        ended.sort_unstable();
        let (mut newest, mut next) = (0, 0);
        for (begun, _, number, at) in reads {
            while let Some((_, seen)) = ended.get(next).filter(|(end, _)| *end < begun) {
                newest = newest.max(*seen);
                next += 1;
            }
            if number < newest {
                problems.push(format!(
                    "operation {at} read version {number} of key {key}, and {newest} had been read"
                ));
            }
        }
    }
    problems
}

/// What must precede what: operations first, then moments.
struct Graph {
    after: Vec<Vec<usize>>,
    operations: usize,
}

impl Graph {
    fn of(operations: &[&Operation], versions: &Versions) -> Self {
        let mut moments: Vec<u64> = operations.iter().filter_map(|of| of.ended).collect();
        moments.sort_unstable();
        let count = operations.len();
        let mut graph = Self {
            after: vec![Vec::new(); count + moments.len()],
            operations: count,
        };
        for moment in 1..moments.len() {
            graph.edge(count + moment - 1, count + moment);
        }
        for (at, operation) in operations.iter().enumerate() {
            let moment = |of: u64| moments.partition_point(|moment| *moment < of);
            if let Some(ended) = operation.ended {
                graph.edge(at, count + moment(ended));
            }
            if let Some(before) = moment(operation.begun).checked_sub(1) {
                graph.edge(count + before, at);
            }
            for (key, value) in &operation.reads {
                let number = versions.number(*value);
                for (from, to) in [
                    (versions.writer(*key, number), Some(at)),
                    (Some(at), versions.writer(*key, number + 1)),
                ] {
                    if let (Some(from), Some(to)) = (from, to) {
                        graph.edge(from, to);
                    }
                }
            }
        }
        for writers in versions.writers.values() {
            for pair in writers.windows(2) {
                graph.edge(pair[0], pair[1]);
            }
        }
        graph
    }

    /// A transaction may read the version that it overwrites.
    fn edge(&mut self, from: usize, to: usize) {
        if from != to {
            self.after[from].push(to);
        }
    }

    /// What remains after repeatedly removing everything that nothing remaining precedes.
    fn cycle(&self) -> Option<String> {
        let mut before = vec![0_usize; self.after.len()];
        for to in self.after.iter().flatten() {
            before[*to] += 1;
        }
        let mut free: Vec<usize> = (0..before.len()).filter(|at| before[*at] == 0).collect();
        while let Some(at) = free.pop() {
            for to in &self.after[at] {
                before[*to] -= 1;
                if before[*to] == 0 {
                    free.push(*to);
                }
            }
        }
        let left: Vec<_> = (0..self.operations).filter(|at| before[*at] > 0).collect();
        let some = &left[..left.len().min(10)];
        (!left.is_empty()).then(|| format!("no order explains {some:?}, of {} in all", left.len()))
    }
}
