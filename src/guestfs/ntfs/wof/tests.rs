use super::*;
use crate::guestfs::common::chunked::ChunkedFile;

fn reparse(numbers: [u32; 4]) -> Vec<u8> {
    let head = [0x17, 0, 0, 0x80, 16, 0, 0, 0];
    let words = numbers.into_iter().flat_map(u32::to_le_bytes);
    head.into_iter().chain(words).collect()
}

#[test]
fn reparse_points_say_how_a_file_is_compressed() {
    use Algorithm::{Lzx, Xpress4K, Xpress8K, Xpress16K};
    for (number, algorithm) in [(0, Xpress4K), (1, Lzx), (2, Xpress8K), (3, Xpress16K)] {
        let value = reparse([1, 2, 1, number]);
        assert_eq!(Algorithm::of_reparse_point(&value).unwrap(), algorithm);
        for len in 0..value.len() {
            let cut = Algorithm::of_reparse_point(&value[..len]).unwrap_err();
            assert_eq!(cut.kind(), ErrorKind::Corrupt);
        }
    }
    for (numbers, says) in [
        ([1, 1, 1, 0], "WIMBoot"),
        ([1, 3, 1, 0], "provider 3"),
        ([2, 2, 1, 0], "version 2"),
        ([1, 2, 2, 0], "file provider version 2"),
        ([1, 2, 1, 4], "algorithm 4"),
    ] {
        let error = Algorithm::of_reparse_point(&reparse(numbers)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains(says), "{error}");
    }
}

/// A file of 4 GiB and more without the memory for it: all chunks are one and the same, the last one is
/// stored as it is.
struct Wide {
    chunk: Vec<u8>,
    count: u64,
    tail: Vec<u8>,
}

impl Wide {
    fn table_bytes(&self) -> u64 {
        (self.count - 1) * 8
    }
    fn byte(&self, at: u64) -> u8 {
        let len = self.chunk.len() as u64;
        match at.checked_sub(self.table_bytes()) {
            None => ((at / 8 + 1) * len).to_le_bytes()[(at % 8) as usize],
            Some(at) if at / len < self.count - 1 => self.chunk[(at % len) as usize],
            Some(at) => self.tail[(at - (self.count - 1) * len) as usize],
        }
    }
}

impl ReadAt for Wide {
    fn len_bytes(&self) -> u64 {
        let chunks = (self.count - 1) * self.chunk.len() as u64;
        self.table_bytes() + chunks + self.tail.len() as u64
    }
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        crate::io::check_range(offset, buf.len() as u64, self.len_bytes())?;
        for (byte, at) in buf.iter_mut().zip(offset..) {
            *byte = self.byte(at);
        }
        Ok(())
    }
}

/// An XPRESS chunk of one byte over and over: 'x', then a match as long as needed.
fn one_byte(len: usize) -> Vec<u8> {
    let mut packed = vec![0; 256];
    // Two codes of one bit: 0 for the byte, 1 for a match from 1 byte before, of a length to come.
    packed[usize::from(b'x') / 2] = 1;
    packed[(256 + 15) / 2] = 1 << 4;
    packed.extend([0, 0x40, 0, 0, 255]);
    packed.extend((len as u16 - 1 - 3).to_le_bytes());
    packed
}

#[test]
fn files_of_four_gib_have_wide_tables() {
    let algorithm = Algorithm::Xpress16K;
    let chunk_bytes = algorithm.chunk_bytes();
    let count = (4 << 30) / chunk_bytes + 1;
    let len = (count - 1) * chunk_bytes + 5;
    let wide = Wide {
        chunk: one_byte(chunk_bytes as usize),
        count,
        tail: b"tail!".to_vec(),
    };
    let chunks = Chunks::new(Arc::new(wide), algorithm, len).unwrap();
    let file = ChunkedFile::new(chunks).unwrap();
    let mut buf = vec![0; 100_000];
    for offset in [0, 1, chunk_bytes - 1, 1 << 31, (4 << 30) - 100_000] {
        buf.fill(0);
        file.read_exact_at(&mut buf, offset).unwrap();
        assert!(buf.iter().all(|&byte| byte == b'x'), "{offset}");
    }
    let mut end = [0; 8];
    file.read_exact_at(&mut end, len - 8).unwrap();
    assert_eq!(&end, b"xxxtail!");
}

/// A file in chunks that are stored as they are, with this table.
fn stored(places: &[u32], content: &[u8]) -> Result<ChunkedFile<Chunks>> {
    let mut stream: Vec<u8> = places.iter().flat_map(|at| at.to_le_bytes()).collect();
    stream.extend_from_slice(content);
    let len = content.len() as u64;
    let chunks = Chunks::new(Arc::new(stream), Algorithm::Xpress4K, len)?;
    ChunkedFile::new(chunks)
}

#[test]
fn a_table_that_makes_no_sense_is_an_error_and_its_neighbours_are_read() {
    let content: Vec<u8> = (0..4 * 4096 - 7u32).map(|n| (n % 251) as u8).collect();
    let read = |places: &[u32], at: usize| {
        let file = stored(places, &content)?;
        let mut buf = vec![0; 100];
        file.read_exact_at(&mut buf, at as u64)?;
        assert_eq!(buf, content[at..at + 100]);
        Ok::<_, Error>(())
    };
    for at in [0, 4050, 8192, content.len() - 100] {
        read(&[4096, 8192, 12288], at).unwrap();
    }
    // Backwards, empty, too long, past the end.
    for bad in [8000, 4096, 12289, 1 << 20] {
        let places = [4096, bad, 12288];
        assert!(read(&places, 4096).is_err(), "{bad}");
        assert!(read(&places, 8192).is_err(), "{bad}");
        read(&places, 0).unwrap();
        read(&places, 12288).unwrap();
    }
    // The stream ends within the table, and within a chunk.
    assert!(Chunks::new(Arc::new(vec![0; 11]), Algorithm::Xpress4K, 4 * 4096).is_err());
    let cut = Chunks::new(Arc::new(vec![0; 12]), Algorithm::Xpress4K, 4 * 4096).unwrap();
    let cut = ChunkedFile::new(cut).unwrap();
    assert!(cut.read_exact_at(&mut [0; 1], 3 * 4096).is_err());
}

#[test]
fn an_empty_file_has_no_chunks() {
    let file = stored(&[], &[]).unwrap();
    assert!(file.read_exact_at(&mut [], 0).is_ok());
}

/// Every chunk stands for exactly as many bytes as it should, and all that it has is in there.
#[test]
fn a_chunk_that_ends_early_or_goes_on_is_an_error() {
    let packed = one_byte(4096);
    let unpack = |packed: &[u8], len: usize| {
        let mut out = vec![0; len];
        Algorithm::Xpress4K.unpack(packed, &mut out).map(|()| out)
    };
    assert_eq!(unpack(&packed, 4096).unwrap(), [b'x'; 4096]);
    assert!(unpack(&packed, 4095).is_err());
    for len in 0..packed.len() {
        assert!(unpack(&packed[..len], 4096).is_err(), "{len}");
    }
    // The next symbol would be of bits that are not there.
    assert!(unpack(&packed[..258], 4096).is_err());
}

/// Bits, the first one highest, in words.
fn words(bits: &str) -> Vec<u8> {
    let bits: Vec<u16> = bits
        .bytes()
        .filter(|b| *b != b' ')
        .map(|b| u16::from(b - b'0'))
        .collect();
    let word = |bits: &[u16]| {
        let word = (0..16).fold(0, |all, at| all << 1 | bits.get(at).copied().unwrap_or(0));
        word.to_le_bytes()
    };
    bits.chunks(16).flat_map(word).collect()
}

/// Compressors that are at hand make no plain blocks: one of an odd length, and behind it one that refers
/// back to it, by the distances that the first one brought along.
#[test]
fn uncompressed_blocks_of_lzx_are_read_and_gone_on_from() {
    // The lengths of a pre-code, 4 bits each.
    let pre = |lens: &[(usize, u8)]| -> String {
        let len = |at| lens.iter().find(|(known, _)| *known == at);
        (0..20)
            .map(|at| format!("{:04b}", len(at).map_or(0, |(_, len)| *len)))
            .collect()
    };
    // Uncompressed, 5 bytes.
    let mut packed = words("011 0 0000000000000101");
    for distance in [3u32, 5, 1] {
        packed.extend(distance.to_le_bytes());
    }
    packed.extend(b"abcde\0");
    let verbatim = [
        // 5 bytes.
        "001 0 0000000000000101",
        // No bytes as they are: 256 zeros, in runs of 51 and 26.
        &pre(&[(18, 1)]),
        "011111 011111 011111 011111 000110 000110",
        // The pre-code: "0" for no change, "10" for 1 instead of 0, "11" for a run of zeros.
        &pre(&[(0, 1), (16, 2), (18, 2)]),
        // Two matches, of one bit each: slot 0 with 2 bytes, slot 1 with 3.
        "10 00000000 10 1111111 1111111 1111111 1111111 1100110",
        // No lengths beyond 8.
        &pre(&[(18, 1)]),
        "011111 011111 011111 011111 011001",
        // 3 back: "cd". 5 back: "cde".
        "0 1",
    ];
    packed.extend(words(&verbatim.concat()));
    let mut out = [0; 10];
    Algorithm::Lzx.unpack(&packed, &mut out).unwrap();
    assert_eq!(&out, b"abcdecdcde");
    // A distance of more than there is.
    packed[4] = 6;
    assert!(Algorithm::Lzx.unpack(&packed, &mut out).is_err());
}
