//! The latest members and their addresses, kept on disk for when the node can read nothing else.

use std::sync::{Arc, Mutex, Weak};

use tokio::task::JoinHandle;

use crate::group::addresses::{self, Book};
use crate::group::{Members, known};
use crate::lifecycle::{Lifecycle, lock};
use crate::node::phase::Phase;

/// The task that writes them down.
#[derive(Default)]
pub(super) struct Known(Mutex<Option<JoinHandle<()>>>);

impl Known {
    pub(super) fn begin(&self, lifecycle: &Arc<Lifecycle>) {
        let keeping = keep(Arc::downgrade(lifecycle));
        *lock(&self.0) = Some(steadfast_net::process::spawn(keeping));
    }

    /// Waits until nothing more is written, when the node closes.
    pub(super) async fn end(&self) {
        let keeping = lock(&self.0).take();
        if let Some(keeping) = keeping {
            // The phase ends it; a panic in it has been reported.
            keeping.await.ok();
        }
    }
}

impl Lifecycle {
    /// The members recorded in the directory; if it has recorded none, the founders.
    fn noted_members(&self) -> Members {
        let identity = self.identity.borrow().clone();
        let mut found = known::read(&*self.machine.disk, &self.config.data_dir, &identity);
        if found.is_empty() {
            found.clone_from(&identity.founders);
        }
        Arc::new(found.into_iter().collect())
    }

    /// Loads the recorded members, when the node can read nothing else. Returns how many there are.
    pub(super) fn know_latest_members(&self) -> usize {
        let found = self.noted_members();
        let count = found.len();
        self.around.members.send_replace(found);
        count
    }

    async fn note_addresses(&self, latest: &Book) {
        let identity = self.identity.borrow().clone();
        let (disk, dir) = (&*self.machine.disk, &self.config.data_dir);
        if let Err(error) = addresses::write(disk, dir, &identity, latest).await {
            tracing::warn!(%error, "could not record the addresses of the members");
        }
    }

    async fn note_members(&self, latest: &Members) {
        let identity = self.identity.borrow().clone();
        let (disk, dir) = (&*self.machine.disk, &self.config.data_dir);
        if let Err(error) = known::write(disk, dir, &identity, latest).await {
            // The previous record stays, and is useful until all of it is out of date.
            tracing::warn!(%error, "could not record the latest members");
        }
    }
}

/// Records the members and their addresses on every change, until the node closes or has failed.
/// The founders are in the identity: they are recorded only after others were.
async fn keep(lifecycle: Weak<Lifecycle>) {
    let Some(held) = lifecycle.upgrade() else {
        return;
    };
    let (mut phase, mut identity) = (held.phase.subscribe(), held.identity.subscribe());
    let mut members = held.around.members.subscribe();
    let mut book = held.around.addresses.watch();
    drop(held);
    let mut noted: Option<Members> = None;
    // As read from disk.
    let mut noted_book = book.borrow().clone();
    while !matches!(
        *phase.borrow_and_update(),
        Phase::Closing | Phase::Closed | Phase::Stopped(_) | Phase::Refused(_)
    ) {
        let latest = members.borrow_and_update().clone();
        let latest_book = book.borrow_and_update().clone();
        let Some(lifecycle) = lifecycle.upgrade() else {
            return;
        };
        // Before that, a record would belong to no group.
        let is_in_group = identity.borrow_and_update().group.is_some();
        if *phase.borrow() == Phase::Running && is_in_group {
            let before = noted.take().unwrap_or_else(|| lifecycle.noted_members());
            if before != latest {
                lifecycle.note_members(&latest).await;
            }
            noted = Some(latest);
            if !addresses::is_same_on_disk(&noted_book, &latest_book) {
                lifecycle.note_addresses(&latest_book).await;
                noted_book = latest_book;
            }
        }
        drop(lifecycle);
        let changed = tokio::select! {
            biased;
            changed = phase.changed() => changed.is_ok(),
            changed = identity.changed() => changed.is_ok(),
            changed = members.changed() => changed.is_ok(),
            changed = book.changed() => changed.is_ok(),
        };
        if !changed {
            return;
        }
    }
}
