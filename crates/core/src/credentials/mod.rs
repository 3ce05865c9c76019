//! Credentials: what a node or a client proves with whom it is, in a directory of PEM files.
//!
//! ```text
//!   n1/                    of one holder
//!     certificate.pem      its certificate, then those between it and an authority, if any
//!     key.pem              its private key
//!     authority.pem        the authorities whose certificates it believes
//!     authority-key.pem    at nodes that may certify others, which is up to the operator
//!   authority/             of an authority
//!     authority.pem        its certificate; others beside it are believed too
//!     authority-key.pem    its private key: whoever has it can become any node
//! ```
//!
//! Directories have mode 0700 and files 0600. Each group has an [`Authority`] of its own, which
//! [issues](Authority::issue) credentials to [holders](Holder). Credentials of other authorities
//! serve as well, as long as the certificate has the URI of a holder among its alternative names.
//!
//! A directory is built beside its place and renamed, so it is there whole or not at all. Nothing
//! that exists is overwritten, and no key is printed or logged.

mod authority;
mod certificate;
mod describe;
mod error;
mod files;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod request;
mod rotation;

use std::path::Path;
use std::sync::Arc;

use steadfast_net::{TcpTransport, TlsCredentials, TlsTransport};

pub(crate) use self::authority::pass_prefix;
pub use self::authority::{AUTHORITY_VALID_FOR, Authority, INVITED_FOR, Issued, VALID_FOR};
pub use self::certificate::date;
pub use self::describe::{Believed, Description, Subject, describe};
pub use self::error::CredentialsError;
pub use self::files::{
    AUTHORITY_FILE, AUTHORITY_KEY_FILE, CERTIFICATE_FILE, KEY_FILE, make_directory,
};
pub(crate) use self::request::key_fingerprint;
pub use self::request::{CertificateRequest, Certified};
pub use self::rotation::{Rotation, is_current, renew, rotate, rotation};
#[cfg(doc)]
use crate::config::access::Holder;
use crate::machine;
use crate::pass::Pass;

/// Reads the credentials in a directory, and checks that a handshake can be made with them at the
/// time `now_ms`, in milliseconds since 1970.
///
/// # Errors
/// [`CredentialsError::OpenKey`] when others than its owner may use the key, and
/// [`OpenToWriters`](CredentialsError::OpenToWriters) when they may write a certificate;
/// [`Expired`](CredentialsError::Expired) and [`NotYetValid`](CredentialsError::NotYetValid) by the
/// dates of the certificate; [`NoHolder`](CredentialsError::NoHolder) when it names no holder;
/// [`Unusable`](CredentialsError::Unusable) when the files do not belong together; others when a
/// file is missing or malformed.
pub fn read(dir: &Path, now_ms: u64) -> Result<TlsCredentials, CredentialsError> {
    files::check_directory(dir)?;
    let [certificate_path, key_path, authority_path] =
        [CERTIFICATE_FILE, KEY_FILE, AUTHORITY_FILE].map(|name| dir.join(name));
    let certificates = files::read(&certificate_path)?;
    let key = files::read_key(&key_path)?;
    let authorities = files::read(&authority_path)?;
    let chain = certificate::read_all(&certificate_path, &certificates)?;
    chain[0].holder(&certificate_path)?;
    for certificate in &chain {
        certificate.check_dates(&certificate_path, now_ms)?;
    }
    certificate::read_all(&authority_path, &authorities)?;
    // The certificates were read above, so it is the key that cannot be.
    let credentials = TlsCredentials::from_pem(&certificates, &key, &authorities)
        .map_err(|error| CredentialsError::malformed(&key_path, &error))?;
    let unusable = |source| CredentialsError::Unusable {
        dir: dir.to_owned(),
        source,
    };
    TlsTransport::new(Arc::new(TcpTransport), &credentials).map_err(unusable)?;
    Ok(credentials)
}

/// As [`read`], at the time by this machine's clock: for an application that opens a node with what
/// `steadfast init` or `steadfast certs issue` made.
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let credentials = steadfast::credentials::load("/etc/orders/credentials")?;
/// let config = steadfast::RepConfig::builder("orders", "n1").credentials(credentials);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// As [`read`].
pub fn load(dir: impl AsRef<Path>) -> Result<TlsCredentials, CredentialsError> {
    read(dir.as_ref(), machine::now_ms())
}

/// The authority whose key is in a directory of credentials; `None` if there is no key of one.
///
/// # Errors
/// As [`Authority::read`].
pub fn read_authority(dir: &Path) -> Result<Option<Authority>, CredentialsError> {
    if files::exists(&dir.join(AUTHORITY_KEY_FILE))? {
        return Authority::read(dir).map(Some);
    }
    Ok(None)
}

/// What a new node connects with to ask for its certificate.
///
/// # Errors
/// [`CredentialsError::Malformed`] when the pass is none.
pub fn of_pass(pass: &Pass) -> Result<TlsCredentials, CredentialsError> {
    let read = TlsCredentials::from_der(&pass.certificate, &pass.key, &pass.authorities);
    read.map_err(|error| CredentialsError::malformed(Path::new("the join token"), &error))
}

/// From when to when the certificate is valid, in milliseconds since 1970; `None` if it cannot be
/// read.
pub fn valid_ms(credentials: &TlsCredentials) -> Option<(u64, u64)> {
    certificate::valid_ms(credentials.certificate())
}

/// When the certificate ends, in milliseconds since 1970; `None` if it cannot be read.
pub(crate) fn ends_ms(credentials: &TlsCredentials) -> Option<u64> {
    valid_ms(credentials).map(|(_, ends_ms)| ends_ms)
}

#[cfg(test)]
mod tests;
