//! Tells stopped nodes the new addresses of their group's members: the way out when all addresses
//! have changed at once and no node reaches another.
//!
//! The group itself is unchanged: no epoch begins, and no data is lost. A started node dials the
//! new addresses first, and whatever answers must prove that it is the member meant. The master
//! then puts each address into the membership as soon as its node answers there.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::config::{check_address, is_unspecified};
use crate::error::OpenError;
use crate::group::addresses::{self, Addresses, Said};
use crate::group::identity::DataDir;
use crate::group::{Member, Members, known};
use crate::ids::NodeId;
use crate::machine::Machine;
use crate::member::NodeAddress;

/// Why nothing was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AddressesError {
    /// The directory holds no node that belongs to a group.
    #[error(
        "{dir} is not the data directory of a node that belongs to a group; nothing was changed; name the directory of a stopped node"
    )]
    NoNode {
        /// The directory.
        dir: PathBuf,
    },
    /// The directory cannot be used.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The directory knows no such member.
    #[error(
        "no member is called {name:?}; nothing was changed; the members are {}",
        members.join(", ")
    )]
    Unknown {
        /// The name given.
        name: String,
        /// The names of all members.
        members: Vec<String>,
    },
    /// The address cannot be reached by anyone.
    #[error("the address of {name}: {why}; nothing was changed; correct it")]
    Address {
        /// The member.
        name: String,
        /// What is wrong with it.
        why: String,
    },
    /// One member was given two addresses, or two members the same one.
    #[error("{what}; nothing was changed; give each node an address of its own")]
    Twice {
        /// Which one.
        what: String,
    },
}

/// Records the members' new addresses in the directory of a stopped node, durably. Returns all
/// members, each with the address at which the node will look for it first.
///
/// # Errors
/// See [`AddressesError`].
pub async fn say(
    machine: &Machine,
    dir: &Path,
    said: &[(String, String)],
) -> Result<Vec<NodeAddress>, AddressesError> {
    for (name, address) in said {
        check(name, address)?;
    }
    let no_node = || AddressesError::NoNode {
        dir: dir.to_owned(),
    };
    let disk = &*machine.disk;
    if !DataDir::is_one(disk, dir)? {
        return Err(no_node());
    }
    let locked = DataDir::open(disk, dir)?;
    let identity = locked.find_identity(disk).await?.ok_or_else(no_node)?;
    if identity.group.is_none() {
        return Err(no_node());
    }
    let mut found = known::read(disk, dir, &identity);
    if found.is_empty() {
        found.clone_from(&identity.founders);
    }
    let members: Members = Arc::new(found.into_iter().collect());
    let mut book = addresses::read(disk, dir, &identity);
    for (at, (name, address)) in said.iter().enumerate() {
        let mut all = members.iter();
        let Some((id, member)) = all.find(|(_, member)| member.name == *name) else {
            let members = members.values().map(|member| member.name.clone()).collect();
            let name = name.clone();
            return Err(AddressesError::Unknown { name, members });
        };
        if said[..at].iter().any(|(before, _)| before == name) {
            let what = format!("{name} is named twice");
            return Err(AddressesError::Twice { what });
        }
        let news = Said {
            address: address.clone(),
            instead_of: member.address.clone(),
        };
        book.entry(*id).or_default().said = (*address != member.address).then_some(news);
    }
    let places = places(&members, &Addresses::new(book.clone()));
    check_different(&places)?;
    addresses::write(disk, dir, &identity, &book).await?;
    Ok(places)
}

fn check(name: &str, address: &str) -> Result<(), AddressesError> {
    let wrong = |why: String| AddressesError::Address {
        name: name.to_owned(),
        why,
    };
    check_address("address", address).map_err(|error| wrong(error.problem))?;
    if is_unspecified(address) {
        return Err(wrong(format!(
            "{address} stands for every address of a machine: other nodes cannot reach it there"
        )));
    }
    Ok(())
}

/// Where each member is looked for first.
fn places(members: &Members, addresses: &Addresses) -> Vec<NodeAddress> {
    let place = |(id, member): (&NodeId, &Member)| NodeAddress {
        address: addresses.candidates(*id, &member.address).remove(0),
        ..member.node_address(*id)
    };
    members.iter().map(place).collect()
}

fn check_different(places: &[NodeAddress]) -> Result<(), AddressesError> {
    for (at, one) in places.iter().enumerate() {
        let mut before = places[..at].iter();
        if let Some(other) = before.find(|other| other.address == one.address) {
            let what = format!(
                "{} would be the address of {} and {}",
                one.address, other.name, one.name
            );
            return Err(AddressesError::Twice { what });
        }
    }
    Ok(())
}
