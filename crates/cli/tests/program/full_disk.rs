//! A real volume that fills up under a real node, and gets room again.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use steadfast::Role;
use tempfile::TempDir;

use super::{Group, Node, run, write_everywhere};

const MIB: u64 = 1 << 20;

/// A small volume in memory; `None` where this user may not mount one.
struct Volume(TempDir);

impl Volume {
    fn mount() -> Option<Self> {
        let dir = TempDir::new().expect("a directory");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=400m", "steadfast-test"])
            .arg(dir.path())
            .output();
        mounted
            .is_ok_and(|output| output.status.success())
            .then_some(Self(dir))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn ballast(&self) -> PathBuf {
        self.path().join("ballast")
    }

    /// Gives back what was taken.
    fn clear(&self) {
        fs::remove_file(self.ballast()).expect("removed");
    }

    /// Takes all space but so much.
    fn leave(&self, free: u64) {
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
        Command::new("umount")
            .arg("-l")
            .arg(self.path())
            .status()
            .ok();
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
    for word in ["read-only", "MiB of its disk are free", "by themselves"] {
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
