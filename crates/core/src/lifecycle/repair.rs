//! How a node whose own data is found damaged, on opening or at work, repairs itself.
//!
//! ```text
//!   the log, or the engine, is not what was written: nothing is changed
//!      │  would the group let me in again?                 master: is there a majority without it?
//!      ▼
//!   it stops, if it works
//!      ▼
//!   identity: another incarnation, "damaged"     ◄─ from here on the old acknowledgements and votes are void
//!      │  let me in again                                   master: it has no vote; its incarnation is this
//!      ▼
//!   copies the state of a peer beside the damaged one, up to that change or further
//!      ▼
//!   identity: the copy, a new log, not damaged   ◄─ from here on the damaged data is removed
//!      │  caught up                                         master: it has its vote again
//! ```
//!
//! It must not take part with the data it has: it may have acknowledged writes, and cast votes,
//! that it no longer knows of. The entry that takes its vote away is committed by a majority of the
//! others. Any candidate that could win with a forgotten vote of this node needs the vote of one of
//! that majority, and so has that entry, which voids the forgotten vote.
//!
//! A node at work carries on with its data until the group would readmit it. What it acknowledges
//! until then it really has: its log was whole when opened, and what it has learned since is not
//! read from disk. A master hands over first, so that it asks another node.
//!
//! Only proven damage is repaired: proven by checksums, or by a majority of nodes that agree with
//! each other and differ from this one. A disk that fails to read or sync proves nothing about the
//! data: that node stops, and is opened again.

use std::future::pending;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use rand::{Rng, SeedableRng};

use crate::admin::client::Asked;
use crate::admin::messages::{AdminCall, AdminDone, Joined, ReadmitRequest};
use crate::config::Repair;
use crate::consensus::{Consensus, Damage, Flaw};
use crate::error::OpenError;
use crate::group::identity::Identity;
use crate::group::{Member, MemberRecord};
use crate::ids::{Incarnation, NodeId};
use crate::lifecycle::changes::{Done, Undone, change, known, let_in, refused, refused_for_now};
use crate::lifecycle::{Lifecycle, lock};
use crate::log::LogId;
use crate::node::Node;
use crate::node::phase::Phase;
use crate::plural::plural;
use crate::state_copy::fetch::Progress;
use crate::wire::node_state::NodeStateMessage;

/// How long the group may take for one answer.
const ANSWER_MAX: Duration = Duration::from_secs(15);
/// Pause before a node asks again.
const RETRY: Duration = Duration::from_secs(1);
/// Pause before a node at work asks again: it carries on meanwhile.
const RETRY_AT_WORK: Duration = Duration::from_secs(5);
/// How long a former master asks its successor.
const FOLLOWER_MAX: Duration = Duration::from_secs(5);
/// Pause between two such questions: the new master has to hear the others first.
const FOLLOWER_RETRY: Duration = Duration::from_millis(50);

/// Distinguishes this use of the machine's seed from others.
const SEED: u64 = 0x4e9a;

/// Whether checksums show that the data is damaged.
fn is_damage(error: &OpenError) -> bool {
    match error {
        OpenError::Corrupt { .. } => true,
        OpenError::Log(error) => error.is_damage(),
        OpenError::Engine(error) => error.is_damage(),
        _ => false,
    }
}

/// Whether a node reports no damage to its data.
pub(super) fn is_well(state: &NodeStateMessage) -> bool {
    state.damage.is_empty()
}

/// While this exists, the node does not become master.
struct GivesWay<'a>(&'a AtomicBool);

impl<'a> GivesWay<'a> {
    fn begin(gives_way: &'a AtomicBool) -> Self {
        gives_way.store(true, Ordering::Release);
        Self(gives_way)
    }
}

impl Drop for GivesWay<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// Waits until the data of a node at work is known to be bad, and the group would readmit it.
/// Returns what is wrong.
pub(super) async fn may_begin(lifecycle: Weak<Lifecycle>, node: Arc<Node>) -> String {
    let found = lifecycle.upgrade().and_then(|lifecycle| {
        let repairs = lifecycle.config.repair == Repair::Auto;
        repairs.then(|| lifecycle.around.notices.damage.subscribe())
    });
    let Some(mut found) = found else {
        return pending().await;
    };
    loop {
        let is_bad = |damage: &Damage| damage.why_replace().is_some();
        let why = found.wait_for(is_bad).await;
        let why = why.ok().and_then(|damage| damage.why_replace().cloned());
        let (Some(why), Some(lifecycle)) = (why, lifecycle.upgrade()) else {
            return pending().await;
        };
        if lifecycle.may_leave(&node).await {
            return why;
        }
        tracing::warn!(
            why,
            "this node continues with its data: the others could not continue without it"
        );
        drop(lifecycle);
        tokio::time::sleep(RETRY_AT_WORK).await;
    }
}

impl Lifecycle {
    /// Whether the node repairs itself now that it cannot start: there must be other members, and
    /// the configuration must allow it.
    pub(super) fn repairs(&self, error: &OpenError) -> bool {
        let may_repair = self.config.repair == Repair::Auto && is_damage(error);
        may_repair && self.know_latest_members() > 1
    }

    /// Whether the node copies another node's state when its engine is wrong.
    pub(super) fn copies_state(&self) -> bool {
        self.know_latest_members();
        self.config.repair == Repair::Auto
    }

    /// Whether the group can go on without this running node, and would readmit it. A master hands
    /// over first: the others have what the majority has.
    async fn may_leave(&self, node: &Node) -> bool {
        let consensus = &node.consensus;
        if !consensus.is_master() {
            return self.would_be_let_in().await;
        }
        let members = consensus.members();
        let own = consensus.own_id();
        let Some(member) = members.get(&own) else {
            return false;
        };
        if check_goes_on_without(consensus, own, member).is_err() {
            return false;
        }
        // Otherwise, if preferred, it would be given mastership back before it is answered.
        let _gives_way = GivesWay::begin(&self.gives_way);
        consensus.set_may_stand(false);
        let left = async {
            if !self.hand_over_to(node, is_well).await {
                return false;
            }
            while !self.would_be_let_in().await {
                tokio::time::sleep(FOLLOWER_RETRY).await;
            }
            true
        };
        let left = tokio::time::timeout(FOLLOWER_MAX, left).await;
        left.unwrap_or(false)
    }

    async fn would_be_let_in(&self) -> bool {
        let identity = self.identity.borrow().clone();
        match self.ask_once(&identity, FOLLOWER_MAX).await {
            Asked::Done(_) => true,
            Asked::Refused(refusal) => {
                tracing::debug!(%refusal, "the group would not readmit this node");
                false
            }
            Asked::Denied { why } | Asked::NoAnswer { why, .. } => {
                tracing::debug!(why, "no node says whether the group would readmit this one");
                false
            }
        }
    }

    /// Repairs a node that was at work, and was stopped for this.
    pub(super) async fn repair_stopped(self: Arc<Self>, why: String) {
        let mut identity = Identity::clone(&self.identity.borrow());
        match self.begin_again(&mut identity).await {
            Ok(()) => self.repair(why).await,
            Err(reason) => self.end_of_restoring(Err(reason)),
        }
    }

    /// Repairs the node in the background, because of `why`.
    pub(super) fn begin_repair(self: &Arc<Self>, why: String) {
        let begins = self.phase.send_if_modified(|phase| {
            let is_forming = *phase == Phase::Forming;
            if is_forming {
                *phase = Phase::Restoring;
            }
            is_forming
        });
        if begins {
            tracing::error!(why, "the data of this node is damaged; it repairs itself");
            // A master, a status and a watcher learn of it while nobody can readmit the node.
            let flaw = Flaw {
                what: why.clone(),
                is_damage: true,
            };
            let of = self.identity.borrow().incarnation;
            self.note_checked(of, Some(flaw));
            let task = Arc::clone(self).repair(why);
            *lock(&self.restoring) = Some(steadfast_net::process::spawn(task));
        }
    }

    async fn repair(self: Arc<Self>, why: String) {
        let mut phase = self.phase.subscribe();
        let repaired = tokio::select! {
            biased;
            _ = phase.wait_for(|phase| *phase != Phase::Restoring) => {
                return self.end_of_restoring(Ok(()));
            }
            readmitted = self.come_back(&why) => readmitted,
        };
        self.waiting_for.send_replace(String::new());
        self.restore.send_replace(Some(Progress::default()));
        let repaired = match repaired {
            Ok(entry) => self.copy_and_start(entry).await,
            Err(reason) => Err(reason),
        };
        self.end_of_restoring(repaired);
    }

    /// Has the group admit a new incarnation; returns the entry that its copy has to reach.
    ///
    /// # Errors
    /// Why the group does not admit it.
    async fn come_back(&self, why: &str) -> Result<LogId, String> {
        let mut identity = Identity::clone(&self.identity.borrow());
        if identity.damaged.is_none() {
            self.ask(why, &identity).await?;
            self.begin_again(&mut identity).await?;
        }
        self.ask(why, &identity).await
    }

    /// Ends this incarnation of the directory, durably.
    async fn begin_again(&self, identity: &mut Identity) -> Result<(), String> {
        // One process may go through several incarnations.
        let seed = self.machine.seed ^ SEED ^ identity.incarnation.0;
        let mut rng = rand::rngs::StdRng::seed_from_u64(seed);
        identity.begin_again(Incarnation(rng.next_u64()));
        let dir = lock(&self.dir).take().ok_or("closed")?;
        let written = dir.write_identity(&*self.machine.disk, identity).await;
        *lock(&self.dir) = Some(dir);
        written.map_err(|error| error.to_string())?;
        self.identity.send_replace(Arc::new(identity.clone()));
        Ok(())
    }

    /// Asks until there is an answer.
    async fn ask(&self, why: &str, identity: &Identity) -> Result<LogId, String> {
        let waits = |not_yet: &str| {
            let waiting = format!("the others to readmit it{not_yet}; its data is damaged: {why}");
            self.waiting_for.send_replace(waiting);
        };
        waits("");
        loop {
            let not_yet = match self.ask_once(identity, ANSWER_MAX).await {
                Asked::Done(done) => match self.let_in(done.joined) {
                    Some(entry) => return Ok(entry),
                    None => "the answer names no entry".to_owned(),
                },
                Asked::Refused(refusal) if !refusal.passes => return Err(refusal.to_string()),
                Asked::Refused(refusal) => refusal.what,
                Asked::Denied { why } | Asked::NoAnswer { why, .. } => why,
            };
            waits(&format!(" ({not_yet})"));
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Asks the others to readmit the node. Until the identity says that the data is damaged, this
    /// is only a question.
    async fn ask_once(&self, identity: &Identity, within: Duration) -> Asked<AdminDone> {
        let members = self.around.members.borrow().clone();
        let others = members.iter();
        let others = others.filter(|(_, member)| member.name != identity.node_name);
        let addresses = &self.around.addresses;
        let places = |(id, member): (&NodeId, &Member)| addresses.candidates(*id, &member.address);
        let addresses: Vec<_> = others.flat_map(places).collect();
        let client = self.admin_client(identity, &addresses);
        let call = AdminCall::Readmit(ReadmitRequest {
            name: identity.node_name.clone(),
            node_id: identity.node_id.0,
            before: identity.damaged.unwrap_or(identity.incarnation).0,
            incarnation: identity.incarnation.0,
            is_question: identity.damaged.is_none(),
        });
        client.call(call, within).await
    }

    fn let_in(&self, joined: Option<Joined>) -> Option<LogId> {
        let joined = joined?;
        let entry = joined.entry?.try_into().ok()?;
        let members = joined.members.into_iter().map(MemberRecord::into_member);
        self.around
            .members
            .send_replace(Arc::new(members.collect()));
        Some(entry)
    }
}

/// Takes the vote of a member whose data is damaged, and admits its new incarnation.
pub(super) async fn readmit(node: &Arc<Node>, request: ReadmitRequest) -> Done {
    let consensus = &node.consensus;
    let members = consensus.members();
    let (id, member) = known(&members, &request.name)?;
    let is_known = [request.before, request.incarnation].contains(&member.incarnation.0);
    if id.0 != request.node_id || !is_known {
        return refused(
            format!("{} is a member with another data directory", request.name),
            format!("replace it: `steadfast node replace {}`", request.name),
        );
    }
    if id == consensus.own_id() {
        return Err(Undone::NotMaster);
    }
    check_goes_on_without(consensus, id, member)?;
    if request.is_question {
        consensus.note_leaving(id);
    } else {
        let readmitted = Member {
            incarnation: Incarnation(request.incarnation),
            ..member.clone()
        };
        change(|| consensus.readmit(id, readmitted.clone())).await?;
        tracing::warn!(
            node = %request.name,
            "readmitted a node whose data is damaged; it has no vote until it has caught up"
        );
    }
    let mut done = let_in(node, &consensus.members(), id, member);
    if let Some(joined) = &mut done.joined {
        joined.entry = consensus.last().map(Into::into);
    }
    Ok(done)
}

/// Whether the others can commit, and so take a member's vote, while it acknowledges nothing: they
/// have to be a majority of each voter set that includes it.
fn check_goes_on_without(consensus: &Consensus, id: NodeId, member: &Member) -> Result<(), Undone> {
    for voters in consensus.voter_sets() {
        let others = voters.iter().filter(|other| **other != id);
        let up = others.filter(|other| consensus.has_caught_up(**other));
        let up = up.count();
        if voters.contains(&id) && up * 2 <= voters.len() {
            return refused_for_now(
                format!(
                    "without {} only {up} of {} voting {} would be up and current: no majority",
                    member.name,
                    voters.len(),
                    plural(voters.len(), "node", "nodes")
                ),
                "bring the others back",
            );
        }
    }
    Ok(())
}
