//! How the connections of a node are protected, and whether its credentials are its own.

use std::sync::Arc;

use steadfast_net::TlsCredentials;

use crate::config::access::Holder;
use crate::config::{ConfigError, RepConfig, is_loopback};
use crate::ids::NodeId;

/// How the connections of a node are protected.
#[derive(Clone, Debug, Default)]
pub(crate) enum Security {
    /// Not at all, which is for loopback only.
    #[default]
    Loopback,
    /// Not at all, as somebody has asked for.
    InsecurePlaintext,
    Tls(Arc<TlsCredentials>),
}

impl RepConfig {
    /// Whether the node is protected where other machines can reach it, or somebody has asked for
    /// plaintext. A node on this machine opens only then.
    ///
    /// # Errors
    /// What is missing.
    pub fn check_protection(&self) -> Result<(), ConfigError> {
        let reached_at = [Some(&self.listen), self.advertise.as_ref()];
        let mut reached_at = reached_at.into_iter().flatten();
        let elsewhere = reached_at.find(|address| !is_loopback(address));
        match (&self.security, elsewhere) {
            (Security::Loopback, Some(address)) => {
                let problem = format!(
                    "are missing, and other machines can reach {address}: whoever does could read and \
                 change everything. `steadfast init` makes credentials; insecure_plaintext does \
                 without, on a network where everybody is trusted"
                );
                Err(ConfigError::new("credentials", problem))
            }
            _ => Ok(()),
        }
    }

    /// Whether the certificate, if there is one, names the node that this one is in the list: ids
    /// follow the order of the names.
    pub(crate) fn check_listed(&self) -> Result<(), ConfigError> {
        let Security::Tls(credentials) = &self.security else {
            return Ok(());
        };
        let mut names: Vec<&String> = self.expected.iter().map(|listed| &listed.name).collect();
        names.sort();
        let own = (1..).zip(names).find(|(_, name)| **name == self.node);
        let holder: Holder = credentials.identity().parse()?;
        match own {
            Some((own, _)) if holder.node_id() != Some(NodeId(own)) => {
                let problem = format!(
                    "the certificate names {holder}, but {} is node {own} of this list: ids follow \
                     the order of the names",
                    self.node
                );
                Err(ConfigError::new("credentials", problem))
            }
            _ => Ok(()),
        }
    }

    /// Whether the certificate, if there is one, names the node of this id.
    pub(crate) fn check_holder(&self, own: NodeId) -> Result<(), ConfigError> {
        let Security::Tls(credentials) = &self.security else {
            return Ok(());
        };
        let holder: Holder = credentials.identity().parse()?;
        if holder.node_id() == Some(own) {
            return Ok(());
        }
        let problem = format!("the certificate names {holder}, and this is node {own}");
        Err(ConfigError::new("credentials", problem))
    }
}

/// Whether the certificate names a node of this group.
pub(super) fn check_credentials(
    credentials: &TlsCredentials,
    group: &str,
) -> Result<(), ConfigError> {
    let wrong = |problem: String| Err(ConfigError::new("credentials", problem));
    let holder: Holder = credentials.identity().parse()?;
    if holder.group() != group {
        return wrong(format!(
            "the certificate names {holder}, of another group than {group:?}"
        ));
    }
    match holder.node_id() {
        Some(_) => Ok(()),
        None => wrong(format!("the certificate names {holder}, which is no node")),
    }
}
