//! `steadfast config`: explains the keys and checks a file.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Subcommand;
use steadfast::config::{KEYS, Key, unknown_key};

use crate::clients::CLIENT_KEYS;
use crate::failure::Failure;
use crate::settings::Flags;

/// Explain the configuration keys, or check a configuration file
#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Print the unit, default and meaning of one key, or of all keys
    Explain {
        /// Name of the key [default: all keys]
        key: Option<String>,
    },
    /// Check a file as `start --config` would read it; change nothing
    Check {
        /// TOML file to check
        file: PathBuf,
    },
}

/// Runs the verb.
///
/// # Errors
/// When there is no such key, or the file cannot be used.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode, Failure> {
    match &arguments.verb {
        Verb::Explain { key: None } => KEYS.iter().chain(CLIENT_KEYS).for_each(explain),
        Verb::Explain { key: Some(name) } => {
            let key = KEYS.iter().chain(CLIENT_KEYS).find(|key| key.name == name);
            explain(key.ok_or_else(|| unknown_key(name))?);
        }
        Verb::Check { file } => {
            let config = Flags {
                config: Some(file.clone()),
                ..Flags::default()
            }
            .load()?
            .config;
            config.check_protection()?;
            println!(
                "{} is valid: node {} of group {}, listening on {}, data in {}",
                file.display(),
                config.node(),
                config.group(),
                config.listen(),
                config.data_dir().display()
            );
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn explain(key: &Key) {
    println!(
        "{}  ({key}; default: {})\n    {}",
        key.name, key.default, key.help
    );
}
