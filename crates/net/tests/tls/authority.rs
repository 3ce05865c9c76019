//! An authority for tests, and the certificates that it signs.

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    SanType,
};
use steadfast_net::TlsCredentials;

/// Signs certificates.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub(crate) pem: String,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        // Two authorities have different names.
        let name = format!("authority {}", key.public_key_raw()[1]);
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let pem = params.self_signed(&key).unwrap().pem();
        let issuer = Issuer::new(params, key);
        Self { issuer, pem }
    }

    /// A certificate of this authority that names `identity`, and its key.
    pub(crate) fn issue(&self, params: &CertificateParams) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let signed = params.signed_by(&key, &self.issuer).unwrap();
        (signed.pem(), key.serialize_pem())
    }

    /// What an end needs that this authority vouches for, and that believes it.
    pub(crate) fn credentials(&self, identity: &str) -> TlsCredentials {
        let (certificate, key) = self.issue(&naming(identity));
        credentials(&certificate, &key, &self.pem)
    }
}

pub(crate) fn credentials(certificate: &str, key: &str, authority: &str) -> TlsCredentials {
    TlsCredentials::from_pem(certificate.as_bytes(), key.as_bytes(), authority.as_bytes()).unwrap()
}

/// A certificate for either end that names `identity`, valid now.
pub(crate) fn naming(identity: &str) -> CertificateParams {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.subject_alt_names = vec![SanType::URI(identity.try_into().unwrap())];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    params
}
