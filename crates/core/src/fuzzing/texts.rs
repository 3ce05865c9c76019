//! Texts that people and programs hand over: tokens, identities, the configuration.

use std::fmt::Display;
use std::str::FromStr;

use crate::config::access::Holder;
use crate::config::{Bootstrap, ConfigError, RepConfig, RepConfigBuilder};
use crate::member::JoinToken;
use crate::policy::Durability;
use crate::token::CommitToken;

/// A join token. Its checksum is made right where it has one.
pub fn join_token(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    printed_again::<JoinToken>(text);
    if let Some((body, _)) = text.rsplit_once('/') {
        let checksum = crc32c::crc32c(body.as_bytes());
        printed_again::<JoinToken>(&format!("{body}/{checksum:08x}"));
    }
}

/// A commit token.
pub fn commit_token(input: &[u8]) {
    if let Ok(text) = std::str::from_utf8(input) {
        printed_again::<CommitToken>(text);
    }
}

/// The identity in a certificate.
pub fn holder(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    if let Some(holder) = printed_again::<Holder>(text) {
        assert_eq!(holder.to_string(), text, "an identity has one form");
    }
}

/// A configuration, one `key=value` a line.
pub fn config(input: &[u8]) {
    if let Ok(text) = std::str::from_utf8(input) {
        drop(configured(text));
    }
}

fn configured(text: &str) -> Result<RepConfig, ConfigError> {
    let pairs = || text.lines().filter_map(|line| line.split_once('='));
    let value = |wanted: &str| {
        pairs()
            .find(|(key, _)| *key == wanted)
            .map(|(_, value)| value)
    };
    let [group, node] = ["group", "node"].map(|key| value(key).unwrap_or_default());
    let begun = RepConfig::builder(group, node);
    pairs()
        .try_fold(begun, |builder, (key, value)| with(builder, key, value))?
        .build()
}

fn with(
    builder: RepConfigBuilder,
    key: &str,
    value: &str,
) -> Result<RepConfigBuilder, ConfigError> {
    let refused = |error: &dyn Display| ConfigError::new(key, error.to_string());
    Ok(match key {
        "group" | "node" => builder,
        "data_dir" => builder.data_dir(value),
        "listen" => builder.listen(value),
        "advertise" => builder.advertise(value),
        "bootstrap" => builder.bootstrap(Bootstrap::expect(value.split(','))?),
        "join" => {
            let token: Result<JoinToken, _> = value.parse();
            builder.bootstrap(Bootstrap::join(token.map_err(|error| refused(&error))?))
        }
        "durability" => {
            let durability: Result<Durability, _> = value.parse();
            builder.durability(durability.map_err(|error| refused(&error))?)
        }
        "repair" => builder.repair(value.parse()?),
        "metadata" => builder.metadata("name", value),
        "insecure_plaintext" => builder.insecure_plaintext(),
        key => {
            let number: Result<u64, _> = value.parse();
            builder.set(key, number.map_err(|error| refused(&error))?)
        }
    })
}

/// What the text says, which is the same after being printed and parsed.
fn printed_again<T>(text: &str) -> Option<T>
where
    T: FromStr + Display + PartialEq,
{
    let value: T = text.parse().ok()?;
    let again = value.to_string().parse().ok();
    assert!(
        again.as_ref() == Some(&value),
        "{text:?} is printed as {value}"
    );
    Some(value)
}
