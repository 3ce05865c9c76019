//! What was asked of a group: who changed it, when, and from where.

use std::collections::VecDeque;
use std::fmt;

use prost::Message;
use serde::{Deserialize, Serialize};

use crate::ids::Term;

/// How many a master remembers, for watchers that come late.
const KEPT_MAX: usize = 64;

/// The most characters that are kept of a text.
const TEXT_MAX: usize = 300;

/// A change that somebody asked for, and what became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupChange {
    /// The term of the master that answered.
    pub term: Term,
    /// Counts the changes that this master was asked for since it was opened, from 1 on.
    pub number: u64,
    /// When it answered, in milliseconds since 1970 by its clock.
    pub at_ms: u64,
    /// Whom the certificate of the caller names; `None` in a group without credentials.
    pub by: Option<String>,
    /// The address from which the caller connected.
    pub from: String,
    /// What the caller wanted.
    pub asked: String,
    /// What was done, or why it was not.
    pub what: String,
    /// Whether it was done.
    pub is_done: bool,
}

impl fmt::Display for GroupChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let by = self.by.as_deref().unwrap_or("somebody without credentials");
        let verdict = if self.is_done { "" } else { "refused: " };
        let Self {
            asked, what, from, ..
        } = self;
        write!(f, "{verdict}{what} ({by} at {from} asked {asked})")
    }
}

/// One on the wire.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct ChangeMessage {
    #[prost(uint64, tag = "1")]
    term: u64,
    #[prost(uint64, tag = "2")]
    number: u64,
    #[prost(uint64, tag = "3")]
    at_ms: u64,
    #[prost(string, optional, tag = "4")]
    by: Option<String>,
    #[prost(string, tag = "5")]
    from: String,
    #[prost(string, tag = "6")]
    what: String,
    #[prost(bool, tag = "7")]
    is_done: bool,
    #[prost(string, tag = "8")]
    asked: String,
}

impl From<GroupChange> for ChangeMessage {
    fn from(change: GroupChange) -> Self {
        let GroupChange {
            term,
            number,
            at_ms,
            by,
            from,
            asked,
            what,
            is_done,
        } = change;
        Self {
            term: term.0,
            number,
            at_ms,
            by,
            from,
            asked,
            what,
            is_done,
        }
    }
}

impl From<ChangeMessage> for GroupChange {
    fn from(message: ChangeMessage) -> Self {
        let ChangeMessage {
            term,
            number,
            at_ms,
            by,
            from,
            asked,
            what,
            is_done,
        } = message;
        Self {
            term: Term(term),
            number,
            at_ms,
            by,
            from,
            asked,
            what,
            is_done,
        }
    }
}

/// The changes that a node was asked for as master, the oldest first.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    newest: u64,
    kept: VecDeque<GroupChange>,
}

impl Changes {
    /// Adds one, and numbers it. What callers have sent may be long, and is shown to others.
    pub(crate) fn add(&mut self, change: GroupChange) {
        self.newest += 1;
        self.kept.push_back(GroupChange {
            number: self.newest,
            asked: printable(&change.asked),
            what: printable(&change.what),
            ..change
        });
        if self.kept.len() > KEPT_MAX {
            self.kept.pop_front();
        }
    }

    /// Those with a greater number than this one.
    pub(crate) fn after(&self, number: u64) -> impl Iterator<Item = &GroupChange> {
        self.kept
            .iter()
            .filter(move |change| change.number > number)
    }
}

/// The beginning of a text, without characters that a terminal obeys.
fn printable(text: &str) -> String {
    let escaped = text.chars().take(TEXT_MAX).flat_map(|c| {
        let is_plain = !c.is_control();
        let plain = is_plain.then_some(c);
        let escaped = (!is_plain).then(|| c.escape_default());
        plain.into_iter().chain(escaped.into_iter().flatten())
    });
    escaped.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(what: &str) -> GroupChange {
        GroupChange {
            term: Term(3),
            number: 0,
            at_ms: 7,
            by: Some("steadfast://g/admin/alice".to_owned()),
            from: "10.0.0.9:5000".to_owned(),
            asked: "to remove it".to_owned(),
            what: what.to_owned(),
            is_done: true,
        }
    }

    #[test]
    fn the_newest_changes_are_kept_and_numbered() {
        let mut changes = Changes::default();
        for number in 1..=100 {
            changes.add(change(&number.to_string()));
        }
        let numbers: Vec<_> = changes.after(0).map(|change| change.number).collect();
        assert_eq!(numbers, (37..=100).collect::<Vec<_>>());
        assert_eq!(changes.after(99).count(), 1);
        assert_eq!(changes.after(100).count(), 0);
    }

    #[test]
    fn what_a_caller_sends_is_kept_short_and_without_control_characters() {
        let mut changes = Changes::default();
        changes.add(GroupChange {
            asked: "x".repeat(1_000_000),
            ..change("no member is called \"n\u{1b}[2J\n\"")
        });
        let kept = changes.after(0).next().expect("it is kept");
        assert_eq!(kept.asked.len(), TEXT_MAX);
        assert_eq!(kept.what, "no member is called \"n\\u{1b}[2J\\n\"");
    }

    #[test]
    fn a_change_survives_the_wire_and_says_who_asked() {
        let refused = GroupChange {
            is_done: false,
            ..change("n9 is not a member")
        };
        for change in [change("n2 was removed"), refused.clone()] {
            let message = ChangeMessage::from(change.clone());
            assert_eq!(GroupChange::from(message), change);
        }
        assert_eq!(
            refused.to_string(),
            "refused: n9 is not a member (steadfast://g/admin/alice at 10.0.0.9:5000 asked to remove it)"
        );
    }
}
