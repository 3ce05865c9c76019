//! What an environment asks of its group: changes, and what its own node is to the others.

use std::time::Duration;

use crate::admin::{AdminCommand, AdminError};
use crate::env::ReplicatedEnvironment;
use crate::error::ReadyError;
use crate::ids::GroupUuid;
use crate::member::{JoinToken, NodeType};

impl ReplicatedEnvironment {
    /// Has the group change itself: membership, types, priorities, addresses, the master. Any node
    /// can be asked. Returns a description of what was done.
    ///
    /// # Errors
    /// See [`AdminError`].
    pub fn administer(&self, command: &AdminCommand) -> Result<String, AdminError> {
        self.block_on(self.administer_async(command))
    }

    /// As [`ReplicatedEnvironment::administer`].
    ///
    /// # Errors
    /// See [`AdminError`].
    pub async fn administer_async(&self, command: &AdminCommand) -> Result<String, AdminError> {
        let done = self.unless_closed(self.lifecycle().administer(command));
        done.await.unwrap_or_else(|| Err(closed()))
    }

    /// Waits until the node belongs to a group, and returns which: with data that it can read, or
    /// still copying it, and whether or not there is a master.
    ///
    /// # Errors
    /// See [`ReadyError`](crate::ReadyError); a timeout says what is missing.
    pub async fn wait_group_async(&self, timeout: Duration) -> Result<GroupUuid, ReadyError> {
        self.lifecycle().wait_group(timeout).await
    }

    /// Publishes these values of the application, by name, in place of all that it has published of
    /// this node before: see [`RepConfigBuilder::metadata`], which also has the limits. Returns when
    /// the group has them; any node can be asked for its own. After an error other than
    /// [`AdminError::Refused`] the node goes on trying until it closes.
    ///
    /// A node that is opened again publishes what its configuration says, if it says anything.
    ///
    /// [`RepConfigBuilder::metadata`]: crate::RepConfigBuilder::metadata
    ///
    /// # Errors
    /// [`AdminError::Refused`] for values beyond the limits; others when no master answers.
    pub fn set_metadata<N: Into<String>, V: Into<String>>(
        &self,
        metadata: impl IntoIterator<Item = (N, V)>,
    ) -> Result<(), AdminError> {
        self.block_on(self.set_metadata_async(metadata))
    }

    /// As [`ReplicatedEnvironment::set_metadata`].
    ///
    /// # Errors
    /// As there.
    pub async fn set_metadata_async<N: Into<String>, V: Into<String>>(
        &self,
        metadata: impl IntoIterator<Item = (N, V)>,
    ) -> Result<(), AdminError> {
        let metadata = metadata.into_iter();
        let metadata = metadata.map(|(name, value)| (name.into(), value.into()));
        let published = self.lifecycle().set_metadata(metadata.collect());
        let published = self.unless_closed(self.ground().run(published));
        published.await.unwrap_or_else(|| Err(closed()))
    }

    /// Shuts down the whole group: the master stops taking writes, waits, for at most `within`,
    /// until every node that answers has all of them on disk, and then all nodes close, the master
    /// last. Any node can be asked. Returns a description of what was done; this node then closes
    /// by itself, and [`ReplicatedEnvironment::state_changes`] ends.
    ///
    /// # Errors
    /// See [`AdminError`]; after a refusal the group carries on as before.
    pub fn shutdown_group(&self, within: Duration) -> Result<String, AdminError> {
        self.block_on(self.shutdown_group_async(within))
    }

    /// As [`ReplicatedEnvironment::shutdown_group`].
    ///
    /// # Errors
    /// See [`AdminError`].
    pub async fn shutdown_group_async(&self, within: Duration) -> Result<String, AdminError> {
        self.administer_async(&AdminCommand::Shutdown { within })
            .await
    }

    /// A token that lets a new node of this type join the group: see
    /// [`Bootstrap::join`](crate::Bootstrap::join). `None` until this node belongs to a group.
    pub fn join_token(&self, node_type: NodeType) -> Option<JoinToken> {
        JoinToken::new(&self.status(), node_type)
    }
}

fn closed() -> AdminError {
    AdminError::NoAnswer {
        why: "the environment is closed".to_owned(),
        may_be_done: true,
    }
}
