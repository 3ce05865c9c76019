//! The replica's side of FEEDER: appends in, acknowledgements out, in order.
//!
//! An append is fully checked before consensus sees it. It is acknowledged when consensus says so,
//! which is after the entries are on this node's disk.

use std::sync::{Arc, Mutex};

use futures_util::{FutureExt, Stream, StreamExt, stream};
use openraft::raft::{AppendEntriesRequest, StreamAppendError, StreamAppendResult};
use steadfast_net::{FrameReceiver, NetError, lock};

use crate::consensus::types::{
    EntryError, TypeConfig, from_raft_log_id, from_raft_vote, to_raft_entry, to_raft_log_id,
    to_raft_vote,
};
use crate::ids::NodeId;
use crate::log::{Entry, LogId, Vote};
use crate::wire::hello::{DialError, Session};
use crate::wire::messages::{Append, AppendReply, AppendResult, Kind, WireError, decode, encode};

/// Why an append was not accepted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AppendError {
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error(transparent)]
    Entry(#[from] EntryError),
    #[error("node {caller} sends appends that claim to come from node {claimed}")]
    Impostor { caller: NodeId, claimed: NodeId },
    #[error("entry {at} does not follow {after:?}")]
    Gap { after: Option<LogId>, at: LogId },
}

impl AppendError {
    /// Whether the connection has only ended, as it does whenever a node closes.
    pub(crate) fn is_end(&self) -> bool {
        matches!(self, Self::Dial(DialError::Net(error)) if !matches!(error, NetError::Protocol { .. }))
    }
}

/// Converts an append from `caller` to a request, after checking all of it.
///
/// # Errors
/// See [`AppendError`].
pub(crate) fn check_append(
    caller: NodeId,
    append: Append,
) -> Result<AppendEntriesRequest<TypeConfig>, AppendError> {
    let vote: Vote = append
        .vote
        .ok_or(WireError::Missing("a vote"))?
        .try_into()?;
    if vote.node != caller {
        return Err(AppendError::Impostor {
            caller,
            claimed: vote.node,
        });
    }
    let id = |id| LogId::try_from(id).map_err(WireError::from);
    let prev = append.prev.map(id).transpose()?;
    let committed = append.committed.map(id).transpose()?;
    let mut last = prev;
    let mut entries = Vec::with_capacity(append.entries.len());
    for message in append.entries {
        let entry: Entry = message.try_into()?;
        let id = entry.id();
        let next = last.map_or(0, |last: LogId| last.position.0 + 1);
        let term_min = last.map(|last| last.term).unwrap_or_default();
        if id.position.0 != next || id.term < term_min || id.term > vote.term {
            return Err(AppendError::Gap {
                after: last,
                at: id,
            });
        }
        last = Some(id);
        entries.push(to_raft_entry(entry)?);
    }
    Ok(AppendEntriesRequest {
        vote: to_raft_vote(vote),
        prev_log_id: prev.map(to_raft_log_id),
        entries,
        leader_commit: committed.map(to_raft_log_id),
    })
}

pub(crate) fn append_reply(result: &StreamAppendResult<TypeConfig>) -> AppendReply {
    let result = match result {
        Ok(Some(id)) => AppendResult::Matched(from_raft_log_id(id).into()),
        Ok(None) => AppendResult::MatchedNothing(true),
        Err(StreamAppendError::Conflict(id)) => AppendResult::Conflict(from_raft_log_id(id).into()),
        Err(StreamAppendError::HigherVote(vote)) => {
            AppendResult::HigherVote(from_raft_vote(vote).into())
        }
    };
    AppendReply {
        result: Some(result),
    }
}

/// Where the reader of the stream of appends leaves the reason for its end.
type Ended = Arc<Mutex<Option<AppendError>>>;

fn requests(
    caller: NodeId,
    receiver: FrameReceiver,
    ended: Ended,
) -> impl Stream<Item = AppendEntriesRequest<TypeConfig>> + Send + 'static {
    stream::unfold((receiver, ended), move |(mut receiver, ended)| async move {
        let read = async {
            let frame = receiver.receive().await.map_err(DialError::from)?;
            let Some(frame) = frame else { return Ok(None) };
            check_append(caller, decode(Kind::Append, frame)?).map(Some)
        };
        match read.await {
            Ok(request) => request.map(|request| (request, (receiver, ended))),
            Err(error) => {
                *lock(&ended) = Some(error);
                None
            }
        }
    })
}

/// Feeds the appends of `caller` to consensus, through `append`, until one side ends.
///
/// # Errors
/// When the caller sends invalid data, impersonates another node, or goes away.
pub(crate) async fn serve<R, E>(
    caller: NodeId,
    session: Session,
    append: impl FnOnce(futures_util::stream::BoxStream<'static, AppendEntriesRequest<TypeConfig>>) -> R,
) -> Result<(), AppendError>
where
    R: Stream<Item = Result<StreamAppendResult<TypeConfig>, E>>,
{
    let Session {
        mut sender,
        receiver,
        ..
    } = session;
    let ended = Ended::default();
    let requests = requests(caller, receiver, Arc::clone(&ended)).boxed();
    let mut results = Box::pin(append(requests)).fuse();
    while let Some(Ok(result)) = results.next().await {
        let mut next = Some(result);
        while let Some(result) = next.take() {
            let reply = encode(Kind::AppendReply, &append_reply(&result));
            sender.feed(reply).await.map_err(DialError::from)?;
            if let Some(Some(Ok(ready))) = results.next().now_or_never() {
                next = Some(ready);
            }
        }
        sender.flush().await.map_err(DialError::from)?;
    }
    match lock(&ended).take() {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{LogPosition, Term};
    use crate::log::EntryKind;
    use crate::wire::messages::EntryMessage;

    fn append(vote_node: u64, prev: u64, positions: &[u64]) -> Append {
        let entry = |position: &u64| -> EntryMessage {
            let (term, position) = (Term(2), LogPosition(*position));
            Entry {
                term,
                position,
                kind: EntryKind::Blank,
                payload: bytes::Bytes::new(),
            }
            .into()
        };
        Append {
            vote: Some(
                Vote {
                    term: Term(2),
                    node: NodeId(vote_node),
                    committed: true,
                }
                .into(),
            ),
            prev: Some(
                LogId {
                    term: Term(1),
                    position: LogPosition(prev),
                }
                .into(),
            ),
            committed: None,
            entries: positions.iter().map(entry).collect(),
            needed: None,
        }
    }

    #[test]
    fn an_append_in_the_name_of_another_node_is_refused() {
        assert!(check_append(NodeId(1), append(1, 4, &[5, 6])).is_ok());
        let impostor = check_append(NodeId(1), append(2, 4, &[5, 6]));
        assert!(matches!(impostor, Err(AppendError::Impostor { .. })));
    }

    #[test]
    fn entries_that_do_not_follow_each_other_are_refused() {
        for positions in [&[6][..], &[5, 7], &[5, 5], &[4]] {
            let gap = check_append(NodeId(1), append(1, 4, positions));
            assert!(matches!(gap, Err(AppendError::Gap { .. })), "{positions:?}");
        }
    }

    #[test]
    fn a_batch_that_cannot_be_parsed_is_refused() {
        let mut bad = append(1, 4, &[5]);
        bad.entries[0].kind = 1;
        assert!(matches!(
            check_append(NodeId(1), bad),
            Err(AppendError::Entry(_))
        ));
    }
}
