//! Users and roles as values: who may do what, and how that is changed.

use std::collections::BTreeSet;

use bytes::Bytes;

use crate::error::Error;
use crate::proto::authpb::Permission;
use crate::proto::authpb::permission::Type;

/// The user and the role that may do everything.
pub(crate) const ROOT: &str = "root";

/// Bytes of all users and roles, as they are kept: one row that changes as a whole.
pub(crate) const STATE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Everything that is known of users and roles.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct State {
    #[prost(bool, tag = "1")]
    pub(crate) enabled: bool,
    /// Raised by each change.
    #[prost(uint64, tag = "2")]
    pub(crate) revision: u64,
    /// What tokens are signed with. Another one with each time that it is enabled.
    #[prost(bytes = "bytes", tag = "3")]
    pub(crate) key: Bytes,
    /// By name.
    #[prost(message, repeated, tag = "4")]
    pub(crate) users: Vec<User>,
    /// By name.
    #[prost(message, repeated, tag = "5")]
    pub(crate) roles: Vec<Role>,
}

/// One user.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct User {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    /// The hash of the password. Empty: none, the user is known by a certificate alone.
    #[prost(string, tag = "2")]
    pub(crate) hash: String,
    /// The revision that made it or changed its password. Tokens from before are void.
    #[prost(uint64, tag = "3")]
    pub(crate) since: u64,
    #[prost(string, repeated, tag = "4")]
    pub(crate) roles: Vec<String>,
}

/// One role.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Role {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    #[prost(message, repeated, tag = "2")]
    pub(crate) permissions: Vec<Permission>,
}

/// What is asked of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    Read,
    Write,
}

impl State {
    pub(crate) fn user(&self, name: &str) -> Option<&User> {
        let place = self
            .users
            .binary_search_by(|user| user.name.as_str().cmp(name));
        place.ok().map(|place| &self.users[place])
    }

    fn user_mut(&mut self, name: &str) -> Result<&mut User, Error> {
        let place = self
            .users
            .binary_search_by(|user| user.name.as_str().cmp(name));
        let place = place.map_err(|_| Error::UserNotFound)?;
        Ok(&mut self.users[place])
    }

    pub(crate) fn role(&self, name: &str) -> Option<&Role> {
        let place = self
            .roles
            .binary_search_by(|role| role.name.as_str().cmp(name));
        place.ok().map(|place| &self.roles[place])
    }

    fn role_mut(&mut self, name: &str) -> Result<&mut Role, Error> {
        let place = self
            .roles
            .binary_search_by(|role| role.name.as_str().cmp(name));
        let place = place.map_err(|_| Error::RoleNotFound)?;
        Ok(&mut self.roles[place])
    }

    /// Turns checks on.
    pub(crate) fn enable(&mut self, key: Bytes) -> Result<(), Error> {
        let root = self.user(ROOT).ok_or(Error::RootUserMissing)?;
        if !root.is_root() {
            return Err(Error::RootRoleMissing);
        }
        self.enabled = true;
        self.key = key;
        Ok(())
    }

    /// Adds a user; an empty hash is that of one without a password.
    pub(crate) fn add_user(&mut self, name: &str, hash: String) -> Result<(), Error> {
        if name.is_empty() {
            return Err(Error::UserEmpty);
        }
        let place = self
            .users
            .binary_search_by(|user| user.name.as_str().cmp(name));
        let Err(place) = place else {
            return Err(Error::UserExists);
        };
        let user = User {
            name: name.to_owned(),
            hash,
            since: self.revision + 1,
            roles: Vec::new(),
        };
        self.users.insert(place, user);
        Ok(())
    }

    pub(crate) fn delete_user(&mut self, name: &str) -> Result<(), Error> {
        if self.enabled && name == ROOT {
            return Err(Error::InvalidAuthManagement);
        }
        self.user_mut(name)?;
        self.users.retain(|user| user.name != name);
        Ok(())
    }

    pub(crate) fn change_password(&mut self, name: &str, hash: String) -> Result<(), Error> {
        let since = self.revision + 1;
        let user = self.user_mut(name)?;
        if !user.hash.is_empty() {
            user.hash = hash;
        }
        user.since = since;
        Ok(())
    }

    pub(crate) fn grant_role(&mut self, user: &str, role: &str) -> Result<(), Error> {
        let known = role == ROOT || self.role(role).is_some();
        let user = self.user_mut(user)?;
        if !known {
            return Err(Error::RoleNotFound);
        }
        if let Err(place) = user.roles.binary_search_by(|had| had.as_str().cmp(role)) {
            user.roles.insert(place, role.to_owned());
        }
        Ok(())
    }

    pub(crate) fn revoke_role(&mut self, user: &str, role: &str) -> Result<(), Error> {
        if self.enabled && user == ROOT && role == ROOT {
            return Err(Error::InvalidAuthManagement);
        }
        let user = self.user_mut(user)?;
        let had = user.roles.len();
        user.roles.retain(|had| had != role);
        if user.roles.len() == had {
            return Err(Error::RoleNotGranted);
        }
        Ok(())
    }

    pub(crate) fn add_role(&mut self, name: &str) -> Result<(), Error> {
        if name.is_empty() {
            return Err(Error::RoleEmpty);
        }
        let place = self
            .roles
            .binary_search_by(|role| role.name.as_str().cmp(name));
        let Err(place) = place else {
            return Err(Error::RoleExists);
        };
        let role = Role {
            name: name.to_owned(),
            permissions: Vec::new(),
        };
        self.roles.insert(place, role);
        Ok(())
    }

    pub(crate) fn delete_role(&mut self, name: &str) -> Result<(), Error> {
        if self.enabled && name == ROOT {
            return Err(Error::InvalidAuthManagement);
        }
        self.role_mut(name)?;
        self.roles.retain(|role| role.name != name);
        for user in &mut self.users {
            user.roles.retain(|role| role != name);
        }
        Ok(())
    }

    pub(crate) fn grant_permission(
        &mut self,
        role: &str,
        permission: Option<Permission>,
    ) -> Result<(), Error> {
        let permission = permission.ok_or(Error::PermissionNotGiven)?;
        if !is_range(&permission.key, &permission.range_end) {
            return Err(Error::InvalidAuthManagement);
        }
        let permissions = &mut self.role_mut(role)?.permissions;
        let of = |known: &Permission| (known.key.clone(), known.range_end.clone());
        match permissions.binary_search_by_key(&of(&permission), of) {
            Ok(place) => permissions[place] = permission,
            Err(place) => permissions.insert(place, permission),
        }
        Ok(())
    }

    pub(crate) fn revoke_permission(
        &mut self,
        role: &str,
        key: &[u8],
        range_end: &[u8],
    ) -> Result<(), Error> {
        let permissions = &mut self.role_mut(role)?.permissions;
        let had = permissions.len();
        permissions.retain(|known| known.key != key || known.range_end != range_end);
        if permissions.len() == had {
            return Err(Error::PermissionNotGranted);
        }
        Ok(())
    }

    /// Whether a user may do this to all keys of a range.
    pub(crate) fn permits(&self, user: &User, need: Need, key: &[u8], range_end: &[u8]) -> bool {
        if user.is_root() {
            return true;
        }
        let roles: BTreeSet<_> = user.roles.iter().collect();
        let roles = roles.into_iter().filter_map(|name| self.role(name));
        let mut ranges: Vec<_> = roles
            .flat_map(|role| &role.permissions)
            .filter(|permission| match permission.perm_type() {
                Type::Readwrite => true,
                Type::Read => need == Need::Read,
                Type::Write => need == Need::Write,
            })
            .map(|permission| {
                (
                    &*permission.key,
                    End::of(&permission.key, &permission.range_end),
                )
            })
            .collect();
        ranges.sort_unstable();
        covers(&ranges, key, &End::of(key, range_end))
    }
}

impl User {
    pub(crate) fn is_root(&self) -> bool {
        self.roles.iter().any(|role| role == ROOT)
    }
}

/// Where a range ends.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    /// Before this key.
    Before(Vec<u8>),
    /// Nowhere.
    Never,
}

impl End {
    /// The end of the range that a request or a permission names.
    fn of(key: &[u8], range_end: &[u8]) -> Self {
        match range_end {
            [] => Self::Before([key, &[0]].concat()),
            [0] => Self::Never,
            _ => Self::Before(range_end.to_vec()),
        }
    }
}

/// Whether ranges, in the order of their beginnings, together have all keys from `key` to `end`.
fn covers(ranges: &[(&[u8], End)], key: &[u8], end: &End) -> bool {
    if End::Before(key.to_vec()) >= *end {
        // An empty range: who may see its first key may be told that there is nothing.
        return covers(ranges, key, &End::of(key, &[]));
    }
    let mut reached = End::Before(key.to_vec());
    for (begin, range_end) in ranges {
        if End::Before(begin.to_vec()) > reached {
            break;
        }
        if *range_end > reached {
            reached = range_end.clone();
        }
        if reached >= *end {
            return true;
        }
    }
    false
}

/// Whether a permission is for any key at all.
fn is_range(key: &[u8], range_end: &[u8]) -> bool {
    match range_end {
        _ if key.is_empty() => false,
        [] | [0] => true,
        _ => key < range_end,
    }
}

#[cfg(test)]
mod tests {
    use super::{Need, ROOT, State};
    use crate::error::Error;
    use crate::proto::authpb::Permission;
    use crate::proto::authpb::permission::Type;

    fn permission(kind: Type, key: &str, range_end: &[u8]) -> Permission {
        Permission {
            perm_type: kind.into(),
            key: key.to_owned().into(),
            range_end: range_end.to_vec().into(),
        }
    }

    fn with(permissions: &[(Type, &str, &[u8])]) -> State {
        let mut state = State::default();
        state.add_role("role").expect("there is none");
        state
            .add_user("user", String::new())
            .expect("there is none");
        state.grant_role("user", "role").expect("both are there");
        for (kind, key, range_end) in permissions {
            let granted = state.grant_permission("role", Some(permission(*kind, key, range_end)));
            granted.expect("it is a range");
        }
        state
    }

    fn may(state: &State, need: Need, key: &str, range_end: &[u8]) -> bool {
        let user = state.user("user").expect("it was added");
        state.permits(user, need, key.as_bytes(), range_end)
    }

    #[test]
    fn a_range_is_permitted_only_as_a_whole() {
        let state = with(&[(Type::Read, "a", b"c"), (Type::Readwrite, "c", b"e")]);
        assert!(may(&state, Need::Read, "a", b"e"), "two ranges that touch");
        assert!(may(&state, Need::Read, "b", b""));
        assert!(!may(&state, Need::Read, "a", b"f"));
        assert!(!may(&state, Need::Read, "e", b""));
        assert!(
            !may(&state, Need::Read, "a", b"\0"),
            "to the end of all keys"
        );
        assert!(
            !may(&state, Need::Write, "b", b"d"),
            "its first half can only be read"
        );
        assert!(may(&state, Need::Write, "c", b"e"));
    }

    #[test]
    fn a_permission_without_an_end_covers_every_end() {
        let state = with(&[(Type::Write, "m", b"\0")]);
        assert!(may(&state, Need::Write, "m", b"\0"));
        assert!(may(&state, Need::Write, "z", b"zz"));
        assert!(!may(&state, Need::Write, "l", b"\0"));
        assert!(!may(&state, Need::Read, "z", b""));
    }

    #[test]
    fn a_permission_for_a_key_is_for_no_other() {
        let state = with(&[(Type::Readwrite, "key", b"")]);
        assert!(may(&state, Need::Read, "key", b""));
        assert!(may(&state, Need::Read, "key", b"key\0"));
        assert!(!may(&state, Need::Read, "key", b"key\0\0"));
        assert!(!may(&state, Need::Read, "kez", b""));
    }

    #[test]
    fn a_reversed_range_needs_the_right_to_its_key() {
        let state = with(&[(Type::Read, "m", b"")]);
        assert!(may(&state, Need::Read, "m", b"a"));
        assert!(!may(&state, Need::Read, "z", b"a"));
    }

    #[test]
    fn root_keeps_its_role_while_checks_are_on() {
        let mut state = State::default();
        assert_eq!(state.enable("k".into()), Err(Error::RootUserMissing));
        state
            .add_user(ROOT, "hash".to_owned())
            .expect("there is none");
        assert_eq!(state.enable("k".into()), Err(Error::RootRoleMissing));
        state.grant_role(ROOT, ROOT).expect("it is there");
        state.enable("k".into()).expect("root is there");
        assert_eq!(
            state.revoke_role(ROOT, ROOT),
            Err(Error::InvalidAuthManagement)
        );
        assert_eq!(state.delete_user(ROOT), Err(Error::InvalidAuthManagement));
        assert_eq!(state.delete_role(ROOT), Err(Error::InvalidAuthManagement));
    }

    #[test]
    fn a_role_that_is_deleted_is_nobodys() {
        let mut state = with(&[(Type::Read, "a", b"")]);
        state.delete_role("role").expect("it is there");
        assert!(!may(&state, Need::Read, "a", b""));
        assert_eq!(
            state.revoke_role("user", "role"),
            Err(Error::RoleNotGranted)
        );
        state.add_role("role").expect("it is gone");
        assert!(
            !may(&state, Need::Read, "a", b""),
            "a new role of the old name"
        );
    }
}
