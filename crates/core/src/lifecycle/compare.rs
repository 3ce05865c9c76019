//! Comparing the data of nodes: the node's part in it, and the master's background comparison.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

use crate::compare::{Comparing, Comparison, digest};
use crate::consensus::{Damage, Flaw};
use crate::engine::RowDigest;
use crate::group::{Member, Members};
use crate::ids::{Incarnation, NodeId, Vlsn};
use crate::lifecycle::{Lifecycle, lock};
use crate::member::NodeAddress;
use crate::node::Node;
use crate::node::phase::Phase;
use crate::txn::audit::digest::RunningDigest;
use crate::wire::comparison::{
    CheckReply, DatabaseDigestMessage, DivergenceMessage, RangeOutcome, RangeReply, RangeRequest,
};

/// Pause after each range of the background comparison, as a multiple of its duration: the
/// comparison uses at most a fifth of one core.
const REST: u32 = 4;

/// Longest interval between comparisons of the running digests, if nodes are compared at all: this
/// reads no rows.
const COMPARE_EVERY: Duration = Duration::from_secs(10);

/// The results of the last comparison, and the lock for computing digests.
pub(super) struct Compared {
    divergences: Mutex<Vec<DivergenceMessage>>,
    /// The other members that report their own data as wrong.
    damaged: Mutex<BTreeMap<NodeId, String>>,
    /// One range, or one check of all files, at a time.
    one_at_a_time: Arc<Semaphore>,
}

impl Default for Compared {
    fn default() -> Self {
        Self {
            divergences: Mutex::default(),
            damaged: Mutex::default(),
            one_at_a_time: Arc::new(Semaphore::new(1)),
        }
    }
}

fn unusable(outcome: RangeOutcome, text: impl Into<String>) -> RangeReply {
    RangeReply {
        outcome: outcome.into(),
        text: text.into(),
        ..RangeReply::default()
    }
}

fn running_reply(vlsn: Vlsn, digest: &RunningDigest) -> RangeReply {
    let total = digest.total();
    let database = |(name, digest): (String, RowDigest)| DatabaseDigestMessage {
        name,
        rows: digest.rows,
        digest: digest.to_bytes(),
    };
    RangeReply {
        outcome: RangeOutcome::Done.into(),
        vlsn: vlsn.0,
        digest: total.to_string(),
        rows: total.rows,
        running: digest.by_name().map(database).collect(),
        ..RangeReply::default()
    }
}

impl Lifecycle {
    /// The digest of a range at a VLSN, or the running digest, once this node has reached it.
    pub(super) async fn range_digest(&self, request: RangeRequest) -> RangeReply {
        let node = match self.with_data() {
            Ok(node) => node,
            Err(error) => return unusable(RangeOutcome::Failed, error.to_string()),
        };
        let vlsn = match request.vlsn {
            0 => node.sequencer.visible(),
            vlsn => Vlsn(vlsn),
        };
        let mut visible = node.sequencer.watch_visible();
        let reached = visible.wait_for(|visible| *visible >= vlsn);
        let timeout = self.config.tuning.dial_timeout;
        if tokio::time::timeout(timeout, reached).await.is_err() {
            let text = format!("it did not reach VLSN {vlsn} within {timeout:?}");
            return unusable(RangeOutcome::Behind, text);
        }
        // Taken before waiting for its turn, or the flush would pass it meanwhile.
        let Some(snapshot) = node.snapshot_at(vlsn) else {
            let text = format!("it no longer has the state at VLSN {vlsn}");
            return unusable(RangeOutcome::Gone, text);
        };
        if request.is_running {
            let deadline = Instant::now() + timeout;
            return node.digest_at(vlsn, deadline).await.map_or_else(
                || {
                    let text = format!("its engine did not reach VLSN {vlsn} within {timeout:?}");
                    unusable(RangeOutcome::Behind, text)
                },
                |digest| running_reply(vlsn, &digest),
            );
        }
        let compute = move || digest::range_digest(&snapshot, &request);
        match self.one_at_a_time(compute).await {
            Some(Ok(reply)) => reply,
            Some(Err(error)) => unusable(RangeOutcome::Failed, error.to_string()),
            None => unusable(RangeOutcome::Failed, "it is closing"),
        }
    }

    /// Reads all files of this node, and counts all rows of its engine.
    pub(super) async fn check_files(&self) -> CheckReply {
        let failed = |problem: String| CheckReply {
            problem,
            ..CheckReply::default()
        };
        let Ok(node) = self.running() else {
            return failed("it takes no part".to_owned());
        };
        let of = node.identity.incarnation;
        let log = node.identity.log;
        let log_dir = lock(&self.dir).as_ref().map(|dir| dir.log_dir(log));
        let Some(log_dir) = log_dir else {
            return failed("it is closing".to_owned());
        };
        let audit = Arc::clone(&node.audit);
        match self.one_at_a_time(move || node.check_files(&log_dir)).await {
            Some(Ok(checked)) => {
                if let Some(what) = audit.count().await {
                    return failed(format!(
                        "its engine does not hold what the log gave it: {what}"
                    ));
                }
                self.note_checked(of, None);
                CheckReply {
                    problem: String::new(),
                    log_bytes: checked.log_bytes,
                    engine_bytes: checked.engine_bytes,
                }
            }
            Some(Err(error)) => {
                let flaw = Flaw {
                    what: error.to_string(),
                    is_damage: error.is_damage(),
                };
                let problem = flaw.what.clone();
                self.note_checked(of, Some(flaw));
                failed(problem)
            }
            None => failed("it is closing".to_owned()),
        }
    }

    pub(super) fn note_checked(&self, of: Incarnation, checked: Option<Flaw>) {
        let note = |damage: &mut Damage| damage.note_checked(of, checked);
        self.around.notices.damage.send_if_modified(note);
    }

    /// Findings about data that has been replaced do not apply to its replacement.
    pub(super) fn forget_damage(&self) {
        let own = self.identity.borrow().incarnation;
        self.around.notices.damage.send_replace(Damage::none(own));
    }

    /// Runs `work` where it may block, after any other such work.
    async fn one_at_a_time<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let turn = Arc::clone(&self.compared.one_at_a_time);
        let turn = turn.acquire_owned().await.ok()?;
        // The work owns the turn: it completes even if the caller goes away.
        let work = async move {
            let done = work();
            drop(turn);
            done
        };
        self.machine
            .run_in_background("steadfast-digest", work)
            .ok()?
            .await
            .ok()
    }

    /// This node's data was found to be bad, or whole again (`None`). The single place that learns
    /// of it, whatever found it: a comparison by the master, or a check of the files here. The
    /// node's status says why the data cannot be relied upon.
    fn data_is_bad(&self, reason: Option<&String>) {
        let node = &self.config.node;
        metrics::gauge!("steadfast_damaged", "node" => node.clone())
            .set(f64::from(u8::from(reason.is_some())));
        if let Some(reason) = reason {
            tracing::error!(node, reason, "the data of this node is bad");
        } else {
            tracing::info!(node, "the data of this node agrees with that of the others");
        }
    }

    pub(super) fn divergences(&self) -> Vec<DivergenceMessage> {
        if !self.is_master_now() {
            return Vec::new();
        }
        lock(&self.compared.divergences).clone()
    }

    /// The other members that know their data to be wrong, according to their last answers.
    pub(super) fn damaged_others(&self) -> BTreeMap<NodeId, String> {
        lock(&self.compared.damaged).clone()
    }

    async fn ask_for_damage(&self) {
        let others = self.others().await.into_iter();
        let damaged = others.filter_map(|(_, state)| {
            let state = state.filter(|state| !state.damage.is_empty())?;
            Some((NodeId(state.node?.id), state.damage))
        });
        let damaged = damaged.collect();
        *lock(&self.compared.damaged) = damaged;
    }

    fn is_master_now(&self) -> bool {
        let node = self.node();
        node.is_some_and(|node| node.consensus.is_master())
    }

    /// Compares all nodes that have data with this one, and tells each its result.
    async fn compare_all(&self, node: &Node) {
        let members = node.consensus.members();
        let with_data = members
            .iter()
            .filter(|(_, member)| member.node_type.has_data());
        let with_data = with_data.map(|(id, member)| member.node_address(*id));
        let own = node.consensus.own_id();
        let (own, others): (Vec<_>, Vec<_>) = with_data.partition(|of| of.id == own);
        let Some(own) = own.into_iter().next() else {
            return;
        };
        let reference = NodeAddress {
            address: self.listen_address().to_owned(),
            ..own
        };
        let comparing = Comparing {
            transport: &*self.machine.transport,
            reference: &reference,
            deep: true,
            rest: REST,
        };
        match comparing.run(&others, |_, _| {}).await {
            Ok(found) => self.conclude(node, &members, found).await,
            Err(why) => tracing::debug!(why, "the nodes were not compared"),
        }
    }

    /// Tells each of `members`, as of the start of the comparison, its result.
    async fn conclude(&self, node: &Node, members: &Members, found: Comparison) {
        for divergence in &found.divergences {
            let nodes = divergence.nodes.join(", ");
            tracing::error!(nodes, range = %divergence, "nodes hold different data");
        }
        for (name, why) in &found.left_out {
            tracing::debug!(name, why, "a node was not compared");
        }
        metrics::counter!("steadfast_divergence_total").increment(found.divergent as u64);
        *lock(&self.compared.divergences) =
            found.divergences.iter().cloned().map(Into::into).collect();
        let compared = found.nodes.len();
        // Without an agreeing majority, nobody knows which nodes are wrong.
        let is_proven = |nodes: &[String]| nodes.len() * 2 < compared;
        let what = |member: &Member| {
            let mut its = found.divergences.iter();
            let its = its.find(|of| is_proven(&of.nodes) && of.nodes.contains(&member.name))?;
            Some(format!("its data differs from that of the majority: {its}"))
        };
        let own = node.consensus.own_id();
        let compared = members
            .iter()
            .filter(|(_, member)| found.nodes.contains(&member.name));
        for (id, member) in compared.filter(|(id, _)| **id != own) {
            let what = what(member).unwrap_or_default();
            let telling = node.consensus.tell_of_damage(*id, member.incarnation, what);
            telling.await;
        }
        // This node last: it may be about to hand over to one of the others.
        if let Some(own) = members.get(&own) {
            node.consensus.note_compared(what(own));
        }
    }
}

/// Compares periodically while this node is master, until it is closed.
pub(super) async fn run(lifecycle: Weak<Lifecycle>, mut phase: watch::Receiver<Phase>) {
    let interval = lifecycle
        .upgrade()
        .and_then(|lifecycle| lifecycle.config.tuning.digest_interval);
    let Some(interval) = interval else { return };
    let interval = interval.min(COMPARE_EVERY);
    let is_over = |phase: &Phase| matches!(phase, Phase::Closing | Phase::Closed);
    loop {
        let over = phase.wait_for(is_over);
        if tokio::time::timeout(interval, over).await.is_ok() {
            return;
        }
        let Some(lifecycle) = lifecycle.upgrade() else {
            return;
        };
        let Ok(node) = lifecycle.running() else {
            continue;
        };
        if !node.consensus.is_master() {
            continue;
        }
        tokio::select! {
            biased;
            _ = phase.wait_for(is_over) => return,
            () = async {
                lifecycle.ask_for_damage().await;
                lifecycle.compare_all(&node).await;
            } => {}
        }
    }
}

/// Acts when this node's data is found to be bad, and when it is found whole again.
pub(super) async fn watch_damage(lifecycle: Weak<Lifecycle>) {
    let damage = lifecycle
        .upgrade()
        .map(|lifecycle| lifecycle.around.notices.damage.subscribe());
    let Some(mut damage) = damage else { return };
    while damage.changed().await.is_ok() {
        let found = damage.borrow_and_update().clone();
        let Some(lifecycle) = lifecycle.upgrade() else {
            return;
        };
        lifecycle.data_is_bad(found.why());
    }
}
