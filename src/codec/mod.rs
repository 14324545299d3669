//! Pure functions on bytes: what XO does to a part before it stores it, undone.
//!
//! No I/O happens here, and no output can be larger than the caller allows.

pub mod aead;
mod filter;
pub mod percent;

pub use filter::{Filter, MAX_FILTERS_JSON_BYTES};
