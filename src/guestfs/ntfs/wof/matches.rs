//! Matches: what was unpacked already, once more.

use super::error::damaged;
use crate::error::Result;

/// Copies a match to `done`, from `distance` bytes before; gives where it ends.
pub fn copy_match(out: &mut [u8], done: usize, distance: u32, len: usize) -> Result<usize> {
    let from = done
        .checked_sub(distance as usize)
        .filter(|from| *from < done && len <= out.len() - done)
        .ok_or_else(damaged)?;
    match distance as usize >= len {
        true => out.copy_within(from..from + len, done),
        // It goes on with what it has written itself.
        false => (0..len).for_each(|index| out[done + index] = out[from + index]),
    }
    Ok(done + len)
}
