//! Times, device numbers and types as Unix has them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::kind::NodeKind;

/// A time from seconds and nanoseconds since 1970, which may be negative.
pub fn time(seconds: i64, nanoseconds: u32) -> SystemTime {
    let fraction = Duration::from_nanos(u64::from(nanoseconds.min(999_999_999)));
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let base = if seconds >= 0 {
        UNIX_EPOCH.checked_add(whole)
    } else {
        UNIX_EPOCH.checked_sub(whole)
    };
    base.and_then(|base| base.checked_add(fraction))
        .unwrap_or(UNIX_EPOCH)
}

/// A device number in the kernel's encoding, `None` for one that it does not have.
pub fn device_number(major: u64, minor: u64) -> Option<u32> {
    let major = u32::try_from(major).ok().filter(|&major| major < 1 << 12)?;
    let minor = u32::try_from(minor).ok().filter(|&minor| minor < 1 << 20)?;
    Some((minor & 0xFF) | major << 8 | (minor & 0xF_FF00) << 12)
}

/// The node kind of a Unix mode.
pub fn kind_of_mode(mode: u32) -> Option<NodeKind> {
    Some(match mode & 0o170_000 {
        0o040_000 => NodeKind::Dir,
        0o100_000 => NodeKind::File,
        0o120_000 => NodeKind::Symlink,
        0o010_000 => NodeKind::Fifo,
        0o020_000 => NodeKind::CharDevice,
        0o060_000 => NodeKind::BlockDevice,
        0o140_000 => NodeKind::Socket,
        _ => return None,
    })
}
