//! Certificates as functions of bytes. See `crate::fuzzing`.

use std::path::Path;

use super::certificate::{Certificate, date, read_all, read_one, valid_ms};
use super::request::key_fingerprint;

/// A PEM text with certificates, or one certificate in DER, and what is shown of each; or a request
/// for one.
pub(crate) fn certificate(input: &[u8]) {
    let path = Path::new("certificate.pem");
    let in_pem = read_all(path, input).unwrap_or_default();
    for certificate in in_pem.iter().chain(&read_one(input.to_vec())) {
        look_at(certificate, path);
    }
    // Most are none.
    key_fingerprint(input).ok();
}

fn look_at(certificate: &Certificate, path: &Path) {
    let (holder, group) = (certificate.holder(path), certificate.group(path));
    assert!(
        holder.is_err() || group.is_err(),
        "an authority is no holder"
    );
    let (from, to) = (certificate.not_before_ms, certificate.not_after_ms);
    assert_eq!(valid_ms(&certificate.der), Some((from, to)));
    assert!(certificate.check_dates(path, to).is_ok() || from > to);
    assert!(!date(from).is_empty() && !date(to).is_empty());
    certificate.was_signed_by(certificate);
}
