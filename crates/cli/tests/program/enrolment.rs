//! Credentials that the group gives, as operators meet them: a new node with nothing but a token,
//! certificates that renew themselves, another authority, and an expired certificate.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use steadfast::credentials::{Authority, describe};
use steadfast::{Access, Holder};
use tempfile::TempDir;

use super::tls::Secured;
use super::{Node, free_port, node_arguments, run_to, steadfast};

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(since.expect("after 1970").as_millis()).expect("a number")
}

/// What a node says that does not start.
fn refused_start(code: i32, arguments: &[String]) -> String {
    let outcome = steadfast().arg("start").args(arguments).output();
    let outcome = outcome.expect("it runs");
    assert_eq!(outcome.status.code(), Some(code));
    let errors = String::from_utf8_lossy(&outcome.stderr).into_owned();
    for part in ["error: ", "data: ", "to do: "] {
        assert!(errors.contains(part), "{part:?} is not in: {errors}");
    }
    errors
}

#[test]
fn a_new_node_needs_nothing_but_a_token_and_keeps_what_it_got() {
    let secured = Secured::start();
    let root = secured.group.dir.path();
    let token = root.join("token");
    fs::write(&token, secured.run_to(0, &["token", "create"])).expect("written");
    let of = |name: &str, port: u16| {
        let mut arguments = node_arguments("g", name, &root.join(name), port);
        let join = format!("@{}", token.display());
        arguments.extend(["--join".to_owned(), join]);
        arguments
    };
    let port = free_port();
    let fourth = Node::start(&of("n4", port));
    fourth.wait_ready();
    let told = refused_start(1, &of("n5", free_port()));
    assert!(told.contains("works once"), "{told}");

    // A used token is worth nothing, and is not asked for any more.
    fs::remove_file(&token).expect("removed");
    fourth.signal("-TERM");
    assert!(fourth.end().0.success());
    let fourth = Node::start(&of("n4", port));
    // The group signs for it what it cannot sign itself.
    fourth.wait_for(&["was renewed"]);
    fourth.wait_for(&["are in use"]);
    let own = describe(&root.join("n4/credentials")).expect("credentials");
    assert_eq!(own.subject.to_string(), "steadfast://g/node/4");
    secured.wait_whole(4);
    // On its machine, verbs find its credentials by its data directory.
    let mut ask = steadfast();
    ask.args(["status", "--ask", &secured.address(0)]);
    ask.env_remove("STEADFAST_CREDENTIALS");
    let own = ask
        .env("STEADFAST_DATA_DIR", root.join("n4"))
        .output()
        .expect("it runs");
    assert!(
        own.status.success(),
        "{}",
        String::from_utf8_lossy(&own.stderr)
    );
    let told = refused_start(2, &of("n6", free_port()));
    assert!(told.contains("cannot be read from"), "{told}");
}

/// Gives the node in a directory of credentials a certificate that is valid until `end`, seconds
/// from now.
fn reissue(secured: &Secured, name: &str, id: &str, end: i64) {
    let authority = Path::new(&secured.of("authority")).to_owned();
    let authority = Authority::read(&authority).expect("readable");
    let holder = Holder::new("g", Access::Node, id).expect("a holder");
    let begin = if end < 0 { end - 60 } else { 0 };
    let begin_ms = now_ms().saturating_add_signed(begin * 1_000);
    let valid_for = Duration::from_secs(u64::try_from(end - begin).expect("later"));
    let issued = authority
        .issue(&holder, valid_for, begin_ms)
        .expect("signed");
    let dir = secured.of(name);
    fs::write(format!("{dir}/key.pem"), &issued.key).expect("written");
    fs::write(format!("{dir}/certificate.pem"), &issued.certificate).expect("written");
}

#[test]
fn a_certificate_that_ends_soon_renews_itself_and_one_that_has_ended_is_renewed_by_a_verb() {
    let mut secured = Secured::prepared();
    reissue(&secured, "n1", "1", 120);
    reissue(&secured, "n2", "2", -5);
    let told = refused_start(1, &secured.arguments(1));
    assert!(told.contains("expired"), "{told}");
    assert!(told.contains("steadfast certs renew"), "{told}");
    let (authority, n2) = (secured.of("authority"), secured.of("n2"));
    run_to(0, &["certs", "renew", "--authority", &authority, &n2]);
    for at in 0..3 {
        let node = Node::start(&secured.arguments(at));
        secured.group.nodes[at] = Some(node);
    }
    let first = secured.group.nodes[0].as_ref().expect("it runs");
    first.wait_for(&["was renewed"]);
    first.wait_for(&["are in use"]);
    let renewed = describe(Path::new(&secured.of("n1"))).expect("credentials");
    let days_left = (renewed.not_after_ms - now_ms()) / (24 * 60 * 60 * 1_000);
    assert!(days_left > 300, "{days_left}");
    secured.wait_whole(3);
}

#[test]
fn the_authority_changes_in_three_steps_while_all_goes_on() {
    let mut secured = Secured::start();
    let old_admin = secured.issue("admin", "old");
    let directories = ["n1", "n2", "n3", "admin"].map(|name| secured.of(name));
    let authority = secured.of("authority");
    for step in 1..=3 {
        let number = step.to_string();
        let mut rotate = vec![
            "certs",
            "rotate-ca",
            "--step",
            &number,
            "--authority",
            &authority,
        ];
        rotate.extend(directories.iter().map(String::as_str));
        let (said, _) = run_to(0, &rotate);
        assert!(said.contains(&format!("step {step} of 3")), "{said}");
        for node in secured.group.nodes.iter().flatten() {
            node.wait_for(&["are in use"]);
        }
        // New connections: those of verbs, and of a node that starts again.
        secured.wait_whole(3);
        let node = secured.group.nodes[step - 1].take().expect("it runs");
        node.signal("-TERM");
        assert!(node.end().0.success());
        let node = Node::start(&secured.arguments(step - 1));
        node.wait_ready();
        secured.group.nodes[step - 1] = Some(node);
        secured.wait_whole(3);
    }
    let address = secured.address(0);
    let ask = ["status", "--ask", &address, "--credentials", &old_admin];
    let (_, errors) = run_to(1, &ask);
    assert!(errors.contains("give credentials"), "{errors}");
}

#[test]
fn a_group_whose_authority_is_offline_says_how_a_new_node_gets_its_credentials() {
    let root = TempDir::new().expect("a directory");
    let out = root.path().join("secrets").display().to_string();
    let (address, port) = {
        let port = free_port();
        (format!("127.0.0.1:{port}"), port)
    };
    let list = format!("n1={address}");
    let init = [
        "init",
        "--group",
        "g",
        "--out",
        &out,
        "--offline-authority",
        &list,
    ];
    let (said, _) = run_to(0, &init);
    assert!(said.contains("offline: whoever has its key"), "{said}");
    let mut arguments = node_arguments("g", "n1", &root.path().join("n1"), port);
    arguments.extend(["--credentials".to_owned(), format!("{out}/n1")]);
    let node = Node::start(&arguments);
    node.wait_ready();
    let admin = format!("{out}/admin");
    let create = [
        "token",
        "create",
        "--ask",
        &address,
        "--credentials",
        &admin,
    ];
    let (_, errors) = run_to(1, &create);
    assert!(errors.contains("does not have the key"), "{errors}");
    assert!(errors.contains("steadfast certs issue"), "{errors}");
    let (token, _) = run_to(0, &[&create[..], &["--without-credentials"]].concat());
    assert!(token.starts_with("steadfast-join/1/"), "{token}");
}

#[test]
fn a_change_of_the_authority_that_was_interrupted_is_finished_before_the_next_step() {
    let root = TempDir::new().expect("a directory");
    let out = root.path().join("secrets").display().to_string();
    let nodes = ["n1=127.0.0.1:1", "n2=127.0.0.1:2"];
    let init = ["init", "--group", "g", "--out", &out];
    run_to(0, &[&init[..], &nodes].concat());
    let of = |name: &str| format!("{out}/{name}");
    let (authority, n1, n2) = (of("authority"), of("n1"), of("n2"));
    let rotate = |code: i32, step: &str, directories: &[&str]| {
        let rotate = [
            "certs",
            "rotate-ca",
            "--step",
            step,
            "--authority",
            &authority,
        ];
        let (said, errors) = run_to(code, &[&rotate[..], directories].concat());
        said + &errors
    };
    let believed = |name: &str| {
        let described = describe(Path::new(&of(name))).expect("credentials");
        described.authorities.len()
    };
    let copy = root.path().join("copy");
    let copied = Command::new("cp")
        .args(["-a", &authority])
        .arg(&copy)
        .status();
    assert!(copied.expect("cp runs").success());
    assert!(rotate(2, "2", &[&n1, &n2]).contains("has taken step 0"));
    assert!(rotate(2, "1", &[&n1, &authority]).contains("authority of g"));
    for (step, believes) in [("1", 2), ("2", 2), ("3", 1)] {
        // As if it had ended after the first directory.
        rotate(0, step, &[&n1]);
        let next = match step {
            "1" => "2",
            _ => "3",
        };
        if step != "3" {
            assert!(rotate(1, next, &[&n1, &n2]).contains("n2 have not come as far"));
        }
        for _ in 0..2 {
            let said = rotate(0, step, &[&n1, &n2]);
            assert!(said.contains(&format!("step {step} of 3")), "{said}");
        }
        assert_eq!([believed("n1"), believed("n2")], [believes; 2]);
        let shown = run_to(0, &["certs", "show", &n1, &n2]).0;
        let mut rows = shown.lines().skip(1).map(|line| {
            let (_, believes) = line.split_once("here").expect("a key");
            believes.trim().to_owned()
        });
        assert_eq!(rows.next(), rows.next(), "{shown}");
    }
    // A copy from before knows nothing of the authority of today.
    let copy = copy.display().to_string();
    let (_, errors) = run_to(1, &["certs", "renew", "--authority", &copy, &n1]);
    assert!(errors.contains("a copy of an earlier one"), "{errors}");
    assert_eq!(believed("n1"), 1);
}

#[test]
fn a_node_that_was_to_join_founds_no_group_when_its_token_is_gone() {
    let root = TempDir::new().expect("a directory");
    let dir = root.path().join("n4");
    let with = |more: &[&str]| {
        let mut arguments = node_arguments("g", "n4", &dir, free_port());
        arguments.extend(more.iter().map(|word| (*word).to_owned()));
        arguments
    };
    // Nobody lets it in.
    let body = "steadfast-join/1/g/f9858012-f9cf-4200-91e8-8ecb6b6c023d/electable/1/127.0.0.1:1";
    let token = format!("{body}/{:08x}", crc32c::crc32c(body.as_bytes()));
    let node = Node::start(&with(&["--join", &token]));
    node.wait_for(&["is waiting for group"]);
    node.signal("-TERM");
    assert!(node.end().0.success());
    for (more, words) in [
        (&[][..], "begun with a join token"),
        (
            &["--bootstrap", "n4=127.0.0.1:1"],
            "begun with a join token",
        ),
        (&["--join", "@nowhere"], "cannot be read from nowhere"),
    ] {
        let told = refused_start(2, &with(more));
        assert!(told.contains(words), "{words:?} is not in: {told}");
    }
    // With the token it goes on.
    Node::start(&with(&["--join", &token])).wait_for(&["is waiting for group"]);

    // The same before it has asked to be let in: it has its credentials, and nothing else.
    let (dir, out) = (root.path().join("n5"), root.path().join("secrets"));
    let init = ["init", "--group", "g", "--out", &out.display().to_string()];
    run_to(0, &[&init[..], &["n1=127.0.0.1:1"]].concat());
    fs::create_dir(&dir).expect("made");
    fs::rename(out.join("n1"), dir.join("credentials")).expect("renamed");
    let told = refused_start(2, &node_arguments("g", "n5", &dir, free_port()));
    assert!(told.contains("token that they came with"), "{told}");
}
