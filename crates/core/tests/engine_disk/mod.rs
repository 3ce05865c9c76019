//! File systems in image files, for tests of power cuts: a copy of the image is what one leaves.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A mounted image; unmounted on drop.
pub(crate) struct Mount {
    pub(crate) path: PathBuf,
}

impl Mount {
    /// Creates an ext4 file system in `image`; `None` where that is not possible.
    pub(crate) fn new_file_system(image: &Path, parent: &Path) -> Option<Self> {
        std::fs::remove_file(image).ok();
        run(
            "truncate",
            &["-s".as_ref(), "512M".as_ref(), image.as_os_str()],
        )?;
        run(
            "mkfs.ext4",
            &["-q".as_ref(), "-F".as_ref(), image.as_os_str()],
        )?;
        Self::new(image, parent)
    }

    pub(crate) fn new(image: &Path, parent: &Path) -> Option<Self> {
        let path = parent.join("mounted");
        std::fs::create_dir_all(&path).unwrap();
        run(
            "mount",
            &[
                "-o".as_ref(),
                "loop".as_ref(),
                image.as_os_str(),
                path.as_os_str(),
            ],
        )?;
        Some(Self { path })
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Lazily: a process that another test is just starting may share our files until it runs.
        let unmounted = run("umount", &["-l".as_ref(), self.path.as_os_str()]);
        assert!(unmounted.is_some() || std::thread::panicking());
    }
}

/// `None` if the program is missing or fails.
pub(crate) fn run(program: &str, arguments: &[&OsStr]) -> Option<()> {
    let status = Command::new(program)
        .args(arguments)
        .stderr(Stdio::null())
        .status();
    status.is_ok_and(|status| status.success()).then_some(())
}
