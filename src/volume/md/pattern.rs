//! Where the chunks of an array lie: RAID 4, 5 and 6 with all layouts of Linux, and RAID 10 with near, far
//! and offset copies.
//!
//! Source of the patterns: `raid5_compute_sector` and `raid6_idx_to_slot`, `setup_geo`, `calc_sectors` and
//! `__raid10_find_phys` of Linux.

use crate::error::{Error, ErrorKind, Result};

/// The numbers of RAID 6 layouts that are those of RAID 5 with the second parity on the last member.
const SECOND_IS_LAST: std::ops::RangeInclusive<u32> = 16..=20;
/// RAID 6 as the Common RAID Disk Data Format has it.
const ZERO_RESTART: u32 = 8;
const N_RESTART: u32 = 9;
const N_CONTINUE: u32 = 10;

/// How chunks lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pattern {
    /// RAID 4 and 5 (one parity) and 6 (two), with the layout's number.
    Parity {
        /// Members' worth of parity.
        parities: u64,
        /// As md numbers them.
        layout: u32,
    },
    /// RAID 10.
    Copies(Copies),
}

/// How the copies of RAID 10 lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Copies {
    /// Copies next to each other.
    near: u64,
    /// Copies of all of that in another part of each member.
    far: u64,
    /// That part is the next row, rather than one that begins at half (a third, …) of the member.
    is_offset: bool,
    /// Far copies stay within sets of so many members.
    set: u64,
}

/// A row of chunks of an array with parity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// Its number: chunks from the beginning of each member's data.
    pub number: u64,
    /// The member with the parity.
    pub parity: u64,
    /// The member with the second parity of RAID 6.
    pub second: Option<u64>,
}

impl Pattern {
    /// The pattern of an array of this level.
    ///
    /// # Errors
    /// `Unsupported` for layouts that are not known; `Corrupt` for too few members.
    pub fn of(level: i32, layout: u32, members: u64) -> Result<Pattern> {
        let pattern = match level {
            // RAID 4 is RAID 5 with all parity on the last member.
            4 => Pattern::Parity {
                parities: 1,
                layout: 5,
            },
            5 if layout <= 5 => Pattern::Parity {
                parities: 1,
                layout,
            },
            6 if layout <= 5
                || (ZERO_RESTART..=N_CONTINUE).contains(&layout)
                || SECOND_IS_LAST.contains(&layout) =>
            {
                Pattern::Parity {
                    parities: 2,
                    layout,
                }
            }
            10 if layout >> 17 <= 2 => {
                let near = u64::from(layout & 0xFF);
                let far = u64::from(layout >> 8 & 0xFF);
                let copies = near * far;
                let set = match layout >> 17 {
                    0 => members,
                    1 => members.checked_div(far).unwrap_or(0),
                    _ => copies,
                };
                if copies < 2 || copies > members || set == 0 || set > members {
                    return Err(Error::corrupt("RAID 10 of too few members or copies"));
                }
                Pattern::Copies(Copies {
                    near,
                    far,
                    is_offset: layout >> 16 & 1 == 1,
                    set,
                })
            }
            _ => {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    format!("arrays of level {level} with layout {layout:#x} are not read"),
                ));
            }
        };
        match pattern {
            Pattern::Parity { parities, .. } if members <= parities => {
                Err(Error::corrupt("an array of too few members"))
            }
            _ => Ok(pattern),
        }
    }

    /// Chunks of an array whose members have so many each.
    pub fn chunks(self, each: u64, members: u64) -> Option<u64> {
        match self {
            Pattern::Parity { parities, .. } => each.checked_mul(members - parities),
            Pattern::Copies(copies) => {
                Some((each / copies.far).checked_mul(members)? / copies.near)
            }
        }
    }
}

/// The row of chunk `number` of an array with parity, and the member that has the chunk.
pub fn parity_spot(parities: u64, layout: u32, number: u64, members: u64) -> (Row, u64) {
    let data = members - parities;
    let (row, nth) = (number / data, number % data);
    let turn = row % members;
    if SECOND_IS_LAST.contains(&layout) {
        let others = members - 1;
        let (inner, member) = parity_spot(1, layout - SECOND_IS_LAST.start(), number, others);
        let second = Some(others);
        return (Row { second, ..inner }, member);
    }
    let parity = match layout {
        // Left: parity moves down from the last member; right: up from the first.
        0 | 2 | N_CONTINUE => members - 1 - turn,
        1 | 3 | ZERO_RESTART => turn,
        // Left, and one row on.
        N_RESTART => members - 1 - (row + 1) % members,
        4 => 0,
        _ => data,
    };
    // The second parity follows the first, around the end; in one layout it precedes it.
    let second = match layout {
        N_CONTINUE => (parity + members - 1) % members,
        _ => (parity + 1) % members,
    };
    let is_wrapped = parities == 2 && second == 0;
    let member = match layout {
        // Symmetric: data begins behind the parity.
        2 | 3 => (parity + parities + nth) % members,
        N_CONTINUE => (parity + 1 + nth) % members,
        // All of it behind the parity, or before.
        4 => nth + parities,
        5 => nth,
        // Asymmetric: data leaves the parity out.
        _ if is_wrapped => nth + 1,
        _ if nth < parity => nth,
        _ => nth + parities,
    };
    let row = Row {
        number: row,
        parity,
        second: (parities == 2).then_some(second),
    };
    (row, member)
}

/// The power of the generator that each member's bytes are multiplied with in the second parity; `None` for
/// the parities themselves.
pub fn powers(layout: u32, row: &Row, members: u64) -> Vec<Option<u32>> {
    let Some(second) = row.second else {
        return Vec::new();
    };
    let mut powers = vec![None; members as usize];
    // In the disk format's own layouts members count from the first one, parities included.
    let counts_all = (ZERO_RESTART..=N_CONTINUE).contains(&layout);
    let start = if counts_all { 0 } else { second + 1 };
    let mut power = 0;
    for step in 0..members {
        let member = (start + step) % members;
        let is_data = member != row.parity && member != second;
        if is_data {
            powers[member as usize] = Some(power);
        }
        power += u32::from(is_data || counts_all);
    }
    powers
}

impl Copies {
    /// Where the copies of chunk `number` are, member and row, in the order in which Linux prefers them.
    /// `each` is the number of chunks that a member has room for.
    ///
    /// Numbers of chunks are far from 2^64, and there are at most as many copies as members.
    pub fn places(self, number: u64, members: u64, each: u64) -> Vec<(u64, u64)> {
        let Copies {
            near,
            far,
            is_offset,
            set,
        } = self;
        let at = number * near;
        let mut row = at / members;
        if is_offset {
            row *= far;
        }
        let stride = match is_offset {
            true => 1,
            false => {
                let chunks = each / far * members / near;
                (chunks * near * far).div_ceil(members) / far
            }
        };
        // Where sets do not come out even, the last one is longer.
        let last_start = (members / set - 1) * set;
        let last_len = set + members % set;
        let is_uneven = !members.is_multiple_of(set);
        let mut member = at % members;
        let mut places = Vec::new();
        for _ in 0..near {
            places.push((member, row));
            let mut at = member;
            for copy in 1..far {
                let this = at / set;
                at += near;
                at = if is_uneven && at > last_start {
                    (at - last_start) % last_len + last_start
                } else {
                    at % set + set * this
                };
                places.push((at, row + copy * stride));
            }
            member += 1;
            if member == members {
                member = 0;
                row += 1;
            }
        }
        places
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The members that chunks 0, 1, 2 … are on, row by row.
    fn rows(level: i32, layout: u32, members: u64, count: u64) -> Vec<String> {
        let pattern = Pattern::of(level, layout, members).unwrap();
        let mut rows: Vec<Vec<char>> = Vec::new();
        let mut put = |row: u64, member: u64, what: char| {
            let row = row as usize;
            if rows.len() <= row {
                rows.resize(row + 1, vec!['-'; members as usize]);
            }
            rows[row][member as usize] = what;
        };
        for number in 0..count {
            let letter = (b'a' + number as u8) as char;
            match pattern {
                Pattern::Parity { parities, layout } => {
                    let (row, member) = parity_spot(parities, layout, number, members);
                    put(row.number, member, letter);
                    if let Some(second) = row.second {
                        put(row.number, second, 'Q');
                    }
                }
                Pattern::Copies(copies) => {
                    // Members with room for two rows of each copy.
                    let each = 2 * copies.far;
                    for (member, row) in copies.places(number, members, each) {
                        put(row, member, letter);
                    }
                }
            }
        }
        rows.iter().map(|row| row.iter().collect()).collect()
    }

    /// Letters are chunks in their order, `Q` the second parity, `-` the first one or nothing.
    #[test]
    fn chunks_are_where_the_layouts_put_them() {
        assert_eq!(rows(4, 0, 3, 4), ["ab-", "cd-"]);
        assert_eq!(rows(5, 0, 4, 12), ["abc-", "de-f", "g-hi", "-jkl"]);
        assert_eq!(rows(5, 1, 4, 12), ["-abc", "d-ef", "gh-i", "jkl-"]);
        assert_eq!(rows(5, 2, 4, 12), ["abc-", "ef-d", "i-gh", "-jkl"]);
        assert_eq!(rows(5, 3, 4, 12), ["-abc", "f-de", "hi-g", "jkl-"]);
        assert_eq!(rows(5, 4, 3, 4), ["-ab", "-cd"]);
        assert_eq!(rows(5, 5, 3, 4), ["ab-", "cd-"]);
        assert_eq!(rows(6, 0, 4, 8), ["Qab-", "cd-Q", "e-Qf", "-Qgh"]);
        assert_eq!(rows(6, 2, 4, 8), ["Qab-", "cd-Q", "f-Qe", "-Qgh"]);
        assert_eq!(rows(6, 1, 4, 8), ["-Qab", "c-Qd", "ef-Q", "Qgh-"]);
        assert_eq!(rows(6, 4, 4, 4), ["-Qab", "-Qcd"]);
        assert_eq!(rows(6, 5, 4, 4), ["ab-Q", "cd-Q"]);
        assert_eq!(rows(6, 18, 4, 6), ["ab-Q", "d-cQ", "-efQ"]);
        assert_eq!(rows(10, 0x102, 4, 4), ["aabb", "ccdd"]);
        assert_eq!(rows(10, 0x102, 3, 3), ["aab", "bcc"]);
        assert_eq!(rows(10, 0x201, 3, 6), ["abc", "def", "cab", "fde"]);
        assert_eq!(rows(10, 0x1_0201, 3, 6), ["abc", "cab", "def", "fde"]);
        assert_eq!(rows(10, 0x2_0201, 4, 4), ["abcd", "----", "badc"]);
    }

    #[test]
    fn what_is_not_known_is_refused() {
        for (level, layout, members) in [
            (5, 6, 3),
            (5, 16, 4),
            (6, 7, 4),
            (6, 21, 4),
            (10, 1 << 19 | 0x102, 4),
            (10, 3 << 17 | 0x202, 4),
            (10, 0x101, 4),
            (5, 2, 1),
            (6, 2, 2),
            (10, 0x105, 4),
            (10, 0x100, 4),
            (10, 0x2, 4),
            (-4, 0, 2),
        ] {
            assert!(Pattern::of(level, layout, members).is_err());
        }
    }
}
