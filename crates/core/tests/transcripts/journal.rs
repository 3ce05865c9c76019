//! What happens, line by line.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use steadfast_net::lock;

/// A group without news for so long has nothing more to say until something is done to it. Longer
/// than a heartbeat or a step of a join; elections that wait for timers have a command of their own.
const QUIET: Duration = Duration::from_millis(500);
/// How often a group may have news within [`QUIET`] after one command.
const ROUNDS_MAX: usize = 30;
/// Lines that are shown when it has more.
const LINES_SHOWN: usize = 40;

/// What happened since the last command. Clones share it.
#[derive(Clone, Default)]
pub(crate) struct Journal(Arc<Mutex<Vec<Event>>>);

/// One line: the same, done by several nodes or to several nodes.
struct Event {
    by: BTreeSet<String>,
    to: BTreeSet<String>,
    what: String,
}

impl Journal {
    /// A node has done something.
    pub(crate) fn say(&self, by: &str, what: String) {
        self.add([by.to_owned()].into(), BTreeSet::new(), what);
    }

    /// A node has sent something to another.
    pub(crate) fn say_to(&self, by: &str, to: &str, what: String) {
        self.add([by.to_owned()].into(), [to.to_owned()].into(), what);
    }

    fn add(&self, by: BTreeSet<String>, to: BTreeSet<String>, what: String) {
        let mut events = lock(&self.0);
        match events.last_mut() {
            Some(last) if last.what == what && last.by == by && last.to.is_disjoint(&to) => {
                last.to.extend(to);
            }
            Some(last) if last.what == what && last.to == to && last.by.is_disjoint(&by) => {
                last.by.extend(by);
            }
            _ => events.push(Event { by, to, what }),
        }
    }

    /// Waits until nothing new happens, and takes what has.
    pub(crate) async fn settle(&self) -> Vec<String> {
        for _ in 0..ROUNDS_MAX {
            let before = lock(&self.0).len();
            tokio::time::sleep(QUIET).await;
            let mut events = lock(&self.0);
            if events.len() == before {
                return events.drain(..).map(|event| event.to_string()).collect();
            }
        }
        let events = lock(&self.0);
        let last = events[events.len().saturating_sub(LINES_SHOWN)..].iter();
        let last: Vec<_> = last.map(Event::to_string).collect();
        panic!("the group does not become quiet:\n{}", last.join("\n"));
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = |names: &BTreeSet<String>| {
            let names: Vec<_> = names.iter().map(String::as_str).collect();
            names.join(", ")
        };
        f.write_str(&names(&self.by))?;
        if !self.to.is_empty() {
            write!(f, " -> {}", names(&self.to))?;
        }
        write!(f, " {}", self.what)
    }
}
