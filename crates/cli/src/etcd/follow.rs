//! What happens at the source after the keys were copied: its watch, revision by revision.
//!
//! Every revision is written whole, in one transaction. When the copy is behind, several whole ones
//! go into one: what the target holds is always what the source held at one revision.

use std::cell::Cell;
use std::collections::VecDeque;
use std::time::Duration;

use futures_util::FutureExt;
use steadfast_server::proto::etcdserverpb::WatchResponse;
use tokio::sync::Notify;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep};
use tonic::{Status, Streaming};

use crate::etcd::copy::{Stopped, write};
use crate::etcd::leases::Leases;
use crate::etcd::peer::{Peer, Trouble};
use crate::etcd::record::{RECORD_KEY, name};
use crate::etcd::revisions::{Revision, Revisions, Unusable};
use crate::etcd::target::{Changes, GO_ON, NotWritten, Target};
use crate::failure::Failure;
use crate::status::grouped;

/// Changes of one transaction, unless one revision is larger.
const BATCH_KEYS: usize = 1000;
const BATCH_BYTES: usize = 512 * 1024;
/// How often the source is asked for its revision.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// How often the state is told on stderr.
const TELL_INTERVAL: Duration = Duration::from_secs(10);
/// For how long a watch may say nothing although there is something to tell.
const SILENCE_MAX: Duration = Duration::from_secs(10);
/// For how long watches may end one after the other.
const FAILING_MAX: Duration = Duration::from_mins(1);
const PAUSE: Duration = Duration::from_millis(100);

/// When to switch from the source to the target.
#[derive(Default)]
pub(super) struct Switch {
    is_told: Cell<bool>,
    told: Notify,
    is_following: Cell<bool>,
}

impl Switch {
    pub(super) fn tell(&self) {
        self.is_told.set(true);
        self.told.notify_one();
    }

    /// Whether all keys were copied, so that it can be told to switch.
    pub(super) fn is_possible(&self) -> bool {
        self.is_following.get()
    }
}

/// Follows the source until it is told to switch, and all that the source had by then is in the
/// target.
///
/// # Errors
/// See [`Stopped`].
pub(super) async fn run(
    source: &Peer,
    target: &mut Target<'_>,
    leases: &Leases<'_>,
    switch: &Switch,
) -> Result<(), Stopped> {
    let mut ticks = interval(CHECK_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut follow = Follow {
        source,
        target,
        leases,
        switch,
        goal: None,
        heard: Instant::now(),
        told: None,
    };
    leases.applied(follow.applied());
    switch.is_following.set(true);
    let done = follow.until_goal(&mut ticks).await;
    switch.is_following.set(false);
    done
}

struct Follow<'a, 'b> {
    source: &'a Peer,
    target: &'a mut Target<'b>,
    leases: &'a Leases<'a>,
    switch: &'a Switch,
    /// The last revision that is wanted, once it was told to switch.
    goal: Option<i64>,
    /// When the watch said something, or had nothing to say.
    heard: Instant,
    /// When the state was told.
    told: Option<Instant>,
}

/// Why a watch is read no further.
enum Cut {
    /// It is open, and has nothing more at this moment.
    Not,
    /// It has ended.
    Ended(Status),
}

impl Follow<'_, '_> {
    fn applied(&self) -> i64 {
        self.target.record().revision
    }

    fn is_done(&self) -> bool {
        self.goal.is_some_and(|goal| self.applied() >= goal)
    }

    /// One watch after the other.
    async fn until_goal(&mut self, ticks: &mut Interval) -> Result<(), Stopped> {
        let mut failing_since = None;
        loop {
            let from = self.applied();
            let (at, status) = match self.source.watch(from + 1).await {
                Ok((at, stream)) => match self.read(stream, ticks).await? {
                    None => return Ok(()),
                    Some(status) => (at, status),
                },
                Err(failed) => failed,
            };
            tracing::debug!(%status, "the watch has ended");
            if self.applied() > from {
                failing_since = None;
            }
            let since = *failing_since.get_or_insert_with(Instant::now);
            let failure = |trouble| self.source.failure(trouble, GO_ON);
            if since.elapsed() > FAILING_MAX {
                return Err(failure(Trouble::Lost(status)).into());
            }
            self.source.failed_at(at, status).map_err(failure)?;
            sleep(PAUSE).await;
        }
    }

    /// Reads a watch until the goal is reached, or until it ends, which is returned.
    async fn read(
        &mut self,
        mut stream: Streaming<WatchResponse>,
        ticks: &mut Interval,
    ) -> Result<Option<Status>, Stopped> {
        let mut revisions = Revisions::after(self.applied());
        self.heard = Instant::now();
        loop {
            if self.switch.is_told.get() && self.goal.is_none() {
                self.goal = Some(self.source_revision().await?);
            }
            if self.is_done() {
                return Ok(None);
            }
            tokio::select! {
                message = stream.message() => {
                    self.heard = Instant::now();
                    let mut whole = VecDeque::new();
                    let cut = gather(message, &mut stream, &mut revisions, &mut whole)?;
                    self.apply(whole).await?;
                    if let Cut::Ended(status) = cut {
                        return Ok(Some(status));
                    }
                }
                () = self.switch.told.notified() => {}
                _ = ticks.tick() => {
                    if let Some(status) = self.check().await? {
                        return Ok(Some(status));
                    }
                }
            }
        }
    }

    async fn source_revision(&self) -> Result<i64, Failure> {
        let revision = self.source.revision().await;
        revision.map_err(|trouble| self.source.failure(trouble, GO_ON))
    }

    /// What is looked at each second. A watch that keeps silent about what there is has ended.
    async fn check(&mut self) -> Result<Option<Status>, Stopped> {
        if self.leases.have_lost_keys() {
            return Err(Stopped::Outdated("leases ended in the target meanwhile"));
        }
        let newest = self.source_revision().await?;
        let behind = newest - self.applied();
        if behind <= 0 {
            self.heard = Instant::now();
        }
        if self.told.is_none_or(|told| told.elapsed() >= TELL_INTERVAL) {
            if self.told.is_none() && !self.switch.is_told.get() {
                eprintln!("following: stop the writers of the source, then press Ctrl-C to switch");
            }
            self.told = Some(Instant::now());
            let behind = grouped(u64::try_from(behind).unwrap_or_default());
            eprintln!("at revision {}, {behind} behind the source", self.applied());
        }
        let is_silent = self.heard.elapsed() > SILENCE_MAX;
        Ok(is_silent.then(|| Status::unavailable("the watch keeps silent")))
    }

    /// Writes revisions, as many in a transaction as fit.
    async fn apply(&mut self, mut whole: VecDeque<Revision>) -> Result<(), Stopped> {
        while let Some(first) = whole.pop_front() {
            let mut record = self.target.record().following();
            let mut changes = Changes::new();
            let mut bytes = 0;
            let mut next = Some(first);
            while let Some(revision) = next {
                if revision.changes.contains_key(RECORD_KEY) {
                    return Err(source_is_a_target().into());
                }
                bytes += revision.bytes;
                changes.extend(revision.changes);
                record.revision = revision.number;
                record.counts.revisions += 1;
                record.counts.events += revision.events;
                next = whole.pop_front_if(|next| {
                    bytes + next.bytes <= BATCH_BYTES
                        && changes.len() + next.changes.len() <= BATCH_KEYS
                });
            }
            write(self.target, self.leases, &changes, record).await?;
            self.leases.applied(self.applied());
        }
        Ok(())
    }
}

/// Takes a message, and those that have arrived after it while they are few.
fn gather(
    first: Result<Option<WatchResponse>, Status>,
    stream: &mut Streaming<WatchResponse>,
    revisions: &mut Revisions,
    whole: &mut VecDeque<Revision>,
) -> Result<Cut, Stopped> {
    let mut bytes = 0;
    let mut message = Some(first);
    while let Some(read) = message {
        let read = match read {
            Ok(Some(read)) => read,
            Ok(None) => return Ok(Cut::Ended(Status::unavailable("the watch has ended"))),
            Err(status) => return Ok(Cut::Ended(status)),
        };
        if read.canceled {
            return cancelled(&read);
        }
        match revisions.push(read) {
            Ok(more) => {
                bytes += more.iter().map(|revision| revision.bytes).sum::<usize>();
                whole.extend(more);
            }
            Err(Unusable::OutOfOrder) => {
                return Ok(Cut::Ended(Status::internal(
                    "the watch goes back to old revisions",
                )));
            }
            Err(Unusable::TooLarge) => {
                return Err(NotWritten::TooLarge.into());
            }
        }
        message = if bytes < BATCH_BYTES {
            stream.message().now_or_never()
        } else {
            None
        };
    }
    Ok(Cut::Not)
}

fn cancelled(message: &WatchResponse) -> Result<Cut, Stopped> {
    if message.compact_revision > 0 {
        return Err(Stopped::Outdated("the source was compacted meanwhile"));
    }
    let reason = message.cancel_reason.clone();
    Ok(Cut::Ended(if reason.contains("permission denied") {
        Status::permission_denied(reason)
    } else if reason.contains("auth token") {
        Status::unauthenticated(reason)
    } else {
        Status::unavailable(reason)
    }))
}

/// Somebody copies into the source.
pub(super) fn source_is_a_target() -> Failure {
    Failure::new(
        format!(
            "the source is itself the target of a copy that is not complete: it has the key {}",
            name()
        ),
        GO_ON,
        "complete that copy first; if nobody goes on with it, delete the key at the source",
    )
}
