//! The program as users run it.

use std::io::Write;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

fn sim(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_steadfast-sim"));
    command
        .args(arguments)
        .output()
        .expect("the program starts")
}

fn last_line(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().last().expect("there is a line");
    serde_json::from_str(line).expect("the last line is JSON")
}

#[test]
fn a_budget_ends_with_one_line_and_checks_that_seeds_repeat() {
    let output = sim(&["--seeds", "4", "--twice-every", "2", "--safety-ms", "2000"]);
    assert!(output.status.success(), "{output:?}");
    let line = last_line(&output);
    assert_eq!(line["seeds"], 4);
    assert_eq!(line["failed"], serde_json::json!([]));
    assert_eq!(line["determinism"], "checked 2 seeds twice");
    assert!(line["transactions"].as_u64() > Some(50), "{line}");
}

#[test]
fn keys_end_neither_early_nor_late_through_faults_with_clocks_of_different_speed() {
    let output = sim(&[
        "--seeds",
        "6",
        "--lifetimes",
        "--twice-every",
        "6",
        "--safety-ms",
        "8000",
    ]);
    assert!(output.status.success(), "{output:?}");
    let line = last_line(&output);
    assert_eq!(line["failed"], serde_json::json!([]));
    assert!(line["faults"]["key_ended"].as_u64() > Some(200), "{line}");
}

#[test]
fn writes_at_every_node_have_one_order_through_faults() {
    let output = sim(&[
        "--seeds",
        "6",
        "--anywhere",
        "--twice-every",
        "6",
        "--safety-ms",
        "5000",
    ]);
    assert!(output.status.success(), "{output:?}");
    let line = last_line(&output);
    assert_eq!(line["failed"], serde_json::json!([]));
    assert!(line["transactions"].as_u64() > Some(50), "{line}");
}

#[test]
fn a_seed_tells_its_story() {
    let output = sim(&["--seed", "3", "--safety-ms", "4000"]);
    let story = String::from_utf8_lossy(&output.stdout);
    for part in ["n1 is open", ": acknowledged ", "the faults end"] {
        assert!(story.contains(part), "no {part:?} in:\n{story}");
    }
}

/// A budget's processes have run other seeds before; a replay has not.
#[test]
fn a_seed_has_the_same_trace_in_a_budget_and_alone() {
    let mut worker = Command::new(env!("CARGO_BIN_EXE_steadfast-sim"))
        .arg("--worker")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut requests = worker.stdin.take().expect("it is piped");
    for seed in [5, 3] {
        writeln!(requests, "--seed {seed} --safety-ms 3000").expect("it reads");
    }
    drop(requests);
    let output = worker.wait_with_output().expect("it ends");
    let text = String::from_utf8_lossy(&output.stdout);
    let last = text.lines().rfind(|line| line.starts_with('{'));
    let in_budget: Value = serde_json::from_str(last.expect("two reports")).expect("is JSON");
    let alone = last_line(&sim(&["--seed", "3", "--safety-ms", "3000"]));
    assert_eq!(in_budget["seed"], 3);
    assert_eq!(in_budget["hash"], alone["hash"]);
}

#[test]
fn an_unknown_fault_is_refused_with_the_names_of_all() {
    let output = sim(&["--seed", "3", "--without", "gremlins"]);
    assert_eq!(output.status.code(), Some(2));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(
        error.contains("gremlins") && error.contains("power_cut"),
        "{error}"
    );
}
