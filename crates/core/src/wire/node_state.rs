//! `NODE_STATE`: what a node reports about itself, even while it has no master or no group.

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use steadfast_net::Transport;

use crate::group::{LogIdRecord, MemberRecord};
use crate::wire::NODE_STATE;
use crate::wire::comparison::{CheckReply, DivergenceMessage, RangeReply, RangeRequest};
use crate::wire::hello::{Callee, Caller, DialError, Session};
use crate::wire::messages::{Kind, decode, encode};

/// Asks for [`NodeStateMessage`].
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct NodeStateRequest {
    /// Also compute the digest of the node's visible state.
    #[prost(bool, tag = "1")]
    pub(crate) digest: bool,
    /// Also compute the digest of a range of keys.
    #[prost(message, optional, tag = "2")]
    pub(crate) range: Option<RangeRequest>,
    /// Also read all files and verify their checksums.
    #[prost(bool, tag = "3")]
    pub(crate) check: bool,
    /// Also add up the sizes of the engine's files.
    #[prost(bool, tag = "4")]
    pub(crate) size: bool,
}

/// What a node reports about itself, even while it has no master or belongs to no group yet.
#[derive(Clone, PartialEq, Message)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a fact of its own that a node reports"
)]
pub(crate) struct NodeStateMessage {
    #[prost(string, tag = "1")]
    pub(crate) group_name: String,
    /// UUID of the group, 16 bytes; empty while the node has none.
    #[prost(bytes = "bytes", tag = "2")]
    pub(crate) group: Bytes,
    /// The node itself.
    #[prost(message, optional, tag = "3")]
    pub(crate) node: Option<MemberRecord>,
    /// While the node belongs to no group: a digest of the member list that it expects.
    #[prost(fixed64, tag = "4")]
    pub(crate) expects: u64,
    #[prost(message, repeated, tag = "5")]
    pub(crate) members: Vec<MemberRecord>,
    #[prost(string, tag = "6")]
    pub(crate) role: String,
    #[prost(uint64, tag = "7")]
    pub(crate) term: u64,
    #[prost(uint64, optional, tag = "8")]
    pub(crate) master: Option<u64>,
    #[prost(uint64, tag = "9")]
    pub(crate) vlsn: u64,
    #[prost(message, optional, tag = "10")]
    pub(crate) persisted: Option<LogIdRecord>,
    #[prost(message, optional, tag = "11")]
    pub(crate) applied: Option<LogIdRecord>,
    /// On the master: how far each replica has persisted the log, and when it was last heard.
    #[prost(message, repeated, tag = "12")]
    pub(crate) replicas: Vec<ReplicaProgress>,
    #[prost(uint64, tag = "13")]
    pub(crate) disk_free_bytes: u64,
    #[prost(uint64, tag = "14")]
    pub(crate) disk_total_bytes: u64,
    #[prost(string, tag = "15")]
    pub(crate) version: String,
    /// Digest of everything visible, as of `vlsn`, if requested.
    #[prost(string, tag = "16")]
    pub(crate) digest: String,
    #[prost(uint64, tag = "17")]
    pub(crate) window_bytes: u64,
    /// What the node is waiting for, in words; empty when it is ready.
    #[prost(string, tag = "18")]
    pub(crate) waiting_for: String,
    /// The members that currently vote.
    #[prost(uint64, repeated, tag = "20")]
    pub(crate) voters: Vec<u64>,
    /// 0 means the first.
    #[prost(uint64, tag = "19")]
    pub(crate) epoch: u64,
    /// Why the node takes no writes from users, in words; empty when it does.
    #[prost(string, tag = "21")]
    pub(crate) read_only: String,
    /// Whether free space on the volume is below the configured warning threshold.
    #[prost(bool, tag = "22")]
    pub(crate) disk_is_low: bool,
    /// The digest of a range, if requested.
    #[prost(message, optional, tag = "23")]
    pub(crate) range: Option<RangeReply>,
    /// The result of the check of all files, if requested.
    #[prost(message, optional, tag = "24")]
    pub(crate) check: Option<CheckReply>,
    /// Why the node's own data is known to be wrong; empty if it is not.
    #[prost(string, tag = "25")]
    pub(crate) damage: String,
    /// On the master: the findings of the last comparison of all nodes.
    #[prost(message, repeated, tag = "26")]
    pub(crate) divergences: Vec<DivergenceMessage>,
    /// 99th percentile of the durations of the last log syncs, in microseconds.
    #[prost(uint64, optional, tag = "27")]
    pub(crate) sync_p99_us: Option<u64>,
    /// The node's clock, in milliseconds since 1970.
    #[prost(uint64, tag = "28")]
    pub(crate) clock_ms: u64,
    /// Bytes of the engine's files, if requested.
    #[prost(uint64, optional, tag = "29")]
    pub(crate) data_bytes: Option<u64>,
    /// The node has counted all rows and found them correct up to here since opening its engine.
    #[prost(uint64, optional, tag = "30")]
    pub(crate) checked: Option<u64>,
    /// Rows that the node put right from its log when it opened its engine.
    #[prost(uint64, tag = "31")]
    pub(crate) put_right: u64,
    /// Whether the node's engine is wrong and its log cannot put it right.
    #[prost(bool, tag = "32")]
    pub(crate) needs_state: bool,
    /// File descriptors that the process has left, and its limit.
    #[prost(uint64, optional, tag = "33")]
    pub(crate) descriptors_left: Option<u64>,
    #[prost(uint64, optional, tag = "34")]
    pub(crate) descriptors_max: Option<u64>,
    /// Whether hardly more are left than the node keeps from strangers.
    #[prost(bool, tag = "35")]
    pub(crate) descriptors_are_few: bool,
    /// Set while the node copies the state of a peer.
    #[prost(message, optional, tag = "40")]
    pub(crate) restore: Option<RestoreProgressMessage>,
    /// Number of nodes to which this one sends its state.
    #[prost(uint32, tag = "41")]
    pub(crate) copies: u32,
    /// How long the disk of the log, or of the engine, has not finished its work, in milliseconds;
    /// absent while both work.
    #[prost(uint64, optional, tag = "42")]
    pub(crate) disk_hangs_ms: Option<u64>,
    /// On a node that is not master: how long ago it last heard one, in milliseconds; absent if it
    /// has not since its start.
    #[prost(uint64, optional, tag = "43")]
    pub(crate) master_heard_ms_ago: Option<u64>,
    /// Whether somebody has asked for unprotected connections that other machines can reach.
    #[prost(bool, tag = "44")]
    pub(crate) insecure_plaintext: bool,
    /// When the node's certificate ends, in milliseconds since 1970; absent without one.
    #[prost(uint64, optional, tag = "45")]
    pub(crate) certificate_ends_ms: Option<u64>,
    /// Where the node stands between its opening and its end; empty from earlier versions.
    #[prost(string, tag = "46")]
    pub(crate) phase: String,
}

/// Progress of a copy of the state.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(crate) struct RestoreProgressMessage {
    /// The source node; 0 while there is none.
    #[prost(uint64, tag = "1")]
    pub(crate) source: u64,
    /// Bytes of keys and values so far.
    #[prost(uint64, tag = "2")]
    pub(crate) bytes: u64,
    /// The source's estimate; 0 while there is none.
    #[prost(uint64, tag = "3")]
    pub(crate) bytes_total: u64,
    #[prost(uint64, tag = "4")]
    pub(crate) bytes_per_s: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(crate) struct ReplicaProgress {
    #[prost(uint64, tag = "1")]
    pub(crate) node: u64,
    #[prost(message, optional, tag = "2")]
    pub(crate) persisted: Option<LogIdRecord>,
    /// Absent if it was never heard in this term.
    #[prost(uint64, optional, tag = "3")]
    pub(crate) heard_ms_ago: Option<u64>,
    /// Median round-trip time of the last heartbeats, in microseconds.
    #[prost(uint64, optional, tag = "4")]
    pub(crate) round_trip_p50_us: Option<u64>,
    /// Age of the first entry that it lacks, in milliseconds; absent if older than is remembered.
    /// Below, the bytes that it lacks, as far as remembered.
    #[prost(uint64, optional, tag = "5")]
    pub(crate) behind_ms: Option<u64>,
    #[prost(uint64, tag = "6")]
    pub(crate) behind_bytes: u64,
}

/// Asks the node at `address` for its state, and for a digest if `digest` is set.
///
/// # Errors
/// When it cannot be reached, or its answer is invalid.
pub(crate) async fn ask(
    transport: &dyn Transport,
    address: &str,
    digest: bool,
    timeout: Duration,
) -> Result<NodeStateMessage, DialError> {
    let request = NodeStateRequest {
        digest,
        ..NodeStateRequest::default()
    };
    ask_for(transport, address, &request, timeout).await
}

/// Asks the node at `address` for its state and whatever else `request` names.
///
/// # Errors
/// When it cannot be reached, or its answer is invalid.
pub(crate) async fn ask_for(
    transport: &dyn Transport,
    address: &str,
    request: &NodeStateRequest,
    timeout: Duration,
) -> Result<NodeStateMessage, DialError> {
    let asked = async {
        let mut session = Caller::Client
            .dial(transport, Callee::any(address), NODE_STATE, timeout)
            .await?;
        let request = encode(Kind::NodeStateRequest, request);
        session.sender.send(request).await?;
        let reply = session.receiver.receive().await?.ok_or(DialError::Closed)?;
        Ok(decode(Kind::NodeState, reply)?)
    };
    tokio::time::timeout(timeout, asked)
        .await
        .unwrap_or(Err(DialError::Timeout(timeout)))
}

/// Answers requests with `describe` until the caller closes, or sends none for a while. Whatever a
/// request asks for besides the state may take long, and is left out for a caller that may not have
/// it read.
///
/// # Errors
/// When the caller sends invalid data or goes away.
pub(crate) async fn serve<F>(
    describe: impl Fn(NodeStateRequest) -> F,
    mut session: Session,
) -> Result<(), DialError>
where
    F: Future<Output = NodeStateMessage>,
{
    while let Some(frame) = session.next_request().await? {
        let mut request: NodeStateRequest = decode(Kind::NodeStateRequest, frame)?;
        let holder = session.holder.as_ref();
        if holder.is_some_and(|holder| !holder.may_have_read()) {
            request = NodeStateRequest::default();
        }
        let state = describe(request).await;
        session.sender.send(encode(Kind::NodeState, &state)).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use steadfast_net::Connection;

    use super::*;
    use crate::admin::client;
    use crate::admin::messages::AdminAnswer;

    /// A session whose caller stays connected and says nothing.
    fn silent() -> (Session, tokio::io::DuplexStream) {
        let (near, far) = tokio::io::duplex(1024);
        let connection = Connection::new(Box::new(near), "n1".to_owned());
        let (sender, receiver) = connection.split();
        let session = Session {
            sender,
            receiver,
            peer: "n1".to_owned(),
            holder: None,
        };
        (session, far)
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_that_asks_nothing_is_let_go() {
        let (session, _caller) = silent();
        let serving = serve(|_| async { NodeStateMessage::default() }, session);
        let served = tokio::time::timeout(Duration::from_secs(11), serving).await;
        assert!(matches!(served, Ok(Ok(()))), "{served:?}");
        let (session, _caller) = silent();
        let serving = client::serve(|_| async { AdminAnswer::NotMaster(String::new()) }, session);
        let served = tokio::time::timeout(Duration::from_secs(11), serving).await;
        assert!(matches!(served, Ok(Ok(()))), "{served:?}");
    }
}
