//! Reads as programs make them: cut at the end of the file, from whichever memory the answer is in.

use brfs::error::Result;
use brfs::io::ReadAt;

/// At most `len` bytes at `offset`: fewer only where the file ends.
pub fn read_some<R: ReadAt + ?Sized>(file: &R, offset: u64, len: usize) -> Result<Vec<u8>> {
    let left = file.len_bytes().saturating_sub(offset);
    let len = usize::try_from(left).unwrap_or(usize::MAX).min(len);
    let mut buf = vec![0; len];
    let chunk = file.read_chunk_at(&mut buf, offset)?;
    let bytes = chunk.bytes(&buf);
    assert_eq!(bytes.len(), len, "a read is whole or an error");
    Ok(bytes.to_vec())
}
