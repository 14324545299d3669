//! Bounded memory for what was read: decoded blocks, tables, and the work in flight.
//!
//! Knows nothing of VHD: keys are `(image, block)` numbers, values are bytes. Everything here has a
//! fixed upper bound in bytes; nothing holds a lock while it reads or decodes.

mod ahead;
mod blocks;
mod semaphore;
mod single_flight;
mod table_pages;

pub use ahead::{AheadPool, AheadShare, AheadTicket};
pub use blocks::{Access, Block, BlockCache, BlockCacheStats, BlockKey};
pub use semaphore::Semaphore;
pub use single_flight::SingleFlight;
pub use table_pages::{TablePageCache, TablePageKey, TablePageKind};
