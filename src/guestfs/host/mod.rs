//! What every reader runs in: the pool that opens and drops it, the guard around each call, the device it reads
//! from.

pub mod device;
pub mod guard;
pub mod pool;
