//! What an application may say of its node: a few small values.

use std::collections::BTreeMap;

use crate::config::{ConfigError, RepConfigBuilder};
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

impl RepConfigBuilder {
    /// Adds a value that the application publishes of this node, such as the address of its web
    /// interface: `.metadata("web", "http://10.0.0.1:8080")`. All nodes have it, in every
    /// [`NodeAddress`] of this one: as the master in [`WriteError::NotMaster`], among the members, in
    /// events and in the status. At most 16 values, each of at most 256 bytes, with names of at most
    /// 64.
    ///
    /// The node has the group take them over once it is a member, in place of those that it had
    /// before. A node that is given none leaves them as they are.
    /// [`ReplicatedEnvironment::set_metadata`] changes them while it runs.
    ///
    /// [`NodeAddress`]: crate::NodeAddress
    /// [`WriteError::NotMaster`]: crate::WriteError::NotMaster
    /// [`ReplicatedEnvironment::set_metadata`]: crate::ReplicatedEnvironment::set_metadata
    #[must_use]
    pub fn metadata(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.metadata.insert(name.into(), value.into());
        self
    }
}
