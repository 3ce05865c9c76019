#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| steadfast_server::fuzzing::server_scheme(input));
