//! Renewal where the authority's key is, and the change of an authority to a new key.
//!
//! Nobody is to meet a certificate of an authority that it does not believe yet, so the change takes
//! three steps, and after each one everybody's credentials are [renewed](renew):
//!
//! | step | `authority.pem` | `authority-key.pem` signs for |
//! | --- | --- | --- |
//! | [announced](Rotation::Announced) | old, new | old; the new key waits in `next-authority-key.pem` |
//! | [switched](Rotation::Switched) | old, new | new |
//! | [finished](Rotation::Finished) | new | new |

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use super::authority::Authority;
use super::certificate;
use super::describe::describe;
use super::error::CredentialsError;
use super::files::{self, AUTHORITY_FILE, AUTHORITY_KEY_FILE, CERTIFICATE_FILE};
use super::request::CertificateRequest;
use crate::config::access::Holder;

/// The private key of an authority that is announced.
const NEXT_KEY_FILE: &str = "next-authority-key.pem";

/// How far the change of an authority to a new key has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rotation {
    /// The new authority is to be believed beside the old one.
    Announced,
    /// The new authority signs. The old one is still believed.
    Switched,
    /// The old authority is no longer to be believed.
    Finished,
}

/// Takes the next step of the change of the authority in a directory to a new key. Interrupted, it is
/// taken again.
///
/// # Errors
/// As [`Authority::read`]; [`CredentialsError::Io`].
pub fn rotate(dir: &Path, now_ms: u64) -> Result<Rotation, CredentialsError> {
    let authority = Authority::read(dir)?;
    let next_path = dir.join(NEXT_KEY_FILE);
    if files::exists(&next_path)? {
        let key = files::read_key(&next_path)?;
        let key = String::from_utf8(key)
            .map_err(|error| CredentialsError::malformed(&next_path, &error))?;
        if !authority.believes(&key)? {
            // Its certificate was not written before an interruption.
            return announce(dir, &authority, now_ms);
        }
        files::replace(dir, AUTHORITY_KEY_FILE, &key)?;
        files::remove(&next_path)?;
        return Ok(Rotation::Switched);
    }
    if authority.believes_others()? {
        files::replace(dir, AUTHORITY_FILE, &authority.own_pem())?;
        return Ok(Rotation::Finished);
    }
    announce(dir, &authority, now_ms)
}

/// How far the change of the authority in a directory has come; `None` if none is under way.
///
/// # Errors
/// As [`Authority::read`].
pub fn rotation(dir: &Path) -> Result<Option<Rotation>, CredentialsError> {
    let authority = Authority::read(dir)?;
    Ok(match authority.believes_others()? {
        false => None,
        true if files::exists(&dir.join(NEXT_KEY_FILE))? => Some(Rotation::Announced),
        true => Some(Rotation::Switched),
    })
}

/// Whether the credentials in a directory are as [`renew`] leaves them with the authority as it is
/// now: they believe whom it believes, and it has signed them.
///
/// # Errors
/// When a file is missing or malformed.
pub fn is_current(dir: &Path, authority: &Authority) -> Result<bool, CredentialsError> {
    let said = describe(dir)?;
    let believed: BTreeSet<String> = authority.fingerprints()?.into_iter().collect();
    let own = said.authorities.iter();
    let has_signed = own
        .clone()
        .any(|one| one.has_signed && one.fingerprint == authority.fingerprint());
    let lent = if files::exists(&dir.join(AUTHORITY_KEY_FILE))? {
        // A key that belongs to none of those that are believed is none that is used.
        Authority::read(dir).is_ok_and(|lent| lent.fingerprint() == authority.fingerprint())
    } else {
        true
    };
    let believes: BTreeSet<String> = own.map(|one| one.fingerprint.clone()).collect();
    Ok(believes == believed && has_signed && lent)
}

fn announce(dir: &Path, authority: &Authority, now_ms: u64) -> Result<Rotation, CredentialsError> {
    let next = Authority::create(authority.group(), now_ms)?;
    files::replace(dir, NEXT_KEY_FILE, &next.key_pem())?;
    let both = format!("{}\n{}", authority.pem().trim_end(), next.pem());
    files::replace(dir, AUTHORITY_FILE, &both)?;
    Ok(Rotation::Announced)
}

/// Renews the certificate in a directory of credentials: the same holder and key, valid from now on
/// for `valid_for`, or as long as the authority. Takes over which authorities are believed and, if
/// the directory has the key of one, its key.
///
/// # Errors
/// [`CredentialsError::OtherGroup`]; [`CredentialsError::OldAuthority`]; others when something is missing, malformed or cannot be
/// written.
pub fn renew(
    dir: &Path,
    authority: &Authority,
    valid_for: Duration,
    now_ms: u64,
) -> Result<Holder, CredentialsError> {
    let path = dir.join(CERTIFICATE_FILE);
    let chain = certificate::read_all(&path, &files::read(&path)?)?;
    let holder = chain[0].holder(&path)?;
    authority.check_not_older(dir)?;
    let request = CertificateRequest::read(dir)?.to_der()?;
    let certified = authority.certify(&holder, &request, valid_for, now_ms)?;
    let certifies = files::exists(&dir.join(AUTHORITY_KEY_FILE))?;
    if certifies {
        // Read in between, the key belongs to one of the authorities that are there.
        files::replace(dir, AUTHORITY_FILE, &certified.authority)?;
        files::replace(dir, AUTHORITY_KEY_FILE, &authority.key_pem())?;
    }
    certified.install(dir)?;
    Ok(holder)
}
