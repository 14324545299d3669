#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| brfs_fuzz::bodies::btrfs_extent(data));
