//! What several test programs and benchmarks share.
#![allow(dead_code, reason = "no program uses all of it")]

pub mod memtree;
pub mod mountpoint;
