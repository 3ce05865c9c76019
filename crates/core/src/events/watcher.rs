//! Watching a group over the network: one connection at a time, to its master if there is one.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, stream};
use steadfast_net::{TcpTransport, Transport};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use crate::error::{FeedError, in_full};
use crate::events::change::{ChangeMessage, GroupChange};
use crate::events::service::{STANDING_INTERVAL, ViewMessage};
use crate::events::{GroupEvent, GroupView, MemberView, between};
use crate::group::MemberRecord;
use crate::ids::{NodeId, Term};
use crate::node::phase::Phase;
use crate::node::status::MemberStatus;
use crate::runtime::{Ground, OwnRuntime};
use crate::wire::EVENTS;
use crate::wire::hello::{Callee, Caller, DialError, Session};
use crate::wire::messages::{Kind, decode};

/// How long connecting to one node may take.
const DIAL_TIMEOUT: Duration = Duration::from_secs(1);

/// A node silent for this long is left. An idle node sends something every second.
const SILENCE_MAX: Duration = STANDING_INTERVAL.saturating_mul(3);

/// Pause after every known node has been tried.
const ROUND_PAUSE: Duration = Duration::from_millis(100);

/// How long a group may be unreachable before connecting fails.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long nothing may be heard of the group before that becomes an event: a failover, in which
/// another node answers, is over by then.
const UNHEARD_MAX: Duration = Duration::from_secs(5);

/// The events of a group, from now on. A watcher is not a member: it has no data, no vote and no
/// directory.
///
/// It moves to another node by itself, even to one that it was not given, and ends only with its
/// first error; the events of an environment in this process end with [`FeedError::Closed`] when
/// that closes. Changes that came and went while it could reach no node are left out. As an
/// iterator it blocks; [`GroupEvents::next_async`] waits, and [`GroupEvents::into_stream`] makes a
/// stream.
pub struct GroupEvents {
    transport: Arc<dyn Transport>,
    group_name: String,
    /// The addresses given, tried when no member can be reached.
    given: Vec<String>,
    session: Option<(String, Session)>,
    silent_at: Instant,
    /// Since when no node has been heard; `None` while one is.
    lost: Option<Instant>,
    is_out_of_sight: bool,
    view: Option<GroupView>,
    /// The newest change that was told, or was there before; `None` until a master was asked. A later
    /// master has a greater term.
    newest_change: Option<(Term, u64)>,
    /// Events not delivered yet: those between two views.
    pending: VecDeque<GroupEvent>,
    has_ended: bool,
    /// The phase of the environment with which it ends.
    phase: Option<watch::Receiver<Phase>>,
    ground: Ground,
    /// The runtime, if connected by a blocking call.
    _own: Option<Arc<OwnRuntime>>,
}

impl GroupEvents {
    /// Watches the group named `group` through whichever of `addresses` (`host:port`) answers, over
    /// TCP.
    ///
    /// # Errors
    /// [`FeedError::Disconnected`] when none answers within 10 s, [`FeedError::WrongGroup`].
    pub fn connect<A: Into<String>>(
        addresses: impl IntoIterator<Item = A>,
        group: &str,
    ) -> Result<Self, FeedError> {
        let own = OwnRuntime::new("steadfast-feed", 1).map_err(|error| FeedError::Stopped {
            reason: format!("no runtime: {error}"),
        })?;
        let ground = own.ground();
        let connected = ground.block_on(Self::connect_async(addresses, group));
        connected.map(|events| Self {
            ground,
            _own: Some(own),
            ..events
        })
    }

    /// As [`GroupEvents::connect`], on the caller's runtime.
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

    /// As [`GroupEvents::connect_async`], over the given network.
    ///
    /// # Errors
    /// As there.
    pub async fn connect_on(
        transport: Arc<dyn Transport>,
        addresses: Vec<String>,
        group: &str,
    ) -> Result<Self, FeedError> {
        let ground = Ground::Guest(Handle::current());
        let mut events = Self::unconnected(transport, addresses, group, ground);
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

    /// Connects when it is asked for its first event.
    pub(crate) fn unconnected(
        transport: Arc<dyn Transport>,
        given: Vec<String>,
        group: &str,
        ground: Ground,
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
            newest_change: None,
            pending: VecDeque::new(),
            has_ended: false,
            phase: None,
            ground,
            _own: None,
        }
    }

    /// The same, ending when an environment closes.
    pub(crate) fn until(self, phase: watch::Receiver<Phase>) -> Self {
        Self {
            phase: Some(phase),
            ..self
        }
    }

    /// The group as last seen; `None` before the first event.
    pub fn view(&self) -> Option<&GroupView> {
        self.view.as_ref()
    }

    /// The next event; waits until there is one. Dropping the future before it completes loses
    /// nothing.
    ///
    /// # Errors
    /// [`FeedError::WrongGroup`], when another group is found at an address; [`FeedError::Closed`],
    /// when the environment of these events has closed. The error is the last item, and comes
    /// again.
    pub async fn next_async(&mut self) -> Result<GroupEvent, FeedError> {
        let (ground, phase) = (self.ground.clone(), self.phase.clone());
        let Some(_held) = ground.hold() else {
            self.has_ended = true;
            return Err(FeedError::Closed);
        };
        let next = async {
            tokio::select! {
                biased;
                () = closed(phase) => Err(FeedError::Closed),
                next = self.next_here() => next,
            }
        };
        let next = ground.run(next).await;
        self.has_ended |= next.is_err();
        next
    }

    async fn next_here(&mut self) -> Result<GroupEvent, FeedError> {
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
        tracing::debug!(why, "the watcher reaches no node");
        let lost = *self.lost.get_or_insert_with(Instant::now);
        if lost.elapsed() >= UNHEARD_MAX && !self.is_out_of_sight {
            self.is_out_of_sight = true;
            self.pending.push_back(GroupEvent::OutOfSight { why });
        }
    }

    /// Whom to try: the known master, then the members, then the given addresses.
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

    /// Connects to the first reachable node. The inner error says why none is.
    async fn try_all(&mut self) -> Result<Result<(), String>, FeedError> {
        let mut why = "no address to try".to_owned();
        let candidates = self.candidates();
        let (tried, mut denied) = (candidates.len(), 0);
        for address in candidates {
            match dial(Arc::clone(&self.transport), &address).await {
                Ok(session) => {
                    self.silent_at = Instant::now() + SILENCE_MAX;
                    self.session = Some((address, session));
                    return Ok(Ok(()));
                }
                Err(error) => {
                    denied += usize::from(error.is_about_credentials());
                    why = format!("{address}: {}", in_full(&error));
                }
            }
        }
        if denied == tried && tried > 0 {
            return Err(FeedError::NotAllowed { reason: why });
        }
        Ok(Err(why))
    }

    /// Takes one view. The inner error says why the connection is no longer usable.
    async fn receive(&mut self) -> Result<Result<(), String>, FeedError> {
        let Some((address, session)) = self.session.as_mut() else {
            return Ok(Err("not connected".to_owned()));
        };
        let address = address.clone();
        let received = session.receiver.receive();
        let frame = match tokio::time::timeout_at(self.silent_at, received).await {
            Ok(Ok(Some(frame))) => frame,
            Ok(Ok(None)) => return Ok(Err(format!("{address} closed the connection"))),
            Ok(Err(error)) => return Ok(Err(format!("{address}: {error}"))),
            Err(_) => {
                let silent_since = Instant::now().checked_sub(SILENCE_MAX);
                self.lost = self.lost.or(silent_since);
                return Ok(Err(format!("{address} is silent")));
            }
        };
        let message: ViewMessage = match decode(Kind::GroupView, frame) {
            Ok(message) => message,
            Err(error) => return Ok(Err(format!("{address}: {error}"))),
        };
        self.silent_at = Instant::now() + SILENCE_MAX;
        if message.group_name != self.group_name {
            let reason = format!("{address} belongs to group {:?}", message.group_name);
            return Err(FeedError::WrongGroup { reason });
        }
        if message.group.is_empty() {
            return Ok(Err(format!("{address} belongs to no group yet")));
        }
        self.take(message);
        self.go_to_master(&address).await;
        Ok(Ok(()))
    }

    /// Compares a view with the last one. A view of an older term comes from a node left behind.
    fn take(&mut self, mut message: ViewMessage) {
        (self.lost, self.is_out_of_sight) = (None, false);
        let term = Term(message.term);
        if self.view.as_ref().is_some_and(|view| term < view.term) {
            return;
        }
        let changes = std::mem::take(&mut message.changes);
        let is_from_master = message.is_from_master;
        let view = self.view_of(message);
        if is_from_master {
            self.take_changes(changes, view.term);
        }
        match &self.view {
            None => self.pending.push_back(GroupEvent::Present(view.clone())),
            Some(last) => self.pending.extend(between(last, &view)),
        }
        self.view = Some(view);
    }

    /// Takes the changes that a master was asked for since the last view. Those that are older than
    /// the watch were told by nobody.
    fn take_changes(&mut self, changes: Vec<ChangeMessage>, term: Term) {
        let told = self.newest_change;
        let mut newest = told.unwrap_or((term, 0));
        for change in changes.into_iter().map(GroupChange::from) {
            let at = (change.term, change.number);
            if at > newest {
                newest = at;
                if told.is_some() {
                    self.pending.push_back(GroupEvent::ChangeAsked(change));
                }
            }
        }
        self.newest_change = Some(newest);
    }

    fn view_of(&self, message: ViewMessage) -> GroupView {
        let ViewMessage {
            voters,
            down,
            sees_nodes,
            damaged,
            ..
        } = message;
        let was = |id: NodeId| {
            let last = self.view.iter().flat_map(|view| &view.members);
            let mut same = last.filter(|of| of.member.node.id == id);
            same.next()
        };
        let member = |record: MemberRecord| {
            let (id, member) = record.into_member();
            let mut damaged = damaged.iter().filter(|of| of.node == id.0);
            let damage = damaged.next().map(|of| of.what.clone());
            MemberView {
                is_up: if sees_nodes {
                    Some(!down.contains(&id.0))
                } else {
                    was(id).and_then(|was| was.is_up)
                },
                damage: if sees_nodes {
                    damage
                } else {
                    damage.or_else(|| was(id)?.damage.clone())
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

    /// Moves from `address` to the master, if that is another node and answers.
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
            tracing::debug!(%error, "could not tell a node that it is no longer watched");
        }
    }

    /// Stops watching, and waits until the node has been told if it can be reached.
    pub async fn close_async(mut self) {
        self.end().await;
    }
}

/// Returns when the environment of this phase has closed, or closes.
async fn closed(phase: Option<watch::Receiver<Phase>>) {
    match phase {
        // An environment that is gone is closed.
        Some(mut phase) => drop(phase.wait_for(Phase::is_closing).await),
        None => std::future::pending().await,
    }
}

async fn dial(transport: Arc<dyn Transport>, address: &str) -> Result<Session, DialError> {
    Caller::Client
        .dial(&*transport, Callee::any(address), EVENTS, DIAL_TIMEOUT)
        .await
}

impl Iterator for GroupEvents {
    type Item = Result<GroupEvent, FeedError>;

    /// `None` after an error.
    fn next(&mut self) -> Option<Self::Item> {
        if self.has_ended {
            return None;
        }
        let ground = self.ground.clone();
        Some(ground.wait_for(self.next_async()))
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
