//! Bounded memory for what was read: decoded blocks, tables, and the work in flight.
//!
//! Knows nothing of VHD: keys are `(image, block)` numbers, values are bytes. Everything here has a
//! fixed upper bound in bytes; nothing holds a lock while it reads or decodes.

mod ahead;
mod blocks;
mod flight;
mod gate;
mod meta;

pub use ahead::{AheadPool, AheadShare, AheadTicket};
pub use blocks::{Block, BlockCache, BlockCacheStats, BlockKey, Touch};
pub use flight::Flight;
pub use gate::Gate;
pub use meta::{MetaCache, MetaKey, MetaKind};
