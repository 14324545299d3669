//! What opening an encrypted block costs beside decoding it. One core, no storage.

use std::hint::black_box;
use std::time::Instant;

use brfs::buffers::Buffer;
use brfs::codec::Filter as Codec;
use brfs::codec::aead::{Algorithm, Cipher, Key};
use bytes::Bytes;

use crate::Run;
use crate::figures::Wanted;
use crate::sample::{DECODED, Sample};
use crate::seal::{KEY, seal};
use crate::support::chain::Storage;
use crate::support::vhd_dir::Filter;

/// Blocks that are opened and decoded in a round.
const BLOCKS: u64 = 64;

pub fn all(run: &mut Run) {
    let sample = Sample::full(run, "crypto", Storage::Dir(Filter::Brotli), 1);
    let stored: Vec<Vec<u8>> = (0..BLOCKS)
        .map(|block| std::fs::read(sample.block_path(block)).expect("a block"))
        .collect();
    let per_block = |started: Instant| started.elapsed().as_secs_f64() * 1e3 / BLOCKS as f64;
    for name in ["chacha20-poly1305", "aes-256-gcm"] {
        let algorithm = Algorithm::parse(name).expect("an algorithm");
        let cipher = Cipher::new(algorithm, &Key::new(KEY).expect("a key")).expect("a cipher");
        let sealed: Vec<Vec<u8>> = stored.iter().map(|block| seal(name, KEY, block)).collect();
        run.figures.compare(
            run.rounds,
            &format!("opening a block, {name}"),
            "ms",
            "its brotli decode",
            Wanted::AtMost(0.2),
            || {
                // As they come from the network: nobody else holds them.
                let parts: Vec<Bytes> = sealed.iter().map(|part| part.clone().into()).collect();
                let started = Instant::now();
                for part in parts {
                    black_box(cipher.open(part).expect("authentic"));
                }
                per_block(started)
            },
            || {
                let started = Instant::now();
                for block in &stored {
                    let mut decoded = Buffer::new(DECODED);
                    Codec::Brotli
                        .decode_into(block, &mut decoded)
                        .expect("decodes");
                    black_box(decoded.into_bytes());
                }
                per_block(started)
            },
        );
    }
    sample.remove();
}
