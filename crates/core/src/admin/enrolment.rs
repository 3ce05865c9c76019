//! How a new node gets its certificate, seen from outside the group.

use std::sync::Arc;
use std::time::Duration;

use steadfast_net::{TlsTransport, Transport};

use crate::admin::client::Client;
use crate::admin::messages::{
    AdminCall, AdminDone, CertifiedMessage, CertifyRequest, InviteRequest,
};
use crate::admin::{ANSWER_MAX, AdminError, answered};
use crate::credentials::{CertificateRequest, Certified, of_pass};
use crate::member::JoinToken;

impl JoinToken {
    /// The same with a [`Pass`](crate::Pass), which the master makes: the new node gets its
    /// credentials with it, once, within `valid_for`.
    ///
    /// # Errors
    /// See [`AdminError`]; [`AdminError::Refused`] when the master does not have the key of the
    /// group's authority.
    pub async fn invited(
        self,
        transport: &dyn Transport,
        dial_timeout: Duration,
        valid_for: Duration,
    ) -> Result<Self, AdminError> {
        let valid_for_ms = u64::try_from(valid_for.as_millis()).unwrap_or(u64::MAX);
        let call = AdminCall::Invite(InviteRequest { valid_for_ms });
        let done = self.ask(transport, dial_timeout, call).await?;
        let pass = done.pass.ok_or_else(|| unanswered("no pass"))?;
        Ok(self.with_pass(pass))
    }

    /// Gets the certificate of a new node, over `network`, for the key of `request`. Asking again
    /// with the same key gets the certificate of the same node.
    ///
    /// # Errors
    /// See [`AdminError`]; [`AdminError::Refused`] when the token has no pass, or one that was used
    /// with another key.
    pub async fn certify(
        &self,
        request: &CertificateRequest,
        network: Arc<dyn Transport>,
        dial_timeout: Duration,
    ) -> Result<Certified, AdminError> {
        let unusable = |what: String| AdminError::Refused {
            what,
            to_do: "create another one: steadfast token create".to_owned(),
        };
        let Some(pass) = &self.pass else {
            return Err(unusable("the join token has no pass".to_owned()));
        };
        let credentials = of_pass(pass).map_err(|error| unusable(error.to_string()))?;
        let transport = TlsTransport::new(network, &credentials);
        let transport = transport.map_err(|error| unusable(error.to_string()))?;
        let request = request
            .to_der()
            .map_err(|error| unusable(error.to_string()))?;
        let call = AdminCall::Certify(CertifyRequest {
            request: request.into(),
        });
        let done = self.ask(&transport, dial_timeout, call).await?;
        let certified = done.certified.map(Certified::from);
        certified.ok_or_else(|| unanswered("no certificate"))
    }

    async fn ask(
        &self,
        transport: &dyn Transport,
        dial_timeout: Duration,
        call: AdminCall,
    ) -> Result<AdminDone, AdminError> {
        let client = Client {
            transport,
            group: Some((self.group_name.as_str(), self.group)),
            addresses: &self.addresses,
            dial_timeout,
        };
        answered(client.call(call, ANSWER_MAX).await)
    }
}

/// A node of another version answers what it knows.
fn unanswered(what: &str) -> AdminError {
    AdminError::Refused {
        what: format!("the master sent {what}"),
        to_do: "run the same version on all nodes".to_owned(),
    }
}

impl From<CertifiedMessage> for Certified {
    fn from(message: CertifiedMessage) -> Self {
        let CertifiedMessage {
            certificate,
            authority,
        } = message;
        Self {
            certificate,
            authority,
        }
    }
}
