//! The credentials of a node that is open, and who has asked it for changes.

use steadfast_net::TlsCredentials;

use crate::admin::AdminError;
use crate::config::ConfigError;
use crate::credentials::{Authority, CertificateRequest, Certified};
use crate::env::ReplicatedEnvironment;
use crate::events::GroupChange;

impl ReplicatedEnvironment {
    /// Uses these credentials for all connections from now on; open ones go on.
    ///
    /// # Errors
    /// When they are not of this node, do not belong together, or the node has none so far.
    pub fn replace_credentials(&self, credentials: &TlsCredentials) -> Result<(), ConfigError> {
        let error = |problem: String| ConfigError::new("credentials", problem);
        let Some(tls) = self.tls() else {
            return Err(error(
                "cannot be given to a node that was opened without".to_owned(),
            ));
        };
        tls.replace(credentials)
            .map_err(|wrong| error(wrong.to_string()))?;
        self.lifecycle().note_credentials(credentials);
        Ok(())
    }

    /// Has this node sign certificates with the key of this authority while it is master: those of
    /// new nodes that have a [`Pass`](crate::Pass), and those of members that renew theirs. Its own
    /// it signs at any time. With `None` it does so no longer.
    ///
    /// # Errors
    /// When it is the authority of another group.
    pub fn certify_with(&self, authority: Option<Authority>) -> Result<(), ConfigError> {
        let own = self.lifecycle().group_name();
        if let Some(other) = authority.as_ref().filter(|other| other.group() != own) {
            let problem = format!("is that of group {:?}, not of {own:?}", other.group());
            return Err(ConfigError::new("authority", problem));
        }
        self.lifecycle().certify_with(authority);
        Ok(())
    }

    /// A new certificate for this node, for the key of `request`, signed by this node if it has the
    /// key of the group's authority, else by the master. Nothing changes here until it is given to
    /// [`replace_credentials`](Self::replace_credentials).
    ///
    /// # Errors
    /// See [`AdminError`]; [`AdminError::Refused`] when the master does not have the key.
    pub async fn renew_certificate_async(
        &self,
        request: &CertificateRequest,
    ) -> Result<Certified, AdminError> {
        self.lifecycle().renew_certificate(request).await
    }

    /// The changes to the group that this node was asked for while it was master, after the one of
    /// this number; the newest 64 are kept.
    pub fn changes_after(&self, number: u64) -> Vec<GroupChange> {
        self.lifecycle().changes_after(number)
    }

    /// Waits until [`changes_after`](Self::changes_after) returns some.
    pub async fn changed_after_async(&self, number: u64) {
        self.lifecycle().changed_after(number).await;
    }
}
