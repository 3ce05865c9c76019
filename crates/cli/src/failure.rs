//! Errors for people: what happened, what it means for the data, what to do.

use std::error::Error;
use std::fmt::Display;
use std::io::ErrorKind;
use std::path::Path;
use std::process::ExitCode;

use steadfast::config::ConfigError;
use steadfast::engine::EngineError;
use steadfast::log::LogError;
use steadfast::{OpenError, ReadyError};

use crate::clients::CLIENT_KEYS;
use crate::data_dir::foreign_names;

/// Exit code of a command that failed.
pub(crate) const FAILED: u8 = 1;
/// Exit code of a command with unusable arguments.
pub(crate) const USAGE: u8 = 2;
/// Exit code of a check of a group that works, but survives fewer failures than it was made for.
pub(crate) const DEGRADED: u8 = 3;
/// Exit code of a check of a group that takes no writes.
pub(crate) const NO_WRITES: u8 = 4;

const UNTOUCHED: &str = "nothing was changed";
const ELSEWHERE: &str =
    "this node takes no part; nothing acknowledged is lost while a majority of the others has it";

/// Names of foreign files that an error lists; the rest are counted.
const NAMED_MAX: usize = 5;

/// Why a verb ended without having done its work.
#[derive(Debug)]
pub(crate) struct Failure {
    exit: u8,
    what: String,
    data: String,
    remedy: String,
}

impl Failure {
    pub(crate) fn new(
        what: impl Into<String>,
        data: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            exit: FAILED,
            what: what.into(),
            data: data.into(),
            remedy: remedy.into(),
        }
    }

    /// The system refused something: a thread, a file, a process.
    pub(crate) fn system(what: &str, error: &dyn Display) -> Self {
        let remedy = "fix the cause, then try again";
        Self::new(format!("{what}: {error}"), UNTOUCHED, remedy)
    }

    /// No temporary directory could be made.
    pub(crate) fn no_temporary_dir(error: &dyn Display) -> Self {
        Self::new(
            format!("no temporary directory: {error}"),
            UNTOUCHED,
            "set TMPDIR to a writable directory",
        )
    }

    /// A node could not be opened on `dir`. If files are at fault, and others than a node's are
    /// there as well, it may be the wrong directory.
    pub(crate) fn of_open(error: OpenError, dir: &Path) -> Self {
        let is_of_files = matches!(
            error,
            OpenError::Corrupt { .. }
                | OpenError::Io { .. }
                | OpenError::Log(_)
                | OpenError::Engine(_)
        );
        let foreign = if is_of_files && !is_full(&error) {
            foreign_names(dir)
        } else {
            Vec::new()
        };
        let failure = Self::from(error);
        if foreign.is_empty() {
            return failure;
        }
        let (dir, what, remedy) = (dir.display(), &failure.what, &failure.remedy);
        let named = foreign[..foreign.len().min(NAMED_MAX)].join(", ");
        let more = match foreign.len().saturating_sub(NAMED_MAX) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        Self {
            what: format!(
                "{what}; the directory {dir} also holds {named}{more}, which no node makes"
            ),
            remedy: format!(
                "if this is not the directory of the node, name an empty one (--data-dir); if it is, \
                 {remedy}"
            ),
            ..failure
        }
    }

    /// The same, with another meaning for the data and another remedy.
    pub(crate) fn with(self, data: &str, remedy: &str) -> Self {
        Self::new(self.what, data, remedy)
    }

    /// The command line cannot be used.
    pub(crate) fn usage(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            exit: USAGE,
            ..Self::new(what, UNTOUCHED, remedy)
        }
    }

    /// Prints the three parts on stderr; returns the exit code.
    /// What happened.
    pub(crate) fn what(&self) -> &str {
        &self.what
    }

    pub(crate) fn print(&self) -> ExitCode {
        eprintln!("{self}");
        ExitCode::from(self.exit)
    }
}

impl Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "error: {}", self.what)?;
        writeln!(f, "  data:  {}", self.data)?;
        write!(f, "  to do: {}", self.remedy)
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        let mut keys = steadfast::config::KEYS.iter().chain(CLIENT_KEYS);
        let remedy = match keys.find(|key| key.name == error.key) {
            Some(key) => format!("correct {}; see `steadfast config explain {0}`", key.name),
            None => "correct the key; `steadfast config explain` lists all of them".to_owned(),
        };
        Self::usage(error.to_string(), remedy)
    }
}

impl From<OpenError> for Failure {
    fn from(error: OpenError) -> Self {
        let what = with_sources(&error);
        match error {
            OpenError::Config(error) => error.into(),
            OpenError::ForeignDirectory {
                dir,
                what: kind,
                found,
                expected,
            } => Self::new(
                format!(
                    "data directory {} belongs to {kind} {found:?}, not to {expected:?}",
                    dir.display()
                ),
                UNTOUCHED,
                format!("point data_dir at the directory of {expected:?}, or at an empty one"),
            ),
            OpenError::InUse { dir } => Self::new(
                format!(
                    "data directory {} is in use by another process",
                    dir.display()
                ),
                "nothing was changed; the other process keeps running",
                "stop the other process, or give this node a directory of its own",
            ),
            OpenError::Copied { dir } => copied(&dir),
            OpenError::UnfinishedRestore { dir } => unfinished_restore(&dir),
            OpenError::Superseded { reason } => Self::new(
                reason,
                "nothing was changed; the group goes on without this node",
                "move the directory aside, then let the node join again, with an empty directory and a \
                 token (steadfast token create)",
            ),
            OpenError::NewerFormat { path, found, known } => Self::new(
                format!(
                    "{} has format version {found}, but this program supports versions up to {known}",
                    path.display()
                ),
                UNTOUCHED,
                "run the version that wrote it, or a newer one",
            ),
            OpenError::Corrupt { path, offset, what } => corrupt(&path, offset, &what),
            OpenError::Log(LogError::Corrupt {
                file,
                offset,
                damage,
            }) => corrupt(&file, offset, &damage),
            error @ (OpenError::Log(_) | OpenError::Engine(_) | OpenError::Io { .. }) => {
                of_the_disk(&error, what)
            }
            OpenError::Listen { address, source } => Self::new(
                format!("cannot listen on {address}: {}", first_cause(&source)),
                "nothing acknowledged is lost; this node does not start",
                "stop the program that uses the port, or change `listen`",
            ),
            other => of_the_machine(&other, what),
        }
    }
}

/// Whether the only cause is lack of space.
pub(crate) fn is_full(error: &OpenError) -> bool {
    match error {
        OpenError::Engine(EngineError::DiskFull { .. }) => true,
        OpenError::Log(LogError::Io { source, .. } | LogError::Failed { source, .. }) => {
            source.kind() == ErrorKind::StorageFull
        }
        OpenError::Io { source, .. } => source.kind() == ErrorKind::StorageFull,
        _ => false,
    }
}

const LOOK_FIRST: &str = "ask the other nodes with `steadfast status` whether they have the data, \
                          and delete nothing before they do; if this is the only node of its group, \
                          keep its directory, and restore a backup (steadfast backup restore)";

fn of_the_disk(error: &OpenError, what: String) -> Failure {
    match error {
        error if is_full(error) => Failure::new(
            what,
            "nothing was changed, and nothing acknowledged is lost; this node does not start",
            "make room on the volume of its data directory, then start the node again",
        ),
        OpenError::Engine(EngineError::Io { doing, .. }) if doing.contains("TMPDIR") => {
            Failure::new(
                what,
                UNTOUCHED,
                "set TMPDIR to a writable directory with room for a copy of the storage engine",
            )
        }
        OpenError::Io {
            doing,
            path,
            source,
        } => Failure::new(
            format!("cannot {doing} {}: {source}", path.display()),
            "nothing acknowledged is lost; this node does not start",
            if source.kind() == ErrorKind::NotADirectory {
                "name the directory of the node, or an empty one for a new node (--data-dir)"
            } else {
                "make the data directory writable for this user, on a volume with free space"
            },
        ),
        _ => Failure::new(what, ELSEWHERE, LOOK_FIRST),
    }
}

fn of_the_machine(error: &OpenError, what: String) -> Failure {
    match error {
        OpenError::Clock { .. } => Failure::new(
            what,
            UNTOUCHED,
            "set the machine's clock, or fix its time service, then start the node again",
        ),
        OpenError::Close(_) => Failure::new(
            what,
            "nothing acknowledged is lost: the log has what the engine lacks",
            "fix the cause, then start the node again: it re-reads its disk",
        ),
        _ => Failure::new(
            what,
            "nothing acknowledged is lost; this node does not start",
            "fix the cause, then start the node again",
        ),
    }
}

fn unfinished_restore(dir: &Path) -> Failure {
    Failure::new(
        format!("a restore to {} was interrupted", dir.display()),
        "nothing was changed; the backup has everything",
        "restore again (steadfast backup restore), or empty the directory",
    )
}

fn copied(dir: &Path) -> Failure {
    Failure::new(
        format!(
            "data directory {} is a copy of this node's directory, or was put back from a backup",
            dir.display()
        ),
        "nothing was changed; votes and writes that the node has acknowledged may be missing from it, \
         and the original may still run, so it takes no part",
        "put the original directory back; or replace the node (steadfast node replace); or, if \
         nothing else is left of the group, recover from this directory (steadfast recover)",
    )
}

fn corrupt(path: &Path, offset: u64, what: &dyn Display) -> Failure {
    let what = format!("{} is corrupt at byte {offset}: {what}", path.display());
    Failure::new(what, ELSEWHERE, LOOK_FIRST)
}

impl From<ReadyError> for Failure {
    fn from(error: ReadyError) -> Self {
        match error {
            ReadyError::Refused { reason } => Self::new(
                format!("the group refuses this node: {reason}"),
                "nothing was changed; the group goes on without this node",
                "fix what the reason names, then start the node again",
            ),
            error if error.was_removed() => Self::new(
                "this node was removed from the group",
                "the group goes on without this node, and has everything that was acknowledged",
                "nothing, if that was intended; to bring the node back, start it with an empty directory and a \
                 token (steadfast token create)",
            ),
            ReadyError::Stopped { reason } => Self::new(
                format!("the node has stopped: {reason}"),
                ELSEWHERE,
                "fix the cause, then start the node again: it re-reads its disk",
            ),
            other => Self::new(
                other.to_string(),
                "nothing acknowledged is lost",
                "start the nodes that it waits for",
            ),
        }
    }
}

/// The cause at the bottom of an error, or the error itself.
fn first_cause(error: &dyn Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// An error followed by its causes, except those that its own text already states.
pub(crate) fn with_sources(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let below = error.to_string();
        if !text.contains(&below) {
            text = format!("{text}: {below}");
        }
        source = error.source();
    }
    text
}
