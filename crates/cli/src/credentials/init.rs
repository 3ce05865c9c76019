//! `steadfast init`: the authority of a new group, and the credentials of its first nodes.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use steadfast::config::ConfigError;
use steadfast::{Bootstrap, RepConfig};

use super::{ADMIN, AUTHORITY, make};
use crate::failure::Failure;

/// Make the credentials of a new group: its authority, its nodes and an admin
#[derive(clap::Args)]
#[command(after_help = "\
Makes DIR/authority, a directory for each node, and DIR/admin for whoever operates the group. Then it
prints what to copy where, and the command that starts each node.

Example:
  steadfast init --group orders --out secrets n1=10.0.0.1:7400 n2=10.0.0.2:7400 n3=10.0.0.3:7400

More nodes: `steadfast token create`. Operators and clients: `steadfast certs issue`.")]
pub(crate) struct Arguments {
    /// Name of the group
    #[arg(long)]
    group: String,
    /// Directory for the credentials: empty, or not there yet
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Nodes that form the group, as in `start --bootstrap`
    #[arg(required = true, value_name = "NAME=HOST:PORT", value_delimiter = ',')]
    nodes: Vec<String>,
    /// Keep the authority's key from the nodes: then they do not renew their certificates, nor let
    /// new nodes in by a join token alone
    #[arg(long)]
    offline_authority: bool,
}

/// Makes everything, or nothing.
///
/// # Errors
/// When the group or a node cannot be named so, or the directory is not empty or cannot be written.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode, Failure> {
    let Arguments {
        group,
        out,
        nodes,
        offline_authority,
    } = arguments;
    let addresses = checked(group, nodes)?;
    make(out, group, addresses.keys(), !offline_authority)?;
    print!("{}", next_steps(group, out, &addresses));
    print!(
        "{}",
        about_authority(&out.join(AUTHORITY), *offline_authority)
    );
    Ok(ExitCode::SUCCESS)
}

/// The addresses of the nodes by name, if they could form a group.
fn checked<'a>(group: &str, nodes: &'a [String]) -> Result<BTreeMap<&'a str, &'a str>, Failure> {
    let usage = |ConfigError { key, problem }| match key.as_str() {
        "group" => Failure::usage(format!("--group: {problem}"), "name the group otherwise"),
        _ => Failure::usage(
            format!("the list of nodes: {problem}"),
            "write each node once, as NAME=HOST:PORT",
        ),
    };
    let list = Bootstrap::expect(nodes).map_err(usage)?;
    let pairs = nodes.iter().filter_map(|node| node.split_once('='));
    let addresses: BTreeMap<_, _> = pairs.collect();
    let (name, address) = addresses.iter().next().expect("clap asks for one");
    // The rules of a configuration, none of which is kept.
    let config = RepConfig::builder(group, *name).bootstrap(list);
    let config = config.data_dir("unused").listen(*address).build();
    config.map_err(usage)?;
    let is_taken = |name: &&&str| [AUTHORITY, ADMIN].contains(name) || name.starts_with('.');
    if let Some(name) = addresses.keys().find(is_taken) {
        return Err(Failure::usage(
            format!("a node named {name:?} cannot have a directory of its own"),
            "name nodes otherwise, for example n1",
        ));
    }
    Ok(addresses)
}

fn next_steps(group: &str, out: &Path, addresses: &BTreeMap<&str, &str>) -> String {
    let pairs = addresses
        .iter()
        .map(|(name, address)| format!("{name}={address}"));
    let list = pairs.collect::<Vec<_>>().join(",");
    let place = |name: &str| format!("/etc/steadfast/{group}/{name}");
    let dir = |name: &str| out.join(name).display().to_string();
    let mut text = format!("{} has the credentials of group {group}\n", out.display());
    let mut say = |words: String| text.write_str(&words).expect("a string grows");
    say("\nCopy to each machine the directory of its node. Only the user that runs it may read it.\n".into());
    for (name, address) in addresses {
        let (host, _) = address.rsplit_once(':').expect("it was checked");
        say(format!("  {} to {} on {host}\n", dir(name), place(name)));
    }
    say("\nStart the nodes there, in any order:\n".into());
    for (name, address) in addresses {
        say(format!(
            "  steadfast start --group {group} --node {name} --data-dir /var/lib/steadfast/{group}/{name} \\\n\
             \x20     --listen {address} --credentials {} \\\n      --bootstrap {list}\n",
            place(name)
        ));
    }
    let any = addresses.values().next().expect("clap asks for one");
    say(format!(
        "\n{0} is for the operator of the group:\n  steadfast status {any} --credentials {0}\n",
        dir(ADMIN)
    ));
    text
}

fn about_authority(dir: &Path, is_offline: bool) -> String {
    let dir = dir.display();
    if is_offline {
        return format!(
            "\nKeep {dir} offline: whoever has its key can become any node. No node has it, so renew\n\
             certificates and issue those of new nodes by hand (steadfast certs renew, certs issue).\n"
        );
    }
    format!(
        "\nThe nodes renew their certificates and certify new nodes (steadfast token create): they have\n\
         the key of the authority, and whoever has it can become any node. {dir} is for operators\n\
         and clients (steadfast certs issue): keep a copy offline.\n"
    )
}
