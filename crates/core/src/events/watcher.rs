//! Watching a group over the network: one connection at a time, to its master where there is one.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, stream};
use steadfast_net::{TcpTransport, Transport};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::time::{Instant, timeout};

use crate::env::{block_on, entered};
use crate::error::FeedError;
use crate::events::{GroupEvent, GroupView, MemberView, between};
use crate::group::MemberRecord;
use crate::ids::{NodeId, Term};
use crate::observe::status::MemberStatus;
use crate::service::EVENTS;
use crate::service::events::{STANDING_INTERVAL, ViewMessage};
use crate::service::hello::{Caller, DialError, Session};
use crate::service::messages::{Kind, decode};

/// How long one node may take to be connected to.
const DIAL_TIMEOUT: Duration = Duration::from_secs(1);

/// A node that says nothing for so long is left. One that stands says something every second.
const SILENCE_MAX: Duration = STANDING_INTERVAL.saturating_mul(3);

/// Pause after every known node has been tried.
const ROUND_PAUSE: Duration = Duration::from_millis(100);

/// How long a group may be out of reach before the first view, or before that is an event.
const PATIENCE: Duration = Duration::from_secs(10);

/// The events of a group, from the present on. What watches is no member: it has no data, no vote and
/// no directory.
///
/// It goes on at another node by itself, also at one that it was not told of, and never ends by
/// itself. What came and went while it could reach no node is left out. As an iterator it blocks;
/// [`GroupEvents::next_async`] waits, and [`GroupEvents::into_stream`] makes a stream.
pub struct GroupEvents {
    transport: Arc<dyn Transport>,
    group_name: String,
    /// Those that were given, which are tried when no member can be reached.
    given: Vec<String>,
    session: Option<(String, Session)>,
    silent_at: Instant,
    /// Since when no node was reached; `None` while one is.
    lost: Option<Instant>,
    is_out_of_sight: bool,
    view: Option<GroupView>,
    /// Events that were not given out yet: those between two views.
    pending: VecDeque<GroupEvent>,
    handle: Handle,
    /// Of one that was connected by a blocking call.
    own: Option<Runtime>,
}

impl GroupEvents {
    /// Watches the group of the name `group` by whichever of `addresses` (`host:port`) answers, over
    /// TCP.
    ///
    /// # Errors
    /// [`FeedError::Disconnected`] when none answers within 10 s, [`FeedError::WrongGroup`].
    pub fn connect<A: Into<String>>(
        addresses: impl IntoIterator<Item = A>,
        group: &str,
    ) -> Result<Self, FeedError> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("steadfast-feed")
            .enable_all()
            .build()
            .map_err(|error| FeedError::Stopped {
                reason: format!("no runtime: {error}"),
            })?;
        let handle = runtime.handle().clone();
        match block_on(
            false,
            entered(&handle, Self::connect_async(addresses, group)),
        ) {
            Ok(mut events) => {
                events.own = Some(runtime);
                Ok(events)
            }
            Err(error) => {
                runtime.shutdown_background();
                Err(error)
            }
        }
    }

    /// As [`GroupEvents::connect`], on the runtime of the caller.
    ///
    /// # Errors
    /// As there.
    pub async fn connect_async<A: Into<String>>(
        addresses: impl IntoIterator<Item = A>,
        group: &str,
    ) -> Result<Self, FeedError> {
        let addresses = addresses.into_iter().map(Into::into).collect();
        Self::connect_on(Arc::new(TcpTransport), addresses, group).await
    }

    /// As [`GroupEvents::connect_async`], over a network that is handed in. For tests and simulators.
    ///
    /// # Errors
    /// As there.
    pub async fn connect_on(
        transport: Arc<dyn Transport>,
        addresses: Vec<String>,
        group: &str,
    ) -> Result<Self, FeedError> {
        let mut events = Self::unconnected(transport, addresses, group, Handle::current());
        let deadline = Instant::now() + PATIENCE;
        loop {
            let why = match events.try_all().await? {
                Ok(()) => match events.receive().await? {
                    Ok(()) => return Ok(events),
                    Err(why) => why,
                },
                Err(why) => why,
            };
            events.session = None;
            if Instant::now() + ROUND_PAUSE >= deadline {
                return Err(FeedError::Disconnected {
                    resume: None,
                    reason: why,
                });
            }
            tokio::time::sleep(ROUND_PAUSE).await;
        }
    }

    /// One that connects when it is asked for its first event.
    pub(crate) fn unconnected(
        transport: Arc<dyn Transport>,
        given: Vec<String>,
        group: &str,
        handle: Handle,
    ) -> Self {
        Self {
            transport,
            group_name: group.to_owned(),
            given,
            session: None,
            silent_at: Instant::now(),
            lost: None,
            is_out_of_sight: false,
            view: None,
            pending: VecDeque::new(),
            handle,
            own: None,
        }
    }

    /// The group as it was seen last; `None` before the first event.
    pub fn view(&self) -> Option<&GroupView> {
        self.view.as_ref()
    }

    /// The next event; waits until there is one. A call that is dropped before it is done loses
    /// nothing.
    ///
    /// # Errors
    /// [`FeedError::WrongGroup`], when another group is found at an address.
    pub async fn next_async(&mut self) -> Result<GroupEvent, FeedError> {
        loop {
            if let Some(event) = self.pending.pop_front() {
                return Ok(event);
            }
            let step = if self.session.is_some() {
                self.receive().await?
            } else {
                self.try_all().await?
            };
            if let Err(why) = step {
                self.session = None;
                self.note_lost(why);
                tokio::time::sleep(ROUND_PAUSE).await;
            }
        }
    }

    /// The same as a stream, which ends after an error.
    pub fn into_stream(self) -> impl Stream<Item = Result<GroupEvent, FeedError>> + Send + use<> {
        stream::unfold(Some(self), |events| async move {
            let mut events = events?;
            match events.next_async().await {
                Ok(event) => Some((Ok(event), Some(events))),
                Err(error) => Some((Err(error), None)),
            }
        })
    }

    fn note_lost(&mut self, why: String) {
        tracing::debug!(why, "a group is watched by no node");
        let lost = *self.lost.get_or_insert_with(Instant::now);
        if lost.elapsed() >= PATIENCE && !self.is_out_of_sight {
            self.is_out_of_sight = true;
            self.pending.push_back(GroupEvent::OutOfSight { why });
        }
    }

    /// Whom to try: the master that is known, then the members, then those that were given.
    fn candidates(&self) -> Vec<String> {
        let mut addresses = Vec::new();
        if let Some(view) = &self.view {
            addresses.extend(view.master.iter().map(|master| master.address.clone()));
            let members = view.members.iter();
            addresses.extend(members.map(|of| of.member.node.address.clone()));
        }
        addresses.extend(self.given.iter().cloned());
        let mut known = std::collections::BTreeSet::new();
        addresses.retain(|address| known.insert(address.clone()));
        addresses
    }

    /// Connects to the first that can be. The inner error says why none can.
    async fn try_all(&mut self) -> Result<Result<(), String>, FeedError> {
        let mut why = "there is no address to try".to_owned();
        for address in self.candidates() {
            match dial(Arc::clone(&self.transport), &address).await {
                Ok(session) => {
                    self.silent_at = Instant::now() + SILENCE_MAX;
                    self.session = Some((address, session));
                    return Ok(Ok(()));
                }
                Err(error) => why = format!("{address}: {error}"),
            }
        }
        Ok(Err(why))
    }

    /// Takes one view. The inner error says why the connection is of no use any more.
    async fn receive(&mut self) -> Result<Result<(), String>, FeedError> {
        let Some((address, session)) = self.session.as_mut() else {
            return Ok(Err("there is no connection".to_owned()));
        };
        let address = address.clone();
        let received = session.receiver.receive();
        let frame = match tokio::time::timeout_at(self.silent_at, received).await {
            Ok(Ok(Some(frame))) => frame,
            Ok(Ok(None)) => return Ok(Err(format!("{address} has closed"))),
            Ok(Err(error)) => return Ok(Err(format!("{address}: {error}"))),
            Err(_) => return Ok(Err(format!("{address} is silent"))),
        };
        let message: ViewMessage = match decode(Kind::GroupView, frame) {
            Ok(message) => message,
            Err(error) => return Ok(Err(format!("{address}: {error}"))),
        };
        self.silent_at = Instant::now() + SILENCE_MAX;
        if message.group_name != self.group_name {
            let reason = format!("{address} is of group {:?}", message.group_name);
            return Err(FeedError::WrongGroup { reason });
        }
        if message.group.is_empty() {
            return Ok(Err(format!("{address} belongs to no group yet")));
        }
        self.take(message);
        self.go_to_master(&address).await;
        Ok(Ok(()))
    }

    /// Compares a view with the last one. One of an older term is of a node that has been left behind.
    fn take(&mut self, message: ViewMessage) {
        (self.lost, self.is_out_of_sight) = (None, false);
        let term = Term(message.term);
        if self.view.as_ref().is_some_and(|view| term < view.term) {
            return;
        }
        let view = self.view_of(message);
        match &self.view {
            None => self.pending.push_back(GroupEvent::Present(view.clone())),
            Some(last) => self.pending.extend(between(last, &view)),
        }
        self.view = Some(view);
    }

    fn view_of(&self, message: ViewMessage) -> GroupView {
        let ViewMessage {
            voters,
            down,
            sees_nodes,
            ..
        } = message;
        let was_up = |id: NodeId| {
            let last = self.view.iter().flat_map(|view| &view.members);
            let mut same = last.filter(|of| of.member.node.id == id);
            same.next().and_then(|of| of.is_up)
        };
        let member = |record: MemberRecord| {
            let (id, member) = record.into_member();
            MemberView {
                is_up: if sees_nodes {
                    Some(!down.contains(&id.0))
                } else {
                    was_up(id)
                },
                member: MemberStatus {
                    node: member.node_address(id),
                    node_type: member.node_type,
                    priority: member.priority,
                    votes: voters.contains(&id.0),
                },
            }
        };
        let members: Vec<_> = message.members.into_iter().map(member).collect();
        let master = message.master.and_then(|master| {
            let mut all = members.iter().map(|of| &of.member.node);
            all.find(|node| node.id == NodeId(master)).cloned()
        });
        GroupView {
            group_name: message.group_name,
            term: Term(message.term),
            master,
            members,
        }
    }

    /// Leaves `address` for the master, should that be another one and answer.
    async fn go_to_master(&mut self, address: &str) {
        let master = self.view.as_ref().and_then(|view| view.master.clone());
        let Some(master) = master.filter(|master| master.address != address) else {
            return;
        };
        let Ok(session) = dial(Arc::clone(&self.transport), &master.address).await else {
            return;
        };
        self.silent_at = Instant::now() + SILENCE_MAX;
        self.session = Some((master.address, session));
    }

    async fn end(&mut self) {
        if let Some((_, mut session)) = self.session.take()
            && let Ok(Err(error)) = timeout(DIAL_TIMEOUT, session.sender.close()).await
        {
            tracing::debug!(%error, "a node could not be told that it is watched no more");
        }
    }

    /// Ends watching, and waits until the node has been told, as far as it can be reached.
    pub async fn close_async(mut self) {
        self.end().await;
    }
}

async fn dial(transport: Arc<dyn Transport>, address: &str) -> Result<Session, DialError> {
    let anyone = (address, NodeId(0));
    Caller::Client
        .dial(&*transport, anyone, EVENTS, DIAL_TIMEOUT)
        .await
}

impl Iterator for GroupEvents {
    type Item = Result<GroupEvent, FeedError>;

    fn next(&mut self) -> Option<Self::Item> {
        let handle = self.handle.clone();
        Some(block_on(false, entered(&handle, self.next_async())))
    }
}

impl std::fmt::Debug for GroupEvents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GroupEvents")
            .field("group_name", &self.group_name)
            .field("view", &self.view)
            .finish_non_exhaustive()
    }
}

impl Drop for GroupEvents {
    fn drop(&mut self) {
        self.session = None;
        if let Some(own) = self.own.take() {
            own.shutdown_background();
        }
    }
}
