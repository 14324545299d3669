//! The label and the metadata area of one LVM2 physical volume.
//!
//! A label sector (`LABELONE`, one of the first four) points to a physical-volume header with lists
//! of data areas and of metadata areas. A metadata area is a 512-byte header and a ring buffer of
//! texts; the header says where the current text lies and what its checksum is.

use super::super::bits::{crc32_update, has, le32, le64};
use crate::error::{Error, Result};
use crate::io::ReadAt;

const SECTOR: usize = 512;
/// Start value of LVM's checksum (`lib/misc/crc.h`); there is no final inversion.
const INITIAL_CRC: u32 = 0xF597_A6CF;
const MDA_MAGIC: &[u8; 16] = b" LVM2 x[5A%r0N*>";
const MDA_HEADER_BYTES: u64 = 512;
/// LVM's own metadata areas are 1 MiB by default; texts of thousands of volumes need some MiB.
const MAX_TEXT_BYTES: u64 = 32 << 20;
/// Areas listed in one header.
const MAX_AREAS: usize = 32;

/// What the label says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Label {
    /// The 32 characters of the physical volume's id, without dashes.
    pub id: String,
    /// Size that the label records, in bytes.
    pub device_bytes: u64,
    /// Metadata areas: offset and length in bytes.
    pub metadata_areas: Vec<(u64, u64)>,
}

fn checksum(bytes: &[u8]) -> u32 {
    crc32_update(INITIAL_CRC, bytes)
}

/// Reads the label, `None` when the volume has none.
///
/// # Errors
/// `Corrupt` for a label whose checksum or fields are wrong.
pub fn read_label(volume: &dyn ReadAt) -> Result<Option<Label>> {
    let len = volume.len_bytes().min(4 * SECTOR as u64) as usize;
    let mut head = vec![0; len];
    volume.read_exact_at(&mut head, 0)?;
    let mut damaged = None;
    for (sector, number) in head.chunks_exact(SECTOR).zip(0u64..) {
        if !has(sector, 0, b"LABELONE") || !has(sector, 24, b"LVM2 001") {
            continue;
        }
        match parse_label(sector, number) {
            Ok(label) => return Ok(Some(label)),
            Err(error) => damaged = Some(error.at(number * SECTOR as u64)),
        }
    }
    damaged.map_or(Ok(None), Err)
}

fn parse_label(sector: &[u8], number: u64) -> Result<Label> {
    if le64(sector, 8) != number {
        return Err(Error::corrupt("an LVM label lies in the wrong sector"));
    }
    if checksum(&sector[20..]) != le32(sector, 16) {
        return Err(Error::corrupt("an LVM label has a wrong checksum"));
    }
    let header = le32(sector, 20) as usize;
    let Some(body) = sector.get(header..).filter(|body| body.len() >= 40) else {
        return Err(Error::corrupt("an LVM label points out of its sector"));
    };
    let id = String::from_utf8_lossy(&body[..32]).into_owned();
    let mut at = 40;
    // The first list holds data areas, the second metadata areas; each ends with a zero pair.
    let mut lists = [Vec::new(), Vec::new()];
    for list in &mut lists {
        loop {
            if at + 16 > body.len() || list.len() > MAX_AREAS {
                return Err(Error::corrupt("an LVM label's list of areas has no end"));
            }
            let (offset, size) = (le64(body, at), le64(body, at + 8));
            at += 16;
            if offset == 0 {
                break;
            }
            list.push((offset, size));
        }
    }
    let [_, metadata_areas] = lists;
    Ok(Label {
        id,
        device_bytes: le64(body, 32),
        metadata_areas,
    })
}

/// Reads the current text of a metadata area, `None` when the area holds none or is to be ignored.
///
/// # Errors
/// `Corrupt` for a header or text whose checksum or fields are wrong.
pub fn read_text(volume: &dyn ReadAt, area: (u64, u64)) -> Result<Option<Vec<u8>>> {
    let (start, size) = area;
    let end = start.checked_add(size);
    if size <= MDA_HEADER_BYTES || end.is_none_or(|end| end > volume.len_bytes()) {
        return Err(Error::corrupt("an LVM metadata area leaves its volume").at(start));
    }
    let mut header = [0; MDA_HEADER_BYTES as usize];
    volume.read_exact_at(&mut header, start)?;
    if checksum(&header[4..]) != le32(&header, 0) || !has(&header, 4, MDA_MAGIC) {
        return Err(Error::corrupt("an LVM metadata area has a damaged header").at(start));
    }
    if le32(&header, 20) != 1 || le64(&header, 24) != start {
        return Err(Error::corrupt("an LVM metadata area is of an unknown version").at(start));
    }
    let size = size.min(le64(&header, 32));
    // raw_locn 0 is the committed text; 1, when set, one that was being written.
    let (offset, len) = (le64(&header, 40), le64(&header, 48));
    let (recorded, flags) = (le32(&header, 56), le32(&header, 60));
    const IGNORED: u32 = 1;
    if offset == 0 || flags & IGNORED != 0 {
        return Ok(None);
    }
    let Some(ring) = size.checked_sub(MDA_HEADER_BYTES) else {
        return Err(Error::corrupt("an LVM metadata area is too small").at(start));
    };
    if offset < MDA_HEADER_BYTES || offset >= size || len == 0 || len > ring.min(MAX_TEXT_BYTES) {
        return Err(Error::corrupt("an LVM metadata text leaves its area").at(start));
    }
    let mut text = vec![0; len as usize];
    let first = len.min(size - offset) as usize;
    volume.read_exact_at(&mut text[..first], start + offset)?;
    // A text that reaches the end of the area goes on behind the header.
    volume.read_exact_at(&mut text[first..], start + MDA_HEADER_BYTES)?;
    if checksum(&text) != recorded {
        return Err(Error::corrupt("an LVM metadata text has a wrong checksum").at(start));
    }
    Ok(Some(text))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A physical volume whose text starts `wrap` bytes before the end of a 64 KiB area at 4 KiB.
    pub(crate) fn make(id: &str, text: &[u8], wrap: usize, len: usize) -> Vec<u8> {
        let (start, size) = (4096usize, 65536usize);
        let mut disk = vec![0; len];
        let label = &mut disk[512..1024];
        label[..8].copy_from_slice(b"LABELONE");
        label[8] = 1;
        label[20] = 32;
        label[24..32].copy_from_slice(b"LVM2 001");
        label[32..64].copy_from_slice(format!("{id:0<32}").as_bytes());
        label[64..72].copy_from_slice(&(len as u64).to_le_bytes());
        label[72..80].copy_from_slice(&(1u64 << 20).to_le_bytes());
        label[104..112].copy_from_slice(&(start as u64).to_le_bytes());
        label[112..120].copy_from_slice(&(size as u64).to_le_bytes());
        let crc = checksum(&label[20..]);
        label[16..20].copy_from_slice(&crc.to_le_bytes());
        let offset = size - wrap;
        let mut head = vec![0; 512];
        head[4..20].copy_from_slice(MDA_MAGIC);
        head[20] = 1;
        head[24..32].copy_from_slice(&(start as u64).to_le_bytes());
        head[32..40].copy_from_slice(&(size as u64).to_le_bytes());
        head[40..48].copy_from_slice(&(offset as u64).to_le_bytes());
        head[48..56].copy_from_slice(&(text.len() as u64).to_le_bytes());
        head[56..60].copy_from_slice(&checksum(text).to_le_bytes());
        let crc = checksum(&head[4..]);
        head[..4].copy_from_slice(&crc.to_le_bytes());
        disk[start..start + 512].copy_from_slice(&head);
        let first = text.len().min(wrap);
        disk[start + offset..start + offset + first].copy_from_slice(&text[..first]);
        let rest = &text[first..];
        disk[start + 512..start + 512 + rest.len()].copy_from_slice(rest);
        disk
    }

    #[test]
    fn a_text_that_wraps_around_its_ring_is_put_together() {
        let text: Vec<u8> = (0..3000u32).map(|n| b'a' + (n % 26) as u8).collect();
        for wrap in [4096, 3000, 2999, 1000, 1] {
            let disk = make("x", &text, wrap, 1 << 20);
            let label = read_label(&disk).unwrap().unwrap();
            assert_eq!(label.metadata_areas, [(4096, 65536)]);
            assert_eq!(label.device_bytes, 1 << 20);
            let found = read_text(&disk, label.metadata_areas[0]).unwrap();
            assert_eq!(found.as_deref(), Some(&text[..]));
        }
    }

    #[test]
    fn damage_to_label_header_or_text_is_an_error() {
        let disk = make("x", b"some text", 1000, 1 << 20);
        let area = (4096, 65536);
        for at in [512 + 40, 4096 + 100, 4096 + 65536 - 1000 + 3] {
            let mut damaged = disk.clone();
            damaged[at] ^= 4;
            assert!(read_label(&damaged).is_err() || read_text(&damaged, area).is_err());
        }
        assert!(read_label(&vec![0u8; 100]).unwrap().is_none());
        assert!(read_text(&disk, (u64::MAX - 5, 100)).is_err());
    }
}
