//! Copies of a directory, as a file backup takes them, and putting one back.

use std::path::{Path, PathBuf};

use super::file::File;
use super::model::Model;

/// A directory's files at an earlier moment.
pub struct DirectoryCopy {
    files: Vec<(PathBuf, File)>,
}

impl Model {
    /// What a process reads in this directory and its subdirectories.
    pub(super) fn copy(&self, dir: &Path) -> DirectoryCopy {
        let named = self.names.under(dir);
        let files = named
            .filter_map(|(path, id)| Some((path.to_owned(), self.files.get(&id)?.copy(path))))
            .collect();
        DirectoryCopy { files }
    }

    /// Replaces what is in this directory with the copy, durably. Its files are new ones.
    pub(super) fn put_back(&mut self, dir: &Path, copy: DirectoryCopy) {
        self.names.clear(dir);
        for (path, file) in copy.files {
            let id = self.new_file(file);
            self.names.add_durable(&path, id);
        }
        self.step("put_back", dir, 0..0);
        self.sweep();
    }
}
