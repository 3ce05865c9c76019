//! Where a group is restored to.
//!
//! ```text
//!   data_dir/            is empty at first, or the root of a volume, with a mount point for the log in it
//!     .restoring/        a node's directory, until it is whole; then its files move up
//!       log -> ../log    where there is a directory for the log already
//! ```
//!
//! The identity moves last: a crash before that leaves no valid node directory, only remains that
//! the next attempt removes.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use steadfast::log::{Disk, RealDisk};

use crate::backup::format::{BackupError, io_error, not_empty};
use crate::data_dir::{IDENTITY, LOG, OF_A_NODE, STAGE, names_in};

/// See the module.
pub(super) struct Place {
    dir: PathBuf,
    /// Whether a directory for the log exists already.
    has_log_dir: bool,
}

impl Place {
    /// Checks whether a group can be restored here. Changes nothing.
    ///
    /// # Errors
    /// When something is here already, or the directory cannot be read.
    pub(super) fn look(dir: &Path) -> Result<Self, BackupError> {
        let names = names_in(dir).map_err(io_error(dir))?;
        let was_begun = names.iter().any(|name| name == STAGE);
        let log = dir.join(LOG);
        let is_empty = |dir: &Path| names_in(dir).is_ok_and(|names| names.is_empty());
        let is_content = |name: &&String| {
            if was_begun {
                return !OF_A_NODE.contains(&name.as_str());
            }
            *name != LOG || !log.is_dir() || !is_empty(&log)
        };
        if let Some(name) = names.iter().find(is_content) {
            return Err(io_error(dir)(not_empty(name)));
        }
        Ok(Self {
            dir: dir.to_owned(),
            has_log_dir: log.is_dir(),
        })
    }

    /// Bytes that may be written here.
    ///
    /// # Errors
    /// When the volume does not report it.
    pub(super) fn free_bytes(&self) -> Result<u64, BackupError> {
        let there = self.dir.ancestors().find(|dir| dir.exists());
        let there = there.filter(|dir| !dir.as_os_str().is_empty());
        let there = there.unwrap_or(Path::new("."));
        let space = RealDisk.space(there).map_err(io_error(there))?;
        Ok(space.free_bytes)
    }

    /// Removes what an earlier attempt has left; returns where the node is to be created.
    ///
    /// # Errors
    /// When the directory cannot be written.
    pub(super) fn begin(&self) -> Result<PathBuf, BackupError> {
        self.clear()?;
        let stage = self.stage();
        let made = RealDisk.create_dir_all(&stage).and_then(|()| {
            if self.has_log_dir {
                symlink(Path::new("..").join(LOG), stage.join(LOG))?;
            }
            Ok(())
        });
        made.map_err(io_error(&stage))?;
        Ok(stage)
    }

    /// Moves the finished node into place, durably.
    ///
    /// # Errors
    /// When the directory cannot be written.
    pub(super) fn finish(&self) -> Result<(), BackupError> {
        self.move_up().map_err(io_error(&self.dir))
    }

    #[expect(clippy::disallowed_methods, reason = "a directory is put in its place")]
    fn move_up(&self) -> io::Result<()> {
        let stage = self.stage();
        let mut names = names_in(&stage)?;
        names.retain(|name| name != IDENTITY);
        if self.has_log_dir {
            fs::remove_file(stage.join(LOG))?;
            names.retain(|name| name != LOG);
        }
        for name in names {
            fs::rename(stage.join(&name), self.dir.join(&name))?;
        }
        sync(&self.dir)?;
        fs::rename(stage.join(IDENTITY), self.dir.join(IDENTITY))?;
        fs::remove_dir(&stage)?;
        sync(&self.dir)
    }

    /// Removes everything that an attempt has created, wherever it was interrupted.
    ///
    /// # Errors
    /// When the directory cannot be written.
    pub(super) fn clear(&self) -> Result<(), BackupError> {
        self.remove_all().map_err(io_error(&self.dir))
    }

    fn remove_all(&self) -> io::Result<()> {
        // The stage last: it shows what the rest is.
        for name in names_in(&self.dir)?.iter().filter(|name| *name != STAGE) {
            let path = self.dir.join(name);
            if name == LOG {
                // It may be a mount point or a link, and stays.
                for name in names_in(&path)? {
                    remove(&path.join(name))?;
                }
            } else {
                remove(&path)?;
            }
        }
        remove(&self.stage())
    }

    fn stage(&self) -> PathBuf {
        self.dir.join(STAGE)
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "what an earlier try has left is removed"
)]
fn remove(path: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

#[expect(clippy::disallowed_methods, reason = "a directory is put in its place")]
fn sync(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "tests make files")]
mod tests {
    use tempfile::TempDir;

    use super::*;
    use crate::data_dir::VOLUME_ROOT_FILE;

    /// The files that a node would create.
    fn make(stage: &Path) {
        for name in ["log", "engine"] {
            fs::create_dir_all(stage.join(name)).expect("made");
            fs::write(stage.join(name).join("file"), "").expect("written");
        }
        for name in ["identity", "origin", "lock"] {
            fs::write(stage.join(name), "").expect("written");
        }
    }

    fn sorted(dir: &Path) -> Vec<String> {
        let mut names = names_in(dir).expect("read");
        names.sort();
        names
    }

    #[test]
    fn the_root_of_a_volume_and_a_place_for_the_log_are_empty_and_anything_else_is_refused() {
        let root = TempDir::new().expect("a directory");
        let (dir, log) = (root.path(), root.path().join(LOG));
        assert!(Place::look(&dir.join("none")).is_ok());
        fs::create_dir(dir.join(VOLUME_ROOT_FILE)).expect("made");
        fs::create_dir_all(log.join(VOLUME_ROOT_FILE)).expect("made");
        assert!(Place::look(dir).is_ok_and(|place| place.has_log_dir));
        for content in [dir.join("notes"), log.join("0000000001.log")] {
            fs::write(&content, "").expect("written");
            let refused = Place::look(dir).err().expect("it is not empty");
            assert!(refused.to_string().contains("not empty"), "{refused}");
            fs::remove_file(&content).expect("removed");
        }
        assert!(Place::look(dir).is_ok());
    }

    #[test]
    fn what_is_made_comes_to_its_place_also_after_a_try_that_was_cut_off_anywhere() {
        for has_log_dir in [false, true] {
            let root = TempDir::new().expect("a directory");
            let (dir, log) = (root.path(), root.path().join(LOG));
            if has_log_dir {
                fs::create_dir_all(log.join(VOLUME_ROOT_FILE)).expect("made");
            }
            // Interrupted while it was made, and while it was moved.
            for moved in [&[][..], &["origin"], &["origin", "engine"]] {
                let stage = Place::look(dir).expect("empty").begin().expect("begun");
                make(&stage);
                for name in moved {
                    fs::rename(stage.join(name), dir.join(name)).expect("moved");
                }
            }
            let place = Place::look(dir).expect("what is left is of a try");
            let stage = place.begin().expect("begun");
            assert_eq!(sorted(&log), Vec::<String>::new(), "nothing old is left");
            make(&stage);
            place.finish().expect("moved");
            let expected = ["engine", "identity", "lock", "log", "origin"];
            assert_eq!(sorted(dir), expected, "{has_log_dir}");
            assert_eq!(sorted(&log), ["file"]);
            assert!(!log.is_symlink());
            assert!(Place::look(dir).is_err(), "a node is here now");
        }
    }
}
