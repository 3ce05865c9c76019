//! Why credentials cannot be made, read or used.

use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};

use steadfast_net::NetError;

use super::certificate::date;
use crate::config::ConfigError;
use crate::config::access::Holder;
use crate::error::in_full;

/// Why credentials cannot be made, read or used. Nothing was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CredentialsError {
    /// A file is not there: name the right directory.
    #[error("{} is missing", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// The system refused something.
    #[error("cannot {doing} {}: {source}", path.display())]
    Io {
        /// What was refused.
        doing: &'static str,
        /// With which file or directory.
        path: PathBuf,
        /// Why.
        r#source: io::Error,
    },
    /// Others than its owner may use a private key. Whoever has read it can go on using it, so
    /// issue new credentials if others could.
    #[error(
        "others than its owner may use the private key {} (mode {mode:04o}); run `chmod 600 {0}`",
        path.display()
    )]
    OpenKey {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// Others than its owner may write a certificate. Whoever writes `authority.pem` decides who is
    /// believed, so see that it holds what it should.
    #[error(
        "others than its owner may write {} (mode {mode:04o}); run `chmod go-w {0}`",
        path.display()
    )]
    OpenToWriters {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// A file does not hold what its name says, or is none.
    #[error("{} cannot be used: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A certificate names nobody who could be in a group.
    #[error("the certificate {} names no holder: {source}", path.display())]
    NoHolder {
        /// The file.
        path: PathBuf,
        /// What is wrong with the name.
        r#source: ConfigError,
    },
    /// A certificate was valid once: issue another one.
    #[error(
        "the certificate {} expired on {}; it is {}",
        path.display(), date(*not_after_ms), date(*now_ms)
    )]
    Expired {
        /// The file.
        path: PathBuf,
        /// Until when it was valid, in milliseconds since 1970.
        not_after_ms: u64,
        /// The time of this machine.
        now_ms: u64,
    },
    /// A certificate is not valid yet. A clock is wrong, here or where it was issued.
    #[error(
        "the certificate {} is valid from {} on; it is {} on this machine",
        path.display(), date(*not_before_ms), date(*now_ms)
    )]
    NotYetValid {
        /// The file.
        path: PathBuf,
        /// From when on it is valid, in milliseconds since 1970.
        not_before_ms: u64,
        /// The time of this machine.
        now_ms: u64,
    },
    /// The files are well formed, but no handshake can be made with them: the key may be that of
    /// another certificate.
    #[error("the files in {} do not belong together: {}", dir.display(), in_full(.source))]
    Unusable {
        /// The directory.
        dir: PathBuf,
        /// Why.
        r#source: NetError,
    },
    /// An authority signs for its own group alone.
    #[error("this is the authority of group {group:?}, and does not sign for {holder}")]
    OtherGroup {
        /// The group of the authority.
        group: String,
        /// Who is of another group.
        holder: Holder,
    },
    /// A certificate would be valid for longer than its authority: ask for less, or create a new
    /// authority.
    #[error(
        "a certificate cannot be valid for longer than its authority, which ends on {}",
        date(*not_after_ms)
    )]
    OutlivesAuthority {
        /// Until when the authority is valid, in milliseconds since 1970.
        not_after_ms: u64,
    },
    /// Nothing is overwritten: name a directory that is empty, or not there yet.
    #[error("{} is not empty", path.display())]
    NotEmpty {
        /// The directory.
        path: PathBuf,
    },
    /// A certificate was signed by an authority that was made later, and that this one does not know:
    /// it may be a copy from before the authority was changed.
    #[error(
        "this authority was made on {}, and that of {} on {}: it may be a copy of an earlier one",
        date(*made_ms), dir.display(), date(*later_ms)
    )]
    OldAuthority {
        /// The directory with the certificate.
        dir: PathBuf,
        /// When this authority was made, in milliseconds since 1970.
        made_ms: u64,
        /// When the later one was made.
        later_ms: u64,
    },
    /// A request for a certificate is none, or was not made with its own key.
    #[error("the request for a certificate cannot be used: {reason}")]
    BadRequest {
        /// Why.
        reason: String,
    },
    /// No certificate could be made.
    #[error("no certificate could be made: {reason}")]
    Signing {
        /// Why.
        reason: String,
    },
}

impl CredentialsError {
    pub(super) fn malformed(path: &Path, reason: &dyn Display) -> Self {
        Self::Malformed {
            path: path.to_owned(),
            reason: reason.to_string(),
        }
    }

    pub(super) fn signing(reason: &dyn Display) -> Self {
        Self::Signing {
            reason: reason.to_string(),
        }
    }
}
