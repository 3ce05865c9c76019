//! What happened, as readable text and as one hash: the same seed must tell the same story.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard};

use steadfast_net::lock;

use tokio::time::Instant;
use xxhash_rust::xxh3::Xxh3;

/// Transcript and trace of a run. Clones refer to the same story.
#[derive(Clone)]
pub struct Story(Arc<Mutex<Inner>>);

struct Inner {
    started: Instant,
    trace: Box<Xxh3>,
    events: u64,
    /// Readable lines; `None` unless requested.
    told: Option<String>,
    /// Every traced event as a line, to find where two runs diverge.
    dump: Option<String>,
    violations: Vec<String>,
    counts: BTreeMap<&'static str, u64>,
}

impl Story {
    /// Starts a story now. `told` keeps its readable lines, `dump` its whole trace.
    pub fn new(told: bool, dump: bool) -> Self {
        Self(Arc::new(Mutex::new(Inner {
            started: Instant::now(),
            trace: Box::new(Xxh3::new()),
            events: 0,
            told: told.then(String::new),
            dump: dump.then(String::new),
            violations: Vec::new(),
            counts: BTreeMap::new(),
        })))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        lock(&self.0)
    }

    /// Virtual time since the start, in microseconds.
    pub fn now_us(&self) -> u64 {
        u64::try_from(self.inner().started.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// Adds a readable line, which is part of the trace too.
    pub fn tell(&self, line: impl FnOnce() -> String) {
        let mut inner = self.inner();
        let line = line();
        let at = inner.started.elapsed();
        inner.trace(&[line.as_bytes()]);
        if let Some(told) = &mut inner.told {
            let (s, us) = (at.as_secs(), at.subsec_micros());
            writeln!(told, "{s:>4}.{us:06}  {line}").unwrap_or_default();
        }
    }

    /// Adds to the trace only.
    pub fn trace(&self, parts: &[&[u8]]) {
        self.inner().trace(parts);
    }

    /// Counts a fault that fired.
    pub fn count(&self, fault: &'static str) {
        *self.inner().counts.entry(fault).or_default() += 1;
    }

    /// Records a violated invariant.
    pub fn violation(&self, what: impl Into<String>) {
        let what = what.into();
        self.tell(|| format!("VIOLATION: {what}"));
        self.inner().violations.push(what);
    }

    /// The violations so far.
    pub fn violations(&self) -> Vec<String> {
        self.inner().violations.clone()
    }

    /// Counts of the faults that fired.
    pub fn counts(&self) -> BTreeMap<&'static str, u64> {
        self.inner().counts.clone()
    }

    /// Hash of everything so far.
    pub fn hash(&self) -> u64 {
        self.inner().trace.digest()
    }

    /// The lines so far.
    pub fn told(&self) -> String {
        self.inner().told.clone().unwrap_or_default()
    }

    /// The traced events so far.
    pub fn dump(&self) -> String {
        self.inner().dump.clone().unwrap_or_default()
    }
}

impl Inner {
    fn trace(&mut self, parts: &[&[u8]]) {
        let at = u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.events += 1;
        self.trace.update(&at.to_le_bytes());
        for part in parts {
            self.trace.update(&part.len().to_le_bytes());
            self.trace.update(part);
        }
        if let Some(dump) = &mut self.dump {
            let digest = self.trace.digest();
            let mut line = format!("{} {at} {digest:016x}", self.events);
            for part in parts {
                let text = String::from_utf8_lossy(&part[..part.len().min(80)]);
                write!(line, " {}", text.escape_debug()).unwrap_or_default();
            }
            writeln!(dump, "{line}").unwrap_or_default();
        }
    }
}
