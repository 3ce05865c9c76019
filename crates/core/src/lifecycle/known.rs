//! The latest members, kept in the data directory for when the node can read nothing else.

use std::sync::{Arc, Mutex, Weak};

use tokio::task::JoinHandle;

use crate::group::{Members, known};
use crate::lifecycle::{Lifecycle, Phase, lock};

/// The task that writes them down.
#[derive(Default)]
pub(super) struct Known(Mutex<Option<JoinHandle<()>>>);

impl Known {
    pub(super) fn begin(&self, lifecycle: &Arc<Lifecycle>) {
        let keeping = keep(Arc::downgrade(lifecycle));
        *lock(&self.0) = Some(steadfast_net::process::spawn(keeping));
    }

    /// Waits until nothing is written any more, when the node closes.
    pub(super) async fn end(&self) {
        let keeping = lock(&self.0).take();
        if let Some(keeping) = keeping {
            // It ends because of the phase; a panic in it has been reported.
            keeping.await.ok();
        }
    }
}

impl Lifecycle {
    /// The members that the directory has noted, which are those of the beginning where it has noted no
    /// others.
    fn noted_members(&self) -> Members {
        let identity = self.identity.borrow().clone();
        let mut found = known::read(&*self.machine.disk, &self.config.data_dir, &identity);
        if found.is_empty() {
            found.clone_from(&identity.founders);
        }
        Arc::new(found.into_iter().collect())
    }

    /// Knows the noted members again, when the node can read nothing else. Returns how many there are.
    pub(super) fn know_latest_members(&self) -> usize {
        let found = self.noted_members();
        let count = found.len();
        self.around.members.send_replace(found);
        count
    }

    async fn note_members(&self, latest: &Members) {
        let identity = self.identity.borrow().clone();
        let (disk, dir) = (&*self.machine.disk, &self.config.data_dir);
        if let Err(error) = known::write(disk, dir, &identity, latest).await {
            // What was noted before stays, and is of use until it is quite out of date.
            tracing::warn!(%error, "the latest members could not be noted");
        }
    }
}

/// Writes the members down whenever they have changed, until the node closes or has failed.
async fn keep(lifecycle: Weak<Lifecycle>) {
    let Some((mut phase, mut members)) = lifecycle.upgrade().map(|lifecycle| {
        let members = lifecycle.around.members.subscribe();
        (lifecycle.phase.subscribe(), members)
    }) else {
        return;
    };
    let mut noted: Option<Members> = None;
    while !matches!(
        *phase.borrow_and_update(),
        Phase::Closing | Phase::Closed | Phase::Stopped(_) | Phase::Refused(_)
    ) {
        let latest = members.borrow_and_update().clone();
        let Some(lifecycle) = lifecycle.upgrade() else {
            return;
        };
        if *phase.borrow() == Phase::Running {
            let before = noted.take().unwrap_or_else(|| lifecycle.noted_members());
            if before != latest {
                lifecycle.note_members(&latest).await;
            }
            noted = Some(latest);
        }
        drop(lifecycle);
        let changed = tokio::select! {
            biased;
            changed = phase.changed() => changed.is_ok(),
            changed = members.changed() => changed.is_ok(),
        };
        if !changed {
            return;
        }
    }
}
