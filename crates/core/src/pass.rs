//! The secret part of a join token: what a new node proves that it was invited with.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use prost::Message;

/// What a new node proves that it was invited with: a private key, and a short-lived certificate
/// that lets its holder ask for the certificate of one new node, once. Whoever has it can become
/// that node.
#[derive(Clone, PartialEq, Eq, Message)]
#[prost(skip_debug)]
pub struct Pass {
    /// The certificate, in DER.
    #[prost(bytes = "bytes", tag = "1")]
    pub(crate) certificate: Bytes,
    /// Its private key, PKCS #8 in DER.
    #[prost(bytes = "bytes", tag = "2")]
    pub(crate) key: Bytes,
    /// The authorities of the group, in DER.
    #[prost(bytes = "bytes", repeated, tag = "3")]
    pub(crate) authorities: Vec<Bytes>,
}

impl Pass {
    /// The pass in a text; `None` when there is none in it, or not in the form that is written.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let pass = Self::decode(&bytes[..]).ok()?;
        (pass.to_text() == text).then_some(pass)
    }

    /// As a text without a slash.
    pub(crate) fn to_text(&self) -> String {
        URL_SAFE_NO_PAD.encode(self.encode_to_vec())
    }
}

/// Shows no key.
impl fmt::Debug for Pass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pass").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pass_survives_being_written_and_shows_no_key() {
        let pass = Pass {
            certificate: Bytes::from_static(b"certificate"),
            key: Bytes::from_static(b"secret"),
            authorities: vec![Bytes::from_static(b"one"), Bytes::from_static(b"two")],
        };
        let text = pass.to_text();
        assert!(!text.contains('/'), "{text}");
        assert_eq!(Pass::parse(&text), Some(pass.clone()));
        assert_eq!(Pass::parse(&format!("{text}A")), None);
        assert!(!format!("{pass:?}").contains("secret"));
    }
}
