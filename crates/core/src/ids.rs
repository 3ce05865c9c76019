//! The glossary's numbers as types, so that a term is never passed where a position is meant.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Defines a newtype over an unsigned integer that prints as the bare number.
macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl From<$inner> for $name {
            fn from(number: $inner) -> Self {
                Self(number)
            }
        }

        impl FromStr for $name {
            type Err = std::num::ParseIntError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                text.parse().map(Self)
            }
        }
    };
}

number! {
    /// Number of one committed transaction: dense from 1, the same on every node. 0 is "before
    /// the first".
    Vlsn(u64)
}
number! {
    /// Number of an election. At most one master acts in a term.
    Term(u64)
}
number! {
    /// Place of one entry (a batch of transactions) in the replicated log. A group's first entry is
    /// at position 0.
    LogPosition(u64)
}
number! {
    /// One member of a group. Assigned by the group and never reused.
    NodeId(u64)
}
number! {
    /// One database (a named key space) of the replicated environment. 0 is the catalog.
    DatabaseId(u32)
}
number! {
    /// 1 plus the number of times a group was recovered from a lost quorum. A node of an earlier
    /// epoch takes no part: writes it has acknowledged may be lost.
    GroupEpoch(u64)
}
number! {
    /// One life of a node's data directory: a wiped directory comes back as a new incarnation.
    Incarnation(u64)
}

impl Vlsn {
    /// The number after this one.
    ///
    /// # Panics
    /// After 2^64 transactions, which no group reaches.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.checked_add(1).expect("VLSNs do not run out"))
    }
}

/// No group gives out this many node ids in one epoch.
const IDS_OF_AN_EPOCH: u64 = 1_000_000;

impl GroupEpoch {
    /// The epoch in which every group begins.
    pub const FIRST: Self = Self(1);

    /// The epoch from its stored or sent number, where 0 means the first.
    pub(crate) fn from_number(number: u64) -> Self {
        Self(number).max(Self::FIRST)
    }

    /// The highest node id that may have been given in earlier epochs: a survivor does not know
    /// what the lost nodes gave out, and no id is given twice.
    pub(crate) fn ids_before(self) -> NodeId {
        let earlier = self.0.saturating_sub(Self::FIRST.0);
        NodeId(earlier.saturating_mul(IDS_OF_AN_EPOCH))
    }
}

/// Identity of a group. Every connection checks it, so that groups never mix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct GroupUuid(pub uuid::Uuid);

impl GroupUuid {
    /// Its 16 bytes, as sent.
    pub(crate) fn to_bytes(self) -> bytes::Bytes {
        bytes::Bytes::copy_from_slice(self.0.as_bytes())
    }

    /// # Errors
    /// When there are not exactly 16 bytes.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Result<Self, uuid::Error> {
        uuid::Uuid::from_slice(bytes).map(Self)
    }
}

impl fmt::Display for GroupUuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

impl FromStr for GroupUuid {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}
