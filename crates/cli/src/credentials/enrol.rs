//! How a new node gets its credentials with a join token.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use steadfast::credentials::{CertificateRequest, CredentialsError};
use steadfast::{AdminError, JoinToken, TcpTransport};

use crate::failure::{Failure, with_sources};

/// How long a node may take to answer.
const DIAL_TIMEOUT: Duration = Duration::from_secs(5);

/// Gets the credentials of a new node from its group, and writes them to a directory. The key is
/// made and stays here; interrupted, this goes on with the same one.
///
/// # Errors
/// When the group does not give them, or they cannot be written.
pub(crate) async fn enrol(token: &JoinToken, dir: &Path) -> Result<(), Failure> {
    let request = CertificateRequest::begin(dir).map_err(|error| match error {
        CredentialsError::NotEmpty { .. } => Failure::new(
            with_sources(&error),
            NOTHING,
            "name a directory for the new credentials that is empty, or not there yet (--credentials)",
        ),
        error => error.into(),
    })?;
    println!(
        "asking group {} at {} for credentials",
        token.group_name,
        token.addresses.join(", ")
    );
    let certified = token.certify(&request, Arc::new(TcpTransport), DIAL_TIMEOUT);
    let certified = certified.await.map_err(not_certified)?;
    certified.install(dir)?;
    println!("the credentials of this node are in {}", dir.display());
    Ok(())
}

fn not_certified(error: AdminError) -> Failure {
    let what = with_sources(&error);
    match error {
        AdminError::Refused { to_do, .. } | AdminError::Uncertain { to_do, .. } => {
            Failure::new(what, NOTHING, to_do)
        }
        AdminError::NotAllowed { .. } => Failure::new(
            what,
            NOTHING,
            "the token may have expired, the group may have another authority by now, or the clock of this \
             machine may be wrong: create another token (steadfast token create)",
        ),
        AdminError::NoAnswer { .. } => Failure::new(
            what,
            NOTHING,
            "see `steadfast status`, then start this node again: the token stays good",
        ),
    }
}

const NOTHING: &str = "this node has not joined; nothing was changed in the group";
