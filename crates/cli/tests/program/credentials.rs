//! `init` and `certs`: what they make, what they show, and what they refuse.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;
use steadfast::credentials::{Authority, read};
use steadfast::{Access, Holder};
use tempfile::TempDir;

use super::{run, run_to};

const DAY: Duration = Duration::from_hours(24);

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(since.expect("after 1970").as_millis()).expect("a number")
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// Makes the credentials of a group of two; returns where they are, and what the program said.
fn init(root: &TempDir) -> (String, String) {
    let out = text(&root.path().join("secrets"));
    // Not in the order of the names, which gives the ids.
    let nodes = ["n2=10.0.0.2:7400", "n1=10.0.0.1:7400"];
    let words = ["init", "--group", "orders", "--out", &out];
    let (said, _) = run_to(0, &[&words[..], &nodes].concat());
    (out, said)
}

/// Runs a verb that must fail with `code`, and say what happened, what it means and what to do.
fn refused(code: i32, arguments: &[&str], words: &[&str]) {
    let (out, errors) = run_to(code, arguments);
    assert_eq!(out, "");
    for word in words.iter().chain(&["error: ", "data: ", "to do: "]) {
        assert!(errors.contains(word), "{word:?} is not in: {errors}");
    }
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).expect("a directory");
    let mut names: Vec<_> = entries
        .map(|entry| {
            entry
                .expect("read")
                .file_name()
                .into_string()
                .expect("text")
        })
        .collect();
    names.sort();
    names
}

#[test]
fn a_group_gets_credentials_with_the_ids_that_its_nodes_will_have_and_is_told_how_to_start() {
    let root = TempDir::new().expect("a directory");
    let (out, said) = init(&root);
    let dir = Path::new(&out);
    assert_eq!(names(dir), ["admin", "authority", "n1", "n2"]);
    for (name, identity) in [
        ("n1", "steadfast://orders/node/1"),
        ("n2", "steadfast://orders/node/2"),
        ("admin", "steadfast://orders/admin/admin"),
    ] {
        let credentials = read(&dir.join(name), now_ms()).expect("usable");
        assert_eq!(credentials.identity(), identity);
    }
    for words in [
        "n1 to /etc/steadfast/orders/n1 on 10.0.0.1",
        "steadfast start --group orders --node n2 --data-dir /var/lib/steadfast/orders/n2",
        "--listen 10.0.0.2:7400 --credentials /etc/steadfast/orders/n2",
        "--bootstrap n1=10.0.0.1:7400,n2=10.0.0.2:7400",
        "keep a copy offline",
    ] {
        assert!(said.contains(words), "{words:?} is not in: {said}");
    }
    assert!(!said.contains("PRIVATE"));
}

#[test]
fn init_refuses_what_could_not_form_a_group_and_leaves_nothing_behind() {
    let root = TempDir::new().expect("a directory");
    let out = text(&root.path().join("secrets"));
    let init = |group, nodes: &[&str], word| {
        let words = ["init", "--group", group, "--out", &out];
        refused(2, &[&words[..], nodes].concat(), &[word]);
    };
    init("a b", &["n1=h:1"], "\"a b\"");
    init("g", &["n1=h:1", "n1=h:2"], "\"n1\" is listed twice");
    init("g", &["n1=h:1", "n2=h:1"], "\"h:1\" is listed twice");
    init("g", &["n1"], "name=host:port");
    init("g", &["n1=h"], "host:port");
    init("g", &["../n1=h:1"], "\"../n1\"");
    init("g", &["n1=0.0.0.0:1"], "every address");
    for reserved in ["admin=h:1", "authority=h:1", "..=h:1"] {
        init("g", &[reserved], "directory of its own");
    }
    let none = run(&["init", "--group", "g", "--out", &out]);
    assert_eq!(none.status.code(), Some(2));
    assert_eq!(names(root.path()), Vec::<String>::new());
}

#[test]
fn nothing_that_exists_is_overwritten() {
    let root = TempDir::new().expect("a directory");
    let (out, _) = init(&root);
    let key = Path::new(&out).join("n1/key.pem");
    let before = fs::read(&key).expect("there");
    let again = [
        "init",
        "--group",
        "orders",
        "--out",
        &out,
        "n1=10.0.0.1:7400",
    ];
    refused(1, &again, &["secrets is not empty", "--out"]);
    let (authority, n1) = (format!("{out}/authority"), format!("{out}/n1"));
    let issue = [
        "certs",
        "issue",
        "--authority",
        &authority,
        "--role",
        "node",
    ];
    let issue = [&issue[..], &["--name", "1", "--out", &n1]].concat();
    refused(1, &issue, &["n1 is not empty", "--out"]);
    assert_eq!(fs::read(&key).expect("there"), before);
    assert_eq!(names(root.path()), ["secrets"]);
}

#[test]
fn credentials_are_issued_to_each_role_and_shown_with_their_end() {
    let root = TempDir::new().expect("a directory");
    let (out, _) = init(&root);
    let authority = format!("{out}/authority");
    for role in ["client", "monitor", "subscriber", "admin", "node"] {
        let to = format!("{out}/{role}-7");
        let words = ["certs", "issue", "--authority", &authority, "--role", role];
        let words = [&words[..], &["--name", "7", "--out", &to, "--days", "90"]].concat();
        let (said, _) = run_to(0, &words);
        let identity = format!("steadfast://orders/{role}/7");
        assert!(said.contains(&identity), "{said}");
        let credentials = read(Path::new(&to), now_ms()).expect("usable");
        assert_eq!(credentials.identity(), identity);
    }
    let (node, n1) = (format!("{out}/node-7"), format!("{out}/n1"));
    let (table, _) = run_to(0, &["certs", "show", &node, &n1, &authority]);
    for word in [
        "steadfast://orders/node/7",
        "authority of orders",
        "89",
        "364",
    ] {
        assert!(table.contains(word), "{word:?} is not in: {table}");
    }
    let (json, _) = run_to(0, &["certs", "show", "-o", "json", &node, &authority]);
    let json: Value = serde_json::from_str(&json).expect("JSON");
    let [node, authority] = [&json["credentials"][0], &json["credentials"][1]];
    assert_eq!(
        (&node["role"], &node["name"]),
        (&"node".into(), &"7".into())
    );
    assert_eq!(node["days_left"], 89);
    assert_eq!(node["key_is_here"], true);
    assert_eq!(node["problem"], Value::Null);
    let fingerprint = authority["fingerprint"].as_str().expect("a text");
    assert_eq!(node["authorities"][0]["fingerprint"], fingerprint);
    assert!(table.contains(fingerprint), "{table}");
}

#[test]
fn issue_refuses_typos_other_authorities_and_a_key_that_others_can_read() {
    let root = TempDir::new().expect("a directory");
    let (out, _) = init(&root);
    let authority = format!("{out}/authority");
    let to = text(&root.path().join("new"));
    let issue = |authority: &str, role: &str, name: &str, more: &[&str]| {
        let words = ["certs", "issue", "--authority", authority, "--role", role];
        let words = [&words[..], &["--name", name, "--out", &to], more].concat();
        words
            .iter()
            .map(|word| (*word).to_owned())
            .collect::<Vec<_>>()
    };
    let refuse = |code, words: Vec<String>, said: &[&str]| {
        let words: Vec<_> = words.iter().map(String::as_str).collect();
        let (_, errors) = run_to(code, &words);
        for word in said {
            assert!(errors.contains(word), "{word:?} is not in: {errors}");
        }
    };
    let roles = [
        "possible values",
        "client, monitor, subscriber, admin, node",
    ];
    refuse(2, issue(&authority, "amdin", "a", &[]), &roles);
    refuse(
        2,
        issue(&authority, "node", "n4", &[]),
        &["named by its id", "--name"],
    );
    refuse(
        2,
        issue(&authority, "admin", "a b", &[]),
        &["\"a b\"", "--name"],
    );
    refuse(
        2,
        issue(&authority, "admin", "a", &["--days", "0"]),
        &["--days"],
    );
    let too_long = ["--days", "3652"];
    fs::create_dir(root.path().join("empty")).expect("made");
    let empty = text(&root.path().join("empty"));
    refuse(
        1,
        issue(&empty, "admin", "a", &[]),
        &["authority.pem is missing"],
    );
    let admin = format!("{out}/admin");
    refuse(
        1,
        issue(&admin, "admin", "a", &[]),
        &["authority-key.pem is missing"],
    );
    // By now it has fewer than that.
    refuse(
        1,
        issue(&authority, "admin", "a", &too_long),
        &["longer than its authority"],
    );

    let key = Path::new(&authority).join("authority-key.pem");
    fs::set_permissions(&key, Permissions::from_mode(0o640)).expect("set");
    let said = ["mode 0640", "chmod 600", "authority-key.pem"];
    refuse(1, issue(&authority, "admin", "a", &[]), &said);
    assert!(!Path::new(&to).exists());
}

/// Writes credentials that are valid for a day, from so long ago on.
fn write_issued(dir: &Path, ago: Duration) {
    let issued_ms = now_ms() - u64::try_from(ago.as_millis()).expect("a number");
    let authority = Authority::create("orders", issued_ms).expect("made");
    let holder = Holder::new("orders", Access::Monitor, "m").expect("valid");
    let issued = authority.issue(&holder, DAY, issued_ms).expect("issued");
    issued.write(dir).expect("written");
}

#[test]
fn show_tells_what_ends_soon_from_what_has_ended_and_from_what_cannot_be_used() {
    let root = TempDir::new().expect("a directory");
    let (out, _) = init(&root);
    let place = |name: &str| text(&root.path().join(name));
    let (soon, old, none) = (place("soon"), place("old"), place("none"));
    write_issued(Path::new(&soon), Duration::ZERO);
    write_issued(Path::new(&old), 3 * DAY);
    let n1 = format!("{out}/n1");

    let (said, _) = run_to(3, &["certs", "show", &n1, &soon]);
    assert!(said.contains("soon expires within a day"), "{said}");
    let (said, _) = run_to(1, &["certs", "show", &old, &soon, &n1]);
    for word in ["expired on", "certs issue", "steadfast://orders/node/1"] {
        assert!(said.contains(word), "{word:?} is not in: {said}");
    }
    let (said, _) = run_to(1, &["certs", "show", &none, &n1]);
    assert!(said.contains("certificate.pem is missing"), "{said}");
    let (json, _) = run_to(1, &["certs", "show", &old, "-o", "json"]);
    let json: Value = serde_json::from_str(&json).expect("JSON");
    let problem = json["credentials"][0]["problem"].as_str();
    assert!(
        problem.is_some_and(|problem| problem.contains("expired")),
        "{json}"
    );

    let key = Path::new(&n1).join("key.pem");
    fs::set_permissions(&key, Permissions::from_mode(0o644)).expect("set");
    let (said, _) = run_to(1, &["certs", "show", &n1]);
    assert!(said.contains("chmod 600"), "{said}");
    // A certificate alone has no key to be judged by.
    let certificate = format!("{n1}/certificate.pem");
    run_to(0, &["certs", "show", &certificate]);
    assert!(!said.contains("PRIVATE"));
}
