//! `steadfast node`, `master`, `token` and `group`: an operator changes the group, through its master.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Subcommand;
use serde_json::json;
use steadfast::config::is_unspecified;
use steadfast::credentials::INVITED_FOR;
use steadfast::{AdminCommand, AdminError, JoinToken, NodeStatus, NodeType, PRIORITY_DEFAULT};

use crate::addresses;
use crate::failure::{Failure, with_sources};
use crate::status::{ANSWER_TIMEOUT, Ask, At, Output, print_survey};

/// List and change the nodes of a group
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  steadfast node list 10.0.0.1:7400
  steadfast node promote n4               give a secondary a vote once it has caught up
  steadfast node priority n2 10           n2 becomes master whenever it has caught up
  steadfast node address n3 10.0.0.9:7400 n3 now runs there, with its own directory
  steadfast node address --help           when all addresses have changed at once
  steadfast node remove n3                for good; n3 stops when it learns of it
  steadfast node replace n3               when the directory of n3 is lost

A new node joins with a token: see `steadfast token create`.")]
pub(crate) struct NodeArguments {
    #[command(subcommand)]
    verb: NodeVerb,
    #[command(flatten)]
    ask: Ask,
}

/// Said of a change that may or may not have been made.
const NOTHING: &str = "nothing was changed";
const MAY_BE_MADE: &str = "the change may have been made; nothing acknowledged is lost either way";

const ADDRESS_HELP: &str = "\
The master tries the address before it accepts it, so the node must already run there. When all
addresses have changed at once, there is no master to ask. In that case, stop all nodes, use --data-dir
to record the new addresses in the directory of each, and start them: they find each other, and the
master adopts the new addresses for the group. No data is lost.

Examples:
  steadfast node address n3 10.0.0.9:7400
  steadfast node address --data-dir /var/lib/orders \\
      n1=10.1.0.1:7400 n2=10.1.0.2:7400 n3=10.1.0.3:7400";

#[derive(Subcommand)]
enum NodeVerb {
    /// List the nodes, as `steadfast status` does
    List {
        #[command(flatten)]
        at: At,
    },
    /// Remove a node from the group for good
    Remove {
        /// Name of the node
        node: String,
        /// Remove it even if the rest may have no majority that answers
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        at: At,
    },
    /// Fence a node whose directory is lost, and print the command that starts its successor
    Replace {
        /// Name of the node
        node: String,
        /// Replace it even if the rest may have no majority that answers
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        at: At,
    },
    /// Make a secondary electable: it votes once it has caught up
    Promote {
        /// Name of the node
        node: String,
        #[command(flatten)]
        at: At,
    },
    /// Make an electable node a secondary: it keeps the data and loses its vote
    Demote {
        /// Name of the node
        node: String,
        #[command(flatten)]
        at: At,
    },
    /// Set how strongly a node is preferred as master; with 0 it never becomes master
    Priority {
        /// Name of the node
        node: String,
        /// Priority, 0 to 1000; a node has 1 unless it was set
        priority: u32,
        #[command(flatten)]
        at: At,
    },
    /// Change the address of a node, or tell a stopped node the addresses of all nodes
    #[command(
        override_usage = "steadfast node address [OPTIONS] NODE HOST:PORT [ADDRESS]...\n       \
                          steadfast node address --data-dir DIR NODE=HOST:PORT...",
        after_help = ADDRESS_HELP
    )]
    Address {
        /// Name of the node; with --data-dir, NODE=HOST:PORT for each node
        node: String,
        /// New address of the node
        #[arg(value_name = "HOST:PORT", required_unless_present = "data_dir")]
        address: Option<String>,
        /// Accept the address even if the node does not answer there, or not yet
        #[arg(long)]
        force: bool,
        /// Data directory of a stopped node, in which to record the addresses
        #[arg(long, value_name = "DIR", conflicts_with = "force")]
        data_dir: Option<PathBuf>,
        #[command(flatten)]
        at: At,
    },
}

/// Show which node is master, or make another node master
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  steadfast master show
  steadfast master transfer               to whichever node is most up to date
  steadfast master transfer n2 n3         to one of these

A transfer waits until a candidate has caught up, then pauses writes for milliseconds. If it fails,
the master stays master.")]
pub(crate) struct MasterArguments {
    #[command(subcommand)]
    verb: MasterVerb,
    #[command(flatten)]
    ask: Ask,
}

#[derive(Subcommand)]
enum MasterVerb {
    /// Print the name of the master
    Show {
        #[command(flatten)]
        at: At,
    },
    /// Make another node master
    Transfer {
        /// Candidates for master [default: any node]. An argument with a colon is the address of a
        /// node to ask; it overrides --ask
        #[arg(value_name = "NODE", value_delimiter = ',')]
        nodes: Vec<String>,
        /// Time limit for a candidate to catch up, in seconds
        #[arg(long, value_name = "SECONDS", default_value_t = 30)]
        within: u64,
    },
}

/// Act on a group as a whole
#[derive(clap::Args)]
#[command(after_help = "\
Example:
  steadfast group shutdown                before maintenance of all machines; start the nodes again afterwards

The master stops taking writes and waits until every node that answers has all of them on disk. Then
all nodes stop, the master last, and each process exits with code 0. If a node does not catch up in
time, the group keeps running.")]
pub(crate) struct GroupArguments {
    #[command(subcommand)]
    verb: GroupVerb,
    #[command(flatten)]
    ask: Ask,
}

#[derive(Subcommand)]
enum GroupVerb {
    /// Stop all nodes once all of them have every write
    Shutdown {
        /// Time limit for the nodes to catch up, in seconds
        #[arg(long, value_name = "SECONDS", default_value_t = 60)]
        within: u64,
        #[command(flatten)]
        at: At,
    },
}

/// Create the token with which a new node joins a group
#[derive(clap::Args)]
#[command(after_help = "\
Example:
  steadfast token create --type secondary
  steadfast start --group orders --node n4 --data-dir /var/lib/n4 --listen 10.0.0.4:7400 --join TOKEN

The token names the group and the addresses of its nodes. In a group with credentials it also holds a
secret, with which one new node gets its own, once, before it expires. Without credentials it holds no
secret: anyone who can reach those addresses can join.")]
pub(crate) struct TokenArguments {
    #[command(subcommand)]
    verb: TokenVerb,
    #[command(flatten)]
    ask: Ask,
}

#[derive(Subcommand)]
enum TokenVerb {
    /// Print a token
    Create {
        /// Type of the new node: electable, secondary or arbiter
        #[arg(long = "type", value_name = "TYPE", default_value_t = NodeType::Electable)]
        node_type: NodeType,
        /// Priority of the new node, if it is electable
        #[arg(long, default_value_t = PRIORITY_DEFAULT)]
        priority: u32,
        /// Hours after which it is good for nothing
        #[arg(long, value_name = "N", default_value_t = HOURS, value_parser = clap::value_parser!(u64).range(1..=HOURS_MAX))]
        hours: u64,
        /// A token for a node that has credentials of its own: it brings none, and is no secret
        #[arg(long)]
        without_credentials: bool,
        #[command(flatten)]
        at: At,
    },
}

/// Hours for which a token is good.
const HOURS: u64 = INVITED_FOR.as_secs() / 3_600;
/// The most hours that can be asked for.
const HOURS_MAX: u64 = 7 * 24;

/// # Errors
/// When the group refuses, or does not answer.
pub(crate) async fn run_node(arguments: NodeArguments) -> Result<ExitCode, Failure> {
    let NodeArguments { verb, mut ask } = arguments;
    let set_type = |node, node_type| AdminCommand::SetType { node, node_type };
    let (command, at) = match verb {
        NodeVerb::List { at } => {
            let survey = ask.at(at).survey().await?;
            return Ok(print_survey(&survey, ask.output()));
        }
        NodeVerb::Replace { node, force, at } => return replace(ask.at(at), node, force).await,
        NodeVerb::Remove { node, force, at } => (AdminCommand::Remove { node, force }, at),
        NodeVerb::Promote { node, at } => (set_type(node, NodeType::Electable), at),
        NodeVerb::Demote { node, at } => (set_type(node, NodeType::Secondary), at),
        NodeVerb::Priority { node, priority, at } => {
            (AdminCommand::SetPriority { node, priority }, at)
        }
        NodeVerb::Address {
            node,
            address,
            data_dir: Some(data_dir),
            at,
            ..
        } => {
            let words = [vec![node], address.into_iter().collect(), at.addresses].concat();
            return addresses::say(&data_dir, &words, ask.output()).await;
        }
        NodeVerb::Address {
            node,
            address,
            force,
            at,
            ..
        } => {
            let address = address.unwrap_or_default();
            check_reachable(&node, &address)?;
            let command = AdminCommand::SetAddress {
                node,
                address,
                force,
            };
            (command, at)
        }
    };
    ask.at(at).send(&command).await
}

/// Refuses an address at which the others could never reach the node.
fn check_reachable(node: &str, address: &str) -> Result<(), Failure> {
    if !is_unspecified(address) {
        return Ok(());
    }
    Err(Failure::new(
        format!("{address} means every address of a machine: no other node can reach {node} there"),
        NOTHING,
        format!(
            "give the address at which the others reach it: steadfast node address {node} \
             HOST:PORT; it may still listen on {address}"
        ),
    ))
}

/// # Errors
/// When the group refuses, or does not answer.
pub(crate) async fn run_master(arguments: MasterArguments) -> Result<ExitCode, Failure> {
    let MasterArguments { verb, mut ask } = arguments;
    match verb {
        MasterVerb::Show { at } => {
            let survey = ask.at(at).survey().await?;
            let Some(master) = &survey.master else {
                return Err(Failure::new(
                    "no node is master",
                    "no writes are possible until one is; nothing acknowledged is lost",
                    "see `steadfast status`",
                ));
            };
            ask.print("master", &master.node.name);
            Ok(ExitCode::SUCCESS)
        }
        MasterVerb::Transfer { nodes, within } => {
            let within = Duration::from_secs(within);
            let (addresses, to) = nodes.into_iter().partition(|node| node.contains(':'));
            ask.at(At { addresses })
                .send(&AdminCommand::Transfer { to, within })
                .await
        }
    }
}

/// # Errors
/// When the group refuses, or does not answer.
pub(crate) async fn run_group(arguments: GroupArguments) -> Result<ExitCode, Failure> {
    let GroupArguments { verb, mut ask } = arguments;
    let GroupVerb::Shutdown { within, at } = verb;
    let within = Duration::from_secs(within);
    ask.at(at).send(&AdminCommand::Shutdown { within }).await
}

/// # Errors
/// When no node of the group answers.
pub(crate) async fn run_token(arguments: TokenArguments) -> Result<ExitCode, Failure> {
    let TokenArguments { verb, mut ask } = arguments;
    let TokenVerb::Create {
        node_type,
        priority,
        hours,
        without_credentials,
        at,
    } = verb;
    let valid_for = (!without_credentials).then(|| Duration::from_secs(hours * 3_600));
    let token = ask.at(at).token(node_type, priority, valid_for).await?;
    ask.print("token", &token.to_string());
    Ok(ExitCode::SUCCESS)
}

/// The dead node is fenced first: from then on its old votes and copies count for nothing.
async fn replace(ask: &Ask, node: String, force: bool) -> Result<ExitCode, Failure> {
    let survey = ask.survey().await?;
    let mut nodes = survey.nodes.iter().map(|node| &node.member);
    let known = nodes.find(|member| member.node.name == node).cloned();
    // Its successor is told these addresses: better refused before the node is removed than after.
    for member in survey.nodes.iter().map(|other| &other.member.node) {
        if member.name != node {
            check_reachable(&member.name, &member.address)?;
        }
    }
    ask.send(&AdminCommand::Remove {
        node: node.clone(),
        force,
    })
    .await?;
    // The survey was taken before the removal; a node unknown to it would have been refused.
    let (node_type, priority, address) = known.map_or(
        (
            NodeType::Electable,
            PRIORITY_DEFAULT,
            "HOST:PORT".to_owned(),
        ),
        |member| (member.node_type, member.priority, member.node.address),
    );
    // The old node is gone by now: a token comes of it in any case.
    let invited = ask.token(node_type, priority, Some(INVITED_FOR)).await;
    let token = match invited {
        Ok(token) => token,
        Err(failure) => {
            eprintln!(
                "note: the token brings no credentials: {}\n{BY_HAND}",
                failure.what()
            );
            ask.token(node_type, priority, None).await?
        }
    };
    let start = format!(
        "steadfast start --group {} --node {node} --data-dir EMPTY_DIR --listen {address} --join {token}",
        token.group_name
    );
    ask.print("now start its successor", &start);
    Ok(ExitCode::SUCCESS)
}

impl Ask {
    fn print(&self, what: &str, text: &str) {
        match self.output() {
            Output::Table => println!("{text}"),
            Output::Json => println!("{}", json!({ what.replace(' ', "_"): text })),
        }
    }

    async fn send(&self, command: &AdminCommand) -> Result<ExitCode, Failure> {
        let network = self.network()?;
        let sent = command.send(&*network, self.addresses(), ANSWER_TIMEOUT);
        match self.wait_for(command.time_limit(), sent).await {
            Ok(done) => {
                self.print("done", &done);
                Ok(ExitCode::SUCCESS)
            }
            Err(error) => Err(not_done(error)),
        }
    }

    async fn token(
        &self,
        node_type: NodeType,
        priority: u32,
        valid_for: Option<Duration>,
    ) -> Result<JoinToken, Failure> {
        let count = u32::try_from(self.addresses().len()).unwrap_or(u32::MAX);
        let limit = ANSWER_TIMEOUT.saturating_mul(count);
        let asked = self.ask_for_token(node_type, priority);
        let token = self.wait_for(limit, asked).await?;
        let Some(valid_for) = valid_for.filter(|_| self.has_credentials()) else {
            return Ok(token);
        };
        let network = self.network()?;
        match token
            .clone()
            .invited(&*network, ANSWER_TIMEOUT, valid_for)
            .await
        {
            Ok(token) => Ok(token),
            Err(AdminError::Refused { what, to_do }) => Err(Failure::new(what, NOTHING, to_do)),
            Err(error) => Err(not_done(error)),
        }
    }

    async fn ask_for_token(
        &self,
        node_type: NodeType,
        priority: u32,
    ) -> Result<JoinToken, Failure> {
        let network = self.network()?;
        let mut why = Vec::new();
        for address in self.addresses() {
            match NodeStatus::ask_on(&*network, address, false, ANSWER_TIMEOUT).await {
                Ok(status) => match JoinToken::new(&status, node_type) {
                    Some(token) => {
                        for member in &status.members {
                            check_reachable(&member.node.name, &member.node.address)?;
                        }
                        return Ok(token.with_priority(priority));
                    }
                    None => why.push(format!("the node at {address} belongs to no group yet")),
                },
                Err(error) => why.push(with_sources(&error)),
            }
        }
        Err(Failure::new(
            why.join("; "),
            NOTHING,
            "give --ask the address of a working node, and --credentials those of an admin, if the group has \
             credentials",
        ))
    }
}

/// What a new node needs whose token gives it no credentials.
const BY_HAND: &str = "      give it --credentials of its own, for an id that was never given: one above the highest so far
      (steadfast certs issue --role node --name ID; `steadfast status -o json` shows the ids of today)";

/// What it means that a change was not made, or may not have been.
fn not_done(error: AdminError) -> Failure {
    let what = with_sources(&error);
    match error {
        AdminError::Refused { what, to_do } => Failure::new(what, NOTHING, to_do),
        AdminError::Uncertain { what, to_do } => Failure::new(what, MAY_BE_MADE, to_do),
        AdminError::NotAllowed { .. } => Failure::new(
            what,
            NOTHING,
            "give the credentials of an admin of this group (--credentials DIR)",
        ),
        AdminError::NoAnswer {
            may_be_done: true, ..
        } => Failure::new(
            what,
            MAY_BE_MADE,
            "see `steadfast status`; if the change was not made, try again, with the addresses of all nodes",
        ),
        AdminError::NoAnswer { .. } => Failure::new(
            what,
            NOTHING,
            "see `steadfast status`, then try again, with the addresses of all nodes",
        ),
    }
}
