//! Asking an authority for a certificate. The key stays with whoever asks.

use std::fmt;
use std::path::Path;

use rcgen::{
    CertificateParams, CertificateSigningRequestParams, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKey,
    PublicKeyData,
};

use super::certificate::fingerprint;
use super::error::CredentialsError;
use super::files::{self, AUTHORITY_FILE, CERTIFICATE_FILE, KEY_FILE};

/// The longest request that is looked at. One of ours has some 250 bytes.
const REQUEST_BYTES_MAX: usize = 8 * 1024;

/// A request for a certificate, with the private key that it is for.
pub struct CertificateRequest {
    key: KeyPair,
}

impl CertificateRequest {
    /// A request for the key in a directory of credentials, so that only the certificate changes.
    ///
    /// # Errors
    /// [`CredentialsError::Missing`] and others when there is no key that can be used.
    pub fn read(dir: &Path) -> Result<Self, CredentialsError> {
        let path = dir.join(KEY_FILE);
        let malformed = |reason: &dyn fmt::Display| CredentialsError::malformed(&path, reason);
        let pem = String::from_utf8(files::read_key(&path)?).map_err(|error| malformed(&error))?;
        let key = KeyPair::from_pem(&pem).map_err(|error| malformed(&error))?;
        Ok(Self { key })
    }

    /// The same, with a new key if the directory is empty or not there yet. What has begun so ends
    /// with [`Certified::install`]; begun again before, it has the same key.
    ///
    /// # Errors
    /// [`CredentialsError::NotEmpty`] when there is something, but no key; others as
    /// [`read`](Self::read).
    pub fn begin(dir: &Path) -> Result<Self, CredentialsError> {
        if !files::exists(&dir.join(KEY_FILE))? {
            let pem = new_key()?.serialize_pem();
            files::make_directory(dir, |dir| files::write(&dir.join(KEY_FILE), &pem))?;
        }
        Self::read(dir)
    }

    /// The request (PKCS #10), in DER, signed with its key. It names nobody.
    ///
    /// # Errors
    /// [`CredentialsError::Signing`].
    pub fn to_der(&self) -> Result<Vec<u8>, CredentialsError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        let request = params.serialize_request(&self.key);
        let request = request.map_err(|error| CredentialsError::signing(&error))?;
        Ok(request.der().to_vec())
    }
}

/// Shows no key.
impl fmt::Debug for CertificateRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CertificateRequest").finish_non_exhaustive()
    }
}

/// A certificate for a key that its holder has, as PEM texts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certified {
    /// The certificate.
    pub certificate: String,
    /// The authorities to believe.
    pub authority: String,
}

impl Certified {
    /// Puts it into the directory of credentials that has its key. The authorities come first: what
    /// is there at any moment can be used.
    ///
    /// # Errors
    /// [`CredentialsError::Io`].
    pub fn install(&self, dir: &Path) -> Result<(), CredentialsError> {
        files::replace(dir, AUTHORITY_FILE, &self.authority)?;
        files::replace(dir, CERTIFICATE_FILE, &self.certificate)
    }
}

/// A new private key.
///
/// # Errors
/// [`CredentialsError::Signing`] when there is no entropy.
pub(super) fn new_key() -> Result<KeyPair, CredentialsError> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)
        .map_err(|error| CredentialsError::signing(&error))
}

/// The key for which a request asks for a certificate, which it was signed with.
///
/// # Errors
/// [`CredentialsError::BadRequest`].
pub(super) fn public_key(request: &[u8]) -> Result<PublicKey, CredentialsError> {
    let bad = |reason: String| CredentialsError::BadRequest { reason };
    if request.len() > REQUEST_BYTES_MAX {
        return Err(bad(format!("it is longer than {REQUEST_BYTES_MAX} bytes")));
    }
    let parsed = CertificateSigningRequestParams::from_der(&request.into());
    Ok(parsed.map_err(|error| bad(error.to_string()))?.public_key)
}

/// The SHA-256 of the key in a request, in hexadecimal.
///
/// # Errors
/// [`CredentialsError::BadRequest`].
pub(crate) fn key_fingerprint(request: &[u8]) -> Result<String, CredentialsError> {
    let key = public_key(request)?;
    Ok(fingerprint(key.der_bytes()))
}
