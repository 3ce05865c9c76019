//! The decoders of this crate as functions of bytes: what the targets in `fuzz/` call, and what a test
//! calls with the corpora there. Not part of the interface.
//!
//! Each function decodes as the crate does, and panics where bytes lead to something that must not
//! be. What is private to a folder is called from a `fuzzing.rs` in that folder.

/// A decoder, and the name of its target and of its corpus.
pub type Target = (&'static str, fn(&[u8]));

/// Every target of this crate.
pub const TARGETS: &[Target] = &[
    ("server_json", server_json),
    ("server_scheme", server_scheme),
];

/// The bodies of calls in the JSON form: which method, how many bytes come at a time, the text.
pub fn server_json(input: &[u8]) {
    crate::json::fuzzing::json(input);
}

/// What a client sends first, in reads of as many bytes as the first byte says.
pub fn server_scheme(input: &[u8]) {
    crate::http::fuzzing::scheme(input);
}

#[cfg(test)]
mod tests;
