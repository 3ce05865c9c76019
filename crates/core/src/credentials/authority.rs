//! The authority of a group, and what it issues.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType,
};

use super::certificate::{self, Certificate};
use super::error::CredentialsError;
use super::files::{self, AUTHORITY_FILE, AUTHORITY_KEY_FILE, CERTIFICATE_FILE, KEY_FILE};
#[cfg(doc)]
use super::request::CertificateRequest;
use super::request::{Certified, new_key, public_key};
use crate::config::access::{Access, Holder};
use crate::ids::GroupEpoch;
use crate::pass::Pass;

const DAY: Duration = Duration::from_hours(24);

/// How long a certificate is valid, unless asked for otherwise.
pub const VALID_FOR: Duration = DAY.saturating_mul(365);
/// How long a join token is valid, unless asked for otherwise.
pub const INVITED_FOR: Duration = DAY;
/// How long an authority is valid: ten years.
pub const AUTHORITY_VALID_FOR: Duration = DAY.saturating_mul(3_652);

/// How long before its issue a certificate begins to be valid: clocks differ by less.
const BACKDATED: Duration = Duration::from_mins(10);

/// The longest common name and name of an organization (RFC 5280, appendix A.1).
const NAME_BYTES_MAX: usize = 64;

/// Hexadecimal digits that tell the authorities of one group from each other.
const NUMBER_DIGITS: usize = 16;

/// Hexadecimal digits of the name of a pass, which no other one may have.
const PASS_DIGITS: usize = 32;

/// The authority of one group: signs the certificates of its nodes and clients.
///
/// ```
/// use steadfast::credentials::{Authority, VALID_FOR, read};
/// use steadfast::{Access, Holder};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::TempDir::new()?;
/// # let (dir, now_ms) = (dir.path(), 1_800_000_000_000);
/// let authority = Authority::create("orders", now_ms)?;
/// authority.write(&dir.join("authority"))?;
/// let holder = Holder::new("orders", Access::Node, "1")?;
/// let issued = authority.issue(&holder, VALID_FOR, now_ms)?;
/// issued.write(&dir.join("n1"))?;
/// assert_eq!(read(&dir.join("n1"), now_ms)?.identity(), "steadfast://orders/node/1");
/// # Ok(())
/// # }
/// ```
pub struct Authority {
    group: String,
    own: Certificate,
    /// Its certificate, and others that are believed beside it.
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// A new authority of a group, valid for [`AUTHORITY_VALID_FOR`].
    ///
    /// # Errors
    /// [`CredentialsError::Signing`] when the group is no valid name, or there is no entropy.
    pub fn create(group: &str, now_ms: u64) -> Result<Self, CredentialsError> {
        let key = new_key()?;
        let uri = certificate::authority_uri(group);
        let uri = uri.map_err(|error| CredentialsError::signing(&error))?;
        let number = certificate::fingerprint(key.public_key_raw());
        // It begins with what tells it from others: the end may be cut off.
        let name = format!("authority {} of {group}", &number[..NUMBER_DIGITS]);
        let mut params = naming(&uri, group, &name)?;
        set_dates(&mut params, AUTHORITY_VALID_FOR, now_ms)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let signed = params.self_signed(&key);
        let pem = signed
            .map_err(|error| CredentialsError::signing(&error))?
            .pem();
        Self::new(Path::new(AUTHORITY_FILE), pem, key)
    }

    /// Reads an authority from its directory.
    ///
    /// # Errors
    /// [`CredentialsError::OpenKey`] when others than its owner may use the key; others when a file
    /// is missing or malformed, or the certificate is not that of a group's authority.
    pub fn read(dir: &Path) -> Result<Self, CredentialsError> {
        let (path, key_path) = (dir.join(AUTHORITY_FILE), dir.join(AUTHORITY_KEY_FILE));
        let text = |path, bytes| {
            String::from_utf8(bytes).map_err(|error| CredentialsError::malformed(path, &error))
        };
        let pem = text(&path, files::read(&path)?)?;
        let key = text(&key_path, files::read_key(&key_path)?)?;
        let key = KeyPair::from_pem(&key)
            .map_err(|error| CredentialsError::malformed(&key_path, &error))?;
        Self::new(&path, pem, key)
    }

    fn new(path: &Path, pem: String, key: KeyPair) -> Result<Self, CredentialsError> {
        let all = certificate::read_all(path, pem.as_bytes())?;
        let own = all
            .into_iter()
            .find(|one| one.public_key == key.public_key_raw());
        let own = own.ok_or_else(|| {
            let reason = format!("no certificate in it belongs to the key in {AUTHORITY_KEY_FILE}");
            CredentialsError::malformed(path, &reason)
        })?;
        let issuer = Issuer::from_ca_cert_der(&own.der.as_slice().into(), key)
            .map_err(|error| CredentialsError::malformed(path, &error))?;
        Ok(Self {
            group: own.group(path)?.to_owned(),
            own,
            pem,
            issuer,
        })
    }

    /// Writes it to a directory that is empty, or not there yet.
    ///
    /// # Errors
    /// [`CredentialsError::NotEmpty`]; [`CredentialsError::Io`].
    pub fn write(&self, dir: &Path) -> Result<(), CredentialsError> {
        files::make_directory(dir, |dir| {
            files::write(&dir.join(AUTHORITY_FILE), &self.pem)?;
            files::write(&dir.join(AUTHORITY_KEY_FILE), &self.key_pem())
        })
    }

    /// Lets whoever has the credentials in a directory sign as this authority.
    ///
    /// # Errors
    /// [`CredentialsError::Io`].
    pub fn lend(&self, dir: &Path) -> Result<(), CredentialsError> {
        files::replace(dir, AUTHORITY_FILE, &self.pem)?;
        files::replace(dir, AUTHORITY_KEY_FILE, &self.key_pem())
    }

    /// Its certificate, and those that are believed beside it.
    pub(super) fn pem(&self) -> &str {
        &self.pem
    }

    /// Its certificate alone.
    pub(super) fn own_pem(&self) -> String {
        certificate::to_pem(&self.own.der)
    }

    pub(super) fn key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// Whether the credentials in a directory are not of a later authority, which this one, a copy
    /// perhaps, knows nothing of.
    ///
    /// # Errors
    /// [`CredentialsError::OldAuthority`]; others when a file is missing or malformed.
    pub(super) fn check_not_older(&self, dir: &Path) -> Result<(), CredentialsError> {
        let path = dir.join(CERTIFICATE_FILE);
        let chain = certificate::read_all(&path, &files::read(&path)?)?;
        let path = dir.join(AUTHORITY_FILE);
        let known = self.fingerprints()?;
        for authority in certificate::read_all(&path, &files::read(&path)?)? {
            // To the second; two that were made in one of them may be either.
            let is_later = authority.not_before_ms >= self.own.not_before_ms;
            let is_unknown = !known.contains(&authority.fingerprint());
            if is_later && is_unknown && chain[chain.len() - 1].was_signed_by(&authority) {
                return Err(CredentialsError::OldAuthority {
                    dir: dir.to_owned(),
                    made_ms: self.own.not_before_ms,
                    later_ms: authority.not_before_ms,
                });
            }
        }
        Ok(())
    }

    /// Whether one of those that are believed beside it has this private key.
    ///
    /// # Errors
    /// [`CredentialsError::Malformed`].
    pub(super) fn believes(&self, key_pem: &str) -> Result<bool, CredentialsError> {
        let path = Path::new(AUTHORITY_FILE);
        let key = KeyPair::from_pem(key_pem)
            .map_err(|error| CredentialsError::malformed(Path::new(AUTHORITY_KEY_FILE), &error))?;
        let all = certificate::read_all(path, self.pem.as_bytes())?;
        Ok(all.iter().any(|one| one.public_key == key.public_key_raw()))
    }

    /// The fingerprints of those that are believed, its own among them.
    ///
    /// # Errors
    /// [`CredentialsError::Malformed`].
    pub(super) fn fingerprints(&self) -> Result<Vec<String>, CredentialsError> {
        let all = certificate::read_all(Path::new(AUTHORITY_FILE), self.pem.as_bytes())?;
        Ok(all.iter().map(Certificate::fingerprint).collect())
    }

    /// Whether another one is believed beside it.
    ///
    /// # Errors
    /// [`CredentialsError::Malformed`].
    pub(super) fn believes_others(&self) -> Result<bool, CredentialsError> {
        Ok(self.fingerprints()?.len() > 1)
    }

    /// The group for which it signs.
    pub fn group(&self) -> &str {
        &self.group
    }

    /// The SHA-256 of its certificate, in hexadecimal.
    pub fn fingerprint(&self) -> String {
        self.own.fingerprint()
    }

    /// A new key, and a certificate that names `holder`, valid from ten minutes before now on, for
    /// clocks that are behind. Nodes may use it at both ends of a connection, others as clients
    /// alone.
    ///
    /// # Errors
    /// [`CredentialsError::OtherGroup`]; [`CredentialsError::OutlivesAuthority`];
    /// [`CredentialsError::Signing`] when there is no entropy.
    pub fn issue(
        &self,
        holder: &Holder,
        valid_for: Duration,
        now_ms: u64,
    ) -> Result<Issued, CredentialsError> {
        let key = new_key()?;
        let signed = self.sign(holder, &key, valid_for, now_ms)?;
        Ok(Issued {
            certificate: signed.pem(),
            key: key.serialize_pem(),
            authority: self.pem.clone(),
        })
    }

    /// The certificate that a [`CertificateRequest`] asks for, in its DER form. It names `holder`,
    /// whatever the request says, and is valid no longer than the authority.
    ///
    /// # Errors
    /// [`CredentialsError::BadRequest`]; otherwise as [`Authority::issue`].
    pub fn certify(
        &self,
        holder: &Holder,
        request: &[u8],
        valid_for: Duration,
        now_ms: u64,
    ) -> Result<Certified, CredentialsError> {
        let key = public_key(request)?;
        let left = Duration::from_millis(self.own.not_after_ms.saturating_sub(now_ms));
        let signed = self.sign(holder, &key, valid_for.min(left), now_ms)?;
        Ok(Certified {
            certificate: signed.pem(),
            authority: self.pem.clone(),
        })
    }

    /// What a new node proves to the group that it was asked in: a key, and a certificate for
    /// nothing else that ends with the invitation, or when the group is recovered: who has used it may
    /// be forgotten then.
    ///
    /// # Errors
    /// As [`Authority::issue`].
    pub fn invite(
        &self,
        epoch: GroupEpoch,
        valid_for: Duration,
        now_ms: u64,
    ) -> Result<Pass, CredentialsError> {
        let key = new_key()?;
        let number = certificate::fingerprint(key.public_key_raw());
        let name = format!("{}{}", pass_prefix(epoch), &number[..PASS_DIGITS]);
        let holder = Holder::new(&self.group, Access::Joiner, &name);
        let holder = holder.map_err(|error| CredentialsError::signing(&error))?;
        let signed = self.sign(&holder, &key, valid_for, now_ms)?;
        let authorities = certificate::read_all(Path::new(AUTHORITY_FILE), self.pem.as_bytes())?;
        Ok(Pass {
            certificate: signed.der().to_vec().into(),
            key: key.serialize_der().into(),
            authorities: authorities.into_iter().map(|one| one.der.into()).collect(),
        })
    }

    fn sign(
        &self,
        holder: &Holder,
        key: &impl PublicKeyData,
        valid_for: Duration,
        now_ms: u64,
    ) -> Result<rcgen::Certificate, CredentialsError> {
        if holder.group() != self.group {
            return Err(CredentialsError::OtherGroup {
                group: self.group.clone(),
                holder: holder.clone(),
            });
        }
        let not_after_ms = self.own.not_after_ms;
        if end_ms(valid_for, now_ms) > not_after_ms {
            return Err(CredentialsError::OutlivesAuthority { not_after_ms });
        }
        let name = format!("{} {} {}", self.group, holder.access(), holder.name());
        let mut params = naming(&holder.to_string(), &self.group, &name)?;
        set_dates(&mut params, valid_for, now_ms)?;
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if holder.access() == Access::Node {
            let server = ExtendedKeyUsagePurpose::ServerAuth;
            params.extended_key_usages.push(server);
        }
        let signed = params.signed_by(key, &self.issuer);
        signed.map_err(|error| CredentialsError::signing(&error))
    }
}

/// Shows no key.
impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority")
            .field("group", &self.group)
            .field("fingerprint", &self.fingerprint())
            .finish_non_exhaustive()
    }
}

/// New credentials, as PEM texts.
pub struct Issued {
    /// The certificate.
    pub certificate: String,
    /// Its private key. It is a secret.
    pub key: String,
    /// The authorities to believe.
    pub authority: String,
}

impl Issued {
    /// Writes them to a directory that is empty, or not there yet.
    ///
    /// # Errors
    /// [`CredentialsError::NotEmpty`]; [`CredentialsError::Io`].
    pub fn write(&self, dir: &Path) -> Result<(), CredentialsError> {
        files::make_directory(dir, |dir| {
            files::write(&dir.join(CERTIFICATE_FILE), &self.certificate)?;
            files::write(&dir.join(KEY_FILE), &self.key)?;
            files::write(&dir.join(AUTHORITY_FILE), &self.authority)
        })
    }
}

/// Shows no key.
impl fmt::Debug for Issued {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Issued")
            .field("certificate", &self.certificate)
            .finish_non_exhaustive()
    }
}

/// How the names of the passes of an epoch begin.
pub(crate) fn pass_prefix(epoch: GroupEpoch) -> String {
    format!("{}-", epoch.0.max(1))
}

/// A certificate for the holder of `uri`, with names for people. Its serial number is the digest of
/// its key, which is a new one.
fn naming(uri: &str, group: &str, name: &str) -> Result<CertificateParams, CredentialsError> {
    let uri = uri.try_into();
    let uri = uri.map_err(|error: rcgen::Error| CredentialsError::signing(&error))?;
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(uri)];
    params.distinguished_name = rcgen::DistinguishedName::new();
    let short = |name: &str| name.chars().take(NAME_BYTES_MAX).collect::<String>();
    let names = &mut params.distinguished_name;
    names.push(DnType::OrganizationName, short(group));
    names.push(DnType::CommonName, short(name));
    Ok(params)
}

fn set_dates(
    params: &mut CertificateParams,
    valid_for: Duration,
    now_ms: u64,
) -> Result<(), CredentialsError> {
    let at = |ms| {
        let time = certificate::time(ms).map(|time| time.to_datetime());
        time.ok_or_else(|| CredentialsError::signing(&"it would end after the year 9999"))
    };
    params.not_before = at(now_ms.saturating_sub(in_ms(BACKDATED)))?;
    params.not_after = at(end_ms(valid_for, now_ms))?;
    Ok(())
}

fn end_ms(valid_for: Duration, now_ms: u64) -> u64 {
    now_ms.saturating_add(in_ms(valid_for))
}

fn in_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
