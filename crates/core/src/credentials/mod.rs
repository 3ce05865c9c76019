//! Credentials: what a node or a client proves with whom it is, in a directory of PEM files.
//!
//! ```text
//!   n1/                    of one holder
//!     certificate.pem      its certificate, then those between it and an authority, if any
//!     key.pem              its private key
//!     authority.pem        the authorities whose certificates it believes
//!   authority/             of an authority, kept offline
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

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use steadfast_net::{TcpTransport, TlsCredentials, TlsTransport};

pub use self::authority::{Authority, Issued};
pub use self::certificate::date;
pub use self::describe::{Believed, Description, Subject, describe};
pub use self::error::CredentialsError;
pub use self::files::make_directory;
#[cfg(doc)]
use crate::config::access::Holder;

/// The file with the certificate of a holder.
pub const CERTIFICATE_FILE: &str = "certificate.pem";
/// The file with the private key of a holder.
pub const KEY_FILE: &str = "key.pem";
/// The file with the certificates of the authorities that are believed.
pub const AUTHORITY_FILE: &str = "authority.pem";
/// The file with the private key of an authority.
pub const AUTHORITY_KEY_FILE: &str = "authority-key.pem";

const DAY: Duration = Duration::from_hours(24);

/// How long a certificate is valid, unless asked for otherwise.
pub const VALID_FOR: Duration = DAY.saturating_mul(365);
/// How long an authority is valid: ten years.
pub const AUTHORITY_VALID_FOR: Duration = DAY.saturating_mul(3_652);

/// Reads the credentials in a directory, and checks that a handshake can be made with them at the
/// time `now_ms`, in milliseconds since 1970.
///
/// # Errors
/// [`CredentialsError::OpenKey`] when others than its owner may use the key;
/// [`Expired`](CredentialsError::Expired) and [`NotYetValid`](CredentialsError::NotYetValid) by the
/// dates of the certificate; [`NoHolder`](CredentialsError::NoHolder) when it names no holder;
/// [`Unusable`](CredentialsError::Unusable) when the files do not belong together; others when a
/// file is missing or malformed.
pub fn read(dir: &Path, now_ms: u64) -> Result<TlsCredentials, CredentialsError> {
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

/// When the certificate ends, in milliseconds since 1970; `None` if it cannot be read.
pub(crate) fn ends_ms(credentials: &TlsCredentials) -> Option<u64> {
    certificate::ends_ms(credentials.certificate())
}

#[cfg(test)]
mod tests;
