//! What ends a node when its group was recovered without it.
//!
//! It learns of that from a peer of a later epoch, by a hello that is refused on either side. From
//! then on it takes no part, and its directory says so: it does not come to work again, not even
//! with others of its epoch and while no node of the later one can be reached.

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
    /// The later epoch, when one has shown itself.
    epoch: OnceLock<GroupEpoch>,
}

impl Fence {
    pub(super) fn new(phase: watch::Sender<Phase>) -> Self {
        let epoch = OnceLock::new();
        Self { phase, epoch }
    }

    /// What is called with the own epoch and the later one.
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
    /// Writes into the directory that a later epoch has shown itself, if one has. Does nothing once
    /// the node is closed: closing it has done it.
    pub(super) async fn note_superseded(&self) {
        let _not_closing = self.closing.lock().await;
        self.write_superseded().await;
    }

    /// The same, for whoever closes the node.
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
            // It takes no part in this life, and a peer tells it again in the next one.
            tracing::error!(%error, "a later epoch of the group could not be noted");
        }
    }
}
