//! What a node does when its disk fills up: it warns, then takes no user writes, and takes them
//! again by itself when there is room. When its disk hangs, it gives mastership to another node.
//!
//! ```text
//!            free < disk_free_warn_bytes        free < disk_free_read_only_bytes
//!   Enough ────────────────────────────► Low ───────────────────────────────────► ReadOnly
//!      ▲                                  │ ▲        a master hands over first        │
//!      └────── a quarter more is free ────┘ └───────── a quarter more is free ────────┘
//! ```
//!
//! Only a master turns users away. A replica below its limit continues to append and to
//! acknowledge: the group would lose whatever it refused, and the log grows only as long as some
//! master has room. It does not stand for election while another node could lead. If none has
//! become master for a while, it stands as a last resort: it may be the only one that has what a
//! majority acknowledged, and as master it brings the others up to date and hands over.
//!
//! Nothing is stored: each look at the disk decides. If the disk fills up before this acts, a write
//! fails, and the node stops, as after any failed write.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::config::RepConfig;
use crate::engine::FREE_DISK_BYTES_MIN;
use crate::error::WriteError;
use crate::group::identity::growing_dirs;
use crate::ids::NodeId;
use crate::lifecycle::Lifecycle;
use crate::lifecycle::changes::candidates;
use crate::lifecycle::transfer::hand_over;
use crate::listener::Role;
use crate::log::DiskSpace;
use crate::node::Node;
use crate::node::phase::Phase;
use crate::wire::node_state;
use crate::wire::node_state::NodeStateMessage;

/// How often the disk is checked: at 500 MB/s, the default minimum of free space lasts this long.
const INTERVAL: Duration = Duration::from_millis(500);

/// How long a master looks for a successor before it turns users away.
const HAND_OVER_MAX: Duration = Duration::from_secs(2);

/// Pause before a master without room looks for a successor again.
const HAND_OVER_RETRY: Duration = Duration::from_secs(5);

/// Number of `election_timeout_max` periods without a master after which a node without room stands
/// for election all the same.
const LAST_RESORT_ROUNDS: u32 = 16;

/// What follows from the free space.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Standing {
    #[default]
    Enough,
    Low,
    ReadOnly,
}

/// What is free, and what follows from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Room {
    pub(super) space: DiskSpace,
    pub(super) standing: Standing,
    /// Whether the storage engine refuses writes for lack of space, whatever the limits are.
    is_engine_full: bool,
}

impl Default for Room {
    fn default() -> Self {
        let space = DiskSpace {
            free_bytes: 0,
            total_bytes: 0,
        };
        Self {
            space,
            standing: Standing::Enough,
            is_engine_full: false,
        }
    }
}

impl Room {
    /// Why the node is read-only, in words, while it is.
    pub(super) fn why_read_only(&self, config: &RepConfig) -> Option<String> {
        (self.standing == Standing::ReadOnly).then(|| {
            let why = if self.is_engine_full {
                "what its storage engine needs"
            } else {
                "disk_free_read_only_bytes"
            };
            format!(
                "its disk has {} MiB free, less than {} MiB ({why})",
                self.space.free_bytes >> 20,
                self.limit_bytes(config) >> 20
            )
        })
    }

    /// What must be free, in bytes.
    fn limit_bytes(&self, config: &RepConfig) -> u64 {
        let configured = config.tuning.disk_free_read_only_bytes;
        if self.is_engine_full {
            configured.max(FREE_DISK_BYTES_MIN)
        } else {
            configured
        }
    }
}

/// What follows from this many free bytes, given the previous standing.
fn judge(before: Standing, free_bytes: u64, warn: u64, read_only: u64) -> Standing {
    // A limit once crossed is cleared only a quarter above it, or each write would cross it anew.
    let is_below = |limit: u64, was: bool| {
        free_bytes < limit || (was && free_bytes < limit.saturating_add(limit / 4))
    };
    if is_below(read_only, before >= Standing::ReadOnly) {
        Standing::ReadOnly
    } else if is_below(warn, before >= Standing::Low) {
        Standing::Low
    } else {
        Standing::Enough
    }
}

impl Lifecycle {
    /// The volume with the least room among those the node writes to: its log may have its own.
    fn least_space(&self) -> Option<DiskSpace> {
        let dirs = growing_dirs(&self.config.data_dir, &self.identity.borrow());
        // A missing directory will be created in the data directory.
        let spaces = dirs
            .iter()
            .filter_map(|dir| self.machine.disk.space(dir).ok());
        spaces.min_by_key(|space| space.free_bytes)
    }

    /// The current free space, and what follows from it.
    fn look_for_room(&self) -> Room {
        let before = *self.room.borrow();
        let Some(space) = self.least_space() else {
            return before;
        };
        let tuning = &self.config.tuning;
        let (warn, read_only) = (
            tuning.disk_free_warn_bytes,
            tuning.disk_free_read_only_bytes,
        );
        // A node that has stopped because of this recovers once there is enough.
        let was_full = before.is_engine_full && space.free_bytes < FREE_DISK_BYTES_MIN;
        let is_engine_full = self.node().map_or(was_full, |node| node.flush.is_full());
        let standing = if is_engine_full {
            Standing::ReadOnly
        } else {
            judge(before.standing, space.free_bytes, warn, read_only)
        };
        #[expect(clippy::cast_precision_loss, reason = "a ratio for people")]
        let ratio = space.free_bytes as f64 / space.total_bytes.max(1) as f64;
        let node = self.config.node.clone();
        metrics::gauge!("steadfast_disk_free_ratio", "node" => node).set(ratio);
        Room {
            space,
            standing,
            is_engine_full,
        }
    }

    /// The current state. A node that has stopped may just have done so for lack of room.
    pub(super) fn room_now(&self) -> Room {
        if matches!(*self.phase.borrow(), Phase::Stopped(_)) {
            return self.look_for_room();
        }
        *self.room.borrow()
    }

    /// Looks for the first time: from here on the node knows its free space.
    pub(super) fn begin_with_room(&self) {
        self.publish_room(self.look_for_room());
    }

    fn publish_room(&self, room: Room) {
        let before = self.room.send_replace(room).standing;
        if before == room.standing {
            return;
        }
        let is_read_only = f64::from(u8::from(room.standing == Standing::ReadOnly));
        let node = self.config.node.clone();
        metrics::gauge!("steadfast_read_only", "node" => node, "reason" => "disk")
            .set(is_read_only);
        let (free_bytes, dir) = (room.space.free_bytes, self.config.data_dir.display());
        match room.standing {
            Standing::Enough => tracing::info!(free_bytes, %dir, "there is room on the disk again"),
            Standing::Low => tracing::warn!(free_bytes, %dir, "the disk is filling up"),
            Standing::ReadOnly => tracing::error!(
                free_bytes, %dir, "the disk is nearly full; this node takes no user writes"
            ),
        }
    }

    /// Whether the node may become master: it has room, and does not give way to another.
    pub(super) fn may_stand(&self) -> bool {
        let has_room = self.room.borrow().standing != Standing::ReadOnly;
        has_room && !self.gives_way.load(Ordering::Acquire)
    }

    /// The node at work, to write on. A node that is not master reports that by itself.
    ///
    /// # Errors
    /// As [`Lifecycle::running`]; [`WriteError::DiskFull`] on a master without room.
    pub(super) fn writable(&self) -> Result<Arc<Node>, WriteError> {
        let node = self.running()?;
        let room = *self.room.borrow();
        if room.standing == Standing::ReadOnly && node.consensus.is_master() {
            return Err(WriteError::DiskFull {
                free_bytes: room.space.free_bytes,
                limit_bytes: room.limit_bytes(&self.config),
            });
        }
        Ok(node)
    }

    /// Looks at the disk, and acts on what it finds.
    async fn keep_room(&self, watched: &mut Watched) {
        let found = self.look_for_room();
        let node = self.node();
        let hangs = node.as_ref().and_then(|node| node.hangs_for());
        watched.note_hang(hangs);
        if found.standing != Standing::ReadOnly && hangs.is_none() {
            *watched = Watched::default();
            if let Some(node) = node {
                node.consensus.set_may_stand(self.may_stand());
            }
        } else if let Some(node) = &node {
            let may_stand = self.is_last_resort(node, watched);
            node.consensus.set_may_stand(may_stand);
            let is_due = watched
                .handed_over
                .is_none_or(|at| at.elapsed() >= HAND_OVER_RETRY);
            if node.consensus.is_master() && is_due {
                watched.handed_over = Some(Instant::now());
                self.hand_over_to(node, |of| of.disk_hangs_ms.is_none())
                    .await;
            }
        }
        self.publish_room(found);
    }

    /// Whether this node must stand for election although it has no room.
    fn is_last_resort(&self, node: &Node, watched: &mut Watched) -> bool {
        if self.around.role.borrow().role != Role::Unknown {
            watched.masterless = None;
            return false;
        }
        let voters = node.consensus.voters();
        let members = self.around.members.borrow();
        let is_alone = candidates(&members, &voters)
            .iter()
            .all(|id| *id == node.consensus.own_id());
        let since = *watched.masterless.get_or_insert_with(Instant::now);
        let patience = self.config.tuning.election_timeout_max * LAST_RESORT_ROUNDS;
        is_alone || since.elapsed() >= patience
    }

    /// Hands over to another node that has room and `suits`, if one has caught up. Returns whether
    /// it did.
    pub(super) async fn hand_over_to(
        &self,
        node: &Node,
        suits: fn(&NodeStateMessage) -> bool,
    ) -> bool {
        let members = node.consensus.members();
        let own = node.consensus.own_id();
        let mut others = candidates(&members, &node.consensus.voters());
        others.retain(|id| *id != own && node.consensus.has_caught_up(*id));
        let asked = others.into_iter().map(|id| {
            let address = self.around.addresses.best(id, &members[&id].address);
            async move {
                let (transport, timeout) =
                    (&*self.machine.transport, self.config.tuning.dial_timeout);
                let state = node_state::ask(transport, &address, false, timeout).await;
                let state = state.ok()?;
                (state.read_only.is_empty() && suits(&state)).then_some(id)
            }
        });
        let suited: Vec<NodeId> = join_all(asked).await.into_iter().flatten().collect();
        if suited.is_empty() {
            tracing::warn!(
                "no other node that has caught up would be a better master; this one stays master"
            );
            return false;
        }
        let deadline = Instant::now() + HAND_OVER_MAX;
        let handed = hand_over(&node.consensus, &suited, deadline).await;
        if let Err(error) = &handed {
            tracing::warn!(%error, "this master should hand over, but could not");
        }
        handed.is_ok()
    }
}

/// What is kept between two looks at a disk that is too full or hangs.
#[derive(Default)]
struct Watched {
    /// Since when no master has been known.
    masterless: Option<Instant>,
    /// When this node, as master, last looked for a successor.
    handed_over: Option<Instant>,
    /// Whether the disk hangs.
    hangs: bool,
}

impl Watched {
    fn note_hang(&mut self, hangs: Option<Duration>) {
        let is_news = self.hangs != hangs.is_some();
        self.hangs = hangs.is_some();
        match hangs {
            Some(since) if is_news => {
                tracing::error!(
                    ?since,
                    "the disk has not finished a write; this node counts for nothing until it does"
                );
            }
            None if is_news => tracing::info!("the disk works again"),
            _ => {}
        }
    }
}

/// Looks at the disk periodically, until the node is closed. A node that has stopped still reports
/// how much is free.
pub(super) async fn watch(lifecycle: Weak<Lifecycle>, mut phase: watch::Receiver<Phase>) {
    let mut watched = Watched::default();
    let is_over = |phase: &Phase| matches!(phase, Phase::Closing | Phase::Closed);
    loop {
        let over = phase.wait_for(is_over);
        if tokio::time::timeout(INTERVAL, over).await.is_ok() {
            return;
        }
        let Some(lifecycle) = lifecycle.upgrade() else {
            return;
        };
        tokio::select! {
            biased;
            _ = phase.wait_for(is_over) => return,
            () = lifecycle.keep_room(&mut watched) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_that_was_crossed_is_left_a_quarter_above_it() {
        let path = [
            (2000, Standing::Enough),
            (999, Standing::Low),
            (1100, Standing::Low),
            (1250, Standing::Enough),
            (99, Standing::ReadOnly),
            (124, Standing::ReadOnly),
            (125, Standing::Low),
            (100, Standing::Low),
            (0, Standing::ReadOnly),
            (9999, Standing::Enough),
        ];
        let mut standing = Standing::Enough;
        for (free_bytes, expected) in path {
            standing = judge(standing, free_bytes, 1000, 100);
            assert_eq!(standing, expected, "{free_bytes}");
        }
        assert_eq!(judge(Standing::Enough, 0, 0, 0), Standing::Enough);
    }
}
