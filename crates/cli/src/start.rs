//! `steadfast start`: one node, until told to stop.

use std::process::ExitCode;
use std::time::Duration;

use steadfast::{ReadyError, ReplicatedEnvironment, Role, RoleState};
use steadfast_server::Server;

use crate::audit::Audit;
use crate::clients;
use crate::credentials;
use crate::failure::Failure;
use crate::output;
use crate::settings::{Flags, NodeConfig};
use crate::stop::Stop;

/// How often a node that is not ready reports what it waits for.
const REMINDER: Duration = Duration::from_secs(10);

/// How often a node that has stopped on a full disk checks for room.
const ROOM_INTERVAL: Duration = Duration::from_millis(500);

/// Run one node of a group until Ctrl-C or SIGTERM
#[derive(clap::Args)]
#[command(after_help = "\
Set each key in the file, in an environment variable (such as STEADFAST_DATA_DIR), or with a flag.
Flags override variables, and variables override the file. `steadfast config explain` lists all keys.

Examples:
  steadfast start --config n1.toml
  steadfast start --group orders --node n1 --data-dir /var/lib/orders --listen 10.0.0.1:7400 \\
      --credentials /etc/steadfast/orders/n1 --bootstrap n1=10.0.0.1:7400,n2=10.0.0.2:7400,n3=10.0.0.3:7400
  steadfast start --config n1.toml --client-listen 127.0.0.1:2379     serves clients of etcd too

`steadfast init` makes the credentials and prints these commands.")]
pub(crate) struct Arguments {
    #[command(flatten)]
    flags: Flags,
    /// Close the node when stdin ends, so that it never outlives who started it
    #[arg(long, hide = true)]
    until_stdin_closes: bool,
}

/// Runs the node.
///
/// # Errors
/// When it cannot be opened, the group refuses it, or its disk fails.
pub(crate) async fn run(arguments: Arguments) -> Result<ExitCode, Failure> {
    let config = arguments.flags.load()?;
    output::detach()?;
    let config = config.enrolled().await?;
    let mut stop = Stop::new(arguments.until_stdin_closes)?;
    let node = config.config.node().to_owned();
    while let End::DiskFull = run_once(&config, &mut stop).await? {
        println!("{node} opens again: its disk has room");
    }
    println!("{node} is closed");
    Ok(ExitCode::SUCCESS)
}

/// How one life of a node ended, if nothing is wrong with it.
enum End {
    /// It was told to stop.
    Closed,
    /// A write failed on a full disk, and there is room again.
    DiskFull,
}

async fn run_once(of: &NodeConfig, stop: &mut Stop) -> Result<End, Failure> {
    let config = &of.config;
    let (group, node) = (config.group(), config.node());
    let env = ReplicatedEnvironment::open_async(config.clone())
        .await
        .map_err(|error| Failure::of_open(error, config.data_dir()))?;
    println!(
        "{node} of group {group} listens on {}",
        env.listen_address()
    );
    let mut audit = Audit::new(&env, config.data_dir());
    let mut server = None;
    let ended = tokio::select! {
        () = stop.wait() => Ok(End::Closed),
        Err(failure) = serve_clients(&env, of, &mut server) => Err(failure),
        () = print_roles(&env, node) => why_detached(&env).await,
        ended = watch(&env, node) => ended,
        never = audit.keep() => match never {},
        never = credentials::keep(&env, of.credentials.as_deref()) => match never {},
    };
    let ended = match ended {
        Err(failure) if env.status().read_only.is_some() => {
            failure.print();
            println!("{node} waits for room on its disk");
            tokio::select! {
                () = stop.wait() => Ok(End::Closed),
                () = room(&env) => Ok(End::DiskFull),
            }
        }
        ended => ended,
    };
    if let Some(server) = server {
        server.close().await;
    }
    // That the group was shut down, say.
    audit.write_all();
    match env.close_async().await {
        // What a full disk did not take was never acknowledged.
        Err(error) if matches!(ended, Ok(End::DiskFull)) => {
            tracing::warn!(%error, "closed on a full disk");
        }
        closed => closed?,
    }
    ended
}

/// Serves clients of etcd as long as the node runs, if it is to.
async fn serve_clients(
    env: &ReplicatedEnvironment,
    of: &NodeConfig,
    server: &mut Option<Server>,
) -> Result<(), Failure> {
    let Some(config) = &of.clients else {
        return Ok(());
    };
    let serving = clients::serve_when_in_group(env, config).await?;
    let (node, address) = (of.config.node(), serving.local_address());
    println!("{node} serves clients on {address}");
    *server = Some(serving);
    Ok(())
}

/// Waits until there is room on the disk of a node that has stopped.
async fn room(env: &ReplicatedEnvironment) {
    let mut interval = tokio::time::interval(ROOM_INTERVAL);
    while env.status().read_only.is_some() {
        interval.tick().await;
    }
}

/// Prints one line for each role, until the node is closed.
async fn print_roles(env: &ReplicatedEnvironment, node: &str) {
    let mut states = env.state_changes();
    while let Some(RoleState { role, term, master }) = states.next_async().await {
        match (role, master) {
            (Role::Master, _) => println!("{node} is master in term {term}"),
            (Role::Replica, Some(master)) => {
                println!(
                    "{node} is replica in term {term} of master {} at {}",
                    master.name, master.address
                );
            }
            _ => println!("{node} is {role} in term {term}"),
        }
    }
}

/// Why a node no longer takes part although nobody has told it to stop.
async fn why_detached(env: &ReplicatedEnvironment) -> Result<End, Failure> {
    match env.wait_ready_async(Duration::ZERO).await {
        Err(error @ (ReadyError::Refused { .. } | ReadyError::Stopped { .. })) => Err(error.into()),
        _ => Ok(End::Closed),
    }
}

/// Reports what the node waits for while it is not ready; returns how it ended: closed, if the
/// whole group was shut down.
async fn watch(env: &ReplicatedEnvironment, node: &str) -> Result<End, Failure> {
    let takes_part = |state: &RoleState| matches!(state.role, Role::Master | Role::Replica);
    loop {
        match env.wait_ready_async(REMINDER).await {
            Ok(()) => {
                let mut states = env.state_changes();
                while states
                    .next_async()
                    .await
                    .is_some_and(|state| takes_part(&state))
                {}
            }
            Err(ReadyError::Timeout { waiting_for, .. }) => println!("{node} is {waiting_for}"),
            Err(ReadyError::Closed) => return Ok(End::Closed),
            Err(error) => return Err(error.into()),
        }
    }
}
