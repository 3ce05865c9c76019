//! `steadfast certs issue`: credentials for one more node, operator or client.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use steadfast::credentials::{AUTHORITY_VALID_FOR, Authority, VALID_FOR, date};
use steadfast::{Access, Holder};

use crate::failure::Failure;
use crate::network::now_ms;

const DAY_S: u64 = 24 * 60 * 60;

/// The most days that can be asked for: as long as an authority lives.
const DAYS_MAX: u64 = AUTHORITY_VALID_FOR.as_secs() / DAY_S;

/// Issue credentials to a node, an operator or a client
#[derive(clap::Args)]
#[command(after_help = "\
Each role may do what those before it may:
  client       ask nodes who they are and who is master
  monitor      follow the events of the group
  subscriber   read all data: change feed, backups
  admin        change the group
  node         be a node of the group; its name is its id (steadfast node list)

Examples:
  steadfast certs issue --authority secrets/authority --role node --name 4 --out secrets/n4
  steadfast certs issue --authority secrets/authority --role admin --name alice --out alice --days 90

A new node with a join token needs none of this (steadfast token create). To renew what was issued:
`steadfast certs renew`.")]
pub(super) struct Arguments {
    /// Directory of the authority, as `steadfast init` makes it
    #[arg(long, value_name = "DIR")]
    authority: PathBuf,
    /// What its holder may do
    #[arg(long, value_parser = roles())]
    role: Access,
    /// Name of the holder; for a node, its id
    #[arg(long)]
    name: String,
    /// Directory for the credentials: empty, or not there yet
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    #[command(flatten)]
    validity: Validity,
}

/// For how long certificates are valid.
#[derive(clap::Args)]
pub(super) struct Validity {
    /// How many days they are valid
    #[arg(
        long,
        value_name = "N",
        default_value_t = VALID_FOR.as_secs() / DAY_S,
        value_parser = clap::value_parser!(u64).range(1..=DAYS_MAX)
    )]
    days: u64,
}

impl Validity {
    pub(super) fn duration(&self) -> Duration {
        Duration::from_secs(self.days * DAY_S)
    }
}

/// Those that are issued by hand: what a join token proves is made with the token.
fn roles() -> impl TypedValueParser<Value = Access> {
    let issued = Access::ALL
        .into_iter()
        .filter(|role| *role != Access::Joiner);
    PossibleValuesParser::new(issued.map(Access::word))
        .map(|word| word.parse().expect("one of the possible ones"))
}

/// Issues and writes them.
///
/// # Errors
/// When the authority cannot be read, the name is none, or the directory is not empty.
pub(super) fn run(arguments: &Arguments) -> Result<ExitCode, Failure> {
    let Arguments {
        authority,
        role,
        name,
        out,
        validity,
    } = arguments;
    let authority = Authority::read(authority)?;
    let holder = Holder::new(authority.group(), *role, name).map_err(|error| {
        Failure::usage(
            format!("--name: {}", error.problem),
            "name the holder otherwise",
        )
    })?;
    let (valid_for, now_ms) = (validity.duration(), now_ms());
    authority.issue(&holder, valid_for, now_ms)?.write(out)?;
    let end_ms = now_ms + validity.days * DAY_S * 1_000;
    println!(
        "{} has the credentials of {holder}, valid until {}",
        out.display(),
        date(end_ms)
    );
    Ok(ExitCode::SUCCESS)
}
