//! Whom a certificate names, and the role that it gives.

use std::fmt;
use std::str::FromStr;

use super::{ConfigError, check_name};
use crate::ids::NodeId;

const SCHEME: &str = "steadfast://";

/// What the holder of a certificate may do: its role. Each may do what those before it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Access {
    /// Asks, with a join token, for the certificate of a new node.
    Joiner,
    /// Asks nodes who they are and who is master.
    Client,
    /// Follows the events of the group too.
    Monitor,
    /// Reads all data too: change feed, backups.
    Subscriber,
    /// Changes the group too, and has nodes read all of their data.
    Admin,
    /// A node of the group.
    Node,
}

impl Access {
    /// All, from the least.
    pub const ALL: [Self; 6] = [
        Self::Joiner,
        Self::Client,
        Self::Monitor,
        Self::Subscriber,
        Self::Admin,
        Self::Node,
    ];

    /// Its word in an identity.
    pub fn word(self) -> &'static str {
        match self {
            Self::Joiner => "joiner",
            Self::Client => "client",
            Self::Monitor => "monitor",
            Self::Subscriber => "subscriber",
            Self::Admin => "admin",
            Self::Node => "node",
        }
    }
}

impl FromStr for Access {
    type Err = ConfigError;

    fn from_str(word: &str) -> Result<Self, ConfigError> {
        let found = Self::ALL.into_iter().find(|role| role.word() == word);
        found.ok_or_else(|| {
            let problem =
                format!("{word:?} is not one of joiner, client, monitor, subscriber, admin, node");
            ConfigError::new("role", problem)
        })
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// Whom a certificate names: `steadfast://GROUP/ROLE/NAME`. The name of a node is its id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    group: String,
    access: Access,
    name: String,
}

impl Holder {
    /// A holder with this name in a group.
    ///
    /// # Errors
    /// When the group or the name is no valid name, or the name of a node is no number above 0.
    pub fn new(group: &str, access: Access, name: &str) -> Result<Self, ConfigError> {
        check_name("group", group)?;
        check_name("name", name)?;
        let holder = Self {
            group: group.to_owned(),
            access,
            name: name.to_owned(),
        };
        if access == Access::Node && holder.node_id().is_none() {
            let problem = format!("a node is named by its id, a number above 0, and not {name:?}");
            return Err(ConfigError::new("name", problem));
        }
        Ok(holder)
    }

    /// The node of this id in a group.
    ///
    /// # Errors
    /// When the group is no valid name, or the id is 0.
    pub fn node(group: &str, id: NodeId) -> Result<Self, ConfigError> {
        Self::new(group, Access::Node, &id.to_string())
    }

    /// The group.
    pub fn group(&self) -> &str {
        &self.group
    }

    /// What it may do.
    pub fn access(&self) -> Access {
        self.access
    }

    /// Its name in the group.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The id of a node; `None` for others.
    pub fn node_id(&self) -> Option<NodeId> {
        // In one form only: an identity is compared as a text.
        let id = self.name.parse().ok().filter(|id: &u64| *id > 0)?;
        let is_plain = self.access == Access::Node && id.to_string() == self.name;
        is_plain.then_some(NodeId(id))
    }

    /// Whether it may have a node write.
    pub(crate) fn may_write(&self) -> bool {
        self.access >= Access::Admin
    }

    /// Whether it may have a node read all of its data, or its files.
    pub(crate) fn may_have_read(&self) -> bool {
        self.access >= Access::Admin
    }
}

impl FromStr for Holder {
    type Err = ConfigError;

    fn from_str(identity: &str) -> Result<Self, ConfigError> {
        let parts = identity.strip_prefix(SCHEME).map(|rest| rest.split('/'));
        let parts: Vec<&str> = parts.into_iter().flatten().collect();
        match parts[..] {
            [group, access, name] => Self::new(group, access.parse()?, name),
            _ => Err(ConfigError::new(
                "identity",
                format!("{identity:?} is not of the form {SCHEME}GROUP/ROLE/NAME"),
            )),
        }
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            group,
            access,
            name,
        } = self;
        write!(f, "{SCHEME}{group}/{access}/{name}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holder(access: Access) -> Holder {
        Holder::new("orders", access, "7").expect("valid")
    }

    #[test]
    fn an_identity_is_read_back_as_it_was_written_and_has_one_form() {
        for access in Access::ALL {
            let identity = holder(access).to_string();
            assert_eq!(identity.parse(), Ok(holder(access)));
        }
        assert_eq!(
            holder(Access::Node).to_string(),
            "steadfast://orders/node/7"
        );
        for bad in [
            "",
            "steadfast://orders/node",
            "steadfast://orders/node/7/8",
            "steadfast://orders/node/0",
            "steadfast://orders/node/07",
            "steadfast://orders/node/+7",
            "steadfast://orders/node/n7",
            "steadfast://orders/root/7",
            "steadfast://orders/Node/7",
            "steadfast:///node/7",
            "steadfast://orders/admin/",
            "steadfast://orders/admin/a b",
            "spiffe://orders/node/7",
        ] {
            assert!(bad.parse::<Holder>().is_err(), "{bad}");
        }
    }
}
