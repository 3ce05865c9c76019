//! Commit tokens: proof of a commit, handed to a reader on another node.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::ids::{GroupUuid, Term, Vlsn};

/// Names one transaction: (group UUID, term, VLSN). Printed and parsed as `<uuid>:<term>:<vlsn>`,
/// and serialized the same way in human-readable formats.
///
/// Tokens of one group are ordered by term and VLSN, which is the order in which they committed: to
/// wait for several, wait for the greatest. Tokens of different groups are ordered by their groups'
/// UUIDs; this has no meaning, but keeps sets of them sorted.
///
/// A token from a write with [`crate::Durability::LOCAL`] or `NONE`, or from an error, may belong
/// to a write that was rolled back: [`crate::ReplicatedEnvironment::outcome`] tells.
#[must_use = "a token proves the commit to readers; drop it on purpose if nobody needs it"]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CommitToken {
    /// The group that committed the transaction.
    pub group: GroupUuid,
    /// The term of the master that numbered the transaction.
    pub term: Term,
    /// The transaction's number.
    pub vlsn: Vlsn,
}

impl fmt::Display for CommitToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.group, self.term, self.vlsn)
    }
}

impl Serialize for CommitToken {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(self)
        } else {
            (self.group, self.term, self.vlsn).serialize(serializer)
        }
    }
}

impl<'de> Deserialize<'de> for CommitToken {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            let text = String::deserialize(deserializer)?;
            return text.parse().map_err(serde::de::Error::custom);
        }
        let (group, term, vlsn) = Deserialize::deserialize(deserializer)?;
        Ok(Self { group, term, vlsn })
    }
}

/// What a function given to `write` returned, and the token of its transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Committed<T> {
    /// What the function returned, in the run that was committed.
    pub value: T,
    /// The transaction's token; if it wrote nothing, that of the last one that it could see.
    pub token: CommitToken,
}

/// What became of a token's write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenOutcome {
    /// A majority has it on disk: it stays committed.
    Committed,
    /// It is not committed and never will be.
    NotCommitted,
    /// It is under way, or this node cannot find out at present: ask again.
    StillUnknown,
}

/// The text is not a commit token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a commit token (<group uuid>:<term>:<vlsn>)")]
pub struct ParseTokenError(String);

impl FromStr for CommitToken {
    type Err = ParseTokenError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let mut parts = text.split(':');
            let token = Self {
                group: parts.next()?.parse().ok()?,
                term: parts.next()?.parse().ok()?,
                vlsn: parts.next()?.parse().ok()?,
            };
            parts.next().is_none().then_some(token)
        };
        parse().ok_or_else(|| ParseTokenError(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_of_a_group_are_ordered_as_their_transactions_are() {
        let token = |term, vlsn| CommitToken {
            group: GroupUuid(uuid::Uuid::from_u128(0x1234)),
            term: Term(term),
            vlsn: Vlsn(vlsn),
        };
        let order = [token(1, 1), token(1, 2), token(3, 3), token(4, 4)];
        assert!(order.is_sorted());
    }

    #[test]
    fn a_token_survives_being_printed() {
        let group = GroupUuid(uuid::Uuid::from_u128(0x1234));
        let token = CommitToken {
            group,
            term: Term(4),
            vlsn: Vlsn(99),
        };
        assert_eq!(token.to_string().parse(), Ok(token));
        let json = serde_json::to_string(&token).expect("a token has a text");
        assert_eq!(json, format!("\"{token}\""));
        assert_eq!(serde_json::from_str::<CommitToken>(&json).ok(), Some(token));
        assert!(serde_json::from_str::<CommitToken>("\"4:99\"").is_err());
        assert!("".parse::<CommitToken>().is_err());
        assert!(format!("{token}:1").parse::<CommitToken>().is_err());
    }
}
