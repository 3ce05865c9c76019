//! The names in a data directory: those of a node, and those of others.

use std::fs;
use std::io;
use std::path::Path;

pub(crate) use steadfast::UNFINISHED_RESTORE as STAGE;

pub(crate) const LOG: &str = "log";
pub(crate) const IDENTITY: &str = "identity";

/// The entries of a node's directory: an interrupted attempt may have left some of them.
pub(crate) const OF_A_NODE: [&str; 8] = [
    LOG,
    "engine",
    "digest",
    "members",
    "addresses",
    "origin",
    "lock",
    STAGE,
];
/// The directory of the credentials that a node got with its join token. No node of ours writes into
/// it while it runs, and it stays when a group is restored.
pub(crate) const CREDENTIALS: &str = "credentials";
/// The file with the changes of the group that the node was asked for, and the one before it.
pub(crate) const AUDIT: &str = "audit.log";
pub(crate) const AUDIT_BEFORE: &str = "audit.log.1";
/// The directory that file systems keep in the root of a volume.
pub(crate) const VOLUME_ROOT_FILE: &str = "lost+found";

/// The names in a directory that no node makes; none where it cannot be read.
pub(crate) fn foreign_names(dir: &Path) -> Vec<String> {
    let mut names = names_in(dir).unwrap_or_default();
    let is_of_a_node = |name: &str| {
        // A copied state is numbered, and a file that is being replaced has a new one beside it.
        let stem = name.trim_end_matches(|c: char| c.is_ascii_digit());
        let stem = stem.strip_suffix('-').or(name.strip_suffix(".new"));
        let stem = stem.unwrap_or(name);
        OF_A_NODE.contains(&stem) || stem == IDENTITY
    };
    names.retain(|name| !is_of_a_node(name));
    names.sort();
    names
}

/// What a node may find in its directory, and leaves there.
const IN_NOBODYS_WAY: [&str; 4] = [VOLUME_ROOT_FILE, CREDENTIALS, AUDIT, AUDIT_BEFORE];

/// The names in a directory that are in the way of a node. A missing directory has none.
#[expect(
    clippy::disallowed_methods,
    reason = "a directory of the user is looked at"
)]
pub(crate) fn names_in(dir: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut names = Vec::new();
    for entry in entries {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.retain(|name| !IN_NOBODYS_WAY.contains(&name.as_str()));
    Ok(names)
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "tests make files")]
mod tests {
    use tempfile::TempDir;

    use super::*;

    #[test]
    fn what_no_node_makes_is_foreign() {
        let root = TempDir::new().expect("a directory");
        for name in [
            "log",
            "log-1",
            "engine-12",
            "identity.new",
            "notes.txt",
            "log.txt",
        ] {
            fs::write(root.path().join(name), "").expect("written");
        }
        assert_eq!(foreign_names(root.path()), ["log.txt", "notes.txt"]);
    }
}
