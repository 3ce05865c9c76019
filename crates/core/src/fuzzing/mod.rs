//! The decoders of the library as functions of bytes: what the targets in `fuzz/` call, and what a
//! test calls with the corpora there. Not part of the interface.
//!
//! Each function decodes as the library does, and panics where bytes lead to something that must
//! not be: a decoder that panics, something that is not the same after being written and read
//! again, a length beyond the bytes. Checksums are made right first, since hardly any changed input
//! would get past them; that wrong ones are refused is for other tests.
//!
//! What is private to a folder is called from a `fuzzing.rs` in that folder.

mod files;
mod keys;
mod messages;
mod texts;

pub use self::files::{addresses_file, digest_file, identity_file, members_file};
pub use self::keys::table_key;
pub use self::messages::{envelope, message};
pub use self::texts::{commit_token, config, holder, join_token};

/// A decoder, and the name of its target and of its corpus.
pub type Target = (&'static str, fn(&[u8]));

/// Every target of the library.
pub const TARGETS: &[Target] = &[
    ("addresses_file", addresses_file),
    ("certificate", certificate),
    ("commit_token", commit_token),
    ("config", config),
    ("copy", copy),
    ("digest_file", digest_file),
    ("entry", entry),
    ("envelope", envelope),
    ("hello", hello),
    ("holder", holder),
    ("identity_file", identity_file),
    ("join_token", join_token),
    ("log_record", log_record),
    ("log_segment", log_segment),
    ("members_file", members_file),
    ("message", message),
    ("table_key", table_key),
];

/// A PEM text with certificates, and whom they name.
pub fn certificate(input: &[u8]) {
    crate::credentials::fuzzing::certificate(input);
}

/// What a copy of the state gets from its source, and what it finds of itself after a crash.
pub fn copy(input: &[u8]) {
    crate::state_copy::fuzzing::copy(input);
}

/// An entry of the log: its kind, then its payload.
pub fn entry(input: &[u8]) {
    crate::consensus::fuzzing::entry(input);
}

/// A hello, met by a node of a group.
pub fn hello(input: &[u8]) {
    crate::wire::fuzzing::hello(input);
}

/// One record of the log.
pub fn log_record(input: &[u8]) {
    crate::log::fuzzing::record(input);
}

/// A whole log of one segment, opened as after a crash.
pub fn log_segment(input: &[u8]) {
    crate::log::fuzzing::segment(input);
}

#[cfg(test)]
mod tests;
