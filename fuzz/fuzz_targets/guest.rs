#![no_main]

libfuzzer_sys::fuzz_target!(init: brfs_fuzz::load_guest(), |data: &[u8]| brfs_fuzz::guest(data));
