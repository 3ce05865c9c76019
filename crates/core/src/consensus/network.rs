//! How openraft reaches the other nodes: entries over FEEDER, all short messages over ELECTION.
//!
//! A FEEDER connection carries one pipelined stream of appends. Requests are sent as openraft makes
//! them, up to [`APPENDS_IN_FLIGHT_MAX`] and [`BYTES_IN_FLIGHT_MAX`] ahead of the acknowledgements,
//! which come back in order. One task drives both directions.
//!
//! A slow link is not a dead peer. A connection without an acknowledgement for `silence_max` is
//! given up only if the peer answers no heartbeats either, or if everything sent should have
//! arrived even at [`BYTES_PER_S_MIN`].

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use steadfast_net::lock;

use bytes::Bytes;
use futures_util::{FutureExt, Stream, StreamExt, stream};
use openraft::OptionalSend;
use openraft::alias::{SnapshotOf, VoteOf};
use openraft::base::{BoxFuture, BoxStream};
use openraft::errors::{RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::v2::RaftNetworkV2;
use openraft::network::{RPCOption, RaftNetworkFactory, stream_append_sequential};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendError,
    StreamAppendResult, VoteRequest, VoteResponse,
};
use tokio::sync::watch;

use crate::consensus::arbiters::Released;
use crate::consensus::election::{ElectionClient, Peer};
use crate::consensus::types::{
    TypeConfig, from_raft_entry, from_raft_log_id, from_raft_vote, to_raft_log_id, to_raft_vote,
};
use crate::group::{Member, Members};
use crate::ids::{LogPosition, NodeId};
use crate::log::{self, EntryKind, LogId, Vote};
use crate::planted::{self, Bug};
use crate::wire::FEEDER;
use crate::wire::dialling::Dialler;
use crate::wire::hello::{DialError, Session};
use crate::wire::messages::{
    Append, AppendReply, AppendResult, ElectionAnswer, ElectionCall, Kind, ReachMessage,
    VoteReplyMessage, VoteRequestMessage, WireError, decode, encode,
};

/// Maximum unacknowledged appends on one FEEDER connection. More would only queue at the replica's
/// disk.
const APPENDS_IN_FLIGHT_MAX: usize = 64;
/// Maximum unacknowledged bytes on one FEEDER connection; a single append may exceed it.
const BYTES_IN_FLIGHT_MAX: usize = 16 * 1024 * 1024;

/// The slowest link that is waited for while its other end answers.
const BYTES_PER_S_MIN: usize = 64 * 1024;

type RpcError = RPCError<TypeConfig>;

/// The other nodes, by their current addresses.
pub(crate) struct Peers {
    dialler: Dialler,
    members: watch::Receiver<Members>,
    /// A connection to a peer that has answered nothing for this long is given up.
    silence_max: Duration,
    election: Mutex<BTreeMap<NodeId, (String, ElectionClient)>>,
    /// Peers that have refused this node as not a member, and have not admitted it since.
    refusing: watch::Sender<BTreeSet<NodeId>>,
}

impl Peers {
    pub(crate) fn new(
        dialler: Dialler,
        members: watch::Receiver<Members>,
        silence_max: Duration,
    ) -> Self {
        Self {
            dialler,
            members,
            silence_max,
            election: Mutex::default(),
            refusing: watch::Sender::default(),
        }
    }

    pub(crate) fn dialler(&self) -> &Dialler {
        &self.dialler
    }

    /// The peers that refuse this node as not a member.
    pub(crate) fn refusing(&self) -> watch::Receiver<BTreeSet<NodeId>> {
        self.refusing.subscribe()
    }

    /// The ELECTION client of a member at its current address.
    fn election(&self, id: NodeId, address: String) -> ElectionClient {
        let mut clients = lock(&self.election);
        if let Some((known, client)) = clients.get(&id)
            && *known == address
        {
            return client.clone();
        }
        let client = ElectionClient::start(Peer {
            dialler: self.dialler.clone(),
            address: address.clone(),
            id,
            silence_max: self.silence_max,
            refusing: self.refusing.clone(),
        });
        clients.insert(id, (address, client.clone()));
        client
    }

    /// The ELECTION client of a member by id; `None` when there is no such member.
    pub(crate) fn election_of(&self, id: NodeId) -> Option<ElectionClient> {
        let address = self.address_of(id)?;
        Some(self.election(id, address))
    }

    fn address_of(&self, id: NodeId) -> Option<String> {
        let members = self.members.borrow();
        members.get(&id).map(|member| member.address.clone())
    }

    /// See [`ElectionClient::round_trip_p50`].
    pub(crate) fn round_trip_p50(&self, id: NodeId) -> Option<Duration> {
        let clients = self.election.lock();
        let clients = clients.unwrap_or_else(PoisonError::into_inner);
        clients.get(&id)?.1.round_trip_p50()
    }

    /// Closes ELECTION connections that are no longer used elsewhere.
    pub(crate) fn close(&self) {
        lock(&self.election).clear();
    }
}

/// Creates a [`PeerNetwork`] for each use that openraft has for a peer.
pub(crate) struct NetworkFactory {
    pub(crate) peers: Arc<Peers>,
    /// How far arbiters get the log.
    pub(crate) released: watch::Receiver<Released>,
    /// The entry after which the log is still needed.
    pub(crate) needed: watch::Receiver<Option<LogPosition>>,
}

impl NetworkFactory {
    fn client(&self, target: NodeId, node: &Member, is_heartbeat: bool) -> PeerNetwork {
        PeerNetwork {
            peers: Arc::clone(&self.peers),
            target,
            address: node.address.clone(),
            is_heartbeat,
            released: (!node.node_type.has_data()).then(|| self.released.clone()),
            needed: self.needed.clone(),
            feeder: Mutex::default(),
        }
    }
}

impl RaftNetworkFactory<TypeConfig> for NetworkFactory {
    type Network = PeerNetwork;

    async fn new_client(&mut self, target: NodeId, node: &Member) -> PeerNetwork {
        self.client(target, node, false)
    }

    async fn new_heartbeat_client(&mut self, target: NodeId, node: &Member) -> PeerNetwork {
        self.client(target, node, true)
    }
}

/// One peer, as openraft talks to it.
pub(crate) struct PeerNetwork {
    peers: Arc<Peers>,
    target: NodeId,
    /// Its address when this was created; the current one is looked up for each dial.
    address: String,
    is_heartbeat: bool,
    /// Of an arbiter: how far it gets the log.
    released: Option<watch::Receiver<Released>>,
    needed: watch::Receiver<Option<LogPosition>>,
    /// A FEEDER connection with nothing in flight. The mutex is never contended: it exists because
    /// openraft requires `Sync`, which a connection is not.
    feeder: Mutex<Option<Session>>,
}

impl PeerNetwork {
    fn address(&self) -> String {
        let now = self.peers.address_of(self.target);
        now.unwrap_or_else(|| self.address.clone())
    }

    fn election(&self) -> ElectionClient {
        self.peers.election(self.target, self.address())
    }

    async fn vote_call(
        &self,
        request: VoteRequest<TypeConfig>,
        call: fn(VoteRequestMessage) -> ElectionCall,
        timeout: Duration,
    ) -> Result<VoteResponse<TypeConfig>, RpcError> {
        let message = VoteRequestMessage {
            vote: Some(from_raft_vote(&request.vote).into()),
            last: request
                .last_log_id
                .as_ref()
                .map(|id| from_raft_log_id(id).into()),
            lease_is_over: request.leadership_transfer,
        };
        match self.election().call(call(message), timeout).await {
            Ok(ElectionAnswer::Vote(reply)) => {
                vote_response(reply).map_err(|error| unreachable(&error))
            }
            Ok(_) => Err(unreachable(&WireError::Invalid("answer to a vote request"))),
            Err(error) => Err(unreachable(&error)),
        }
    }
}

fn unreachable(error: &(impl std::error::Error + 'static)) -> RpcError {
    RPCError::Unreachable(Unreachable::new(error))
}

fn vote_response(reply: VoteReplyMessage) -> Result<VoteResponse<TypeConfig>, WireError> {
    let vote: Vote = reply.vote.ok_or(WireError::Missing("a vote"))?.try_into()?;
    let last = reply.last.map(LogId::try_from).transpose()?;
    Ok(VoteResponse::new(
        to_raft_vote(vote),
        last.map(to_raft_log_id),
        reply.granted,
    ))
}

/// The message for an append; an arbiter gets no data.
fn append_message(request: &AppendEntriesRequest<TypeConfig>, to_arbiter: bool) -> Append {
    let id = |id: &Option<_>| id.as_ref().map(|id| from_raft_log_id(id).into());
    Append {
        vote: Some(from_raft_vote(&request.vote).into()),
        prev: id(&request.prev_log_id),
        committed: id(&request.leader_commit),
        entries: request
            .entries
            .iter()
            .map(from_raft_entry)
            .map(|entry| {
                if to_arbiter {
                    without_data(entry)
                } else {
                    entry
                }
            })
            .map(Into::into)
            .collect(),
        needed: None,
    }
}

/// Reduces an entry to its place in the log. A membership is kept.
pub(crate) fn without_data(entry: log::Entry) -> log::Entry {
    match entry.kind {
        EntryKind::Blank | EntryKind::Membership => entry,
        EntryKind::Transactions => log::Entry {
            kind: EntryKind::Blank,
            payload: Bytes::new(),
            ..entry
        },
    }
}

fn append_result(reply: AppendReply) -> Result<StreamAppendResult<TypeConfig>, WireError> {
    let id = |id| LogId::try_from(id).map(to_raft_log_id);
    Ok(match reply.result.ok_or(WireError::Missing("a result"))? {
        AppendResult::Matched(matched) => Ok(Some(id(matched)?)),
        AppendResult::MatchedNothing(_) => Ok(None),
        AppendResult::Conflict(at) => Err(StreamAppendError::Conflict(id(at)?)),
        AppendResult::HigherVote(vote) => Err(StreamAppendError::HigherVote(to_raft_vote(
            vote.try_into()?,
        ))),
    })
}

impl RaftNetworkV2<TypeConfig> for PeerNetwork {
    type SnapshotData = ();

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RpcError> {
        let needed = self.needed.borrow().map(|needed| needed.0);
        let append = append_message(&request, self.released.is_some());
        let call = ElectionCall::Heartbeat(Append { needed, ..append });
        match self.election().call(call, option.hard_ttl()).await {
            Ok(ElectionAnswer::Append(reply)) => match append_result(reply) {
                Ok(Ok(matched)) => Ok(AppendEntriesResponse::PartialSuccess(matched)),
                Ok(Err(StreamAppendError::Conflict(_))) => Ok(AppendEntriesResponse::Conflict),
                Ok(Err(StreamAppendError::HigherVote(vote))) => {
                    Ok(AppendEntriesResponse::HigherVote(vote))
                }
                Err(error) => Err(unreachable(&error)),
            },
            Ok(_) => Err(unreachable(&WireError::Invalid("answer to a heartbeat"))),
            Err(error) => Err(unreachable(&error)),
        }
    }

    fn stream_append<'s, S>(
        &'s mut self,
        mut input: S,
        option: RPCOption,
    ) -> BoxFuture<
        's,
        Result<BoxStream<'s, Result<StreamAppendResult<TypeConfig>, RpcError>>, RpcError>,
    >
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        if self.is_heartbeat {
            return stream_append_sequential(self, input, option);
        }
        Box::pin(async move {
            let address = self.address();
            let idle = self
                .feeder
                .get_mut()
                .unwrap_or_else(PoisonError::into_inner);
            // The first request waits out openraft's backoff, so it is awaited before dialling.
            let first = input.next().await;
            let session = if let Some(session) = idle.take() {
                session
            } else {
                let dialling = self.peers.dialler.dial(&address, self.target, FEEDER);
                dialling.await.map_err(|error| unreachable(&error))?
            };
            let patience = Patience {
                silence_max: self.peers.silence_max,
                election: self.peers.election(self.target, address),
            };
            let ended = first.is_none();
            let feed = Feed {
                session,
                input,
                ended,
                next: first,
                released: self.released.clone(),
                in_flight: VecDeque::new(),
                patience,
            };
            let replies = stream::unfold(Some((feed, idle)), |state| async move {
                let (mut feed, idle) = state?;
                match feed.next_reply().await {
                    Ok(Some(reply)) => Some((Ok(reply), Some((feed, idle)))),
                    Ok(None) => {
                        *idle = Some(feed.session);
                        None
                    }
                    Err(error) => Some((Err(unreachable(&error)), None)),
                }
            });
            let replies: BoxStream<'s, _> = Box::pin(replies);
            Ok(replies)
        })
    }

    async fn vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RpcError> {
        self.vote_call(request, ElectionCall::Vote, option.hard_ttl())
            .await
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RpcError> {
        self.vote_call(request, ElectionCall::PreVote, option.hard_ttl())
            .await
    }

    /// Tells the replica which entry it has to reach, and succeeds once it has.
    async fn full_snapshot(
        &mut self,
        vote: VoteOf<TypeConfig>,
        snapshot: SnapshotOf<TypeConfig, ()>,
        _cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let unreachable = |why: &dyn fmt::Display| {
            StreamingError::Unreachable(Unreachable::from_string(why.to_string()))
        };
        let call = ElectionCall::Reach(ReachMessage {
            vote: Some(from_raft_vote(&vote).into()),
            entry: snapshot
                .meta
                .last_log_id
                .as_ref()
                .map(|id| from_raft_log_id(id).into()),
        });
        let answer = self.election().call(call, option.hard_ttl()).await;
        let ElectionAnswer::Reached(reached) = answer.map_err(|error| unreachable(&error))? else {
            return Err(unreachable(&"the answer does not fit the question"));
        };
        let theirs = reached.vote.map(Vote::try_from).transpose();
        let theirs = theirs.map_err(|error| unreachable(&error))?;
        match theirs {
            Some(theirs) if reached.has || theirs.term > from_raft_vote(&vote).term => {
                Ok(SnapshotResponse::new(to_raft_vote(theirs)))
            }
            _ => Err(unreachable(&"the replica must copy the state first")),
        }
    }
}

/// Why a FEEDER connection ended.
#[derive(Debug)]
struct FeedError(DialError);

impl fmt::Display for FeedError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FEEDER: {}", self.0)
    }
}

impl std::error::Error for FeedError {}

impl<E: Into<DialError>> From<E> for FeedError {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

/// Waits until more was released to an arbiter than when last checked.
async fn more_released(released: &mut Option<watch::Receiver<Released>>) {
    if let Some(released) = released
        && released.changed().await.is_ok()
    {
        return;
    }
    std::future::pending::<()>().await;
}

/// How long to wait for a peer.
struct Patience {
    silence_max: Duration,
    /// Tells whether the peer answers.
    election: ElectionClient,
}

impl Patience {
    /// Waits until it is time to give up the peer, which has `bytes` to receive or to acknowledge.
    async fn is_over(&self, bytes: usize) -> DialError {
        if planted::is(Bug::DeadlineIgnoresProgress) {
            tokio::time::sleep(self.silence_max).await;
            return DialError::Timeout(self.silence_max);
        }
        let under_way = Duration::from_secs((bytes / BYTES_PER_S_MIN) as u64);
        let longest = tokio::time::sleep(self.silence_max + under_way);
        let dead = async {
            loop {
                tokio::time::sleep(self.silence_max).await;
                if !self.election.has_answered_within(self.silence_max) {
                    return;
                }
            }
        };
        tokio::select! {
            () = longest => {}
            () = dead => {}
        }
        DialError::Timeout(self.silence_max)
    }
}

/// Both directions of one stream of appends.
struct Feed<S> {
    session: Session,
    input: S,
    ended: bool,
    /// Taken from the input but not sent yet.
    next: Option<AppendEntriesRequest<TypeConfig>>,
    /// Of an arbiter: how far it gets the log.
    released: Option<watch::Receiver<Released>>,
    /// Sizes of the unacknowledged frames, oldest first.
    in_flight: VecDeque<usize>,
    patience: Patience,
}

impl<S> Feed<S>
where
    S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Unpin,
{
    /// Sends pending requests until the next acknowledgement comes. `None` when the input has ended
    /// and everything is acknowledged: the connection can be reused.
    async fn next_reply(&mut self) -> Result<Option<StreamAppendResult<TypeConfig>>, FeedError> {
        loop {
            let has_room = self.has_room();
            if let Some(request) = self.next.take() {
                if has_room && self.is_released(&request) {
                    self.send(request).await?;
                } else if !self.ended {
                    // Otherwise nobody waits for it any longer.
                    self.next = Some(request);
                }
            }
            if self.ended && self.in_flight.is_empty() {
                return Ok(None);
            }
            let may_take = has_room && !self.ended && self.next.is_none();
            let (is_held, is_waiting) = (self.next.is_some(), !self.in_flight.is_empty());
            let bytes = self.bytes_in_flight();
            tokio::select! {
                biased;
                frame = self.session.receiver.receive() => {
                    let reply = decode(Kind::AppendReply, frame?.ok_or(DialError::Closed)?)?;
                    self.in_flight.pop_front();
                    return Ok(Some(append_result(reply)?));
                }
                request = self.input.next(), if may_take => match request {
                    Some(request) => self.next = Some(request),
                    None => self.ended = true,
                },
                () = more_released(&mut self.released), if is_held => {}
                over = self.patience.is_over(bytes), if is_waiting => return Err(over.into()),
            }
        }
    }

    fn has_room(&self) -> bool {
        self.in_flight.len() < APPENDS_IN_FLIGHT_MAX && self.bytes_in_flight() < BYTES_IN_FLIGHT_MAX
    }

    fn bytes_in_flight(&self) -> usize {
        self.in_flight.iter().sum()
    }

    fn is_released(&mut self, request: &AppendEntriesRequest<TypeConfig>) -> bool {
        let released = self.released.as_mut();
        released.is_none_or(|released| released.borrow_and_update().covers(request))
    }

    /// Sends `request` and whatever else is ready, in one write.
    async fn send(&mut self, request: AppendEntriesRequest<TypeConfig>) -> Result<(), FeedError> {
        let mut next = Some(request);
        while let Some(request) = next.take() {
            let frame = encode(
                Kind::Append,
                &append_message(&request, self.released.is_some()),
            );
            self.in_flight.push_back(frame.len());
            let bytes = self.bytes_in_flight();
            tokio::select! {
                biased;
                fed = self.session.sender.feed(frame) => fed?,
                over = self.patience.is_over(bytes) => return Err(over.into()),
            }
            if self.has_room() {
                match self.input.next().now_or_never() {
                    Some(Some(request)) if self.is_released(&request) => next = Some(request),
                    Some(Some(request)) => self.next = Some(request),
                    Some(None) => self.ended = true,
                    None => {}
                }
            }
        }
        let bytes = self.bytes_in_flight();
        tokio::select! {
            biased;
            flushed = self.session.sender.flush() => Ok(flushed?),
            over = self.patience.is_over(bytes) => Err(over.into()),
        }
    }
}
