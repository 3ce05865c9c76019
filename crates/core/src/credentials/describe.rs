//! What credentials say, for people and programs that look at them.

use std::fmt;
use std::path::Path;

use super::certificate::{self, Certificate};
use super::error::CredentialsError;
use super::files::{self, AUTHORITY_FILE, AUTHORITY_KEY_FILE, CERTIFICATE_FILE, KEY_FILE};
use crate::config::access::Holder;

/// What credentials say, whether or not they can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// Whose they are.
    pub subject: Subject,
    /// From when on they are valid, in milliseconds since 1970.
    pub not_before_ms: u64,
    /// Until when they are valid, in milliseconds since 1970: the certificate, and those between it
    /// and an authority.
    pub not_after_ms: u64,
    /// The serial number of the certificate, in hexadecimal.
    pub serial: String,
    /// The SHA-256 of the certificate, in hexadecimal.
    pub fingerprint: String,
    /// Whether the private key is in the directory too.
    pub key_is_here: bool,
    /// The authorities that are believed. For an authority, it and those beside it.
    pub authorities: Vec<Believed>,
}

/// Whose credentials are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// A node's or a client's.
    Holder(Holder),
    /// The authority's of a group.
    Authority {
        /// The group.
        group: String,
    },
}

/// An authority that is believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Believed {
    /// Its common name.
    pub name: String,
    /// The SHA-256 of its certificate, in hexadecimal.
    pub fingerprint: String,
    /// Until when it is valid, in milliseconds since 1970.
    pub not_after_ms: u64,
    /// Whether it has signed the certificate that is described, or the last one between.
    pub has_signed: bool,
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Holder(holder) => holder.fmt(f),
            Self::Authority { group } => write!(f, "authority of {group}"),
        }
    }
}

/// Describes the credentials in a directory, those of an authority in its directory, or a file with
/// certificates. Neither dates nor modes are judged, and the key is not read.
///
/// # Errors
/// When a certificate is missing or malformed, or names neither a holder nor the authority of a
/// group.
pub fn describe(path: &Path) -> Result<Description, CredentialsError> {
    if path.is_file() {
        return of_chain(path, &read(path)?, &[], false);
    }
    let (own, believed) = (path.join(CERTIFICATE_FILE), path.join(AUTHORITY_FILE));
    if !files::exists(&own)? && files::exists(&path.join(AUTHORITY_KEY_FILE))? {
        let all = read(&believed)?;
        return of_chain(&believed, &all[..1], &all, true);
    }
    let key_is_here = files::exists(&path.join(KEY_FILE))?;
    of_chain(&own, &read(&own)?, &read(&believed)?, key_is_here)
}

fn read(path: &Path) -> Result<Vec<Certificate>, CredentialsError> {
    certificate::read_all(path, &files::look(path)?)
}

/// A certificate that was read from `path`, followed by those between it and an authority.
fn of_chain(
    path: &Path,
    chain: &[Certificate],
    believed: &[Certificate],
    key_is_here: bool,
) -> Result<Description, CredentialsError> {
    let (first, last) = (&chain[0], &chain[chain.len() - 1]);
    let subject = match first.group(path) {
        Ok(group) => Subject::Authority {
            group: group.to_owned(),
        },
        Err(_) => Subject::Holder(first.holder(path)?),
    };
    let authorities = believed.iter().map(|authority| Believed {
        name: authority.common_name.clone(),
        fingerprint: authority.fingerprint(),
        not_after_ms: authority.not_after_ms,
        has_signed: last.was_signed_by(authority),
    });
    let begins = chain.iter().map(|certificate| certificate.not_before_ms);
    let ends = chain.iter().map(|certificate| certificate.not_after_ms);
    Ok(Description {
        subject,
        not_before_ms: begins.max().unwrap_or(first.not_before_ms),
        not_after_ms: ends.min().unwrap_or(first.not_after_ms),
        serial: first.serial.clone(),
        fingerprint: first.fingerprint(),
        key_is_here,
        authorities: authorities.collect(),
    })
}
