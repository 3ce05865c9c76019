#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| steadfast::fuzzing::table_key(input));
