//! Matches: what was unpacked already, once more.

use super::error::damaged;
use crate::error::Result;

/// Copies a match to `done`, from `distance` bytes before; gives where it ends.
pub(super) fn copy_match(out: &mut [u8], done: usize, distance: u32, len: usize) -> Result<usize> {
    let from = done
        .checked_sub(distance as usize)
        .filter(|from| *from < done && len <= out.len() - done)
        .ok_or_else(damaged)?;
    match distance as usize >= len {
        true => out.copy_within(from..from + len, done),
        // It goes on with what it has written itself.
        false => {
            let (before, behind) = out.split_at_mut(done);
            let pattern = before.get(from..).unwrap_or_default();
            let to = behind.iter_mut().take(len);
            to.zip(pattern.iter().cycle())
                .for_each(|(to, byte)| *to = *byte);
        }
    }
    Ok(done + len)
}
