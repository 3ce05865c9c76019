#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| steadfast::fuzzing::join_token(input));
