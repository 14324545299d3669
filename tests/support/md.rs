//! Members of Linux md arrays, as `mdadm` writes them (version 1.2; `mdadm --examine` agrees).

/// What a superblock says.
#[derive(Clone, Copy, Debug)]
pub struct Array {
    pub level: i32,
    pub layout: u32,
    pub chunk_bytes: u32,
    pub disks: u32,
    pub events: u64,
    /// A member that the array has dropped, as this superblock tells.
    pub dropped: Option<u16>,
}

/// Where a member's data begins.
pub const DATA_AT: usize = 8192;
const SUPERBLOCK_AT: usize = 4096;
const ROLES: usize = 8;

/// A member with this role and data, which must be whole sectors.
pub fn member(array: Array, role: u16, data: &[u8]) -> Vec<u8> {
    let sectors = (data.len() / 512) as u64;
    let mut disk = vec![0; DATA_AT];
    let place = Place {
        data: DATA_AT as u64 / 512,
        superblock: SUPERBLOCK_AT as u64 / 512,
        sectors,
    };
    let block = superblock(array, role, place);
    disk[SUPERBLOCK_AT..SUPERBLOCK_AT + block.len()].copy_from_slice(&block);
    disk.extend_from_slice(data);
    disk
}

/// A member of version 1.0: its data comes first, the superblock at the end. `data` must be a multiple of 4 KiB.
pub fn member_at_end(array: Array, role: u16, data: &[u8]) -> Vec<u8> {
    let sectors = (data.len() / 512) as u64;
    let place = Place {
        data: 0,
        superblock: sectors,
        sectors,
    };
    let mut disk = data.to_vec();
    disk.extend_from_slice(&superblock(array, role, place));
    // It begins 16 sectors before the end.
    disk.resize(data.len() + 16 * 512, 0);
    disk
}

/// Where things are on a member, in sectors.
struct Place {
    data: u64,
    superblock: u64,
    sectors: u64,
}

fn superblock(array: Array, role: u16, place: Place) -> Vec<u8> {
    let mut block = vec![0; 4096];
    let mut put = |at: usize, value: &[u8]| {
        block[at..at + value.len()].copy_from_slice(value);
    };
    put(0, &0xA92B_4EFCu32.to_le_bytes());
    put(4, &1u32.to_le_bytes());
    put(16, &[7; 16]);
    put(32, b"host:data");
    put(72, &array.level.to_le_bytes());
    put(76, &array.layout.to_le_bytes());
    put(80, &place.sectors.to_le_bytes());
    put(88, &(array.chunk_bytes / 512).to_le_bytes());
    put(92, &array.disks.to_le_bytes());
    put(128, &place.data.to_le_bytes());
    put(136, &place.sectors.to_le_bytes());
    put(144, &place.superblock.to_le_bytes());
    put(160, &u32::from(role).to_le_bytes());
    put(200, &array.events.to_le_bytes());
    put(208, &u64::MAX.to_le_bytes());
    put(220, &(ROLES as u32).to_le_bytes());
    for number in 0..ROLES as u16 {
        let faulty = array.dropped == Some(number);
        let role = if faulty { 0xFFFE } else { number };
        put(256 + usize::from(number) * 2, &role.to_le_bytes());
    }
    let sum: u64 = block[..256 + 2 * ROLES]
        .chunks_exact(4)
        .map(|word| u64::from(u32::from_le_bytes(word.try_into().unwrap())))
        .sum();
    let sum = (sum as u32).wrapping_add((sum >> 32) as u32);
    block[216..220].copy_from_slice(&sum.to_le_bytes());
    block
}
