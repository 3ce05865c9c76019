//! What a certificate says, read from PEM.

use std::fmt::Write;
use std::path::Path;

use pem::{EncodeConfig, LineEnding};
use ring::digest::{SHA256, digest};
use x509_parser::extensions::GeneralName;
use x509_parser::parse_x509_certificate;
use x509_parser::pem::Pem;
use x509_parser::prelude::{ASN1Time, X509Certificate, X509Name};

use super::error::CredentialsError;
use crate::config::access::Holder;
use crate::config::{ConfigError, check_name};

/// What the URI of an authority has before and after its group. It is that of no holder.
const AUTHORITY_URI: [&str; 2] = ["steadfast://", "/authority"];

/// One certificate.
pub(super) struct Certificate {
    pub(super) der: Vec<u8>,
    /// The common name of its subject, for people.
    pub(super) common_name: String,
    pub(super) not_before_ms: u64,
    pub(super) not_after_ms: u64,
    /// In hexadecimal.
    pub(super) serial: String,
    /// The bits of its public key, without the algorithm.
    pub(super) public_key: Vec<u8>,
    /// The URIs among its alternative names.
    uris: Vec<String>,
}

impl Certificate {
    /// Whom it names.
    ///
    /// # Errors
    /// [`CredentialsError::NoHolder`]; [`CredentialsError::Malformed`] when it has not one URI.
    pub(super) fn holder(&self, path: &Path) -> Result<Holder, CredentialsError> {
        self.uri(path)?
            .parse()
            .map_err(|source| CredentialsError::NoHolder {
                path: path.to_owned(),
                source,
            })
    }

    /// The group whose authority it is of.
    ///
    /// # Errors
    /// [`CredentialsError::Malformed`] when it is not of a group's authority.
    pub(super) fn group(&self, path: &Path) -> Result<&str, CredentialsError> {
        let uri = self.uri(path)?;
        let [before, after] = AUTHORITY_URI;
        let group = uri
            .strip_prefix(before)
            .and_then(|rest| rest.strip_suffix(after));
        group
            .filter(|group| check_name("group", group).is_ok())
            .ok_or_else(|| {
                let reason = format!("it is of {uri:?}, not of the authority of a group");
                CredentialsError::malformed(path, &reason)
            })
    }

    /// # Errors
    /// [`CredentialsError::Expired`]; [`CredentialsError::NotYetValid`].
    pub(super) fn check_dates(&self, path: &Path, now_ms: u64) -> Result<(), CredentialsError> {
        let (path, not_before_ms) = (path.to_owned(), self.not_before_ms);
        let not_after_ms = self.not_after_ms;
        if now_ms < not_before_ms {
            return Err(CredentialsError::NotYetValid {
                path,
                not_before_ms,
                now_ms,
            });
        }
        if now_ms > not_after_ms {
            return Err(CredentialsError::Expired {
                path,
                not_after_ms,
                now_ms,
            });
        }
        Ok(())
    }

    /// The SHA-256 of the whole certificate, in hexadecimal.
    pub(super) fn fingerprint(&self) -> String {
        fingerprint(&self.der)
    }

    /// Whether the key of `authority` has signed it.
    pub(super) fn was_signed_by(&self, authority: &Self) -> bool {
        let (own, authority) = (self.parsed(), authority.parsed());
        own.issuer().as_raw() == authority.subject().as_raw()
            && own.verify_signature(Some(authority.public_key())).is_ok()
    }

    fn parsed(&self) -> X509Certificate<'_> {
        let parsed = parse_x509_certificate(&self.der);
        parsed.expect("it was read from these bytes").1
    }

    fn uri(&self, path: &Path) -> Result<&str, CredentialsError> {
        match &self.uris[..] {
            [uri] => Ok(uri),
            uris => {
                let reason = format!("it names {} URIs, and has to name one", uris.len());
                Err(CredentialsError::malformed(path, &reason))
            }
        }
    }
}

/// How a certificate begins in a PEM text.
const BEGIN: &[u8] = b"-----BEGIN CERTIFICATE-----";

/// The certificates in a PEM text, at least one.
///
/// # Errors
/// [`CredentialsError::Malformed`], with the path.
pub(super) fn read_all(path: &Path, pem: &[u8]) -> Result<Vec<Certificate>, CredentialsError> {
    let malformed = |reason: &dyn std::fmt::Display| CredentialsError::malformed(path, reason);
    let mut certificates = Vec::new();
    for section in Pem::iter_from_buffer(pem) {
        let section = section.map_err(|error| malformed(&error))?;
        if section.label != "CERTIFICATE" {
            let reason = format!("there is a {:?} in it", section.label);
            return Err(malformed(&reason));
        }
        certificates.push(read_one(section.contents).map_err(|reason| malformed(&reason))?);
    }
    if certificates.is_empty() {
        return Err(malformed(&"there is no certificate in it"));
    }
    // One that was appended to a file without a newline at its end would go unseen.
    let begun = pem.windows(BEGIN.len()).filter(|at| *at == BEGIN).count();
    if begun != certificates.len() {
        let whole = certificates.len();
        return Err(malformed(&format!(
            "{begun} certificates begin in it, and {whole} are whole: each BEGIN and END needs a \
             line of its own"
        )));
    }
    Ok(certificates)
}

/// One certificate as a PEM text.
pub(super) fn to_pem(der: &[u8]) -> String {
    let lines = EncodeConfig::new().set_line_ending(LineEnding::LF);
    pem::encode_config(&pem::Pem::new("CERTIFICATE", der), lines)
}

pub(super) fn read_one(der: Vec<u8>) -> Result<Certificate, String> {
    let (rest, parsed) = parse_x509_certificate(&der).map_err(|error| error.to_string())?;
    if !rest.is_empty() {
        return Err("there are bytes behind the certificate".to_owned());
    }
    let names = parsed
        .subject_alternative_name()
        .map_err(|error| error.to_string())?;
    let names = names.iter().flat_map(|names| &names.value.general_names);
    let uris = names.filter_map(|name| match name {
        GeneralName::URI(uri) => Some((*uri).to_owned()),
        _ => None,
    });
    let validity = parsed.validity();
    Ok(Certificate {
        common_name: common_name(parsed.subject()),
        not_before_ms: in_ms(validity.not_before),
        not_after_ms: in_ms(validity.not_after),
        serial: hex(parsed.raw_serial()),
        public_key: parsed.public_key().subject_public_key.data.to_vec(),
        uris: uris.collect(),
        der,
    })
}

/// From when to when the certificate in these bytes is valid, in milliseconds since 1970.
pub(super) fn valid_ms(der: &[u8]) -> Option<(u64, u64)> {
    let (_, parsed) = parse_x509_certificate(der).ok()?;
    let validity = parsed.validity();
    Some((in_ms(validity.not_before), in_ms(validity.not_after)))
}

fn common_name(name: &X509Name<'_>) -> String {
    let mut names = name.iter_common_name();
    let first = names.next().and_then(|name| name.as_str().ok());
    first.unwrap_or_default().to_owned()
}

/// The URI of the authority of a group.
///
/// # Errors
/// When the group is no valid name.
pub(super) fn authority_uri(group: &str) -> Result<String, ConfigError> {
    check_name("group", group)?;
    let [before, after] = AUTHORITY_URI;
    Ok(format!("{before}{group}{after}"))
}

/// The SHA-256 of bytes, in hexadecimal.
pub(super) fn fingerprint(bytes: &[u8]) -> String {
    hex(digest(&SHA256, bytes).as_ref())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a string grows");
        text
    })
}

/// A time in milliseconds since 1970, to the second, which is all that a certificate knows; `None`
/// after the year 9999.
pub(super) fn time(ms: u64) -> Option<ASN1Time> {
    let seconds = i64::try_from(ms / 1_000).ok()?;
    ASN1Time::from_timestamp(seconds).ok()
}

/// Times before 1970 count as 1970.
fn in_ms(time: ASN1Time) -> u64 {
    let seconds = u64::try_from(time.timestamp()).unwrap_or(0);
    seconds.saturating_mul(1_000)
}

/// A time in milliseconds since 1970 for people, to the minute: `2027-08-01 09:30 UTC`.
pub fn date(ms: u64) -> String {
    let Some(time) = time(ms) else {
        return "a day after the year 9999".to_owned();
    };
    let time = time.to_datetime();
    format!(
        "{:04}-{:02}-{:02} {:02}:{:02} UTC",
        time.year(),
        u8::from(time.month()),
        time.day(),
        time.hour(),
        time.minute()
    )
}
