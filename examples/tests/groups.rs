//! The examples of whole groups do what they say.

use std::process::Command;

fn output(program: &str) -> String {
    let output = Command::new(program).output().expect("started");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}{complaint}");
    said
}

#[test]
fn a_group_in_memory_is_written_to_and_loses_its_master() {
    let said = output(env!("CARGO_BIN_EXE_in_memory_group"));
    assert!(said.contains("three more apples, committed as "), "{said}");
    assert!(said.contains("is the master"), "{said}");
}

#[test]
fn typed_tables_keep_their_index_and_their_count() {
    let said = output(env!("CARGO_BIN_EXE_typed_tables"));
    assert!(
        said.contains("ada paid 650 cents; Some(2) teas were sold"),
        "{said}"
    );
    assert!(said.contains("refused: the unique index"), "{said}");
}

#[test]
fn three_processes_form_a_group_and_all_see_what_each_wrote() {
    let said = output(env!("CARGO_BIN_EXE_three_processes"));
    assert_eq!(said.matches("committed itself as").count(), 3, "{said}");
    assert_eq!(said.matches("reads 3 entries").count(), 3, "{said}");
}
