//! What several readers are made of: files by runs or by chunks, listings, what was read last, names in UTF-16,
//! Unix' times and types.

pub mod chunked;
pub mod listings;
pub mod recent;
pub mod run_file;
pub mod unix;
pub mod utf16;
