//! A backup, from the first row to the group restored from it.

use std::fs;
use std::path::{Path, PathBuf};

use std::time::{Duration, Instant};

use serde_json::Value;
use steadfast::{Bootstrap, ConsistencyPolicy, ReadError, RepConfig, ReplicatedEnvironment};
use tempfile::TempDir;

use super::{Group, Node, PATIENCE, free_port, node_arguments, run, run_to, write_everywhere};

fn text(path: &Path) -> &str {
    path.to_str().expect("text")
}

fn json(text: &str) -> Value {
    serde_json::from_str(text.lines().last().expect("a line")).expect("JSON")
}

/// Three databases, one of them empty, together larger than one chunk.
fn fill(env: &ReplicatedEnvironment) {
    for part in 0..20_u32 {
        let _token = write_everywhere(env, |txn| {
            let large = txn.database("large")?;
            (0..10_u32).try_for_each(|n| large.put((part * 10 + n).to_be_bytes(), vec![7; 100_000]))
        });
    }
    let written = env.write(|txn| {
        txn.database("small")?.put("", "an empty key")?;
        txn.database("small")?.put([0, 255], "")?;
        txn.database("empty")?.put("k", "v")
    });
    let _token = written.expect("committed");
    let _token = write_everywhere(env, |txn| txn.database("empty")?.delete("k"));
}

/// A group with data, of which this process is the master, and a backup of it.
struct Rig {
    dir: TempDir,
    group: Group,
    env: Option<ReplicatedEnvironment>,
    ask: String,
}

impl Rig {
    fn new() -> Self {
        let mut group = Group::unstarted();
        for at in [1, 2] {
            group.nodes[at] = Some(Node::start(&group.arguments(at)));
        }
        let env = group.embed();
        Group::make_master(&env);
        fill(&env);
        group.status_until(0);
        Self {
            dir: TempDir::new().expect("a directory"),
            ask: format!("127.0.0.1:{}", group.ports[0]),
            env: Some(env),
            group,
        }
    }

    fn backup_dir(&self) -> PathBuf {
        self.dir.path().join("backup")
    }

    /// Takes a backup; returns its report.
    fn create(&self) -> Value {
        let dir = self.backup_dir();
        let words = [
            "backup",
            "create",
            text(&dir),
            "--ask",
            &self.ask,
            "-o",
            "json",
        ];
        json(&run_to(0, &words).0)
    }
}

/// The restored node works, is another group, and admits others.
fn assert_works_as_another_group(dir: &Path, data_dir: &Path, listen: &str, made: &Value) {
    let port: u16 = listen
        .rsplit(':')
        .next()
        .expect("a port")
        .parse()
        .expect("a number");
    let node = Node::start(&node_arguments("again", "r1", data_dir, port));
    node.wait_for(&["is master"]);
    let (token, _) = run_to(0, &["token", "create", "--ask", listen]);
    assert!(
        !token.contains(
            made["token"]
                .as_str()
                .expect("text")
                .split('/')
                .next()
                .expect("text")
        )
    );
    let second = dir.join("second");
    let mut arguments = node_arguments("again", "r2", &second, free_port());
    arguments.extend(["--join".to_owned(), token.trim().to_owned()]);
    let joined = Node::start(&arguments);
    joined.wait_ready();
    let (same, _) = run_to(0, &["verify", "--ask", listen]);
    for word in ["r1, r2 hold the same", "large", "200", "empty"] {
        assert!(same.contains(word), "{word:?} is not in: {same}");
    }
    let copy = dir.join("copy");
    let again = [
        "backup",
        "create",
        text(&copy),
        "--ask",
        listen,
        "-o",
        "json",
    ];
    let again = json(&run_to(0, &again).0);
    assert_eq!(again["digest"], made["digest"], "{again}");
    assert_ne!(again["token"], made["token"], "{again}");
}

#[test]
fn a_backup_of_a_group_that_is_destroyed_makes_a_new_group_with_the_same_data() {
    let mut rig = Rig::new();
    let env = rig.env.take().expect("open");
    let (vlsn, digest) = env.digest().expect("a digest");
    let digest = format!("{digest:032x}");
    let made = rig.create();
    assert_eq!(made["vlsn"], vlsn.0, "{made}");
    assert_eq!(made["digest"], digest, "{made}");
    assert_eq!(made["rows"], 202, "{made}");
    assert!(made["chunks"].as_u64() > Some(1), "{made}");
    // Later writes are not in it.
    let _token = env
        .write(|txn| txn.database("small")?.put("late", ""))
        .expect("committed");
    env.close().expect("closed");
    rig.group.nodes.clear();
    for at in 0..3 {
        fs::remove_dir_all(rig.group.data_dir(at)).expect("removed");
    }

    let backup = rig.backup_dir();
    let (whole, _) = run_to(0, &["backup", "verify", text(&backup)]);
    for word in ["whole: group g", "3 databases, 202 rows", &digest] {
        assert!(whole.contains(word), "{word:?} is not in: {whole}");
    }
    let data_dir = rig.dir.path().join("restored");
    let listen = format!("127.0.0.1:{}", free_port());
    let restore = [
        "backup",
        "restore",
        text(&backup),
        "--data-dir",
        text(&data_dir),
        "--node",
        "r1",
        "--listen",
        &listen,
        "--group",
        "again",
    ];
    let (said, _) = run_to(0, &restore);
    assert!(
        said.contains("steadfast start --group again --node r1"),
        "{said}"
    );
    let (_, errors) = run_to(1, &restore);
    assert!(errors.contains("not empty"), "{errors}");

    assert_works_as_another_group(rig.dir.path(), &data_dir, &listen, &made);
}

#[test]
fn a_backup_says_on_whose_word_it_is_current_and_is_refused_where_there_is_none() {
    let mut rig = Rig::new();
    let dir = |name: &str| rig.dir.path().join(name);
    let (current, alone) = (dir("current"), dir("alone"));
    let (made, said) = run_to(0, &["backup", "create", text(&current), &rig.ask]);
    assert!(made.starts_with("backup: group g at VLSN"), "{made}");
    assert!(said.contains("its master n1"), "{said}");
    rig.group
        .nodes
        .iter_mut()
        .for_each(|node| drop(node.take()));
    rig.group.status_until(4);
    let refused = ["backup", "create", text(&alone), &rig.ask];
    let (_, said) = run_to(1, &refused);
    assert!(
        said.contains("no majority says that n1 is current"),
        "{said}"
    );
    assert!(said.contains("--stale"), "{said}");
    assert!(!alone.exists());
    let (made, said) = run_to(0, &[&refused[..], &["--stale"]].concat());
    assert!(made.starts_with("backup: group g at VLSN"), "{made}");
    assert!(
        said.contains("may lack what was acknowledged since"),
        "{said}"
    );
}

#[test]
fn a_backup_that_is_damaged_or_was_not_finished_is_found_and_not_restored() {
    let mut rig = Rig::new();
    rig.create();
    let backup = rig.backup_dir();
    let (_, errors) = run_to(1, &["backup", "create", text(&backup), "--ask", &rig.ask]);
    assert!(errors.contains("not empty"), "{errors}");
    let data_dir = rig.dir.path().join("restored");
    let refused = |words: &[&str]| {
        for verb in ["verify", "restore"] {
            let mut arguments = vec!["backup", verb, text(&backup)];
            if verb == "restore" {
                let data_dir = ["--data-dir", text(&data_dir), "--node", "n1"];
                arguments.extend(data_dir.iter().chain(&["--listen", "127.0.0.1:1"]));
            }
            let output = run(&arguments);
            let errors = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(1), "{errors}");
            for word in words {
                assert!(errors.contains(word), "{word:?} is not in: {errors}");
            }
            assert!(!data_dir.exists(), "nothing was made");
        }
    };
    let chunk = backup.join("chunk-000002");
    let whole = fs::read(&chunk).expect("read");
    let mut rotten = whole.clone();
    rotten[100_000] ^= 4;
    fs::write(&chunk, rotten).expect("written");
    refused(&[
        "chunk-000002",
        "checksum does not match",
        "cannot be restored",
    ]);
    fs::write(&chunk, &whole).expect("written");

    let manifest = backup.join("manifest.json");
    let list = fs::read_to_string(&manifest).expect("read");
    let changed = list.replace("\"rows\": 202", "\"rows\": 201");
    fs::write(&manifest, changed).expect("written");
    refused(&["manifest.json", "checksum does not match"]);
    fs::remove_file(&manifest).expect("removed");
    refused(&["no manifest.json", "not finished"]);
    fs::write(&manifest, list).expect("written");
    run_to(0, &["backup", "verify", text(&backup)]);
    fs::remove_file(&chunk).expect("removed");
    refused(&["chunk-000002"]);

    let env = rig.env.take().expect("open");
    let found = env.read(ConsistencyPolicy::Linearizable, |snapshot| {
        Ok::<_, ReadError>(snapshot.database("large")?.iter().count())
    });
    assert_eq!(found.expect("read"), 200, "the group goes on");
    env.close().expect("closed");
}

#[test]
fn keys_with_a_time_to_live_end_after_a_restore_too_and_not_early() {
    let hour = Duration::from_hours(1);
    let mut rig = Rig::new();
    let env = rig.env.take().expect("open");
    let _token = write_everywhere(&env, |txn| {
        let sessions = txn.database("small")?;
        sessions.put("plain", "v")?;
        sessions.put_with_ttl("short", "v", Duration::from_secs(30))?;
        (0..2_000_u32).try_for_each(|n| sessions.put_with_ttl(n.to_be_bytes(), "v", hour))
    });
    let began = Instant::now();
    let made = rig.create();
    let taken = began.elapsed();
    assert_eq!(made["rows"], 202 + 2_002, "{made}");
    env.close().expect("closed");
    run_to(0, &["backup", "verify", text(&rig.backup_dir())]);

    let (data_dir, listen) = (rig.dir.path().join("restored"), "127.0.0.1:0");
    let backup = rig.backup_dir();
    let restore = ["backup", "restore", text(&backup), "--data-dir"];
    let node = ["--node", "r1", "--listen", listen, "--group", "again"];
    run_to(0, &[&restore[..], &[text(&data_dir)], &node].concat());
    let config = RepConfig::builder("again", "r1")
        .data_dir(&data_dir)
        .listen(listen)
        .insecure_plaintext()
        .bootstrap(Bootstrap::single());
    let env = ReplicatedEnvironment::open(config.build().expect("valid")).expect("opened");
    env.wait_ready(PATIENCE).expect("ready");
    let left = |key: &[u8]| {
        let read = env.read(ConsistencyPolicy::Linearizable, |snapshot| {
            snapshot.database("small")?.expires_in(key)
        });
        read.expect("read")
    };
    for n in [0, 999, 1_999_u32] {
        let left = left(&n.to_be_bytes()).expect("a time to live");
        // None begins anew, and the time between backup and restore does not count.
        assert!(
            hour < left + taken + began.elapsed() && left <= hour,
            "{left:?}"
        );
    }
    assert_eq!(left(b"plain"), None);
    let has = |key: &str| {
        env.database("small")
            .get(ConsistencyPolicy::Linearizable, key)
    };
    while has("short").expect("read").is_some() {
        assert!(began.elapsed() < Duration::from_mins(2), "it does not end");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(has("plain").expect("read").is_some());
    env.close().expect("closed");
}
