//! Guest volumes with some bytes changed, and a walk over all that they show.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use brfs::error::Result;
use brfs::guestfs::host::pool::Pool;
use brfs::io::ReadAt;
use brfs::tree::{Directory, Node};
use brfs::views::guest::{Disks, GuestContext, GuestOptions, OpenDisk, disk_children};

/// Bytes of an input that make one change: block and offset in it (16 bits each), and a mask.
pub const EDIT_BYTES: usize = 5;
const BLOCK_BYTES: u64 = 4096;

/// An image with some bytes changed.
pub struct Damaged {
    base: Arc<dyn ReadAt>,
    edits: HashMap<u64, u8>,
}

impl Damaged {
    /// Changes bytes in these blocks of an image, as `input` says.
    pub fn of(base: Arc<dyn ReadAt>, blocks: &[u64], input: &[u8]) -> Arc<dyn ReadAt> {
        let edits = input.as_chunks::<EDIT_BYTES>().0.iter().map(|edit| {
            let number = u16::from_le_bytes([edit[0], edit[1]]);
            let offset = u64::from(u16::from_le_bytes([edit[2], edit[3]])) % BLOCK_BYTES;
            let block = blocks[usize::from(number) % blocks.len()];
            (block * BLOCK_BYTES + offset, edit[4])
        });
        Arc::new(Damaged {
            edits: edits.collect(),
            base,
        })
    }
}

impl ReadAt for Damaged {
    fn len_bytes(&self) -> u64 {
        self.base.len_bytes()
    }
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.base.read_exact_at(buf, offset)?;
        let end = offset + buf.len() as u64;
        for (&at, &mask) in &self.edits {
            if (offset..end).contains(&at) {
                buf[(at - offset) as usize] ^= mask;
            }
        }
        Ok(())
    }
}

/// The blocks that hold anything but zeros, and little noise: where metadata is. All blocks where metadata
/// is compressed.
pub fn interesting_blocks(image: &dyn ReadAt) -> Vec<u64> {
    let mut found = Vec::new();
    let mut block = [0; BLOCK_BYTES as usize];
    for number in 0..image.len_bytes() / BLOCK_BYTES {
        image
            .read_exact_at(&mut block, number * BLOCK_BYTES)
            .unwrap();
        // Most are, and this is the quickest way to tell.
        if block == [0; BLOCK_BYTES as usize] {
            continue;
        }
        let zeros = block.iter().filter(|&&b| b == 0).count();
        if (400..4096).contains(&zeros) {
            found.push(number);
        }
    }
    match found.len() {
        0..8 => (0..image.len_bytes() / BLOCK_BYTES).collect(),
        _ => found,
    }
}

/// How guests are shown here.
pub fn context() -> GuestContext {
    GuestContext {
        pool: Arc::new(Pool::default()),
        options: GuestOptions {
            guest_owner: true,
            ..GuestOptions::default()
        },
        time: UNIX_EPOCH,
        identity: 1,
        disks: Arc::new([]),
        machine: Arc::default(),
    }
}

/// Walks what a disk shows, as far as it goes.
pub fn look_at(image: Arc<dyn ReadAt>) {
    let open: OpenDisk = Arc::new(move || Ok(image.clone()));
    visit(&*disk_children(context(), "xvda", open), &mut 400, 0);
}

/// Walks what the first of several disks shows of a file system that lies over all of them.
pub fn look_at_all(images: Vec<Arc<dyn ReadAt>>) {
    let opens = images
        .into_iter()
        .map(|image| -> OpenDisk { Arc::new(move || Ok(image.clone())) });
    let names = ["xvda", "xvdb", "xvdc", "xvdd"].map(str::to_string);
    let disks: Disks = names.into_iter().zip(opens).collect();
    let (name, first) = disks[0].clone();
    let context = GuestContext { disks, ..context() };
    visit(&*disk_children(context, &name, first), &mut 100, 0);
}

/// Walks what can be walked: at most so many nodes, the first bytes of each file.
pub fn visit(dir: &dyn Directory, left: &mut u32, depth: u32) {
    let Ok(mut stream) = dir.list() else {
        return;
    };
    let mut buf = vec![0; 64 << 10];
    while let Ok(Some(entry)) = stream.next_entry() {
        if *left == 0 || depth > 60 {
            return;
        }
        *left -= 1;
        assert!(!entry.name.is_empty() && entry.name.len() <= 255);
        let Ok(Some(node)) = dir.lookup(&entry.name) else {
            continue;
        };
        let _ = node.base().attr();
        let _ = node.base().xattr_names();
        match &node {
            Node::Dir(sub) => visit(&**sub, left, depth + 1),
            Node::Leaf(leaf) => drop(leaf.target()),
            Node::File(file) => {
                let (Ok(open), Ok(attr)) = (file.open(), file.attr()) else {
                    continue;
                };
                for offset in [0, attr.size_bytes / 2, attr.size_bytes.saturating_sub(5000)] {
                    let left = open
                        .len_bytes()
                        .saturating_sub(offset)
                        .min(buf.len() as u64);
                    let _ = open.read_exact_at(&mut buf[..left as usize], offset);
                }
                if attr.size_bytes > 0 {
                    let _ = open.extent_at(attr.size_bytes / 3);
                }
            }
        }
    }
}
