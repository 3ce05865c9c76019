//! What a caller asks of a write or a read: how durable, how fresh, and how long to wait for it.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::token::CommitToken;

/// What the master's own disk must have done before a write is acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SyncPolicy {
    /// The master has synced it.
    Sync,
    /// The master has handed it to the OS: it survives a process crash, but not a power cut.
    WriteNoSync,
    /// The master has it in memory, on its way to disk.
    NoSync,
}

/// Which other nodes must have a write on disk before it is acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReplicaAckPolicy {
    /// A majority of the electable nodes have synced it: it is committed.
    SimpleMajority,
    /// Every electable node, the master included, has synced it. Waits while any is down.
    All,
    /// No other node. Until it is committed, a failover can roll the write back.
    None,
}

/// How durable a write must be before its caller is told.
///
/// Regardless of the choice, a write becomes visible to readers only when a majority has synced it,
/// and its [`CommitToken`] tells its outcome later: [`crate::ReplicatedEnvironment::outcome`].
///
/// | | the caller is told when | a failover can lose it |
/// | --- | --- | --- |
/// | [`Durability::MAJORITY`] | a majority has synced it | no |
/// | [`Durability::ALL`] | every electable node has synced it | no |
/// | [`Durability::LOCAL`] | the master has synced it | yes |
/// | [`Durability::NONE`] | the master has it in memory | yes |
///
/// `docs/durability.md` says what each survives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Durability {
    /// What the master's own disk must have done.
    pub local_sync: SyncPolicy,
    /// Which nodes must have synced it.
    pub ack: ReplicaAckPolicy,
    /// How long to wait for that; `None` means the configured `commit_timeout_ms`.
    pub timeout: Option<Duration>,
}

impl Durability {
    /// A majority has synced the write; the master need not be one of them. The default.
    pub const MAJORITY: Self = Self::new(SyncPolicy::NoSync, ReplicaAckPolicy::SimpleMajority);
    /// Every electable node has synced the write.
    pub const ALL: Self = Self::new(SyncPolicy::Sync, ReplicaAckPolicy::All);
    /// The master has synced the write. A failover may roll it back.
    pub const LOCAL: Self = Self::new(SyncPolicy::Sync, ReplicaAckPolicy::None);
    /// The write has its number and is on its way to the log. A failover may roll it back.
    pub const NONE: Self = Self::new(SyncPolicy::NoSync, ReplicaAckPolicy::None);

    /// Any combination.
    pub const fn new(local_sync: SyncPolicy, ack: ReplicaAckPolicy) -> Self {
        Self {
            local_sync,
            ack,
            timeout: None,
        }
    }

    /// The same, with a timeout.
    #[must_use]
    pub const fn within(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }
}

impl Default for Durability {
    fn default() -> Self {
        Self::MAJORITY
    }
}

/// The presets by name.
const PRESETS: [(&str, Durability); 4] = [
    ("majority", Durability::MAJORITY),
    ("all", Durability::ALL),
    ("local", Durability::LOCAL),
    ("none", Durability::NONE),
];

/// The text is not the name of a durability.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not one of majority, all, local and none")]
pub struct ParseDurabilityError(String);

impl FromStr for Durability {
    type Err = ParseDurabilityError;

    /// A preset by its name in lower case.
    fn from_str(name: &str) -> Result<Self, ParseDurabilityError> {
        let preset = PRESETS.iter().find(|(known, _)| *known == name);
        let unknown = || ParseDurabilityError(name.to_owned());
        preset.map(|(_, preset)| *preset).ok_or_else(unknown)
    }
}

impl fmt::Display for Durability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_like =
            |preset: &Self| (preset.local_sync, preset.ack) == (self.local_sync, self.ack);
        match PRESETS.iter().find(|(_, preset)| is_like(preset)) {
            Some((name, _)) => f.write_str(name),
            None => write!(f, "{:?} with acks of {:?}", self.local_sync, self.ack),
        }
    }
}

/// How fresh a read must be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConsistencyPolicy {
    /// The read sees every write acknowledged with [`crate::Durability::MAJORITY`] or more before
    /// it began, on any node. Costs a round trip to a majority, shared by reads that arrive
    /// together.
    #[default]
    Linearizable,
    /// The read sees this token's transaction and all before it.
    AtLeast(CommitToken),
    /// The read sees every write acknowledged at least this long before it began. One round trip to
    /// a majority serves all such reads until it is that old; with a lag of 0 this is
    /// `Linearizable`. Time is that of this node's monotonic clock: a clock that runs slow by one
    /// part in a thousand lets the lag grow by as much, and time spent suspended may not count.
    MaxLag(Duration),
    /// The read sees what this node has applied: a prefix of the group's whole transactions.
    Eventual,
}

impl ConsistencyPolicy {
    /// The same, with `timeout` instead of `read_timeout_ms`.
    pub fn within(self, timeout: Duration) -> ReadOptions {
        ReadOptions {
            policy: self,
            timeout: Some(timeout),
        }
    }
}

/// Options of a read. A [`ConsistencyPolicy`] converts into them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReadOptions {
    /// How fresh it must be.
    pub policy: ConsistencyPolicy,
    /// How long to wait for that; `None` means the configured `read_timeout_ms`.
    pub timeout: Option<Duration>,
}

impl From<ConsistencyPolicy> for ReadOptions {
    fn from(policy: ConsistencyPolicy) -> Self {
        Self {
            policy,
            timeout: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_preset_is_known_by_its_name() {
        for (name, preset) in PRESETS {
            assert_eq!(name.parse(), Ok(preset));
            assert_eq!(preset.within(Duration::from_secs(1)).to_string(), name);
        }
        let error = "MAJORITY".parse::<Durability>().expect_err("another name");
        assert!(error.to_string().contains("one of majority, all"));
    }
}
