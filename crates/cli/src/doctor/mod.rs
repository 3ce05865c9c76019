//! `steadfast doctor`: what is wrong with a group, what that means for the data, and what to do.

mod findings;

use std::process::ExitCode;

use serde_json::json;

use crate::doctor::findings::{Finding, Severity, diagnose};
use crate::failure::{DEGRADED, Failure};
use crate::status::{Ask, At, Health, Output, Survey, headline, push};

/// Find out what is wrong with a group, and why
#[derive(clap::Args)]
#[command(after_help = "\
Asks every node that can be found. Works without a master. Changes nothing.

Examples:
  steadfast doctor
  steadfast doctor 10.0.0.1:7400 10.0.0.2:7400
  steadfast doctor -o json | jq '.findings[].what'

Exit codes: 0 nothing is wrong, 3 something is wrong, 4 no writes are possible (no quorum, or no room on the
master's disk), 1 no node answers.")]
pub(crate) struct Arguments {
    #[command(flatten)]
    at: At,
    #[command(flatten)]
    ask: Ask,
}

/// Asks, and prints what was found.
///
/// # Errors
/// When no node answers.
pub(crate) async fn run(Arguments { at, mut ask }: Arguments) -> Result<ExitCode, Failure> {
    let survey = ask.at(at).survey().await?;
    let findings = diagnose(&survey);
    match ask.output() {
        Output::Table => print!("{}", render(&survey, &findings)),
        Output::Json => println!(
            "{}",
            json!({
                "group": survey.group_name,
                "health": survey.health.word(),
                "findings": findings,
            })
        ),
    }
    Ok(exit_code(&survey, &findings))
}

fn exit_code(survey: &Survey, findings: &[Finding]) -> ExitCode {
    let is_wrong = |finding: &Finding| finding.severity != Severity::Information;
    match survey.health {
        Health::Healthy if findings.iter().any(is_wrong) => ExitCode::from(DEGRADED),
        health => health.exit_code(),
    }
}

fn render(survey: &Survey, findings: &[Finding]) -> String {
    let mut text = headline(survey);
    for finding in findings {
        let Finding {
            severity,
            what,
            data,
            to_do,
            ..
        } = finding;
        push(
            &mut text,
            format_args!("{severity}: {what}\n  data:  {data}\n  to do: {to_do}\n"),
        );
    }
    if findings.is_empty() {
        text.push_str("nothing is wrong\n");
    }
    text
}
