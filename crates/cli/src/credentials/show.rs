//! `steadfast certs show`: whose credentials they are, how long they are valid, and what is wrong.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde_json::{Value, json};
use steadfast::credentials::{
    Authority, CredentialsError, Description, Subject, date, describe, read, read_authority,
};
use steadfast::plural;

use super::parts;
use crate::failure::{DEGRADED, FAILED};
use crate::network::now_ms;
use crate::status::{Output, aligned, push};

const DAY_MS: u64 = 24 * 60 * 60 * 1_000;

/// Days before the end from which on it is told.
const SOON_DAYS: u64 = 30;

/// Digits of a fingerprint that a table shows.
const SHORT_DIGITS: usize = 8;

const COLUMNS: [&str; 7] = [
    "DIRECTORY",
    "HOLDER",
    "VALID UNTIL",
    "DAYS LEFT",
    "KEY",
    "AUTHORITY",
    "BELIEVES",
];

/// Show whose credentials these are, how long they are valid, and what is wrong with them
#[derive(clap::Args)]
#[command(after_help = "\
Shows no key. A fingerprint is the SHA-256 of a certificate, as `openssl x509 -fingerprint -sha256`
prints it.

Examples:
  steadfast certs show /etc/steadfast/orders/n1
  steadfast certs show secrets/* -o json

Exit codes: 0 all can be used, 3 some expire within 30 days, 1 some have expired, or cannot be used.")]
pub(super) struct Arguments {
    /// Directories of credentials or of authorities, or files with a certificate
    #[arg(required = true, value_name = "DIR")]
    directories: Vec<PathBuf>,
    /// Output format
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

/// One directory.
struct Shown<'a> {
    path: &'a Path,
    description: Option<Description>,
    /// Why it cannot be used.
    problem: Option<CredentialsError>,
    /// Until the first of its certificates ends; 0 on the last day and after it.
    days_left: u64,
}

/// Prints all; returns the exit code.
pub(super) fn run(arguments: &Arguments) -> ExitCode {
    let now_ms = now_ms();
    let directories = arguments.directories.iter();
    let shown: Vec<_> = directories.map(|path| Shown::look(path, now_ms)).collect();
    match arguments.output {
        Output::Table => print!("{}", table(&shown)),
        Output::Json => {
            let all: Vec<_> = shown.iter().map(Shown::to_json).collect();
            println!("{}", json!({ "credentials": all }));
        }
    }
    if shown.iter().any(|one| one.problem.is_some()) {
        return ExitCode::from(FAILED);
    }
    if shown.iter().any(Shown::ends_soon) {
        return ExitCode::from(DEGRADED);
    }
    ExitCode::SUCCESS
}

impl<'a> Shown<'a> {
    fn look(path: &'a Path, now_ms: u64) -> Self {
        let (description, problem) = match describe(path) {
            Ok(description) => {
                let problem = problem(path, &description, now_ms);
                (Some(description), problem)
            }
            Err(error) => (None, Some(error)),
        };
        let end_ms = description.as_ref().map_or(0, |of| of.not_after_ms);
        Self {
            path,
            description,
            problem,
            days_left: end_ms.saturating_sub(now_ms) / DAY_MS,
        }
    }

    fn ends_soon(&self) -> bool {
        self.problem.is_none() && self.days_left < SOON_DAYS
    }

    fn row(&self) -> [String; 7] {
        let path = self.path.display().to_string();
        let Some(of) = &self.description else {
            return [&path, "?", "", "", "", "", ""].map(str::to_owned);
        };
        let mut believed: Vec<_> = of
            .authorities
            .iter()
            .map(|by| short(&by.fingerprint))
            .collect();
        believed.sort_unstable();
        let signed = of.authorities.iter().find(|authority| authority.has_signed);
        [
            path,
            of.subject.to_string(),
            date(of.not_after_ms),
            self.days_left.to_string(),
            if of.key_is_here { "here" } else { "none" }.to_owned(),
            signed.map_or("?", |by| short(&by.fingerprint)).to_owned(),
            believed.join(" "),
        ]
    }

    /// What is wrong, or soon will be, and what to do about it.
    fn warning(&self) -> Option<(String, String)> {
        if let Some(problem) = &self.problem {
            let (what, _, remedy) = parts(problem);
            return Some((what, remedy));
        }
        let when = match self.days_left {
            0 => "within a day".to_owned(),
            days => format!("in {days} {}", plural(days, "day", "days")),
        };
        let what = format!("{} expires {when}", self.path.display());
        let remedy = "issue new credentials (steadfast certs issue)".to_owned();
        self.ends_soon().then_some((what, remedy))
    }

    fn to_json(&self) -> Value {
        let problem = self.problem.as_ref().map(|problem| parts(problem).0);
        let Some(of) = &self.description else {
            return json!({ "directory": self.path, "problem": problem });
        };
        let (group, role, name) = match &of.subject {
            Subject::Holder(holder) => {
                (holder.group(), holder.access().word(), Some(holder.name()))
            }
            Subject::Authority { group } => (group.as_str(), "authority", None),
        };
        let authorities = of.authorities.iter().map(|authority| {
            json!({
                "name": authority.name,
                "fingerprint": authority.fingerprint,
                "not_after_ms": authority.not_after_ms,
                "has_signed": authority.has_signed,
            })
        });
        json!({
            "directory": self.path,
            "group": group,
            "role": role,
            "name": name,
            "not_before_ms": of.not_before_ms,
            "not_after_ms": of.not_after_ms,
            "days_left": self.days_left,
            "serial": of.serial,
            "fingerprint": of.fingerprint,
            "key_is_here": of.key_is_here,
            "authorities": authorities.collect::<Vec<_>>(),
            "problem": problem,
        })
    }
}

/// Why what was described cannot be used at this time.
fn problem(path: &Path, of: &Description, now_ms: u64) -> Option<CredentialsError> {
    let (path, not_before_ms, not_after_ms) = (path.to_owned(), of.not_before_ms, of.not_after_ms);
    if now_ms > not_after_ms {
        return Some(CredentialsError::Expired {
            path,
            not_after_ms,
            now_ms,
        });
    }
    if now_ms < not_before_ms {
        return Some(CredentialsError::NotYetValid {
            path,
            not_before_ms,
            now_ms,
        });
    }
    match of.subject {
        // A file alone is there to be looked at.
        _ if path.is_file() => None,
        Subject::Holder(_) => {
            let usable = read(&path, now_ms).map(drop);
            usable.and_then(|()| read_authority(&path).map(drop)).err()
        }
        Subject::Authority { .. } => Authority::read(&path).err(),
    }
}

/// A row for each, what is wrong with some, and the authorities with their whole fingerprints.
fn table(shown: &[Shown<'_>]) -> String {
    let mut rows = vec![COLUMNS.map(str::to_owned)];
    rows.extend(shown.iter().map(Shown::row));
    let mut text = aligned(&rows);
    for (what, remedy) in shown.iter().filter_map(Shown::warning) {
        push(&mut text, format_args!("! {what}\n  {remedy}\n"));
    }
    let described = shown.iter().filter_map(|one| one.description.as_ref());
    let authorities = described.flat_map(|of| &of.authorities);
    let names = authorities.map(|authority| (&authority.fingerprint, &authority.name));
    for (fingerprint, name) in names.collect::<BTreeMap<_, _>>() {
        push(
            &mut text,
            format_args!("{name:?} has the fingerprint {fingerprint}\n"),
        );
    }
    text
}

fn short(fingerprint: &str) -> &str {
    fingerprint.get(..SHORT_DIGITS).unwrap_or(fingerprint)
}
