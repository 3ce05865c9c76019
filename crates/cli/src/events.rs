//! `steadfast events`: watches a group, as a monitor does.

use std::process::ExitCode;
use std::time::Duration;

use serde_json::json;
use steadfast::{FeedError, GroupEvents};

use crate::failure::{Failure, with_sources};
use crate::output;
use crate::status::{Ask, At, Output};
use crate::stop::Stop;

/// How long connecting takes before it fails; see `GroupEvents::connect`.
const CONNECT_MAX: Duration = Duration::from_secs(10);

/// Watch a group until Ctrl-C: masters, members, nodes that fail and come back
#[derive(clap::Args)]
#[command(after_help = "\
Prints the state of the group, then one line per event. When the node that it watches is lost, it
continues with another one; when no node can be reached, it says so and keeps trying.

Examples:
  steadfast events 10.0.0.1:7400 10.0.0.2:7400
  steadfast events -o json | while read -r event; do notify \"$event\"; done")]
pub(crate) struct Arguments {
    #[command(flatten)]
    at: At,
    #[command(flatten)]
    ask: Ask,
}

/// Prints events until told to stop.
///
/// # Errors
/// When no node answers, or another group does.
pub(crate) async fn run(Arguments { at, mut ask }: Arguments) -> Result<ExitCode, Failure> {
    let mut stop = Stop::new(false)?;
    tokio::select! {
        () = stop.wait() => Ok(ExitCode::SUCCESS),
        watched = watch(ask.at(at)) => watched.map(|()| ExitCode::SUCCESS),
    }
}

/// Runs until nobody reads any more.
async fn watch(ask: &Ask) -> Result<(), Failure> {
    let group_name = ask.survey().await?.group_name;
    let addresses = ask.addresses().to_vec();
    let connecting = GroupEvents::connect_on(ask.network()?, addresses, &group_name);
    let connected = ask.wait_for(CONNECT_MAX, connecting).await;
    let mut events = connected.map_err(|error| failed(&error))?;
    while !output::is_lost() {
        let event = events.next_async().await.map_err(|error| failed(&error))?;
        match ask.output() {
            Output::Table => println!("{event}"),
            Output::Json => println!("{}", json!({ "event": event, "text": event.to_string() })),
        }
    }
    Ok(())
}

fn failed(error: &FeedError) -> Failure {
    Failure::new(
        with_sources(error),
        "nothing was changed",
        "give --ask the addresses of working nodes of the group",
    )
}
