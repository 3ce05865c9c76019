//! How the connections of a node are protected, and whether its credentials are its own.

use std::sync::Arc;

use steadfast_net::TlsCredentials;

use crate::config::access::Holder;
use crate::config::{ConfigError, RepConfig};
use crate::ids::NodeId;
use crate::member::Expected;

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

/// Whether the certificate names this node of this group, as far as a list tells its id.
pub(super) fn check_credentials(
    credentials: &TlsCredentials,
    group: &str,
    node: &str,
    expected: &[Expected],
) -> Result<(), ConfigError> {
    let wrong = |problem: String| Err(ConfigError::new("credentials", problem));
    let holder: Holder = credentials.identity().parse()?;
    if holder.group() != group {
        return wrong(format!(
            "the certificate names {holder}, of another group than {group:?}"
        ));
    }
    let Some(id) = holder.node_id() else {
        return wrong(format!("the certificate names {holder}, which is no node"));
    };
    let mut names: Vec<&String> = expected.iter().map(|listed| &listed.name).collect();
    names.sort();
    match (1..).zip(names).find(|(_, name)| *name == node) {
        Some((own, _)) if own != id.0 => wrong(format!(
            "the certificate names node {id}, but {node} is node {own} of this list: ids follow the \
             order of the names"
        )),
        _ => Ok(()),
    }
}
