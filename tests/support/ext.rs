//! A small ext4 with a journal, written from the format's documentation (Documentation/filesystems/ext4): blocks of
//! 1 KiB, one group, no checksums but those of the journal, which is an inode or a device of its own.

/// Size of a block.
pub const BLOCK: usize = 1024;
/// Blocks of the file system.
pub const BLOCKS: usize = 1600;
/// First block of the journal.
pub const JOURNAL: usize = 64;
/// Blocks of the journal, and of those the last ones for fast commits.
pub const JOURNAL_BLOCKS: usize = 1056;
pub const FAST_BLOCKS: usize = 32;
/// First block of the journal that is for fast commits; one before it is for nothing.
pub const FAST: usize = JOURNAL_BLOCKS - FAST_BLOCKS + 1;
const INODE_TABLE: usize = 5;
const INODE_BYTES: usize = 128;
const ROOT_BLOCK: usize = 20;
/// Where the contents of file `n` are: one block each.
pub const CONTENTS: usize = 30;
/// The inode of file 0.
pub const FIRST_FILE: u32 = 12;
const MAGIC: u32 = 0xC03B_3998;
pub const FILE_SYSTEM_UUID: [u8; 16] = [0x11; 16];
pub const JOURNAL_UUID: [u8; 16] = [0x22; 16];

/// CRC-32C (reflected) without inversions.
pub fn crc32c(register: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(register, |register, &byte| {
        (0..8).fold(register ^ u32::from(byte), |r, _| match r & 1 {
            1 => r >> 1 ^ 0x82F6_3B78,
            _ => r >> 1,
        })
    })
}

/// CRC-32 (not reflected) without inversions.
fn crc32_be(register: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(register, |register, &byte| {
        (0..8).fold(register ^ u32::from(byte) << 24, |r, _| match r >> 31 {
            1 => r << 1 ^ 0x04C1_1DB7,
            _ => r << 1,
        })
    })
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

/// An inode: mode, size, links, 512-byte units, flags and what `i_block` holds.
pub fn inode(mode: u16, size: u32, links: u16, units: u32, flags: u32, block: &[u8]) -> Vec<u8> {
    let mut raw = vec![0; INODE_BYTES];
    put(&mut raw, 0, &mode.to_le_bytes());
    put(&mut raw, 4, &size.to_le_bytes());
    put(&mut raw, 0x1A, &links.to_le_bytes());
    put(&mut raw, 0x1C, &units.to_le_bytes());
    put(&mut raw, 0x20, &flags.to_le_bytes());
    put(&mut raw, 0x28, block);
    raw
}

/// An extent tree of one extent.
pub fn extent(len: u16, start: u32) -> Vec<u8> {
    let mut tree = vec![0; 24];
    put(&mut tree, 0, &0xF30Au16.to_le_bytes());
    put(&mut tree, 2, &1u16.to_le_bytes());
    put(&mut tree, 4, &4u16.to_le_bytes());
    put(&mut tree, 16, &len.to_le_bytes());
    put(&mut tree, 20, &start.to_le_bytes());
    tree
}

pub const EXTENTS: u32 = 0x8_0000;

/// What the root directory holds, with `..` and all.
pub fn directory(names: &[(&str, u32, u8)]) -> Vec<u8> {
    let mut block = vec![0; BLOCK];
    let mut at = 0;
    let all = [(".", 2, 2), ("..", 2, 2)];
    let all: Vec<_> = all.iter().chain(names).collect();
    for (index, (name, inode, kind)) in all.iter().enumerate() {
        let len = match index + 1 == all.len() {
            true => BLOCK - at,
            false => (8 + name.len()).next_multiple_of(4),
        };
        put(&mut block, at, &inode.to_le_bytes());
        put(&mut block, at + 4, &(len as u16).to_le_bytes());
        block[at + 6] = name.len() as u8;
        block[at + 7] = *kind;
        put(&mut block, at + 8, name.as_bytes());
        at += len;
    }
    block
}

/// How a journal proves its blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sums {
    None,
    V1,
    V2,
    V3,
}

/// A journal while it is written.
pub struct Journal {
    pub bytes: Vec<u8>,
    sums: Sums,
    wide: bool,
    /// Where the next block goes.
    pub at: usize,
    pub sequence: u32,
    /// When transactions are committed, in seconds.
    pub time: u64,
    /// The first block of the log, and the first after it.
    first: usize,
    end: usize,
    running: u32,
}

impl Journal {
    /// An empty one whose superblock is block `at`, with these features besides those of the sums.
    pub fn new(sums: Sums, wide: bool, incompat: u32, at: usize) -> Self {
        let mut bytes = vec![0; JOURNAL_BLOCKS * BLOCK];
        let superblock = at * BLOCK;
        let kinds = [0, 0, 8, 0x10][sums as usize];
        let incompat = incompat | 1 | if wide { 2 } else { 0 } | kinds;
        let mut field =
            |at: usize, value: u32| put(&mut bytes, superblock + at, &value.to_be_bytes());
        field(0, MAGIC);
        field(4, 4);
        field(0x0C, BLOCK as u32);
        field(0x10, JOURNAL_BLOCKS as u32);
        field(0x14, at as u32 + 1);
        field(0x24, u32::from(sums == Sums::V1));
        field(0x28, incompat);
        field(0x40, 1);
        field(0x54, FAST_BLOCKS as u32);
        put(&mut bytes, superblock + 0x30, &JOURNAL_UUID);
        bytes[superblock + 0x50] = 4;
        let end = match incompat & 0x20 {
            0 => JOURNAL_BLOCKS,
            _ => JOURNAL_BLOCKS - FAST_BLOCKS,
        };
        let mut journal = Journal {
            bytes,
            sums,
            wide,
            at: at + 1,
            sequence: 7,
            time: 0,
            first: at + 1,
            end,
            running: u32::MAX,
        };
        journal.start(at + 1);
        journal
    }

    /// Lets the log begin at a block (0: there is none), and goes on there.
    pub fn start(&mut self, at: usize) {
        let superblock = (self.first - 1) * BLOCK;
        let sequence = self.sequence;
        put(&mut self.bytes, superblock + 0x18, &sequence.to_be_bytes());
        put(
            &mut self.bytes,
            superblock + 0x1C,
            &(at as u32).to_be_bytes(),
        );
        put(&mut self.bytes, superblock + 0xFC, &[0; 4]);
        let sum = crc32c(u32::MAX, &self.bytes[superblock..superblock + 1024]);
        put(&mut self.bytes, superblock + 0xFC, &sum.to_be_bytes());
        self.at = at.max(self.first);
    }

    fn seed(&self) -> u32 {
        crc32c(u32::MAX, &JOURNAL_UUID)
    }

    fn tails(&self) -> bool {
        matches!(self.sums, Sums::V2 | Sums::V3)
    }

    fn head(&self, kind: u32) -> Vec<u8> {
        let mut block = vec![0; BLOCK];
        put(&mut block, 0, &MAGIC.to_be_bytes());
        put(&mut block, 4, &kind.to_be_bytes());
        put(&mut block, 8, &self.sequence.to_be_bytes());
        block
    }

    fn push(&mut self, block: &[u8]) {
        put(&mut self.bytes, self.at * BLOCK, block);
        self.at += 1;
        if self.at == self.end {
            self.at = self.first;
        }
    }

    fn seal(&self, block: &mut [u8]) {
        if self.tails() {
            let sum = crc32c(self.seed(), block);
            put(block, BLOCK - 4, &sum.to_be_bytes());
        }
    }

    /// A descriptor, and the blocks that it describes.
    pub fn blocks(&mut self, blocks: &[(u64, &[u8])]) {
        let size = match (self.sums, self.wide) {
            (Sums::V3, _) => 16,
            (Sums::V2, wide) => 10 + 4 * usize::from(wide),
            (_, wide) => 8 + 4 * usize::from(wide),
        };
        let mut descriptor = self.head(1);
        let mut stored = Vec::new();
        let mut at = 12;
        for (index, (target, content)) in blocks.iter().enumerate() {
            let mut content = content.to_vec();
            content.resize(BLOCK, 0);
            let escaped = content[..4] == MAGIC.to_be_bytes();
            if escaped {
                content[..4].fill(0);
            }
            // The first tag carries a UUID.
            let flags = u32::from(escaped)
                | if index == 0 { 0 } else { 2 }
                | if index + 1 == blocks.len() { 8 } else { 0 };
            let sum = crc32c(crc32c(self.seed(), &self.sequence.to_be_bytes()), &content);
            put(&mut descriptor, at, &(*target as u32).to_be_bytes());
            let high = ((target >> 32) as u32).to_be_bytes();
            match self.sums {
                Sums::V3 => {
                    put(&mut descriptor, at + 4, &flags.to_be_bytes());
                    put(&mut descriptor, at + 8, &high);
                    put(&mut descriptor, at + 12, &sum.to_be_bytes());
                }
                _ => {
                    if self.sums == Sums::V2 {
                        put(&mut descriptor, at + 4, &(sum as u16).to_be_bytes());
                    }
                    put(&mut descriptor, at + 6, &(flags as u16).to_be_bytes());
                    if self.wide {
                        put(&mut descriptor, at + 8, &high);
                    }
                }
            }
            at += size + if index == 0 { 16 } else { 0 };
            stored.push(content);
        }
        self.seal(&mut descriptor);
        for block in std::iter::once(descriptor).chain(stored) {
            self.running = crc32_be(self.running, &block);
            self.push(&block);
        }
    }

    /// Blocks whose earlier contents in the log do not count.
    pub fn revoke(&mut self, blocks: &[u64]) {
        let mut block = self.head(5);
        let size = if self.wide { 8 } else { 4 };
        put(
            &mut block,
            12,
            &((16 + size * blocks.len()) as u32).to_be_bytes(),
        );
        for (index, number) in blocks.iter().enumerate() {
            let bytes = number.to_be_bytes();
            put(&mut block, 16 + index * size, &bytes[8 - size..]);
        }
        self.seal(&mut block);
        self.push(&block);
    }

    /// Ends a transaction.
    pub fn commit(&mut self) {
        let mut block = self.head(2);
        put(&mut block, 48, &self.time.to_be_bytes());
        match self.sums {
            Sums::None => {}
            Sums::V1 => {
                put(&mut block, 12, &[1, 4]);
                put(&mut block, 16, &self.running.to_be_bytes());
            }
            Sums::V2 | Sums::V3 => {
                let sum = crc32c(self.seed(), &block);
                put(&mut block, 16, &sum.to_be_bytes());
            }
        }
        self.running = u32::MAX;
        self.push(&block);
        self.sequence += 1;
    }

    /// Fast commits, each of tags with values; a block each.
    pub fn fast(&mut self, sequence: u32, commits: &[Vec<(u16, Vec<u8>)>]) {
        for (index, commit) in commits.iter().enumerate() {
            let mut block = Vec::new();
            let mut tag = |number: u16, value: &[u8]| {
                block.extend(number.to_le_bytes());
                block.extend((value.len() as u16).to_le_bytes());
                block.extend(value);
            };
            if index == 0 {
                tag(9, &[[0; 4], sequence.to_le_bytes()].concat());
            }
            for (number, value) in commit {
                tag(*number, value);
            }
            let mut rest = vec![0; BLOCK - 4 - block.len()];
            block.extend(8u16.to_le_bytes());
            block.extend((rest.len() as u16).to_le_bytes());
            put(&mut rest, 0, &sequence.to_le_bytes());
            block.extend(&rest[..4]);
            let sum = crc32c(0, &block);
            put(&mut rest, 4, &sum.to_le_bytes());
            block.extend(&rest[4..]);
            put(&mut self.bytes, (FAST + index) * BLOCK, &block);
        }
    }
}

/// What `fast` takes: tags by their names.
pub mod tags {
    pub fn add_range(inode: u32, first: u32, len: u16, start: u32) -> (u16, Vec<u8>) {
        let head = [inode.to_le_bytes(), first.to_le_bytes()].concat();
        let tail = [&len.to_le_bytes()[..], &[0; 2], &start.to_le_bytes()].concat();
        (1, [head, tail].concat())
    }
    pub fn delete_range(inode: u32, first: u32, len: u32) -> (u16, Vec<u8>) {
        (2, [inode, first, len].map(u32::to_le_bytes).concat())
    }
    fn name(tag: u16, parent: u32, inode: u32, name: &str) -> (u16, Vec<u8>) {
        let head = [parent, inode].map(u32::to_le_bytes).concat();
        (tag, [&head[..], name.as_bytes()].concat())
    }
    pub fn create(parent: u32, inode: u32, called: &str) -> (u16, Vec<u8>) {
        name(3, parent, inode, called)
    }
    pub fn link(parent: u32, inode: u32, called: &str) -> (u16, Vec<u8>) {
        name(4, parent, inode, called)
    }
    pub fn unlink(parent: u32, inode: u32, called: &str) -> (u16, Vec<u8>) {
        name(5, parent, inode, called)
    }
    pub fn inode(number: u32, raw: &[u8]) -> (u16, Vec<u8>) {
        (6, [&number.to_le_bytes()[..], raw].concat())
    }
}

/// The file system: files `0`, `1` and `2` of a block each, full of `a`, `b` and `c`.
pub struct Volume(pub Vec<u8>);

impl Volume {
    pub fn new() -> Self {
        let mut volume = Volume(vec![0; BLOCKS * BLOCK]);
        let mut long = |at: usize, value: u32| put(&mut volume.0, BLOCK + at, &value.to_le_bytes());
        long(0, 32); // inodes
        long(4, BLOCKS as u32);
        long(0x14, 1);
        long(0x20, 8192);
        long(0x24, 8192);
        long(0x28, 32);
        long(0x38, 0x0001_EF53);
        long(0x4C, 1);
        long(0x54, 11);
        long(0x58, INODE_BYTES as u32);
        long(0x5C, 4); // has a journal
        long(0x60, 0x42 | 4); // types in names, extents, needs recovery
        long(0xE0, 8);
        put(&mut volume.0, BLOCK + 0x68, &FILE_SYSTEM_UUID);
        for (at, block) in [(0, 3u32), (4, 4), (8, INODE_TABLE as u32)] {
            put(&mut volume.0, 2 * BLOCK + at, &block.to_le_bytes());
        }
        let root = inode(
            0o040_755,
            BLOCK as u32,
            2,
            2,
            EXTENTS,
            &extent(1, ROOT_BLOCK as u32),
        );
        volume.set_inode(2, &root);
        let journal = extent(JOURNAL_BLOCKS as u16, JOURNAL as u32);
        let size = (JOURNAL_BLOCKS * BLOCK) as u32;
        volume.set_inode(8, &inode(0o100_600, size, 1, size / 512, EXTENTS, &journal));
        for (index, letter) in (0..).zip(*b"abc") {
            let at = CONTENTS + index;
            let raw = inode(
                0o100_644,
                BLOCK as u32,
                1,
                2,
                EXTENTS,
                &extent(1, at as u32),
            );
            volume.set_inode(FIRST_FILE + index as u32, &raw);
            volume.set_block(at, &[letter; BLOCK]);
        }
        let names = [("0", 12, 1), ("1", 13, 1), ("2", 14, 1)];
        volume.set_block(ROOT_BLOCK, &directory(&names));
        volume
    }

    pub fn set_inode(&mut self, number: u32, raw: &[u8]) {
        put(
            &mut self.0,
            INODE_TABLE * BLOCK + (number as usize - 1) * INODE_BYTES,
            raw,
        );
    }

    pub fn set_root(&mut self, names: &[(&str, u32, u8)]) {
        self.set_block(ROOT_BLOCK, &directory(names));
    }

    pub fn set_block(&mut self, number: usize, content: &[u8]) {
        put(&mut self.0, number * BLOCK, content);
    }

    /// A field of the superblock.
    pub fn set(&mut self, at: usize, value: &[u8]) {
        put(&mut self.0, BLOCK + at, value);
    }

    /// With this journal inside.
    pub fn with(mut self, journal: &Journal) -> Vec<u8> {
        put(&mut self.0, JOURNAL * BLOCK, &journal.bytes);
        self.0
    }

    /// With its journal on another device.
    pub fn elsewhere(mut self) -> Vec<u8> {
        self.set(0xE0, &[0; 4]);
        self.set(0xE4, &[1, 8, 0, 0]);
        self.set(0xD0, &JOURNAL_UUID);
        self.0
    }
}

/// A device that is a journal; its superblock is block 2.
pub fn device(journal: &Journal) -> Vec<u8> {
    let mut bytes = journal.bytes.clone();
    for (at, value) in [
        (4, JOURNAL_BLOCKS as u32),
        (0x38, 0xEF53),
        (0x4C, 1),
        (0x60, 8),
    ] {
        put(&mut bytes, BLOCK + at, &value.to_le_bytes());
    }
    put(&mut bytes, BLOCK + 0x68, &JOURNAL_UUID);
    bytes
}

/// A list as ext keeps it: tags and permissions, and ids where the tag has one.
pub fn acl(entries: &[(u16, u16, Option<u32>)]) -> Vec<u8> {
    let mut list = 1u32.to_le_bytes().to_vec();
    for (tag, given, id) in entries {
        list.extend(tag.to_le_bytes());
        list.extend(given.to_le_bytes());
        list.extend(id.map(u32::to_le_bytes).into_iter().flatten());
    }
    list
}

/// A block of attributes without names of their own: what kind each is of (2: access, 3: default list), and its value.
pub fn attributes(all: &[(u8, &[u8])]) -> Vec<u8> {
    let mut block = vec![0; BLOCK];
    put(&mut block, 0, &0xEA02_0000u32.to_le_bytes());
    put(&mut block, 4, &1u32.to_le_bytes());
    put(&mut block, 8, &1u32.to_le_bytes());
    let mut end = BLOCK;
    for (index, (kind, value)) in all.iter().enumerate() {
        let at = 32 + index * 16;
        end -= value.len().next_multiple_of(4);
        block[at + 1] = *kind;
        put(&mut block, at + 2, &(end as u16).to_le_bytes());
        put(&mut block, at + 8, &(value.len() as u32).to_le_bytes());
        put(&mut block, end, value);
    }
    block
}
