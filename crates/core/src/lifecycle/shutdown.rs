//! The shutdown of a whole group: every node gets everything, then all stop, the master last.
//!
//! ```text
//!   master                                              replicas
//!   takes no writes of users any more
//!   waits until those under way are committed
//!   waits until every replica that it hears has all ───► on disk
//!   has a majority confirm that it is the master
//!   "stop" ────────────────────────────────────────────► each closes, as with close()
//!   waits until none of them answers any more
//!   answers whoever asked, and closes
//! ```
//!
//! All nodes that have stopped then hold the same data. If time runs out before the replicas have
//! everything, the group carries on as before. The same holds if the nodes that do not stop are
//! enough to elect another master: a group has stopped only when it cannot go on.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::future::join_all;
use steadfast_net::process;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::admin::messages::ShutdownRequest;
use crate::consensus::ConsensusError;
use crate::error::WriteError;
use crate::ids::NodeId;
use crate::lifecycle::Lifecycle;
use crate::lifecycle::changes::{Done, Undone, WITHIN_MAX, done, refused};
use crate::node::Node;
use crate::wire::node_state;

/// Polling interval while waiting.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// How long the master waits for the replicas to end before it ends itself.
const STOP_MAX: Duration = Duration::from_secs(30);

/// How long the master waits for its answer to be taken.
const ANSWER_MAX: Duration = Duration::from_secs(1);

/// Number of `election_timeout_max` periods after which an unheard replica is not waited for.
const SILENT_ROUNDS_MAX: u32 = 4;

/// Whether the group is being shut down, and a signal that an answer has been sent.
#[derive(Default)]
pub(super) struct Shutdown {
    is_under_way: watch::Sender<bool>,
    /// User writes that were admitted and have not returned.
    writing: AtomicUsize,
    pub(super) answered: Notify,
}

/// One user write, until dropped.
pub(super) struct Writing<'a>(&'a Shutdown);

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        self.0.writing.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Shutdown {
    /// Whether this master takes no more writes.
    pub(super) fn is_under_way(&self) -> bool {
        *self.is_under_way.borrow()
    }

    /// Admits a write.
    ///
    /// # Errors
    /// [`WriteError::NotCommitted`] while the group is being shut down.
    pub(super) fn write(&self) -> Result<Writing<'_>, WriteError> {
        // Counted before the check: the shutdown sees the write, or the write the shutdown.
        self.writing.fetch_add(1, Ordering::SeqCst);
        let writing = Writing(self);
        if self.is_under_way() {
            return Err(WriteError::NotCommitted {
                reason: "the group is being shut down",
            });
        }
        Ok(writing)
    }
}

/// Admits writes again unless the group has stopped.
struct Refusing<'a>(&'a Shutdown);

impl Drop for Refusing<'_> {
    fn drop(&mut self) {
        self.0.is_under_way.send_replace(false);
    }
}

impl Lifecycle {
    /// Shuts the group down, as its master.
    pub(super) async fn shut_group_down(
        self: &Arc<Self>,
        node: &Arc<Node>,
        request: &ShutdownRequest,
    ) -> Done {
        let deadline = Instant::now() + Duration::from_millis(request.timeout_ms).min(WITHIN_MAX);
        if self.shutdown.is_under_way.send_replace(true) {
            return refused("the group is already being shut down", "wait for it");
        }
        let refusing = Refusing(&self.shutdown);
        let current = self.bring_all_up(node, deadline).await?;
        confirm(node, &current, deadline).await?;
        let stopped = self.stop_all(node, &current).await;
        let told = current.iter().filter(|(id, _)| !stopped.contains_key(id));
        let running: Vec<_> = told.map(|(_, (name, _))| name.as_str()).collect();
        let stopped_ids: BTreeSet<NodeId> = stopped.keys().copied().collect();
        let stopped: Vec<String> = stopped.into_values().collect();
        if !ends_the_group(node, stopped_ids) {
            return refused(
                format!(
                    "the group goes on: {} did not stop{}",
                    running.join(", "),
                    match stopped.join(", ") {
                        names if names.is_empty() => String::new(),
                        names => format!(", but {names} did"),
                    }
                ),
                "look at `steadfast status`, start what has stopped, then try again",
            );
        }
        // From here on there is no way back.
        std::mem::forget(refusing);
        process::spawn(close_when_answered(Arc::clone(self)));
        let own = &self.config.node;
        let mut text = match stopped.join(", ") {
            names if names.is_empty() => format!("{own} stops"),
            names => format!("{names} stopped, then {own}"),
        };
        let members = node.consensus.members();
        let missed: Vec<_> = members
            .iter()
            .filter(|(id, _)| **id != node.consensus.own_id() && !current.contains_key(id))
            .map(|(_, member)| member.name.as_str())
            .collect();
        if !running.is_empty() {
            text = format!(
                "{text}; {} was told to stop, but still runs",
                running.join(", ")
            );
        }
        if !missed.is_empty() {
            text = format!(
                "{text}; {} did not answer, and may lack writes",
                missed.join(", ")
            );
        }
        Ok(done(text))
    }

    /// Waits until every replica that is heard has on disk everything this master has. Returns
    /// their names and addresses.
    async fn bring_all_up(
        &self,
        node: &Node,
        deadline: Instant,
    ) -> Result<BTreeMap<NodeId, (String, String)>, Undone> {
        let silence_max = self.config.tuning.election_timeout_max * SILENT_ROUNDS_MAX;
        loop {
            if !node.consensus.is_master() {
                return Err(Undone::NotMaster);
            }
            let is_idle = self.shutdown.writing.load(Ordering::SeqCst) == 0;
            let last = node.log.state().last.map(|last| last.position);
            let progress = node.consensus.replica_progress();
            let heard = progress
                .iter()
                .filter(|(_, replica)| replica.heard.is_some_and(|ago| ago <= silence_max));
            let behind: Vec<NodeId> = heard
                .clone()
                .filter(|(_, replica)| replica.persisted.map(|id| id.position) < last)
                .map(|(id, _)| *id)
                .collect();
            let members = node.consensus.members();
            if is_idle && behind.is_empty() {
                let place = |id: &NodeId| {
                    let member = members.get(id)?;
                    let address = self.around.addresses.best(*id, &member.address);
                    Some((*id, (member.name.clone(), address)))
                };
                return Ok(heard.filter_map(|(id, _)| place(id)).collect());
            }
            if Instant::now() >= deadline {
                let names = behind.iter().filter_map(|id| members.get(id));
                let names: Vec<_> = names.map(|member| member.name.as_str()).collect();
                let why = if names.is_empty() {
                    "writes are still in progress".to_owned()
                } else {
                    format!("{} is behind", names.join(", "))
                };
                return refused(
                    format!("not every node has all writes in time: {why}; the group goes on"),
                    "look at `steadfast status`, then try again with a longer --within",
                );
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Tells the replicas to stop, and waits for them. Returns those that have, by name.
    async fn stop_all(
        &self,
        node: &Node,
        replicas: &BTreeMap<NodeId, (String, String)>,
    ) -> BTreeMap<NodeId, String> {
        let stopping = replicas.iter().map(|(id, (name, address))| async move {
            if !node.consensus.tell_to_stop(*id).await {
                tracing::warn!(%id, name, "a node did not accept the order to stop");
                return None;
            }
            let deadline = Instant::now() + STOP_MAX;
            while Instant::now() < deadline {
                let timeout = self.config.tuning.dial_timeout;
                let asked = node_state::ask(&*self.machine.transport, address, false, timeout);
                if asked.await.is_err() {
                    return Some((*id, name.clone()));
                }
                tokio::time::sleep(LOOK_AGAIN).await;
            }
            None
        });
        join_all(stopping).await.into_iter().flatten().collect()
    }
}

/// Has a majority confirm that this node is the master, and makes sure that the group ends with
/// `current`.
async fn confirm(
    node: &Node,
    current: &BTreeMap<NodeId, (String, String)>,
    deadline: Instant,
) -> Result<(), Undone> {
    let to_do =
        "look at `steadfast status`: start the nodes that are down, or stop each node by itself";
    let confirmed = tokio::time::timeout_at(deadline, node.consensus.confirm_mastership()).await;
    match confirmed {
        Ok(Ok(())) => {}
        Ok(Err(ConsensusError::NotMaster(_))) => return Err(Undone::NotMaster),
        Ok(Err(error)) => {
            return refused(
                format!("no node was told to stop: {error}; the group goes on"),
                to_do,
            );
        }
        Err(_) => {
            return refused(
                "no node was told to stop: no majority answered in time",
                to_do,
            );
        }
    }
    if ends_the_group(node, current.keys().copied().collect()) {
        return Ok(());
    }
    let members = node.consensus.members();
    let is_away = |id: &&NodeId| **id != node.consensus.own_id() && !current.contains_key(*id);
    let away = members.keys().filter(is_away);
    let away: Vec<_> = away.map(|id| members[id].name.as_str()).collect();
    refused(
        format!(
            "no node was told to stop: {} did not answer, and may go on as a majority",
            away.join(", ")
        ),
        to_do,
    )
}

/// Whether the group cannot go on without this node and those `stopped`.
fn ends_the_group(node: &Node, mut stopped: BTreeSet<NodeId>) -> bool {
    stopped.insert(node.consensus.own_id());
    let sets = node.consensus.voter_sets();
    // A decision needs a majority of each set.
    sets.iter()
        .any(|set| set.difference(&stopped).count() <= set.len() / 2)
}

/// Closes the node once the caller that asked for it has heard that it will.
async fn close_when_answered(lifecycle: Arc<Lifecycle>) {
    let answered = lifecycle.shutdown.answered.notified();
    // A caller that does not take the answer holds up nobody.
    tokio::time::timeout(ANSWER_MAX, answered).await.ok();
    close(lifecycle).await;
}

/// Closes a node when its master tells it to.
pub(super) async fn watch(lifecycle: Weak<Lifecycle>) {
    let told = lifecycle
        .upgrade()
        .map(|lifecycle| lifecycle.around.notices.stop.subscribe());
    let Some(mut told) = told else { return };
    if told.wait_for(|told| *told).await.is_err() {
        return;
    }
    if let Some(lifecycle) = lifecycle.upgrade() {
        tracing::info!("the group is shut down; this node closes");
        close(lifecycle).await;
    }
}

async fn close(lifecycle: Arc<Lifecycle>) {
    if let Err(error) = lifecycle.close().await {
        tracing::error!(
            error,
            "a node was shut down with its group, but could not be closed"
        );
    }
}
