//! How a node with a new directory finds its group, by a list or a token, and starts work.

use std::sync::Arc;

use crate::config::{ConfigError, RepConfig};
use crate::error::OpenError;
use crate::group::Members;
use crate::group::identity::{DataDir, Identity};
use crate::ids::{GroupUuid, Incarnation};
use crate::lifecycle::formation::Formation;
use crate::lifecycle::join::Joining;
use crate::lifecycle::{Lifecycle, lock};
use crate::machine::Machine;
use crate::node;
use crate::node::create_log;
use crate::node::phase::Phase;
use crate::quorum_loss;
use crate::state_copy::swap;

/// A node that was to join a group founds none of its own because its token is gone.
const BEGUN_WITH_TOKEN: &str = "is missing: this data directory was begun with a join token, and its \
     group has not let the node in yet; give a token again, or an empty directory";

/// The identity in the directory, or a new one that has been written there.
pub(super) async fn own_identity(
    config: &RepConfig,
    machine: &Machine,
    dir: &DataDir,
) -> Result<Identity, OpenError> {
    if let Some(found) = dir.find_identity(&*machine.disk).await? {
        let foreign = |what, found: &str, expected: &str| OpenError::ForeignDirectory {
            dir: config.data_dir.clone(),
            what,
            found: found.to_owned(),
            expected: expected.to_owned(),
        };
        if found.group_name != config.group {
            return Err(foreign("group", &found.group_name, &config.group));
        }
        if found.node_name != config.node {
            return Err(foreign("node", &found.node_name, &config.node));
        }
        if found.joins && found.group.is_none() && config.token.is_none() {
            return Err(ConfigError::new("join", BEGUN_WITH_TOKEN).into());
        }
        let found = swap::finish(&node::log_config(config), machine, dir, found).await?;
        return quorum_loss::finish(machine, dir, found).await;
    }
    let (incarnation, _) = draw(machine.seed);
    let identity = Identity {
        joins: config.token.is_some(),
        ..Identity::fresh(&config.group, &config.node, Incarnation(incarnation))
    };
    dir.write_identity(&*machine.disk, &identity).await?;
    Ok(identity)
}

/// An incarnation and a group UUID, derived from a machine's seed.
fn draw(seed: u64) -> (u64, GroupUuid) {
    use rand::{Rng, SeedableRng};
    let mut rng = rand::rngs::StdRng::seed_from_u64(seed);
    let incarnation = rng.next_u64();
    let mut bytes = [0; 16];
    rng.fill_bytes(&mut bytes);
    (
        incarnation,
        GroupUuid(uuid::Builder::from_random_bytes(bytes).into_uuid()),
    )
}

/// Finds the group, then starts work. A close ends the waiting for others; once this node has begun
/// to make its log, threads work in its directory, and it goes on until they can be stopped.
pub(super) async fn form(lifecycle: Arc<Lifecycle>) {
    let identity = Identity::clone(&lifecycle.identity.borrow());
    let mut phase = lifecycle.phase.subscribe();
    let formed = tokio::select! {
        biased;
        _ = phase.wait_for(|phase| *phase == Phase::Closing) => return,
        formed = lifecycle.come_to_group(identity) => formed,
    };
    match formed {
        Ok(identity) => {
            if let Err(error) = lifecycle.come_to_work(identity).await {
                (lifecycle.around.failed)(error.to_string());
            }
        }
        Err(reason) => {
            tracing::error!(reason, "the group refuses this node");
            lifecycle.phase.send_replace(Phase::Refused(reason));
        }
    }
}

impl Lifecycle {
    /// # Errors
    /// The reason for which the group refuses this node.
    async fn come_to_group(&self, identity: Identity) -> Result<Identity, String> {
        let transport = Arc::clone(&self.machine.transport);
        let dial_timeout = self.config.tuning.dial_timeout;
        if let Some(token) = self.config.token.clone() {
            let advertised = self.config.advertise.clone();
            let joining = Joining {
                identity,
                token,
                address: advertised.unwrap_or_else(|| self.listen_address().to_owned()),
                transport,
                dial_timeout,
            };
            return joining.run(&self.waiting_for).await;
        }
        let formation = Formation {
            identity,
            list: self.config.expected.clone(),
            group: draw(self.machine.seed).1,
            transport,
            dial_timeout,
        };
        formation.run(&self.waiting_for).await
    }

    async fn come_to_work(self: &Arc<Self>, identity: Identity) -> Result<(), OpenError> {
        let dir = lock(&self.dir)
            .take()
            .ok_or(OpenError::Start("closed".to_owned()))?;
        let written = match create_log(
            &node::log_config(&self.config),
            &self.machine,
            &dir,
            &identity,
        )
        .await
        {
            Ok(()) => dir.write_identity(&*self.machine.disk, &identity).await,
            Err(error) => Err(error),
        };
        *lock(&self.dir) = Some(dir);
        written?;
        let identity = Arc::new(identity);
        let members: Members = Arc::new(identity.founders.iter().cloned().collect());
        self.around.members.send_replace(members);
        self.start_node(Arc::clone(&identity)).await?;
        // Only now do peers learn of the group here, and are admitted.
        self.identity.send_replace(identity);
        Ok(())
    }
}
