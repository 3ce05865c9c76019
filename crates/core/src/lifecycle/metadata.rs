//! What the application says of this node: published by having the master enter it into the
//! membership, whenever the group has something else.
//!
//! A node that was never given anything asks for nothing, and runs no task.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::{Mutex, watch};
use tokio::time::timeout;

use crate::admin::messages::{AdminCall, AlterRequest, MetadataMessage};
use crate::admin::{ANSWER_MAX, AdminError, answered};
use crate::config::metadata::check_metadata;
use crate::group::Members;
use crate::lifecycle::Lifecycle;
use crate::node::phase::Phase;

/// Pause before the master is asked again that did not answer, or refused.
const RETRY: Duration = Duration::from_secs(1);

/// The same after it has answered: this node has yet to hear of the change, or the master is of an
/// earlier version, which makes none.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

/// How long a caller waits until this node itself has the change that the master has made.
const SEEN_MAX: Duration = Duration::from_secs(5);

type Metadata = BTreeMap<String, String>;

/// What this node publishes.
#[derive(Default)]
pub(super) struct Published {
    /// `None` as long as it was given nothing: the group keeps what it has.
    wanted: watch::Sender<Option<Metadata>>,
    /// Held while the master is asked.
    asking: Mutex<()>,
}

impl Lifecycle {
    /// Begins to publish what the configuration says.
    pub(super) fn begin_metadata(self: &Arc<Self>) {
        if !self.config.metadata.is_empty() {
            self.want_metadata(self.config.metadata.clone());
        }
    }

    /// See [`crate::ReplicatedEnvironment::set_metadata`].
    ///
    /// # Errors
    /// See [`AdminError`].
    pub(crate) async fn set_metadata(
        self: &Arc<Self>,
        metadata: Metadata,
    ) -> Result<(), AdminError> {
        check_metadata(&metadata).map_err(|error| AdminError::Refused {
            what: error.to_string(),
            to_do: "publish fewer or shorter values".to_owned(),
        })?;
        self.want_metadata(metadata);
        self.publish_metadata().await?;
        let mut members = self.around.members.subscribe();
        let seen = members.wait_for(|members| self.has_published(members) == Some(true));
        if timeout(SEEN_MAX, seen).await.is_err() {
            tracing::debug!(
                "the master has entered the metadata, and this node has yet to hear of it"
            );
        }
        Ok(())
    }

    /// Publishes this from now on.
    fn want_metadata(self: &Arc<Self>, metadata: Metadata) {
        let before = self.published.wanted.send_replace(Some(metadata));
        if before.is_none() {
            let phase = self.phase.subscribe();
            self.tasks
                .spawn(keep_published(Arc::downgrade(self), phase));
        }
    }

    /// Whether the group has what is wanted for this node; `None` as long as it is no member.
    fn has_published(&self, members: &Members) -> Option<bool> {
        let own = self.identity.borrow().node_id;
        let member = members.get(&own)?;
        Some(self.published.wanted.borrow().as_ref() == Some(&member.metadata))
    }

    /// Has the master enter what is wanted, unless it is there already.
    async fn publish_metadata(&self) -> Result<(), AdminError> {
        let _asking = self.published.asking.lock().await;
        let wanted = self.published.wanted.borrow().clone();
        let Some(entries) = wanted else {
            return Ok(());
        };
        if self.has_published(&self.around.members.borrow()) == Some(true) {
            return Ok(());
        }
        let identity = self.identity.borrow().clone();
        let call = AdminCall::Alter(AlterRequest {
            name: identity.node_name.clone(),
            metadata: Some(MetadataMessage { entries }),
            ..AlterRequest::default()
        });
        let addresses = self.addresses_of_all();
        let client = self.admin_client(&identity, &addresses);
        answered(client.call(call, ANSWER_MAX).await).map(|_| ())
    }
}

/// Publishes what is wanted whenever the group has something else, until the node closes.
async fn keep_published(lifecycle: Weak<Lifecycle>, mut phase: watch::Receiver<Phase>) {
    let Some(held) = lifecycle.upgrade() else {
        return;
    };
    let mut members = held.around.members.subscribe();
    let mut wanted = held.published.wanted.subscribe();
    // A new node has its id last.
    let mut identity = held.identity.subscribe();
    drop(held);
    loop {
        let Some(held) = lifecycle.upgrade() else {
            return;
        };
        wanted.borrow_and_update();
        identity.borrow_and_update();
        let is_running = *phase.borrow_and_update() == Phase::Running;
        let differs = held.has_published(&members.borrow_and_update()) == Some(false);
        let mut pause = None;
        if is_running && differs {
            pause = Some(match held.publish_metadata().await {
                Ok(()) => LOOK_AGAIN,
                Err(error) => {
                    tracing::debug!(%error, "the metadata is not published yet");
                    RETRY
                }
            });
        }
        drop(held);
        let goes_on = tokio::select! {
            biased;
            changed = phase.changed() => changed.is_ok(),
            changed = identity.changed() => changed.is_ok(),
            changed = members.changed() => changed.is_ok(),
            changed = wanted.changed() => changed.is_ok(),
            () = tokio::time::sleep(pause.unwrap_or_default()), if pause.is_some() => true,
        };
        if !goes_on {
            return;
        }
    }
}
