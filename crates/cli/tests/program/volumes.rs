//! Data directories that are volumes, contain volumes, or belong to another user.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, lchown};
use std::path::{Path, PathBuf};

use steadfast::Role;
use tempfile::TempDir;

use super::full_disk::Volume;
use super::{Group, Node, assert_refused, free_port, node_arguments, run_to, write_everywhere};

/// A user and a group that own nothing else.
const SERVICE: (u32, u32) = (12_345, 23_456);

fn everything_in(dir: &Path) -> Vec<PathBuf> {
    let mut found = vec![dir.to_owned()];
    if dir.is_dir() {
        for entry in fs::read_dir(dir).expect("a directory") {
            found.extend(everything_in(&entry.expect("an entry").path()));
        }
    }
    found
}

/// Everything in a directory, with file contents.
pub(super) fn contents_of(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let all = everything_in(dir).into_iter();
    all.map(|path| {
        let held = fs::read(&path).unwrap_or_default();
        (path, held)
    })
    .collect()
}

/// Gives a whole directory to the service user. Returns whether this user may do so.
pub(super) fn give_to_service(dir: &Path) -> bool {
    let give = |path: &PathBuf| lchown(path, Some(SERVICE.0), Some(SERVICE.1)).is_ok();
    let may = everything_in(dir).iter().all(give);
    if !may {
        eprintln!("not shown: this user may not give files away");
    }
    may
}

/// Everything in the directory belongs to that user.
pub(super) fn assert_of_service(dir: &Path) {
    for path in everything_in(dir) {
        let of = fs::symlink_metadata(&path).expect("it is there");
        assert_eq!((of.uid(), of.gid()), SERVICE, "{}", path.display());
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("text")
}

fn restore<'a>(backup: &'a Path, data_dir: &'a Path, listen: &'a str) -> Vec<&'a str> {
    let mut words = vec!["backup", "restore", text(backup)];
    words.extend(["--data-dir", text(data_dir), "--node", "r1"]);
    words.extend(["--listen", listen]);
    words
}

#[test]
fn a_restore_onto_a_full_volume_asks_for_room_and_leaves_nothing() {
    let dir = TempDir::new().expect("a directory");
    let port = free_port();
    let node = Node::start(&node_arguments("g", "n1", &dir.path().join("n1"), port));
    node.wait_for(&["is master"]);
    let backup = dir.path().join("backup");
    let ask = format!("127.0.0.1:{port}");
    run_to(0, &["backup", "create", text(&backup), "--ask", &ask]);
    let Some(volume) = Volume::mount() else {
        eprintln!("skipped: this user may not mount a tmpfs");
        return;
    };
    volume.leave(2 << 20);
    let data_dir = volume.path().join("data");
    let listen = format!("127.0.0.1:{}", free_port());
    let (_, errors) = run_to(1, &restore(&backup, &data_dir, &listen));
    for word in ["there is no new group", "to do: make room"] {
        assert!(errors.contains(word), "{word:?} is not in: {errors}");
    }
    assert_eq!(everything_in(&data_dir), [data_dir]);
}

#[test]
fn a_backup_is_restored_onto_the_root_of_a_volume_with_another_one_for_its_log() {
    let dir = TempDir::new().expect("a directory");
    let port = free_port();
    let node = Node::start(&node_arguments("g", "n1", &dir.path().join("n1"), port));
    node.wait_for(&["is master"]);
    let backup = dir.path().join("backup");
    let ask = format!("127.0.0.1:{port}");
    run_to(0, &["backup", "create", text(&backup), "--ask", &ask]);
    drop(node);

    let Some(volume) = Volume::mount() else {
        eprintln!("skipped: this user may not mount a tmpfs");
        return;
    };
    let root = volume.path();
    fs::create_dir(root.join("lost+found")).expect("made");
    fs::create_dir(root.join("log")).expect("made");
    let log = Volume::mount_at(&root.join("log")).expect("it could before");
    fs::create_dir(log.path().join("lost+found")).expect("made");
    assert!(give_to_service(root), "whoever may mount may do that");
    let notes = log.path().join("notes");
    fs::write(&notes, "").expect("written");
    let listen = format!("127.0.0.1:{}", free_port());
    let restore = restore(&backup, root, &listen);
    let (_, errors) = run_to(1, &restore);
    assert!(errors.contains("not empty"), "{errors}");
    fs::remove_file(&notes).expect("removed");
    run_to(0, &restore);
    assert!(!root.join(".restoring").exists());
    assert!(
        everything_in(log.path())
            .iter()
            .any(|path| path.extension().is_some_and(|e| e == "log")),
        "the log is on its own volume"
    );
    assert_of_service(root);
    let port = listen.rsplit(':').next().and_then(|port| port.parse().ok());
    let restored = Node::start(&node_arguments("g", "r1", root, port.expect("a port")));
    restored.wait_for(&["is master"]);
    drop(restored);
    drop(log);
}

#[test]
fn a_log_on_a_volume_of_its_own_works_and_its_room_is_watched() {
    let Some(volume) = Volume::mount() else {
        eprintln!("skipped: this user may not mount a tmpfs");
        return;
    };
    let mut group = Group::unstarted();
    // One by a mount, one by a link.
    fs::create_dir(volume.path().join("lost+found")).expect("made");
    let linked = Volume::mount().expect("it could before");
    for at in [1, 2] {
        fs::create_dir_all(group.data_dir(at)).expect("made");
    }
    let log = group.data_dir(1).join("log");
    fs::create_dir(&log).expect("made");
    let mounted = volume.bind(&log);
    std::os::unix::fs::symlink(linked.path(), group.data_dir(2).join("log")).expect("linked");
    let mut nodes = Vec::new();
    for at in [1, 2] {
        let mut arguments = group.arguments(at);
        for limit in [
            "log_segment_bytes=4194304",
            "disk_free_warn_bytes=209715200",
            "disk_free_read_only_bytes=157286400",
        ] {
            arguments.extend(["--set".to_owned(), limit.to_owned()]);
        }
        nodes.push(Node::start(&arguments));
    }
    let env = group.embed();
    Group::make_master(&env);
    let _token = write_everywhere(&env, |txn| txn.database("d")?.put("k", "v"));
    group.status_until(0);
    for (volume, name) in [(&volume, "n2"), (&linked, "n3")] {
        volume.leave(100 << 20);
        let status = group.status_until(3);
        for word in ["read-only", name] {
            assert!(status.contains(word), "{word:?} is not in: {status}");
        }
        volume.clear();
        group.status_until(0);
    }
    assert_eq!(env.state().role, Role::Master);
    env.close().expect("closed");
    group.nodes.clear();
    drop(nodes);
    drop(mounted);
}

#[test]
fn a_node_that_is_started_as_root_leaves_nothing_that_its_user_cannot_open() {
    let dir = TempDir::new().expect("a directory");
    let data = dir.path().join("data");
    fs::create_dir(&data).expect("made");
    if !give_to_service(&data) {
        return;
    }
    for _ in 0..2 {
        let node = Node::start(&node_arguments("g", "n1", &data, free_port()));
        node.wait_for(&["is master"]);
        node.signal("-INT");
        let (status, errors) = node.end();
        assert!(status.success(), "{errors}");
        assert_of_service(&data);
    }
}

#[test]
fn no_group_is_founded_where_a_restore_was_cut_off() {
    let dir = TempDir::new().expect("a directory");
    fs::create_dir(dir.path().join(".restoring")).expect("made");
    let arguments = node_arguments("g", "n1", dir.path(), free_port());
    assert_refused(
        &arguments,
        1,
        &["was interrupted", "steadfast backup restore"],
    );
    assert!(!dir.path().join("identity").exists());
}
