//! The audit log: a file in the data directory of a node with the changes that it was asked for as
//! master, one JSON object on each line.

use std::convert::Infallible;
use std::fs::{File, OpenOptions, rename};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde_json::json;
use steadfast::{GroupChange, ReplicatedEnvironment};

use crate::data_dir::{AUDIT, AUDIT_BEFORE};

/// The size at which the file gives way to a new one; the one before that is then gone.
const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Writes down what the node is asked for.
pub(crate) struct Audit<'a> {
    env: &'a ReplicatedEnvironment,
    dir: &'a Path,
    /// The number of the newest change that is written, or could not be.
    newest: u64,
}

impl<'a> Audit<'a> {
    pub(crate) fn new(env: &'a ReplicatedEnvironment, dir: &'a Path) -> Self {
        Self {
            env,
            dir,
            newest: 0,
        }
    }

    /// Writes each change down when it comes.
    pub(crate) async fn keep(&mut self) -> Infallible {
        loop {
            self.env.changed_after_async(self.newest).await;
            self.write_all();
        }
    }

    /// Writes down what has not been.
    pub(crate) fn write_all(&mut self) {
        for change in self.env.changes_after(self.newest) {
            self.newest = change.number;
            if let Err(error) = append(self.dir, &change) {
                println!("the audit log cannot be written: {error}: {change}");
            }
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "a file of the program's own, beside those of the node"
)]
fn append(dir: &Path, change: &GroupChange) -> io::Result<()> {
    let path = dir.join(AUDIT);
    let mut options = OpenOptions::new();
    let options = options.append(true).create(true).mode(0o600);
    let mut file = options.open(&path)?;
    if file.metadata()?.len() >= FILE_BYTES_MAX {
        rename(&path, dir.join(AUDIT_BEFORE))?;
        file = options.open(&path)?;
    }
    let line = json!({ "change": change, "text": change.to_string() });
    file.write_all(format!("{line}\n").as_bytes())?;
    file.sync_data()?;
    File::open(dir)?.sync_all()
}
