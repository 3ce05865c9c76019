//! `steadfast status`: the state of a group, obtained from any of its nodes.

mod ask;
mod masterless;
mod problems;
mod survey;
mod table;

use std::process::ExitCode;
use std::time::Duration;

use clap::ValueEnum;
use steadfast::{Transport, Unreachable};

pub(crate) use masterless::{Cause, IF_ALL_MOVED};
#[cfg(test)]
pub(crate) use survey::{Answer, ClockOffset};
pub(crate) use survey::{
    Health, ONLY_NODE, OTHER_CREDENTIALS, Survey, SurveyedNode, Unseen, UnseenKind,
    damage_in_words, remedy_of_damage, remedy_of_hang, remedy_of_stop,
};
pub(crate) use table::{aligned, grouped, headline, push};

use crate::failure::Failure;
pub(crate) use ask::{Ask, At};

/// Deadline for one node's answer.
pub(crate) const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// Show the state of a group
#[derive(clap::Args)]
#[command(after_help = "\
One address is enough: that node knows the others, and they are asked too. Works without a master.

Examples:
  steadfast status
  steadfast status 10.0.0.1:7400 10.0.0.2:7400
  steadfast status -o json | jq .health

Exit codes: 0 healthy, 3 degraded, 4 no writes are possible (no quorum, or no room on the
master's disk), 1 no node answers.")]
pub(crate) struct Arguments {
    #[command(flatten)]
    at: At,
    #[command(flatten)]
    ask: Ask,
}

/// How an answer is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people
    Table,
    /// For programs
    Json,
}

/// Asks, and prints the answer.
///
/// # Errors
/// When no node answers.
pub(crate) async fn run(Arguments { at, mut ask }: Arguments) -> Result<ExitCode, Failure> {
    let survey = ask.at(at).survey().await?;
    Ok(print_survey(&survey, ask.output()))
}

/// Prints a survey; returns the exit code for the group's health.
pub(crate) fn print_survey(survey: &Survey, output: Output) -> ExitCode {
    match output {
        Output::Table => print!("{}", table::render(survey)),
        Output::Json => println!("{}", survey.to_json()),
    }
    survey.health.exit_code()
}

impl Survey {
    /// Surveys the group of the nodes at `addresses`.
    ///
    /// # Errors
    /// When none of them answers.
    pub(crate) async fn of(network: &dyn Transport, addresses: &[String]) -> Result<Self, Failure> {
        Self::take(network, addresses).await.map_err(|unseen| {
            let is_denied = |of: &Unseen| of.kind == UnseenKind::Unreachable(Unreachable::Denied);
            let why: Vec<&str> = unseen.iter().map(|of| &*of.text).collect();
            if unseen.iter().any(is_denied) {
                let data = "unknown from here; the nodes that are up may well work";
                return Failure::new(why.join("; "), data, OTHER_CREDENTIALS);
            }
            Failure::new(
                why.join("; "),
                "unknown from here; a group whose nodes do not answer takes no writes",
                "check the addresses, and start the nodes that are down",
            )
        })
    }
}
