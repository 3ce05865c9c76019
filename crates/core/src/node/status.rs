//! A node's state as data, which the command line, JSON and metrics all render.

use std::error::Error;
use std::fmt;
use std::io::ErrorKind;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use steadfast_net::{NetError, TcpTransport, Transport};

use crate::error::in_full;
use crate::group::MemberRecord;
use crate::ids::{GroupEpoch, GroupUuid, LogPosition, NodeId, Term, Vlsn};
use crate::listener::Role;
use crate::member::{JoinToken, NodeAddress, NodeType, PRIORITY_DEFAULT};
use crate::node::health::NodePhase;
use crate::txn::catalog::is_users_name;
use crate::wire::hello::DialError;
use crate::wire::node_state;
use crate::wire::node_state::{
    NodeStateMessage, NodeStateRequest, ReplicaProgress, RestoreProgressMessage,
};

/// What one node reports about itself, even while it has no master or belongs to no group yet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a fact of its own that a node reports"
)]
pub struct NodeStatus {
    /// Name of the group.
    pub group_name: String,
    /// The group; `None` until it has formed.
    pub group: Option<GroupUuid>,
    /// 1 plus the number of times the group was recovered after a lost quorum.
    pub epoch: GroupEpoch,
    /// The node. Its id is 0 until the group has formed.
    pub node: NodeAddress,
    /// All members, this node included; empty until the group has formed.
    pub members: Vec<MemberStatus>,
    /// Where it stands between its opening and its end; `None` from a version that does not report
    /// it.
    #[serde(default)]
    pub phase: Option<NodePhase>,
    /// Its role: [`Role::Master`] only while a majority answers it.
    pub role: Role,
    /// The newest term that the node knows.
    pub term: Term,
    /// The master that the node follows.
    pub master: Option<NodeId>,
    /// The last visible transaction.
    pub vlsn: Vlsn,
    /// The last log position on this node's disk.
    pub persisted: Option<LogPosition>,
    /// The last log position applied by this node.
    pub applied: Option<LogPosition>,
    /// On the master: every other member.
    pub replicas: Vec<ReplicaStatus>,
    /// Free bytes on the volume of the data directory.
    pub disk_free_bytes: u64,
    /// Size of that volume in bytes.
    pub disk_total_bytes: u64,
    /// Whether the free bytes are below `disk_free_warn_bytes`.
    pub disk_is_low: bool,
    /// Why the node takes no user writes, whether or not it is master: its volume is nearly full.
    pub read_only: Option<String>,
    /// Version of the program.
    pub version: String,
    /// Memory for versions that the engine does not hold yet, in bytes.
    pub window_bytes: u64,
    /// What the node waits for, in words and with the names of nodes; empty when it is ready. What
    /// to do follows from `phase`, `role` and the fields about disks and damage.
    pub waiting_for: String,
    /// Why this node's data is known to be wrong, according to a comparison or a check.
    pub damage: Option<String>,
    /// Whether the log lacks part of what the engine needs, so the node needs another node's state.
    pub needs_state: bool,
    /// The transaction up to which the node has counted all of its rows and found them right, since
    /// it opened its engine.
    pub checked: Option<Vlsn>,
    /// Rows put right from the log since the node was opened.
    pub put_right: u64,
    /// On the master: where the nodes differed in the last comparison.
    pub divergences: Vec<Divergence>,
    /// The 99th percentile of recent log syncs, in microseconds.
    pub sync_p99_us: Option<u64>,
    /// How long a disk has not finished what it was given, in milliseconds: the log's from 3 s on,
    /// the engine's from 10 s on. Meanwhile the node counts for nothing: what it does not persist
    /// is not acknowledged.
    pub disk_hangs_ms: Option<u64>,
    /// How long ago the node last heard a master, in milliseconds; on a node that leads without a
    /// majority, how long ago one last answered it. `None` on a master, and if it has heard none
    /// since it was started.
    pub master_heard_ms_ago: Option<u64>,
    /// The node's clock, in milliseconds since 1970; 0 from a version that does not report it.
    pub clock_ms: u64,
    /// Digest of everything visible as of `vlsn`, in hexadecimal, if requested.
    pub digest: Option<String>,
    /// Files and connections that the node's process may still open; `None` if unknown.
    pub descriptors_left: Option<u64>,
    /// Most files and connections that it may have open at a time.
    pub descriptors_max: Option<u64>,
    /// Whether hardly more are left than the node reserves for its files and its peers.
    #[serde(default)]
    pub descriptors_are_few: bool,
    /// Whether the connections of the node are not protected although other machines can reach it.
    #[serde(default)]
    pub insecure_plaintext: bool,
    /// When the node's certificate ends, in milliseconds since 1970; `None` without one.
    pub certificate_ends_ms: Option<u64>,
    /// The copy of a peer's state in progress, during which the node takes no part.
    pub restore: Option<RestoreProgress>,
    /// Nodes to which this one is sending its state.
    pub copies: u32,
}

/// Progress of a copy of a peer's state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreProgress {
    /// The source node; `None` until one is found.
    pub source: Option<NodeId>,
    /// Bytes of keys and values so far.
    pub bytes: u64,
    /// The source's estimate of the total; 0 while unknown.
    pub bytes_total: u64,
    /// Bytes per second since the copy was begun or resumed.
    pub bytes_per_s: u64,
    /// Estimated seconds left at that rate; `None` while unknown.
    pub eta_s: Option<u64>,
}

impl From<RestoreProgressMessage> for RestoreProgress {
    fn from(message: RestoreProgressMessage) -> Self {
        let left = message.bytes_total.saturating_sub(message.bytes);
        Self {
            source: Some(NodeId(message.source)).filter(|source| source.0 != 0),
            bytes: message.bytes,
            bytes_total: message.bytes_total,
            bytes_per_s: message.bytes_per_s,
            eta_s: left.checked_div(message.bytes_per_s),
        }
    }
}

/// A member of the group, as known by the node that was asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberStatus {
    /// Its id, name and address.
    #[serde(flatten)]
    pub node: NodeAddress,
    /// Its part in the group.
    #[serde(rename = "type")]
    pub node_type: NodeType,
    /// For electable nodes: a higher priority is preferred as master; one of 0 never is.
    pub priority: u32,
    /// Whether it votes now: a new node does not until it has caught up.
    pub votes: bool,
}

/// A replica as the master sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReplicaStatus {
    /// The replica.
    pub node: NodeId,
    /// The last log position on its disk.
    pub persisted: Option<LogPosition>,
    /// Milliseconds since it was last heard; `None` if never in this term.
    pub heard_ms_ago: Option<u64>,
    /// The median round trip of recent heartbeats, in microseconds.
    pub round_trip_p50_us: Option<u64>,
    /// For how long the first log entry that it lacks has existed, in milliseconds: a lower bound.
    /// 0 if it lacks none; `None` if that entry is older than the opening of the master.
    pub behind_ms: Option<u64>,
    /// Bytes of log that it lacks: a lower bound.
    pub behind_bytes: u64,
}

/// Why a node's status could not be obtained.
#[derive(Debug, thiserror::Error)]
#[error("{address} does not answer: {}", in_full(&**.source))]
pub struct StatusError {
    address: String,
    /// Not [`Error::source`]: the text names all of it.
    r#source: Box<dyn Error + Send + Sync>,
}

/// Why a node could not be asked, as far as the caller can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Unreachable {
    /// Its machine is up, but no process listens.
    Refused,
    /// The host name in its address does not resolve.
    NotResolved,
    /// Nothing came back in time.
    Silent,
    /// The answer is not from a node, or from one of another version.
    Nonsense,
    /// It runs, and talks only to those with other credentials; or the caller does not believe its.
    Denied,
    /// Something else; see the error's text.
    Other,
}

impl StatusError {
    /// The kind of failure.
    pub fn reason(&self) -> Unreachable {
        let mut error: Option<&(dyn Error + 'static)> = Some(&*self.source);
        while let Some(this) = error {
            match this.downcast_ref::<DialError>() {
                Some(error) if error.is_denied() => return Unreachable::Denied,
                Some(DialError::Timeout(_)) => return Unreachable::Silent,
                Some(DialError::Wire(_) | DialError::Refused { .. }) => {
                    return Unreachable::Nonsense;
                }
                _ => {}
            }
            // A transparent error hides the one it wraps from `source`.
            let net = match this.downcast_ref() {
                Some(DialError::Net(net)) => Some(net),
                _ => this.downcast_ref(),
            };
            match net {
                Some(NetError::DeadlineExceeded { .. }) => return Unreachable::Silent,
                Some(NetError::Protocol { .. }) => return Unreachable::Nonsense,
                Some(NetError::Io { doing, .. }) if doing.starts_with("resolve ") => {
                    return Unreachable::NotResolved;
                }
                Some(NetError::Io { source, .. }) => return of_system(source.kind()),
                _ => error = this.source(),
            }
        }
        Unreachable::Other
    }
}

fn of_system(kind: ErrorKind) -> Unreachable {
    match kind {
        ErrorKind::ConnectionRefused => Unreachable::Refused,
        ErrorKind::TimedOut | ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => {
            Unreachable::Silent
        }
        _ => Unreachable::Other,
    }
}

impl JoinToken {
    /// A token for a node of this type, from a member's status. `None` while that member belongs to
    /// no group yet.
    pub fn new(status: &NodeStatus, node_type: NodeType) -> Option<Self> {
        let addresses = status.members.iter().map(|m| m.node.address.clone());
        Some(Self {
            group_name: status.group_name.clone(),
            group: status.group?,
            node_type,
            priority: PRIORITY_DEFAULT,
            addresses: addresses.collect(),
            pass: None,
        })
    }
}

impl NodeStatus {
    /// Whether the node stopped because it was removed from the group.
    pub fn was_removed(&self) -> bool {
        self.phase == Some(NodePhase::Removed)
    }

    /// Asks the node that listens on `address`, over TCP in plaintext. With `digest` the node reads all of its
    /// data, which can take long.
    ///
    /// # Errors
    /// When it does not answer within `timeout`, or answers nonsense.
    pub async fn ask(address: &str, digest: bool, timeout: Duration) -> Result<Self, StatusError> {
        Self::ask_on(&TcpTransport, address, digest, timeout).await
    }

    /// As [`NodeStatus::ask`], over the given network.
    ///
    /// # Errors
    /// As [`NodeStatus::ask`].
    pub async fn ask_on(
        transport: &dyn Transport,
        address: &str,
        digest: bool,
        timeout: Duration,
    ) -> Result<Self, StatusError> {
        let error = |source| StatusError {
            address: address.to_owned(),
            source,
        };
        let state = node_state::ask(transport, address, digest, timeout).await;
        Self::from_message(state.map_err(|source| error(source.into()))?).map_err(error)
    }

    /// The approximate number of bytes that the node at `address` holds, including space its engine
    /// has not freed yet; `None` if it does not report it.
    pub async fn ask_data_bytes(
        transport: &dyn Transport,
        address: &str,
        timeout: Duration,
    ) -> Option<u64> {
        let request = NodeStateRequest {
            size: true,
            ..NodeStateRequest::default()
        };
        let asked = node_state::ask_for(transport, address, &request, timeout).await;
        asked.ok()?.data_bytes
    }

    pub(crate) fn from_message(
        state: NodeStateMessage,
    ) -> Result<Self, Box<dyn Error + Send + Sync>> {
        let group = match &state.group[..] {
            [] => None,
            bytes => Some(GroupUuid::from_bytes(bytes)?),
        };
        let address = |record: MemberRecord| {
            let (id, member) = record.into_member();
            member.node_address(id)
        };
        let voters = state.voters;
        let member = |record: MemberRecord| {
            let (id, member) = record.into_member();
            MemberStatus {
                node: member.node_address(id),
                node_type: member.node_type,
                priority: member.priority,
                votes: voters.contains(&id.0),
            }
        };
        let replica = |progress: ReplicaProgress| ReplicaStatus {
            node: NodeId(progress.node),
            persisted: progress.persisted.map(|id| LogPosition(id.position)),
            heard_ms_ago: progress.heard_ms_ago,
            round_trip_p50_us: progress.round_trip_p50_us,
            behind_ms: progress.behind_ms,
            behind_bytes: progress.behind_bytes,
        };
        Ok(Self {
            group_name: state.group_name,
            group,
            epoch: GroupEpoch::from_number(state.epoch),
            node: address(state.node.ok_or("the answer names no node")?),
            members: state.members.into_iter().map(member).collect(),
            // A later version may know other roles.
            role: state.role.parse().unwrap_or_default(),
            phase: NodePhase::named(&state.phase),
            term: Term(state.term),
            master: state.master.map(NodeId),
            vlsn: Vlsn(state.vlsn),
            persisted: state.persisted.map(|id| LogPosition(id.position)),
            applied: state.applied.map(|id| LogPosition(id.position)),
            replicas: state.replicas.into_iter().map(replica).collect(),
            disk_free_bytes: state.disk_free_bytes,
            disk_total_bytes: state.disk_total_bytes,
            disk_is_low: state.disk_is_low,
            read_only: Some(state.read_only).filter(|reason| !reason.is_empty()),
            version: state.version,
            window_bytes: state.window_bytes,
            waiting_for: state.waiting_for,
            damage: Some(state.damage).filter(|damage| !damage.is_empty()),
            needs_state: state.needs_state,
            checked: state.checked.map(Vlsn),
            put_right: state.put_right,
            divergences: state.divergences.into_iter().map(Into::into).collect(),
            sync_p99_us: state.sync_p99_us,
            disk_hangs_ms: state.disk_hangs_ms,
            master_heard_ms_ago: state.master_heard_ms_ago,
            clock_ms: state.clock_ms,
            digest: Some(state.digest).filter(|digest| !digest.is_empty()),
            descriptors_left: state.descriptors_left,
            descriptors_max: state.descriptors_max,
            descriptors_are_few: state.descriptors_are_few,
            insecure_plaintext: state.insecure_plaintext,
            certificate_ends_ms: state.certificate_ends_ms,
            restore: state.restore.map(Into::into),
            copies: state.copies,
        })
    }
}

/// A range of keys in which nodes differ at the same transaction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Divergence {
    /// Name of the database; empty for the list of databases itself. One that begins with a control
    /// character holds the times to live of keys.
    pub database: String,
    /// The first key of the range.
    pub from: Vec<u8>,
    /// The key before which the range ends; `None` for the end of the database.
    pub to: Option<Vec<u8>>,
    /// The transaction at which they were compared.
    pub vlsn: Vlsn,
    /// Names of the nodes that differ from the majority of those compared; without such a majority,
    /// of all nodes compared.
    pub nodes: Vec<String>,
}

impl fmt::Display for Divergence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = |key: &[u8]| key.escape_ascii().to_string();
        match &self.database[..] {
            "" => f.write_str("the list of databases")?,
            name if !is_users_name(name.as_bytes()) => f.write_str("the times to live")?,
            name => write!(f, "database {name}")?,
        }
        write!(f, ", keys from {:?}", key(&self.from))?;
        if let Some(to) = &self.to {
            write!(f, " to {:?}", key(to))?;
        }
        write!(f, ", at VLSN {}", self.vlsn)
    }
}
