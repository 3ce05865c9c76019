//! Ends a node when its group was recovered without it.
//!
//! It learns of the recovery from a peer of a later epoch, when either side refuses the other's
//! hello. From then on it takes no part, and records that in its directory, so that it never works
//! again, not even with others of its epoch while no node of the later one can be reached.

use std::sync::{Arc, OnceLock};

use tokio::sync::watch;

use crate::group::identity::{Identity, superseded};
use crate::ids::GroupEpoch;
use crate::lifecycle::{Lifecycle, lock};
use crate::node::phase::Phase;
use crate::wire::hello::Superseded;

/// Ends the work of one node, once.
pub(super) struct Fence {
    phase: watch::Sender<Phase>,
    /// The later epoch, once one has been seen.
    epoch: OnceLock<GroupEpoch>,
}

impl Fence {
    pub(super) fn new(phase: watch::Sender<Phase>) -> Self {
        let epoch = OnceLock::new();
        Self { phase, epoch }
    }

    /// A callback to be called with the node's own epoch and the later one.
    pub(super) fn alarm(fence: &Arc<Self>) -> Superseded {
        let fence = Arc::clone(fence);
        Arc::new(move |own, later| fence.close(own, later))
    }

    fn close(&self, own: GroupEpoch, later: GroupEpoch) {
        self.epoch.get_or_init(|| later);
        self.phase.send_if_modified(|phase| {
            let is_news = *phase == Phase::Running;
            if is_news {
                let reason = superseded(own, later);
                tracing::error!(reason, "the group goes on without this node");
                *phase = Phase::Refused(reason);
            }
            is_news
        });
    }
}

impl Lifecycle {
    /// Records in the directory that a later epoch has been seen, if so. Does nothing once the node
    /// is closed: the close has done it.
    pub(super) async fn note_superseded(&self) {
        let _not_closing = self.closing.lock().await;
        self.write_superseded().await;
    }

    /// The same, for the caller that closes the node.
    pub(super) async fn write_superseded(&self) {
        let Some(epoch) = self.fence.epoch.get() else {
            return;
        };
        let Some(dir) = lock(&self.dir).take() else {
            return;
        };
        let identity = Identity {
            superseded_by: Some(*epoch),
            ..Identity::clone(&self.identity.borrow())
        };
        let written = dir.write_identity(&*self.machine.disk, &identity).await;
        *lock(&self.dir) = Some(dir);
        if let Err(error) = written {
            // It takes no part in this run, and a peer tells it again in the next one.
            tracing::error!(%error, "could not record a later epoch of the group");
        }
    }
}
