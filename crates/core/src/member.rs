//! The members of a group as values: addresses, node types, and what a new node brings with it.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::ids::{GroupUuid, NodeId};
use crate::pass::Pass;

/// Where to reach a node of the group.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NodeAddress {
    /// Its id, never reused.
    pub id: NodeId,
    /// Its name, unique within the group at any one time.
    pub name: String,
    /// Where the others reach it: `host:port`.
    pub address: String,
    /// What its application says of it: see [`RepConfigBuilder::metadata`].
    ///
    /// [`RepConfigBuilder::metadata`]: crate::RepConfigBuilder::metadata
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
}

/// A node's part in its group.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum NodeType {
    /// Has the data, votes, counts for acknowledgements, and can be master.
    #[default]
    Electable,
    /// Has the data; neither votes nor counts for acknowledgements. Can be promoted.
    Secondary,
    /// Votes and counts, but has no data, only the positions and terms of the log. Never master.
    Arbiter,
}

impl NodeType {
    const ALL: [Self; 3] = [Self::Electable, Self::Secondary, Self::Arbiter];

    /// The type from its number on disk and on the wire; `None` for one unknown to this version.
    pub(crate) fn from_number(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|known| *known as u32 == number)
    }

    /// Whether such a node votes once it has caught up.
    pub fn votes(self) -> bool {
        self != Self::Secondary
    }

    /// Whether such a node holds the data.
    pub fn has_data(self) -> bool {
        self != Self::Arbiter
    }
}

impl fmt::Display for NodeType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Electable => "electable",
            Self::Secondary => "secondary",
            Self::Arbiter => "arbiter",
        })
    }
}

/// The text is not a node type.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a node type: use electable, secondary or arbiter")]
pub struct ParseNodeTypeError(String);

impl FromStr for NodeType {
    type Err = ParseNodeTypeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut all = Self::ALL.into_iter();
        all.find(|known| known.to_string() == text)
            .ok_or_else(|| ParseNodeTypeError(text.to_owned()))
    }
}

/// Priority of a node that was given none.
pub const PRIORITY_DEFAULT: u32 = 1;

/// One entry of the list from which a group forms.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Expected {
    pub(crate) name: String,
    pub(crate) address: String,
}

/// The format of a token that holds no secret.
const FORM: &str = "steadfast-join/1";
/// The format of a token with a pass.
const FORM_WITH_PASS: &str = "steadfast-join/2";

/// What a new node needs to join a group, as text: which group, where its members are, the node's
/// own role in it, and in a group with credentials the [`Pass`] with which it gets its own. A token
/// with a pass is a secret until it was used or has expired.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinToken {
    /// Name of the group.
    pub group_name: String,
    /// The group.
    pub group: GroupUuid,
    /// The type of the new node.
    pub node_type: NodeType,
    /// Its priority, if it is electable.
    pub priority: u32,
    /// Addresses of members to ask, each `host:port`.
    pub addresses: Vec<String>,
    /// What it gets its certificate with; `None` where it has one, or needs none.
    pub pass: Option<Pass>,
}

impl JoinToken {
    /// The same, with this pass.
    #[must_use]
    pub fn with_pass(self, pass: Pass) -> Self {
        let pass = Some(pass);
        Self { pass, ..self }
    }

    /// The same, for a node of this priority.
    #[must_use]
    pub fn with_priority(self, priority: u32) -> Self {
        Self { priority, ..self }
    }

    fn body(&self) -> String {
        let Self {
            group_name,
            group,
            node_type,
            priority,
            addresses,
            pass,
        } = self;
        let addresses = addresses.join(",");
        let rest = format!("{group_name}/{group}/{node_type}/{priority}/{addresses}");
        match pass {
            None => format!("{FORM}/{rest}"),
            Some(pass) => format!("{FORM_WITH_PASS}/{rest}/{}", pass.to_text()),
        }
    }
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let body = self.body();
        write!(f, "{body}/{:08x}", crc32c::crc32c(body.as_bytes()))
    }
}

/// The text is not a join token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a join token, or one that was truncated or altered; `steadfast token create` prints one"
)]
pub struct ParseJoinTokenError;

impl FromStr for JoinToken {
    type Err = ParseJoinTokenError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let of_form = |form| text.strip_prefix(form)?.strip_prefix('/');
            let with_pass = of_form(FORM_WITH_PASS);
            let mut fields = with_pass.or_else(|| of_form(FORM))?.split('/');
            let token = Self {
                group_name: fields.next()?.to_owned(),
                group: fields.next()?.parse().ok()?,
                node_type: fields.next()?.parse().ok()?,
                priority: fields.next()?.parse().ok()?,
                addresses: fields.next()?.split(',').map(str::to_owned).collect(),
                pass: match with_pass {
                    Some(_) => Some(Pass::parse(fields.next()?)?),
                    None => None,
                },
            };
            (token.to_string() == text).then_some(token)
        };
        parse().ok_or(ParseJoinTokenError)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_being_printed_and_no_other_text_is_one() {
        let token = JoinToken {
            group_name: "orders".to_owned(),
            group: GroupUuid(uuid::Uuid::from_u128(7)),
            node_type: NodeType::Secondary,
            priority: 3,
            addresses: vec!["10.0.0.1:7400".to_owned(), "[::1]:7400".to_owned()],
            pass: None,
        };
        survives(&token);
        let pass = Pass {
            certificate: "certificate".into(),
            key: "key".into(),
            authorities: vec!["authority".into()],
        };
        survives(&token.with_pass(pass));
    }

    fn survives(token: &JoinToken) {
        let text = token.to_string();
        assert_eq!(text.parse().as_ref(), Ok(token));
        for at in 0..text.len() {
            let mut changed = text.clone().into_bytes();
            changed[at] ^= 1;
            let changed = String::from_utf8(changed).expect("still ASCII");
            assert_eq!(changed.parse::<JoinToken>(), Err(ParseJoinTokenError));
            assert_eq!(text[..at].parse::<JoinToken>(), Err(ParseJoinTokenError));
        }
    }
}
