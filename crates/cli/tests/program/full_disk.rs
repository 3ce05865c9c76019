//! A real volume fills up under a real node, and gets room again.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use steadfast::Role;
use tempfile::TempDir;

use super::{Group, Node, assert_refused, free_port, node_arguments, run, write_everywhere};

const MIB: u64 = 1 << 20;

/// A small in-memory volume; unmounted on drop.
pub(super) struct Volume {
    at: PathBuf,
    /// Its own mount point, if it made one.
    dir: Option<TempDir>,
}

/// A second mount point of a volume; unmounted on drop.
pub(super) struct Bound(PathBuf);

fn mount(arguments: &[&str], at: &Path) -> bool {
    let mounted = Command::new("mount").args(arguments).arg(at).output();
    mounted.is_ok_and(|output| output.status.success())
}

fn unmount(at: &Path) {
    Command::new("umount").arg("-l").arg(at).status().ok();
}

impl Volume {
    /// `None` if this user may not mount one.
    pub(super) fn mount() -> Option<Self> {
        let dir = TempDir::new().expect("a directory");
        let mut volume = Self::mount_at(dir.path())?;
        volume.dir = Some(dir);
        Some(volume)
    }

    pub(super) fn mount_at(at: &Path) -> Option<Self> {
        let mounted = mount(&["-t", "tmpfs", "-o", "size=400m", "steadfast-test"], at);
        mounted.then(|| Self {
            at: at.to_owned(),
            dir: None,
        })
    }

    /// Also mounts the volume at another place.
    pub(super) fn bind(&self, at: &Path) -> Bound {
        let from = self.at.to_str().expect("text");
        assert!(mount(&["--bind", from], at), "it could before");
        Bound(at.to_owned())
    }

    pub(super) fn path(&self) -> &Path {
        &self.at
    }

    fn ballast(&self) -> PathBuf {
        self.path().join("ballast")
    }

    /// Frees the space that was taken.
    pub(super) fn clear(&self) {
        fs::remove_file(self.ballast()).expect("removed");
    }

    /// Takes all space but this much.
    pub(super) fn leave(&self, free: u64) {
        let ballast = self.ballast();
        let output = Command::new("df")
            .args(["--output=avail", "-B1"])
            .arg(self.path())
            .output();
        let text = String::from_utf8(output.expect("df runs").stdout).expect("text");
        let available: u64 = text
            .lines()
            .last()
            .expect("a line")
            .trim()
            .parse()
            .expect("a number");
        File::create(&ballast).expect("created");
        let length = available.saturating_sub(free).to_string();
        let taken = Command::new("fallocate")
            .args(["-l", &length])
            .arg(&ballast)
            .status();
        assert!(taken.expect("fallocate runs").success());
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        unmount(&self.at);
        drop(self.dir.take());
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        unmount(&self.0);
    }
}

#[test]
fn a_node_on_a_full_volume_is_read_only_then_stops_and_comes_back_by_itself_with_room() {
    let Some(volume) = Volume::mount() else {
        eprintln!("skipped: this user may not mount a tmpfs");
        return;
    };
    let mut group = Group::unstarted();
    group.data_dirs[1] = volume.path().join("n2");
    let mut limited = group.arguments(1);
    for limit in [
        "log_segment_bytes=4194304",
        "disk_free_warn_bytes=209715200",
        "disk_free_read_only_bytes=157286400",
    ] {
        limited.extend(["--set".to_owned(), limit.to_owned()]);
    }
    group.nodes[1] = Some(Node::start(&limited));
    group.nodes[2] = Some(Node::start(&group.arguments(2)));
    let env = group.embed();
    Group::make_master(&env);
    let full = group.nodes[1].as_ref().expect("it runs");
    full.wait_ready();
    group.status_until(0);

    volume.leave(30 * MIB);
    let status = group.status_until(3);
    for word in ["read-only", "MiB free, less than", "by itself"] {
        assert!(status.contains(word), "{word:?} is not in: {status}");
    }
    let ask = format!("127.0.0.1:{}", group.ports[0]);
    let refused = run(&["master", "transfer", "n2", "--within", "1", "--ask", &ask]);
    assert_eq!(refused.status.code(), Some(1), "a full node is no master");

    // It goes on to append, until the volume takes nothing more.
    let value = vec![7_u8; 1 << 20];
    for n in 0..40_u32 {
        let written = env.write(|txn| txn.database("d")?.put(n.to_be_bytes(), &value));
        let _token = written.expect("two of three have room");
    }
    full.wait_for(&["n2 waits for room"]);
    volume.clear();
    full.wait_for(&["n2 opens again"]);
    full.wait_ready();
    group.status_until(0);
    assert_eq!(env.state().role, Role::Master);
    let _token = write_everywhere(&env, |txn| txn.database("d")?.put("all", "v"));
    env.close().expect("closed");
}

#[test]
fn a_node_that_finds_no_room_when_it_starts_says_so_and_starts_when_there_is_some() {
    let Some(volume) = Volume::mount() else {
        eprintln!("skipped: this user may not mount a tmpfs");
        return;
    };
    let data = volume.path().join("n1");
    let arguments = node_arguments("g", "n1", &data, free_port());
    let node = Node::start(&arguments);
    node.wait_for(&["is master"]);
    node.signal("-INT");
    let (status, errors) = node.end();
    assert!(status.success(), "{errors}");
    volume.leave(0);
    assert_refused(&arguments, 1, &["No space left on device", "make room"]);
    volume.clear();
    Node::start(&arguments).wait_for(&["is master"]);
}
