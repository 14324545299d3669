//! Physical volumes.

use std::sync::Arc;

use crate::io::ReadAt;

/// A volume with an LVM label.
#[derive(Clone)]
pub struct PhysicalVolume {
    /// Where it is, for people (`xvdb`, `xvda/part2`).
    pub place: String,
    /// Its bytes.
    pub volume: Arc<dyn ReadAt>,
}
