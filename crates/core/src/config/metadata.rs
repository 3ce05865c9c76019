//! What an application may say of its node: a few small values.

use std::collections::BTreeMap;

use crate::config::ConfigError;
use crate::limits::{METADATA_ENTRIES_MAX, METADATA_KEY_BYTES_MAX, METADATA_VALUE_BYTES_MAX};

/// Checks the metadata of a node.
///
/// # Errors
/// The first name or value that is unusable, or that there are too many.
pub(crate) fn check_metadata(metadata: &BTreeMap<String, String>) -> Result<(), ConfigError> {
    let refuse = |problem| Err(ConfigError::new("metadata", problem));
    if metadata.len() > METADATA_ENTRIES_MAX {
        let count = metadata.len();
        return refuse(format!(
            "{count} values exceed the limit of {METADATA_ENTRIES_MAX}"
        ));
    }
    for (key, value) in metadata {
        if key.is_empty() {
            return refuse("the name of a value is empty".to_owned());
        }
        for (what, text, bytes_max) in [
            ("the name", key, METADATA_KEY_BYTES_MAX),
            ("the value", value, METADATA_VALUE_BYTES_MAX),
        ] {
            if text.len() > bytes_max {
                let bytes = text.len();
                return refuse(format!(
                    "{what} of {key:.64?} has {bytes} bytes, which exceeds the limit of {bytes_max}"
                ));
            }
            if text.chars().any(char::is_control) {
                return refuse(format!("{what} of {key:?} has a control character"));
            }
        }
    }
    Ok(())
}
