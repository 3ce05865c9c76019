//! `steadfast init` and `certs`: makes and shows what nodes and operators prove with who they are.

mod enrol;
pub(crate) mod init;
mod issue;
mod keep;
mod renew;
mod show;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;

use clap::Subcommand;
use steadfast::credentials::{Authority, CredentialsError, VALID_FOR, make_directory};
use steadfast::ids::NodeId;
use steadfast::{Access, Holder};

pub(crate) use self::enrol::enrol;
pub(crate) use self::keep::keep;
use crate::failure::{Failure, with_sources};
use crate::network::now_ms;

/// The directory of the authority of a group.
const AUTHORITY: &str = "authority";
/// The directory of the credentials of a group's operator, and the name in them.
pub(crate) const ADMIN: &str = "admin";

/// Issue, show and renew credentials of nodes, operators and clients
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  steadfast certs issue --authority secrets/authority --role node --name 4 --out secrets/n4
  steadfast certs issue --authority secrets/authority --role monitor --name grafana --out grafana
  steadfast certs show /etc/steadfast/orders/n1
  steadfast certs show secrets/* -o json
  steadfast certs renew --authority secrets/authority secrets/grafana

`steadfast init` makes the authority of a new group, and the credentials of its first nodes.")]
pub(crate) struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    Issue(issue::Arguments),
    Show(show::Arguments),
    Renew(renew::Arguments),
    RotateCa(renew::RotateArguments),
}

/// Runs the verb.
///
/// # Errors
/// When credentials cannot be read or made.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode, Failure> {
    match &arguments.verb {
        Verb::Issue(arguments) => issue::run(arguments),
        Verb::Show(arguments) => Ok(show::run(arguments)),
        Verb::Renew(arguments) => renew::run(arguments),
        Verb::RotateCa(arguments) => renew::run_rotation(arguments),
    }
}

/// Makes a directory with the credentials of a new group: its authority, the nodes with these names
/// that form it, each in a directory of its name, and an admin. All of it, or nothing. With `lent`,
/// nodes have the key of the authority, and certify others.
///
/// # Errors
/// When the group cannot be named so, or the directory is not empty or cannot be written.
pub(crate) fn make<N: AsRef<str>>(
    dir: &Path,
    group: &str,
    names: impl IntoIterator<Item = N>,
    lent: bool,
) -> Result<(), Failure> {
    let now_ms = now_ms();
    let authority = Authority::create(group, now_ms)?;
    let mut names: Vec<_> = names
        .into_iter()
        .map(|name| name.as_ref().to_owned())
        .collect();
    // A group gives ids to those that form it in the order of their names.
    names.sort();
    let mut holders = BTreeMap::new();
    for (id, name) in (1..).map(NodeId).zip(names) {
        holders.insert(name, Holder::node(group, id)?);
    }
    let admin = Holder::new(group, Access::Admin, ADMIN)?;
    holders.insert(ADMIN.to_owned(), admin);
    make_directory(dir, |dir| {
        authority.write(&dir.join(AUTHORITY))?;
        holders.iter().try_for_each(|(name, holder)| {
            let issued = authority.issue(holder, VALID_FOR, now_ms)?;
            issued.write(&dir.join(name))?;
            if lent && holder.access() == Access::Node {
                authority.lend(&dir.join(name))?;
            }
            Ok(())
        })
    })?;
    Ok(())
}

impl From<CredentialsError> for Failure {
    fn from(error: CredentialsError) -> Self {
        let (what, data, remedy) = parts(&error);
        Self::new(what, data, remedy)
    }
}

/// What happened, what it means for the data, and what to do.
fn parts(error: &CredentialsError) -> (String, &'static str, String) {
    let remedy = match error {
        CredentialsError::Missing { .. } => {
            "name a directory of credentials, as `steadfast init` or `certs issue` makes them"
                .to_owned()
        }
        CredentialsError::Io { .. } => {
            "check the path, its volume and its permissions, then try again".to_owned()
        }
        CredentialsError::OpenKey { path, .. } => format!(
            "chmod 600 {}; if others could log in meanwhile, issue new credentials",
            path.display()
        ),
        CredentialsError::OpenToWriters { path, .. } => format!(
            "chmod go-w {0}; see that it holds what it should (steadfast certs show {0})",
            path.display()
        ),
        CredentialsError::Expired { .. } => {
            "renew them where the authority's key is (steadfast certs renew --authority DIR DIR); a node that \
             has authority-key.pem is its own authority"
                .to_owned()
        }
        CredentialsError::NotYetValid { .. } => {
            "set the clock of this machine, or of the one that issued them".to_owned()
        }
        CredentialsError::OtherGroup { .. } => {
            "name the authority of that group (--authority)".to_owned()
        }
        CredentialsError::OldAuthority { .. } => {
            "name the directory of the authority that the group has now (--authority)".to_owned()
        }
        CredentialsError::OutlivesAuthority { .. } => {
            "ask for fewer days (--days), or make a new authority".to_owned()
        }
        CredentialsError::NotEmpty { .. } => {
            "name a directory that is empty, or not there yet (--out)".to_owned()
        }
        CredentialsError::Signing { .. } => "fix the cause, then try again".to_owned(),
        _ => "copy the directory again from where it was made, or issue new credentials \
              (steadfast certs issue)"
            .to_owned(),
    };
    (with_sources(error), "nothing was changed", remedy)
}
