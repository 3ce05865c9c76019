//! How the connections of a node are protected, and whether its credentials are its own.

use std::sync::Arc;

use steadfast_net::TlsCredentials;

use crate::config::access::Holder;
use crate::config::{ConfigError, RepConfig, RepConfigBuilder, is_loopback};
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
    /// TLS with whoever has it, and plaintext with whoever has not.
    Migrating(Arc<TlsCredentials>),
}

impl Security {
    pub(crate) fn credentials(&self) -> Option<&Arc<TlsCredentials>> {
        match self {
            Self::Tls(credentials) | Self::Migrating(credentials) => Some(credentials),
            Self::Loopback | Self::InsecurePlaintext => None,
        }
    }

    /// Whether whoever reaches the node needs no credentials, as somebody has asked for.
    pub(crate) fn is_insecure(&self) -> bool {
        matches!(self, Self::InsecurePlaintext | Self::Migrating(_))
    }

    /// The same, with plaintext too.
    pub(super) fn with_plaintext(self) -> Result<Self, ConfigError> {
        match self {
            Self::Tls(credentials) | Self::Migrating(credentials) => {
                Ok(Self::Migrating(credentials))
            }
            Self::Loopback | Self::InsecurePlaintext => Err(ConfigError::new(
                "insecure_plaintext",
                "is \"too\", which needs credentials beside it",
            )),
        }
    }
}

impl RepConfigBuilder {
    /// Protects all connections by TLS. The certificate names the node by its id: a [`Holder`].
    #[must_use]
    pub fn credentials(mut self, credentials: TlsCredentials) -> Self {
        self.security = Security::Tls(Arc::new(credentials));
        self
    }

    /// Leaves connections unprotected although other machines can reach this node: whoever reaches
    /// its port reads and changes everything, and stops the group. Nobody needs this on loopback.
    #[must_use]
    pub fn insecure_plaintext(mut self) -> Self {
        self.security = Security::InsecurePlaintext;
        self
    }

    /// Beside TLS, speaks plaintext with whoever has no credentials: so a group that runs without gets
    /// them node by node. As insecure as [`insecure_plaintext`](Self::insecure_plaintext).
    #[must_use]
    pub fn insecure_plaintext_too(mut self) -> Self {
        self.speaks_plaintext_too = true;
        self
    }
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
        let Some(credentials) = self.security.credentials() else {
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
        let Some(credentials) = self.security.credentials() else {
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
