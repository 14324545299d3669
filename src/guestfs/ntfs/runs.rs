//! Run lists: which clusters of the volume hold the clusters of a value.
//!
//! A run is a byte whose halves tell how long the two numbers behind it are: the number of clusters (low
//! half), and how far they begin from where the run before began (high half, signed; without it nothing is
//! stored). A zero byte ends the list. (LIBFSNTFS documentation, "data runs".)

use super::error::bad;
use super::fields::part;
use crate::error::Result;

/// Consecutive clusters of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClusterRun {
    /// The first one of them, in the value.
    pub start: u64,
    /// How many.
    pub count: u64,
    /// Where the first one is on the volume; `None` where nothing is stored.
    pub at: Option<u64>,
}

impl ClusterRun {
    /// The cluster of the value behind the run.
    pub fn end(&self) -> u64 {
        // `decode` has made sure that it is a number.
        self.start + self.count
    }
}

/// Adds the runs of a list, which tells of a value from its cluster `start` on; gives the cluster behind them.
/// Clusters have `cluster_bytes`: every byte of the value has a number.
///
/// # Errors
/// `Corrupt` when the list makes no sense.
pub fn decode(
    list: &[u8],
    start: u64,
    cluster_bytes: u64,
    runs: &mut Vec<ClusterRun>,
) -> Result<u64> {
    let mut rest = list;
    let mut next = start;
    let mut place = 0i64;
    // A list may fill its room and have no end then.
    while let Some((&head, behind)) = rest.split_first().filter(|(head, _)| **head != 0) {
        let (count_len, place_len) = (usize::from(head & 0xF), usize::from(head >> 4));
        let count = signed(part(behind, 0, count_len)?)?;
        let distance = signed(part(behind, count_len, place_len)?)?;
        let count = u64::try_from(count)
            .ok()
            .filter(|&count| count > 0)
            .ok_or_else(|| bad("a run of a strange length"))?;
        let at = match place_len {
            0 => None,
            _ => {
                place = place
                    .checked_add(distance)
                    .ok_or_else(|| bad("a run begins nowhere"))?;
                let at = u64::try_from(place).map_err(|_| bad("a run begins before its volume"))?;
                Some(at)
            }
        };
        runs.push(ClusterRun {
            start: next,
            count,
            at,
        });
        next = next
            .checked_add(count)
            .filter(|end| end.checked_mul(cluster_bytes).is_some())
            .ok_or_else(|| bad("a stream has too many clusters"))?;
        rest = behind.get(count_len + place_len..).unwrap_or_default();
    }
    Ok(next)
}

/// A little-endian number with a sign, of at most 8 bytes.
fn signed(bytes: &[u8]) -> Result<i64> {
    let Some(last) = bytes.last() else {
        return Ok(0);
    };
    let mut all = [if last & 0x80 != 0 { 0xFF } else { 0 }; 8];
    all.get_mut(..bytes.len())
        .ok_or_else(|| bad("a number in a run list is too long"))?
        .copy_from_slice(bytes);
    Ok(i64::from_le_bytes(all))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Start, count and place of each run.
    type Short = Vec<(u64, u64, Option<u64>)>;

    fn decoded(list: &[u8]) -> Result<(Short, u64)> {
        let mut runs = Vec::new();
        let end = decode(list, 5, 4096, &mut runs)?;
        let short = runs.iter().map(|run| (run.start, run.count, run.at));
        Ok((short.collect(), end))
    }

    #[test]
    fn places_are_told_from_the_run_before() {
        let list = [
            0x21, 0x03, 0x00, 0x01, // 3 at 256
            0x01, 0x10, // 16 nowhere
            0x11, 0x02, 0xF0, // 2 at 240
            0x12, 0x00, 0x01, 0x01, // 256 at 241
            0x00, 0x99,
        ];
        let expected = vec![
            (5, 3, Some(256)),
            (8, 16, None),
            (24, 2, Some(240)),
            (26, 256, Some(241)),
        ];
        assert_eq!(decoded(&list).unwrap(), (expected.clone(), 282));
        // Without its end.
        assert_eq!(decoded(&list[..13]).unwrap(), (expected, 282));
        assert_eq!(decoded(&[]).unwrap(), (Vec::new(), 5));
    }

    #[test]
    fn lists_that_make_no_sense_are_refused() {
        for list in [
            &[0x11, 1][..],
            &[0x21, 1, 0],
            &[0x10, 1],
            &[0x11, 0, 1],
            &[0x11, 0xFF, 1],
            &[0x11, 1, 0xFF],
            &[0x19, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1],
            &[0x08, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x7F],
            &[
                0x81, 1, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x7F, 0x11, 1, 1,
            ],
        ] {
            assert!(decoded(list).is_err(), "{list:x?}");
        }
    }
}
