#![no_main]
#![allow(dead_code)]

// The program is no library: these are its files, as they are.
#[path = "../../crates/cli/src/data_dir.rs"]
mod data_dir;
#[path = "../../crates/cli/src/backup/format.rs"]
mod format;
#[path = "../../crates/cli/src/backup/fuzzing.rs"]
mod fuzzing;

libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzzing::backup(input));
