//! Pure functions on bytes: what a stored part must pass through before it means something.
//!
//! Nothing here does I/O or knows where the bytes came from.

pub mod aead;
pub mod percent;
