//! The file descriptors of this process: how many it may open, and how many it has open.
//!
//! Every connection and every open file takes one. A program that gives all of them to strangers
//! can no longer open its own next file.

use std::io;
use std::sync::Mutex;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::time::Instant;

use crate::lock::lock;

/// Maximum number of descriptors kept from strangers; half of the process's limit where that is
/// less.
pub(crate) const KEPT_MAX: usize = 256;

/// What a node of a small group can live with: some 50 for its files, its runtime and its peers, as
/// many again while it copies or compares its state, and half of all for strangers and programs.
const ENOUGH: usize = 256;

/// The most that [`Descriptors::raise_limit`] asks for: more than the connections and files of
/// several nodes together, at half a megabyte for the kernel's table.
const RAISED_MAX: u64 = 65_536;

/// How long a count stays valid: other code opens files meanwhile.
const COUNT_AGE_MAX: Duration = Duration::from_millis(100);

/// Accepted connections after which descriptors are counted again. Where the system has to be asked
/// for the whole list, thousands take milliseconds.
const CONNECTIONS_BETWEEN: usize = 16;

/// Where the system lists the descriptors of this process.
const LIST: &str = if cfg!(target_os = "linux") {
    "/proc/self/fd"
} else {
    "/dev/fd"
};

/// The last count, and the connections accepted since.
static COUNTED: Mutex<Option<Counted>> = Mutex::new(None);

#[derive(Clone, Copy)]
struct Counted {
    at: Instant,
    used: usize,
    accepted: usize,
}

/// The descriptors of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptors {
    /// How many it may open: its soft limit.
    pub max: usize,
    /// How many it has open, approximately.
    pub used: usize,
}

impl Descriptors {
    /// Those of this process; `None` where the system does not report them or sets no limit.
    pub fn of_this_process() -> Option<Self> {
        let max = getrlimit(Resource::Nofile).current?;
        let max = usize::try_from(max).unwrap_or(usize::MAX);
        Some(Self {
            max,
            used: used(max)?,
        })
    }

    /// How many more it may open.
    pub fn left(self) -> usize {
        self.max.saturating_sub(self.used)
    }

    /// How many are kept from strangers: `kept_max`, or half of the limit where that is less.
    pub(crate) fn kept(self, kept_max: usize) -> usize {
        kept_max.min(self.max / 2)
    }

    /// Whether the process may open as many as a node can live with, whatever strangers do.
    pub fn suffice(self) -> bool {
        self.max >= ENOUGH
    }

    /// Whether little more is left than what is kept from strangers by default.
    pub fn are_few(self) -> bool {
        self.left() < self.kept(KEPT_MAX) * 3 / 2
    }

    /// Raises the soft limit of this process to its hard limit, or 65,536 where that is less.
    /// Returns the resulting limit. Child processes inherit it.
    ///
    /// # Errors
    ///
    /// As the system reports them; the limit is unchanged.
    pub fn raise_limit() -> io::Result<Option<u64>> {
        let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
        let wanted = maximum.unwrap_or(RAISED_MAX).min(RAISED_MAX);
        if current.is_none_or(|current| current >= wanted) {
            return Ok(current);
        }
        let raised = Rlimit {
            current: Some(wanted),
            maximum,
        };
        setrlimit(Resource::Nofile, raised)?;
        Ok(Some(wanted))
    }

    /// Whether this error means that the process, or the whole machine, has no descriptor left.
    pub fn are_wanting(error: &io::Error) -> bool {
        let wanting = [Errno::MFILE, Errno::NFILE].map(Errno::raw_os_error);
        error
            .raw_os_error()
            .is_some_and(|code| wanting.contains(&code))
    }
}

/// Notes an accepted connection, so that it is included before the next count.
pub(crate) fn note_accepted() {
    if let Some(counted) = &mut *lock(&COUNTED) {
        counted.accepted += 1;
    }
}

fn used(max: usize) -> Option<usize> {
    let mut counted = lock(&COUNTED);
    if let Some(last) = *counted
        && last.at.elapsed() < COUNT_AGE_MAX
        && last.accepted < CONNECTIONS_BETWEEN
    {
        return Some(last.used + last.accepted);
    }
    let used = count(max)?;
    *counted = Some(Counted {
        at: Instant::now(),
        used,
        accepted: 0,
    });
    Some(used)
}

#[expect(
    clippy::disallowed_methods,
    reason = "the system's own list, not a file of anybody's"
)]
fn count(max: usize) -> Option<usize> {
    // Linux says in the size of the list how long it is, from 6.2 on. A process that asks has some.
    let size = std::fs::metadata(LIST).map_or(0, |list| list.len());
    if size > 0 && cfg!(target_os = "linux") {
        return usize::try_from(size).ok();
    }
    match std::fs::read_dir(LIST) {
        // Reading the list itself takes one.
        Ok(list) => Some(list.count().saturating_sub(1)),
        Err(error) if Descriptors::are_wanting(&error) => Some(max),
        Err(_) => None,
    }
}
