//! Partition tables, as `sgdisk` and `sfdisk` write them.

/// An MBR with these partitions (type, first sector, sectors).
pub fn mbr(partitions: &[(u8, u32, u32)]) -> [u8; 512] {
    let mut sector = [0; 512];
    for (entry, (kind, first, sectors)) in sector[446..510].chunks_mut(16).zip(partitions) {
        entry[4] = *kind;
        entry[8..12].copy_from_slice(&first.to_le_bytes());
        entry[12..16].copy_from_slice(&sectors.to_le_bytes());
    }
    sector[510..].copy_from_slice(&[0x55, 0xAA]);
    sector
}

const ENTRIES: usize = 128;
const ENTRY_BYTES: usize = 128;
const ARRAY_SECTORS: u64 = (ENTRIES * ENTRY_BYTES / 512) as u64;

fn crc32(bytes: &[u8]) -> [u8; 4] {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum().to_le_bytes()
}

/// Writes a GPT with these partitions (first and last sector) onto a disk: protective MBR and both copies.
pub fn write_gpt(disk: &mut [u8], partitions: &[(u64, u64)]) {
    let last = (disk.len() / 512) as u64 - 1;
    disk[..512].copy_from_slice(&mbr(&[(0xEE, 1, last as u32)]));
    let mut array = vec![0; ENTRIES * ENTRY_BYTES];
    for (entry, (from, to)) in array.chunks_mut(ENTRY_BYTES).zip(partitions) {
        // 0FC63DAF-8483-4772-8E79-3D69D8477DE4
        entry[..16].copy_from_slice(&0xE47D_47D8_693D_798E_4772_8483_0FC6_3DAF_u128.to_le_bytes());
        entry[16] = 1;
        entry[32..40].copy_from_slice(&from.to_le_bytes());
        entry[40..48].copy_from_slice(&to.to_le_bytes());
    }
    for (at, other, entries_at) in [(1, last, 2), (last, 1, last - ARRAY_SECTORS)] {
        let mut header = [0; 92];
        header[..12].copy_from_slice(b"EFI PART\0\0\x01\0");
        header[12] = 92;
        header[24..32].copy_from_slice(&at.to_le_bytes());
        header[32..40].copy_from_slice(&other.to_le_bytes());
        header[40..48].copy_from_slice(&(2 + ARRAY_SECTORS).to_le_bytes());
        header[48..56].copy_from_slice(&(last - ARRAY_SECTORS - 1).to_le_bytes());
        header[72..80].copy_from_slice(&entries_at.to_le_bytes());
        header[80..84].copy_from_slice(&(ENTRIES as u32).to_le_bytes());
        header[84..88].copy_from_slice(&(ENTRY_BYTES as u32).to_le_bytes());
        header[88..92].copy_from_slice(&crc32(&array));
        let sum = crc32(&header);
        header[16..20].copy_from_slice(&sum);
        for (place, bytes) in [(at, &header[..]), (entries_at, &array[..])] {
            let place = place as usize * 512;
            disk[place..place + bytes.len()].copy_from_slice(bytes);
        }
    }
}
