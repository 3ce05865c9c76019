//! Keys and values as text: in arguments, in tables and in lines of JSON.

use std::fmt::Write;
use std::time::Duration;

use bytes::Bytes;
use clap::ValueEnum;
use data_encoding::{BASE64, HEXLOWER, HEXLOWER_PERMISSIVE};
use serde::{Deserialize, Serialize};

/// How bytes are written as text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// As UTF-8
    Text,
    /// Two digits for each byte
    Hex,
    /// With padding
    Base64,
}

impl Format {
    /// The bytes that an argument stands for.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn parse(self, argument: &str) -> Result<Bytes, String> {
        let wrong = |error| format!("{argument:?} is not {}: {error}", self.name());
        let bytes = match self {
            Self::Text => argument.as_bytes().to_vec(),
            Self::Hex => HEXLOWER_PERMISSIVE
                .decode(argument.as_bytes())
                .map_err(wrong)?,
            Self::Base64 => BASE64.decode(argument.as_bytes()).map_err(wrong)?,
        };
        Ok(bytes.into())
    }

    /// Bytes alone on a line; `None` if they are not text.
    pub(super) fn whole(self, bytes: &[u8]) -> Option<String> {
        match self {
            Self::Text => std::str::from_utf8(bytes).ok().map(str::to_owned),
            Self::Hex => Some(HEXLOWER.encode(bytes)),
            Self::Base64 => Some(BASE64.encode(bytes)),
        }
    }

    /// Bytes as one field of a line: text with `\n`, `\t`, `\\` and `\xNN` for what is no character
    /// to print.
    pub(super) fn field(self, bytes: &[u8]) -> String {
        match self {
            Self::Text => escaped(bytes),
            other => other.whole(bytes).unwrap_or_default(),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Hex => "hexadecimal",
            Self::Base64 => "base64",
        }
    }
}

fn escaped(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            match character {
                '\\' | '\n' | '\t' | '\r' => text.extend(character.escape_default()),
                control if control.is_control() => hex_escapes(&mut text, control),
                shown => text.push(shown),
            }
        }
        for byte in chunk.invalid() {
            write!(text, "\\x{byte:02x}").expect("a string grows");
        }
    }
    text
}

fn hex_escapes(text: &mut String, character: char) {
    let mut buffer = [0; 4];
    for byte in character.encode_utf8(&mut buffer).bytes() {
        write!(text, "\\x{byte:02x}").expect("a string grows");
    }
}

/// A row as a line of JSON. Keys and values that are no text are in base64, under names that say so.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct JsonRow {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) database: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_base64: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value_base64: Option<String>,
    /// What the key has still to live, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) ttl_ms: Option<u64>,
}

impl JsonRow {
    pub(super) fn new(
        database: &str,
        key: &[u8],
        value: Option<&[u8]>,
        ttl: Option<Duration>,
    ) -> Self {
        let (key, key_base64) = text_or_base64(key);
        let (value, value_base64) = value.map(text_or_base64).unwrap_or_default();
        Self {
            database: Some(database.to_owned()),
            key,
            key_base64,
            value,
            value_base64,
            ttl_ms: ttl.map(|ttl| u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX)),
        }
    }

    /// Key and value.
    ///
    /// # Errors
    /// What is wrong with the row.
    pub(super) fn bytes(self) -> Result<(Vec<u8>, Vec<u8>), String> {
        let key = bytes("key", self.key, self.key_base64)?;
        Ok((key, bytes("value", self.value, self.value_base64)?))
    }
}

fn text_or_base64(bytes: &[u8]) -> (Option<String>, Option<String>) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (Some(text.to_owned()), None),
        Err(_) => (None, Some(BASE64.encode(bytes))),
    }
}

fn bytes(name: &str, text: Option<String>, base64: Option<String>) -> Result<Vec<u8>, String> {
    match (text, base64) {
        (Some(text), None) => Ok(text.into_bytes()),
        (None, Some(base64)) => BASE64
            .decode(base64.as_bytes())
            .map_err(|error| format!("{name}_base64 is not base64: {error}")),
        (None, None) => Err(format!("it has neither {name} nor {name}_base64")),
        (Some(_), Some(_)) => Err(format!("it has both {name} and {name}_base64")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_in_a_format_is_read_in_it() {
        let all: Vec<u8> = (0..=255).collect();
        for format in [Format::Hex, Format::Base64] {
            let text = format.whole(&all).expect("all bytes can be written");
            assert_eq!(format.parse(&text), Ok(all.clone().into()), "{format:?}");
        }
        assert_eq!(Format::Text.parse("ä"), Ok(Bytes::from("ä")));
        assert_eq!(Format::Hex.parse("AbfF"), Ok(vec![0xab, 0xff].into()));
        assert_eq!(Format::Text.whole(&[0xff]), None);
        for wrong in ["a", "xy", "a "] {
            let error = Format::Hex.parse(wrong).expect_err("no digits");
            assert!(error.contains("hexadecimal"), "{error}");
        }
    }

    #[test]
    fn a_field_has_no_tab_and_no_line_end_and_shows_every_byte() {
        let field = Format::Text.field("a\tb\nä\\\u{7}".as_bytes());
        assert_eq!(field, "a\\tb\\nä\\\\\\x07");
        assert_eq!(Format::Text.field(&[b'k', 0xff, 0]), "k\\xff\\x00");
    }

    #[test]
    fn a_row_is_the_same_after_it_was_a_line() {
        for (key, value) in [(&b"k"[..], &b"v"[..]), (&[0xff], b""), (b"", &[0, 0xfe])] {
            let row = JsonRow::new("d", key, Some(value), None);
            let line = serde_json::to_string(&row).expect("JSON");
            let read: JsonRow = serde_json::from_str(&line).expect("a row");
            assert_eq!(read, row);
            assert_eq!(read.bytes(), Ok((key.to_vec(), value.to_vec())));
        }
        for wrong in [
            r#"{"value":"v"}"#,
            r#"{"key":"k","key_base64":"aw==","value":"v"}"#,
            r#"{"key":"k","value_base64":"?"}"#,
        ] {
            let row: JsonRow = serde_json::from_str(wrong).expect("its fields are known");
            row.bytes().expect_err("it is no row");
        }
    }
}
