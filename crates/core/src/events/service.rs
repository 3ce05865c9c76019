//! EVENTS: a node's view of its group, sent to any watcher whenever it changes.

use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::events::change::ChangeMessage;
use crate::group::MemberRecord;
use crate::listener::RoleState;
use crate::node::phase::Phase;
use crate::wire::hello::{DialError, Session};
use crate::wire::messages::{Kind, WireError, encode};

/// How often a node checks whom it hears, and the longest delay of such a change. A change of its
/// own role is sent at once.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// How often a node sends its view although nothing has changed.
pub(crate) const STANDING_INTERVAL: Duration = Duration::from_secs(1);

/// How long a watcher may take for one view.
const STALL_MAX: Duration = Duration::from_secs(10);

/// A group as one node sees it.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct ViewMessage {
    #[prost(string, tag = "1")]
    pub(crate) group_name: String,
    /// UUID of the group, 16 bytes; empty while the node has none.
    #[prost(bytes = "bytes", tag = "2")]
    pub(crate) group: Bytes,
    #[prost(uint64, tag = "3")]
    pub(crate) term: u64,
    /// Absent while the node knows none.
    #[prost(uint64, optional, tag = "4")]
    pub(crate) master: Option<u64>,
    #[prost(message, repeated, tag = "5")]
    pub(crate) members: Vec<MemberRecord>,
    #[prost(uint64, repeated, tag = "6")]
    pub(crate) voters: Vec<u64>,
    /// Whether `down` is meaningful: only a master knows who is down.
    #[prost(bool, tag = "7")]
    pub(crate) sees_nodes: bool,
    #[prost(uint64, repeated, tag = "8")]
    pub(crate) down: Vec<u64>,
    /// Members whose data is known to be wrong; a node that is not master reports only itself.
    #[prost(message, repeated, tag = "9")]
    pub(crate) damaged: Vec<DamagedMessage>,
    /// The newest changes that this node was asked for as master.
    #[prost(message, repeated, tag = "10")]
    pub(crate) changes: Vec<ChangeMessage>,
    #[prost(bool, tag = "11")]
    pub(crate) is_from_master: bool,
}

/// A member whose data is known to be wrong.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct DamagedMessage {
    #[prost(uint64, tag = "1")]
    pub(crate) node: u64,
    /// What is wrong, in words.
    #[prost(string, tag = "2")]
    pub(crate) what: String,
}

/// Sends what `look` returns until the caller or the node closes.
///
/// # Errors
/// When the caller sends anything, disconnects, or does not take what it is sent.
pub(crate) async fn serve(
    mut session: Session,
    mut phase: watch::Receiver<Phase>,
    mut role: watch::Receiver<RoleState>,
    look: impl Fn() -> Option<ViewMessage>,
) -> Result<(), DialError> {
    let mut sent: Option<(ViewMessage, Instant)> = None;
    loop {
        role.mark_unchanged();
        let Some(view) = look() else { return Ok(()) };
        let is_due = sent
            .as_ref()
            .is_none_or(|(last, at)| *last != view || at.elapsed() >= STANDING_INTERVAL);
        if is_due {
            let frame = encode(Kind::GroupView, &view);
            let taken = tokio::time::timeout(STALL_MAX, session.sender.send(frame)).await;
            taken.map_err(|_| DialError::Timeout(STALL_MAX))??;
            sent = Some((view, Instant::now()));
        }
        let is_over = |phase: &Phase| matches!(phase, Phase::Closing | Phase::Closed);
        tokio::select! {
            biased;
            frame = session.receiver.receive() => match frame? {
                None => return Ok(()),
                Some(_) => return Err(WireError::Invalid("request").into()),
            },
            _ = phase.wait_for(is_over) => return Ok(()),
            // An error means that the node is gone, which the next look notices.
            _ = role.changed() => {}
            () = tokio::time::sleep(LOOK_INTERVAL) => {}
        }
    }
}
