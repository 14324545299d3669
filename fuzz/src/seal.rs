//! Checksums of btrfs, put right after a change: what is behind them is hostile input, too.

use std::collections::BTreeMap;
use std::sync::Arc;

use brfs::error::Result;
use brfs::io::ReadAt;

/// Where the first superblock is.
pub const SUPERBLOCK: u64 = 64 << 10;
const SUM_BYTES: usize = 32;

/// CRC-32C: an implementation of its own.
pub fn crc32c(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut index = 0;
        while index < 256 * 8 {
            let sum = if index % 8 == 0 {
                index as u32 / 8
            } else {
                table[index / 8]
            };
            table[index / 8] = (sum >> 1) ^ if sum & 1 == 1 { 0x82F6_3B78 } else { 0 };
            index += 1;
        }
        table
    };
    let add = |sum: u32, byte: &u8| (sum >> 8) ^ TABLE[usize::from(sum as u8 ^ byte)];
    !bytes.iter().fold(u32::MAX, add)
}

fn seal(block: &mut [u8]) {
    let sum = crc32c(&block[SUM_BYTES..]);
    block[..4].copy_from_slice(&sum.to_le_bytes());
}

/// The first superblock and all tree blocks of a device: where they are and how long.
pub fn sealed_blocks(device: &dyn ReadAt) -> Vec<(u64, usize)> {
    const SECTOR: u64 = 4096;
    let mut superblock = vec![0; SECTOR as usize];
    device.read_exact_at(&mut superblock, SUPERBLOCK).unwrap();
    let fsid = &superblock[0x20..0x30];
    let node_bytes = u32::from_le_bytes(superblock[0x94..0x98].try_into().unwrap());
    let mut found = vec![(SUPERBLOCK, SECTOR as usize)];
    let mut block = vec![0; node_bytes as usize];
    let last = device.len_bytes().saturating_sub(u64::from(node_bytes));
    for at in (SUPERBLOCK + SECTOR..=last).step_by(SECTOR as usize) {
        device.read_exact_at(&mut block[..0x30], at).unwrap();
        if block[0x20..0x30] == *fsid {
            device.read_exact_at(&mut block, at).unwrap();
            if crc32c(&block[SUM_BYTES..]).to_le_bytes() == block[..4] {
                found.push((at, node_bytes as usize));
            }
        }
    }
    found
}

/// Bytes of an input that make one change: block and offset in it (16 bits each), how, and with what.
pub const CHANGE_BYTES: usize = 6;

/// The devices of a file system, and all blocks of theirs that have checksums.
pub struct Set {
    devices: Vec<Arc<dyn ReadAt>>,
    blocks: Vec<(usize, u64, usize)>,
}

impl Set {
    /// Looks for the blocks, first all superblocks.
    pub fn new(devices: Vec<Arc<dyn ReadAt>>) -> Set {
        let mut blocks = Vec::new();
        for (index, device) in devices.iter().enumerate() {
            let of_device = sealed_blocks(&**device);
            blocks.extend(of_device.into_iter().map(|(at, len)| (index, at, len)));
        }
        // The tree of chunks is in the lowest addresses.
        blocks.sort_by_key(|&(_, at, _)| at);
        Set { devices, blocks }
    }

    /// How many blocks there are.
    pub fn blocks(&self) -> usize {
        self.blocks.len()
    }

    /// The devices, changed as `input` says, with checksums that hold.
    pub fn changed(&self, input: &[u8]) -> Vec<Arc<dyn ReadAt>> {
        const NUMBERS: [u64; 6] = [0, 1, 3, u64::MAX, u64::MAX >> 1, 1 << 40];
        let mut changed = vec![BTreeMap::new(); self.devices.len()];
        for change in input.as_chunks::<CHANGE_BYTES>().0 {
            let number = usize::from(u16::from_le_bytes([change[0], change[1]]));
            let (device, start, len) = self.blocks[number % self.blocks.len()];
            let block = changed[device].entry(start).or_insert_with(|| {
                let mut block = vec![0; len];
                self.devices[device]
                    .read_exact_at(&mut block, start)
                    .unwrap();
                block
            });
            let offset = usize::from(u16::from_le_bytes([change[2], change[3]]));
            let at = SUM_BYTES + offset % (len - SUM_BYTES - 8);
            let value = change[5];
            match change[4] % 3 {
                0 => block[at] ^= value,
                1 => block[at] = value,
                _ => {
                    let number = NUMBERS[usize::from(value) % NUMBERS.len()];
                    block[at..at + 8].copy_from_slice(&number.to_le_bytes());
                }
            }
        }
        let devices = self.devices.iter().zip(changed);
        devices
            .map(|(base, mut blocks)| {
                blocks.values_mut().for_each(|block| seal(block));
                Arc::new(Resealed {
                    base: base.clone(),
                    blocks,
                }) as Arc<dyn ReadAt>
            })
            .collect()
    }
}

/// A device with some blocks changed.
struct Resealed {
    base: Arc<dyn ReadAt>,
    blocks: BTreeMap<u64, Vec<u8>>,
}

impl ReadAt for Resealed {
    fn len_bytes(&self) -> u64 {
        self.base.len_bytes()
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.base.read_exact_at(buf, offset)?;
        let end = offset + buf.len() as u64;
        for (&start, block) in self.blocks.range(..end) {
            let from = offset.max(start);
            let to = end.min(start + block.len() as u64);
            if from < to {
                buf[(from - offset) as usize..(to - offset) as usize]
                    .copy_from_slice(&block[(from - start) as usize..(to - start) as usize]);
            }
        }
        Ok(())
    }
}
