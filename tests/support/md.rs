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
    let mut put = |at: usize, value: &[u8]| {
        let at = SUPERBLOCK_AT + at;
        disk[at..at + value.len()].copy_from_slice(value);
    };
    put(0, &0xA92B_4EFCu32.to_le_bytes());
    put(4, &1u32.to_le_bytes());
    put(16, &[7; 16]);
    put(32, b"host:data");
    put(72, &array.level.to_le_bytes());
    put(76, &array.layout.to_le_bytes());
    put(80, &sectors.to_le_bytes());
    put(88, &(array.chunk_bytes / 512).to_le_bytes());
    put(92, &array.disks.to_le_bytes());
    put(128, &(DATA_AT as u64 / 512).to_le_bytes());
    put(136, &sectors.to_le_bytes());
    put(144, &(SUPERBLOCK_AT as u64 / 512).to_le_bytes());
    put(160, &u32::from(role).to_le_bytes());
    put(200, &array.events.to_le_bytes());
    put(208, &u64::MAX.to_le_bytes());
    put(220, &(ROLES as u32).to_le_bytes());
    for number in 0..ROLES as u16 {
        let faulty = array.dropped == Some(number);
        let role = if faulty { 0xFFFE } else { number };
        put(256 + usize::from(number) * 2, &role.to_le_bytes());
    }
    let sum: u64 = disk[SUPERBLOCK_AT..SUPERBLOCK_AT + 256 + 2 * ROLES]
        .chunks_exact(4)
        .map(|word| u64::from(u32::from_le_bytes(word.try_into().unwrap())))
        .sum();
    let sum = (sum as u32).wrapping_add((sum >> 32) as u32);
    disk[SUPERBLOCK_AT + 216..SUPERBLOCK_AT + 220].copy_from_slice(&sum.to_le_bytes());
    disk.extend_from_slice(data);
    disk
}
