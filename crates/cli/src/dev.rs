//! `steadfast dev`: a group of node processes to experiment with.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use tokio::sync::mpsc;

use steadfast::plural;

use crate::child::{self, Child, ChildEvent, ChildEvents, ChildNews};
use crate::credentials::{self, ADMIN};
use crate::failure::Failure;
use crate::output;
use crate::ports::free_addresses;
use crate::stop::Stop;

/// How long a node may take to close before it is killed.
const CLOSE_PATIENCE: Duration = Duration::from_secs(10);

/// Start a group on this machine to experiment with; Ctrl-C stops it
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  steadfast dev                      three nodes in a temporary directory, removed at the end
  steadfast dev --nodes 5
  steadfast dev --dir ./group        keep the data; the same command starts the group again")]
pub(crate) struct Arguments {
    /// Number of nodes
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=15))]
    nodes: u8,
    /// Directory to keep the data in [default: a temporary directory]
    #[arg(long)]
    dir: Option<PathBuf>,
}

/// Runs the group until told to stop.
///
/// # Errors
/// When the directory cannot be used or a process cannot be started.
pub(crate) async fn run(arguments: Arguments) -> Result<ExitCode, Failure> {
    // Its nodes must not depend on who reads its output.
    output::detach()?;
    let mut stop = Stop::new(false)?;
    let temporary = if arguments.dir.is_some() {
        None
    } else {
        let made = tempfile::Builder::new().prefix("steadfast-dev-").tempdir();
        Some(made.map_err(|error| Failure::no_temporary_dir(&error))?)
    };
    let dir = match (&arguments.dir, &temporary) {
        (Some(dir), _) => dir.clone(),
        (None, Some(made)) => made.path().to_owned(),
        (None, None) => unreachable!("one of the two is there"),
    };
    let failed = |error| Failure::system(&format!("cannot use {}", dir.display()), &error);
    if !config_file(&dir, 0).exists() {
        let names: Vec<_> = (0..arguments.nodes.into()).map(name).collect();
        credentials::make(&dir.join(CREDENTIALS), GROUP, &names, true)?;
    }
    let (addresses, clients) = prepare(&dir, arguments.nodes.into()).map_err(failed)?;
    let (sender, mut events) = child::events();
    let mut children = start_all(&dir, &addresses, &sender)?;
    introduce(&dir, &addresses, &clients, &children);
    tokio::select! {
        () = stop.wait() => {}
        () = forward(&mut events, &mut children, &dir) => {}
    }
    println!("closing");
    child::end_all(&mut children, &mut events, CLOSE_PATIENCE).await;
    Ok(ExitCode::SUCCESS)
}

/// Name of the group.
const GROUP: &str = "dev";
/// The directory of everybody's credentials.
const CREDENTIALS: &str = "credentials";

fn name(index: usize) -> String {
    format!("n{}", index + 1)
}

fn config_file(dir: &Path, index: usize) -> PathBuf {
    dir.join(format!("{}.toml", name(index)))
}

/// Writes one configuration per node, unless they exist from an earlier run: the addresses of a
/// group that has formed do not change. Returns the addresses, and those for clients.
#[expect(
    clippy::disallowed_methods,
    reason = "a directory to play with is made here"
)]
fn prepare(dir: &Path, nodes: usize) -> std::io::Result<(Vec<String>, Vec<String>)> {
    std::fs::create_dir_all(dir)?;
    let mut addresses = free_addresses(2 * nodes)?;
    let clients = addresses.split_off(nodes);
    let list: Vec<_> = addresses
        .iter()
        .enumerate()
        .map(|(index, address)| format!("{}={address}", name(index)))
        .collect();
    let (mut used, mut served) = (Vec::new(), Vec::new());
    for (index, (address, client)) in addresses.into_iter().zip(clients).enumerate() {
        let file = config_file(dir, index);
        if file.exists() {
            let table: toml::Table = std::fs::read_to_string(&file)?
                .parse()
                .map_err(std::io::Error::other)?;
            let text = |key| table.get(key).and_then(toml::Value::as_str);
            used.push(text("listen").unwrap_or_default().to_owned());
            served.extend(text("client_listen").map(str::to_owned));
            continue;
        }
        let name = name(index);
        let data_dir = dir.join(&name);
        let mut table = toml::Table::new();
        let credentials = dir.join(CREDENTIALS).join(&name).display().to_string();
        table.insert("group".to_owned(), GROUP.into());
        table.insert("node".to_owned(), name.into());
        table.insert("credentials".to_owned(), credentials.into());
        table.insert("data_dir".to_owned(), data_dir.display().to_string().into());
        table.insert("listen".to_owned(), address.clone().into());
        table.insert("bootstrap".to_owned(), list.clone().into());
        table.insert("client_listen".to_owned(), client.clone().into());
        std::fs::write(&file, table.to_string())?;
        used.push(address);
        served.push(client);
    }
    Ok((used, served))
}

fn start_all(
    dir: &Path,
    addresses: &[String],
    events: &mpsc::Sender<ChildEvent>,
) -> Result<Vec<Option<Child>>, Failure> {
    let start = |index| {
        let file = config_file(dir, index);
        let config = file.to_string_lossy();
        let arguments = ["start", "--until-stdin-closes", "--config", &*config];
        let log = dir.join(format!("{}.log", name(index)));
        Child::start(index, 1, arguments, &log, events.clone()).map(Some)
    };
    (0..addresses.len()).map(start).collect()
}

fn introduce(dir: &Path, addresses: &[String], clients: &[String], children: &[Option<Child>]) {
    let nodes = plural(addresses.len(), "node", "nodes");
    println!(
        "a group of {} {nodes} in {}",
        addresses.len(),
        dir.display()
    );
    for (index, (address, child)) in addresses.iter().zip(children).enumerate() {
        let pid = child.as_ref().map_or(0, Child::pid);
        println!("  {}  {address}  pid {pid}", name(index));
    }
    println!("in another shell:");
    println!("  export STEADFAST_ASK={}", addresses.join(","));
    println!(
        "  export STEADFAST_CREDENTIALS={}",
        dir.join(CREDENTIALS).join(ADMIN).display()
    );
    println!("  steadfast put stock chairs 12");
    println!("  steadfast get stock chairs");
    println!("  steadfast watch stock");
    println!("  steadfast status");
    if !clients.is_empty() {
        let endpoints = clients.join(",");
        println!("with any client of etcd:  etcdctl --endpoints {endpoints} put greeting hello");
    }
    println!("see a failover:   kill -9 the master's pid");
    println!("Ctrl-C stops all nodes\n");
}

/// Prints the nodes' output and when each ends. Returns when all have ended.
async fn forward(events: &mut ChildEvents, children: &mut [Option<Child>], dir: &Path) {
    while children.iter().any(Option::is_some)
        && let Some(ChildEvent { who, what, .. }) = events.recv().await
    {
        match what {
            ChildNews::Line(line) => println!("{line}"),
            ChildNews::Ended(status) => {
                children[who] = None;
                let (name, file) = (name(who), config_file(dir, who));
                println!(
                    "{name} has ended ({status}); its log is {}\n  to start it again:  \
                     steadfast start --config {}",
                    dir.join(format!("{name}.log")).display(),
                    file.display()
                );
            }
        }
    }
}
