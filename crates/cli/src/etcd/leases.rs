//! The leases of the source, kept in the target under the same ids.
//!
//! ```text
//!   source   granted ────────── kept alive ────────────────── deadline ─ ended, its keys deleted
//!                │ seen             │ seen                        ·          │ seen
//!   target       granted ────────── kept alive ───────────────── ·─ deadline ► revoked, once its keys
//!                (whole TTL)                    at least margin ◄─►            were deleted here too
//! ```
//!
//! A grant gives a lease all of its TTL, and so does a keep-alive; the API has no way to say how much
//! is left. So each lease is granted with the TTL that its holder knows, and kept alive here only when
//! its deadline would come less than a [`margin`] after the one at the source. It never ends earlier
//! than there, and at most its TTL later; once it was seen to be kept alive, at most three times the
//! interval of [`pace`] later.
//!
//! While the copy runs no lease ends here by itself: its keys are deleted by what the watch tells,
//! and then it is revoked. If one ended all the same, because this program was away for longer than it
//! had, keys may be missing: [`Leases::have_lost_keys`].

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt, stream};
use steadfast_server::proto::etcdserverpb::lease_client::LeaseClient;
use steadfast_server::proto::etcdserverpb::{
    LeaseGrantRequest, LeaseKeepAliveRequest, LeaseLeasesRequest, LeaseRevokeRequest,
    LeaseTimeToLiveRequest, LeaseTimeToLiveResponse, RangeRequest,
};
use tokio::time::{Instant, interval};
use tonic::{Request, Response};

use crate::etcd::peer::{MESSAGE_BYTES_MAX, Peer, Trouble};
use crate::etcd::target::GO_ON;
use crate::failure::Failure;

/// How often leases are looked after.
const TICK: Duration = Duration::from_millis(250);
/// How often the source is asked which leases there are.
const LIST_TICKS: u64 = 8;
/// Leases that are looked after at a time.
const AT_A_TIME: usize = 16;
/// Leases of a source. Each takes some 100 bytes here.
const LEASES_MAX: usize = 1_000_000;
const LOOK_MIN: Duration = Duration::from_millis(250);
const LOOK_MAX: Duration = Duration::from_secs(30);
/// What is told in whole seconds may be this much more.
const ROUNDING: Duration = Duration::from_secs(1);

/// How often a lease is compared with the source.
fn pace(ttl: i64) -> Duration {
    (seconds(ttl) / 8).clamp(LOOK_MIN, LOOK_MAX)
}

/// By how much a lease ends later here, so that a keep-alive at the last moment is seen in time.
fn margin(ttl: i64) -> Duration {
    pace(ttl) * 2
}

fn seconds(ttl: i64) -> Duration {
    // No deadline of a longer lease is ever reached.
    Duration::from_secs(u64::try_from(ttl).unwrap_or_default().min(9_000_000_000))
}

/// A lease that is in the target.
#[derive(Clone, Copy)]
struct Kept {
    /// In seconds, as at the source.
    ttl: i64,
    /// When it ends in the target, at the earliest.
    deadline: Instant,
    look_at: Instant,
    /// It has ended at the source, at this revision at the latest.
    ended_by: Option<i64>,
}

#[derive(Default)]
struct State {
    kept: BTreeMap<i64, Kept>,
    /// Up to which revision of the source everything is in the target; 0: keys are being compared.
    applied: i64,
    /// Leases ended in the target that go on at the source.
    lost: bool,
}

/// See the module.
pub(super) struct Leases<'a> {
    source: &'a Peer,
    target: &'a Peer,
    /// The revision of the source up to which an earlier process had copied; 0: there was none.
    resumed_at: i64,
    state: Mutex<State>,
}

impl<'a> Leases<'a> {
    pub(super) fn new(source: &'a Peer, target: &'a Peer, resumed_at: i64) -> Self {
        Self {
            source,
            target,
            resumed_at,
            state: Mutex::default(),
        }
    }

    /// How many there are in the target that go on at the source.
    pub(super) fn count(&self) -> usize {
        let state = self.state();
        state
            .kept
            .values()
            .filter(|kept| kept.ended_by.is_none())
            .count()
    }

    /// Everything up to this revision of the source is in the target; 0: keys are being compared.
    pub(super) fn applied(&self, revision: i64) {
        self.state().applied = revision;
    }

    /// Whether keys may be missing, as a lease ended in the target that goes on at the source. Says
    /// so once: who asks has to compare all keys.
    pub(super) fn have_lost_keys(&self) -> bool {
        std::mem::take(&mut self.state().lost)
    }

    /// The lease to put a key with in the target: this one, or 0 if it has ended at the source, which
    /// will tell of the end of the key.
    ///
    /// # Errors
    /// When one of the sides cannot be asked.
    pub(super) async fn attach(&self, id: i64) -> Result<i64, Failure> {
        if id == 0 || self.is_kept(id) {
            return Ok(id);
        }
        self.look(id).await?;
        Ok(if self.is_kept(id) { id } else { 0 })
    }

    /// The same, when the target says that a lease is not there.
    ///
    /// # Errors
    /// As [`Self::attach`].
    pub(super) async fn attach_again(&self, id: i64) -> Result<i64, Failure> {
        if self.state().kept.remove(&id).is_some() {
            let again = self.attach(id).await?;
            let mut state = self.state();
            state.lost = state.lost || again != 0;
            return Ok(again);
        }
        self.attach(id).await
    }

    fn is_kept(&self, id: i64) -> bool {
        let state = self.state();
        state
            .kept
            .get(&id)
            .is_some_and(|kept| kept.ended_by.is_none())
    }

    /// Looks after the leases for as long as it is polled.
    ///
    /// # Errors
    /// When one of the sides cannot be asked.
    pub(super) async fn keep(&self) -> Result<std::convert::Infallible, Failure> {
        let mut ticks = interval(TICK);
        for number in 0_u64.. {
            ticks.tick().await;
            if number % LIST_TICKS == LIST_TICKS - 1 {
                self.list().await?;
            }
            let now = Instant::now();
            let due: Vec<_> = {
                let state = self.state();
                let due = state
                    .kept
                    .iter()
                    .filter(|(_, kept)| kept.ended_by.is_none() && kept.look_at <= now);
                due.map(|(&id, _)| id).collect()
            };
            self.look_at(due).await?;
            self.end().await?;
        }
        std::future::pending().await
    }

    /// Brings the leases to where the source has them: to be called before and after a copy.
    ///
    /// # Errors
    /// When one of the sides cannot be asked, or there are too many.
    pub(super) async fn settle(&self) -> Result<(), Failure> {
        self.list().await?;
        self.end().await
    }

    /// Grants what is new at the source, and finds out what has ended there.
    async fn list(&self) -> Result<(), Failure> {
        let listed = self
            .source
            .call(LeaseLeasesRequest {}, |channel, request| async move {
                let client = LeaseClient::new(channel);
                client
                    .max_decoding_message_size(MESSAGE_BYTES_MAX)
                    .lease_leases(request)
                    .await
            });
        let listed = listed
            .await
            .map_err(|trouble| self.source.failure(trouble, GO_ON))?;
        if listed.leases.len() > LEASES_MAX {
            return Err(Failure::new(
                format!("the source has more than {LEASES_MAX} leases"),
                GO_ON,
                "revoke those that are no longer used",
            ));
        }
        let listed: std::collections::BTreeSet<_> =
            listed.leases.iter().map(|lease| lease.id).collect();
        let odd: Vec<_> = {
            let state = self.state();
            let kept = |id: &i64| {
                state
                    .kept
                    .get(id)
                    .is_some_and(|kept| kept.ended_by.is_none())
            };
            let new = listed.iter().filter(|id| !kept(id));
            // The member that was asked may lag: the look decides.
            let gone = state
                .kept
                .iter()
                .filter(|(id, kept)| kept.ended_by.is_none() && !listed.contains(id));
            new.copied().chain(gone.map(|(&id, _)| id)).collect()
        };
        self.look_at(odd).await
    }

    async fn look_at(&self, ids: Vec<i64>) -> Result<(), Failure> {
        let looks = stream::iter(ids).map(|id| self.look(id));
        looks.buffer_unordered(AT_A_TIME).try_collect().await
    }

    /// Compares one lease with the source.
    async fn look(&self, id: i64) -> Result<(), Failure> {
        let there = self.at_source(id).await;
        let there = there.map_err(|trouble| self.source.failure(trouble, GO_ON))?;
        let Some((left, ttl)) = there else {
            let revision = self.source.revision().await;
            let revision = revision.map_err(|trouble| self.source.failure(trouble, GO_ON))?;
            if let Some(kept) = self.state().kept.get_mut(&id) {
                kept.ended_by.get_or_insert(revision);
            }
            return Ok(());
        };
        let now = Instant::now();
        let known = self.state().kept.get(&id).copied();
        match known {
            Some(kept) if kept.ttl == ttl => {
                let ends_there = now + seconds(left) + ROUNDING;
                let is_late = kept.deadline < ends_there + margin(ttl);
                let is_kept = !is_late || self.keep_alive(id, ttl).await?;
                if !is_kept {
                    self.grant(id, ttl).await?;
                    self.state().lost = true;
                }
            }
            // It was revoked there, and granted anew with another TTL.
            Some(_) => {
                self.revoke(id).await?;
                self.grant(id, ttl).await?;
                self.state().lost = true;
            }
            None => self.adopt(id, ttl).await?,
        }
        if let Some(kept) = self.state().kept.get_mut(&id) {
            kept.look_at = now + pace(ttl);
            kept.ended_by = None;
        }
        Ok(())
    }

    /// Grants a lease that this process has not seen before.
    async fn adopt(&self, id: i64, ttl: i64) -> Result<(), Failure> {
        let there = time_to_live(self.target, id, false).await;
        let there = there.map_err(|trouble| self.target.failure(trouble, GO_ON))?;
        if there.granted_ttl == ttl {
            if self.keep_alive(id, ttl).await? {
                return Ok(());
            }
        } else if exists(&there) {
            self.revoke(id).await?;
            self.state().lost = true;
        }
        self.grant(id, ttl).await?;
        if self.resumed_at > 0 && self.had_keys(id).await? {
            self.state().lost = true;
        }
        Ok(())
    }

    /// Whether keys had this lease that an earlier process has copied. They ended with it.
    async fn had_keys(&self, id: i64) -> Result<bool, Failure> {
        let failure = |trouble| self.source.failure(trouble, GO_ON);
        let keys = time_to_live(self.source, id, true)
            .await
            .map_err(failure)?
            .keys;
        for key in keys {
            let request = RangeRequest {
                key,
                keys_only: true,
                ..RangeRequest::default()
            };
            let found = self.source.range(request).await.map_err(failure)?;
            if found
                .kvs
                .iter()
                .any(|kv| kv.lease == id && kv.mod_revision <= self.resumed_at)
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn grant(&self, id: i64, ttl: i64) -> Result<(), Failure> {
        let sent = Instant::now();
        let request = LeaseGrantRequest { ttl, id };
        let granted = self.target.call(request, |channel, request| async move {
            LeaseClient::new(channel).lease_grant(request).await
        });
        match granted.await {
            Ok(answer) => {
                self.noted(id, ttl, sent, answer.ttl);
                Ok(())
            }
            // An earlier attempt, whose answer was lost.
            Err(trouble) if trouble.says("lease already exists") => {
                self.keep_alive(id, ttl).await?;
                Ok(())
            }
            Err(trouble) => Err(self.target.failure(trouble, GO_ON)),
        }
    }

    /// Whether the target still has it.
    async fn keep_alive(&self, id: i64, ttl: i64) -> Result<bool, Failure> {
        let sent = Instant::now();
        let request = LeaseKeepAliveRequest { id };
        let kept = self.target.call(request, |channel, request| async move {
            let (head, extensions, message) = request.into_parts();
            let one = Request::from_parts(head, extensions, stream::iter([message]));
            let mut answers = LeaseClient::new(channel).lease_keep_alive(one).await?;
            let answer = answers.get_mut().message().await?;
            Ok(Response::new(answer))
        });
        let answer = kept
            .await
            .map_err(|trouble| self.target.failure(trouble, GO_ON))?;
        let left = answer.map_or(0, |answer| answer.ttl);
        if left > 0 {
            self.noted(id, ttl, sent, left);
        }
        Ok(left > 0)
    }

    /// The target gave it so many seconds from a moment on, or from later.
    fn noted(&self, id: i64, ttl: i64, sent: Instant, left: i64) {
        let kept = Kept {
            ttl,
            deadline: sent + seconds(left),
            look_at: sent + pace(ttl),
            ended_by: None,
        };
        self.state().kept.insert(id, kept);
    }

    /// Revokes what has ended at the source, once its keys were deleted here too.
    async fn end(&self) -> Result<(), Failure> {
        let ended: Vec<_> = {
            let mut state = self.state();
            let applied = state.applied;
            let is_over = |kept: &Kept| kept.ended_by.is_some_and(|by| by <= applied);
            let ended = state.kept.iter().filter(|(_, kept)| is_over(kept));
            let ended: Vec<_> = ended.map(|(&id, _)| id).collect();
            state.kept.retain(|_, kept| !is_over(kept));
            ended
        };
        for id in ended {
            self.revoke(id).await?;
            let mut state = self.state();
            // It was granted anew at the same moment, and its keys may be gone.
            if state.kept.remove(&id).is_some() {
                state.lost = true;
            }
        }
        Ok(())
    }

    async fn revoke(&self, id: i64) -> Result<(), Failure> {
        let revoked = revoke(self.target, id).await;
        revoked.map_err(|trouble| self.target.failure(trouble, GO_ON))
    }

    /// What is left of a lease at the source, and its TTL, in seconds; `None` if it has ended. A
    /// member that lags is asked again once it has caught up.
    async fn at_source(&self, id: i64) -> Result<Option<(i64, i64)>, Trouble> {
        let mut answer = time_to_live(self.source, id, false).await?;
        if !exists(&answer) {
            self.source.revision().await?;
            answer = time_to_live(self.source, id, false).await?;
        }
        Ok(exists(&answer).then_some((answer.ttl, answer.granted_ttl)))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere leaves it whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether there is the lease that was asked for. One that is over but not revoked yet may have less
/// than nothing left.
pub(super) fn exists(answer: &LeaseTimeToLiveResponse) -> bool {
    answer.granted_ttl > 0
}

/// Ends a lease, if it is there.
///
/// # Errors
/// When the side cannot be asked.
pub(super) async fn revoke(peer: &Peer, id: i64) -> Result<(), Trouble> {
    let revoked = peer.call(LeaseRevokeRequest { id }, |channel, request| async move {
        LeaseClient::new(channel).lease_revoke(request).await
    });
    match revoked.await {
        Err(trouble) if !trouble.says("requested lease not found") => Err(trouble),
        _ => Ok(()),
    }
}

/// What is left of a lease: see [`exists`].
///
/// # Errors
/// When the side cannot be asked.
pub(super) async fn time_to_live(
    peer: &Peer,
    id: i64,
    keys: bool,
) -> Result<LeaseTimeToLiveResponse, Trouble> {
    let request = LeaseTimeToLiveRequest { id, keys };
    peer.call(request, |channel, request| async move {
        let client = LeaseClient::new(channel);
        client
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .lease_time_to_live(request)
            .await
    })
    .await
}
