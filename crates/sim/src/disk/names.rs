//! File names, and changes to them that a power cut may still lose.
//!
//! Changes wait, in order, until their directory is synced. Directories are durable at once, and
//! each directory loses only a tail of its changes, as on a journaling file system.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::file::Stamp;

/// Identifies a file; never reused.
pub(super) type FileId = u64;

/// The names of one disk.
#[derive(Default)]
pub(super) struct Names {
    current: BTreeMap<PathBuf, FileId>,
    durable: BTreeMap<PathBuf, FileId>,
    /// Oldest first.
    waiting: Vec<Waiting>,
    directories: BTreeSet<PathBuf>,
}

struct Waiting {
    stamp: Stamp,
    change: Change,
}

enum Change {
    Add(PathBuf, FileId),
    Rename(PathBuf, PathBuf, FileId),
    Remove(PathBuf),
}

impl Names {
    /// Creates a directory and its parents.
    pub(super) fn create_dir_all(&mut self, path: &Path) {
        self.directories
            .extend(path.ancestors().map(Path::to_path_buf));
    }

    /// Whether this directory exists.
    pub(super) fn is_dir(&self, path: &Path) -> bool {
        self.directories.contains(path)
    }

    /// Whether the parent directory of this file name exists.
    pub(super) fn has_parent(&self, path: &Path) -> bool {
        path.parent().is_some_and(|dir| self.is_dir(dir))
    }

    /// The file with this name.
    pub(super) fn find(&self, path: &Path) -> Option<FileId> {
        self.current.get(path).copied()
    }

    /// The files in this directory and its subdirectories, in path order.
    pub(super) fn under<'a>(&'a self, dir: &'a Path) -> impl Iterator<Item = (&'a Path, FileId)> {
        self.current
            .range(dir.to_path_buf()..)
            .take_while(move |(path, _)| path.starts_with(dir))
            .map(|(path, &id)| (path.as_path(), id))
    }

    /// The names left when no waiting change survives.
    pub(super) fn durable(&self) -> impl Iterator<Item = (&Path, FileId)> {
        self.durable.iter().map(|(path, &id)| (path.as_path(), id))
    }

    /// Names a new file.
    pub(super) fn add(&mut self, path: &Path, id: FileId, stamp: Stamp) {
        self.change(Change::Add(path.to_owned(), id), stamp);
    }

    /// Renames a file.
    pub(super) fn rename(&mut self, from: &Path, to: &Path, id: FileId, stamp: Stamp) {
        self.change(Change::Rename(from.to_owned(), to.to_owned(), id), stamp);
    }

    /// Removes a name.
    pub(super) fn remove(&mut self, path: &Path, stamp: Stamp) {
        self.change(Change::Remove(path.to_owned()), stamp);
    }

    fn change(&mut self, change: Change, stamp: Stamp) {
        change.apply(&mut self.current);
        self.waiting.push(Waiting { stamp, change });
    }

    /// Removes every name in this directory and its subdirectories, durably.
    pub(super) fn clear(&mut self, dir: &Path) {
        self.waiting
            .retain(|waiting| !waiting.change.dir().starts_with(dir));
        for names in [&mut self.current, &mut self.durable] {
            names.retain(|path, _| !path.starts_with(dir));
        }
    }

    /// Names a file, durably.
    pub(super) fn add_durable(&mut self, path: &Path, id: FileId) {
        for names in [&mut self.current, &mut self.durable] {
            names.insert(path.to_owned(), id);
        }
    }

    /// Makes this directory's changes up to this stamp durable.
    pub(super) fn sync(&mut self, dir: &Path, upto: Stamp) {
        let durable = &mut self.durable;
        self.waiting.retain(|waiting| {
            let covered = waiting.stamp <= upto && waiting.change.is_in(dir);
            if covered {
                waiting.change.apply(durable);
            }
            !covered
        });
    }

    /// Stamps of the waiting changes, oldest first.
    pub(super) fn waiting_stamps(&self) -> impl Iterator<Item = Stamp> {
        self.waiting.iter().map(|waiting| waiting.stamp)
    }

    /// Cuts the power: `kept` decides how many of a directory's waiting changes survive, given
    /// their stamps in order. Returns how many changes were lost.
    pub(super) fn crash(&mut self, mut kept: impl FnMut(&[Stamp]) -> usize) -> u64 {
        let mut by_dir: BTreeMap<PathBuf, Vec<Stamp>> = BTreeMap::new();
        for waiting in &self.waiting {
            let dir = waiting.change.dir().to_owned();
            by_dir.entry(dir).or_default().push(waiting.stamp);
        }
        let mut survivors: BTreeSet<Stamp> = BTreeSet::new();
        for stamps in by_dir.values() {
            survivors.extend(&stamps[..kept(stamps).min(stamps.len())]);
        }
        let mut lost = 0;
        for waiting in std::mem::take(&mut self.waiting) {
            if survivors.contains(&waiting.stamp) {
                waiting.change.apply(&mut self.durable);
            } else {
                lost += 1;
            }
        }
        self.current.clone_from(&self.durable);
        lost
    }

    /// Every file that has a name now, or may have one after a power cut.
    pub(super) fn live(&self) -> BTreeSet<FileId> {
        let waiting = self.waiting.iter().filter_map(|waiting| {
            let (Change::Add(_, id) | Change::Rename(_, _, id)) = &waiting.change else {
                return None;
            };
            Some(id)
        });
        let named = self.current.values().chain(self.durable.values());
        named.chain(waiting).copied().collect()
    }
}

impl Change {
    /// The directory whose sync the change waits for.
    fn dir(&self) -> &Path {
        let (Self::Add(path, _) | Self::Rename(path, _, _) | Self::Remove(path)) = self;
        path.parent().unwrap_or(path)
    }

    /// Whether a sync of this directory covers the change. Renames stay within a directory.
    fn is_in(&self, dir: &Path) -> bool {
        self.dir() == dir
    }

    fn apply(&self, names: &mut BTreeMap<PathBuf, FileId>) {
        match self {
            Self::Add(path, id) => {
                names.insert(path.clone(), *id);
            }
            Self::Rename(from, to, id) => {
                names.remove(from);
                names.insert(to.clone(), *id);
            }
            Self::Remove(path) => {
                names.remove(path);
            }
        }
    }
}
