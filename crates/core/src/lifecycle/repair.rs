//! How a node repairs itself whose own data is found damaged when it opens.
//!
//! ```text
//!   the log, or the engine, is not what was written: nothing is changed
//!      │  would the group let me in again?                 master: is there a majority without it?
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
//! It must not take part with what it has: it may have acknowledged, and voted for, what it no longer
//! knows. The entry that takes its vote is committed by a majority of the others. Whoever could win
//! with a vote that this node has forgotten needs a vote of one of that majority, and so has that
//! entry, by which the forgotten vote is none.
//!
//! Only what checksums prove is repaired. A disk that refuses to read or to sync says nothing about
//! the data: that node stops, and is opened again.

use std::sync::Arc;
use std::time::Duration;

use rand::{Rng, SeedableRng};

use crate::config::Repair;
use crate::engine::EngineError;
use crate::error::OpenError;
use crate::group::MemberRecord;
use crate::group::identity::Identity;
use crate::ids::Incarnation;
use crate::lifecycle::{Lifecycle, Phase, lock};
use crate::log::{LogError, LogId};
use crate::restore::fetch::Progress;
use crate::service::admin::messages::{AdminCall, Joined, ReadmitRequest};
use crate::service::admin::{self, Asked};

/// How long the group may take for one answer.
const ANSWER_MAX: Duration = Duration::from_secs(15);
/// How long a node waits before it asks again.
const RETRY: Duration = Duration::from_secs(1);

/// Tells this use of the machine's seed from others.
const SEED: u64 = 0x4e9a;

/// Whether checksums say that the data is damaged.
fn is_damage(error: &OpenError) -> bool {
    matches!(
        error,
        OpenError::Corrupt { .. }
            | OpenError::Log(LogError::VoteMissing { .. })
            | OpenError::Engine(EngineError::Corrupt { .. })
    )
}

impl Lifecycle {
    /// Whether the node repairs itself now that it cannot start: there have to be others, and it has to
    /// be allowed.
    pub(super) fn repairs(&self, error: &OpenError) -> bool {
        let has_others = self.identity.borrow().founders.len() > 1;
        has_others && self.config.repair == Repair::Auto && is_damage(error)
    }

    /// Repairs the node, in the background, because of `why`.
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
            let task = Arc::clone(self).repair(why);
            *lock(&self.restoring) = Some(steadfast_net::process::spawn(task));
        }
    }

    async fn repair(self: Arc<Self>, why: String) {
        let mut phase = self.phase.subscribe();
        let repaired = tokio::select! {
            biased;
            _ = phase.wait_for(|phase| *phase != Phase::Restoring) => return,
            readmitted = self.come_back(&why) => readmitted,
        };
        self.waiting_for.send_replace(String::new());
        self.restore.send_replace(Some(Progress::default()));
        let repaired = match repaired {
            Ok(entry) => self.copy_and_start(entry).await,
            Err(reason) => Err(reason),
        };
        self.restore.send_replace(None);
        if let Err(reason) = repaired {
            (self.around.failed)(reason);
        }
    }

    /// Has the group let a new incarnation in; returns what its copy has to reach.
    ///
    /// # Errors
    /// Why the group does not let it in.
    async fn come_back(&self, why: &str) -> Result<LogId, String> {
        let mut identity = Identity::clone(&self.identity.borrow());
        if identity.damaged.is_none() {
            self.ask(why, &identity).await?;
            let mut rng = rand::rngs::StdRng::seed_from_u64(self.machine.seed ^ SEED);
            identity.begin_again(Incarnation(rng.next_u64()));
            self.replace_identity(&identity).await?;
        }
        self.ask(why, &identity).await
    }

    async fn replace_identity(&self, identity: &Identity) -> Result<(), String> {
        let dir = lock(&self.dir).take().ok_or("closed")?;
        let written = dir.write_identity(&*self.machine.disk, identity).await;
        *lock(&self.dir) = Some(dir);
        written.map_err(|error| error.to_string())?;
        self.identity.send_replace(Arc::new(identity.clone()));
        Ok(())
    }

    /// Asks until there is an answer. As long as the identity does not say that the data is damaged, it
    /// is only a question.
    async fn ask(&self, why: &str, identity: &Identity) -> Result<LogId, String> {
        let waits = |not_yet: &str| {
            let waiting =
                format!("the others to let it in again{not_yet}; its data is damaged: {why}");
            self.waiting_for.send_replace(waiting);
        };
        waits("");
        loop {
            let members = self.around.members.borrow().clone();
            let others = members.values();
            let others = others.filter(|member| member.name != identity.node_name);
            let addresses: Vec<_> = others.map(|member| member.address.clone()).collect();
            let client = admin::Client {
                transport: &*self.machine.transport,
                group: identity
                    .group
                    .map(|group| (identity.group_name.as_str(), group)),
                addresses: &addresses,
                dial_timeout: self.config.tuning.dial_timeout,
            };
            let call = AdminCall::Readmit(ReadmitRequest {
                name: identity.node_name.clone(),
                node_id: identity.node_id.0,
                before: identity.damaged.unwrap_or(identity.incarnation).0,
                incarnation: identity.incarnation.0,
                is_question: identity.damaged.is_none(),
            });
            let not_yet = match client.call(call, ANSWER_MAX).await {
                Asked::Done(done) => match self.let_in(done.joined) {
                    Some(entry) => return Ok(entry),
                    None => "the answer names no entry".to_owned(),
                },
                Asked::Refused(refusal) if !refusal.passes => return Err(refusal.to_string()),
                Asked::Refused(refusal) => refusal.what,
                Asked::NoAnswer(why) => why,
            };
            waits(&format!(" ({not_yet})"));
            tokio::time::sleep(RETRY).await;
        }
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
