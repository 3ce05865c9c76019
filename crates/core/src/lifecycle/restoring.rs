//! How a node whose log was left behind, or whose data is bad, comes back: it stops, copies the state of
//! a peer beside its own, puts the copy in place, and starts again.
//!
//! Until the copy is in place, the old state is the node's: a node that is closed, or dies, comes back
//! with it, takes part with it, and is told again what it needs. The copy goes on where it was.

use std::collections::BTreeSet;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::future::{BoxFuture, join_all};

use crate::consensus::Outdated;
use crate::engine::EngineError;
use crate::error::OpenError;
use crate::group::{Member, MemberRecord};
use crate::ids::{GroupEpoch, GroupUuid, LogPosition, NodeId};
use crate::lifecycle::{Lifecycle, Phase, lock, repair};
use crate::listener::Role;
use crate::log::LogId;
use crate::node::Node;
use crate::restore::fetch::{Fetch, FetchError, Progress};
use crate::restore::swap;
use crate::service::hello::{Caller, DialError};
use crate::service::messages::{NodeStateMessage, Refusal};
use crate::service::node_state;

/// How long a node waits before it looks for a source again.
const RETRY: Duration = Duration::from_millis(300);

/// How long a copy that was interrupted is kept by a node that works without it: it may be told soon
/// that it needs one.
const KEEP_COPY: Duration = Duration::from_mins(10);

/// Why a node at work has to copy the state of a peer.
enum Need {
    /// The log that it needs is gone.
    Copy(Outdated),
    /// What it has is bad, in words.
    Repair(String),
}

/// A node that may have what is needed.
struct Candidate {
    id: NodeId,
    address: String,
    is_well: bool,
    copies: u32,
    is_master: bool,
    applied: LogPosition,
}

/// Waits, as long as `node` works, until a master says that it needs a copy, or its own data turns out
/// to be bad, and makes the copy.
///
/// Boxed, because it starts the node again, which starts this.
pub(super) fn watch(lifecycle: Weak<Lifecycle>, node: Arc<Node>) -> BoxFuture<'static, ()> {
    Box::pin(watch_node(lifecycle, node))
}

async fn watch_node(lifecycle: Weak<Lifecycle>, node: Arc<Node>) {
    let Some(mut phase) = lifecycle.upgrade().map(|of| of.phase.subscribe()) else {
        return;
    };
    let mut outdated = node.consensus.outdated();
    let mut repair = Box::pin(repair::may_begin(
        Weak::clone(&lifecycle),
        Arc::clone(&node),
    ));
    let mut may_have_copy = true;
    let need = loop {
        tokio::select! {
            biased;
            () = left(&mut phase, &Phase::Running) => return,
            needed = async { outdated.wait_for(Option::is_some).await.map(|needed| *needed) } => {
                break needed.ok().flatten().map(Need::Copy);
            }
            why = &mut repair => break Some(Need::Repair(why)),
            () = tokio::time::sleep(KEEP_COPY), if may_have_copy => {
                may_have_copy = false;
                if let Some(lifecycle) = lifecycle.upgrade() {
                    lifecycle.forget_copy().await;
                }
            }
        }
    };
    drop((node, outdated, repair));
    if let (Some(need), Some(lifecycle)) = (need, lifecycle.upgrade()) {
        lifecycle.leave_work(need).await;
    }
}

/// Ends when the node is in another phase.
async fn left(phase: &mut tokio::sync::watch::Receiver<Phase>, from: &Phase) {
    // A sender that is gone says the same.
    phase.wait_for(|phase| phase != from).await.ok();
}

impl Lifecycle {
    /// Ends the work of the node, and has it work again on what a peer has.
    async fn leave_work(self: Arc<Self>, need: Need) {
        let begins = self.phase.send_if_modified(|phase| {
            let is_running = *phase == Phase::Running;
            if is_running {
                *phase = Phase::Restoring;
            }
            is_running
        });
        if !begins {
            return;
        }
        match &need {
            Need::Copy(needed) => {
                tracing::warn!(needed = %needed.entry, "the log that this node needs is gone; it copies the state of a peer");
                self.restore.send_replace(Some(Progress::default()));
            }
            Need::Repair(why) => {
                tracing::error!(why, "the data of this node is damaged; it repairs itself");
            }
        }
        let node = lock(&self.node).take();
        let stopped = match node {
            Some(node) => {
                node.consensus.will_come_back();
                node.stop().await
            }
            None => Ok(()),
        };
        let needed = match (need, stopped) {
            (Need::Copy(needed), stopped) => stopped.map(|()| needed.entry),
            (Need::Repair(why), stopped) => {
                if let Err(error) = stopped {
                    // What it could not write is not kept.
                    tracing::warn!(error, "a node with bad data did not stop cleanly");
                }
                return self.repair_stopped(why).await;
            }
        };
        let restored = match needed {
            Ok(entry) => self.copy_and_start(entry).await,
            Err(error) => Err(error),
        };
        self.end_of_restoring(restored);
    }

    /// A node that does not work after all takes no part.
    pub(super) fn end_of_restoring(&self, restored: Result<(), String>) {
        self.restore.send_replace(None);
        if let Err(reason) = restored {
            (self.around.failed)(reason);
        }
        if *self.phase.borrow() != Phase::Running {
            let role = &self.around.role;
            role.send_modify(|state| state.role = Role::Detached);
        }
    }

    /// # Errors
    /// Why the node cannot go on. That it closes is none.
    pub(super) async fn copy_and_start(self: &Arc<Self>, needed: LogId) -> Result<(), String> {
        let Some(last) = self.copy(needed).await else {
            return Ok(());
        };
        let swapped = self.swap(last).await;
        let identity = Arc::new(swapped.map_err(|error| error.to_string())?);
        self.identity.send_replace(Arc::clone(&identity));
        self.forget_damage();
        if self.is_closing() {
            return Ok(());
        }
        tracing::info!(at = %last, "the copy of the state is in place");
        let started = self.start_node(identity).await;
        started.map_err(|error| error.to_string())
    }

    /// Removes a copy that was begun and is not needed after all.
    async fn forget_copy(&self) {
        let identity = self.identity.borrow().clone();
        let dir = lock(&self.dir)
            .as_ref()
            .map(|dir| dir.engine_dir(identity.copy + 1));
        let Some(dir) = dir else { return };
        let engines = Arc::clone(&self.machine.engines);
        let removing = self.machine.run("steadfast-remove", async move {
            if engines.exists(&dir)? {
                tracing::info!("a copy of the state that is not needed any more is removed");
                engines.remove(&dir)?;
            }
            Ok::<_, EngineError>(())
        });
        let removed = match removing {
            Ok(removing) => removing.await.unwrap_or(Ok(())),
            Err(_) => Ok(()),
        };
        if let Err(error) = removed {
            tracing::warn!(%error, "a copy of the state that is not needed could not be removed");
        }
    }

    fn is_closing(&self) -> bool {
        *self.phase.borrow() != Phase::Restoring
    }

    /// Copies until there is a whole copy; `None` when the node closes, or is no member any more.
    async fn copy(self: &Arc<Self>, needed: LogId) -> Option<LogId> {
        let mut phase = self.phase.subscribe();
        let mut refusing = BTreeSet::new();
        loop {
            for candidate in self.candidates(needed).await {
                if self.is_closing() {
                    return None;
                }
                let id = candidate.id;
                match self.fetch(candidate, needed).await {
                    Ok(last) => return Some(last),
                    Err(error) => {
                        tracing::warn!(source = %id, %error, "a copy of the state was interrupted");
                        self.note_refusal(&mut refusing, id, &error);
                    }
                }
            }
            let ended = left(&mut phase, &Phase::Restoring);
            if tokio::time::timeout(RETRY, ended).await.is_ok() {
                return None;
            }
        }
    }

    /// Ends the node when half of the members have refused it as a stranger, as in
    /// `consensus/removal.rs`.
    fn note_refusal(&self, refusing: &mut BTreeSet<NodeId>, id: NodeId, error: &FetchError) {
        if let FetchError::Dial(DialError::Refused { refusal, .. }) = error
            && *refusal == Refusal::NotAMember
        {
            refusing.insert(id);
        }
        if 2 * refusing.len() >= self.around.members.borrow().len() {
            (self.around.failed)("this node was removed from the group".to_owned());
        }
    }

    /// Who can be asked: those that know of no damage first, then the least loaded, which are those that
    /// send no copy to others, and the master last of equals.
    async fn candidates(&self, needed: LogId) -> Vec<Candidate> {
        let own = self.identity.borrow().clone();
        let members = self.around.members.borrow().clone();
        let others = members
            .values()
            .filter(|member| member.name != own.node_name);
        let asked = others.map(|member: &Member| async move {
            let transport = &*self.machine.transport;
            let timeout = self.config.tuning.dial_timeout;
            let state = node_state::ask(transport, &member.address, false, timeout).await;
            state.ok().map(|state| (member.address.clone(), state))
        });
        let group = own.group.map(GroupUuid::to_bytes);
        let suits = |(_, state): &(String, NodeStateMessage)| {
            let is_ours = Some(&state.group) == group.as_ref()
                && GroupEpoch::from_number(state.epoch) == own.epoch;
            let has_data = state.node.clone().is_some_and(|record: MemberRecord| {
                let (_, member) = record.into_member();
                member.node_type.has_data()
            });
            let applied = state.applied.map_or(0, |applied| applied.position);
            // Damage must not be copied in the place of damage.
            let is_of_use = repair::is_well(state) || own.damaged.is_none();
            is_ours
                && has_data
                && is_of_use
                && state.restore.is_none()
                && applied >= needed.position.0
        };
        let states = join_all(asked).await.into_iter().flatten().filter(suits);
        let mut candidates: Vec<_> = states
            .map(|(address, state)| Candidate {
                id: NodeId(state.node.as_ref().map_or(0, |node| node.id)),
                address,
                is_well: repair::is_well(&state),
                copies: state.copies,
                is_master: state.role == "master",
                applied: LogPosition(state.applied.map_or(0, |applied| applied.position)),
            })
            .collect();
        candidates.sort_by_key(|of| {
            let newest_first = std::cmp::Reverse(of.applied);
            (!of.is_well, of.copies, of.is_master, newest_first)
        });
        candidates
    }

    /// One attempt, on a thread of its own: it waits for the engine.
    async fn fetch(
        self: &Arc<Self>,
        candidate: Candidate,
        needed: LogId,
    ) -> Result<LogId, FetchError> {
        let identity = self.identity.borrow().clone();
        let dir = lock(&self.dir)
            .as_ref()
            .map(|dir| dir.engine_dir(identity.copy + 1));
        let tuning = &self.config.tuning;
        let superseded = Arc::clone(&self.around.superseded);
        let members = self.around.members.borrow().clone();
        let own = members.get(&identity.node_id);
        let (end, ended) = tokio::sync::watch::channel(false);
        let fetch = Fetch {
            caller: Caller::Node(identity, superseded),
            transport: Arc::clone(&self.machine.transport),
            source: (candidate.id, candidate.address),
            timeouts: (tuning.dial_timeout, tuning.silence_max),
            engines: Arc::clone(&self.machine.engines),
            dir: dir.ok_or(FetchError::Ended)?,
            entry: needed,
            has_data: own.is_none_or(|own| own.node_type.has_data()),
            progress: self.restore.clone(),
            ended,
        };
        let running = self.machine.run("steadfast-restore", fetch.run());
        let mut running = running.map_err(|_| FetchError::Ended)?;
        let mut phase = self.phase.subscribe();
        let fetched = tokio::select! {
            biased;
            () = left(&mut phase, &Phase::Restoring) => {
                // The thread is waited for all the same: it has files open.
                end.send_replace(true);
                running.await
            }
            fetched = &mut running => fetched,
        };
        fetched.unwrap_or(Err(FetchError::Ended))
    }

    async fn swap(&self, last: LogId) -> Result<crate::group::identity::Identity, OpenError> {
        let closed = || OpenError::Start("closed".to_owned());
        let dir = lock(&self.dir).take().ok_or_else(closed)?;
        let identity = self.identity.borrow().clone();
        let swapped = swap::swap(&self.config, &self.machine, (&dir, &identity), last).await;
        *lock(&self.dir) = Some(dir);
        swapped
    }

    /// What a node that copies the state waits for.
    pub(super) fn restore_in_words(&self) -> String {
        const MIB: u64 = 1024 * 1024;
        let waiting_for = self.waiting_for.borrow().clone();
        if !waiting_for.is_empty() {
            return waiting_for;
        }
        let progress = self.restore.borrow().unwrap_or_default();
        let Progress {
            source,
            bytes,
            bytes_total,
            bytes_per_s,
        } = progress;
        if source == NodeId(0) {
            return "a peer whose state it can copy: the log that it needs is gone".to_owned();
        }
        let members = self.around.members.borrow();
        let name = members.get(&source).map_or("?", |member| &member.name);
        let left = bytes_total.saturating_sub(bytes);
        let to_go = left.checked_div(bytes_per_s);
        let to_go = to_go.map_or_else(String::new, |seconds| format!(", {seconds} s to go"));
        format!(
            "a copy of the state of {name}: {} of about {} MiB, {} MiB/s{to_go}",
            bytes / MIB,
            bytes_total / MIB,
            bytes_per_s / MIB
        )
    }
}
