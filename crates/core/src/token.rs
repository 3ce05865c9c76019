//! Commit tokens: proof of a commit, handed to whoever must read it elsewhere.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::ids::{GroupUuid, Term, Vlsn};

/// Names one committed transaction: (group UUID, term, VLSN). Within a group, tokens are ordered
/// as their transactions are. Printed and parsed as `<uuid>:<term>:<vlsn>`.
#[must_use = "a token proves the commit to readers; drop it on purpose if nobody needs it"]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct CommitToken {
    /// The group that committed.
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

/// The text is not that of a commit token.
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
    fn a_token_survives_being_printed() {
        let group = GroupUuid(uuid::Uuid::from_u128(0x1234));
        let token = CommitToken {
            group,
            term: Term(4),
            vlsn: Vlsn(99),
        };
        assert_eq!(token.to_string().parse(), Ok(token));
        assert!("".parse::<CommitToken>().is_err());
        assert!(format!("{token}:1").parse::<CommitToken>().is_err());
    }
}
