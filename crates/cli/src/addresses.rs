//! `steadfast node address --data-dir`: tells a stopped node the others' addresses, when all
//! addresses have changed and there is no master to ask.

use std::path::Path;
use std::process::ExitCode;

use serde_json::json;
use steadfast::addresses::{self, AddressesError};
use steadfast::machine::Machine;
use steadfast::{NodeAddress, OpenError};

use crate::failure::Failure;
use crate::status::{Output, aligned};

/// Cache of a storage engine; none is opened.
const CACHE_BYTES: u64 = 1024 * 1024;

const UNCHANGED: &str = "nothing was changed";

/// Records `words` in the directory, each `NODE=HOST:PORT`, or several separated by commas.
///
/// # Errors
/// When the words make no sense, or the directory is not that of a stopped member.
pub(crate) async fn say(
    directory: &Path,
    words: &[String],
    output: Output,
) -> Result<ExitCode, Failure> {
    let words = words.iter().flat_map(|word| word.split(','));
    let said = words.map(parse).collect::<Result<Vec<_>, _>>()?;
    let machine = Machine::real(CACHE_BYTES)?;
    let places = addresses::say(&machine, directory, &said).await?;
    match output {
        Output::Table => print!("{}", render(&places)),
        Output::Json => println!("{}", json!({ "nodes": places })),
    }
    Ok(ExitCode::SUCCESS)
}

fn parse(word: &str) -> Result<(String, String), Failure> {
    match word.split_once('=') {
        Some((node, address)) if !node.is_empty() => Ok((node.to_owned(), address.to_owned())),
        _ => Err(Failure::usage(
            format!("{word:?} is not of the form NODE=HOST:PORT"),
            "name each node with its address: n1=10.1.0.1:7400 n2=10.1.0.2:7400",
        )),
    }
}

fn render(places: &[NodeAddress]) -> String {
    let mut rows = vec![["NODE", "ADDRESS"].map(str::to_owned)];
    rows.extend(
        places
            .iter()
            .map(|of| [of.name.clone(), of.address.clone()]),
    );
    format!(
        "{}Record the same in the directory of each node, then start the nodes, each listening on its new\n\
         address. The master adopts the addresses for the group.\n",
        aligned(&rows)
    )
}

impl From<AddressesError> for Failure {
    fn from(error: AddressesError) -> Self {
        match error {
            AddressesError::Open(OpenError::InUse { dir }) => Self::new(
                format!(
                    "data directory {} is in use: its node is running",
                    dir.display()
                ),
                "nothing was changed; the node keeps running",
                "stop the node first; or, if the group has a master, let it change the address: \
                 steadfast node address NODE HOST:PORT --ask HOST:PORT",
            ),
            AddressesError::Open(error) => error.into(),
            AddressesError::NoNode { dir } => Self::usage(
                format!(
                    "{} is not the data directory of a node that belongs to a group",
                    dir.display()
                ),
                "name the directory of a stopped node; a node that belongs to no group yet uses the list \
                 that it is started with",
            ),
            AddressesError::Unknown { name, members } => Self::usage(
                format!("no member is called {name:?}"),
                format!("the members are {}", members.join(", ")),
            ),
            AddressesError::Address { name, why } => Self::usage(
                format!("the address of {name}: {why}"),
                "give the address at which the others reach it: NODE=HOST:PORT",
            ),
            AddressesError::Twice { what } => {
                Self::usage(what, "give each node one address of its own")
            }
            other => Self::new(
                other.to_string(),
                UNCHANGED,
                "fix the cause, then try again",
            ),
        }
    }
}
