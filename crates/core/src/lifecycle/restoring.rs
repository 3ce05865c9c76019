//! How a node recovers whose log was left behind, or whose data is bad: it stops, copies a peer's
//! state beside its own, puts the copy in place, and starts again.
//!
//! Until the copy is in place, the node owns the old state: if it is closed or dies, it comes back
//! with that state, takes part with it, and learns again what it needs. The copy resumes where it
//! left off.

use std::collections::BTreeSet;
use std::future::pending;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::time::Instant;

use crate::consensus::{Damage, Differs, Outdated};
use crate::engine::EngineError;
use crate::error::{OpenError, REMOVED};
use crate::group::Member;
use crate::ids::{LogPosition, NodeId, Term};
use crate::lifecycle::sources::Candidate;
use crate::lifecycle::{Lifecycle, lock, repair};
use crate::listener::Role;
use crate::log::LogId;
use crate::node;
use crate::node::Node;
use crate::node::phase::Phase;
use crate::state_copy::fetch::{Fetch, FetchError, Progress};
use crate::state_copy::swap;
use crate::wire::hello::{Caller, DialError};
use crate::wire::messages::Refusal;
use crate::wire::node_state::NodeStateMessage;

/// Pause before a node looks for a source again.
const RETRY: Duration = Duration::from_millis(300);

/// How long a node waits for a source that has what its partial copy holds, while no node knows a
/// master.
const BEHIND_MAX: Duration = Duration::from_secs(10);

/// How long a node at work keeps an interrupted copy: it may soon be told that it needs one.
const KEEP_COPY: Duration = Duration::from_mins(10);

/// Why a node at work has to copy a peer's state.
enum Need {
    /// The log that it needs is gone.
    Copy(Outdated),
    /// Its data is bad; the description says how.
    Repair(String),
    /// Its engine does not hold what the log gave it; the description says how.
    Reopen(String),
}

/// Waits, as long as `node` is at work, until a master says that it needs a copy, or its own data
/// is found to be bad, and makes the copy.
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
    let mut findings = node.audit.findings();
    let need = loop {
        tokio::select! {
            biased;
            () = left(&mut phase, &Phase::Running) => return,
            needed = async { outdated.wait_for(Option::is_some).await.map(|needed| *needed) } => {
                break needed.ok().flatten().map(Need::Copy);
            }
            found = async { findings.wait_for(|found| found.differs.is_some()).await.map(|found| found.differs.clone()) } => {
                break found.ok().flatten().map(Need::Reopen);
            }
            why = told_by_the_others(&lifecycle) => break Some(Need::Reopen(why)),
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

/// Waits until a comparison has found the data wrong, with no row count since. Once is enough: an
/// engine that is then found right has applied something wrong, and is replaced when the group lets
/// the node leave.
async fn told_by_the_others(lifecycle: &Weak<Lifecycle>) -> String {
    let damage = lifecycle
        .upgrade()
        .map(|of| of.around.notices.damage.subscribe());
    let Some(mut damage) = damage else {
        return pending().await;
    };
    let found = damage.wait_for(|damage| damage.why_count().is_some());
    let why = found
        .await
        .ok()
        .and_then(|damage| damage.why_count().cloned());
    match why {
        Some(why) => why,
        None => pending().await,
    }
}

/// Ends when the node is in another phase.
async fn left(phase: &mut tokio::sync::watch::Receiver<Phase>, from: &Phase) {
    // A dropped sender means the same.
    phase.wait_for(|phase| phase != from).await.ok();
}

impl Lifecycle {
    /// Ends the node's work, and restarts it on a peer's state.
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
            Need::Reopen(what) => {
                tracing::error!(
                    what,
                    "the engine of this node is wrong; it is checked against the log again"
                );
                self.note_differs(what, false);
            }
        }
        let node = lock(&self.node).take();
        let stopped = match node {
            Some(node) => {
                let put_right = node.audit.findings().borrow().put_right;
                self.put_right_before
                    .fetch_add(put_right, Ordering::Relaxed);
                node.consensus.will_come_back();
                node.stop().await
            }
            None => Ok(()),
        };
        let needed = match (need, stopped) {
            (Need::Copy(needed), stopped) => stopped.map(|()| needed.entry),
            (Need::Reopen(what), stopped) => {
                if let Err(error) = stopped {
                    tracing::warn!(error, "a node with a wrong engine did not stop cleanly");
                }
                let reopened = self.reopen(what).await;
                return self.end_of_restoring(reopened);
            }
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

    pub(super) fn note_differs(&self, what: &str, needs_state: bool) {
        let differs = Differs {
            what: what.to_owned(),
            needs_state,
        };
        let note = |damage: &mut Damage| damage.note_differs(Some(differs));
        self.around.notices.damage.send_if_modified(note);
    }

    /// Restarts the node, whose engine was found wrong: the log puts right what it can. If that is
    /// not enough, the node copies another node's state.
    async fn reopen(self: &Arc<Self>, what: String) -> Result<(), String> {
        let identity = self.identity.borrow().clone();
        match self.start_node(identity).await {
            Ok(()) => {
                tracing::info!("the engine of this node is right again");
                let note = |damage: &mut Damage| {
                    let was_news = damage.note_differs(None);
                    damage.note_counted() || was_news
                };
                self.around.notices.damage.send_if_modified(note);
                Ok(())
            }
            Err(OpenError::EngineDiffers { what }) if self.copies_state() => {
                self.copy_state(what).await
            }
            Err(OpenError::EngineDiffers { .. }) => Err(what),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Copies another node's state in the background, because this node's engine is wrong.
    pub(super) fn begin_copy_of_state(self: &Arc<Self>, what: String) {
        let begins = self.phase.send_if_modified(|phase| {
            let is_forming = *phase == Phase::Forming;
            if is_forming {
                *phase = Phase::Restoring;
            }
            is_forming
        });
        if begins {
            let lifecycle = Arc::clone(self);
            let task = async move {
                let copied = lifecycle.copy_state(what).await;
                lifecycle.end_of_restoring(copied);
            };
            *lock(&self.restoring) = Some(steadfast_net::process::spawn(task));
        }
    }

    /// Replaces a wrong engine with a copy of another node's state. The log and the votes in it are
    /// right, and stay.
    async fn copy_state(self: &Arc<Self>, what: String) -> Result<(), String> {
        tracing::error!(
            what,
            "the log does not reach back far enough to put the engine right; this node copies the \
             state of another one"
        );
        self.note_differs(&what, true);
        self.restore.send_replace(Some(Progress::default()));
        let needed = self.log_begins_after().await;
        self.copy_and_start(needed.map_err(|error| error.to_string())?)
            .await
    }

    /// What a copy has to reach so that the log follows it without a gap.
    async fn log_begins_after(&self) -> Result<LogId, OpenError> {
        let closed = || OpenError::Start("closed".to_owned());
        let identity = self.identity.borrow().clone();
        let dir = lock(&self.dir).take().ok_or_else(closed)?;
        let config = node::log_config(&self.config);
        let opened = node::open_idle_log(&config, &self.machine, &dir, &identity).await;
        *lock(&self.dir) = Some(dir);
        let log = opened?;
        let purged = log.state().purged;
        log.close().await.map_err(OpenError::Log)?;
        Ok(purged.unwrap_or(LogId {
            term: Term(0),
            position: LogPosition(0),
        }))
    }

    /// Why no node can help this one, whose engine is wrong: all others with data are as badly off.
    fn why_lost(&self, others: &[(Member, Option<NodeStateMessage>)]) -> Option<String> {
        let damage = self.around.notices.damage.borrow();
        let differs = damage.differs()?;
        let with_data = others
            .iter()
            .filter(|(member, _)| member.node_type.has_data());
        let all_need_it = |state: &Option<NodeStateMessage>| {
            state.as_ref().is_some_and(|state| state.needs_state)
        };
        let mut with_data = with_data.map(|(_, state)| state);
        with_data.all(all_need_it).then(|| {
            format!(
                "{}, and no node of the group has the right data. Nothing was removed. Keep the \
                 data directories, and restore what is missing from a backup (steadfast backup \
                 restore) or from an older data directory of a node",
                differs.what
            )
        })
    }

    /// A node that does not resume work takes no part.
    pub(super) fn end_of_restoring(&self, restored: Result<(), String>) {
        self.restore.send_replace(None);
        if let Err(reason) = restored {
            (self.around.failed)(reason);
        }
        // It works again, or has found a reason already to leave its work once more.
        let comes_back = matches!(*self.phase.borrow(), Phase::Running | Phase::Restoring);
        if !comes_back {
            let role = &self.around.role;
            role.send_modify(|state| state.role = Role::Detached);
        }
    }

    /// # Errors
    /// Why the node cannot go on. Closing is not an error.
    pub(super) async fn copy_and_start(self: &Arc<Self>, needed: LogId) -> Result<(), String> {
        let Some(last) = self.copy(needed).await? else {
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

    /// Removes a copy that was begun but turned out not to be needed.
    async fn forget_copy(&self) {
        let identity = self.identity.borrow().clone();
        let dir = lock(&self.dir)
            .as_ref()
            .map(|dir| dir.engine_dir(identity.copy + 1));
        let Some(dir) = dir else { return };
        let engines = Arc::clone(&self.machine.engines);
        let removing = self
            .machine
            .run_in_background("steadfast-remove", async move {
                if engines.exists(&dir)? {
                    tracing::info!("removing a copy of the state that is no longer needed");
                    engines.remove(&dir)?;
                }
                Ok::<_, EngineError>(())
            });
        let removed = match removing {
            Ok(removing) => removing.await.unwrap_or(Ok(())),
            Err(_) => Ok(()),
        };
        if let Err(error) = removed {
            tracing::warn!(%error, "could not remove a copy of the state that is no longer needed");
        }
    }

    fn is_closing(&self) -> bool {
        *self.phase.borrow() != Phase::Restoring
    }

    /// Copies until the copy is whole; `None` when the node closes, or is no longer a member.
    ///
    /// # Errors
    /// When no node has what this one needs.
    async fn copy(self: &Arc<Self>, needed: LogId) -> Result<Option<LogId>, String> {
        let mut phase = self.phase.subscribe();
        let mut refusing = BTreeSet::new();
        let mut behind_since = None;
        loop {
            let others = self.all_others().await;
            if let Some(why) = self.why_lost(&others) {
                return Err(why);
            }
            let knows_master = |state: &NodeStateMessage| state.master.is_some();
            let mut states = others.iter().filter_map(|(_, state)| state.as_ref());
            let is_led = states.any(knows_master);
            let mut errors = Vec::new();
            for candidate in self.candidates(others, needed) {
                if self.is_closing() {
                    return Ok(None);
                }
                let id = candidate.id;
                match self.fetch(candidate, needed).await {
                    Ok(last) => return Ok(Some(last)),
                    Err(error) => {
                        tracing::warn!(source = %id, %error, "a copy of the state was interrupted");
                        self.note_refusal(&mut refusing, id, &error);
                        errors.push(error);
                    }
                }
            }
            // Whoever knew that what the copy holds is committed has gone or was restarted. A master
            // would find out, but may need the vote of this node, which has none before it has a copy.
            let is_behind = |error: &FetchError| matches!(error, FetchError::Behind);
            if is_led || errors.is_empty() || !errors.iter().all(is_behind) {
                behind_since = None;
            } else if behind_since.get_or_insert_with(Instant::now).elapsed() >= BEHIND_MAX {
                tracing::warn!("no node can complete the partial copy; it is begun anew");
                self.forget_copy().await;
                behind_since = None;
            }
            let ended = left(&mut phase, &Phase::Restoring);
            if tokio::time::timeout(RETRY, ended).await.is_ok() {
                return Ok(None);
            }
        }
    }

    /// Ends the node once half of the members have refused it as a non-member, as in
    /// `consensus/removal.rs`.
    fn note_refusal(&self, refusing: &mut BTreeSet<NodeId>, id: NodeId, error: &FetchError) {
        if let FetchError::Dial(DialError::Refused { refusal, .. }) = error
            && *refusal == Refusal::NotAMember
        {
            refusing.insert(id);
        }
        if 2 * refusing.len() >= self.around.members.borrow().len() {
            (self.around.failed)(REMOVED.to_owned());
        }
    }

    /// One attempt, on a thread of its own, since it waits for the engine.
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
            dial_timeout: tuning.dial_timeout,
            answer_timeout: tuning.silence_max,
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
        let swapped = swap::swap(&self.config, &self.machine, &dir, &identity, last).await;
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
