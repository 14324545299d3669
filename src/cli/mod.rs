//! The commands: composition of all modules, the only place besides `main` that may see everything.

pub mod info;
mod inspect;
pub mod ls;
pub mod output;
pub mod select;
